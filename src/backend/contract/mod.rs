//! What every backend promises, as tests that every backend runs.
//!
//! Each case is a function that panics where the promise is broken. [`backend_contract!`] makes a
//! test of each. They need a block backend: a device, a filesystem, a mount.
//!
//! [`backend_contract!`]: crate::backend_contract
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a broken promise is told by a panic; only tests call this"
)]

mod basics;
mod copies;
mod crowds;
mod extents;

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use jiff::Timestamp;

pub use self::basics::*;
pub use self::copies::*;
pub use self::crowds::*;
pub use self::extents::*;
use super::{Attachment, Backend, Locator, MountSource, Snapshots};
use crate::clock::Entropy;
use crate::error::ErrorKind;
use crate::id::{Generation, SnapshotUuid, VolumeUuid};
use crate::linux::{FilesystemSpec, Host, MountRequest};
use crate::model::{Content, Outcome, Progress, Volume, VolumeState};
use crate::options::FilesystemKind;
use crate::units::ByteSize;

/// Makes a test of every case. `$make` is an expression that gives a [`Trial`] and what has to live
/// as long.
#[macro_export]
macro_rules! backend_contract {
    ($make:expr) => {
        $crate::backend_contract! { $make;
            creating_twice_makes_one
            what_was_never_made_is_not_there
            rule_06_a_new_volume_is_blank_and_a_formatted_one_is_not
            rule_07_attaching_twice_gives_one_device
            content_survives_detaching
            rule_08_what_is_attached_is_not_deleted
            rule_08_what_is_mounted_is_neither_detached_nor_deleted
            deleting_leaves_nothing_and_can_be_repeated
            growing_keeps_the_content_and_never_shrinks
            descriptions_come_back
            mounting_is_idempotent
            rule_14_freezing_and_thawing_are_idempotent
            a_snapshot_is_a_point_in_time
            a_snapshot_is_made_once
            a_clone_is_independent_and_mounts_beside_its_source
            a_clone_can_be_larger
            a_restore_is_a_generation_of_its_own
            a_copy_gives_up_at_its_limit_and_leaves_nothing
            an_abandoned_call_can_be_repeated
            changed_extents_miss_no_change
            an_opened_snapshot_is_what_was_cut
            a_snapshot_has_many_readers
            a_snapshot_that_is_read_can_be_read_on
            sixteen_volumes_do_not_disturb_each_other
            the_same_call_eight_times_at_once_is_one
        }
    };
    ($make:expr; $($case:ident)*) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $case() {
            let (trial, _keep) = $make;
            $crate::backend::contract::$case(&trial).await;
        }
    )*};
}

/// The bytes of devices, for tests of extents.
#[async_trait]
pub trait RawContent: Debug + Send + Sync {
    /// Writes to an attached device, through to its storage.
    async fn write(&self, device: &Path, at: u64, bytes: &[u8]);
}

/// A backend under test and what is around it.
#[derive(Debug, Clone)]
pub struct Trial {
    /// The backend.
    pub backend: Arc<dyn Backend>,
    /// The host that mounts its devices.
    pub host: Arc<dyn Host>,
    /// Ids that no other test has.
    pub entropy: Arc<dyn Entropy>,
    /// Its bytes.
    pub raw: Arc<dyn RawContent>,
    /// An empty directory for mounts.
    pub scratch: PathBuf,
    /// What to make on devices.
    pub filesystem: FilesystemKind,
    /// The size of volumes.
    pub size: ByteSize,
}

/// A mounted volume.
#[derive(Debug)]
pub struct InUse {
    /// Where.
    pub target: PathBuf,
    /// Its device.
    pub device: PathBuf,
}

impl InUse {
    /// Writes a file, flushed.
    pub fn write(&self, name: &str, content: &str) {
        let path = self.target.join(name);
        std::fs::write(&path, content).unwrap();
        std::fs::File::open(path).unwrap().sync_all().unwrap();
    }

    /// Reads a file.
    pub fn read(&self, name: &str) -> Option<String> {
        std::fs::read_to_string(self.target.join(name)).ok()
    }
}

/// The record of a new volume of a block backend.
pub fn volume_on(backend: &dyn Backend, uuid: VolumeUuid, name: &str) -> Volume {
    Volume {
        uuid,
        name: name.parse().unwrap(),
        backend: backend.name().clone(),
        generation: Generation::FIRST,
        state: VolumeState::Ready,
        content: Content::Blank,
        size: backend.default_size(),
        grow_pending: false,
        filesystem: Some(FilesystemKind::Ext4),
        mkfs_options: Vec::new(),
        mount_options: Vec::new(),
        ownership: Default::default(),
        read_only: false,
        on_remove: Default::default(),
        options: BTreeMap::new(),
        labels: BTreeMap::new(),
        created: Timestamp::UNIX_EPOCH,
    }
}

