//! The loop backend, on a directory that cannot share blocks (ext4) and on one that can (xfs).

use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use holdfast::backend::contract::{RawContent, Trial, device_of, progress};
use holdfast::backend::loopback::{LoopBackend, LoopConfig};
use holdfast::backend::{Backend, ContentRef, CopyCost, Expected, Locator, Presence};
use holdfast::clock::System;
use holdfast::error::ErrorKind;
use holdfast::linux::LinuxHost;
use holdfast::model::Outcome;
use holdfast::options::FilesystemKind;
use holdfast::units::ByteSize;

use crate::place::{Place, loop_devices_below, path, run};

/// Devices are written to like files.
#[derive(Debug)]
struct Devices;

#[async_trait]
impl RawContent for Devices {
    async fn write(&self, device: &Path, at: u64, bytes: &[u8]) {
        let file = std::fs::File::options().write(true).open(device).unwrap();
        file.write_all_at(bytes, at).unwrap();
        file.sync_all().unwrap();
    }
}

fn config(dir: &Path) -> LoopConfig {
    LoopConfig { name: "loop".parse().unwrap(), dir: dir.to_owned(), default_size: ByteSize::GIB }
}

async fn open(dir: &Path) -> LoopBackend {
    LoopBackend::open(config(dir), Expected::Anything).await.unwrap()
}

async fn trial(place: &Place, dir: PathBuf, filesystem: FilesystemKind) -> Trial {
    let scratch = place.path().join("mounts");
    std::fs::create_dir(&scratch).unwrap();
    let size = ByteSize::new(match filesystem {
        FilesystemKind::Ext4 => 16 << 20,
        FilesystemKind::Xfs => filesystem.smallest().bytes(),
        // The kernel grows none to less than this.
        FilesystemKind::Btrfs => 256 << 20,
    });
    Trial {
        backend: Arc::new(open(&dir).await),
        host: Arc::new(LinuxHost::new().unwrap()),
        entropy: Arc::new(System),
        raw: Arc::new(Devices),
        scratch,
        filesystem,
        size,
    }
}

async fn on_ext4(filesystem: FilesystemKind) -> (Trial, Place) {
    let place = Place::plain();
    let dir = place.path().join("loop");
    (trial(&place, dir, filesystem).await, place)
}

async fn on_xfs(filesystem: FilesystemKind) -> (Trial, Place) {
    let place = Place::plain();
    let dir = place.with_filesystem("below", "xfs", 8192);
    (trial(&place, dir, filesystem).await, place)
}

async fn on_btrfs(filesystem: FilesystemKind) -> (Trial, Place) {
    let place = Place::plain();
    let dir = place.with_filesystem("below", "btrfs", 8192);
    (trial(&place, dir, filesystem).await, place)
}

mod ext4_volumes_on_btrfs {
    use super::*;
    holdfast::backend_contract!(on_btrfs(FilesystemKind::Ext4).await);
}

mod ext4_volumes_on_ext4 {
    use super::*;
    holdfast::backend_contract!(on_ext4(FilesystemKind::Ext4).await);
}

mod ext4_volumes_on_xfs {
    use super::*;
    holdfast::backend_contract!(on_xfs(FilesystemKind::Ext4).await);
}

mod xfs_volumes_on_xfs {
    use super::*;
    holdfast::backend_contract!(on_xfs(FilesystemKind::Xfs).await);
}

mod btrfs_volumes_on_xfs {
    use super::*;
    holdfast::backend_contract!(on_xfs(FilesystemKind::Btrfs).await);
}

fn image(dir: &Path, locator: Locator) -> PathBuf {
    dir.join(locator.volume.to_string()).join(format!("image.{}", locator.generation))
}

#[tokio::test]
async fn blocks_are_shared_where_the_directory_can() {
    let kind = FilesystemKind::Ext4;
    let (ext4, xfs, btrfs) = (on_ext4(kind).await, on_xfs(kind).await, on_btrfs(kind).await);
    for ((trial, _place), shares) in [(ext4, false), (xfs, true), (btrfs, true)] {
        let volume = trial.created("v").await;
        trial.mounted(&volume).await.write("f", &"x".repeat(1 << 20));
        trial.unmounted(&volume).await;
        let cost = trial.snapshots().copy_cost(ContentRef::Live((&volume).into())).await.unwrap();
        assert_eq!(cost == CopyCost::Shared, shares, "{cost:?}");
    }
}

