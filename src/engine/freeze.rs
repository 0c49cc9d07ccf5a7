//! Freezing a mounted filesystem while it is copied, and thawing it on every path (rule 14): whoever
//! writes to a filesystem that stays frozen hangs for ever.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::Engine;
use super::change::Work;
use crate::error::{Error, ErrorKind, Result};
use crate::failpoint::Step;
use crate::linux::Host;
use crate::model::{Operation, OperationKind, Outcome, Volume};
use crate::name::VolumeName;

/// How often a thaw is tried before it is left for later.
const THAW_TRIES: u32 = 5;
/// How long a start or an end waits for thaws. The kernel answers at once, if it answers.
const THAW_PATIENCE: Duration = Duration::from_secs(10);

/// Where a filesystem is being frozen or thawed.
#[derive(Debug, Default)]
pub(super) struct Freezes {
    places: watch::Sender<BTreeSet<PathBuf>>,
    /// The daemon ends: nothing is frozen any more.
    over: watch::Sender<bool>,
}

/// The right to freeze and thaw what is mounted at one place. Dropped on the way, by a panic or
/// because its task is gone, it thaws.
#[derive(Debug)]
struct Freezing {
    engine: Engine,
    place: PathBuf,
    thawed: bool,
}

impl Freezing {
    async fn begin(engine: &Engine, place: PathBuf) -> Result<Self> {
        let freezes = &engine.inner.freezes;
        let mut places = freezes.places.subscribe();
        let ours = async {
            while !freezes.places.send_if_modified(|places| places.insert(place.clone())) {
                let free = places.wait_for(|places| !places.contains(&place)).await;
                // The sender lives as long as the engine does.
                drop(free);
            }
        };
        tokio::time::timeout(THAW_PATIENCE, ours).await.map_err(|_| {
            Error::busy(format!("{} is still being thawed", place.display()))
                .hint("see `holdfast status`, and try again")
        })?;
        // Not thawed only once somebody may have frozen it.
        Ok(Self { engine: engine.clone(), place, thawed: true })
    }

    async fn freeze(&mut self) -> Result<Outcome> {
        self.thawed = false;
        self.engine.inner.environment.host.freeze(&self.place).await
    }

    async fn thaw(mut self) -> Result<()> {
        self.thawed = false;
        let thawed = self.engine.try_thaw(&self.place).await;
        self.thawed = true;
        thawed
    }
}

impl Drop for Freezing {
    fn drop(&mut self) {
        let (engine, place) = (self.engine.clone(), std::mem::take(&mut self.place));
        let leave = move |engine: &Engine, place: &Path| {
            engine.inner.freezes.places.send_modify(|places| {
                places.remove(place);
            });
        };
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) if !self.thawed => drop(runtime.spawn(async move {
                // A failure is among the warnings.
                let _ = engine.try_thaw(&place).await;
                leave(&engine, &place);
            })),
            _ => leave(&engine, &place),
        }
    }
}

impl Work {
    /// Freezes `volume` if one is given, copies, and thaws on every path.
    pub(super) async fn cut(
        &self,
        volume: Option<&Volume>,
        [freeze, copy, thaw]: [Step; 3],
        content: impl AsyncFnOnce(Option<Duration>) -> Result<Outcome>,
    ) -> Result<()> {
        let Some(volume) = volume else {
            return self.step(copy, content(None)).await.map(Outcome::ignore);
        };
        let host = &self.engine.inner.environment.host;
        let target = self.engine.target(&volume.name);
        let mut freezing = Freezing::begin(&self.engine, target.clone()).await?;
        let mut over = self.engine.inner.freezes.over.subscribe();
        if *over.borrow() {
            return Err(stopping());
        }
        // What is written out now need not be while everybody waits.
        host.flush(&target).await?;
        // Writers wait from the beginning of the freeze, not from its end. It is waited for in any case:
        // what is on its way cannot be thawed. One that failed may have happened.
        let began = Instant::now();
        let frozen = freezing.freeze().await;
        let limit = self.engine.inner.config.freeze_limit;
        let left = limit.saturating_sub(began.elapsed());
        let frozen = match left {
            Duration::ZERO => frozen.and(Err(too_slow(volume, limit))),
            _ => frozen,
        };
        let copied = tokio::select! {
            biased;
            _ = over.wait_for(|over| *over) => Err(stopping()),
            copied = async {
                self.step(freeze, std::future::ready(frozen)).await?;
                self.step(copy, content(Some(left))).await
            } => copied,
        };
        let thawed = freezing.thaw().await;
        copied?;
        self.step(thaw, std::future::ready(thawed)).await
    }
}

