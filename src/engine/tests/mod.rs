//! The engine on the simulated disk and kernel.

mod backups;
mod crashes;
mod faults;
mod freezes;
mod hooks;
mod mounts;
mod removal;
mod schedules;
mod storage;
mod volumes;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::Timestamp;
use uuid::Uuid;

use super::*;
use crate::backend::fault::FaultyBackend;
use crate::backend::sim::{SimBackend, SimHost, SimWorld};
use crate::id::MountId;
use crate::model::{Holder, Outcome};
use crate::name::{RepositoryName, SnapshotRef};
use crate::options::VolumeOptions;
use crate::repository::{
    Limits, Location, Repository, RepositorySettings, S3Settings, Secret, SecretSource,
};

/// A clock that a test moves.
#[derive(Debug, Default)]
struct TestClock(AtomicI64);

impl TestClock {
    fn back(&self, by: Duration) {
        self.0.fetch_sub(i64::try_from(by.as_secs()).unwrap(), Ordering::Relaxed);
    }

    fn forward(&self, by: Duration) {
        self.0.fetch_add(i64::try_from(by.as_secs()).unwrap(), Ordering::Relaxed);
    }
}

impl Clock for TestClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + self.0.load(Ordering::Relaxed)).unwrap()
    }
}

/// The same ids in each run.
#[derive(Debug, Default)]
struct Counter(AtomicU64);

impl Entropy for Counter {
    fn uuid(&self) -> Uuid {
        Uuid::from_u128(u128::from(self.0.fetch_add(1, Ordering::Relaxed)) + 1)
    }
}

/// A host with a disk, on which engines come and go.
struct World {
    disk: SimWorld,
    directory: tempfile::TempDir,
    clock: Arc<TestClock>,
    ids: Arc<Counter>,
    backend: Mutex<Option<Arc<FaultyBackend>>>,
}

impl World {
    fn new() -> Self {
        Self {
            disk: SimWorld::new(),
            // In memory where there is such a place: what a flush costs is not the matter here.
            directory: tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap(),
            clock: Arc::default(),
            ids: Arc::default(),
            backend: Mutex::default(),
        }
    }

    /// One that nobody has made.
    fn repositories(&self) -> Repositories {
        let name: RepositoryName = "main".parse().unwrap();
        let settings = RepositorySettings {
            name: name.clone(),
            node: "node-1".to_owned(),
            location: Location::Directory(self.directory.path().join("repository")),
            password: SecretSource::Given(Secret::new("secret")),
            cache: self.directory.path().join("cache"),
            mountpoint: self.directory.path().join("repositories"),
            limits: Limits { upload: None, download: None, connections: 1 },
            s3: S3Settings::default(),
        };
        let repository = Repository::new(settings, tokio::runtime::Handle::current());
        Repositories::new(vec![repository], Some(name), 2)
    }

    fn mounts(&self) -> PathBuf {
        self.directory.path().join("mounts")
    }

    fn data(&self, volume: &str) -> PathBuf {
        self.mounts().join(volume).join("data")
    }

    fn backend(&self) -> Arc<FaultyBackend> {
        self.backend.lock().unwrap().clone().unwrap()
    }

    async fn start(&self) -> Engine {
        let name: BackendName = "sim".parse().unwrap();
        let other: BackendName = "other".parse().unwrap();
        let faulty =
            Arc::new(FaultyBackend::new(Arc::new(SimBackend::new(&self.disk, name.clone()))));
        *self.backend.lock().unwrap() = Some(Arc::clone(&faulty));
        let config = EngineConfig {
            node: "node-1".to_owned(),
            mount_dir: self.mounts(),
            default_backend: name,
            trash_after: Duration::from_secs(3600),
            mount_grace: Duration::from_secs(130),
            freeze_limit: Duration::from_secs(10),
            hooks: hooks::configured(),
            repositories: self.repositories(),
        };
        let environment = Environment {
            clock: Arc::clone(&self.clock) as Arc<dyn Clock>,
            entropy: Arc::clone(&self.ids) as Arc<dyn Entropy>,
            host: Arc::new(SimHost::new(&self.disk)),
        };
        let catalog = Catalog::open(&self.directory.path().join("catalog.redb")).unwrap();
        // A disk of its own: the other backend shares nothing with the first.
        let second = SimBackend::new(&SimWorld::new(), other);
        Engine::start(config, environment, catalog, vec![faulty, Arc::new(second)]).await.unwrap()
    }
}

fn name(text: &str) -> VolumeName {
    text.parse().unwrap()
}

fn id(text: &str) -> MountId {
    text.parse().unwrap()
}

fn reference(text: &str) -> SnapshotRef {
    text.parse().unwrap()
}

fn options(pairs: &[(&str, &str)]) -> VolumeOptions {
    let given: BTreeMap<_, _> =
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    VolumeOptions::parse(&given).unwrap()
}

impl Engine {
    async fn make(&self, volume: &str, pairs: &[(&str, &str)]) -> Result<Outcome> {
        self.change(None).create(name(volume), options(pairs), BTreeMap::new()).await
    }

    async fn hold(&self, volume: &str, holder: &str) -> Result<PathBuf> {
        self.change(None).mount(name(volume), id(holder), Holder::Container).await
    }

    async fn let_go(&self, volume: &str, holder: &str) -> Result<Outcome> {
        self.change(None).unmount(name(volume), id(holder)).await
    }

    async fn drop_volume(&self, volume: &str) -> Result<Outcome> {
        self.change(None).remove(name(volume), SnapshotsToo::Delete).await
    }

    /// Waits until nothing runs and nothing is left of what was interrupted.
    async fn settled(&self) {
        for _ in 0..2_000 {
            let open = self.inner.catalog.read(|state| state.operations().count());
            if open == 0 && self.inner.registry.is_idle() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        panic!("operations are left: {:#?}", self.operations());
    }
}

/// Runs engines whose tasks end where they wait, as those of a process that is killed.
fn stopped_dead(work: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(work);
}
