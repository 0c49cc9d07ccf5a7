//! Backups of volumes, and the repositories that hold them.
//!
//! A backup owns its volume only while its snapshot is cut and at the end, never while it is on its way:
//! the volume is mounted, cut, grown and unmounted meanwhile as at any other time.

mod repositories;
mod restore;

use std::ops::Range;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;

use super::change::{LONG_PATIENCE, Work};
use super::owner::Ownership;
use super::view::{PruneReport, RepositoryCheck, Verification, VerifiedBackup};
use super::{Change, Engine};
use crate::backend::{ContentRef, CopyCost, Extents};
use crate::catalog;
use crate::error::{Error, ErrorKind, Result};
use crate::failpoint::Step;
use crate::id::{BackupRef, OperationId, VolumeUuid};
use crate::model::{
    Backup, Operation, OperationKind, Outcome, Snapshot, SnapshotOrigin, Subject, Volume,
};
use crate::name::{HookName, RepositoryName, SnapshotName, SnapshotRef, VolumeName};
use crate::repository::{Base, Image, ImageJob, Layout, Manifest, Prune, Repository, Stored};
pub use repositories::Repositories;
pub(super) use repositories::blocking;

/// How often a backup that waits looks whether it was cancelled.
const LOOK_UP: Duration = Duration::from_millis(200);

/// Which backups to read back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verify {
    /// One.
    One(BackupRef),
    /// Every one in the repository.
    All,
}

impl Change {
    /// Stores a volume's content in a repository: that of a snapshot, or of one that is cut for it between the
    /// programs of `hook`. Cancelled or failed, it leaves no backup.
    ///
    /// # Errors
    /// `NotFound` if there is no such volume, snapshot or repository; whatever the repository says.
    pub async fn back_up(
        self,
        volume: VolumeName,
        snapshot: Option<SnapshotName>,
        repository: Option<RepositoryName>,
        hook: Option<HookName>,
    ) -> Result<Backup> {
        let scheduled = self.is_scheduled();
        self.run_unowned("backup", Subject::Volume(volume.clone()), move |work| async move {
            let repository = work.engine.inner.config.repositories.get(repository.as_ref())?;
            // What has the name now is meant, whatever has it when this one's turn comes.
            let volume = work.engine.ready(&volume)?;
            let stored = work.back_up(volume.uuid, snapshot, repository, hook, scheduled).await?;
            let (backup, read) = (stored.backup, stored.read);
            let text = format!(
                "backup {} of {}@{} was made in {}: {read} bytes read, {} stored",
                backup.id.short(),
                backup.volume,
                backup.snapshot,
                backup.repository,
                backup.added
            );
            work.engine.inner.registry.report(work.id, vec![text.clone()]);
            work.engine.tell("backup.created", &backup.volume, text);
            Ok(backup)
        })
        .await
    }

    /// Removes a backup. Its room is given back by a prune.
    ///
    /// # Errors
    /// `NotFound` if there is none.
    pub async fn remove_backup(
        self,
        backup: BackupRef,
        repository: Option<RepositoryName>,
    ) -> Result<Outcome> {
        let engine = self.engine().clone();
        let (repository, found) = engine.find_backup(&backup, repository.as_ref()).await?;
        self.run_unowned(
            "remove-backup",
            Subject::Volume(found.volume.clone()),
            move |work| async move {
                let id = found.id;
                let outcome = blocking(move || repository.remove(id)).await?;
                let text = format!(
                    "backup {} of {} was removed from {}",
                    id.short(),
                    found.volume,
                    found.repository
                );
                work.tell_change(outcome, "backup.removed", &found.volume, text);
                Ok(outcome)
            },
        )
        .await
    }

