//! Volumes as thin devices of a device-mapper pool: they take the room of what is written, and
//! snapshots and clones share it, whatever their size.
//!
//! ```text
//!   devices or files      each with a header that says whose it is          storage, header
//!     -> metadata, data   parts of them as linear devices                   pool
//!       -> pool           one thin-pool over the two                        pool
//!         -> records      thin device 0: which device is what               ids, records
//!         -> volumes      a thin device for each generation and snapshot    volume, reading
//! ```

mod device_storage;
mod devices;
mod header;
mod health;
mod ids;
mod metadata;
mod names;
mod pool;
mod reading;
mod records;
mod repair;
mod snapshots;
mod status;
mod storage;
mod volume;
mod watch;

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::mpsc;

use self::pool::Pool;
use super::locks::VolumeLocks;
use super::notice::Notifier;
use super::{
    Attachment, Backend, BackendKind, BackendStatus, Description, Expected, Extents, Found, Grow,
    Locator, MountSource, Notice, NoticeKind, Pooled, Presence, Scope, Snapshots, Usage,
};
use crate::error::{Error, ErrorKind, Result};
use crate::id::{StorageId, VolumeUuid};
use crate::linux::blocking;
use crate::model::{Outcome, Volume};
use crate::name::BackendName;
use crate::units::{ByteSize, Percent};

/// For a change of a device or two. A device-mapper call that waits for udev can take long, and then
/// may still happen.
const QUICK: Duration = Duration::from_secs(60);
/// For what reads all of the pool's metadata.
const SLOW: Duration = Duration::from_secs(600);

/// Where and how a [`ThinBackend`] keeps its volumes.
#[derive(Debug, Clone)]
pub struct ThinConfig {
    /// The name by which users choose it.
    pub name: BackendName,
    /// What the pool lies on.
    pub storage: ThinStorage,
    /// The unit in which the pool gives out room, of a pool that is made: 64 KiB times any number up to
    /// 1 GiB (`DATA_DEV_BLOCK_SIZE_*` of the kernel's dm-thin.c).
    pub chunk_size: ByteSize,
    /// The size of a volume when the user names none.
    pub default_size: ByteSize,
    /// A pool on files grows when less than this share of its data is free.
    pub low_water: Percent,
    /// Nothing new is made when less than this share of data or metadata is free.
    pub min_free: Percent,
    /// Where a repair keeps copies of the metadata.
    pub copies: PathBuf,
}

/// What a pool lies on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ThinStorage {
    /// Block devices.
    Devices {
        /// Where the data is.
        data: PathBuf,
        /// Where the metadata is; if nowhere, the one device is divided.
        metadata: Option<PathBuf>,
    },
    /// Two files that we make and that grow.
    Files {
        /// The directory that they are in.
        directory: PathBuf,
        /// How much data they hold at first.
        size: ByteSize,
    },
}

impl fmt::Display for ThinStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Devices { data, metadata: None } => data.display().fmt(f),
            Self::Devices { data, metadata: Some(metadata) } => {
                write!(f, "{}, {}", data.display(), metadata.display())
            }
            Self::Files { directory, .. } => directory.display().fmt(f),
        }
    }
}

/// Volumes in a pool.
#[derive(Debug)]
pub struct ThinBackend {
    config: ThinConfig,
    expected: Expected,
    state: RwLock<State>,
    locks: VolumeLocks,
    notifier: Notifier,
    notices: Mutex<Option<mpsc::Receiver<Notice>>>,
}

/// Whether there is a pool to work with.
#[derive(Debug)]
enum State {
    Active(Arc<Pool>),
    /// It is damaged, and every call is told so. An administrator can look at it and mend it.
    Damaged(Error),
    Closed,
}

impl State {
    fn watched(pool: Pool, notifier: Notifier) -> Self {
        let pool = Arc::new(pool);
        watch::begin(&pool, notifier);
        Self::Active(pool)
    }
}

