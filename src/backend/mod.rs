//! Where volumes live. A backend is the truth about storage; the catalog is the truth about intent.
//!
//! Every call is idempotent and takes names chosen before (a volume's uuid and generation, a
//! snapshot's uuid), so that the engine can repeat it after a crash. What a backend can do beyond
//! the minimum is told by the capability traits that it gives out; nothing answers "unsupported" at
//! run time that the types could say. A new backend is one folder here and one line in
//! [`crate::daemon`].

pub mod contract;
pub mod fault;
mod locks;
pub mod loopback;
mod notice;
pub mod sim;
mod storage;
pub mod thin;
mod unavailable;

pub use storage::Expected;
pub use unavailable::{About, UnavailableBackend};

use std::any::Any;
use std::fmt::Debug;
use std::fs::File;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
pub use notice::{Notice, NoticeKind};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::error::Result;
use crate::id::{Generation, PoolUuid, SnapshotUuid, StorageId, VolumeUuid};
use crate::model::{Outcome, Progress, Snapshot, Volume};
use crate::name::BackendName;
use crate::units::ByteSize;

/// The content of one volume at one generation: what a backend keeps a device or directory for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Locator {
    /// The volume.
    pub volume: VolumeUuid,
    /// Its generation.
    pub generation: Generation,
}

impl From<&Volume> for Locator {
    fn from(volume: &Volume) -> Self {
        Self { volume: volume.uuid, generation: volume.generation }
    }
}

/// Content that can be copied into a new generation or a new volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContentRef {
    /// A volume as it is now; frozen or not mounted while it is copied.
    Live(Locator),
    /// A snapshot.
    Snapshot {
        /// The volume that it was cut from.
        volume: VolumeUuid,
        /// The snapshot.
        snapshot: SnapshotUuid,
    },
}

/// Whether a backend gives devices or directories.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackendKind {
    /// A block device, on which we put a filesystem.
    Block,
    /// A directory of a remote filesystem.
    File,
}

/// From where a backend's volumes can be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Only from this host.
    Local,
    /// From any node.
    Global,
}

/// What is mounted to reach a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MountSource {
    /// A block device of this host, its identity proved.
    Device(PathBuf),
    /// A remote filesystem.
    Export {
        /// The filesystem's type, such as `nfs4`.
        filesystem: String,
        /// Server and path.
        source: String,
        /// Mount options that the backend needs.
        options: Vec<String>,
    },
}

/// A volume that this host can reach. While the value lives, the device stays; once it is mounted,
/// the mount holds it.
#[derive(Debug)]
pub struct Attachment {
    /// What to mount.
    pub source: MountSource,
    /// Keeps the device from going away between attach and mount.
    _hold: Option<Box<dyn Hold>>,
}

trait Hold: Any + Debug + Send + Sync {}
impl<T: Any + Debug + Send + Sync> Hold for T {}

impl Attachment {
    /// An attachment that lasts without being held.
    pub fn lasting(source: MountSource) -> Self {
        Self { source, _hold: None }
    }

    /// An attachment that lasts while `hold` lives.
    pub fn held_by(source: MountSource, hold: impl Any + Debug + Send + Sync) -> Self {
        Self { source, _hold: Some(Box::new(hold)) }
    }
}

/// A snapshot that is open for reading. While the value lives, the snapshot can be read. Dropping it waits
/// for nothing.
#[derive(Debug)]
pub struct SnapshotImage {
    /// All that the snapshot holds and nothing else. It can only be read; reads at positions do not disturb
    /// each other.
    pub file: File,
    /// How long it is, in bytes.
    pub size: u64,
    /// Keeps the device from going away; below the file, so that it goes after it.
    _hold: Option<Box<dyn Hold>>,
}

impl SnapshotImage {
    /// An image that lasts while its file is open.
    pub fn lasting(file: File, size: u64) -> Self {
        Self { file, size, _hold: None }
    }

    /// An image that lasts while `hold` lives.
    pub fn held_by(file: File, size: u64, hold: impl Any + Debug + Send + Sync) -> Self {
        Self { file, size, _hold: Some(Box::new(hold)) }
    }
}

/// What really exists of a volume's generation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Presence {
    /// Nothing.
    Absent,
    /// It exists.
    Present {
        /// Size of its device; none on a file backend.
        size: Option<ByteSize>,
        /// What this host reaches it by, if it is attached here.
        attached: Option<MountSource>,
    },
}

/// Room that a volume takes in its backend.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Bytes allocated for the volume's present content.
    pub allocated: u64,
    /// Bytes of that which no snapshot and no other volume shares, where the backend knows: what
    /// deleting this content alone would give back.
    #[serde(default)]
    pub exclusive: Option<u64>,
    /// Bytes allocated for its snapshots; what they share with it may be counted again.
    pub snapshots: u64,
}