    /// Reads backups back and compares them with what was stored.
    ///
    /// # Errors
    /// `NotFound` if there is no such backup. Damage is no error, but what is told.
    pub async fn verify_backups(
        self,
        which: Verify,
        repository: Option<RepositoryName>,
    ) -> Result<Verification> {
        let engine = self.engine().clone();
        let (repository, backups) = match which {
            Verify::One(wanted) => {
                let (repository, backup) = engine.find_backup(&wanted, repository.as_ref()).await?;
                (repository, vec![Arc::new(backup)])
            }
            Verify::All => {
                let repository = engine.inner.config.repositories.get(repository.as_ref())?;
                let asked = Arc::clone(&repository);
                (repository, blocking(move || asked.backups()).await?)
            }
        };
        let many = backups.len() > 1;
        let subject = Subject::Repository(repository.name().clone());
        self.run_unowned("verify", subject, move |work| async move {
            let mut verified = Vec::new();
            for backup in backups {
                let (repository, progress) = (Arc::clone(&repository), Arc::clone(&work.progress));
                let id = backup.id;
                let found = blocking(move || repository.verify(id, &progress)).await;
                let found = match found {
                    // Of many, one may be removed meanwhile.
                    Err(error) if many && error.kind() == ErrorKind::NotFound => continue,
                    other => other?,
                };
                if !found.damage.is_empty() {
                    let text = format!(
                        "backup {} of {} in {} is damaged: {}",
                        id.short(),
                        backup.volume,
                        backup.repository,
                        found.damage.join("; ")
                    );
                    work.engine.tell("backup.damaged", &backup.volume, text);
                }
                verified.push(VerifiedBackup {
                    id,
                    volume: backup.volume.clone(),
                    sound: found.damage.is_empty(),
                    bytes: found.bytes,
                    damage: found.damage,
                });
            }
            Ok(Verification { backups: verified })
        })
        .await
    }

    /// Gives back the room of what no backup needs, or tells how much that is.
    ///
    /// # Errors
    /// `InUse` while others use the repository, for [`Prune::Now`].
    pub async fn prune(
        self,
        repository: Option<RepositoryName>,
        how: Prune,
    ) -> Result<PruneReport> {
        let repository = self.engine().inner.config.repositories.get(repository.as_ref())?;
        let name = repository.name().clone();
        let subject = Subject::Repository(name.clone());
        self.run_on("prune", vec![subject], LONG_PATIENCE, move |work| async move {
            let progress = Arc::clone(&work.progress);
            let done = blocking(move || repository.prune(how, &progress)).await?;
            if how != Prune::Plan {
                let text = format!(
                    "repository {name} was pruned: {} bytes given back, {} later",
                    done.removed, done.marked
                );
                work.engine.tell("repository.pruned", &name, text);
            }
            Ok(PruneReport {
                planned_only: how == Prune::Plan,
                used: done.used,
                unused: done.unused,
                removed: done.removed,
                marked: done.marked,
                repacked: done.repacked,
            })
        })
        .await
    }

    /// Makes a repository. `Unchanged` if it is there and its password opens it.
    ///
    /// # Errors
    /// `NotFound` if the configuration has no such repository; it cannot be written.
    pub async fn init_repository(self, repository: RepositoryName) -> Result<Outcome> {
        let found = self.engine().inner.config.repositories.get(Some(&repository))?;
        let subject = Subject::Repository(repository.clone());
        self.run_on("init", vec![subject], LONG_PATIENCE, move |work| async move {
            let outcome = blocking(move || found.init()).await?;
            let text = format!("repository {repository} was made");
            work.tell_change(outcome, "repository.created", &repository, text);
            Ok(outcome)
        })
        .await
    }

    /// Compares what a repository's index says with what is stored, and says what is wrong and what to do.
    ///
    /// # Errors
    /// `NotFound` if the configuration has no such repository; it cannot be read at all.
    pub async fn check_repository(self, repository: RepositoryName) -> Result<RepositoryCheck> {
        let found = self.engine().inner.config.repositories.get(Some(&repository))?;
        self.run_unowned("check", Subject::Repository(repository), move |work| async move {
            let progress = Arc::clone(&work.progress);
            let findings = blocking(move || found.check(&progress)).await?;
            let advice = match findings.is_empty() {
                true => vec![],
                false => vec![
                    "`holdfast backup verify --all` tells which backups are damaged".to_owned(),
                    "then back up their volumes again, which stores what they still have"
                        .to_owned(),
                ],
            };
            Ok(RepositoryCheck { sound: findings.is_empty(), findings, advice })
        })
        .await
    }
}

