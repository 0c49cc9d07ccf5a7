//! Which thin devices the pool has, and making and deleting them so that a crash leaves none that
//! nobody knows of.
//!
//! Each change goes: record the intent, tell the pool, record that it is done, and set the pool's
//! transaction number as a compare-and-swap. Records and pool can then differ by one step at most, and a
//! pool that somebody else has changed is found out.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::PoisonError;

use super::pool::Pool;
use super::records::{Edit, Owner, RECORDS_ID, Records, Thin, ThinState};
use super::status::Mode;
use crate::error::{Error, ErrorKind, Result};
use crate::failpoint::BackendStep;
use crate::id::{ThinId, VolumeUuid};
use crate::model::Outcome;
use crate::units::ByteSize;

/// The records and the pool's transaction.
#[derive(Debug)]
pub(super) struct Ledger {
    records: Records,
    /// The pool's own. During a change, and after one that could not be counted, the recorded one is
    /// one ahead.
    transaction: u64,
}

/// The thin devices as recorded.
#[derive(Debug, Default)]
pub(super) struct Index {
    thins: BTreeMap<ThinId, Thin>,
    ids: BTreeMap<Owner, ThinId>,
    /// Thin devices that the pool has and no record stands for. They are left alone.
    unknown: BTreeSet<ThinId>,
}

impl Index {
    /// A thin device that is whole.
    pub(super) fn ready(&self, owner: Owner) -> Option<(ThinId, Thin)> {
        let id = *self.ids.get(&owner)?;
        let thin = *self.thins.get(&id)?;
        (thin.state == ThinState::Ready).then_some((id, thin))
    }

    /// All thin devices of a volume, whatever their state.
    pub(super) fn of_volume(&self, volume: VolumeUuid) -> Vec<(ThinId, Thin)> {
        let all = self.thins.iter().filter(|(_, thin)| thin.owner.volume() == volume);
        all.map(|(id, thin)| (*id, *thin)).collect()
    }

    /// The volumes that have any thin device.
    pub(super) fn volumes(&self) -> BTreeSet<VolumeUuid> {
        self.thins.values().map(|thin| thin.owner.volume()).collect()
    }

    /// All thin devices.
    pub(super) fn thins(&self) -> impl Iterator<Item = (ThinId, &Thin)> {
        self.thins.iter().map(|(id, thin)| (*id, thin))
    }

    /// Thin devices that the pool has and no record stands for.
    pub(super) fn unknown(&self) -> &BTreeSet<ThinId> {
        &self.unknown
    }

    fn put(&mut self, id: ThinId, thin: Thin) {
        self.thins.insert(id, thin);
        self.ids.insert(thin.owner, id);
    }

    fn remove(&mut self, id: ThinId) {
        if let Some(thin) = self.thins.remove(&id) {
            self.ids.remove(&thin.owner);
        }
    }

    /// The lowest number that neither a record nor the pool has.
    fn free_id(&self) -> Result<ThinId> {
        (RECORDS_ID + 1..=ThinId::MAX.number())
            .filter_map(|number| ThinId::try_from(number).ok())
            .find(|id| !self.thins.contains_key(id) && !self.unknown.contains(id))
            .ok_or_else(|| Error::out_of_space("the pool has no number left for a thin device"))
    }
}

impl Ledger {
    pub(super) fn load(mut records: Records) -> Result<(Self, Index)> {
        let transaction = records.transaction()?;
        let mut index = Index::default();
        for (id, thin) in records.thins()? {
            index.put(id, thin);
        }
        Ok((Self { records, transaction }, index))
    }
}

/// What a new thin device begins with.
#[derive(Debug, Clone, Copy)]
pub(super) enum Beginning<'a> {
    /// Zeros.
    Blank,
    /// The content of another one; suspended meanwhile if it is active under this uuid.
    SnapshotOf { origin: ThinId, active: Option<&'a str> },
}