#[tokio::test]
async fn images_are_sparse_private_and_direct() {
    let (trial, place) = on_ext4(FilesystemKind::Ext4).await;
    let dir = place.path().join("loop");
    let volume = trial.created("v").await;
    let mounted = trial.mounted(&volume).await;
    let meta = image(&dir, (&volume).into()).metadata().unwrap();
    assert_eq!(meta.mode() & 0o7777, 0o600);
    assert!(meta.blocks() * 512 < trial.size.bytes() / 2, "{} blocks", meta.blocks());
    let directory = dir.join(volume.uuid.to_string()).metadata().unwrap();
    assert_eq!(directory.permissions().mode() & 0o7777, 0o700);
    let direct = run("losetup", &["--noheadings", "--output", "DIO", path(&mounted.device)]);
    assert_eq!(direct.trim(), "1");
    let snapshot = trial.cut(&volume, Some(&mounted)).await;
    let snapshots = dir.join(volume.uuid.to_string()).join("snapshots");
    let meta = snapshots.join(snapshot.to_string()).metadata().unwrap();
    assert_eq!(meta.mode() & 0o7777, 0o400);
}

#[tokio::test]
async fn no_device_outlives_its_last_user() {
    let (trial, place) = on_ext4(FilesystemKind::Ext4).await;
    let dir = place.path().join("loop");
    let volume = trial.created("v").await;
    drop(trial.backend.attach((&volume).into()).await.unwrap());
    trial.backend.detach((&volume).into()).await.unwrap().ignore();
    assert_eq!(loop_devices_below(&dir), [""; 0]);
    let mounted = trial.mounted(&volume).await;
    assert_eq!(loop_devices_below(&dir).len(), 1, "the mount holds it");
    drop(mounted);
    trial.unmounted(&volume).await;
    assert_eq!(loop_devices_below(&dir), [""; 0]);
}

/// The end of a writable opening is what has udev probe a device again.
#[tokio::test]
async fn looking_at_a_device_does_not_open_it_for_writing() {
    use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
    let (trial, _place) = on_ext4(FilesystemKind::Ext4).await;
    let (volume, other) = (trial.created("v").await, trial.created("w").await);
    let mounted = trial.mounted(&volume).await;
    let events = inotify::init(CreateFlags::NONBLOCK).unwrap();
    inotify::add_watch(&events, &mounted.device, WatchFlags::CLOSE_WRITE).unwrap();
    for one in [&volume, &other] {
        trial.backend.inspect(one.into()).await.unwrap();
    }
    assert!(trial.backend.delete(volume.uuid).await.is_err());
    trial.backend.delete(other.uuid).await.unwrap().ignore();
    let told = rustix::io::read(&events, &mut [0u8; 1024]);
    assert_eq!(told, Err(rustix::io::Errno::AGAIN), "it was closed after writing");
    trial.unmounted(&volume).await;
}

#[tokio::test]
async fn rule_07_a_replaced_image_is_found_out() {
    let (trial, place) = on_ext4(FilesystemKind::Ext4).await;
    let volume = trial.created("v").await;
    let locator = Locator::from(&volume);
    let image = image(&place.path().join("loop"), locator);
    trial.mounted(&volume).await.write("f", "first");
    let other = image.with_extension("other");
    run("cp", &["--sparse=always", path(&image), path(&other)]);
    std::fs::rename(&other, &image).unwrap();
    let kind = |result: Result<_, holdfast::error::Error>| result.map(drop).unwrap_err().kind();
    assert_eq!(kind(trial.backend.attach(locator).await.map(drop)), ErrorKind::Corrupt);
    assert_eq!(kind(trial.backend.inspect(locator).await.map(drop)), ErrorKind::Corrupt);
    assert_eq!(kind(trial.backend.detach(locator).await.map(drop)), ErrorKind::Corrupt);
    assert_eq!(kind(trial.backend.delete(volume.uuid).await.map(drop)), ErrorKind::InUse);
    trial.host.unmount(&trial.target(&volume)).await.unwrap().ignore();
    while !loop_devices_below(&place.path()).is_empty() {
        tokio::task::yield_now().await;
    }
    trial.backend.attach(locator).await.unwrap();
}

#[tokio::test]
async fn rule_07_a_second_device_of_the_same_image_is_refused() {
    let (trial, place) = on_ext4(FilesystemKind::Ext4).await;
    let volume = trial.created("v").await;
    let locator = Locator::from(&volume);
    let image = image(&place.path().join("loop"), locator);
    let by_hand = || run("losetup", &["--find", "--show", path(&image)]).trim().to_owned();
    let first = by_hand();
    let attachment = trial.backend.attach(locator).await.unwrap();
    assert_eq!(path(&device_of(&attachment)), first, "the one that is there is used");
    let second = by_hand();
    let refused = trial.backend.attach(locator).await.map(drop).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Corrupt);
    let refused = trial.backend.detach(locator).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::InUse);
    drop(attachment);
    run("losetup", &["--detach", &first, &second]);
}