impl Work {
    async fn back_up(
        &self,
        volume: VolumeUuid,
        snapshot: Option<SnapshotName>,
        repository: Arc<Repository>,
        hook: Option<HookName>,
        scheduled: bool,
    ) -> Result<Stored> {
        // First of all: what waits for hours should neither hold a snapshot nor be of hours ago.
        let _turn = self.turn(repository.name()).await?;
        // Before a snapshot is cut in vain.
        let asked = Arc::clone(&repository);
        let backups = blocking(move || asked.backups()).await?;
        let operation = self.begin_backup(volume, snapshot).await?;
        let name = repository.name().clone();
        let done = self.store_backup(&operation, repository, hook, scheduled, &backups).await;
        if let Err(error) = self.end_backup(&operation, &name, done.is_ok(), &backups).await
            && error.kind() != ErrorKind::InUse
        {
            // The backup is there or not without it; what is not in order is tried again.
            self.engine.warn(format!(
                "after a backup of volume {} its snapshots could not be put in order: {}",
                operation.name,
                error.full_message()
            ));
        }
        done
    }

    /// Records that a snapshot is backed up, and which: what is cut for it must be found after a crash.
    async fn begin_backup(
        &self,
        volume: VolumeUuid,
        snapshot: Option<SnapshotName>,
    ) -> Result<Operation> {
        let (_ownership, volume) = self.own_to_back_up(volume).await?;
        if self.backend(&volume)?.extents().is_none() {
            return Err(Error::unsupported(format!(
                "volumes on the backend {} cannot be backed up by this version",
                volume.backend
            )));
        }
        let made = snapshot.is_none();
        let snapshot = match snapshot {
            Some(snapshot) => self.engine.complete_snapshot(&volume, &snapshot)?.name.clone(),
            None => self.engine.free_name(&volume, "backup")?,
        };
        let kind = OperationKind::Backup { snapshot, made };
        self.intend(Step::BackupIntent, &volume, kind, vec![]).await
    }

    /// The volume, whatever its name is now, and the right to change it.
    async fn own_to_back_up(&self, volume: VolumeUuid) -> Result<(Ownership, Arc<Volume>)> {
        let owned = self.own_volume(volume, "backup").await?;
        owned.filter(|(_, volume)| volume.is_ready()).ok_or_else(|| {
            Error::not_found("the volume was removed before its backup could begin")
                .hint("see `holdfast volume ls`")
        })
    }

    async fn store_backup(
        &self,
        operation: &Operation,
        repository: Arc<Repository>,
        hook: Option<HookName>,
        scheduled: bool,
        backups: &[Arc<Backup>],
    ) -> Result<Stored> {
        let OperationKind::Backup { snapshot, made } = &operation.kind else {
            return Err(Error::internal("a backup that is none"));
        };
        let (volume, snapshot, base, _holds) = {
            let (_ownership, volume) = self.own_to_back_up(operation.volume).await?;
            if *made {
                let reference =
                    SnapshotRef { volume: volume.name.clone(), snapshot: snapshot.clone() };
                let cut = self.part().snapshot(&reference, hook, SnapshotOrigin::Backup).await;
                self.step(Step::BackupSnapshot, std::future::ready(cut)).await?.ignore();
            }
            let snapshot = self.engine.complete_snapshot(&volume, snapshot)?;
            let base = self.base(&volume, &snapshot, backups);
            // Neither may go, nor another take its place, while they are compared and read.
            let read = base.iter().map(|(base, _)| base.uuid).chain([snapshot.uuid]);
            let repositories = &self.engine.inner.config.repositories;
            let holds: Vec<_> = read.map(|uuid| repositories.hold(uuid)).collect();
            (volume, snapshot, base, holds)
        };
        let job = self.image_job(&volume, &snapshot, base, scheduled).await?;
        let progress = Arc::clone(&self.progress);
        let store = blocking(move || repository.back_up_image(&job, &progress));
        self.step(Step::BackupStore, store).await
    }

