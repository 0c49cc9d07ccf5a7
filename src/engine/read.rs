use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::Engine;
use super::schedule::last_run;
use super::view::{
    BackendView, MountView, OperationState, OperationView, SnapshotView, StatusView, VolumeDetails,
    VolumeSummary,
};
use crate::backend::{Locator, MountSource, Presence, Usage};
use crate::catalog::State;
use crate::error::{Error, ErrorKind, Result};
use crate::id::{BootId, OperationId, VolumeUuid};
use crate::model::{MountLedger, RunKind, Snapshot, Subject, Volume};
use crate::name::{SnapshotRef, VolumeName};

/// How long a reader waits for a backend before it answers without it (rule 11).
pub(super) const BACKEND_PATIENCE: Duration = Duration::from_millis(500);
/// How old a usage may be before it is asked for again.
const USAGE_AGE: Duration = Duration::from_secs(10);

/// Usages as they were last told, or what is wrong with the volume.
pub(super) type UsageCache = HashMap<VolumeUuid, (Instant, Result<Usage, String>)>;

/// What mounted volumes are reached by, which stays while they are mounted; `None` is a backend that
/// did not tell when it was asked.
pub(super) type SourceCache = HashMap<VolumeUuid, (Instant, Option<String>)>;

/// Records of volumes that are no more leave a cache with all the others; asking again costs little.
const CACHED: usize = 100_000;

impl Engine {
    /// A volume that users may see, from memory.
    pub fn volume(&self, name: &VolumeName) -> Option<VolumeSummary> {
        let boot = self.inner.environment.host.boot_id();
        self.inner.catalog.read(|state| {
            state.named(name).filter(|v| v.is_ready()).map(|v| self.summary(state, v, boot))
        })
    }

    /// All volumes in whatever state, by name, from memory.
    pub fn volumes(&self) -> Vec<VolumeSummary> {
        let boot = self.inner.environment.host.boot_id();
        self.inner.catalog.read(|state| {
            let mut all: Vec<_> =
                state.volumes().map(|volume| self.summary(state, volume, boot)).collect();
            all.sort_by(|a, b| (&a.name, a.uuid).cmp(&(&b.name, b.uuid)));
            all
        })
    }

    /// Names of the volumes that users may see, and the directory for containers of those that are
    /// mounted; by name, from memory.
    pub fn docker_list(&self, visit: &mut dyn FnMut(&VolumeName, Option<&Path>)) {
        let boot = self.inner.environment.host.boot_id();
        self.inner.catalog.read(|state| {
            for volume in state.named_volumes().filter(|volume| volume.is_ready()) {
                let held = held_ledger(state, volume, boot).is_some();
                let directory = held.then(|| self.data_directory(&volume.name));
                visit(&volume.name, directory.as_deref());
            }
        });
    }

    /// All about a volume. Fails for no volume that exists: what a backend does not tell in time is
    /// left out.
    ///
    /// # Errors
    /// `NotFound` if there is no such volume.
    pub async fn details(&self, name: &VolumeName) -> Result<VolumeDetails> {
        let volume = self.ready(name)?;
        let boot = self.inner.environment.host.boot_id();
        let now = self.inner.environment.clock.now();
        let (ledger, snapshots, schedule, runs) = self.inner.catalog.read(|state| {
            (
                held_ledger(state, &volume, boot).cloned(),
                snapshot_views(state, &volume).collect::<Vec<_>>(),
                state
                    .schedule(volume.uuid)
                    .map(|active| self.schedule_view(state, &volume, active, now)),
                RunKind::ALL.map(|kind| last_run(state, &volume, kind)),
            )
        });
        let [last_snapshot_run, last_backup_run] = runs;
        let usage = self.usage(&volume).await;
        let (usage, health) = match usage {
            Ok(usage) => (Some(usage), "ok".to_owned()),
            Err(wrong) => (None, wrong),
        };
        let source = match &ledger {
            Some(_) => self.source(&volume).await,
            None => None,
        };
        let mounts =
            ledger.iter().flat_map(|ledger| &ledger.entries).map(|(id, entry)| MountView {
                id: id.clone(),
                count: entry.count,
                holder: entry.holder,
                since: entry.last_mounted,
            });
        Ok(VolumeDetails {
            name: volume.name.clone(),
            uuid: volume.uuid,
            backend: volume.backend.clone(),
            size: volume.size,
            used: usage.map(|usage| usage.allocated),
            exclusive: usage.and_then(|usage| usage.exclusive),
            state: volume.state.as_str().to_owned(),
            health,
            filesystem: volume.filesystem,
            mountpoint: ledger.is_some().then(|| self.data_directory(&volume.name)),
            source,
            mounts: mounts.collect(),
            node: self.inner.config.node.clone(),
            snapshots,
            options: volume.options.clone(),
            labels: volume.labels.clone(),
            created: volume.created,
            last_backup: self.inner.config.repositories.last_backups().get(&volume.uuid).copied(),
            schedule,
            last_snapshot_run,
            last_backup_run,
        })
    }

