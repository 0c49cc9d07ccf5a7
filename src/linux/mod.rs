//! The host's kernel: mounts, loop devices, filesystems, child processes. The only place with
//! `unsafe`, ioctls and child processes. Everything that can hang runs where it can be abandoned.

pub(crate) mod blocking;
pub(crate) mod copy;
pub(crate) mod device_mapper;
pub(crate) mod device_node;
pub(crate) mod direct;
pub(crate) mod durable;
pub(crate) mod entry;
pub(crate) mod fiemap;
mod filesystem;
mod freeze;
mod host;
pub(crate) mod lock;
pub(crate) mod loop_device;
pub(crate) mod loop_image;
mod mount;
mod mountinfo;
pub(crate) mod nfs;
pub(crate) mod priority;
mod process;
mod thin_tools;
mod users;

use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::error::Result;
use crate::id::BootId;
use crate::model::Outcome;
use crate::options::{FilesystemKind, Ownership};

pub(crate) use filesystem::usage as filesystem_usage;
pub(crate) use filesystem::{is_blank, size_of_device};
pub use host::LinuxHost;
pub use lock::LockFile;
pub(crate) use mount::{is_mounted, when_idle};
pub use process::Program;
pub(crate) use thin_tools::{check_thin_metadata, clear_needs_check, repair_thin_metadata};

/// How long the kernel may take to let go a device after its last user went.
pub(crate) const LET_GO_WITHIN: Duration = Duration::from_secs(5);

/// A filesystem to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilesystemSpec {
    /// Which.
    pub kind: FilesystemKind,
    /// Its identity: the volume's uuid.
    pub uuid: Uuid,
    /// The user's words for mkfs.
    pub options: Vec<String>,
}

/// A mount to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountRequest {
    /// Device, or server and path.
    pub source: String,
    /// The filesystem's type.
    pub filesystem: String,
    /// Where; made if it does not exist.
    pub target: PathBuf,
    /// Options as for mount(8), checked.
    pub options: Vec<String>,
    /// Whether it is read-only.
    pub read_only: bool,
}

/// A mount that the kernel shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mounted {
    /// Where.
    pub target: PathBuf,
    /// What, as the kernel names it.
    pub source: String,
    /// The filesystem's type.
    pub filesystem: String,
    /// Which directory of the filesystem is mounted; `/` for all of it.
    pub root: PathBuf,
    /// The device number of the filesystem.
    pub device: (u32, u32),
    /// Whether it is read-only.
    pub read_only: bool,
}

/// Room in a mounted filesystem, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilesystemUsage {
    /// In all.
    pub total: u64,
    /// Used.
    pub used: u64,
    /// Free for an ordinary user.
    pub available: u64,
}

/// What the engine asks of the host. The simulated host answers the same without a kernel.
#[async_trait]
pub trait Host: Debug + Send + Sync {
    /// This run of the kernel.
    fn boot_id(&self) -> BootId;

    /// Whether the device's ends were read and hold only zeros. A read that fails is an error, never
    /// "blank".
    async fn is_blank(&self, device: &Path) -> Result<bool>;

    /// Makes a filesystem on a blank device and flushes it to the device.
    async fn make_filesystem(&self, device: &Path, spec: &FilesystemSpec) -> Result<()>;

    /// Gives a copied filesystem an identity of its own, so that it can be mounted beside the original;
    /// its journal is replayed first. A host that has to mount it for that does so at `scratch`.
    async fn renew_identity(
        &self,
        device: &Path,
        kind: FilesystemKind,
        uuid: Uuid,
        scratch: &Path,
    ) -> Result<()>;

    /// Mounts. `Unchanged` if the same source is mounted there already; another source there is `InUse`.
    async fn mount(&self, request: &MountRequest) -> Result<Outcome>;

    /// Has the kernel open the filesystem as for this mount and let it go again, mounted nowhere: tells
    /// whether it takes the options.
    async fn try_mount(&self, request: &MountRequest) -> Result<()>;

    /// Unmounts, never lazily and never frozen: thaws first. Removes the empty mount directory.
    /// `Unchanged` if nothing is mounted there; `InUse` while files are open.
    async fn unmount(&self, target: &Path) -> Result<Outcome>;

    /// All mounts at or below `directory`.
    async fn mounts_below(&self, directory: &Path) -> Result<Vec<Mounted>>;

    /// How many bind mounts of directories inside the filesystem at `target` exist in any mount
    /// namespace: the containers that use it.
    async fn bind_mounts_of(&self, target: &Path) -> Result<usize>;

    /// Writes out what the filesystem at `target` holds in memory; nobody waits for it.
    async fn flush(&self, target: &Path) -> Result<()>;

    /// Stops writes to the filesystem at `target` and flushes it. `Unchanged` if it is frozen already.
    async fn freeze(&self, target: &Path) -> Result<Outcome>;

    /// Lets writes go on. `Unchanged` if it is not frozen.
    async fn thaw(&self, target: &Path) -> Result<Outcome>;

    /// Grows the mounted filesystem to its device. `Unsupported` if this host may not: then
    /// [`Self::grow_unmounted`] can.
    async fn grow_filesystem(
        &self,
        device: &Path,
        kind: FilesystemKind,
        target: &Path,
    ) -> Result<()>;

    /// Grows the filesystem on a device that is not mounted, where this host may not grow it mounted;
    /// `Unchanged` where it may, and [`Self::grow_filesystem`] is the way.
    async fn grow_unmounted(&self, _device: &Path, _kind: FilesystemKind) -> Result<Outcome> {
        Ok(Outcome::Unchanged)
    }

    /// Makes `directory` with this owner and mode, durably. Safe to repeat.
    async fn prepare_directory(&self, directory: &Path, ownership: Ownership) -> Result<()>;

    /// Runs an administrator's program with its arguments, without a shell. Fails with what it wrote to its
    /// standard error; `Unavailable` if it was still running at the end of `limit` and was killed.
    async fn run_command(
        &self,
        command: &[String],
        variables: &[(&'static str, String)],
        limit: Duration,
    ) -> Result<()>;

    /// Room in the filesystem at `target`.
    async fn filesystem_usage(&self, target: &Path) -> Result<FilesystemUsage>;
}
