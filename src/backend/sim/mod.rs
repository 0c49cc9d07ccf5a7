//! A simulated backend and host: the whole daemon runs on them without root and without a kernel.
//!
//! A [`SimWorld`] is the disk and the kernel: it outlives any number of simulated daemons. A
//! [`SimBackend`] and a [`SimHost`] are what one daemon sees of it. A mount is a plain directory that
//! really exists, filled with the files of its device; what is written there reaches the device when
//! it is frozen or unmounted, so a snapshot that was cut without freezing misses it.
//!
//! Nothing here asks a clock or for randomness; nothing blocks but small files.

mod backend;
mod content;
mod host;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

pub use self::backend::SimBackend;
use self::content::Blocks;
pub use self::host::SimHost;
use super::Locator;
use crate::error::{Error, Result};
use crate::id::{BootId, Generation, SnapshotUuid, StorageId, VolumeUuid};
use crate::name::BackendName;

/// A simulated disk and kernel. Clones are the same world.
#[derive(Debug, Clone, Default)]
pub struct SimWorld {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct State {
    boots: u64,
    /// Which disk it is.
    #[serde(default)]
    disk: u64,
    devices_made: u32,
    volumes: BTreeMap<VolumeUuid, StoredVolume>,
    devices: BTreeMap<PathBuf, Device>,
    mounts: Vec<SimMount>,
    /// Mounts in which somebody has a file open.
    busy: BTreeSet<PathBuf>,
    /// Bind mounts of directories inside a mount.
    users: BTreeMap<PathBuf, usize>,
    /// How many read a snapshot; they end with their process.
    #[serde(skip)]
    readers: BTreeMap<(VolumeUuid, SnapshotUuid), usize>,
    full: bool,
    copies_take: Option<Duration>,
    freezes_take: Option<Duration>,
    thaws_fail: u32,
    stays_small: bool,
    /// Where all this is kept, if it outlives the process.
    #[serde(skip)]
    file: Option<PathBuf>,
}

#[derive(Debug, Serialize, Deserialize)]
struct StoredVolume {
    backend: BackendName,
    images: BTreeMap<Generation, Blocks>,
    snapshots: BTreeMap<SnapshotUuid, Blocks>,
    description: Option<String>,
}

/// An attached image. It goes away by itself when nobody holds it and it is not mounted.
#[derive(Debug, Serialize, Deserialize)]
struct Device {
    volume: VolumeUuid,
    generation: Generation,
    number: u32,
    #[serde(skip)]
    holds: u32,
}

impl Device {
    fn locator(&self) -> Locator {
        Locator { volume: self.volume, generation: self.generation }
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct SimMount {
    target: PathBuf,
    device: PathBuf,
    read_only: bool,
    frozen: bool,
}

/// The world while one call works on it; kept, if it is to be, when the call is done.
struct Locked<'a> {
    state: MutexGuard<'a, State>,
    changed: bool,
}

impl std::ops::Deref for Locked<'_> {
    type Target = State;
    fn deref(&self) -> &State {
        &self.state
    }
}

impl std::ops::DerefMut for Locked<'_> {
    fn deref_mut(&mut self) -> &mut State {
        self.changed = true;
        &mut self.state
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        let Some(file) = self.state.file.as_ref().filter(|_| self.changed) else { return };
        let temporary = file.with_extension("new");
        let kept = serde_json::to_vec(&*self.state)
            .map_err(std::io::Error::other)
            .and_then(|text| std::fs::write(&temporary, text))
            .and_then(|()| std::fs::rename(&temporary, file));
        if let Err(error) = kept {
            tracing::error!(%error, file = %file.display(), "cannot keep the simulated world");
        }
    }
}

impl SimWorld {
    /// A world with nothing in it, that ends with the process.
    pub fn new() -> Self {
        Self::default()
    }

    /// A world with an empty disk that is not the one of [`Self::new`], nor that of another number.
    pub fn with_disk(number: u64) -> Self {
        let state = State { disk: number, ..State::default() };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    /// A world that is kept in a file, so that it outlives a daemon that is killed.
    ///
    /// # Errors
    /// The file cannot be read or is not one of ours.
    pub fn kept_in(file: &Path) -> Result<Self> {
        let mut state = match std::fs::read(file) {
            Ok(text) => serde_json::from_slice(&text).map_err(|error| {
                Error::corrupt(format!("{} is no simulated world", file.display())).caused_by(error)
            })?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => State::default(),
            Err(error) => {
                return Err(Error::io(format!("cannot read {}", file.display()), error));
            }
        };
        state.file = Some(file.to_owned());
        // Whoever held an attachment died with the process before this one.
        state.let_go();
        Ok(Self { state: Arc::new(Mutex::new(state)) })
    }

    fn lock(&self) -> Locked<'_> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        Locked { state, changed: false }
    }

    /// The host goes down and comes up: nothing is attached or mounted any more; what was written
    /// to a mount is on its device.
    ///
    /// # Errors
    /// The directories of the mounts cannot be read or emptied.
    pub fn reboot(&self) -> Result<()> {
        let mut state = self.lock();
        for mount in std::mem::take(&mut state.mounts) {
            if !mount.frozen {
                state.write_back(&mount)?;
            }
            content::clear(&mount.target)?;
        }
        state.devices.clear();
        state.busy.clear();
        state.users.clear();
        state.boots += 1;
        Ok(())
    }

    /// Somebody has a file open below the mount at `target`, or no more.
    pub fn set_busy(&self, target: &Path, busy: bool) {
        let mut state = self.lock();
        match busy {
            true => state.busy.insert(target.to_owned()),
            false => state.busy.remove(target),
        };
    }

