//! A backend whose calls fail, hang or are slow where a test says so.

use std::collections::HashMap;
use std::future::Future;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;

use super::{
    Attachment, Backend, BackendKind, BackendStatus, ContentRef, CopyCost, Description, Extents,
    Found, Grow, Locator, Presence, Scope, SnapshotImage, Snapshots, Usage,
};
use crate::error::{Error, ErrorKind, Result};
use crate::id::{SnapshotUuid, StorageId, VolumeUuid};
use crate::model::{Outcome, Progress, Volume};
use crate::name::BackendName;
use crate::units::ByteSize;

/// A call that can fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names of the traits' methods")]
pub enum Call {
    Status,
    Create,
    Delete,
    DeleteGeneration,
    Attach,
    Detach,
    Inspect,
    Usage,
    Describe,
    Survey,
    CopyCost,
    Snapshot,
    DeleteSnapshot,
    CreateFrom,
    Grow,
    AllocatedExtents,
    ChangedExtents,
    OpenSnapshot,
}

/// What happens to a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It fails and nothing has happened.
    FailBefore(ErrorKind),
    /// It fails although it happened: the answer was lost.
    FailAfter(ErrorKind),
    /// It never answers and nothing happens.
    HangBefore,
    /// It happens and never answers.
    HangAfter,
    /// It happens after this time.
    Delay(Duration),
    /// It ends its task: a defect.
    Panic,
}

/// A backend with planned faults around another one.
#[derive(Debug)]
pub struct FaultyBackend {
    inner: Arc<dyn Backend>,
    plan: Mutex<Plan>,
}

#[derive(Debug, Default)]
struct Plan {
    seen: HashMap<Call, u64>,
    faults: HashMap<(Call, u64), Fault>,
    always: HashMap<Call, Fault>,
}

impl FaultyBackend {
    /// Nothing fails yet.
    pub fn new(inner: Arc<dyn Backend>) -> Self {
        Self { inner, plan: Mutex::default() }
    }

    fn plan(&self) -> std::sync::MutexGuard<'_, Plan> {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The `nth` call from now on, 1 being the next, meets the fault; once.
    pub fn on(&self, call: Call, nth: u64, fault: Fault) {
        let mut plan = self.plan();
        let seen = plan.seen.get(&call).copied().unwrap_or(0);
        plan.faults.insert((call, seen + nth), fault);
    }

    /// Every call meets the fault, until [`Self::mend`].
    pub fn always(&self, call: Call, fault: Fault) {
        self.plan().always.insert(call, fault);
    }

    /// Nothing fails any more.
    pub fn mend(&self) {
        let mut plan = self.plan();
        plan.faults.clear();
        plan.always.clear();
    }

    /// How often it was called.
    pub fn calls(&self, call: Call) -> u64 {
        self.plan().seen.get(&call).copied().unwrap_or(0)
    }

    fn next(&self, call: Call) -> Option<Fault> {
        let mut plan = self.plan();
        let seen = plan.seen.entry(call).or_default();
        *seen += 1;
        let seen = *seen;
        let once = plan.faults.remove(&(call, seen));
        once.or_else(|| plan.always.get(&call).copied())
    }

    async fn around<T>(&self, call: Call, inner: impl Future<Output = Result<T>>) -> Result<T> {
        let failed = |kind| Error::new(kind, format!("planned fault in {call:?}"));
        match self.next(call) {
            None => inner.await,
            Some(Fault::FailBefore(kind)) => Err(failed(kind)),
            Some(Fault::FailAfter(kind)) => {
                drop(inner.await?);
                Err(failed(kind))
            }
            Some(Fault::HangBefore) => std::future::pending().await,
            Some(Fault::HangAfter) => {
                drop(inner.await?);
                std::future::pending().await
            }
            Some(Fault::Panic) => panic!("planned fault in {call:?}"),
            Some(Fault::Delay(duration)) => {
                tokio::time::sleep(duration).await;
                inner.await
            }
        }
    }

    fn inner_snapshots(&self) -> Result<&dyn Snapshots> {
        self.inner.snapshots().ok_or_else(|| Error::unsupported("no snapshots"))
    }

    fn inner_extents(&self) -> Result<&dyn Extents> {
        self.inner.extents().ok_or_else(|| Error::unsupported("no extents"))
    }
}

#[async_trait]
impl Backend for FaultyBackend {
    fn name(&self) -> &BackendName {
        self.inner.name()
    }

    fn kind(&self) -> BackendKind {
        self.inner.kind()
    }

    fn scope(&self) -> Scope {
        self.inner.scope()
    }

    fn default_size(&self) -> Option<ByteSize> {
        self.inner.default_size()
    }

    fn storage(&self) -> Result<StorageId> {
        self.inner.storage()
    }

    async fn status(&self) -> Result<BackendStatus> {
        self.around(Call::Status, self.inner.status()).await
    }

    async fn create(&self, volume: &Volume) -> Result<Outcome> {
        self.around(Call::Create, self.inner.create(volume)).await
    }

    async fn delete(&self, volume: VolumeUuid) -> Result<Outcome> {
        self.around(Call::Delete, self.inner.delete(volume)).await
    }

    async fn delete_generation(&self, locator: Locator) -> Result<Outcome> {
        self.around(Call::DeleteGeneration, self.inner.delete_generation(locator)).await
    }