#[tokio::test]
async fn anything_but_a_plain_file_is_no_image() {
    let (trial, place) = on_ext4(FilesystemKind::Ext4).await;
    let victim = place.path().join("victim");
    std::fs::write(&victim, "untouched").unwrap();
    for make in [0, 1, 2, 3] {
        let volume = trial.created("v").await;
        let locator = Locator::from(&volume);
        let image = image(&place.path().join("loop"), locator);
        std::fs::remove_file(&image).unwrap();
        match make {
            0 => symlink(&victim, &image).unwrap(),
            1 => std::fs::create_dir(&image).unwrap(),
            2 => drop(run("mkfifo", &[path(&image)])),
            _ => std::fs::write(&image, "x".repeat(5000)).unwrap(),
        }
        let refused = trial.backend.attach(locator).await.map(drop).unwrap_err();
        assert!(refused.kind() != ErrorKind::NotFound, "{}", refused.full_message());
        assert!(make == 3 || trial.backend.create(&volume).await.is_err());
        trial.backend.delete(volume.uuid).await.unwrap().ignore();
    }
    assert_eq!(std::fs::read_to_string(&victim).unwrap(), "untouched");
}

#[tokio::test]
async fn anything_but_a_plain_file_is_no_snapshot() {
    let (trial, place) = on_ext4(FilesystemKind::Ext4).await;
    let extents = trial.backend.extents().unwrap();
    let victim = place.path().join("victim");
    std::fs::write(&victim, "secret").unwrap();
    for make in [0, 1, 2] {
        let volume = trial.created("v").await;
        let snapshot = trial.cut(&volume, None).await;
        let snapshots = place.path().join("loop").join(volume.uuid.to_string()).join("snapshots");
        let file = snapshots.join(snapshot.to_string());
        std::fs::remove_file(&file).unwrap();
        match make {
            0 => symlink(&victim, &file).unwrap(),
            1 => std::fs::create_dir(&file).unwrap(),
            _ => drop(run("mkfifo", &[path(&file)])),
        }
        let refused = extents.open_snapshot(volume.uuid, snapshot).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Corrupt, "{}", refused.full_message());
    }
}

#[tokio::test]
async fn hostile_descriptions_are_told_and_hurt_nobody() {
    let (trial, place) = on_ext4(FilesystemKind::Ext4).await;
    let dir = place.path().join("loop");
    let good = trial.created("good").await;
    let description = holdfast::backend::Description {
        volume: good.clone(),
        snapshots: Vec::new(),
        retained: false,
    };
    trial.backend.describe(&description).await.unwrap();
    let good_text = std::fs::read(dir.join(good.uuid.to_string()).join("volume.json")).unwrap();
    let deep = "[".repeat(1 << 20).into_bytes();
    for text in [good_text, deep, b"{}".to_vec(), vec![0xff; 100], vec![b' '; 20 << 20]] {
        let volume = trial.created("v").await;
        let file = dir.join(volume.uuid.to_string()).join("volume.json");
        std::fs::write(&file, text).unwrap();
    }
    let linked = trial.created("v").await;
    symlink("/dev/zero", dir.join(linked.uuid.to_string()).join("volume.json")).unwrap();
    std::fs::create_dir(dir.join("not-ours")).unwrap();
    for found in trial.backend.survey().await.unwrap() {
        match found.description {
            Ok(description) => assert_eq!(description.volume, good),
            Err(error) => assert_eq!(error.kind(), ErrorKind::Corrupt, "{}", error.full_message()),
        }
    }
    let warnings = trial.backend.status().await.unwrap().warnings;
    assert!(warnings.iter().any(|warning| warning.contains("not-ours")), "{warnings:?}");
}

#[tokio::test]
async fn one_daemon_uses_a_directory() {
    let (trial, place) = on_ext4(FilesystemKind::Ext4).await;
    let dir = place.path().join("loop");
    let refused = LoopBackend::open(config(&dir), Expected::Anything).await;
    let refused = refused.map(drop).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::InUse);
    assert!(refused.full_message().contains(&std::process::id().to_string()));
    drop(trial);
    open(&dir).await;
}

