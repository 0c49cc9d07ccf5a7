use std::sync::Arc;

use super::Engine;
use super::change::Work;
use super::create::put;
use crate::backend::{ContentRef, Locator, Snapshots};
use crate::catalog;
use crate::error::{Error, Result};
use crate::failpoint::Step;
use crate::id::SnapshotUuid;
use crate::model::{Operation, OperationKind, Outcome, Snapshot, SnapshotOrigin, Volume};
use crate::name::{HookName, SnapshotName, SnapshotRef, VolumeName};

impl Work {
    /// `hook` runs before and after it, or else the one that the volume has.
    pub(super) async fn snapshot(
        &self,
        reference: &SnapshotRef,
        hook: Option<HookName>,
        origin: SnapshotOrigin,
    ) -> Result<Outcome> {
        let volume = self.engine.ready(&reference.volume)?;
        let hook = self.engine.hook_of(&volume, hook)?;
        let snapshots = self.snapshots_of(&volume)?;
        let taken = self
            .engine
            .inner
            .catalog
            .read(|state| state.snapshot(volume.uuid, &reference.snapshot).is_some());
        if taken {
            return Err(Error::conflict(format!("there is a snapshot {reference} already"))
                .hint("choose another name, or remove that snapshot first"));
        }
        let locator = Locator::from(&*volume);
        let frozen = self.must_freeze(&volume, snapshots, ContentRef::Live(locator)).await?;
        let snapshot = self.new_snapshot(&volume, reference.snapshot.clone(), origin);
        let kind = OperationKind::Snapshot { snapshot: snapshot.uuid, hook: hook.clone() };
        let record = vec![put_snapshot(&snapshot)];
        let operation = self.intend(Step::SnapshotIntent, &volume, kind, record).await?;
        let made = async {
            if let Some(hook) = &hook {
                let before = self.engine.run_before(hook, &volume, &snapshot.name);
                self.step(Step::SnapshotHookBefore, before).await?;
            }
            let steps = [Step::SnapshotFreeze, Step::SnapshotCut, Step::SnapshotThaw];
            self.cut(frozen.then_some(&*volume), steps, async |limit| {
                snapshots.snapshot(locator, snapshot.uuid, &self.progress, limit).await
            })
            .await?;
            if hook.is_some() {
                self.engine.run_after(&operation, &volume).await;
                self.step(Step::SnapshotHookAfter, std::future::ready(Ok(()))).await?;
                self.step(Step::SnapshotHookOver, self.engine.end_hook(&operation)).await?;
            }
            let describe = self.engine.describe(&volume, Some(&snapshot), None);
            self.step(Step::SnapshotDescribe, describe).await?;
            let complete = Snapshot { complete: true, ..snapshot.clone() };
            self.finish(Step::SnapshotFinish, vec![put_snapshot(&complete)]).await
        };
        match made.await {
            Ok(()) => Ok(Outcome::Changed),
            Err(error) => Err(self.undo(&operation, error).await),
        }
    }

    /// Cuts a snapshot with a name that says when.
    pub(super) async fn scheduled_snapshot(&self, volume: &VolumeName) -> Result<SnapshotName> {
        let name = self.engine.free_name(&*self.engine.ready(volume)?, "auto")?;
        let reference = SnapshotRef { volume: volume.clone(), snapshot: name.clone() };
        self.snapshot(&reference, None, SnapshotOrigin::Schedule).await?;
        Ok(name)
    }

    pub(super) async fn remove_snapshot(&self, reference: &SnapshotRef) -> Result<Outcome> {
        let volume = self.engine.ready(&reference.volume)?;
        let snapshots = self.snapshots_of(&volume)?;
        let snapshot = self.engine.complete_snapshot(&volume, &reference.snapshot)?;
        self.engine.refuse_if_read(&volume, Some(snapshot.uuid))?;
        let kind = OperationKind::DeleteSnapshot { snapshot: snapshot.uuid };
        // From here on nobody may read it.
        let record = vec![put_snapshot(&Snapshot { complete: false, ..(*snapshot).clone() })];
        let operation = self.intend(Step::DeleteSnapshotIntent, &volume, kind, record).await?;
        let deleted = async {
            // Described first: a rebuilt catalog must not offer what is half deleted.
            let describe = self.engine.describe(&volume, None, Some(&snapshot));
            self.step(Step::DeleteSnapshotDescribe, describe).await?;
            let delete = snapshots.delete_snapshot(volume.uuid, snapshot.uuid);
            self.step(Step::DeleteSnapshotData, delete).await?;
            let record = vec![catalog::Change::RemoveSnapshot(snapshot.uuid)];
            self.finish(Step::DeleteSnapshotFinish, record).await
        };
        match deleted.await {
            Ok(()) => Ok(Outcome::Changed),
            Err(error) => Err(self.undo(&operation, error).await),
        }
    }