impl Trial {
    /// The record of a new volume.
    pub fn volume(&self, name: &str) -> Volume {
        let uuid = VolumeUuid::from_uuid(self.entropy.uuid());
        let filesystem = Some(self.filesystem);
        Volume { size: Some(self.size), filesystem, ..volume_on(&*self.backend, uuid, name) }
    }

    /// A new id for a snapshot.
    pub fn snapshot_id(&self) -> SnapshotUuid {
        SnapshotUuid::from_uuid(self.entropy.uuid())
    }

    /// A volume that exists.
    pub async fn created(&self, name: &str) -> Volume {
        let volume = self.volume(name);
        self.backend.create(&volume).await.unwrap().ignore();
        volume
    }

    /// The backend's snapshots: this suite is for backends that have them.
    pub fn snapshots(&self) -> &dyn Snapshots {
        self.backend.snapshots().unwrap()
    }

    /// Where a volume's generation is mounted.
    pub fn target(&self, volume: &Volume) -> PathBuf {
        self.scratch.join(format!("{}.{}", volume.uuid, volume.generation))
    }

    /// Attaches, makes a filesystem if there is none, and mounts.
    pub async fn mounted(&self, volume: &Volume) -> InUse {
        let attachment = self.backend.attach(volume.into()).await.unwrap();
        let device = device_of(&attachment);
        if self.host.is_blank(&device).await.unwrap() {
            let spec = FilesystemSpec {
                kind: self.filesystem,
                uuid: volume.uuid.uuid(),
                options: Vec::new(),
            };
            self.host.make_filesystem(&device, &spec).await.unwrap();
        }
        let target = self.target(volume);
        self.host.mount(&self.request(&device, &target)).await.unwrap().ignore();
        InUse { target, device }
    }

    /// How to mount a device.
    pub fn request(&self, device: &Path, target: &Path) -> MountRequest {
        MountRequest {
            source: device.display().to_string(),
            filesystem: self.filesystem.as_str().to_owned(),
            target: target.to_owned(),
            options: Vec::new(),
            read_only: false,
        }
    }

    /// Unmounts and detaches.
    pub async fn unmounted(&self, volume: &Volume) {
        self.host.unmount(&self.target(volume)).await.unwrap().ignore();
        self.backend.detach(volume.into()).await.unwrap().ignore();
    }

    /// Grows the filesystem of a mounted volume to its device. Where the host may grow it only
    /// unmounted, it is mounted again in between.
    pub async fn grown(&self, volume: &Volume, mounted: &InUse) {
        let (host, kind) = (&self.host, self.filesystem);
        match host.grow_filesystem(&mounted.device, kind, &mounted.target).await {
            Err(error) if error.kind() == ErrorKind::Unsupported => {
                let attachment = self.backend.attach(volume.into()).await.unwrap();
                assert_eq!(device_of(&attachment), mounted.device);
                host.unmount(&mounted.target).await.unwrap().ignore();
                let grown = host.grow_unmounted(&mounted.device, kind).await.unwrap();
                assert_eq!(grown, Outcome::Changed);
                let request = self.request(&mounted.device, &mounted.target);
                host.mount(&request).await.unwrap().ignore();
                host.grow_filesystem(&mounted.device, kind, &mounted.target).await.unwrap();
            }
            grown => grown.unwrap(),
        }
    }

    /// Gives a copy its own identity, as the engine does with every clone.
    pub async fn renewed(&self, volume: &Volume) {
        let attachment = self.backend.attach(volume.into()).await.unwrap();
        let scratch = self.scratch.join(format!("renew-{}", volume.uuid));
        self.host
            .renew_identity(&device_of(&attachment), self.filesystem, volume.uuid.uuid(), &scratch)
            .await
            .unwrap();
    }

    /// Cuts a snapshot, frozen if it is mounted.
    pub async fn cut(&self, volume: &Volume, frozen: Option<&InUse>) -> SnapshotUuid {
        let snapshot = self.snapshot_id();
        if let Some(mounted) = frozen {
            self.host.freeze(&mounted.target).await.unwrap().ignore();
        }
        let cut = self.snapshots().snapshot(volume.into(), snapshot, &progress(), None).await;
        if let Some(mounted) = frozen {
            self.host.thaw(&mounted.target).await.unwrap().ignore();
        }
        cut.unwrap().ignore();
        snapshot
    }

