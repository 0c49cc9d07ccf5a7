//! After a crash: what really exists is compared with what was intended, and each interrupted
//! operation is finished or undone. Every step here may itself be interrupted and repeated.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::Engine;
use super::change::LONG_PATIENCE;
use super::create::put;
use super::owner::Ownership;
use crate::backend::{Locator, Presence};
use crate::catalog::Change;
use crate::error::{Error, ErrorKind, Result};
use crate::id::VolumeUuid;
use crate::model::{MountLedger, Operation, OperationKind, Outcome, Subject, Volume, VolumeState};

/// How often the trash is looked through, and what is stuck tried again.
const ROUND: Duration = Duration::from_secs(60);

/// How long cleaning up waits for an owner where others wait for it.
const SOON: Duration = Duration::from_secs(1);

impl Engine {
    /// Makes the records true at start, and begins to recover.
    pub(super) async fn reconcile(&self) -> Result<()> {
        let operations: Vec<Arc<Operation>> =
            self.inner.catalog.read(|state| state.operations().cloned().collect());
        self.forget_other_boots().await?;
        // Their owners are taken before anybody is answered, so that recovery comes first.
        for operation in operations {
            let owned = self.own_all_of(&operation, SOON).await;
            let engine = self.clone();
            tokio::spawn(async move {
                // Another operation on the same volume is being cleaned up: one after the other.
                let owned = match owned {
                    Err(_) => engine.own_all_of(&operation, LONG_PATIENCE).await,
                    owned => owned,
                };
                // What has no turn even then has one in a later round.
                if let Ok(_ownership) = owned {
                    engine.recover_and_tell(&operation).await;
                }
            });
        }
        self.release_strays().await?;
        // Weak, so that this alone does not keep a stopped engine and its catalog.
        let inner = Arc::downgrade(&self.inner);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(ROUND).await;
                let Some(inner) = inner.upgrade() else { return };
                let (engine, other) = (Self { inner: Arc::clone(&inner) }, Self { inner });
                // On their own: a backend that hangs must not hold up the rest, nor the next round.
                tokio::spawn(async move { engine.retry_stuck().await });
                tokio::spawn(async move { other.empty_trash().await });
            }
        });
        Ok(())
    }

    /// Keeps others from what the operation changes.
    async fn own_all_of(&self, operation: &Operation, patience: Duration) -> Result<Ownership> {
        let names = self.names_of(operation);
        let subjects: Vec<Subject> = names.iter().cloned().map(Subject::Volume).collect();
        let kind = operation.kind.as_str();
        let ownership = self.inner.owners.acquire(&subjects, kind, patience).await?;
        match self.names_of(operation) == names {
            true => Ok(ownership),
            false => Err(Error::busy("it has got another name meanwhile")),
        }
    }

    /// Recovers, and warns of what cannot be cleaned up for as long as it cannot.
    pub(super) async fn recover_and_tell(&self, operation: &Operation) {
        let (name, kind) = (&operation.name, operation.kind.as_str());
        let what = format!("what is left of a {kind} of volume {name} cannot be cleaned up yet: ");
        match self.recover(operation).await {
            Ok(()) => {
                self.unwarn(&what);
                tracing::info!(volume = %name, kind, "cleaned up");
                let text = format!("what was left of a {kind} of volume {name} was cleaned up");
                self.tell("operation.recovered", name, text);
            }
            Err(error) => self.warn(format!("{what}{}", error.full_message())),
        }
    }

    /// Tries again what could not be cleaned up: nobody else does while nobody asks for the volume.
    pub(super) async fn retry_stuck(&self) {
        let running = |operation: &Operation| self.inner.registry.is_running(operation.id);
        let stuck: Vec<Arc<Operation>> = self.inner.catalog.read(|state| {
            state.operations().filter(|operation| !running(operation)).cloned().collect()
        });
        for operation in stuck {
            // Who owns it now cleans up first.
            let Ok(_ownership) = self.own_all_of(&operation, SOON).await else { continue };
            self.recover_and_tell(&operation).await;
        }
    }

    /// Mount ids of another run of the kernel are stale: nothing of it is mounted any more.
    async fn forget_other_boots(&self) -> Result<()> {
        let boot = self.inner.environment.host.boot_id();
        let stale: Vec<VolumeUuid> = self.inner.catalog.read(|state| {
            state
                .ledgers()
                .filter(|(_, ledger)| ledger.boot != boot)
                .map(|(uuid, _)| uuid)
                .collect()
        });
        if stale.is_empty() {
            return Ok(());
        }
        tracing::info!(
            volumes = stale.len(),
            "the host was restarted; its mount ids are forgotten"
        );
        let forget =
            stale.into_iter().map(|uuid| Change::PutLedger(uuid, MountLedger::new(boot))).collect();
        self.inner.catalog.commit(forget).await
    }

    /// Unmounts the volumes that are mounted and that no id holds, and says which held ones are not
    /// mounted. Leaves what is no volume's.
    async fn release_strays(&self) -> Result<()> {
        let mut mounted = HashSet::new();
        for (target, volume) in self.places_mounted().await? {
            let Some(volume) = volume else { continue };
            if self.is_held_or_changing(&volume) {
                mounted.insert(volume.uuid);
                continue;
            }
            // Taken before anybody is answered: a mount that comes now waits for this.
            let owners = &self.inner.owners;
            let owned = owners
                .acquire(&[Subject::Volume(volume.name.clone())], "unmount", Duration::from_secs(1))
                .await;
            let Ok(ownership) = owned else { continue };
            let engine = self.clone();
            tokio::spawn(async move {
                engine.release_stray(&volume, &target).await;
                drop(ownership);
            });
        }
        let held: Vec<Arc<Volume>> = self.inner.catalog.read(|state| {
            state.ledgers().filter_map(|(uuid, _)| state.volume(uuid).cloned()).collect()
        });
        for volume in held.iter().filter(|volume| !mounted.contains(&volume.uuid)) {
            self.warn(format!(
                "volume {} is held by mount ids, but is not mounted; its next mount mounts it again",
                volume.name
            ));
        }
        Ok(())
    }

    /// Where something is mounted in our directory, and the volume whose place it is: one's own, or that
    /// of one that is being cloned.
    async fn places_mounted(&self) -> Result<BTreeMap<PathBuf, Option<Arc<Volume>>>> {
        let directory = &self.inner.config.mount_dir;
        let mounts = self.inner.environment.host.mounts_below(directory).await?;
        let targets = mounts.into_iter().map(|mount| mount.target);
        let places = targets.filter(|target| target.parent() == Some(directory));
        Ok(places.map(|place| (place.clone(), self.volume_at(&place))).collect())
    }

    fn volume_at(&self, place: &Path) -> Option<Arc<Volume>> {
        let text = place.file_name()?.to_str()?;
        self.inner.catalog.read(|state| match text.strip_prefix('.') {
            Some(uuid) => state.volume(uuid.parse().ok()?).cloned(),
            None => state.named(&text.parse().ok()?).cloned(),
        })
    }

    /// What is mounted in our directory and held by nobody, as sentences.
    pub(super) async fn stray_warnings(&self) -> Result<Vec<String>> {
        let mut warnings = Vec::new();
        for (place, volume) in self.places_mounted().await? {
            let place = place.display();
            match volume {
                None => warnings.push(format!(
                    "what is mounted at {place} is no volume's; Holdfast leaves it alone"
                )),
                Some(volume) if self.is_held_or_changing(&volume) => {}
                Some(volume) => warnings.push(format!(
                    "volume {0} is mounted at {place} and no mount id holds it; \
                     `holdfast volume unmount {0}` unmounts it once nothing uses it",
                    volume.name
                )),
            }
        }
        Ok(warnings)
    }

    fn is_held_or_changing(&self, volume: &Volume) -> bool {
        self.inner.catalog.read(|state| {
            state.ledger(volume.uuid).is_some()
                || state.operations().any(|operation| operation.volume == volume.uuid)
        })
    }

    async fn release_stray(&self, volume: &Volume, target: &Path) {
        let users = self.inner.environment.host.bind_mounts_of(target).await;
        if users.is_ok_and(|users| users > 0) {
            tracing::warn!(
                target = %target.display(),
                "used by a container that no mount id stands for; it stays mounted"
            );
            return;
        }
        match self.unmount_own(volume, target).await {
            Ok(_) => tracing::info!(target = %target.display(), "unmounted what nobody holds"),
            // Among the warnings while it lasts.
            Err(error) => tracing::warn!("{}", error.full_message()),
        }
    }

    /// Finishes or undoes `operation`. Repeatable; `Ok` means that nothing of it is left.
    pub(super) async fn recover(&self, operation: &Operation) -> Result<()> {
        let (open, volume) = self.inner.catalog.read(|state| {
            (
                // As it is recorded now: what is behind it is not done twice.
                state.operations().find(|other| other.id == operation.id).cloned(),
                state.volume(operation.volume).cloned(),
            )
        });
        let Some(operation) = open.as_deref() else { return Ok(()) };
        // While this fails the operation stays recorded, and is tried again.
        self.thaw_after(operation).await?;
        if let Some(volume) = &volume
            && operation.hook().is_some()
        {
            self.run_after(operation, volume).await;
            self.end_hook(operation).await?;
        }
        let mut changes = match &volume {
            None => vec![],
            Some(volume) => self.recover_volume(operation, volume).await?,
        };
        changes.push(Change::RemoveOperation(operation.id));
        self.inner.catalog.commit(changes).await
    }

    async fn recover_volume(&self, operation: &Operation, volume: &Volume) -> Result<Vec<Change>> {
        let backend = self.backend(&volume.backend)?;
        let no_snapshots = || Error::internal("a backend has lost its snapshots");
        match &operation.kind {
            OperationKind::Create { .. } if volume.state == VolumeState::Creating => {
                let scratch = self.inner.config.mount_dir.join(format!(".{}", volume.uuid));
                self.unmount_own(volume, &scratch).await?;
                backend.detach(Locator::from(volume)).await.or_else(absent)?;
                backend.delete(volume.uuid).await?;
                Ok(vec![Change::RemoveVolume(volume.uuid)])
            }
            OperationKind::Create { .. } => Ok(vec![]),
            OperationKind::Delete { disposal }
                if matches!(volume.state, VolumeState::Deleting | VolumeState::Purging) =>
            {
                Ok(vec![self.end_of_data(volume, *disposal).await?])
            }
            // Before its commit a deletion has changed nothing that matters.
            OperationKind::Delete { .. } => Ok(vec![]),
            OperationKind::Mount | OperationKind::Unmount => {
                if self.ledger(volume).is_empty() {
                    let target = self.target(&volume.name);
                    match self.unmount_own(volume, &target).await {
                        // It stays mounted and held by no id until the next mount or removal.
                        Err(error) if error.kind() == ErrorKind::InUse => return Ok(vec![]),
                        other => other.map(drop)?,
                    }
                    self.detach_unless_held(volume).await?;
                }
                Ok(vec![])
            }
            OperationKind::Snapshot { snapshot, .. } => {
                let snapshots = backend.snapshots().ok_or_else(no_snapshots)?;
                self.describe(volume, None, None).await?;
                snapshots.delete_snapshot(volume.uuid, *snapshot).await?;
                Ok(vec![Change::RemoveSnapshot(*snapshot)])
            }
            OperationKind::DeleteSnapshot { snapshot } => {
                let snapshots = backend.snapshots().ok_or_else(no_snapshots)?;
                // It is recorded as incomplete, which the description leaves out.
                self.describe(volume, None, None).await?;
                snapshots.delete_snapshot(volume.uuid, *snapshot).await?;
                Ok(vec![Change::RemoveSnapshot(*snapshot)])
            }
            OperationKind::Restore { old, new, .. } if volume.generation == *new => {
                self.describe(volume, None, None).await?;
                let old = Locator { volume: volume.uuid, generation: *old };
                backend.delete_generation(old).await?;
                Ok(vec![])
            }
            OperationKind::Restore { safety, new, .. } => {
                let snapshots = backend.snapshots().ok_or_else(no_snapshots)?;
                let new = Locator { volume: volume.uuid, generation: *new };
                backend.delete_generation(new).await?;
                snapshots.delete_snapshot(volume.uuid, *safety).await?;
                Ok(vec![Change::RemoveSnapshot(*safety)])
            }
            OperationKind::Grow { to } => {
                // What the device could not get is not recorded; what it got stays.
                let locator = Locator::from(volume);
                match backend.inspect(locator).await? {
                    Presence::Present { size: Some(size), .. } if size >= *to => {}
                    _ => return Ok(vec![]),
                }
                // The backend may have the new size, and the kernel still a device of the old one.
                if let Some(grow) = backend.grow() {
                    grow.grow(locator, *to).await?.ignore();
                }
                let grown = Volume { size: Some(*to), grow_pending: true, ..volume.clone() };
                // What fails now is tried again by the next mount.
                let grow_pending = !self.grow_filesystem_now(&grown).await.unwrap_or(false);
                let grown = Volume { grow_pending, ..grown };
                self.describe(&grown, None, None).await?;
                Ok(vec![put(&grown)])
            }
            OperationKind::Backup { .. } => self.undo_backup(operation, volume).await,
            // The record is the truth, whether it has changed or not.
            OperationKind::Rename | OperationKind::Undelete | OperationKind::Schedule => {
                self.describe(volume, None, None).await?;
                Ok(vec![])
            }
        }
    }

    async fn detach_unless_held(&self, volume: &Volume) -> Result<()> {
        match self.backend(&volume.backend)?.detach(Locator::from(volume)).await {
            Err(error) if error.kind() == ErrorKind::InUse => Ok(()),
            other => other.or_else(absent).map(Outcome::ignore),
        }
    }
}

/// What never came to be needs no detaching.
fn absent(error: Error) -> Result<Outcome> {
    match error.kind() {
        ErrorKind::NotFound => Ok(Outcome::Unchanged),
        _ => Err(error),
    }
}