impl Engine {
    /// Breaks off what holds a filesystem frozen, and thaws it: the last thing that a daemon does,
    /// however it ends.
    pub async fn end_freezes(&self) {
        let freezes = &self.inner.freezes;
        freezes.over.send_replace(true);
        let mut places = freezes.places.subscribe();
        let none = places.wait_for(BTreeSet::is_empty);
        if tokio::time::timeout(THAW_PATIENCE, none).await.is_err() {
            for place in freezes.places.borrow().iter() {
                tracing::error!("{}", may_be_frozen(place));
            }
        }
    }

    /// The volume that the operation may hold frozen.
    pub(super) fn frozen_by(&self, operation: &Operation) -> Option<Arc<Volume>> {
        let volume = match operation.kind {
            OperationKind::Snapshot { .. } => operation.volume,
            OperationKind::Create { frozen } => frozen?,
            _ => return None,
        };
        self.inner.catalog.read(|state| state.volume(volume).cloned())
    }

    /// Thaws what an interrupted operation may have left frozen.
    pub(super) async fn thaw_after(&self, operation: &Operation) -> Result<()> {
        let Some(volume) = self.frozen_by(operation) else { return Ok(()) };
        if self.mounted(&volume).await?.is_none() {
            return Ok(());
        }
        Freezing::begin(self, self.target(&volume.name)).await?.thaw().await
    }

    /// The names whose owner may clean up after the operation.
    pub(super) fn names_of(&self, operation: &Operation) -> Vec<VolumeName> {
        let volume = self.inner.catalog.read(|state| state.volume(operation.volume).cloned());
        let name = volume.map_or_else(|| operation.name.clone(), |volume| volume.name.clone());
        let mut names = vec![name];
        names.extend(self.frozen_by(operation).map(|volume| volume.name.clone()));
        names
    }

    async fn try_thaw(&self, place: &Path) -> Result<()> {
        let host = &self.inner.environment.host;
        let mut tries = 0;
        loop {
            tries += 1;
            match host.thaw(place).await {
                Ok(_) => {
                    self.unwarn(&may_be_frozen(place));
                    return Ok(());
                }
                // Unmounted meanwhile, by somebody else.
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
                Err(error) if tries >= THAW_TRIES => {
                    self.warn(format!("{}: {}", may_be_frozen(place), error.full_message()));
                    return Err(error);
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }
}

/// Thaws every filesystem that is mounted where volumes are, and says what could not be thawed. Needs
/// no catalog, which may be lost or unreadable; whoever calls it knows that no other daemon works there.
pub async fn thaw_all(host: &Arc<dyn Host>, mount_dir: &Path) -> Vec<String> {
    let below = tokio::time::timeout(THAW_PATIENCE, host.mounts_below(mount_dir)).await;
    let mounts = match below {
        Ok(Ok(mounts)) => mounts,
        Ok(Err(error)) => return vec![error.full_message()],
        Err(_) => return vec![format!("cannot list the mounts below {}", mount_dir.display())],
    };
    let mut left: BTreeSet<PathBuf> = mounts
        .into_iter()
        .map(|mount| mount.target)
        .filter(|target| target.parent() == Some(mount_dir))
        .collect();
    let mut thaws = JoinSet::new();
    for place in left.clone() {
        let host = Arc::clone(host);
        thaws.spawn(async move {
            let thawed = host.thaw(&place).await;
            (place, thawed)
        });
    }
    let mut failed = Vec::new();
    let all = async {
        while let Some(done) = thaws.join_next().await {
            let Ok((place, thawed)) = done else { continue };
            left.remove(&place);
            match thawed {
                Ok(Outcome::Changed) => {
                    tracing::warn!(place = %place.display(), "it was left frozen; thawed it");
                }
                Ok(Outcome::Unchanged) => {}
                // Gone meanwhile, or nothing that can be frozen.
                Err(error)
                    if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Unsupported) => {}
                Err(error) => {
                    failed.push(format!("{}: {}", may_be_frozen(&place), error.full_message()));
                }
            }
        }
    };
    let in_time = tokio::time::timeout(THAW_PATIENCE, all).await;
    if in_time.is_err() {
        failed.extend(left.iter().map(|place| may_be_frozen(place)));
    }
    failed
}

fn too_slow(volume: &Volume, limit: Duration) -> Error {
    Error::busy(format!(
        "volume {} could not be frozen within the limit of {} s",
        volume.name,
        limit.as_secs()
    ))
    .hint("its containers write more than its disk takes: try again later, or raise freeze_limit")
}

fn stopping() -> Error {
    Error::unavailable("the daemon stops").hint("try again when it runs")
}

fn may_be_frozen(place: &Path) -> String {
    let place = place.display();
    format!("{place} may still be frozen; run `fsfreeze --unfreeze {place}`")
}
