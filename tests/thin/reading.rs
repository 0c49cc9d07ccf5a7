//! Snapshots that are read: the devices that the kernel has of them meanwhile, and what a killed reader
//! leaves.

use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

use holdfast::backend::contract::{device_of, progress, volume_on};
use holdfast::backend::thin::ThinBackend;
use holdfast::backend::{Backend, Expected, SnapshotImage};
use holdfast::error::{ErrorKind, Result};
use holdfast::failpoint;
use holdfast::id::{SnapshotUuid, VolumeUuid};
use holdfast::model::{Outcome, Volume};
use holdfast::units::ByteSize;
use uuid::Uuid;

use crate::common::host::checked;
use crate::common::lab::in_lab;
use crate::common::wait;
use crate::helpers::{MIB, backend_config, directory, dmsetup, fill, pattern};
use crate::pool;

const VOLUME: VolumeUuid = VolumeUuid::from_uuid(Uuid::from_u128(7));
const SNAPSHOT: SnapshotUuid = SnapshotUuid::from_uuid(Uuid::from_u128(8));

/// In MiB.
const SIZE: u64 = 32;
const SEED: u64 = 100;

/// Tells a process that it is a reader, and where the pool is.
const READER: &str = "HOLDFAST_TEST_READER";

fn wait_for<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Runtime::new().unwrap().block_on(work)
}

async fn open(directory: &Path) -> ThinBackend {
    ThinBackend::open(backend_config(directory), Expected::Anything).await.unwrap()
}

async fn read(backend: &ThinBackend) -> Result<SnapshotImage> {
    backend.extents().unwrap().open_snapshot(VOLUME, SNAPSHOT).await
}

/// A pool with the snapshot of a full volume, active.
async fn prepared() -> (PathBuf, ThinBackend) {
    let directory = directory();
    let backend = open(&directory).await;
    let size = Some(ByteSize::new(SIZE * MIB));
    let volume = Volume { size, ..volume_on(&backend, VOLUME, "v") };
    backend.create(&volume).await.unwrap().ignore();
    let device = device_of(&backend.attach((&volume).into()).await.unwrap());
    assert_eq!(fill(&device, SEED, SIZE).0, SIZE);
    backend.detach((&volume).into()).await.unwrap().ignore();
    let snapshots = backend.snapshots().unwrap();
    let cut = snapshots.snapshot((&volume).into(), SNAPSHOT, &progress(), None).await;
    assert_eq!(cut.unwrap(), Outcome::Changed);
    (directory, backend)
}

#[track_caller]
fn assert_reads(image: &SnapshotImage) {
    assert_eq!(image.size, SIZE * MIB);
    let mut bytes = vec![0; usize::try_from(MIB).unwrap()];
    for at in 0..SIZE {
        image.file.read_exact_at(&mut bytes, at * MIB).unwrap();
        assert!(bytes == pattern(SEED + at, bytes.len()), "MiB {at}");
    }
}

/// Takes the pool out of the kernel.
#[track_caller]
fn assert_stops(stopped: Result<Outcome>) {
    assert_eq!(stopped.unwrap(), Outcome::Changed);
    assert_eq!((pool::snapshot_devices(), pool::own_devices()), (vec![], vec![]));
}

fn wait_until_nothing_is_read() {
    wait::until_true("no device of a snapshot is left", || pool::snapshot_devices().is_empty());
}

in_lab! {
    on |host| host.memory(1024).modules(&["dm-thin-pool", "loop"]);
    fn readers_share_a_device_that_goes_with_the_last_of_them() {
        wait_for(async {
            let (directory, backend) = prepared().await;
            let (one, other) = (read(&backend).await.unwrap(), read(&backend).await.unwrap());
            let devices = pool::snapshot_devices();
            let [device] = &devices[..] else { panic!("{devices:?}") };
            let node = format!("/dev/dm-{}", pool::minor_of(device));
            assert_eq!(checked(&mut Command::new("blockdev"), &["--getro", &node]).trim(), "1");
            drop(one);
            assert_reads(&other);
            let deleted = backend.snapshots().unwrap().delete_snapshot(VOLUME, SNAPSHOT).await;
            assert_eq!(deleted.unwrap_err().kind(), ErrorKind::InUse);
            let repaired = backend.pool().unwrap().repair_pool().await.unwrap_err();
            assert_eq!(repaired.kind(), ErrorKind::InUse);
            assert!(repaired.full_message().contains(device), "{}", repaired.full_message());
            assert_eq!(pool::snapshot_devices(), devices);
            drop(other);
            wait_until_nothing_is_read();

            // A pool that is closed meanwhile stays for the reader, and is used again.
            let image = read(&backend).await.unwrap();
            assert_eq!(backend.stop().await.unwrap(), Outcome::Unchanged);
            assert_reads(&image);
            drop(image);
            wait_until_nothing_is_read();
            drop(backend);
            let backend = open(&directory).await;
            drop(read(&backend).await.unwrap());
            assert_stops(backend.stop().await);
        });
    }
}