#[tokio::test]
async fn a_directory_is_known_wherever_it_is_and_no_other_passes_for_it() {
    let (trial, place) = on_ext4(FilesystemKind::Ext4).await;
    let (dir, moved) = (place.path().join("loop"), place.path().join("moved"));
    let volume = trial.created("v").await;
    let id = trial.backend.storage().unwrap();
    assert_eq!(std::fs::read_to_string(dir.join(".id")).unwrap(), format!("{id}\n"));
    drop(trial);
    std::fs::rename(&dir, &moved).unwrap();
    let expecting = async |expected: Expected, dir: &Path| {
        LoopBackend::open(config(dir), expected).await.map(|backend| backend.storage().unwrap())
    };
    assert_eq!(expecting(Expected::Storage(id), &moved).await.unwrap(), id);
    let there = Expected::Volumes(vec![Locator::from(&volume)]);
    for expected in [Expected::Storage(id), there.clone()] {
        for make in [false, true] {
            if make {
                std::fs::create_dir(&dir).unwrap();
            }
            let refused = expecting(expected.clone(), &dir).await.unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::Unavailable, "{}", refused.full_message());
            assert_eq!(dir.exists(), make);
            assert!(!make || std::fs::read_dir(&dir).unwrap().count() == 0, "nothing is made");
        }
        std::fs::remove_dir(&dir).unwrap();
    }
    assert_ne!(expecting(Expected::Anything, &dir).await.unwrap(), id, "another one");
    assert!(expecting(Expected::Storage(id), &dir).await.is_err());
    std::fs::remove_file(moved.join(".id")).unwrap();
    assert!(expecting(Expected::Storage(id), &moved).await.is_err());
    let new = expecting(there, &moved).await.unwrap();
    assert_eq!(expecting(Expected::Storage(new), &moved).await.unwrap(), new);
    std::fs::write(moved.join(".id"), "x").unwrap();
    let refused = expecting(Expected::Anything, &moved).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Corrupt);
}

#[tokio::test]
async fn leftovers_of_an_interrupted_run_are_removed() {
    let (trial, place) = on_ext4(FilesystemKind::Ext4).await;
    let dir = place.path().join("loop");
    let volume = trial.created("v").await;
    drop(trial);
    for round in 0..2 {
        let work = dir.join(".work");
        std::fs::write(work.join("half-built"), "x").unwrap();
        std::fs::create_dir(work.join("half-deleted")).unwrap();
        symlink(dir.join(volume.uuid.to_string()), work.join("half-deleted/link")).unwrap();
        let backend = open(&dir).await;
        assert_eq!(std::fs::read_dir(&work).unwrap().count(), 0);
        assert_eq!(backend.status().await.unwrap().warnings.len(), 1, "it is told until then");
        assert_eq!(backend.remove_leftovers().await.unwrap(), Outcome::Changed);
        assert_eq!(backend.remove_leftovers().await.unwrap(), Outcome::Unchanged);
        assert_eq!(backend.status().await.unwrap().warnings, [""; 0], "round {round}");
        let presence = backend.inspect((&volume).into()).await.unwrap();
        assert!(matches!(presence, Presence::Present { .. }), "links are not followed");
    }
}

#[tokio::test]
async fn a_full_disk_is_told_and_nothing_is_left_behind() {
    let place = Place::plain();
    let dir = place.with_filesystem("below", "ext4", 64);
    let trial = trial(&place, dir.clone(), FilesystemKind::Ext4).await;
    let volume = trial.created("v").await;
    let mounted = trial.mounted(&volume).await;
    mounted.write("f", &"x".repeat(8 << 20));
    trial.unmounted(&volume).await;
    let filler = std::fs::File::create(dir.join("filler")).unwrap();
    while filler.write_all_at(&[1; 65536], filler.metadata().unwrap().len()).is_ok() {}
    while filler.write_all_at(&[1; 512], filler.metadata().unwrap().len()).is_ok() {}
    let locator = Locator::from(&volume);
    let cut = trial.snapshots().snapshot(locator, trial.snapshot_id(), &progress(), None).await;
    assert_eq!(cut.unwrap_err().kind(), ErrorKind::OutOfSpace);
    let clone = trial.volume("c");
    let live = ContentRef::Live(locator);
    let made = trial.snapshots().create_from(live, &clone, &progress(), None).await;
    assert_eq!(made.unwrap_err().kind(), ErrorKind::OutOfSpace);
    assert_eq!(std::fs::read_dir(dir.join(".work")).unwrap().count(), 0, "it holds no blocks");
    let warnings = trial.backend.status().await.unwrap().warnings;
    assert!(warnings.iter().any(|warning| warning.contains("free")), "{warnings:?}");
    assert_eq!(trial.mounted(&volume).await.read("f").map(|text| text.len()), Some(8 << 20));
    trial.unmounted(&volume).await;
    drop(filler);
    std::fs::remove_file(dir.join("filler")).unwrap();
    trial.cut(&volume, None).await;
}
