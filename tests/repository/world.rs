//! A repository of the test's own, volumes that exist only as images, and restic.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use crate::faulty::Faulty;
use holdfast::backend::SnapshotImage;
use holdfast::id::{BackupId, Generation, SnapshotUuid, VolumeUuid};
use holdfast::model::{Backup, Content, Progress, Snapshot, SnapshotOrigin, Volume, VolumeState};
use holdfast::options::{FilesystemKind, OnRemove, Ownership};
use holdfast::repository::{
    Base, Image, ImageJob, Layout, Limits, Location, Manifest, Repository, RepositorySettings,
    S3Settings, Secret, SecretSource, Target,
};
use holdfast::units::ByteSize;

/// The unit in which images are stored.
pub(crate) const CHUNK: usize = 256 << 10;

pub(crate) const PASSWORD: &str = "the test's own secret";

/// Tells a child where the repository is.
const CHILD: &str = "HOLDFAST_TEST_REPOSITORY";

/// A repository in a directory that goes away with the test.
pub(crate) struct World {
    runtime: tokio::runtime::Runtime,
    place: tempfile::TempDir,
    s3: S3Settings,
    pub(crate) repository: Repository,
}

impl World {
    pub(crate) fn new() -> Self {
        let world = Self::without_repository();
        world.repository.init().unwrap();
        world
    }

    pub(crate) fn without_repository() -> Self {
        let place = tempfile::tempdir().unwrap();
        let location = Location::Directory(place.path().join("repository"));
        Self::at(place, location, S3Settings::default())
    }

