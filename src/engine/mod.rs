//! What a request means: one owner per volume or pool, operations that survive a crash, recovery, mounts.
//! Knows no backend by name.
//!
//! Reads are answered from the catalog's view in memory. A change goes through [`Change`]: it waits
//! for the volume's owner, runs as a task of its own, and records each operation before its first
//! side effect.

mod adopt;
mod backup;
mod change;
mod create;
mod events;
mod figures;
mod freeze;
mod hook;
mod mount;
mod owner;
mod pool;
mod read;
mod rebuild;
mod recovery;
mod registry;
mod remove;
mod resize;
mod schedule;
mod snapshot;
mod storage;
#[cfg(test)]
mod tests;
pub mod view;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

pub use backup::{Repositories, Verify};
pub use change::Change;
pub use events::{Events, Follower};
pub use figures::{Figures, Work};
pub use freeze::thaw_all;
pub use rebuild::{RebuildReport, Unreadable, rebuild_catalog};
pub use remove::SnapshotsToo;
pub use storage::{expected_storage, opened};

use crate::backend::{Backend, Scope};
use crate::catalog::Catalog;
use crate::clock::{Clock, Entropy};
use crate::error::{Error, Result};
use crate::id::{OperationId, VolumeUuid};
use crate::linux::Host;
use crate::model::{HookConfig, Volume};
use crate::name::{BackendName, HookName, VolumeName};
use freeze::Freezes;
use owner::Owners;
use registry::Registry;
use schedule::Scheduler;

/// How long a backend may take to let go of what it has.
const BACKEND_STOP_LIMIT: Duration = Duration::from_secs(10);

/// What an administrator decides about the engine.
#[derive(Debug)]
pub struct EngineConfig {
    /// This node's name.
    pub node: String,
    /// Where filesystems are mounted, each in a directory of its volume's name.
    pub mount_dir: PathBuf,
    /// Where volumes go whose user names no backend.
    pub default_backend: BackendName,
    /// How long a volume stays in the trash.
    pub trash_after: Duration,
    /// How old a container's mount must be before the lack of its bind mount says that the container is
    /// gone: Docker makes the bind mounts when the last of the container's volumes is mounted.
    pub mount_grace: Duration,
    /// How long a mounted filesystem may be frozen for a snapshot that has to copy.
    pub freeze_limit: Duration,
    /// The programs that can run before and after a snapshot.
    pub hooks: BTreeMap<HookName, HookConfig>,
    /// Where backups go.
    pub repositories: Repositories,
}

/// The world outside, as arguments, so that the same engine runs in a simulation.
#[derive(Debug, Clone)]
pub struct Environment {
    /// The wall clock.
    pub clock: Arc<dyn Clock>,
    /// Where new ids come from.
    pub entropy: Arc<dyn Entropy>,
    /// This host's kernel.
    pub host: Arc<dyn Host>,
}

/// The engine. Clones are handles to the same one.
#[derive(Debug, Clone)]
pub struct Engine {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: EngineConfig,
    environment: Environment,
    catalog: Catalog,
    backends: BTreeMap<BackendName, Arc<dyn Backend>>,
    owners: Arc<Owners>,
    registry: Arc<Registry>,
    events: Arc<Events>,
    freezes: Freezes,
    scheduler: Arc<Scheduler>,
    usage: Mutex<read::UsageCache>,
    sources: Mutex<read::SourceCache>,
    pools: Mutex<figures::PoolCache>,
    /// What the start found and nobody has mended.
    warnings: Mutex<Vec<String>>,
}

impl Engine {
    /// Compares the catalog with the backends' storage and with the kernel, begins to finish or undo
    /// what a crash interrupted, and answers requests from then on: a volume under recovery makes only
    /// its own callers wait.
    ///
    /// # Errors
    /// The default backend is not among `backends`, or the catalog or the kernel cannot be read.
    pub async fn start(
        config: EngineConfig,
        environment: Environment,
        catalog: Catalog,
        backends: Vec<Arc<dyn Backend>>,
    ) -> Result<Self> {
        let mut usable = BTreeMap::new();
        for backend in backends {
            let name = backend.name().clone();
            usable.insert(name, storage::admitted(&catalog, backend).await?);
        }
        let backends: BTreeMap<BackendName, Arc<dyn Backend>> = usable;
        if !backends.contains_key(&config.default_backend) {
            return Err(unknown_backend(&config.default_backend, &backends));
        }
        let events = Arc::new(Events::new(environment.clock.now()));
        let engine = Self {
            inner: Arc::new(Inner {
                config,
                environment,
                catalog,
                backends,
                owners: Arc::default(),
                registry: Arc::default(),
                events,
                freezes: Freezes::default(),
                scheduler: Arc::default(),
                usage: Mutex::default(),
                sources: Mutex::default(),
                pools: Mutex::default(),
                warnings: Mutex::default(),
            }),
        };
        engine.listen_to_backends();
        engine.tell_of_unavailable();
        engine.reconcile().await?;
        engine.look_for_unknown();
        engine.keep_schedules();
        engine.look_into_repositories();
        Ok(engine)
    }