impl Pool {
    /// Makes a thin device. `Unchanged` if it is there.
    pub(super) fn create_thin(
        &self,
        owner: Owner,
        size: ByteSize,
        beginning: Beginning<'_>,
    ) -> Result<Outcome> {
        let mut ledger = self.lock_ledger();
        let known = self.index().ids.get(&owner).copied();
        if let Some(id) = known {
            if self.index().ready(owner).is_some() {
                return Ok(Outcome::Unchanged);
            }
            // What an earlier try left.
            self.delete_one(&mut ledger, id)?;
        }
        self.require_room()?;
        loop {
            let id = self.index().free_id()?;
            let thin = Thin { owner, size, state: ThinState::Creating };
            self.record(&mut ledger, id, thin, BackendStep::ThinCreateIntent)?;
            match self.tell_pool_to_make(id, beginning) {
                Ok(()) => {
                    let thin = Thin { state: ThinState::Ready, ..thin };
                    let steps = [BackendStep::ThinCreateRecord, BackendStep::ThinCreateCount];
                    self.advance(&mut ledger, Edit::Put(id, thin), steps)?;
                    self.index_mut().put(id, thin);
                    return Ok(Outcome::Changed);
                }
                // Never adopted: what it holds is somebody's.
                Err(error) if error.kind() == ErrorKind::Conflict => {
                    tracing::warn!(%id, "the pool has a thin device that no record stands for");
                    ledger.records.commit(&[Edit::Remove(id)], BackendStep::ThinCreateRefused)?;
                    let mut index = self.index_mut();
                    index.remove(id);
                    index.unknown.insert(id);
                }
                Err(error) => {
                    // It may have been made all the same. What cannot be deleted now is deleted before
                    // the next try, or at the next start.
                    if let Err(second) = self.delete_one(&mut ledger, id) {
                        tracing::warn!(%id, "{}", second.full_message());
                    }
                    return Err(error);
                }
            }
        }
    }

    fn tell_pool_to_make(&self, id: ThinId, beginning: Beginning<'_>) -> Result<()> {
        let step = BackendStep::ThinCreateMessage;
        match beginning {
            Beginning::Blank => self.message(&format!("create_thin {id}"), step),
            Beginning::SnapshotOf { origin, active } => {
                // The kernel does not insist on it, but without it the snapshot may be torn.
                let suspended = active.map(|uuid| self.mapper.suspend(uuid)).transpose()?;
                let made = self.message(&format!("create_snap {id} {origin}"), step);
                suspended.map_or(Ok(()), |suspended| suspended.resume())?;
                made
            }
        }
    }

    /// Deletes thin devices, and with `forget` the description of their volume.
    pub(super) fn delete_thins(
        &self,
        ids: &[ThinId],
        forget: Option<VolumeUuid>,
    ) -> Result<Outcome> {
        let mut ledger = self.lock_ledger();
        for id in ids {
            self.delete_one(&mut ledger, *id)?;
        }
        match forget {
            Some(volume) if ledger.records.description(volume)?.is_some() => {
                let step = BackendStep::ThinDeleteDescription;
                ledger.records.commit(&[Edit::Forget(volume)], step)?;
                Ok(Outcome::Changed)
            }
            _ if ids.is_empty() => Ok(Outcome::Unchanged),
            _ => Ok(Outcome::Changed),
        }
    }

    fn delete_one(&self, ledger: &mut Ledger, id: ThinId) -> Result<()> {
        let Some(thin) = self.index().thins.get(&id).copied() else { return Ok(()) };
        let deleting = Thin { state: ThinState::Deleting, ..thin };
        self.record(ledger, id, deleting, BackendStep::ThinDeleteIntent)?;
        match self.message(&format!("delete {id}"), BackendStep::ThinDeleteMessage) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let steps = [BackendStep::ThinDeleteRecord, BackendStep::ThinDeleteCount];
        self.advance(ledger, Edit::Remove(id), steps)?;
        self.index_mut().remove(id);
        Ok(())
    }

    /// Records another size of a thin device.
    pub(super) fn record_size(&self, owner: Owner, size: ByteSize) -> Result<()> {
        let mut ledger = self.lock_ledger();
        let Some((id, thin)) = self.index().ready(owner) else {
            return Err(Error::not_found("the thin device has gone"));
        };
        self.record(&mut ledger, id, Thin { size, ..thin }, BackendStep::ThinGrowRecord)
    }

    /// Keeps the description of a volume that has a thin device.
    pub(super) fn put_description(&self, volume: VolumeUuid, text: &[u8]) -> Result<()> {
        let mut ledger = self.lock_ledger();
        if self.index().of_volume(volume).is_empty() {
            return Err(Error::not_found(format!("the pool has nothing of volume {volume}")));
        }
        ledger.records.commit(&[Edit::Describe(volume, text)], BackendStep::ThinDescribe)
    }

    /// The description of a volume.
    pub(super) fn description(&self, volume: VolumeUuid) -> Result<Option<Vec<u8>>> {
        self.lock_ledger().records.description(volume)
    }