    /// The snapshots of one volume or of all that users may see, oldest first in each.
    ///
    /// # Errors
    /// `NotFound` if there is no such volume.
    pub fn snapshots(&self, volume: Option<&VolumeName>) -> Result<Vec<SnapshotView>> {
        if let Some(name) = volume {
            let volume = self.ready(name)?;
            return Ok(self.inner.catalog.read(|state| snapshot_views(state, &volume).collect()));
        }
        Ok(self.inner.catalog.read(|state| {
            let ready = state.named_volumes().filter(|volume| volume.is_ready());
            ready.flat_map(|volume| snapshot_views(state, volume)).collect()
        }))
    }

    /// One snapshot.
    ///
    /// # Errors
    /// `NotFound` if there is no such volume or snapshot.
    pub fn snapshot(&self, reference: &SnapshotRef) -> Result<SnapshotView> {
        let volume = self.ready(&reference.volume)?;
        let snapshot = self.complete_snapshot(&volume, &reference.snapshot)?;
        Ok(snapshot_view(&volume, &snapshot))
    }

    /// Operations that run, that are stuck, and the last ones that are over.
    pub fn operations(&self) -> Vec<OperationView> {
        let mut stuck: Vec<OperationView> = self.inner.catalog.read(|state| {
            let left = state.operations().filter(|op| !self.inner.registry.is_running(op.id));
            left.map(|operation| OperationView {
                id: operation.id,
                kind: operation.kind.as_str().to_owned(),
                subject: Subject::Volume(operation.name.clone()),
                state: OperationState::Stuck,
                done: 0,
                total: 0,
                started: operation.started,
                finished: None,
                error: self.inner.registry.view(operation.id).and_then(|view| view.error),
                report: Vec::new(),
            })
            .collect()
        });
        let told = self.inner.registry.views();
        let told: Vec<_> =
            told.into_iter().filter(|view| stuck.iter().all(|one| one.id != view.id)).collect();
        stuck.extend(told);
        stuck
    }

    /// One operation.
    ///
    /// # Errors
    /// `NotFound` if none of this id runs or is remembered.
    pub fn operation(&self, id: OperationId) -> Result<OperationView> {
        self.operations().into_iter().find(|view| view.id == id).ok_or_else(|| {
            Error::not_found(format!("there is no operation {id}")).hint(
                "see `holdfast operation ls`; the daemon remembers the last ones until it stops",
            )
        })
    }

    /// Asks a running operation to end where it can be undone, and tells how it stands.
    ///
    /// # Errors
    /// `NotFound` if there is none; `Conflict` if it does not run any more; `Unsupported` for a kind that
    /// goes on to its end.
    pub fn cancel(&self, id: OperationId) -> Result<OperationView> {
        if let Some(running) = self.inner.registry.cancel(id)? {
            return Ok(running);
        }
        let over = self.operation(id)?;
        let what = format!("the {} of {}", over.kind, over.subject);
        Err(match over.state {
            OperationState::Stuck => Error::conflict(format!(
                "{what} is stuck, and does not run now"
            ))
            .hint("it is cleaned up as soon as that is possible; see `holdfast operation ls`"),
            _ => Error::conflict(format!("{what} is over")),
        })
    }