    pub(super) async fn restore(&self, reference: &SnapshotRef) -> Result<SnapshotName> {
        let volume = self.engine.ready(&reference.volume)?;
        let snapshots = self.snapshots_of(&volume)?;
        let source = self.engine.complete_snapshot(&volume, &reference.snapshot)?;
        self.require_unused(&volume).await?;
        let safety = self.new_snapshot(
            &volume,
            self.engine.free_name(&volume, "before-restore")?,
            SnapshotOrigin::Safety,
        );
        let new = Volume {
            generation: volume.generation.next(),
            content: source.content,
            grow_pending: source.size != volume.size,
            ..(*volume).clone()
        };
        let kind = OperationKind::Restore {
            from: source.uuid,
            safety: safety.uuid,
            old: volume.generation,
            new: new.generation,
        };
        let record = vec![put_snapshot(&safety)];
        let operation = self.intend(Step::RestoreIntent, &volume, kind, record).await?;
        let old = Locator::from(&*volume);
        let restored = async {
            // What an earlier restore left there holds another snapshot, and a copy that exists is
            // never made again.
            let clear = self.backend(&volume)?.delete_generation(Locator::from(&new));
            self.step(Step::RestoreClear, clear).await?;
            self.release(&volume, Step::RestoreUnmount, Step::RestoreDetach).await?;
            self.engine.refuse_foreign_users(&volume).await?;
            let keep = snapshots.snapshot(old, safety.uuid, &self.progress, None);
            self.step(Step::RestoreSafety, keep).await?;
            let from = ContentRef::Snapshot { volume: volume.uuid, snapshot: source.uuid };
            let copy = snapshots.create_from(from, &new, &self.progress, None);
            self.step(Step::RestoreCopy, copy).await?;
            let complete = Snapshot { complete: true, ..safety.clone() };
            let switch = vec![put(&new), put_snapshot(&complete)];
            self.step(Step::RestoreSwitch, self.engine.inner.catalog.commit(switch)).await?;
            self.step(Step::RestoreDescribe, self.engine.describe(&new, None, None)).await?;
            let backend = self.backend(&volume)?;
            self.step(Step::RestoreDiscard, backend.delete_generation(old)).await?;
            self.finish(Step::RestoreFinish, vec![]).await
        };
        match restored.await {
            Ok(()) => Ok(safety.name),
            Err(error) => Err(self.undo(&operation, error).await),
        }
    }

    fn snapshots_of(&self, volume: &Volume) -> Result<&dyn Snapshots> {
        self.backend(volume)?.snapshots().ok_or_else(|| {
            Error::unsupported(format!("the backend {} has no snapshots", volume.backend))
        })
    }

    fn new_snapshot(
        &self,
        volume: &Volume,
        name: SnapshotName,
        origin: SnapshotOrigin,
    ) -> Snapshot {
        Snapshot {
            uuid: SnapshotUuid::from_uuid(self.engine.uuid()),
            volume: volume.uuid,
            name,
            generation: volume.generation,
            size: volume.size,
            content: volume.content,
            origin,
            complete: false,
            created: self.engine.inner.environment.clock.now(),
        }
    }
}

impl Engine {
    /// A snapshot that may be read.
    pub(super) fn complete_snapshot(
        &self,
        volume: &Volume,
        name: &SnapshotName,
    ) -> Result<Arc<Snapshot>> {
        let found = self.inner.catalog.read(|state| state.snapshot(volume.uuid, name).cloned());
        found.filter(|snapshot| snapshot.complete).ok_or_else(|| {
            Error::not_found(format!("volume {} has no snapshot {name}", volume.name))
                .hint(format!("see `holdfast snapshot ls {}`", volume.name))
        })
    }

    /// A name that says what the snapshot is for and that the volume does not use yet.
    pub(super) fn free_name(&self, volume: &Volume, what: &str) -> Result<SnapshotName> {
        let now = self.inner.environment.clock.now().strftime("%Y%m%dT%H%M%SZ").to_string();
        // A backup that has begun cuts its snapshot later.
        let is_of = |operation: &Operation, name: &SnapshotName| {
            let OperationKind::Backup { snapshot, .. } = &operation.kind else { return false };
            operation.volume == volume.uuid && snapshot == name
        };
        let taken = |name: &SnapshotName| {
            self.inner.catalog.read(|state| {
                state.snapshot(volume.uuid, name).is_some()
                    || state.operations().any(|operation| is_of(operation, name))
            })
        };
        for suffix in std::iter::once(String::new()).chain((2..100).map(|n| format!("-{n}"))) {
            let name: SnapshotName = format!("{what}-{now}{suffix}").parse()?;
            if !taken(&name) {
                return Ok(name);
            }
        }
        Err(Error::busy("too many snapshots within one second"))
    }
}

pub(super) fn put_snapshot(snapshot: &Snapshot) -> catalog::Change {
    catalog::Change::PutSnapshot(Box::new(snapshot.clone()))
}