    fn record(&self, ledger: &mut Ledger, id: ThinId, thin: Thin, step: BackendStep) -> Result<()> {
        ledger.records.commit(&[Edit::Put(id, thin)], step)?;
        self.index_mut().put(id, thin);
        Ok(())
    }

    /// Records that a change is done, then has the pool count it.
    fn advance(
        &self,
        ledger: &mut Ledger,
        edit: Edit<'_>,
        [record, count]: [BackendStep; 2],
    ) -> Result<()> {
        self.forget_usage();
        let (before, after) = (ledger.transaction, ledger.transaction + 1);
        ledger.records.commit(&[edit, Edit::Transaction(after)], record)?;
        let counted = self.message(&format!("set_transaction_id {before} {after}"), count);
        // A call that failed may have happened. What was not counted is counted with the next change.
        if counted.is_ok() || self.status().is_ok_and(|status| status.transaction == after) {
            ledger.transaction = after;
        }
        counted.map_err(|error| {
            error.context("the pool does not count as recorded: was it changed by something else?")
        })
    }

    /// After the start: finishes or undoes what a crash interrupted, and compares the pool with the
    /// records.
    pub(super) fn reconcile(&self) -> Result<()> {
        let mut ledger = self.lock_ledger();
        let status = self.status()?;
        // Nothing can be changed, but what is attached can be used and detached.
        if status.mode == Mode::ReadOnly {
            tracing::warn!("the pool is read-only; it was not compared with its records");
            return Ok(());
        }
        let counted = status.transaction;
        if counted + 1 == ledger.transaction {
            let (before, after) = (counted, ledger.transaction);
            let step = BackendStep::PoolCount;
            self.message(&format!("set_transaction_id {before} {after}"), step)?;
        } else if counted != ledger.transaction {
            return Err(Error::corrupt(format!(
                "the pool is at transaction {counted}, and its records at {}",
                ledger.transaction
            ))
            .hint("something else has changed the pool; it is left alone"));
        }
        let unfinished: Vec<ThinId> = self
            .index()
            .thins()
            .filter(|(_, thin)| thin.state != ThinState::Ready)
            .map(|(id, _)| id)
            .collect();
        for id in unfinished {
            tracing::info!(%id, "deleting a thin device that was not finished");
            self.delete_one(&mut ledger, id)?;
        }
        drop(ledger);
        let there: BTreeSet<ThinId> = self.read_metadata(|metadata| {
            Ok(metadata.devices()?.into_iter().map(|device| device.id).collect())
        })?;
        let mut index = self.index_mut();
        index.unknown = there
            .iter()
            .filter(|id| id.number() != RECORDS_ID && !index.thins.contains_key(id))
            .copied()
            .collect();
        let lost: Vec<_> = index.thins().filter(|(id, _)| !there.contains(id)).collect();
        for (id, thin) in lost {
            tracing::error!(%id, volume = %thin.owner.volume(), "the pool has lost a thin device");
        }
        Ok(())
    }

    pub(super) fn index(&self) -> std::sync::RwLockReadGuard<'_, Index> {
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn index_mut(&self) -> std::sync::RwLockWriteGuard<'_, Index> {
        self.index.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_ledger(&self) -> std::sync::MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::id::Generation;

    #[test]
    fn a_number_that_anybody_has_is_not_given_again() {
        let mut index = Index::default();
        let owner = |number| Owner::Volume {
            volume: VolumeUuid::from_uuid(Uuid::from_u128(number)),
            generation: Generation::FIRST,
        };
        let put = |index: &mut Index, state| {
            let id = index.free_id().unwrap();
            let owner = owner(u128::from(id.number()));
            index.put(id, Thin { owner, size: ByteSize::GIB, state });
            id.number()
        };
        assert_eq!(put(&mut index, ThinState::Ready), 1, "the records have 0");
        assert_eq!(put(&mut index, ThinState::Creating), 2);
        index.unknown.insert(ThinId::try_from(3).unwrap());
        assert_eq!(put(&mut index, ThinState::Deleting), 4);
        assert!(index.ready(owner(1)).is_some());
        assert!(index.ready(owner(2)).is_none() && index.ready(owner(4)).is_none());
        index.remove(ThinId::try_from(1).unwrap());
        assert_eq!(index.free_id().unwrap().number(), 1);
        assert!(index.ready(owner(1)).is_none());
    }
}