    /// Whether the backend has an image.
    pub async fn exists(&self, locator: Locator) -> bool {
        self.backend.inspect(locator).await.unwrap() != super::Presence::Absent
    }
}

/// Nobody watches.
pub fn progress() -> Arc<Progress> {
    Arc::default()
}

/// The device of a block backend's attachment.
pub fn device_of(attachment: &Attachment) -> PathBuf {
    match &attachment.source {
        MountSource::Device(path) => path.clone(),
        MountSource::Export { .. } => panic!("a block backend gives devices"),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use uuid::Uuid;

    use super::*;
    use crate::backend::sim::{SimBackend, SimHost, SimWorld};

    #[derive(Debug, Default)]
    struct Counter(AtomicU64);

    impl Entropy for Counter {
        fn uuid(&self) -> Uuid {
            Uuid::from_u128(u128::from(self.0.fetch_add(1, Ordering::Relaxed)) + 1)
        }
    }

    #[async_trait]
    impl RawContent for SimWorld {
        async fn write(&self, device: &Path, at: u64, bytes: &[u8]) {
            self.write_device(device, at, bytes).unwrap();
        }
    }

    impl Trial {
        /// A trial of the simulated backend.
        pub(crate) fn simulated() -> (Self, SimWorld, tempfile::TempDir) {
            let world = SimWorld::new();
            let scratch = tempfile::tempdir().unwrap();
            let trial = Self {
                backend: Arc::new(SimBackend::new(&world, "sim".parse().unwrap())),
                host: Arc::new(SimHost::new(&world)),
                entropy: Arc::new(Counter::default()),
                raw: Arc::new(world.clone()),
                scratch: scratch.path().to_owned(),
                filesystem: FilesystemKind::Ext4,
                size: ByteSize::new(8 << 20),
            };
            (trial, world, scratch)
        }
    }

    #[tokio::test]
    async fn rule_14_a_snapshot_without_a_freeze_misses_what_was_written() {
        let (trial, _world, _scratch) = Trial::simulated();
        let volume = trial.created("v").await;
        let mounted = trial.mounted(&volume).await;
        mounted.write("f", "not flushed");
        let (careless, careful) =
            (trial.cut(&volume, None).await, trial.cut(&volume, Some(&mounted)).await);
        for (snapshot, expected) in [(careless, None), (careful, Some("not flushed"))] {
            let clone = trial.volume("c");
            let source = crate::backend::ContentRef::Snapshot { volume: volume.uuid, snapshot };
            let copy = trial.snapshots().create_from(source, &clone, &progress(), None).await;
            copy.unwrap().ignore();
            assert_eq!(trial.mounted(&clone).await.read("f").as_deref(), expected);
        }
    }

    #[tokio::test]
    async fn a_simulated_world_outlives_daemons_and_boots() {
        let (mut trial, _, scratch) = Trial::simulated();
        let file = scratch.path().join("world");
        let open = |trial: &mut Trial| {
            let world = SimWorld::kept_in(&file).unwrap();
            trial.backend = Arc::new(SimBackend::new(&world, "sim".parse().unwrap()));
            trial.host = Arc::new(SimHost::new(&world));
            world
        };
        open(&mut trial);
        let volume = trial.created("v").await;
        let mounted = trial.mounted(&volume).await;
        mounted.write("f", "kept");
        trial.cut(&volume, Some(&mounted)).await;
        let held = trial.created("held").await;
        std::mem::forget(trial.backend.attach((&held).into()).await.unwrap());
        let boot = trial.host.boot_id();

        let world = open(&mut trial);
        assert_eq!(trial.host.boot_id(), boot);
        assert_eq!(
            world.devices(),
            std::slice::from_ref(&mounted.device),
            "its holder died, but not the mount"
        );
        assert_eq!(world.mounts(), std::slice::from_ref(&mounted.target));
        assert_eq!(world.snapshots().len(), 1);
        world.reboot().unwrap();

        let world = open(&mut trial);
        assert_ne!(trial.host.boot_id(), boot);
        assert!(world.devices().is_empty() && world.mounts().is_empty());
        assert_eq!(mounted.read("f"), None);
        assert_eq!(trial.mounted(&volume).await.read("f").as_deref(), Some("kept"));
    }

    mod sim {
        use super::*;

        fn make() -> (Trial, tempfile::TempDir) {
            let (trial, _, scratch) = Trial::simulated();
            (trial, scratch)
        }

        crate::backend_contract!(make());
    }
}
