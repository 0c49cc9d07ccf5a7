use crate::engine::Engine;
use crate::error::{Error, ErrorKind, Result};
use crate::id::VolumeUuid;
use crate::keep::Keep;
use crate::model::{Backup, Outcome, RunKind, SnapshotOrigin, Volume};
use crate::name::{SnapshotName, SnapshotRef};
use jiff::Timestamp;

/// Of what a schedule has made, what its time is over for; never `newest`, which was made just now. What
/// bears a time to come was made by a clock that has been set back since: it neither counts nor goes
/// until that time.
fn outlived<'t, T: PartialEq>(
    made: &'t [(T, Timestamp)],
    keep: Keep,
    newest: &T,
    now: Timestamp,
) -> Vec<&'t T> {
    let counted: Vec<_> = made.iter().filter(|(_, created)| *created <= now).collect();
    let times: Vec<Timestamp> = counted.iter().map(|(_, created)| *created).collect();
    let chosen = keep.choose(&times);
    let chosen = chosen.into_iter().filter_map(|at| counted.get(at).map(|(one, _)| one));
    chosen.filter(|one| *one != newest).collect()
}

/// The backups that the schedule of this volume has made, whatever the volume's name was.
fn scheduled(backups: Vec<Backup>, volume: VolumeUuid) -> Vec<Backup> {
    backups.into_iter().filter(|backup| backup.uuid == volume && backup.scheduled).collect()
}

impl Engine {
    /// Deletes what the schedule of the volume has made of this kind and does not keep any more, now that
    /// `newest` is there.
    pub(super) async fn apply_retention(
        &self,
        volume: &Volume,
        kind: RunKind,
        newest: &str,
    ) -> Result<()> {
        // As it is now: it may have been changed while the run went on.
        let active = self.inner.catalog.read(|state| state.schedule(volume.uuid).cloned());
        let Some(schedule) = active.map(|active| active.schedule.clone()) else { return Ok(()) };
        if schedule.keep.is_empty() {
            return Ok(());
        }
        let now = self.inner.environment.clock.now();
        match kind {
            RunKind::Snapshot => {
                let made = self.scheduled_snapshots(volume);
                let newest: SnapshotName = newest.parse()?;
                for name in outlived(&made, schedule.keep, &newest, now) {
                    let volume = volume.name.clone();
                    let which = SnapshotRef { volume, snapshot: name.clone() };
                    gone(self.change(None).scheduled().remove_snapshot(which).await)?;
                }
            }
            RunKind::Backup => {
                // Where the schedule's backups go, and nowhere else: others may be the last ones.
                let repositories = &self.inner.config.repositories;
                let repository = repositories.get(schedule.repository.as_ref())?.name().clone();
                let repository = Some(repository);
                let all = self.backups(Some(&volume.name), repository.as_ref()).await?;
                let made = scheduled(all, volume.uuid).into_iter();
                let made: Vec<_> = made.map(|backup| (backup.id, backup.created)).collect();
                for id in outlived(&made, schedule.keep, &newest.parse()?, now) {
                    let change = self.change(None).scheduled();
                    gone(change.remove_backup((*id).into(), repository.clone()).await)?;
                }
            }
        }
        Ok(())
    }

    /// The snapshots that the volume's schedule has made, oldest first.
    pub(super) fn scheduled_snapshots(&self, volume: &Volume) -> Vec<(SnapshotName, Timestamp)> {
        self.inner.catalog.read(|state| {
            let all = state.snapshots(volume.uuid).iter();
            let made = all.filter(|one| one.complete && one.origin == SnapshotOrigin::Schedule);
            made.map(|one| (one.name.clone(), one.created)).collect()
        })
    }
}

/// Whoever was faster has done the same.
fn gone(removed: Result<Outcome>) -> Result<()> {
    let absent = |error: &Error| error.kind() == ErrorKind::NotFound;
    match removed {
        Err(error) if !absent(&error) => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::BackupId;

    fn at(hour: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + hour * 3600).unwrap()
    }

    #[test]
    fn what_comes_from_the_future_is_left_alone_and_counts_for_nothing() {
        let made: Vec<(i64, Timestamp)> = (0..10).map(|hour| (hour, at(hour))).collect();
        let keep = "3h".parse().unwrap();
        assert_eq!(outlived(&made, keep, &9, at(9)), [&0, &1, &2, &3, &4, &5, &6]);
        // The clock was set back to the fifth hour, in which one more is made.
        let mut made = made;
        made.push((100, at(5)));
        assert_eq!(outlived(&made, keep, &100, at(5)), [&0, &1, &2, &5]);
    }

    #[test]
    fn the_one_that_was_made_just_now_stays() {
        let made = [(1, at(1)), (2, at(2)), (3, at(2))];
        assert_eq!(outlived(&made, "1".parse().unwrap(), &2, at(2)), [&1]);
    }

    #[test]
    fn only_backups_by_the_schedule_of_this_volume_are_considered() {
        let backup = |number: u8, volume: u128, scheduled: bool| Backup {
            id: BackupId::from_bytes([number; 32]),
            repository: "main".parse().unwrap(),
            volume: "db".parse().unwrap(),
            uuid: VolumeUuid::from_uuid(uuid::Uuid::from_u128(volume)),
            backend: "sim".parse().unwrap(),
            snapshot: "s".parse().unwrap(),
            snapshot_uuid: crate::id::SnapshotUuid::from_uuid(uuid::Uuid::from_u128(9)),
            node: "node-1".to_owned(),
            size: None,
            created: at(0),
            finished: at(0),
            added: 0,
            parent: None,
            scheduled,
        };
        let all = vec![backup(1, 1, true), backup(2, 1, false), backup(3, 2, true)];
        let volume = VolumeUuid::from_uuid(uuid::Uuid::from_u128(1));
        assert_eq!(scheduled(all, volume), [backup(1, 1, true)]);
    }
}