    /// The node on one screen.
    pub async fn status(&self) -> StatusView {
        let boot = self.inner.environment.host.boot_id();
        let mut volumes: BTreeMap<String, usize> = BTreeMap::new();
        let mut per_backend: HashMap<_, usize> = HashMap::new();
        let mounted = self.inner.catalog.read(|state| {
            for volume in state.volumes() {
                *volumes.entry(volume.state.as_str().to_owned()).or_default() += 1;
                *per_backend.entry(volume.backend.clone()).or_default() += 1;
            }
            state.ledgers().filter(|(_, ledger)| ledger.boot == boot).count()
        });
        let mut warnings =
            self.inner.warnings.lock().unwrap_or_else(PoisonError::into_inner).clone();
        warnings.extend(self.schedule_warnings());
        match tokio::time::timeout(BACKEND_PATIENCE, self.stray_warnings()).await {
            Ok(Ok(strays)) => warnings.extend(strays),
            Ok(Err(error)) => warnings.push(error.full_message()),
            Err(_) => warnings.push("the list of mounts does not come".to_owned()),
        }
        let pools = {
            let engine = self.clone();
            tokio::spawn(async move { engine.pools().await })
        };
        let asked = self.inner.backends.values().map(|backend| {
            let backend = Arc::clone(backend);
            tokio::spawn(
                async move { tokio::time::timeout(BACKEND_PATIENCE, backend.status()).await },
            )
        });
        let asked: Vec<_> = asked.collect();
        let mut backends = Vec::with_capacity(asked.len());
        for (name, answer) in self.inner.backends.keys().zip(asked) {
            let status = match answer.await {
                Ok(Ok(Ok(status))) => Some(status),
                Ok(Ok(Err(error))) => {
                    let hint = error.hint_text().map(|hint| format!("; {hint}"));
                    let hint = hint.unwrap_or_default();
                    warnings.push(format!("backend {name}: {}{hint}", error.full_message()));
                    None
                }
                _ => {
                    warnings.push(format!("backend {name} does not answer"));
                    None
                }
            };
            let told = status.iter().flat_map(|status| &status.warnings);
            warnings.extend(told.map(|warning| format!("backend {name}: {warning}")));
            backends.push(BackendView {
                name: name.clone(),
                default: *name == self.inner.config.default_backend,
                volumes: per_backend.get(name).copied().unwrap_or(0),
                status,
            });
        }
        let open = [OperationState::Running, OperationState::Stuck];
        StatusView {
            node: self.inner.config.node.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            scope: self.scope(),
            backends,
            pools: pools.await.unwrap_or_default(),
            volumes,
            mounted,
            operations: self.operations().into_iter().filter(|v| open.contains(&v.state)).collect(),
            warnings,
        }
    }

    fn summary(&self, state: &State, volume: &Volume, boot: BootId) -> VolumeSummary {
        let ledger = held_ledger(state, volume, boot);
        VolumeSummary {
            name: volume.name.clone(),
            uuid: volume.uuid,
            backend: volume.backend.clone(),
            size: volume.size,
            filesystem: volume.filesystem,
            state: volume.state.as_str().to_owned(),
            mountpoint: ledger.map(|_| self.data_directory(&volume.name)),
            mounts: ledger.map_or(0, |l| l.entries.values().map(|entry| entry.count).sum()),
            snapshots: state.snapshots(volume.uuid).iter().filter(|s| s.complete).count(),
            created: volume.created,
        }
    }

    /// Room that the volume takes, as told not long ago or asked for now, or what is wrong with it.
    async fn usage(&self, volume: &Volume) -> Result<Usage, String> {
        let now = Instant::now();
        let known = self.usage_cache().get(&volume.uuid).cloned();
        if let Some((told, usage)) = known {
            if now.duration_since(told) >= USAGE_AGE {
                // One asks; the others go on with what is known.
                self.usage_cache().insert(volume.uuid, (now, usage.clone()));
                let (engine, volume) = (self.clone(), volume.clone());
                tokio::spawn(async move { engine.ask_usage(&volume).await });
            }
            return usage;
        }
        self.ask_usage(volume).await
    }

