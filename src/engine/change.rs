use std::collections::BTreeMap;
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::Engine;
use super::mount::Grant;
use super::owner::Ownership;
use super::registry::Entry;
use super::remove::SnapshotsToo;
use crate::backend::{Backend, Description, PoolCheck};
use crate::catalog;
use crate::error::{Error, Result};
use crate::failpoint::{self, Step};
use crate::id::{MountId, OperationId, VolumeUuid};
use crate::model::{
    Holder, Operation, OperationKind, Outcome, Progress, Snapshot, SnapshotOrigin, Subject, Volume,
};
use crate::name::{BackendName, HookName, SnapshotName, SnapshotRef, VolumeName};
use crate::options::VolumeOptions;
use crate::units::ByteSize;

/// How long a change waits for the one before it: less than Docker waits for Create and Mount (two
/// minutes; moby `daemon/volume/drivers/proxy.go`).
pub(super) const LONG_PATIENCE: Duration = Duration::from_secs(105);
/// The same for Remove and Unmount, for which Docker waits a minute.
pub(super) const SHORT_PATIENCE: Duration = Duration::from_secs(50);

/// A change to be made to one volume, to a pool or to a repository.
///
/// Once begun, a change goes on when its future is dropped, and ends whole or undone; only a mount is
/// undone when nobody waits for its answer any more, because nobody would unmount it.
#[derive(Debug)]
pub struct Change {
    engine: Engine,
    id: OperationId,
    scheduled: bool,
}

/// A change at work, as the owner of what it changes.
#[derive(Debug, Clone)]
pub(super) struct Work {
    pub(super) engine: Engine,
    pub(super) id: OperationId,
    pub(super) progress: Arc<Progress>,
}

impl Change {
    pub(super) fn new(engine: Engine, id: OperationId) -> Self {
        Self { engine, id, scheduled: false }
    }

    /// The same, asked for by a volume's schedule and not by a user.
    #[must_use]
    pub(super) fn scheduled(self) -> Self {
        Self { scheduled: true, ..self }
    }

    /// What the change can be watched by.
    pub fn id(&self) -> OperationId {
        self.id
    }

    pub(super) fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Whether a volume's schedule asks for it: what it makes is then deleted when its time is over.
    pub fn is_scheduled(&self) -> bool {
        self.scheduled
    }

    /// Makes a volume, empty or with the content that the options name. `Unchanged` if it exists
    /// with the same options.
    ///
    /// # Errors
    /// `Conflict` if it exists with other options, which are named; whatever its backend says.
    pub async fn create(
        self,
        name: VolumeName,
        options: VolumeOptions,
        labels: BTreeMap<String, String>,
    ) -> Result<Outcome> {
        let source = options.source.as_ref().and_then(|source| source.volume().cloned());
        let mut names = vec![name.clone()];
        names.extend(source);
        self.run("create", names, LONG_PATIENCE, |work| async move {
            let outcome = work.create(name.clone(), options, labels).await?;
            work.engine.inner.scheduler.wake();
            work.tell_change(
                outcome,
                "volume.created",
                &name,
                format!("volume {name} was created"),
            );
            Ok(outcome)
        })
        .await
    }

    /// Removes a volume as its `on-remove` says.
    ///
    /// # Errors
    /// `NotFound` if there is none; `InUse` while it is mounted; `Conflict` if it has snapshots that
    /// are not to be deleted.
    pub async fn remove(self, name: VolumeName, snapshots: SnapshotsToo) -> Result<Outcome> {
        self.run("remove", vec![name.clone()], SHORT_PATIENCE, move |work| async move {
            let outcome = work.remove(&name, snapshots).await?;
            work.tell_change(
                outcome,
                "volume.removed",
                &name,
                format!("volume {name} was removed"),
            );
            Ok(outcome)
        })
        .await
    }

    /// Takes the volume that was last removed under this name out of the trash.
    ///
    /// # Errors
    /// `NotFound` if none is there; `Conflict` if the name is in use again.
    pub async fn undelete(self, name: VolumeName) -> Result<Outcome> {
        self.run("undelete", vec![name.clone()], SHORT_PATIENCE, |work| async move {
            let outcome = work.undelete(&name).await?;
            let text = format!("volume {name} was taken back from the trash");
            work.tell_change(outcome, "volume.undeleted", &name, text);
            Ok(outcome)
        })
        .await
    }