    /// Begins nothing more by itself, and waits until no operation runs, or `limit` is over. What still runs then is recovered at the
    /// next start.
    pub async fn stop(&self, limit: Duration) {
        self.inner.scheduler.end();
        self.inner.registry.cancel_all();
        let idle = async {
            while !self.inner.registry.is_idle() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        if tokio::time::timeout(limit, idle).await.is_err() {
            tracing::warn!("operations still run; the next start will finish or undo them");
            return;
        }
        for (name, backend) in &self.inner.backends {
            let stopped = tokio::time::timeout(BACKEND_STOP_LIMIT, backend.stop()).await;
            match stopped {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => tracing::warn!(backend = %name, "{}", error.full_message()),
                Err(_) => tracing::warn!(backend = %name, "the backend does not stop in time"),
            }
        }
        self.inner.config.repositories.release(BACKEND_STOP_LIMIT).await;
    }

    /// What has happened lately.
    pub fn events(&self) -> &Arc<Events> {
        &self.inner.events
    }

    /// Tells those who watch.
    fn tell(&self, kind: &str, subject: &impl ToString, message: impl Into<String>) {
        let now = self.inner.environment.clock.now();
        self.inner.events.add(now, kind, subject.to_string(), message.into());
    }

    /// Makes events of what backends notice, for as long as they do.
    fn listen_to_backends(&self) {
        for backend in self.inner.backends.values() {
            let Some(mut notices) = backend.notices() else { continue };
            let events = Arc::clone(&self.inner.events);
            let clock = Arc::clone(&self.inner.environment.clock);
            let name = backend.name().to_string();
            tokio::spawn(async move {
                while let Some(notice) = notices.recv().await {
                    events.add(clock.now(), notice.kind.as_str(), name.clone(), notice.message);
                }
            });
        }
    }

    /// A change to be made. `id` is what it can be watched by.
    pub fn change(&self, id: Option<OperationId>) -> Change {
        let id =
            id.unwrap_or_else(|| OperationId::from_uuid(self.inner.environment.entropy.uuid()));
        Change::new(self.clone(), id)
    }

    /// From where volumes can be reached: `Global` once any backend is.
    pub fn scope(&self) -> Scope {
        match self.inner.backends.values().any(|backend| backend.scope() == Scope::Global) {
            true => Scope::Global,
            false => Scope::Local,
        }
    }

    /// Where the volume's filesystem is mounted.
    fn target(&self, name: &VolumeName) -> PathBuf {
        self.inner.config.mount_dir.join(name.as_str())
    }

    /// What containers see of it: never the root, where `lost+found` is.
    fn data_directory(&self, name: &VolumeName) -> PathBuf {
        self.target(name).join("data")
    }

    fn find(&self, name: &VolumeName) -> Option<Arc<Volume>> {
        self.inner.catalog.read(|state| state.named(name).cloned())
    }

    /// The volume as a user may use it.
    fn ready(&self, name: &VolumeName) -> Result<Arc<Volume>> {
        self.find(name).filter(|volume| volume.is_ready()).ok_or_else(|| self.no_volume(name))
    }

    fn no_volume(&self, name: &VolumeName) -> Error {
        Error::not_found(format!("there is no volume {name} on node {}", self.inner.config.node))
            .hint("see `holdfast volume ls`")
    }

    /// Tells an administrator in the log and, until the daemon is started again, in `status`.
    pub fn warn(&self, warning: String) {
        tracing::warn!("{warning}");
        let mut warnings =
            self.inner.warnings.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if !warnings.contains(&warning) {
            self.tell("node.warning", &self.inner.config.node, warning.clone());
            warnings.push(warning);
        }
    }

    /// What begins so has been mended.
    fn unwarn(&self, beginning: &str) {
        let mut warnings =
            self.inner.warnings.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        warnings.retain(|warning| !warning.starts_with(beginning));
    }

    fn uuid(&self) -> uuid::Uuid {
        self.inner.environment.entropy.uuid()
    }

    fn new_volume_uuid(&self) -> VolumeUuid {
        VolumeUuid::from_uuid(self.uuid())
    }
}

fn unknown_backend(
    name: &BackendName,
    backends: &BTreeMap<BackendName, Arc<dyn Backend>>,
) -> Error {
    let known: Vec<&str> = backends.keys().map(BackendName::as_str).collect();
    Error::invalid(format!("there is no backend {name} on this node"))
        .hint(format!("the backends enabled in its configuration are: {}", known.join(", ")))
}