/// Room in a backend as a whole, and what is wrong with it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendStatus {
    /// Bytes in all.
    pub total: Option<u64>,
    /// Bytes free.
    pub free: Option<u64>,
    /// Where it keeps its volumes.
    pub location: String,
    /// What an administrator should know or mend, as sentences.
    pub warnings: Vec<String>,
}

/// All that the catalog knows of a volume, kept with its data so that a lost catalog can be rebuilt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    /// The volume.
    pub volume: Volume,
    /// Its snapshots.
    pub snapshots: Vec<Snapshot>,
    /// The user removed it and asked to keep its data: it is not to be taken up again by itself.
    #[serde(default)]
    pub retained: bool,
}

/// A volume found in a backend.
#[derive(Debug)]
pub struct Found {
    /// Which one.
    pub volume: VolumeUuid,
    /// Its description, or why it cannot be read.
    pub description: Result<Description>,
}

/// What every backend does. All calls are idempotent; all may be abandoned by their caller, and then
/// may or may not have happened. None of them blocks the async threads.
#[async_trait]
pub trait Backend: Debug + Send + Sync {
    /// The name by which users choose it.
    fn name(&self) -> &BackendName;

    /// Devices or directories.
    fn kind(&self) -> BackendKind;

    /// From where its volumes can be reached.
    fn scope(&self) -> Scope;

    /// The size of a volume when the user names none; `None` where size means nothing.
    fn default_size(&self) -> Option<ByteSize>;

    /// Which storage its volumes lie on: the same in every run and wherever it is mounted, and never
    /// that of another one. Without it the backend is not used.
    ///
    /// An implementation that is opened for [`Expected`] storage makes nothing, not even a lock,
    /// where that is not found.
    fn storage(&self) -> Result<StorageId>;

    /// Room and health.
    async fn status(&self) -> Result<BackendStatus>;

    /// Makes the storage of `volume` (its uuid, generation and size), holding nothing but zeros or no
    /// file. Atomic: afterwards it exists whole or not at all. `Unchanged` if it exists already.
    async fn create(&self, volume: &Volume) -> Result<Outcome>;

    /// Deletes all that is kept for the volume: every generation, snapshot and description.
    /// Fails with `InUse` if anything of it is attached. Once begun, only a repeat can follow.
    async fn delete(&self, volume: VolumeUuid) -> Result<Outcome>;

    /// Deletes one generation of a volume and nothing else of it.
    async fn delete_generation(&self, locator: Locator) -> Result<Outcome>;

    /// Lets this host reach the volume and proves that what it reaches is the volume. Repeating gives
    /// the same attachment.
    async fn attach(&self, locator: Locator) -> Result<Attachment>;

    /// Takes the volume away from this host. Fails with `InUse` while anything has it mounted or open.
    async fn detach(&self, locator: Locator) -> Result<Outcome>;

    /// What really exists.
    async fn inspect(&self, locator: Locator) -> Result<Presence>;

    /// Room taken.
    async fn usage(&self, locator: Locator) -> Result<Usage>;

    /// Keeps `description` with the volume's data, atomically in place of the one before.
    async fn describe(&self, description: &Description) -> Result<()>;

    /// All volumes that the backend holds, whether the catalog knows them or not.
    async fn survey(&self) -> Result<Vec<Found>>;

    /// Lets go of what only a running daemon needs; what is attached stays. Called once, last of all.
    async fn stop(&self) -> Result<Outcome> {
        Ok(Outcome::Unchanged)
    }

    /// What it notices by itself. Given out once, to whoever asks first.
    fn notices(&self) -> Option<mpsc::Receiver<Notice>> {
        None
    }

    /// Snapshots and clones, if it has them.
    fn snapshots(&self) -> Option<&dyn Snapshots> {
        None
    }

    /// Growing, if it can.
    fn grow(&self) -> Option<&dyn Grow> {
        None
    }

    /// The pool that its volumes share, if they do.
    fn pool(&self) -> Option<&dyn Pooled> {
        None
    }

    /// The bytes of its snapshots, and knowledge of which hold data and which changed, if it has it.
    fn extents(&self) -> Option<&dyn Extents> {
        None
    }
}

/// What cutting or copying content will cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopyCost {
    /// Blocks are shared; the time does not grow with the data.
    Shared,
    /// Every allocated byte is copied.
    Full {
        /// Bytes to copy.
        bytes: u64,
        /// How long it should take.
        estimate: Duration,
    },
}

/// Points in time of a volume.
#[async_trait]
pub trait Snapshots: Debug + Send + Sync {
    /// What copying `content` would cost, found out without copying.
    async fn copy_cost(&self, content: ContentRef) -> Result<CopyCost>;

    /// Cuts a snapshot of the volume as it is now; the caller has frozen it or it is not mounted.
    /// Atomic: the snapshot exists whole or not at all. Gives up with `Busy`, leaving nothing, when
    /// `limit` is over.
    async fn snapshot(
        &self,
        locator: Locator,
        snapshot: SnapshotUuid,
        progress: &Arc<Progress>,
        limit: Option<Duration>,
    ) -> Result<Outcome>;