    /// So many containers have a directory of the mount at `target` bind-mounted.
    pub fn set_users(&self, target: &Path, users: usize) {
        self.lock().users.insert(target.to_owned(), users);
    }

    /// The disk is full, or no more: nothing can be made or kept.
    pub fn set_full(&self, full: bool) {
        self.lock().full = full;
    }

    /// Copies share no blocks and take this long.
    pub fn set_copies_take(&self, duration: Option<Duration>) {
        self.lock().copies_take = duration;
    }

    /// Freezes wait this long for writers and for what they have written.
    pub fn set_freezes_take(&self, duration: Option<Duration>) {
        self.lock().freezes_take = duration;
    }

    /// No filesystem can be grown, or each again.
    pub fn set_stays_small(&self, small: bool) {
        self.lock().stays_small = small;
    }

    /// So many thaws fail from now on.
    pub fn set_thaws_fail(&self, thaws: u32) {
        self.lock().thaws_fail = thaws;
    }

    /// Puts any text in the place of a volume's description.
    pub fn damage_description(&self, volume: VolumeUuid, text: &str) {
        if let Some(stored) = self.lock().volumes.get_mut(&volume) {
            stored.description = Some(text.to_owned());
        }
    }

    /// Whether the filesystem at `target` is frozen.
    pub fn is_frozen(&self, target: &Path) -> bool {
        self.lock().mounts.iter().any(|mount| mount.target == target && mount.frozen)
    }

    /// The devices that are attached: what a leak would leave.
    pub fn devices(&self) -> Vec<PathBuf> {
        self.lock().devices.keys().cloned().collect()
    }

    /// The places that are mounted on.
    pub fn mounts(&self) -> Vec<PathBuf> {
        self.lock().mounts.iter().map(|mount| mount.target.clone()).collect()
    }

    /// The volumes and generations on the disk.
    pub fn images(&self) -> Vec<Locator> {
        let state = self.lock();
        let of = |(volume, stored): (&VolumeUuid, &StoredVolume)| {
            let volume = *volume;
            let locators = stored.images.keys().map(|g| Locator { volume, generation: *g });
            locators.collect::<Vec<_>>()
        };
        state.volumes.iter().flat_map(of).collect()
    }

    /// The snapshots on the disk.
    pub fn snapshots(&self) -> Vec<(VolumeUuid, SnapshotUuid)> {
        let state = self.lock();
        let of = |(volume, stored): (&VolumeUuid, &StoredVolume)| {
            stored.snapshots.keys().map(|snapshot| (*volume, *snapshot)).collect::<Vec<_>>()
        };
        state.volumes.iter().flat_map(of).collect()
    }

    /// Writes to an attached device.
    ///
    /// # Errors
    /// There is no such device, or it is too small.
    pub fn write_device(&self, device: &Path, at: u64, bytes: &[u8]) -> Result<()> {
        self.lock().device_blocks(device)?.write(at, bytes)
    }
}

fn absent(what: impl std::fmt::Display) -> Error {
    Error::not_found(format!("there is no simulated {what}"))
}

impl State {
    fn boot_id(&self) -> BootId {
        BootId::from_uuid(Uuid::from_u128(
            0x5150_0000_0000_4000_8000_0000_0000_0000 + u128::from(self.boots),
        ))
    }

    fn storage(&self) -> StorageId {
        StorageId::from_uuid(Uuid::from_u128(
            0xd15c_0000_0000_4000_8000_0000_0000_0000 + u128::from(self.disk),
        ))
    }

    fn image(&self, locator: Locator) -> Option<&Blocks> {
        self.volumes.get(&locator.volume)?.images.get(&locator.generation)
    }

    fn snapshot(&self, volume: VolumeUuid, snapshot: SnapshotUuid) -> Result<&Blocks> {
        self.volumes
            .get(&volume)
            .and_then(|stored| stored.snapshots.get(&snapshot))
            .ok_or_else(|| absent(format_args!("snapshot {snapshot} of volume {volume}")))
    }

    fn device_of(&self, locator: Locator) -> Option<&PathBuf> {
        self.devices.iter().find(|(_, device)| device.locator() == locator).map(|(path, _)| path)
    }

    fn device_blocks(&mut self, path: &Path) -> Result<&mut Blocks> {
        let locator = self
            .devices
            .get(path)
            .ok_or_else(|| absent(format_args!("device {}", path.display())))?
            .locator();
        self.volumes
            .get_mut(&locator.volume)
            .and_then(|stored| stored.images.get_mut(&locator.generation))
            .ok_or_else(|| absent(format_args!("image behind {}", path.display())))
    }

    fn is_mounted(&self, device: &Path) -> bool {
        self.mounts.iter().any(|mount| mount.device == device)
    }

    /// Devices without a user go away.
    fn let_go(&mut self) {
        let mounted: BTreeSet<_> = self.mounts.iter().map(|mount| mount.device.clone()).collect();
        self.devices.retain(|path, device| device.holds > 0 || mounted.contains(path));
    }

    /// Files that were written to a mount reach its device.
    fn write_back(&mut self, mount: &SimMount) -> Result<()> {
        if mount.read_only {
            return Ok(());
        }
        let tree = content::pack(&mount.target)?;
        self.device_blocks(&mount.device)?.save_tree(&tree)
    }

    fn need_room(&self) -> Result<()> {
        match self.full {
            true => Err(Error::out_of_space("the simulated disk is full")),
            false => Ok(()),
        }
    }
}
