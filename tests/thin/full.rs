//! Pools without room: for data, for metadata, and on a filesystem that is full itself.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::common::daemon::Daemon;
use crate::common::host::{Host, checked};
use crate::common::lab::in_lab;
use crate::common::wait;
use crate::helpers::{
    self, MIB, MetadataPart, assert_filled, dmsetup, fill, on_devices, on_files, status,
    wait_warning, warnings,
};

/// How long an answer may take on this slow host while a pool is full.
const PATIENCE: Duration = Duration::from_secs(20);

/// A filesystem of its own for a pool on files, on the first disk; private hosts that come after it
/// see it.
fn filesystem() -> PathBuf {
    checked(&mut Command::new("mkfs.ext4"), &["-q", "-m", "0", "/dev/ubda"]);
    let place = PathBuf::from("/mnt");
    checked(&mut Command::new("mount"), &["/dev/ubda", place.to_str().unwrap()]);
    place
}

/// Uses a volume on another backend, and the names of all, until it is told to stop, and once at least.
fn use_others(daemon: &Daemon<'_>, stop: &AtomicBool) {
    let plugin = daemon.plugin();
    loop {
        let began = Instant::now();
        assert!(plugin.list().contains(&"full".to_owned()));
        assert_eq!(plugin.get("full").unwrap()["Name"], "full");
        let mountpoint = plugin.mount("beside", "b").unwrap();
        daemon.write(mountpoint.join("file"), "written");
        assert_eq!(daemon.read(mountpoint.join("file")), "written");
        plugin.unmount("beside", "b").unwrap();
        assert!(began.elapsed() < PATIENCE, "{:?}", began.elapsed());
        if stop.load(Ordering::Relaxed) {
            break;
        }
    }
}

/// Writes to the mounted volume `full` until that fails, while another backend is used, and gives how
/// many MiB were flushed.
fn fill_up(daemon: &Daemon<'_>, file: &Path, seed: u64) -> u64 {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let others = scope.spawn(|| use_others(daemon, &stop));
        let (flushed, error) = fill(file, seed, 4096);
        let error = error.expect("an end of the room");
        let kinds = [Some(nix::libc::ENOSPC), Some(nix::libc::EIO), Some(nix::libc::EROFS)];
        assert!(kinds.contains(&error.raw_os_error()), "{error}");
        stop.store(true, Ordering::Relaxed);
        others.join().unwrap();
        flushed
    })
}

#[track_caller]
fn assert_refused(daemon: &Daemon<'_>) {
    let refused = daemon.plugin().create("more", &[]).unwrap_err();
    assert!(refused.contains("holdfast pool grow"), "{refused}");
    let refused = daemon.cli().run(&["snapshot", "create", "idle@more"]);
    assert!(refused.code == 1 && refused.stderr.contains("holdfast pool grow"), "{refused:?}");
}

/// The number of the one attached volume's thin device.
fn volume_id() -> u32 {
    let table = dmsetup(&["table", &helpers::volume_devices()[0]]);
    table.split_whitespace().last().unwrap().parse().unwrap()
}

/// Unmounts and mounts again: a filesystem whose journal could not be written is read-only until then.
fn mount_again(host: &Host, daemon: &Daemon<'_>) -> PathBuf {
    let plugin = daemon.plugin();
    plugin.unmount("full", "c").unwrap();
    host.inside(plugin.mount("full", "c").unwrap())
}

in_lab! {
    on |host| host.memory(768).modules(&["dm-thin-pool", "loop"]).new_disk(1024);
    fn a_pool_on_files_grows_under_a_writer_that_sees_no_error() {
        let place = filesystem();
        let host = Host::new();
        let mut daemon = on_files(&host, &place.join("thin"), "256M").start(&host);
        let plugin = daemon.plugin();
        plugin.create("data", &[("size", "2G")]).unwrap();
        let before = status().data.1;
        let file = host.inside(plugin.mount("data", "c").unwrap().join("file"));
        let (written, error) = fill(&file, 1, 500);
        assert!(error.is_none(), "after {written} MiB: {error:?}");
        assert_filled(&file, 1, 500);
        assert!(status().data.1 > before);
        assert_eq!(warnings(&daemon.cli()), "[]");
        plugin.unmount("data", "c").unwrap();
        daemon.terminate();
        nix::unistd::syncfs(File::open("/mnt").unwrap()).unwrap();
        MetadataPart::of("/mnt/thin/metadata").assert_sound();
    }
}

