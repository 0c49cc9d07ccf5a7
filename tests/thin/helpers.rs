//! What the tests of pools share: daemons with a pool, and the kernel's and the tools' own word on it.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use holdfast::backend::thin::{ThinConfig, ThinStorage};
use holdfast::units::ByteSize;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use crate::common::daemon::Launch;
use crate::common::host::{Host, checked};
use crate::common::wait;

pub(crate) const MIB: u64 = 1 << 20;
const BLOCK: usize = 1 << 20;

/// Where a pool's own part begins on each of its devices.
const RESERVED: u64 = MIB;

/// A directory of the lab's host, which ends with that.
pub(crate) fn directory() -> PathBuf {
    tempfile::Builder::new().prefix("place-").tempdir().unwrap().keep()
}

/// A daemon whose volumes go to a pool on files in `directory`.
pub(crate) fn on_files(host: &Host, directory: &Path, size: &str) -> Launch {
    let directory = directory.to_str().unwrap();
    let args = ["--default-backend", "thin", "--thin-file", directory, "--thin-size", size];
    Launch::new(host).args(&args)
}

/// A daemon whose volumes go to a pool on the host's first two disks.
pub(crate) fn on_disks(host: &Host) -> Launch {
    on_devices(host, "/dev/ubda", "/dev/ubdb")
}

pub(crate) fn on_devices(host: &Host, data: &str, metadata: &str) -> Launch {
    let args = ["--default-backend", "thin", "--thin-data", data, "--thin-metadata", metadata];
    Launch::new(host).args(&args)
}

/// A backend without a daemon, with its pool on files in `directory`.
pub(crate) fn backend_config(directory: &Path) -> ThinConfig {
    ThinConfig {
        name: "thin".parse().unwrap(),
        storage: ThinStorage::Files {
            directory: directory.to_owned(),
            size: ByteSize::new(4 << 30),
        },
        chunk_size: ByteSize::new(64 << 10),
        default_size: ByteSize::GIB,
        low_water: "20%".parse().unwrap(),
        min_free: "10%".parse().unwrap(),
        copies: directory.join("copies"),
    }
}

#[track_caller]
pub(crate) fn dmsetup(args: &[&str]) -> String {
    checked(&mut Command::new("dmsetup"), args)
}

/// The devices of a kind that `dmsetup` shows.
#[track_caller]
pub(crate) fn devices(target: &str) -> Vec<String> {
    let list = dmsetup(&["ls", "--target", target]);
    let names = list.lines().filter_map(|line| line.split_whitespace().next());
    names.filter(|name| name.starts_with("holdfast-")).map(str::to_owned).collect()
}

/// The volumes' devices that `dmsetup` shows.
#[track_caller]
pub(crate) fn volume_devices() -> Vec<String> {
    let mut devices = devices("thin");
    devices.retain(|name| !name.ends_with("-records"));
    devices
}

/// The one pool of this host; a daemon that starts may still be at it.
#[track_caller]
pub(crate) fn pool_device() -> String {
    wait::until("there is one pool", || match &devices("thin-pool")[..] {
        [one] => Some(one.clone()),
        _ => None,
    })
}

/// What the kernel says of the one pool.
#[derive(Debug, Clone)]
pub(crate) struct Status {
    pub(crate) transaction: u64,
    pub(crate) metadata: (u64, u64),
    pub(crate) data: (u64, u64),
    pub(crate) words: String,
}

#[track_caller]
pub(crate) fn status() -> Status {
    let words = dmsetup(&["status", "--noflush", &pool_device()]);
    let parsed = || {
        let mut fields = words.split_whitespace().skip(3);
        let level = |text: &str| {
            let (used, total) = text.split_once('/')?;
            Some((used.parse().ok()?, total.parse().ok()?))
        };
        Some((fields.next()?.parse().ok()?, level(fields.next()?)?, level(fields.next()?)?))
    };
    let (transaction, metadata, data) = parsed().unwrap_or_else(|| panic!("{words}"));
    Status { transaction, metadata, data, words }
}

/// Sends the one pool a message, past Holdfast.
#[track_caller]
pub(crate) fn message(text: &str) {
    dmsetup(&["message", &pool_device(), "0", text]);
}

/// A loop device over the metadata's part of a device, for the tools.
#[derive(Debug)]
pub(crate) struct MetadataPart(String);

impl MetadataPart {
    /// The pool is not active.
    #[track_caller]
    pub(crate) fn of(device: &str) -> Self {
        let offset = RESERVED.to_string();
        let args = ["--find", "--show", "--read-only", "--offset", &offset, device];
        Self(checked(&mut Command::new("losetup"), &args).trim().to_owned())
    }

    /// `thin_check` finds it sound.
    #[track_caller]
    pub(crate) fn assert_sound(&self) {
        checked(&mut Command::new("thin_check"), &[&self.0]);
    }

    fn dump(&self) -> String {
        checked(&mut Command::new("thin_dump"), &[&self.0])
    }

    /// The numbers of its thin devices.
    #[track_caller]
    pub(crate) fn ids(&self) -> BTreeSet<u32> {
        let dump = self.dump();
        let ids = dump.split("<device dev_id=\"").skip(1);
        ids.map(|rest| rest.split('"').next().unwrap().parse().unwrap()).collect()
    }

    /// What its manager counted last.
    #[track_caller]
    pub(crate) fn transaction(&self) -> u64 {
        let dump = self.dump();
        let rest = dump.split(" transaction=\"").nth(1).unwrap();
        rest.split('"').next().unwrap().parse().unwrap()
    }
}

impl Drop for MetadataPart {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["--detach", &self.0]).output();
    }
}

/// Bytes that no other seed gives.
pub(crate) fn pattern(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// Writes `count` MiB of patterns, each MiB flushed, and gives how many were.
pub(crate) fn fill(path: &Path, seed: u64, count: u64) -> (u64, Option<std::io::Error>) {
    let file = File::options().create(true).truncate(false).write(true).open(path).unwrap();
    for at in 0..count {
        let bytes = pattern(seed + at, BLOCK);
        let written = file.write_all_at(&bytes, at * MIB).and_then(|()| file.sync_all());
        if let Err(error) = written {
            return (at, Some(error));
        }
    }
    (count, None)
}

/// What is read next comes from the disk and not from memory.
pub(crate) fn forget(file: &File) {
    posix_fadvise(file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
}

/// The beginning of a device, which somebody writes to past this one's memory.
pub(crate) fn beginning(device: &str) -> Vec<u8> {
    let file = File::open(device).unwrap();
    forget(&file);
    let mut bytes = vec![0; 4 * BLOCK];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

/// The first `count` MiB are those that [`fill`] wrote.
#[track_caller]
pub(crate) fn assert_filled(path: &Path, seed: u64, count: u64) {
    let file = File::open(path).unwrap();
    forget(&file);
    for at in 0..count {
        let mut bytes = vec![0; BLOCK];
        file.read_exact_at(&mut bytes, at * MIB).unwrap();
        assert!(bytes == pattern(seed + at, BLOCK), "MiB {at} of {}", path.display());
    }
}

/// The warnings of `holdfast status`.
#[track_caller]
pub(crate) fn warnings(cli: &crate::common::cli::Cli) -> String {
    cli.ok(&["status"]).json()["warnings"].to_string()
}

/// Waits until `holdfast status` warns of something.
#[track_caller]
pub(crate) fn wait_warning(cli: &crate::common::cli::Cli, text: &str) {
    let told = wait::try_until(|| warnings(cli).contains(text).then_some(()));
    assert!(told.is_some(), "no word of {text:?}: {}", warnings(cli));
}