    /// Makes a volume of what a backend holds under `uuid` and the catalog does not know. `Unchanged` if
    /// it is that volume.
    ///
    /// # Errors
    /// `NotFound` if no backend holds it; `Conflict` if it is another volume or the name is taken.
    pub async fn adopt(self, uuid: VolumeUuid, name: VolumeName) -> Result<Outcome> {
        // As a name the uuid keeps another adoption of the same volume waiting.
        let names = vec![name.clone(), uuid.to_string().parse()?];
        self.run(
            "adopt",
            names,
            SHORT_PATIENCE,
            move |work| async move { work.adopt(uuid, name).await },
        )
        .await
    }

    /// Mounts the volume for `id` and gives the directory that a container may have.
    ///
    /// # Errors
    /// `NotFound` if there is none; whatever its backend and the kernel say.
    pub async fn mount(self, name: VolumeName, id: MountId, holder: Holder) -> Result<PathBuf> {
        let grant = self
            .run("mount", vec![name.clone()], LONG_PATIENCE, move |work| async move {
                let path = work.mount(&name, &id, holder).await?;
                work.engine.tell(
                    "volume.mounted",
                    &name,
                    format!("volume {name} was mounted for {id}"),
                );
                Ok(Grant::new(work.engine.clone(), name, id, path))
            })
            .await?;
        Ok(grant.accept())
    }

    /// Gives up one mount of `id`. `Unchanged` if the volume or the id is not known.
    ///
    /// # Errors
    /// `InUse` if it was the last and files are still open.
    pub async fn unmount(self, name: VolumeName, id: MountId) -> Result<Outcome> {
        self.run("unmount", vec![name.clone()], SHORT_PATIENCE, |work| async move {
            let outcome = work.unmount(&name, &id).await?;
            let text = format!("volume {name} was unmounted for {id}");
            work.tell_change(outcome, "volume.unmounted", &name, text);
            Ok(outcome)
        })
        .await
    }

    /// Grows the volume, mounted or not.
    ///
    /// # Errors
    /// `Invalid` for a smaller size; `Unsupported` if its backend cannot.
    pub async fn resize(self, name: VolumeName, size: ByteSize) -> Result<Outcome> {
        self.run("grow", vec![name.clone()], LONG_PATIENCE, move |work| async move {
            let outcome = work.grow(&name, size).await?;
            let text = format!("volume {name} has grown to {size}");
            work.tell_change(outcome, "volume.grown", &name, text);
            Ok(outcome)
        })
        .await
    }

    /// Gives the volume another name.
    ///
    /// # Errors
    /// `InUse` while it is mounted; `Conflict` if the name is taken.
    pub async fn rename(self, name: VolumeName, new: VolumeName) -> Result<Outcome> {
        let names = vec![name.clone(), new.clone()];
        self.run("rename", names, SHORT_PATIENCE, |work| async move {
            let outcome = work.rename(&name, new.clone()).await?;
            let text = format!("volume {name} has the name {new} now");
            work.tell_change(outcome, "volume.renamed", &new, text);
            Ok(outcome)
        })
        .await
    }

    /// Cuts a snapshot, between the programs of `hook` or else of the one that the volume has.
    ///
    /// # Errors
    /// `Conflict` if there is one of that name; `Unsupported` if its backend has none; `Busy` if a
    /// mounted volume would be frozen for too long; `Invalid` if there is no such hook; whatever the
    /// program before it says.
    pub async fn snapshot(self, reference: SnapshotRef, hook: Option<HookName>) -> Result<Outcome> {
        self.run("snapshot", vec![reference.volume.clone()], LONG_PATIENCE, |work| async move {
            let outcome = work.snapshot(&reference, hook, SnapshotOrigin::User).await?;
            let text = format!("snapshot {reference} was cut");
            work.tell_change(outcome, "snapshot.created", &reference, text);
            Ok(outcome)
        })
        .await
    }