impl ThinBackend {
    /// Activates the pool, or makes it if its storage is blank. A pool that is damaged is left alone,
    /// and every call is told why.
    ///
    /// # Errors
    /// `InUse` if another daemon has the pool, `Conflict` if the storage holds something else,
    /// `Unavailable` if the pool is not the expected one, `Unsupported` if this host cannot.
    pub async fn open(config: ThinConfig, mut expected: Expected) -> Result<Self> {
        check_chunk_size(config.chunk_size)?;
        let (notifier, notices) = Notifier::channel();
        let state = match Pool::open(config.clone(), expected.clone()).await {
            Ok(pool) => {
                // From now on it is this pool and no other.
                expected = Expected::Storage(pool.names.storage());
                State::watched(pool, notifier.clone())
            }
            Err(error) if error.kind() == ErrorKind::Corrupt => {
                notifier.tell(NoticeKind::PoolDamaged, told(&error));
                State::Damaged(error)
            }
            Err(error) => return Err(error),
        };
        Ok(Self {
            config,
            expected,
            state: RwLock::new(state),
            locks: VolumeLocks::default(),
            notifier,
            notices: Mutex::new(Some(notices)),
        })
    }

    fn active(&self) -> Result<Arc<Pool>> {
        match &*self.state() {
            State::Active(pool) => Ok(Arc::clone(pool)),
            State::Damaged(error) => Err(error.again()),
            State::Closed => Err(closed()),
        }
    }