    async fn ask_usage(&self, volume: &Volume) -> Result<Usage, String> {
        let name = &volume.backend;
        let backend = self.backend(name).map_err(|error| error.full_message())?;
        let asked = backend.usage(Locator::from(volume));
        let usage = match tokio::time::timeout(BACKEND_PATIENCE, asked).await {
            Ok(Ok(usage)) => Ok(usage),
            Ok(Err(error)) if error.kind() == ErrorKind::NotFound => {
                Err(format!("its data is not in the backend {name}: {}", error.full_message()))
            }
            Ok(Err(error)) => Err(error.full_message()),
            Err(_) => Err(format!("the backend {name} does not answer for it")),
        };
        let mut cache = self.usage_cache();
        if cache.len() > CACHED {
            cache.clear();
        }
        cache.insert(volume.uuid, (Instant::now(), usage.clone()));
        usage
    }

    fn usage_cache(&self) -> std::sync::MutexGuard<'_, UsageCache> {
        self.inner.usage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the mounted volume is reached by on this host: as it was mounted by, or, if that was before
    /// this daemon's start, as its backend tells if it does so in time.
    async fn source(&self, volume: &Volume) -> Option<String> {
        let now = Instant::now();
        let known = self.source_cache().get(&volume.uuid).cloned();
        match known {
            Some((_, Some(source))) => Some(source),
            Some((asked, None)) => {
                if now.duration_since(asked) >= USAGE_AGE {
                    self.source_cache().insert(volume.uuid, (now, None));
                    let (engine, volume) = (self.clone(), volume.clone());
                    tokio::spawn(async move { engine.ask_source(&volume).await });
                }
                None
            }
            None => self.ask_source(volume).await,
        }
    }

    async fn ask_source(&self, volume: &Volume) -> Option<String> {
        let backend = self.backend(&volume.backend).ok()?;
        let asked = backend.inspect(Locator::from(volume));
        let told = match tokio::time::timeout(BACKEND_PATIENCE, asked).await {
            Ok(Ok(Presence::Present { attached: Some(source), .. })) => Some(source_text(&source)),
            _ => None,
        };
        let mut cache = self.source_cache();
        let entry = cache.entry(volume.uuid).or_insert((Instant::now(), None));
        // A mount since then knows better.
        if entry.1.is_none() {
            *entry = (Instant::now(), told);
        }
        entry.1.clone()
    }

    /// Keeps what the volume is mounted by, so that nobody has to ask for it.
    pub(super) fn remember_source(&self, volume: &Volume, source: &MountSource) {
        let mut cache = self.source_cache();
        if cache.len() > CACHED {
            cache.clear();
        }
        cache.insert(volume.uuid, (Instant::now(), Some(source_text(source))));
    }

    fn source_cache(&self) -> std::sync::MutexGuard<'_, SourceCache> {
        self.inner.sources.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn source_text(source: &MountSource) -> String {
    match source {
        MountSource::Device(device) => device.display().to_string(),
        MountSource::Export { source, .. } => source.clone(),
    }
}

/// The volume's ledger if anybody holds it in this run of the kernel.
fn held_ledger<'a>(
    state: &'a State,
    volume: &Volume,
    boot: BootId,
) -> Option<&'a Arc<MountLedger>> {
    state.ledger(volume.uuid).filter(|ledger| ledger.boot == boot)
}

fn snapshot_views<'a>(
    state: &'a State,
    volume: &'a Volume,
) -> impl Iterator<Item = SnapshotView> + 'a {
    let complete = state.snapshots(volume.uuid).iter().filter(|snapshot| snapshot.complete);
    complete.map(|snapshot| snapshot_view(volume, snapshot))
}

fn snapshot_view(volume: &Volume, snapshot: &Snapshot) -> SnapshotView {
    SnapshotView {
        volume: volume.name.clone(),
        name: snapshot.name.clone(),
        uuid: snapshot.uuid,
        size: snapshot.size,
        origin: snapshot.origin,
        created: snapshot.created,
    }
}