    /// Deletes a snapshot.
    ///
    /// # Errors
    /// `NotFound` if there is none.
    pub async fn remove_snapshot(self, reference: SnapshotRef) -> Result<Outcome> {
        let names = vec![reference.volume.clone()];
        self.run("delete-snapshot", names, SHORT_PATIENCE, |work| async move {
            let outcome = work.remove_snapshot(&reference).await?;
            let text = format!("snapshot {reference} was removed");
            work.tell_change(outcome, "snapshot.removed", &reference, text);
            Ok(outcome)
        })
        .await
    }

    /// Puts a snapshot's content in place of the volume's, and keeps what it replaces as a snapshot,
    /// whose name it gives.
    ///
    /// # Errors
    /// `InUse` while the volume is mounted; `NotFound` if there is no such snapshot.
    pub async fn restore(self, reference: SnapshotRef) -> Result<SnapshotName> {
        self.run("restore", vec![reference.volume.clone()], LONG_PATIENCE, |work| async move {
            let safety = work.restore(&reference).await?;
            let text =
                format!("snapshot {reference} was restored; what it replaced is kept as {safety}");
            work.engine.tell("snapshot.restored", &reference, text);
            Ok(safety)
        })
        .await
    }

    /// Makes a pool `size` bytes large, or as large as what it lies on has become. Volumes stay in
    /// use.
    ///
    /// # Errors
    /// `NotFound` if there is no such pool; `Invalid` for a smaller size, or one for which its
    /// devices have no room.
    pub async fn grow_pool(self, pool: BackendName, size: Option<ByteSize>) -> Result<Outcome> {
        self.run_on(
            "grow",
            vec![Subject::Pool(pool.clone())],
            LONG_PATIENCE,
            move |work| async move { work.grow_pool(&pool, size).await },
        )
        .await
    }

    /// Reads all metadata of a pool, and says what is wrong and what to do.
    ///
    /// # Errors
    /// `NotFound` if there is no such pool.
    pub async fn check_pool(self, pool: BackendName) -> Result<PoolCheck> {
        self.run_on("check", vec![Subject::Pool(pool.clone())], LONG_PATIENCE, |work| async move {
            work.check_pool(&pool).await
        })
        .await
    }

    /// Mends the metadata of a pool, and gives what was done as sentences.
    ///
    /// # Errors
    /// `NotFound` if there is no such pool; `InUse` while a volume of it is attached; `Corrupt` if
    /// it cannot be mended.
    pub async fn repair_pool(self, pool: BackendName) -> Result<Vec<String>> {
        self.run_on("repair", vec![Subject::Pool(pool.clone())], LONG_PATIENCE, |work| async move {
            work.repair_pool(&pool).await
        })
        .await
    }

    /// Runs `work` as the owner of `names`, the first of which is the volume that it changes.
    pub(super) async fn run<T, F, R>(
        self,
        kind: &'static str,
        names: Vec<VolumeName>,
        patience: Duration,
        work: F,
    ) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(Work) -> R + Send + 'static,
        R: Future<Output = Result<T>> + Send,
    {
        let subjects = names.into_iter().map(Subject::Volume).collect();
        self.run_on(kind, subjects, patience, work).await
    }

    /// Runs `work` as the owner of `subjects`, the first of which is what it changes.
    pub(super) async fn run_on<T, F, R>(
        self,
        kind: &'static str,
        subjects: Vec<Subject>,
        patience: Duration,
        work: F,
    ) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(Work) -> R + Send + 'static,
        R: Future<Output = Result<T>> + Send,
    {
        let Self { engine, id, .. } = self;
        let subject = subjects.first().cloned().ok_or_else(|| Error::internal("nothing named"))?;
        let begun = Begun::new(engine, id, kind, subject)?;
        match begun.engine.inner.owners.acquire(&subjects, kind, patience).await {
            Ok(ownership) => begun.run(Some((ownership, subjects)), work).await,
            Err(error) => begun.end(Err(error)),
        }
    }

    /// Runs `work`, which becomes an owner itself where it has to be one.
    pub(super) async fn run_unowned<T, F, R>(
        self,
        kind: &'static str,
        subject: Subject,
        work: F,
    ) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(Work) -> R + Send + 'static,
        R: Future<Output = Result<T>> + Send,
    {
        Begun::new(self.engine, self.id, kind, subject)?.run(None, work).await
    }
}