in_lab! {
    on |host| host.memory(768).modules(&["dm-thin-pool", "loop"]).new_disk(512);
    fn a_full_filesystem_below_a_pool_stops_writers_and_nothing_else() {
        let place = filesystem();
        let host = Host::new();
        let ballast = place.join("ballast");
        assert!(fill(&ballast, 9, 150).1.is_none());
        let mut daemon = on_files(&host, &place.join("thin"), "256M").start(&host);
        let (plugin, cli) = (daemon.plugin(), daemon.cli());
        plugin.create("beside", &[("backend", "loop"), ("size", "64M")]).unwrap();
        plugin.create("idle", &[("size", "64M")]).unwrap();
        plugin.create("full", &[("size", "2G")]).unwrap();
        let mountpoint = host.inside(plugin.mount("full", "c").unwrap());
        let (old, new) = (mountpoint.join("old"), mountpoint.join("new"));
        assert!(fill(&old, 1, 100).1.is_none());
        cli.ok(&["snapshot", "create", "full@a"]);
        // The snapshot keeps what was there.
        assert!(fill(&old, 100, 100).1.is_none());

        let flushed = fill_up(&daemon, &new, 1000);
        assert_filled(&old, 100, 100);
        assert_filled(&new, 1000, flushed);
        wait::until_true("nothing new is made", || plugin.create("more", &[]).is_err());
        assert_refused(&daemon);
        assert!(warnings(&cli).contains("holdfast pool grow"), "{}", warnings(&cli));
        assert!(!status().words.contains("needs_check"), "{:?}", status());

        // What the snapshot kept is room.
        cli.ok(&["snapshot", "rm", "full@a"]);
        let mountpoint = mount_again(&host, &daemon);
        assert_filled(&mountpoint.join("old"), 100, 100);
        assert_filled(&mountpoint.join("new"), 1000, flushed);
        let (written, error) = fill(&mountpoint.join("more"), 5000, 60);
        assert!(error.is_none(), "after {written} MiB: {error:?}");

        let flushed = fill_up(&daemon, &mountpoint.join("rest"), 7000);
        // Room on the filesystem is room in the pool.
        std::fs::remove_file(&ballast).unwrap();
        let total = status().data.1;
        wait::until_true("the pool grows", || status().data.1 > total);
        let mountpoint = mount_again(&host, &daemon);
        assert_filled(&mountpoint.join("rest"), 7000, flushed);
        let (written, error) = fill(&mountpoint.join("last"), 9000, 50);
        assert!(error.is_none(), "after {written} MiB: {error:?}");
        plugin.unmount("full", "c").unwrap();
        daemon.terminate();
        nix::unistd::syncfs(File::open("/mnt").unwrap()).unwrap();
        MetadataPart::of("/mnt/thin/metadata").assert_sound();
    }
}