in_lab! {
    on |host| host.memory(1024).modules(&["dm-thin-pool", "loop"]);
    fn a_snapshot_is_read_in_large_pieces() {
        wait_for(async {
            let (_directory, backend) = prepared().await;
            let image = read(&backend).await.unwrap();
            let [device] = &pool::snapshot_devices()[..] else { panic!() };
            let path = format!("/sys/block/dm-{}/stat", pool::minor_of(device));
            assert_reads(&image);
            let stat = std::fs::read_to_string(path).unwrap();
            let number = |at| stat.split_whitespace().nth(at).unwrap().parse::<u64>().unwrap();
            let (reads, sectors) = (number(0), number(2));
            assert_eq!(sectors, SIZE * MIB / 512, "each byte is read once");
            // The pool divides everything at its chunks of 64 KiB.
            assert!(sectors / reads >= 64, "{reads} reads of {sectors} sectors");
            drop(image);
            assert_stops(backend.stop().await);
        });
    }
}

in_lab! {
    on |host| host.memory(1024).modules(&["dm-thin-pool", "loop"]);
    fn rule_07_only_the_snapshots_own_device_is_read() {
        wait_for(async {
            let (directory, backend) = prepared().await;
            let image = read(&backend).await.unwrap();
            let [name] = &pool::snapshot_devices()[..] else { panic!() };
            let table = dmsetup(&["table", name]).trim().to_owned();
            let uuid = ["info", "--columns", "--noheadings", "-o", "uuid", name];
            let uuid = dmsetup(&uuid).trim().to_owned();
            drop(image);
            wait_until_nothing_is_read();
            let create = |access: &[&str], table: &str| {
                let create = ["create", name, "--uuid", &uuid, "--table", table];
                dmsetup(&[&create, access].concat());
            };
            let records = format!("{} 0", table.rsplit_once(' ').unwrap().0);
            for (access, table) in [(&[][..], &table), (&["--readonly"], &records)] {
                create(access, table);
                let refused = read(&backend).await.unwrap_err();
                assert_eq!(refused.kind(), ErrorKind::Corrupt, "{}", refused.full_message());
                wait_until_nothing_is_read();
            }

            // One that was left, and that somebody looks at, is taken over.
            create(&["--readonly"], &table);
            let node = format!("/dev/dm-{}", pool::minor_of(name));
            let looks = std::fs::File::open(node).unwrap();
            assert_eq!(backend.stop().await.unwrap(), Outcome::Unchanged);
            drop(backend);
            let backend = open(&directory).await;
            assert_eq!(pool::snapshot_devices(), std::slice::from_ref(name));
            let image = read(&backend).await.unwrap();
            assert_eq!(pool::snapshot_devices(), std::slice::from_ref(name));
            assert_reads(&image);
            drop((image, looks));
            assert_stops(backend.stop().await);
        });
    }
}

in_lab! {
    on |host| host.memory(1024).modules(&["dm-thin-pool", "loop"]);
    fn reading_survives_kills() {
        if let Some(directory) = std::env::var_os(READER) {
            return wait_for(reader(Path::new(&directory)));
        }
        wait_for(async {
            let (directory, backend) = prepared().await;
            assert_stops(backend.stop().await);
            // The pool has four devices of its own, which are made before.
            for (failpoints, left) in [
                (&["device.made=kill@5"][..], 1),
                (&["device.loaded=kill@5"], 1),
                (&["device.resumed=kill@5"], 1),
                (&["device.removed=kill"], 0),
                // And the start that finds it.
                (&["device.resumed=kill@5", "device.removed=kill"], 0),
            ] {
                for failpoint in failpoints {
                    eprintln!("--- a reader is killed at {failpoint}");
                    assert_eq!(run_reader(&directory, failpoint).signal(), Some(9), "{failpoint}");
                }
                assert_eq!(pool::snapshot_devices().len(), left, "{failpoints:?}");
                let backend = open(&directory).await;
                assert_eq!(pool::snapshot_devices(), Vec::<String>::new(), "{failpoints:?}");
                assert_reads(&read(&backend).await.unwrap());
                assert_stops(backend.stop().await);
            }
            let failures = "device.made=error@5,device.loaded=error@5,device.resumed=error@5";
            assert!(run_reader(&directory, failures).success());
            let backend = open(&directory).await;
            backend.delete(VOLUME).await.unwrap().ignore();
            assert_stops(backend.stop().await);
        });
    }
}

/// This test as a process of its own.
fn run_reader(directory: &Path, failpoints: &str) -> ExitStatus {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "reading::reading_survives_kills", "--nocapture"])
        .env(READER, directory)
        .env(failpoint::VARIABLE, failpoints)
        .status()
        .unwrap()
}

/// Reads the snapshot; the opening fails as often as it is made to, and leaves nothing.
async fn reader(directory: &Path) {
    let failpoints = std::env::var(failpoint::VARIABLE).unwrap();
    failpoint::arm(&failpoints).unwrap();
    let backend = open(directory).await;
    for _ in failpoints.matches("=error") {
        let failed = read(&backend).await.unwrap_err().full_message();
        assert!(failed.contains("failpoint"), "{failed}");
        assert_eq!(pool::snapshot_devices(), Vec::<String>::new());
    }
    let image = read(&backend).await.unwrap();
    assert_reads(&image);
    drop(image);
    assert_stops(backend.stop().await);
}