    pub(crate) fn at(place: tempfile::TempDir, location: Location, s3: S3Settings) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let settings = RepositorySettings {
            name: "main".parse().unwrap(),
            node: "node-1".to_owned(),
            location,
            password: SecretSource::Given(Secret::new(PASSWORD)),
            cache: place.path().join("cache"),
            mountpoint: place.path().join("mounted"),
            limits: Limits { upload: None, download: None, connections: 8 },
            s3: s3.clone(),
        };
        let repository = Repository::new(settings, runtime.handle().clone());
        Self { runtime, place, s3, repository }
    }

    /// A repository over a store that does as it is told.
    pub(crate) fn faulty() -> (Self, Faulty) {
        let mut world = Self::new();
        let store = Faulty::new(&world.directory());
        world.repository = world.over(&store, "node-1");
        (world, store)
    }

    /// The repository for a host that reaches it through `store`.
    pub(crate) fn over(&self, store: &Faulty, node: &str) -> Repository {
        let mut settings = self.settings();
        settings.node = node.to_owned();
        Repository::over(settings, self.runtime.handle().clone(), Arc::new(store.clone()))
    }

    /// The same for one that takes it for far away, and keeps what it reads.
    pub(crate) fn far(&self, store: &Faulty) -> Repository {
        let mut settings = self.settings();
        settings.location = "s3:http://127.0.0.1:1/bucket".parse().unwrap();
        Repository::over(settings, self.runtime.handle().clone(), Arc::new(store.clone()))
    }

    /// The same repository for another host.
    pub(crate) fn other(&self, change: impl FnOnce(&mut RepositorySettings)) -> Repository {
        let mut settings = self.settings();
        change(&mut settings);
        Repository::new(settings, self.runtime.handle().clone())
    }

    fn settings(&self) -> RepositorySettings {
        RepositorySettings {
            name: "main".parse().unwrap(),
            node: "node-1".to_owned(),
            location: self.repository.location().clone(),
            password: SecretSource::Given(Secret::new(PASSWORD)),
            cache: self.path().join("other-cache"),
            mountpoint: self.path().join("other-mounted"),
            limits: Limits { upload: None, download: None, connections: 8 },
            s3: self.s3.clone(),
        }
    }

    /// The repository of a test that runs this test binary again.
    pub(crate) fn in_child() -> Self {
        let directory = std::env::var_os(CHILD).expect("run by another test");
        let place = tempfile::tempdir().unwrap();
        Self::at(place, Location::Directory(directory.into()), S3Settings::default())
    }

    /// Runs an ignored test of this binary in a process of its own, which uses this repository.
    pub(crate) fn child(&self, test: &str) -> Command {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--ignored", "--exact", "--nocapture", test]).env(CHILD, self.directory());
        command
    }

    pub(crate) fn path(&self) -> &Path {
        self.place.path()
    }

    pub(crate) fn directory(&self) -> PathBuf {
        self.path().join("repository")
    }

    pub(crate) fn restic_command(&self, arguments: &[&str]) -> Output {
        Command::new("restic")
            .args(arguments)
            .arg("--no-cache")
            .env("RESTIC_REPOSITORY", self.repository.location().to_string())
            .env("AWS_ACCESS_KEY_ID", "key")
            .env("AWS_SECRET_ACCESS_KEY", "secret")
            .env("RESTIC_PASSWORD", PASSWORD)
            .output()
            .expect("restic is installed")
    }

    /// What restic says, which is content with the repository.
    pub(crate) fn restic(&self, arguments: &[&str]) -> String {
        let output = self.restic_command(arguments);
        let said = format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        assert!(output.status.success(), "restic {arguments:?}: {said}");
        said
    }

    /// restic has read all data and found nothing wrong.
    pub(crate) fn assert_sound(&self) {
        let said = self.restic(&["check", "--read-data"]);
        assert!(said.contains("no errors were found"), "{said}");
    }

    /// The repository is sound, and has these backups and no others, byte for byte as they were.
    pub(crate) fn assert_has(&self, backups: &[(&Backup, &Cut)]) {
        self.assert_sound();
        let there = self.other(|_| {}).backups().unwrap();
        assert_eq!(there.len(), backups.len(), "{there:?}");
        for (backup, cut) in backups {
            assert!(there.iter().any(|one| one.id == backup.id), "{} is gone", backup.id);
            assert!(self.restored(backup) == cut.content, "{} differs", backup.id);
        }
    }

    /// What the index says of packs, as restic reads it.
    pub(crate) fn packs(&self) -> Vec<Pack> {
        let mut packs = Vec::new();
        for id in self.restic(&["list", "index"]).lines() {
            let index: serde_json::Value =
                serde_json::from_str(&self.restic(&["cat", "index", id])).unwrap();
            for pack in index["packs"].as_array().unwrap() {
                let id = pack["id"].as_str().unwrap().to_owned();
                let blobs = pack["blobs"].as_array().unwrap().iter().map(|blob| Blob {
                    id: blob["id"].as_str().unwrap().to_owned(),
                    offset: blob["offset"].as_u64().unwrap(),
                    plain: blob["uncompressed_length"].as_u64().unwrap_or(0),
                });
                packs.push(Pack {
                    path: self.directory().join("data").join(&id[..2]).join(&id),
                    tree: pack["blobs"][0]["type"] == "tree",
                    blobs: blobs.collect(),
                    id,
                });
            }
        }
        packs
    }

    /// The image of a backup as plain restic gives it.
    pub(crate) fn restored_by_restic(&self, id: BackupId) -> Vec<u8> {
        let target = self.path().join(format!("restic-{}", id.short()));
        self.restic(&["restore", &id.to_string(), "--target", target.to_str().unwrap()]);
        let pipeline = "find \"$1\" -path '*/image/*' -type f | sort | xargs cat";
        let output = Command::new("sh").args(["-c", pipeline, "sh"]).arg(&target).output().unwrap();
        assert!(output.status.success());
        std::fs::remove_dir_all(target).unwrap();
        output.stdout
    }

    pub(crate) fn restore_error(&self, backup: &Backup) -> holdfast::error::Error {
        let target = Target { file: tempfile::tempfile_in(self.path()).unwrap(), blank: true };
        self.repository.restore_image(backup.id, &target, &progress()).unwrap_err()
    }

    /// The image of a backup as we give it, on a device that held something else before.
    pub(crate) fn restored(&self, backup: &Backup) -> Vec<u8> {
        let size = usize::try_from(backup.size.unwrap().bytes()).unwrap();
        let file = tempfile::tempfile_in(self.path()).unwrap();
        file.write_all_at(&vec![0xa5; size], 0).unwrap();
        let target = Target { file, blank: false };
        self.repository.restore_image(backup.id, &target, &Arc::default()).unwrap();
        read(&target.file, size)
    }
}

/// A pack of the repository.
#[derive(Debug)]
pub(crate) struct Pack {
    pub(crate) id: String,
    pub(crate) path: PathBuf,
    pub(crate) tree: bool,
    pub(crate) blobs: Vec<Blob>,
}

/// A chunk or tree in a pack.
#[derive(Debug)]
pub(crate) struct Blob {
    pub(crate) id: String,
    pub(crate) offset: u64,
    /// Bytes before compression.
    pub(crate) plain: u64,
}

/// Turns one bit.
pub(crate) fn flip(path: &Path, at: u64) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
}