in_lab! {
    on |host| host.memory(768).modules(&["dm-thin-pool", "loop"]).new_disk(1024).new_disk(32);
    fn a_full_pool_on_devices_lets_things_be_deleted_and_be_grown() {
        let host = Host::new();
        let sectors = |mebibytes: u64| mebibytes * MIB / 512;
        let line = |mebibytes| format!("0 {} linear /dev/ubda 0", sectors(mebibytes));
        dmsetup(&["create", "room", "--table", &line(257)]);
        let mut daemon = on_devices(&host, "/dev/mapper/room", "/dev/ubdb").start(&host);
        let (plugin, cli) = (daemon.plugin(), daemon.cli());
        plugin.create("beside", &[("backend", "loop"), ("size", "64M")]).unwrap();
        plugin.create("full", &[("size", "1G")]).unwrap();
        plugin.create("idle", &[("size", "64M")]).unwrap();
        let idle = plugin.mount("idle", "c").unwrap().join("file");
        daemon.write(&idle, "idle");
        for snapshot in ["full@a", "full@b"] {
            cli.ok(&["snapshot", "create", snapshot]);
        }
        let mountpoint = host.inside(plugin.mount("full", "c").unwrap());
        assert!(fill(&mountpoint.join("old"), 1, 60).1.is_none());
        cli.ok(&["snapshot", "create", "full@c"]);
        assert!(fill(&mountpoint.join("old"), 100, 60).1.is_none());

        let flushed = fill_up(&daemon, &mountpoint.join("new"), 1000);
        assert!(status().words.contains("out_of_data_space"), "{:?}", status());
        assert_refused(&daemon);
        wait_warning(&cli, "the pool is full");
        assert_eq!(daemon.read(&idle), "idle");
        assert_filled(&mountpoint.join("old"), 100, 60);
        assert_filled(&mountpoint.join("new"), 1000, flushed);

        for snapshot in ["full@a", "full@b", "full@c"] {
            cli.ok(&["snapshot", "rm", snapshot]);
        }
        wait::until_true("the pool takes writes", || status().words.contains(" rw "));
        let mountpoint = mount_again(&host, &daemon);
        let (written, error) = fill(&mountpoint.join("more"), 5000, 20);
        assert!(error.is_none(), "after {written} MiB: {error:?}");

        let flushed = fill_up(&daemon, &mountpoint.join("rest"), 7000);
        dmsetup(&["suspend", "room"]);
        dmsetup(&["load", "room", "--table", &line(513)]);
        dmsetup(&["resume", "room"]);
        cli.ok(&["pool", "grow", "512M"]);
        let mountpoint = mount_again(&host, &daemon);
        assert_filled(&mountpoint.join("rest"), 7000, flushed);
        let (written, error) = fill(&mountpoint.join("last"), 9000, 100);
        assert!(error.is_none(), "after {written} MiB: {error:?}");

        fill_up(&daemon, &mountpoint.join("end"), 11000);
        plugin.unmount("full", "c").unwrap();
        plugin.remove("full").unwrap();
        assert_eq!(plugin.list(), ["beside", "idle"]);
        wait::until_true("the pool takes something new", || plugin.create("more", &[]).is_ok());
        assert_eq!(daemon.read(&idle), "idle");
        plugin.unmount("idle", "c").unwrap();
        daemon.terminate();
        MetadataPart::of("/dev/ubdb").assert_sound();
    }
}

in_lab! {
    on |host| host.memory(768).modules(&["dm-thin-pool", "loop"]).new_disk(4096).new_disk(32);
    fn snapshots_are_refused_before_the_metadata_is_full_and_a_full_one_takes_more() {
        const FILE: u64 = 256;
        let host = Host::new();
        let line = |mebibytes: u64| format!("0 {} linear /dev/ubdb 0", mebibytes * MIB / 512);
        dmsetup(&["create", "meta", "--table", &line(4)]);
        let mut daemon = on_devices(&host, "/dev/ubda", "/dev/mapper/meta").start(&host);
        let (plugin, cli) = (daemon.plugin(), daemon.cli());
        plugin.create("data", &[("size", "1G")]).unwrap();
        let path = host.inside(plugin.mount("data", "c").unwrap().join("file"));
        assert!(fill(&path, 1, FILE).1.is_none());
        assert!(fill(&path.with_file_name("kept"), 500, 4).1.is_none());
        let file = File::options().write(true).open(&path).unwrap();
        let mut made = 0;
        let refused = loop {
            let run = cli.run(&["snapshot", "create", &format!("data@{made}")]);
            if run.code != 0 {
                break run;
            }
            made += 1;
            assert!(made < 200, "{:?}", status());
            // A chunk in each part of the mapping, so that no part is shared any more.
            for at in (0..FILE).step_by(4) {
                file.write_all_at(&[7; 4096], at * MIB + 512 * 1024).unwrap();
            }
            file.sync_all().unwrap();
        };
        drop(file);
        assert!(made > 3, "{refused:?}");
        assert!(refused.code == 1 && refused.stderr.contains("metadata"), "{refused:?}");
        assert!(refused.stderr.contains("holdfast pool grow"), "{refused:?}");
        assert!(plugin.create("more", &[]).unwrap_err().contains("metadata"));
        let (used, total) = status().metadata;
        assert!((total - used) * 100 < total * 10 && used < total, "{:?}", status());
        assert!(status().words.contains(" rw ") && !status().words.contains("needs_check"));
        assert!(warnings(&cli).contains("metadata"));

        // Deleting makes room in it.
        cli.ok(&["snapshot", "rm", "data@0"]);
        cli.ok(&["snapshot", "rm", "data@1"]);
        cli.ok(&["snapshot", "create", "data@again"]);

        // Somebody else's snapshots fill it to the end.
        let file = File::options().write(true).open(&path).unwrap();
        let id = volume_id();
        for snapshot in 0..20 {
            let raw = format!("create_snap {} {id}", 1000 + snapshot);
            let device = helpers::pool_device();
            let made = Command::new("dmsetup").args(["message", &device, "0", &raw]).output();
            if !made.unwrap().status.success() {
                break;
            }
            for at in (0..FILE).step_by(4) {
                // It fails once there is no room.
                let _ = file.write_all_at(&[8; 4096], at * MIB + 512 * 1024);
            }
            let _ = file.sync_all();
        }
        drop(file);
        assert!(status().words.contains(" ro "), "{:?}", status());
        wait_warning(&cli, "the pool is read-only");
        for _ in 0..2 {
            assert!(plugin.create("more", &[]).is_err());
            assert_eq!(plugin.list(), ["data"]);
            assert_filled(&path.with_file_name("kept"), 500, 4);
            // The same to a daemon that comes new to it.
            daemon.kill_and_start_again();
            wait_warning(&cli, "the pool is read-only");
        }

        // With room for metadata all is well again.
        plugin.unmount("data", "c").unwrap();
        daemon.terminate();
        dmsetup(&["suspend", "meta"]);
        dmsetup(&["load", "meta", "--table", &line(16)]);
        dmsetup(&["resume", "meta"]);
        daemon.start_again();
        let path = host.inside(plugin.mount("data", "c").unwrap().join("file"));
        assert_filled(&path.with_file_name("kept"), 500, 4);
        cli.ok(&["snapshot", "create", "data@after"]);
        assert!(status().words.contains(" rw "), "{:?}", status());
        plugin.unmount("data", "c").unwrap();
        plugin.remove("data").unwrap();
        daemon.terminate();
        MetadataPart::of("/dev/mapper/meta").assert_sound();
    }
}