    /// Takes the pool away from everybody, once the work on it is done. `None` if there is none to
    /// take.
    ///
    /// # Errors
    /// `Busy` if work on it does not end; the pool stays in use then.
    async fn take_pool(&self) -> Result<Option<Pool>> {
        const LONGEST_PAUSE: Duration = Duration::from_secs(1);
        let state = std::mem::replace(&mut *self.state_mut(), State::Closed);
        let State::Active(mut pool) = state else {
            *self.state_mut() = state;
            return Ok(None);
        };
        let mut pause = Duration::from_millis(1);
        loop {
            match Arc::try_unwrap(pool) {
                Ok(pool) => return Ok(Some(pool)),
                Err(used) if pause > LONGEST_PAUSE => {
                    *self.state_mut() = State::Active(used);
                    return Err(Error::busy("the pool is still at work"));
                }
                Err(used) => pool = used,
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
    }

    fn state(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn state_mut(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs work that changes nothing of one volume.
    async fn run<T: Send + 'static>(
        &self,
        what: &str,
        limit: Duration,
        work: impl FnOnce(&Pool) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let pool = self.active()?;
        blocking::run(what, limit, move || work(&pool)).await
    }

    /// Runs work that changes `volume`, alone.
    async fn change<T: Send + 'static>(
        &self,
        volume: VolumeUuid,
        what: &str,
        work: impl FnOnce(&Pool) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let what = format!("{what} of {volume}");
        let guard = self.locks.lock(volume, QUICK).await?;
        let pool = self.active()?;
        let done = blocking::run(&what, QUICK, move || {
            let _guard = guard;
            work(&pool)
        });
        done.await.map_err(|error| error.context(format!("{what} in {}", self.config.name)))
    }
}

/// Resumes the devices of the pool that a killed daemon has left suspended. Makes nothing.
///
/// # Errors
/// `InUse` if another daemon has the pool.
pub async fn resume_interrupted(storage: ThinStorage) -> Result<Outcome> {
    blocking::run("resuming suspended devices", QUICK, move || pool::resume_interrupted(&storage))
        .await
}

/// An error and its way out as one sentence.
fn told(error: &Error) -> String {
    match error.hint_text() {
        Some(hint) => format!("{}; {hint}", error.full_message()),
        None => error.full_message(),
    }
}

fn closed() -> Error {
    Error::unavailable("the pool is closed: it is being mended, or the daemon stops")
}

fn check_chunk_size(size: ByteSize) -> Result<()> {
    const SMALLEST: u64 = 64 << 10;
    const LARGEST: u64 = 1 << 30;
    let bytes = size.bytes();
    if bytes.is_multiple_of(SMALLEST) && (SMALLEST..=LARGEST).contains(&bytes) {
        return Ok(());
    }
    Err(Error::invalid(format!("a pool cannot have chunks of {size}"))
        .hint("thin.chunk_size is 64K or a multiple of it, up to 1G"))
}

#[async_trait]
impl Backend for ThinBackend {
    fn name(&self) -> &BackendName {
        &self.config.name
    }

    fn kind(&self) -> BackendKind {
        BackendKind::Block
    }

    fn scope(&self) -> Scope {
        Scope::Local
    }

    fn default_size(&self) -> Option<ByteSize> {
        Some(self.config.default_size)
    }

    fn storage(&self) -> Result<StorageId> {
        self.active().map(|pool| pool.names.storage())
    }

    async fn status(&self) -> Result<BackendStatus> {
        if let State::Damaged(error) = &*self.state() {
            return Ok(BackendStatus {
                location: self.config.storage.to_string(),
                warnings: vec![told(error)],
                ..BackendStatus::default()
            });
        }
        self.run("asking the pool", QUICK, Pool::backend_status).await
    }

    async fn create(&self, volume: &Volume) -> Result<Outcome> {
        let (locator, size) = (Locator::from(volume), volume::device_size(volume)?);
        self.change(volume.uuid, "the creation", move |pool| pool.create(locator, size)).await
    }

    async fn delete(&self, volume: VolumeUuid) -> Result<Outcome> {
        self.change(volume, "the deletion", move |pool| pool.delete(volume)).await
    }

    async fn delete_generation(&self, locator: Locator) -> Result<Outcome> {
        self.change(locator.volume, "the deletion of a generation", move |pool| {
            pool.delete_generation(locator)
        })
        .await
    }

    async fn attach(&self, locator: Locator) -> Result<Attachment> {
        self.change(locator.volume, "the attachment", move |pool| {
            Ok(Attachment::lasting(MountSource::Device(pool.attach(locator)?)))
        })
        .await
    }

    async fn detach(&self, locator: Locator) -> Result<Outcome> {
        if matches!(*self.state(), State::Damaged(_)) {
            let detach = move || volume::detach_from_damaged(locator);
            return blocking::run("detaching from a damaged pool", QUICK, detach).await;
        }
        self.change(locator.volume, "the detachment", move |pool| pool.detach(locator)).await
    }

    async fn inspect(&self, locator: Locator) -> Result<Presence> {
        self.run("looking at a thin device", QUICK, move |pool| pool.inspect(locator)).await
    }

    async fn usage(&self, locator: Locator) -> Result<Usage> {
        self.run("measuring a thin device", SLOW, move |pool| pool.volume_usage(locator)).await
    }

    async fn describe(&self, description: &Description) -> Result<()> {
        let volume = description.volume.uuid;
        let text = serde_json::to_vec(description)
            .map_err(|error| Error::internal("cannot write a description").caused_by(error))?;
        self.change(volume, "the description", move |pool| pool.put_description(volume, &text))
            .await
    }

    async fn survey(&self) -> Result<Vec<Found>> {
        self.run("surveying the volumes", SLOW, Pool::survey).await
    }

    /// Deactivates the pool and everything below it, if no volume is attached and no snapshot is read: then
    /// the storage can be taken away.
    async fn stop(&self) -> Result<Outcome> {
        let Some(pool) = self.take_pool().await? else { return Ok(Outcome::Unchanged) };
        blocking::run("deactivating the pool", QUICK, move || pool.deactivate()).await
    }

    fn notices(&self) -> Option<mpsc::Receiver<Notice>> {
        self.notices.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn snapshots(&self) -> Option<&dyn Snapshots> {
        Some(self)
    }

    fn grow(&self) -> Option<&dyn Grow> {
        Some(self)
    }

    fn extents(&self) -> Option<&dyn Extents> {
        Some(self)
    }

    fn pool(&self) -> Option<&dyn Pooled> {
        Some(self)
    }
}

#[async_trait]
impl Grow for ThinBackend {
    async fn grow(&self, locator: Locator, size: ByteSize) -> Result<Outcome> {
        let size = volume::whole_sectors(size)?;
        self.change(locator.volume, "the growth", move |pool| pool.grow_volume(locator, size)).await
    }
}