    /// Waits until a backup may be on its way, which can be for hours, or until it is cancelled.
    async fn turn(&self, repository: &RepositoryName) -> Result<OwnedSemaphorePermit> {
        let turns = self.engine.inner.config.repositories.turns(repository)?;
        let mut turn = pin!(turns.acquire_owned());
        loop {
            self.progress.go_on()?;
            if let Ok(turn) = tokio::time::timeout(LOOK_UP, &mut turn).await {
                return turn.map_err(|_| Error::internal("no turns are left"));
            }
        }
    }

    /// The same work for an operation within it.
    fn part(&self) -> Self {
        Self { id: OperationId::from_uuid(self.engine.uuid()), ..self.clone() }
    }

    /// The snapshot to make the difference to: of those that are known to be in the repository and are still
    /// here, the newest.
    fn base(
        &self,
        volume: &Volume,
        snapshot: &Snapshot,
        backups: &[Arc<Backup>],
    ) -> Option<(Arc<Snapshot>, Arc<Backup>)> {
        let here = self.engine.inner.catalog.read(|state| state.snapshots(volume.uuid).to_vec());
        let stored = backups.iter().rev().filter(|backup| backup.uuid == volume.uuid);
        let both = stored.filter_map(|backup| {
            let found = here.iter().find(|one| one.uuid == backup.snapshot_uuid && one.complete)?;
            Some((Arc::clone(found), Arc::clone(backup)))
        });
        // The same snapshot once more needs nothing but itself.
        both.max_by_key(|(found, backup)| {
            (found.uuid == snapshot.uuid, found.created, backup.finished)
        })
    }

    async fn image_job(
        &self,
        volume: &Arc<Volume>,
        snapshot: &Arc<Snapshot>,
        base: Option<(Arc<Snapshot>, Arc<Backup>)>,
        scheduled: bool,
    ) -> Result<ImageJob> {
        let extents: &dyn Extents = self
            .backend(volume)?
            .extents()
            .ok_or_else(|| Error::internal("a backend has lost its extents"))?;
        let base = match base {
            None => None,
            Some((base, backup)) => {
                let changed: Vec<Range<u64>> = match base.uuid == snapshot.uuid {
                    true => vec![],
                    false => extents.changed_extents(volume.uuid, base.uuid, snapshot.uuid).await?,
                };
                Some(Base { backup: backup.id, changed })
            }
        };
        let allocated = extents.allocated_extents(volume.uuid, snapshot.uuid).await?;
        let content = extents.open_snapshot(volume.uuid, snapshot.uuid).await?;
        Ok(ImageJob {
            manifest: Manifest {
                volume: (**volume).clone(),
                snapshot: (**snapshot).clone(),
                layout: Layout::IMAGE,
            },
            scheduled,
            image: Image { content, allocated },
            base,
        })
    }