    /// Deletes a snapshot.
    async fn delete_snapshot(&self, volume: VolumeUuid, snapshot: SnapshotUuid) -> Result<Outcome>;

    /// Makes the storage of `target` (uuid, generation, size) with the content of `source`, zeros behind
    /// it where `target` is larger. Atomic like `create`; gives up like `snapshot`.
    async fn create_from(
        &self,
        source: ContentRef,
        target: &Volume,
        progress: &Arc<Progress>,
        limit: Option<Duration>,
    ) -> Result<Outcome>;
}

/// Larger devices.
#[async_trait]
pub trait Grow: Debug + Send + Sync {
    /// Makes the device `size` bytes large, attached or not; never smaller. The filesystem is the
    /// caller's to grow.
    async fn grow(&self, locator: Locator, size: ByteSize) -> Result<Outcome>;
}

/// The bytes of snapshots, for incremental copies: which ranges hold data, and the bytes themselves. Never
/// guesses: what is not sure is allocated or changed.
#[async_trait]
pub trait Extents: Debug + Send + Sync {
    /// Ranges of the snapshot that may hold anything but zeros, ascending and disjoint.
    async fn allocated_extents(
        &self,
        volume: VolumeUuid,
        snapshot: SnapshotUuid,
    ) -> Result<Vec<Range<u64>>>;

    /// Ranges in which `snapshot` may differ from `base`, ascending and disjoint.
    async fn changed_extents(
        &self,
        volume: VolumeUuid,
        base: SnapshotUuid,
        snapshot: SnapshotUuid,
    ) -> Result<Vec<Range<u64>>>;

    /// Opens a snapshot for reading, whole and as it was cut: exactly its size long. While the value lives,
    /// the snapshot can be read; deleting it, or its volume, fails with `InUse` where the backend cannot
    /// delete what is open.
    async fn open_snapshot(
        &self,
        volume: VolumeUuid,
        snapshot: SnapshotUuid,
    ) -> Result<SnapshotImage>;
}

/// A pool of room that volumes share: it can be looked at, made larger and mended.
#[async_trait]
pub trait Pooled: Debug + Send + Sync {
    /// How full it is and how it is. Answers also for a pool that cannot be used.
    async fn inspect_pool(&self) -> Result<PoolInfo>;

    /// Makes its data `size` bytes large, or as large as its devices have become if no size is given;
    /// its metadata grows along. Never smaller. Volumes stay in use.
    async fn grow_pool(&self, size: Option<ByteSize>) -> Result<Outcome>;

    /// Reads all of its metadata and says what is wrong and what to do. Changes nothing.
    async fn check_pool(&self) -> Result<PoolCheck>;

    /// Mends its metadata, of which a copy is kept. Fails with `InUse` while a volume is attached or a
    /// snapshot is read.
    /// Gives what was done, as sentences.
    async fn repair_pool(&self) -> Result<Vec<String>>;
}

/// A pool, as it is now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolInfo {
    /// Which pool; none if that cannot be told.
    pub uuid: Option<PoolUuid>,
    /// What can be done with it.
    pub state: PoolState,
    /// What it lies on.
    pub location: String,
    /// The unit in which it gives out room, in bytes; none if that cannot be told.
    pub chunk_size: Option<ByteSize>,
    /// Room for data; none if the pool cannot be asked.
    pub data: Option<PoolLevel>,
    /// Room for metadata; none if the pool cannot be asked.
    pub metadata: Option<PoolLevel>,
    /// Whether it becomes larger by itself when little is free.
    pub grows: bool,
    /// Volumes, snapshots and earlier contents in it; none if the pool cannot be asked.
    pub devices: Option<usize>,
    /// What an administrator should know or mend, as sentences.
    pub warnings: Vec<String>,
}

/// How full a pool is, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolLevel {
    /// Taken.
    pub used: u64,
    /// In all.
    pub total: u64,
}

/// What can be done with a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PoolState {
    /// Everything.
    Active,
    /// Its data is full: what finds no room waits or fails.
    Full,
    /// Nothing new can be written, made or deleted.
    ReadOnly,
    /// It is not used until it is mended.
    Damaged,
}

impl PoolState {
    /// Every one.
    pub const ALL: [Self; 4] = [Self::Active, Self::Full, Self::ReadOnly, Self::Damaged];

    /// One word for people.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Full => "full",
            Self::ReadOnly => "read-only",
            Self::Damaged => "damaged",
        }
    }
}

/// What a check of a pool has found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolCheck {
    /// Its metadata is sound.
    pub sound: bool,
    /// What was found, as sentences.
    pub findings: Vec<String>,
    /// What to do, one step each, in order; empty if nothing has to be done.
    pub advice: Vec<String>,
}
