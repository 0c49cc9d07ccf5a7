//! What the kernel and the tools of dm-thin say of the one pool that a host has, and a daemon that has
//! its volumes there.

use std::process::Command;

use crate::common::daemon::Launch;
use crate::common::host::{Host, checked};
use crate::common::repository::Repository;

/// A daemon whose volumes go to a pool on files, and its backups to a repository.
pub(crate) fn launch(host: &Host) -> Launch {
    launch_sized(host, "2G")
}

/// The same with another size of the pool.
pub(crate) fn launch_sized(host: &Host, size: &str) -> Launch {
    let directory = host.dir().join("thin");
    let directory = directory.to_str().expect("UTF-8");
    let pool = ["--thin-file", directory, "--thin-size", size];
    let launch = Launch::new(host).short_grace().args(&["--default-backend", "thin"]).args(&pool);
    Repository::of(host).known_to(launch)
}

fn dmsetup(args: &[&str]) -> String {
    checked(&mut Command::new("dmsetup"), args)
}

/// `NAME:SUSPENDED OR ACTIVE:MINOR` of all of our devices, sorted.
fn devices() -> Vec<(String, String, String)> {
    let columns = ["info", "--columns", "--noheadings", "--separator", ":"];
    let list = dmsetup(&[&columns[..], &["-o", "name,suspended,minor"]].concat());
    let mut devices: Vec<_> = list
        .lines()
        .filter(|line| line.starts_with("holdfast-"))
        .map(|line| {
            let words: Vec<_> = line.split(':').map(str::to_owned).collect();
            let words: [String; 3] = words.try_into().expect("three columns");
            words.into()
        })
        .collect();
    devices.sort();
    devices
}

/// `holdfast-` and the pool come before what the device is.
fn what(name: &str) -> &str {
    name.splitn(3, '-').nth(2).expect("three parts")
}

fn is_own(name: &str) -> bool {
    matches!(what(name), "metadata" | "data" | "pool" | "records")
}

/// The pool, its parts and its records.
pub(crate) fn own_devices() -> Vec<String> {
    let names = devices().into_iter().map(|(name, ..)| name);
    names.filter(|name| is_own(name)).map(|name| what(&name).to_owned()).collect()
}

/// The devices of snapshots that are read.
pub(crate) fn snapshot_devices() -> Vec<String> {
    let names = devices().into_iter().map(|(name, ..)| name);
    names.filter(|name| what(name).starts_with("snapshot-")).collect()
}

/// The minor number of a device.
#[track_caller]
pub(crate) fn minor_of(device: &str) -> String {
    let found = devices().into_iter().find(|(name, ..)| name == device);
    found.unwrap_or_else(|| panic!("there is no {device}")).2
}

/// The devices of volumes, and of snapshots that are read.
pub(crate) fn volume_devices() -> Vec<String> {
    devices().into_iter().map(|(name, ..)| name).filter(|name| !is_own(name)).collect()
}

pub(crate) fn suspended_devices() -> Vec<String> {
    let suspended = devices().into_iter().filter(|(_, state, _)| state == "Suspended");
    suspended.map(|(name, ..)| name).collect()
}

fn own(which: &str) -> (String, String) {
    let found = devices().into_iter().find(|(name, ..)| what(name) == which);
    let (name, _, minor) = found.unwrap_or_else(|| panic!("there is no {which}"));
    (name, format!("/dev/dm-{minor}"))
}

/// Tells the pool something behind the daemon's back.
pub(crate) fn message(text: &str) {
    dmsetup(&["message", &own("pool").0, "0", text]);
}

/// How many chunks of data the pool has.
pub(crate) fn data_chunks() -> u64 {
    let status = dmsetup(&["status", &own("pool").0]);
    let words: Vec<_> = status.split_whitespace().collect();
    // Start, length, kind, transaction, metadata, data.
    words[5].split_once('/').and_then(|(_, total)| total.parse().ok()).expect("a pool's status")
}

/// The thin devices of the active pool, by its metadata.
pub(crate) fn thin_ids() -> Vec<u32> {
    message("reserve_metadata_snap");
    let list = checked(
        &mut Command::new("thin_ls"),
        &["-m", "--no-headers", "-o", "DEV", &own("metadata").1],
    );
    message("release_metadata_snap");
    list.split_whitespace().map(|id| id.parse().expect("a number")).collect()
}

/// No device is left, and the tools find the metadata of the pool on files sound and without any
/// thin device but the records.
pub(crate) fn assert_stopped_and_sound(host: &Host) {
    assert_eq!(devices(), []);
    assert_eq!(host.loops(), []);
    // The pool's own part begins behind the header, and the tools open only what takes direct input.
    let file = host.dir().join("thin/metadata");
    let file = file.to_str().expect("UTF-8");
    let losetup = ["--find", "--show", "--read-only", "--offset=1M", file];
    let device = checked(&mut Command::new("losetup"), &losetup);
    let device = device.trim();
    checked(&mut Command::new("thin_check"), &[device]);
    let list = checked(&mut Command::new("thin_ls"), &["--no-headers", "-o", "DEV", device]);
    checked(&mut Command::new("losetup"), &["--detach", device]);
    assert_eq!(list.trim(), "0", "only the records are left");
}