    async fn attach(&self, locator: Locator) -> Result<Attachment> {
        self.around(Call::Attach, self.inner.attach(locator)).await
    }

    async fn detach(&self, locator: Locator) -> Result<Outcome> {
        self.around(Call::Detach, self.inner.detach(locator)).await
    }

    async fn inspect(&self, locator: Locator) -> Result<Presence> {
        self.around(Call::Inspect, self.inner.inspect(locator)).await
    }

    async fn usage(&self, locator: Locator) -> Result<Usage> {
        self.around(Call::Usage, self.inner.usage(locator)).await
    }

    async fn describe(&self, description: &Description) -> Result<()> {
        self.around(Call::Describe, self.inner.describe(description)).await
    }

    async fn survey(&self) -> Result<Vec<Found>> {
        self.around(Call::Survey, self.inner.survey()).await
    }

    fn snapshots(&self) -> Option<&dyn Snapshots> {
        self.inner.snapshots().map(|_| self as &dyn Snapshots)
    }

    fn grow(&self) -> Option<&dyn Grow> {
        self.inner.grow().map(|_| self as &dyn Grow)
    }

    fn extents(&self) -> Option<&dyn Extents> {
        self.inner.extents().map(|_| self as &dyn Extents)
    }
}

#[async_trait]
impl Snapshots for FaultyBackend {
    async fn copy_cost(&self, content: ContentRef) -> Result<CopyCost> {
        self.around(Call::CopyCost, self.inner_snapshots()?.copy_cost(content)).await
    }

    async fn snapshot(
        &self,
        locator: Locator,
        snapshot: SnapshotUuid,
        progress: &Arc<Progress>,
        limit: Option<Duration>,
    ) -> Result<Outcome> {
        let inner = self.inner_snapshots()?.snapshot(locator, snapshot, progress, limit);
        self.around(Call::Snapshot, inner).await
    }

    async fn delete_snapshot(&self, volume: VolumeUuid, snapshot: SnapshotUuid) -> Result<Outcome> {
        let inner = self.inner_snapshots()?.delete_snapshot(volume, snapshot);
        self.around(Call::DeleteSnapshot, inner).await
    }

    async fn create_from(
        &self,
        source: ContentRef,
        target: &Volume,
        progress: &Arc<Progress>,
        limit: Option<Duration>,
    ) -> Result<Outcome> {
        let inner = self.inner_snapshots()?.create_from(source, target, progress, limit);
        self.around(Call::CreateFrom, inner).await
    }
}

#[async_trait]
impl Grow for FaultyBackend {
    async fn grow(&self, locator: Locator, size: ByteSize) -> Result<Outcome> {
        let grow = self.inner.grow().ok_or_else(|| Error::unsupported("it cannot grow"))?;
        self.around(Call::Grow, grow.grow(locator, size)).await
    }
}

#[async_trait]
impl Extents for FaultyBackend {
    async fn allocated_extents(
        &self,
        volume: VolumeUuid,
        snapshot: SnapshotUuid,
    ) -> Result<Vec<Range<u64>>> {
        let inner = self.inner_extents()?.allocated_extents(volume, snapshot);
        self.around(Call::AllocatedExtents, inner).await
    }

    async fn changed_extents(
        &self,
        volume: VolumeUuid,
        base: SnapshotUuid,
        snapshot: SnapshotUuid,
    ) -> Result<Vec<Range<u64>>> {
        let inner = self.inner_extents()?.changed_extents(volume, base, snapshot);
        self.around(Call::ChangedExtents, inner).await
    }

    async fn open_snapshot(
        &self,
        volume: VolumeUuid,
        snapshot: SnapshotUuid,
    ) -> Result<SnapshotImage> {
        let inner = self.inner_extents()?.open_snapshot(volume, snapshot);
        self.around(Call::OpenSnapshot, inner).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::contract::Trial;

    #[tokio::test(start_paused = true)]
    async fn faults_come_where_they_are_planned() {
        let (trial, _world, _scratch) = Trial::simulated();
        let faulty = FaultyBackend::new(Arc::clone(&trial.backend));
        let volume = trial.volume("v");
        let locator = Locator::from(&volume);
        faulty.on(Call::Create, 1, Fault::FailBefore(ErrorKind::OutOfSpace));
        faulty.on(Call::Create, 2, Fault::FailAfter(ErrorKind::Unavailable));
        let kind = |error: Error| error.kind();
        assert_eq!(faulty.create(&volume).await.map_err(kind), Err(ErrorKind::OutOfSpace));
        assert_eq!(faulty.inspect(locator).await.unwrap(), Presence::Absent);
        assert_eq!(faulty.create(&volume).await.map_err(kind), Err(ErrorKind::Unavailable));
        assert_eq!(faulty.create(&volume).await.unwrap(), Outcome::Unchanged, "it had happened");
        assert_eq!(faulty.calls(Call::Create), 3);

        faulty.always(Call::Usage, Fault::HangBefore);
        let hung = tokio::time::timeout(Duration::from_secs(3600), faulty.usage(locator)).await;
        assert!(hung.is_err());
        faulty.mend();
        faulty.usage(locator).await.unwrap();
        faulty.on(Call::Delete, 1, Fault::Delay(Duration::from_secs(5)));
        let began = tokio::time::Instant::now();
        faulty.delete(volume.uuid).await.unwrap().ignore();
        assert_eq!(began.elapsed(), Duration::from_secs(5));
    }
}