/// A change that others can see.
struct Begun {
    engine: Engine,
    id: OperationId,
    kind: &'static str,
    subject: Subject,
    entry: Entry,
}

impl Begun {
    fn new(engine: Engine, id: OperationId, kind: &'static str, subject: Subject) -> Result<Self> {
        let now = engine.inner.environment.clock.now();
        let left = engine.inner.catalog.read(|state| state.operations().any(|one| one.id == id));
        if left && !engine.inner.registry.is_running(id) {
            return Err(Error::conflict(format!("an operation {id} has yet to be cleaned up"))
                .hint("try again with another id"));
        }
        let entry = engine.inner.registry.begin(id, kind, subject.clone(), now)?;
        Ok(Self { engine, id, kind, subject, entry })
    }

    /// Runs `work` as a task of its own, to its end whoever waits for it.
    async fn run<T, F, R>(self, owned: Option<(Ownership, Vec<Subject>)>, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(Work) -> R + Send + 'static,
        R: Future<Output = Result<T>> + Send,
    {
        let (answer, caller) = oneshot::channel();
        tokio::spawn(async move {
            let progress = Arc::clone(self.entry.progress());
            let started = Work { engine: self.engine.clone(), id: self.id, progress };
            let settled = match &owned {
                Some((_, subjects)) => started.settle(subjects).await,
                None => Ok(()),
            };
            let result = match settled {
                Ok(()) => work(started).await,
                Err(error) => Err(error),
            };
            let id = self.id;
            let result = self.end(result);
            if let Err(error) = &result {
                tracing::warn!(operation = %id, "{}", error.full_message());
            }
            drop(owned);
            // What nobody waits for is dropped here; a mount's grant then undoes itself.
            let _ = answer.send(result);
        });
        caller.await.map_err(|_| Error::internal("the operation ended without an answer"))?
    }

    /// Tells how it ended.
    fn end<T>(self, result: Result<T>) -> Result<T> {
        let (kind, node) = (self.kind, &self.engine.inner.config.node);
        let what = self.subject.short();
        let result =
            result.map_err(|error| error.context(format!("cannot {kind} {what} on node {node}")));
        self.engine.tell_failure(&self.subject, &result);
        self.entry.end(self.engine.inner.environment.clock.now(), &result);
        result
    }
}

impl Work {
    /// Tells those who watch of a change that was one.
    pub(super) fn tell_change(
        &self,
        outcome: Outcome,
        kind: &str,
        subject: &impl ToString,
        text: String,
    ) {
        if outcome == Outcome::Changed {
            self.engine.tell(kind, subject, text);
        }
    }

    /// Makes this change the owner of a volume for as long as the answer lives.
    pub(super) async fn own(&self, name: &VolumeName, kind: &'static str) -> Result<Ownership> {
        let subjects = [Subject::Volume(name.clone())];
        let owners = &self.engine.inner.owners;
        let ownership = owners.acquire(&subjects, kind, LONG_PATIENCE).await?;
        self.settle(&subjects).await?;
        Ok(ownership)
    }

    /// The same for a volume that may get another name, or be removed, while this waits: it is this one, and
    /// no other that has its name. None if it is gone.
    pub(super) async fn own_volume(
        &self,
        volume: VolumeUuid,
        kind: &'static str,
    ) -> Result<Option<(Ownership, Arc<Volume>)>> {
        let find = || self.engine.inner.catalog.read(|state| state.volume(volume).cloned());
        while let Some(before) = find() {
            let ownership = self.own(&before.name, kind).await?;
            if let Some(now) = find().filter(|now| now.name == before.name) {
                return Ok(Some((ownership, now)));
            }
        }
        Ok(None)
    }