pub(crate) fn read(file: &File, size: usize) -> Vec<u8> {
    let mut bytes = vec![0; size];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

/// A volume whose content is in memory, and on disk when a snapshot is cut.
pub(crate) struct Disk {
    pub(crate) uuid: VolumeUuid,
    pub(crate) content: Vec<u8>,
    cut: u64,
}

/// A snapshot of a [`Disk`].
pub(crate) struct Cut {
    manifest: Manifest,
    pub(crate) content: Vec<u8>,
    file: Arc<File>,
}

impl Disk {
    pub(crate) fn new(number: u128, size: usize) -> Self {
        let uuid = VolumeUuid::from_uuid(uuid::Uuid::from_u128(number));
        Self { uuid, content: vec![0; size], cut: 0 }
    }

    /// Bytes that nothing compresses.
    pub(crate) fn fill(&mut self, range: Range<usize>, seed: u64) {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        for word in self.content[range].chunks_mut(8) {
            // Marsaglia's xorshift64.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            word.copy_from_slice(&state.to_le_bytes()[..word.len()]);
        }
    }

    pub(crate) fn cut(&mut self) -> Cut {
        self.cut += 1;
        let size = ByteSize::new(self.content.len() as u64);
        let volume = Volume {
            uuid: self.uuid,
            name: "data".parse().unwrap(),
            backend: "loop".parse().unwrap(),
            generation: Generation::FIRST,
            state: VolumeState::Ready,
            content: Content::Prepared,
            size: Some(size),
            grow_pending: false,
            filesystem: Some(FilesystemKind::Ext4),
            mkfs_options: vec![],
            mount_options: vec![],
            ownership: Ownership::default(),
            read_only: false,
            on_remove: OnRemove::default(),
            options: BTreeMap::new(),
            labels: BTreeMap::new(),
            created: jiff::Timestamp::UNIX_EPOCH,
        };
        let snapshot = Snapshot {
            uuid: SnapshotUuid::from_uuid(uuid::Uuid::from_u128(
                self.uuid.uuid().as_u128() + (u128::from(self.cut) << 64),
            )),
            volume: self.uuid,
            name: format!("s{}", self.cut).parse().unwrap(),
            generation: Generation::FIRST,
            size: Some(size),
            content: Content::Prepared,
            origin: SnapshotOrigin::User,
            complete: true,
            created: jiff::Timestamp::from_second(1_700_000_000).unwrap(),
        };
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&self.content, 0).unwrap();
        Cut {
            manifest: Manifest { volume, snapshot, layout: Layout::IMAGE },
            content: self.content.clone(),
            file: Arc::new(file),
        }
    }
}

impl Cut {
    /// The whole of it, or the difference to `base`, a backup of the other cut.
    pub(crate) fn job(&self, base: Option<(&Backup, &Cut)>) -> ImageJob {
        let base = base.map(|(backup, cut)| Base {
            backup: backup.id,
            changed: differing(&cut.content, &self.content),
        });
        ImageJob {
            manifest: self.manifest.clone(),
            image: Image {
                content: SnapshotImage::lasting(
                    self.file.try_clone().unwrap(),
                    self.content.len() as u64,
                ),
                allocated: differing(&[], &self.content),
            },
            base,
            scheduled: false,
        }
    }
}

const BLOCK: usize = 4096;

/// The blocks in which `new` is not `old`, zeros where that has ended.
fn differing(old: &[u8], new: &[u8]) -> Vec<Range<u64>> {
    let mut ranges: Vec<Range<u64>> = Vec::new();
    for (i, block) in new.chunks(BLOCK).enumerate() {
        let start = i * BLOCK;
        let before = old
            .get(start..(start + block.len()))
            .map_or(&[0; BLOCK][..block.len()], |before| before);
        if before != block {
            let range = start as u64..(start + block.len()) as u64;
            match ranges.last_mut() {
                Some(last) if last.end == range.start => last.end = range.end,
                _ => ranges.push(range),
            }
        }
    }
    ranges
}

pub(crate) fn progress() -> Arc<Progress> {
    Arc::default()
}

/// A mount that ends with this.
pub(crate) struct Mounted(PathBuf);

impl Mounted {
    pub(crate) fn tmpfs(at: &Path, options: &str) -> Self {
        std::fs::create_dir_all(at).unwrap();
        run("mount", &["-t", "tmpfs", "-o", options, "tmpfs", at.to_str().unwrap()]);
        Self(at.to_owned())
    }

    /// An image of this size next to it, which only root can fill, and does to the last block.
    pub(crate) fn ext4(at: &Path, size: u64) -> Self {
        std::fs::create_dir_all(at).unwrap();
        let image = at.with_extension("img");
        File::create(&image).unwrap().set_len(size).unwrap();
        let (image, shown) = (image.to_str().unwrap(), at.to_str().unwrap());
        run("mkfs.ext4", &["-q", "-m", "0", image]);
        run("mount", &["-o", "loop", image, shown]);
        Self(at.to_owned())
    }

    /// Writes a file there that leaves no room.
    pub(crate) fn fill(&self) {
        let file = File::create(self.0.join("filler")).unwrap();
        let mut at = 0;
        for piece in [1 << 20, 4096, 512] {
            while file.write_all_at(&vec![1; piece], at).and_then(|()| file.sync_all()).is_ok() {
                at += piece as u64;
            }
        }
    }

    pub(crate) fn remount(&self, options: &str) {
        let options = format!("remount,{options}");
        run("mount", &["-o", &options, self.0.to_str().unwrap()]);
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
}
