//! A pool whose metadata is damaged, and how it is mended.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::pools::{error, on_files};
use crate::common::daemon::Daemon;
use crate::common::host::Host;
use crate::common::lab::in_lab;

const BLOCK: usize = 4096;

/// Where the metadata begins in its file.
const START: u64 = 1 << 20;

// The superblock's fields and its checksum's mask (the kernel's dm-thin-metadata.c).
const FLAGS: usize = 4;
const DATA_BITMAP_ROOT: usize = 80;
const SUPERBLOCK_MASK: u32 = 160_774;

/// The metadata of a pool on files, while no daemon has it.
struct Metadata(PathBuf);

impl Metadata {
    fn of(host: &Host) -> Self {
        Self(host.dir().join("thin/metadata"))
    }

    fn block(&self, number: u64) -> [u8; BLOCK] {
        let mut block = [0; BLOCK];
        let file = File::open(&self.0).unwrap();
        file.read_exact_at(&mut block, START + number * BLOCK as u64).unwrap();
        block
    }

    fn write(&self, number: u64, bytes: &[u8]) {
        let file = File::options().write(true).open(&self.0).unwrap();
        file.write_all_at(bytes, START + number * BLOCK as u64).unwrap();
        file.sync_all().unwrap();
    }

    /// As the kernel marks it when a change of it has failed.
    fn set_needs_check(&self) {
        let mut block = self.block(0);
        block[FLAGS] |= 1;
        let checksum = !crc32c::crc32c(&block[4..]) ^ SUPERBLOCK_MASK;
        block[..4].copy_from_slice(&checksum.to_le_bytes());
        self.write(0, &block);
    }

    /// Flips bytes of the node in which the counts of the data's chunks begin.
    fn damage_space_map(&self) {
        let root = self.block(0)[DATA_BITMAP_ROOT..][..8].try_into().unwrap();
        let root = u64::from_le_bytes(root);
        let mut node = self.block(root);
        for byte in &mut node[100..200] {
            *byte ^= 0xff;
        }
        self.write(root, &node);
    }

    fn all(&self) -> Vec<u8> {
        std::fs::read(&self.0).unwrap()[usize::try_from(START).unwrap()..].to_vec()
    }
}

fn copies(daemon: &Daemon<'_>) -> Vec<PathBuf> {
    let directory = daemon.state_dir().join("thin-metadata");
    let entries = std::fs::read_dir(directory).map(|all| all.flatten().collect()).unwrap_or(vec![]);
    entries.into_iter().map(|entry| entry.path()).collect()
}

/// A stopped daemon with the volume `data`, whose file holds "kept".
fn prepared(host: &Host) -> Daemon<'_> {
    let mut daemon = on_files(host, "1G").start(host);
    let plugin = daemon.plugin();
    plugin.create("data", &[("size", "256M")]).unwrap();
    let mountpoint = plugin.mount("data", "c1").unwrap();
    daemon.write(mountpoint.join("file"), "kept");
    let (code, why) = error(&daemon.cli().run(&["pool", "repair"]));
    assert_eq!(code, 4, "{why}");
    assert!(why.contains("in-use") && why.contains("stop the containers"), "{why}");
    assert_eq!(daemon.read(mountpoint.join("file")), "kept");
    plugin.unmount("data", "c1").unwrap();
    daemon.terminate();
    daemon
}

/// The pool is told to be damaged, nothing else suffers, and `check` tells `why`.
#[track_caller]
fn is_damaged(daemon: &Daemon<'_>, why: &str) {
    let cli = daemon.cli();
    let plugin = daemon.plugin();
    let pool = cli.ok(&["pool", "inspect"]).json();
    assert_eq!((&pool["state"], &pool["data"]), (&json!("damaged"), &Value::Null));
    assert!(pool["warnings"][0].as_str().unwrap().contains("holdfast pool check"), "{pool}");
    assert_eq!(cli.ok(&["pool", "ls"]).json()[0], pool);
    let status = cli.ok(&["status"]).json();
    assert_eq!(status["pools"][0]["state"], "damaged");
    assert!(!status["warnings"].as_array().unwrap().is_empty(), "{status}");
    plugin.create("other", &[("size", "16M"), ("backend", "loop")]).unwrap();
    let mountpoint = plugin.mount("other", "c1").unwrap();
    daemon.write(mountpoint.join("file"), "fine");
    plugin.unmount("other", "c1").unwrap();
    plugin.remove("other").unwrap();
    assert!(plugin.mount("data", "c1").is_err());
    assert_eq!(cli.inspect("data")["state"], "ready");

    let run = cli.run(&["pool", "check"]);
    assert_eq!(run.code, 1, "{run:?}");
    let check = &run.json()["check"];
    assert_eq!(check["sound"], false);
    assert!(check["findings"].to_string().contains(why), "{check}");
    assert!(check["advice"].to_string().contains("holdfast pool repair"), "{check}");
}

/// The pool works, and its volumes have what was written.
#[track_caller]
fn is_whole(daemon: &Daemon<'_>) {
    let (cli, plugin) = (daemon.cli(), daemon.plugin());
    assert_eq!(cli.ok(&["pool", "inspect"]).json()["state"], "active");
    assert_eq!(cli.ok(&["pool", "check"]).json()["check"]["sound"], true);
    let mountpoint = plugin.mount("data", "c2").unwrap();
    assert_eq!(daemon.read(mountpoint.join("file")), "kept");
    plugin.create("new", &[("size", "64M")]).unwrap();
    plugin.remove("new").unwrap();
    plugin.unmount("data", "c2").unwrap();
}