    /// Removes the snapshot if it was cut for this backup and is not worth keeping, and those in whose place
    /// it is; then the backup is over.
    async fn end_backup(
        &self,
        operation: &Operation,
        repository: &RepositoryName,
        stored: bool,
        backups: &[Arc<Backup>],
    ) -> Result<()> {
        let was_base_here =
            |one: &Snapshot| backups.iter().any(|backup| backup.snapshot_uuid == one.uuid);
        // Asked before anybody has to wait for this, and only if it matters: one that does not answer takes its
        // time.
        let find = self.engine.inner.catalog.read(|state| state.volume(operation.volume).cloned());
        let cut = find.map(|volume| self.engine.snapshots_of_backups(&volume, self.id));
        let mut others = cut.iter().flatten().filter(|one| !cuts(operation, one));
        let everywhere = match stored {
            true if others.all(|one| was_base_here(one)) => None,
            true => self.engine.backups(None, None).await.ok(),
            false => self.engine.backups(None, Some(repository)).await.ok(),
        };
        let owned = self.own_volume(operation.volume, "backup").await?;
        if let (Some((_ownership, volume)), OperationKind::Backup { snapshot, made: true }) =
            (&owned, &operation.kind)
        {
            // What was stored since it was asked is known without asking.
            let known = self.engine.inner.config.repositories.known();
            let is_base = |one: &Snapshot| {
                let all = everywhere.iter().flatten().chain(known.iter().map(|one| &**one));
                all.map(|backup| backup.snapshot_uuid).any(|uuid| uuid == one.uuid)
            };
            // That of this repository's last backup, or that of one that was removed.
            let is_replaced =
                |one: &Snapshot| was_base_here(one) || everywhere.is_some() && !is_base(one);
            for one in self.engine.snapshots_of_backups(volume, self.id) {
                let cheap = self.engine.is_cheap_base(volume, &one).await?;
                let own = one.name == *snapshot;
                let goes = match own {
                    // A backup that has failed may have been stored: its answer was lost.
                    true => !cheap || !(stored || is_base(&one)),
                    false => stored && (!cheap || is_replaced(&one)),
                };
                // Of others the next backup takes care; its own stays recorded, and is tried again.
                let read = || self.engine.refuse_if_read(volume, Some(one.uuid)).is_err();
                if goes && (own || !read()) {
                    let reference =
                        SnapshotRef { volume: volume.name.clone(), snapshot: one.name.clone() };
                    let removed = self.part().remove_snapshot(&reference).await;
                    self.step(Step::BackupRetire, std::future::ready(removed)).await?.ignore();
                }
            }
        }
        self.finish(Step::BackupFinish, vec![]).await
    }
}

impl Engine {
    /// The volume's snapshots that were cut for backups, but for those of others than `own` that are not over.
    fn snapshots_of_backups(&self, volume: &Volume, own: OperationId) -> Vec<Arc<Snapshot>> {
        self.inner.catalog.read(|state| {
            let others = |one: &Snapshot| {
                state.operations().any(|operation| {
                    operation.id != own && operation.volume == volume.uuid && cuts(operation, one)
                })
            };
            let all = state.snapshots(volume.uuid).iter();
            let ours = all.filter(|one| one.origin == SnapshotOrigin::Backup && one.complete);
            ours.filter(|one| !others(one)).cloned().collect()
        })
    }

    /// Whether to keep the snapshot costs no more than what changes from now on.
    async fn is_cheap_base(&self, volume: &Volume, snapshot: &Snapshot) -> Result<bool> {
        let backend = self.backend(&volume.backend)?;
        let Some(snapshots) = backend.snapshots() else { return Ok(false) };
        let content = ContentRef::Snapshot { volume: volume.uuid, snapshot: snapshot.uuid };
        match snapshots.copy_cost(content).await {
            Ok(cost) => Ok(matches!(cost, CopyCost::Shared)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// After a crash: deletes the snapshot that was cut for a backup, unless it costs nothing to keep. Its
    /// backup may have been stored, and is then the base of the next, which else removes it.
    pub(super) async fn undo_backup(
        &self,
        operation: &Operation,
        volume: &Volume,
    ) -> Result<Vec<catalog::Change>> {
        let all = self.inner.catalog.read(|state| state.snapshots(volume.uuid).to_vec());
        // One that is not complete has an operation of its own, which may have to thaw and to run a
        // program first.
        let cut = all.into_iter().find(|one| {
            cuts(operation, one) && one.origin == SnapshotOrigin::Backup && one.complete
        });
        let Some(cut) = cut else { return Ok(vec![]) };
        if self.is_cheap_base(volume, &cut).await? {
            return Ok(vec![]);
        }
        self.refuse_if_read(volume, Some(cut.uuid))?;
        let backend = self.backend(&volume.backend)?;
        let snapshots = backend
            .snapshots()
            .ok_or_else(|| Error::internal("a backend has lost its snapshots"))?;
        self.describe(volume, None, Some(&cut)).await?;
        snapshots.delete_snapshot(volume.uuid, cut.uuid).await?;
        Ok(vec![catalog::Change::RemoveSnapshot(cut.uuid)])
    }
}

/// Whether the operation is a backup for which the snapshot was cut.
fn cuts(operation: &Operation, one: &Snapshot) -> bool {
    matches!(&operation.kind, OperationKind::Backup { snapshot, made: true } if one.name == *snapshot)
}