    /// Finishes or undoes what earlier operations left of these volumes.
    async fn settle(&self, subjects: &[Subject]) -> Result<()> {
        let left: Vec<Arc<Operation>> = self.engine.inner.catalog.read(|state| {
            let names = subjects.iter().filter_map(Subject::volume);
            let held = names.filter_map(|name| state.named(name).map(|v| v.uuid));
            let held: Vec<_> = held.collect();
            let touches = |operation: &Operation| match operation.kind {
                OperationKind::Create { frozen: Some(frozen) } if held.contains(&frozen) => true,
                _ => held.contains(&operation.volume),
            };
            state.operations().filter(|operation| touches(operation)).cloned().collect()
        });
        // A backup on its way owns nothing, and is not left by anybody.
        let running = |operation: &Operation| {
            matches!(operation.kind, OperationKind::Backup { .. })
                && self.engine.inner.registry.is_running(operation.id)
        };
        for operation in left.into_iter().filter(|operation| !running(operation)) {
            let recovered = self.engine.recover(&operation).await;
            // The snapshot that it has left is in nobody's way, and is tried again without this.
            if matches!(operation.kind, OperationKind::Backup { .. }) {
                continue;
            }
            recovered.map_err(|error| {
                error.context(format!(
                    "an earlier {} of volume {} cannot be cleaned up",
                    operation.kind.as_str(),
                    operation.name
                ))
            })?;
        }
        Ok(())
    }

    /// Records what is about to be done, together with `changes`.
    pub(super) async fn intend(
        &self,
        step: Step,
        volume: &Volume,
        kind: OperationKind,
        mut changes: Vec<catalog::Change>,
    ) -> Result<Operation> {
        // What cannot be begun is not recorded, because it could not be undone either. An unmount
        // needs the backend last, and keeps nobody waiting for it.
        if kind != OperationKind::Unmount {
            self.backend(volume)?;
        }
        let operation = Operation {
            id: self.id,
            volume: volume.uuid,
            name: volume.name.clone(),
            kind,
            started: self.engine.inner.environment.clock.now(),
        };
        changes.push(catalog::Change::PutOperation(Box::new(operation.clone())));
        self.step(step, self.engine.inner.catalog.commit(changes)).await?;
        Ok(operation)
    }

    /// Records that the operation is over, together with `changes`.
    pub(super) async fn finish(&self, step: Step, mut changes: Vec<catalog::Change>) -> Result<()> {
        changes.push(catalog::Change::RemoveOperation(self.id));
        self.step(step, self.engine.inner.catalog.commit(changes)).await
    }

    /// One side effect of an operation, and its failpoint.
    pub(super) async fn step<T>(
        &self,
        step: Step,
        effect: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let value = effect.await?;
        failpoint::reached(step).await?;
        Ok(value)
    }

    /// Undoes the operation after `error`, which stays the answer. What cannot be undone now stays
    /// recorded, and is tried again before the volume's next change.
    pub(super) async fn undo(&self, operation: &Operation, error: Error) -> Error {
        self.engine.recover_and_tell(operation).await;
        error
    }

    pub(super) fn backend(&self, volume: &Volume) -> Result<&Arc<dyn Backend>> {
        self.engine.backend(&volume.backend)
    }
}

impl Engine {
    fn tell_failure<T>(&self, subject: &Subject, result: &Result<T>) {
        if let Err(error) = result {
            self.tell("operation.failed", &subject.short(), error.full_message());
        }
    }

    /// Keeps a description of `volume` with its data: its complete snapshots as recorded, with
    /// `extra` added and `without` left out.
    pub(super) async fn describe(
        &self,
        volume: &Volume,
        extra: Option<&Snapshot>,
        without: Option<&Snapshot>,
    ) -> Result<()> {
        let mut description = self.description(volume);
        let snapshots = &mut description.snapshots;
        for changed in extra.into_iter().chain(without) {
            snapshots.retain(|snapshot| snapshot.uuid != changed.uuid);
        }
        snapshots.extend(extra.cloned().map(|snapshot| Snapshot { complete: true, ..snapshot }));
        self.backend(&volume.backend)?.describe(&description).await
    }

    /// `volume` and its complete snapshots as recorded.
    pub(super) fn description(&self, volume: &Volume) -> Description {
        let (snapshots, schedule) = self.inner.catalog.read(|state| {
            let complete = state.snapshots(volume.uuid).iter().filter(|s| s.complete);
            let snapshots = complete.map(|snapshot| (**snapshot).clone()).collect();
            (snapshots, state.schedule(volume.uuid).map(|schedule| (**schedule).clone()))
        });
        Description { volume: volume.clone(), snapshots, retained: false, schedule }
    }
}