in_lab! {
    on |host| host.memory(768).modules(&["dm-thin-pool", "dm-flakey", "loop"]).new_disk(1024).new_disk(32);
    fn a_pool_whose_metadata_cannot_be_written_is_told_and_others_go_on() {
        let host = Host::new();
        let length = 32 * MIB / 512;
        dmsetup(&["create", "meta", "--table", &format!("0 {length} linear /dev/ubdb 0")]);
        let mut daemon = on_devices(&host, "/dev/ubda", "/dev/mapper/meta").start(&host);
        let (plugin, cli) = (daemon.plugin(), daemon.cli());
        plugin.create("beside", &[("backend", "loop"), ("size", "64M")]).unwrap();
        plugin.create("full", &[("size", "512M")]).unwrap();
        let mountpoint = host.inside(plugin.mount("full", "c").unwrap());
        assert!(fill(&mountpoint.join("old"), 1, 20).1.is_none());

        // It can be read, and no longer be written.
        let flakey = format!("0 {length} flakey /dev/ubdb 0 0 60 1 error_writes");
        dmsetup(&["suspend", "--noflush", "--nolockfs", "meta"]);
        dmsetup(&["load", "meta", "--table", &flakey]);
        dmsetup(&["resume", "meta"]);
        fill_up(&daemon, &mountpoint.join("new"), 100);
        let words = dmsetup(&["status", "--noflush", &helpers::pool_device()]);
        assert!(words.contains("Fail") || words.contains("needs_check"), "{words}");
        wait_warning(&cli, "holdfast pool check");
        assert!(plugin.create("more", &[]).is_err());

        // The cause is gone; the pool is as it was, also for a daemon that comes new to it.
        let linear = format!("0 {length} linear /dev/ubdb 0");
        dmsetup(&["suspend", "--noflush", "--nolockfs", "meta"]);
        dmsetup(&["load", "meta", "--table", &linear]);
        dmsetup(&["resume", "meta"]);
        daemon.kill_and_start_again();
        wait_warning(&cli, "holdfast pool check");
        assert!(plugin.create("more", &[]).is_err());
        let beside = plugin.mount("beside", "b").unwrap();
        daemon.write(beside.join("file"), "written");
        plugin.unmount("beside", "b").unwrap();

        plugin.unmount("full", "c").unwrap();
        cli.ok(&["pool", "repair"]);
        assert_eq!(cli.ok(&["pool", "inspect"]).json()["state"], "active");
        let mountpoint = host.inside(plugin.mount("full", "c").unwrap());
        assert_filled(&mountpoint.join("old"), 1, 20);
        let (written, error) = fill(&mountpoint.join("last"), 9000, 20);
        assert!(error.is_none(), "after {written} MiB: {error:?}");
        plugin.unmount("full", "c").unwrap();
        daemon.terminate();
    }
}
