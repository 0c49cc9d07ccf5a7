//! Numbers for monitoring, from memory.

use std::collections::BTreeMap;
use std::sync::PoisonError;
use std::time::Duration;

use tokio::time::Instant;

use super::Engine;
use super::view::PoolView;
use crate::model::RunKind;
use crate::name::{BackendName, VolumeName};

/// How old the pools' levels may be before they are asked for again.
const POOLS_AGE: Duration = Duration::from_secs(10);

/// The pools as they were last told.
pub(super) type PoolCache = Option<(Instant, Vec<PoolView>)>;

/// What kind of operation, on what: `volume`, `pool` or `repository`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Work {
    /// `create`, `grow` and so on.
    pub kind: &'static str,
    /// `volume`, `pool` or `repository`.
    pub subject: &'static str,
}

/// Numbers of this node.
#[derive(Debug, Clone, Default)]
pub struct Figures {
    /// Volumes by backend and state.
    pub volumes: BTreeMap<(BackendName, &'static str), u64>,
    /// Volumes that are mounted here.
    pub mounted: u64,
    /// Operations that run.
    pub running: BTreeMap<Work, u64>,
    /// Operations that are over since the start, and whether they failed.
    pub over: BTreeMap<(Work, bool), u64>,
    /// Runs of schedules that are over since the start, and whether they failed.
    pub scheduled: BTreeMap<(RunKind, bool), u64>,
    /// How old the last backup by its schedule is, of each volume that has one.
    pub backup_ages: BTreeMap<VolumeName, Duration>,
    /// The pools, as they were some seconds ago.
    pub pools: Vec<PoolView>,
}

impl Engine {
    /// Numbers of this node. Asks no backend, but for the pools when it is called first.
    pub async fn figures(&self) -> Figures {
        let boot = self.inner.environment.host.boot_id();
        let now = self.inner.environment.clock.now();
        let backups = self.inner.config.repositories.last_backups();
        let mut figures = self.inner.catalog.read(|state| {
            let mut figures = Figures::default();
            for volume in state.volumes() {
                let key = (volume.backend.clone(), volume.state.as_str());
                *figures.volumes.entry(key).or_default() += 1;
            }
            let mounted = state.ledgers().filter(|(_, ledger)| ledger.boot == boot);
            figures.mounted = mounted.count() as u64;
            let ready = state.named_volumes().filter(|volume| volume.is_ready());
            let ages = ready.filter_map(|volume| {
                let made = *backups.get(&volume.uuid)?;
                // Of a backup that is to come, by a clock that was set back, it is nothing.
                let age = Duration::try_from(now.duration_since(made)).unwrap_or_default();
                Some((volume.name.clone(), age))
            });
            figures.backup_ages = ages.collect();
            figures
        });
        (figures.running, figures.over) = self.inner.registry.counts();
        figures.scheduled = self.inner.scheduler.counts();
        figures.pools = self.pools_lately().await;
        figures
    }

    async fn pools_lately(&self) -> Vec<PoolView> {
        let now = Instant::now();
        let known = {
            let mut cache = self.pool_cache();
            let is_old = |told: Instant| now.duration_since(told) >= POOLS_AGE;
            match &mut *cache {
                Some((told, pools)) if is_old(*told) => {
                    // One asks; the others go on with what is known.
                    *told = now;
                    let engine = self.clone();
                    tokio::spawn(async move { engine.ask_pools().await });
                    Some(pools.clone())
                }
                Some((_, pools)) => Some(pools.clone()),
                None => None,
            }
        };
        match known {
            Some(pools) => pools,
            None => self.ask_pools().await,
        }
    }

    async fn ask_pools(&self) -> Vec<PoolView> {
        let pools = self.pools().await;
        *self.pool_cache() = Some((Instant::now(), pools.clone()));
        pools
    }

    fn pool_cache(&self) -> std::sync::MutexGuard<'_, PoolCache> {
        self.inner.pools.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