in_lab! {
    on |host| host.memory(1024).modules(&["dm-thin-pool", "loop"]);
    fn a_pool_that_has_to_be_checked_is_used_again_after_repair() {
        let host = Host::new();
        let mut daemon = prepared(&host);
        Metadata::of(&host).set_needs_check();
        daemon.start_again();
        is_damaged(&daemon, "needs_check");
        let done = daemon.cli().ok(&["pool", "repair"]).json();
        assert!(done["report"].to_string().contains("mark"), "{done}");
        assert_eq!(copies(&daemon).len(), 1);
        is_whole(&daemon);
        daemon.kill_and_start_again();
        is_whole(&daemon);
    }
}

in_lab! {
    on |host| host.memory(1024).modules(&["dm-thin-pool", "loop"]);
    fn damaged_metadata_is_mended_and_a_copy_kept() {
        let host = Host::new();
        let mut daemon = prepared(&host);
        let metadata = Metadata::of(&host);
        metadata.damage_space_map();
        let damaged = metadata.all();
        daemon.start_again();
        is_damaged(&daemon, "thin_check");
        // Only looked at so far.
        assert!(metadata.all() == damaged);
        let done = daemon.cli().ok(&["pool", "repair"]).json();
        assert!(done["report"].to_string().contains("thin_repair mended"), "{done}");
        let [copy] = &copies(&daemon)[..] else { panic!("{:?}", copies(&daemon)) };
        assert!(std::fs::read(copy).unwrap() == damaged, "the copy is what was there");
        assert!(done["report"].to_string().contains(copy.to_str().unwrap()), "{done}");
        is_whole(&daemon);
        let operations = daemon.cli().ok(&["operation", "ls"]).json();
        let repair = operations.as_array().unwrap().iter().find(|one| one["kind"] == "repair");
        assert_eq!(repair.unwrap()["report"], done["report"]);
        daemon.kill_and_start_again();
        is_whole(&daemon);
    }
}

in_lab! {
    on |host| host.memory(1024).modules(&["dm-thin-pool", "loop"]);
    fn metadata_that_cannot_be_mended_is_left_as_it_is() {
        let host = Host::new();
        let mut daemon = prepared(&host);
        let metadata = Metadata::of(&host);
        let superblock = metadata.block(0);
        metadata.write(0, &superblock.map(|byte| byte ^ 0x55));
        let damaged = metadata.all();
        daemon.start_again();
        is_damaged(&daemon, "superblock");
        let (code, why) = error(&daemon.cli().run(&["pool", "repair"]));
        assert_eq!(code, 1, "{why}");
        let [copy] = &copies(&daemon)[..] else { panic!("{:?}", copies(&daemon)) };
        assert!(why.contains("was not changed") && why.contains(copy.to_str().unwrap()), "{why}");
        assert!(metadata.all() == damaged);
        assert!(std::fs::read(copy).unwrap() == damaged);
        is_damaged(&daemon, "superblock");

        // By hand, as the error says that one may.
        metadata.write(0, &superblock);
        let check = daemon.cli().ok(&["pool", "check"]).json()["check"].clone();
        assert!(check["advice"].to_string().contains("holdfast pool repair"), "{check}");
        daemon.cli().ok(&["pool", "repair"]);
        is_whole(&daemon);
    }
}

in_lab! {
    on |host| host.memory(1024).modules(&["dm-thin-pool", "loop"]);
    fn a_repair_that_was_cut_off_is_finished_by_the_next() {
        let host = Host::new();
        let mut daemon = prepared(&host);
        let metadata = Metadata::of(&host);
        let pool = pool_uuid(&host.dir().join("thin/metadata"));
        let before = metadata.all();
        let directory = daemon.state_dir().join("thin-metadata");
        std::fs::create_dir_all(&directory).unwrap();
        let copy = directory.join(format!("{pool}-20260101T000000000Z.metadata"));
        std::fs::write(&copy, &before).unwrap();
        std::fs::write(copy.with_extension("mended"), &before).unwrap();
        // As it is in the middle: the superblock spoilt, other blocks neither old nor new.
        let mut superblock = metadata.block(0);
        superblock[..4].iter_mut().for_each(|byte| *byte = !*byte);
        metadata.write(0, &superblock);
        for number in 1..40 {
            metadata.write(number, &[0xa5; BLOCK]);
        }
        daemon.start_again();
        is_damaged(&daemon, "superblock");
        let done = daemon.cli().ok(&["pool", "repair"]).json();
        assert!(done["report"].to_string().contains("is finished now"), "{done}");
        assert_eq!(copies(&daemon), [copy]);
        is_whole(&daemon);
    }
}

/// The pool that a file belongs to, by its header.
fn pool_uuid(path: &Path) -> String {
    let mut block = [0; BLOCK];
    File::open(path).unwrap().read_exact_at(&mut block, 0).unwrap();
    let length = u32::from_le_bytes(block[8..12].try_into().unwrap());
    let header: Value = serde_json::from_slice(&block[16..][..length as usize]).unwrap();
    header["pool"].as_str().unwrap().to_owned()
}
