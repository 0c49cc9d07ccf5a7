//! A pool that somebody else has too, or has changed, and a pool or a catalog that has gone.

use std::collections::BTreeSet;
use std::process::Command;

use crate::common::daemon::{Daemon, Launch};
use crate::common::host::{Host, checked};
use crate::common::lab::in_lab;
use crate::helpers::{
    MetadataPart, beginning, directory, message, on_disks, on_files, status, volume_devices,
    wait_warning, warnings,
};

/// Starts a daemon that ends by itself, and gives what it logged.
#[track_caller]
fn refused(launch: Launch, host: &Host) -> String {
    let mut daemon = launch.spawn(host);
    let end = daemon.wait_end();
    assert!(!end.success());
    daemon.log()
}

/// A file in a volume, read through a mount of its own.
fn content(daemon: &Daemon<'_>, volume: &str) -> String {
    let plugin = daemon.plugin();
    let mountpoint = plugin.mount(volume, "look").unwrap();
    let text = daemon.read(mountpoint.join("file"));
    plugin.unmount(volume, "look").unwrap();
    text
}

fn make(daemon: &Daemon<'_>, volume: &str, options: &[(&str, &str)], text: &str) {
    let plugin = daemon.plugin();
    plugin.create(volume, options).unwrap();
    let mountpoint = plugin.mount(volume, "make").unwrap();
    daemon.write(mountpoint.join("file"), text);
    plugin.unmount(volume, "make").unwrap();
}

in_lab! {
    on |host| host.memory(768).modules(&["dm-thin-pool", "loop"]).new_disk(512).new_disk(32);
    fn a_second_daemon_gets_no_pool_that_another_one_has() {
        let (one, other) = (Host::new(), Host::new());
        let place = directory();
        let mut on_files_one = on_files(&one, &place, "512M").start(&one);
        let log = refused(on_files(&other, &place, "512M"), &other);
        assert!(log.contains("the pool is in use"), "{log}");
        make(&on_files_one, "data", &[], "kept");
        on_files_one.terminate();

        let (one, other) = (Host::new(), Host::new());
        let mut daemon = on_disks(&one).start(&one);
        make(&daemon, "data", &[], "kept");
        let before = status();
        let log = refused(on_disks(&other), &other);
        assert!(log.contains("has locked /dev/ubda"), "{log}");
        // Not half of it either, nor by exchanged names.
        let exchanged = ["--thin-data", "/dev/ubdb", "--thin-metadata", "/dev/ubda"];
        assert!(refused(Launch::new(&other).args(&exchanged), &other).contains("has locked"));
        assert!(refused(Launch::new(&other).args(&["--thin-data", "/dev/ubda"]), &other).contains("has locked"));
        assert_eq!(status().transaction, before.transaction);
        assert_eq!(content(&daemon, "data"), "kept");
        daemon.terminate();

        let image = beginning("/dev/ubda");
        let log = refused(Launch::new(&other).args(&exchanged), &other);
        assert!(log.contains("exchanged"), "{log}");
        let log = refused(Launch::new(&other).args(&["--thin-data", "/dev/ubda"]), &other);
        assert!(log.contains("one of the two devices"), "{log}");
        assert_eq!(beginning("/dev/ubda"), image);
        daemon.start_again();
        assert_eq!(content(&daemon, "data"), "kept");
        daemon.terminate();
    }
}

in_lab! {
    on |host| host.memory(768).modules(&["dm-thin-pool", "loop"]).new_disk(512).new_disk(32);
    fn thin_devices_that_somebody_else_made_are_told_and_never_touched() {
        let host = Host::new();
        let mut daemon = on_disks(&host).start(&host);
        let cli = daemon.cli();
        for id in [1, 2, 40] {
            message(&format!("create_thin {id}"));
        }
        make(&daemon, "data", &[], "kept");
        cli.ok(&["snapshot", "create", "data@a"]);
        wait_warning(&cli, "2 thin devices that Holdfast has no record of");
        daemon.kill_and_start_again();
        wait_warning(&cli, "3 thin devices that Holdfast has no record of");
        assert_eq!(content(&daemon, "data"), "kept");
        daemon.plugin().remove("data").unwrap();
        make(&daemon, "new", &[], "new");
        assert!(warnings(&cli).contains("3 thin devices"));
        daemon.terminate();
        let ids = MetadataPart::of("/dev/ubdb").ids();
        assert_eq!(ids, BTreeSet::from([0, 1, 2, 3, 40]));
    }
}

in_lab! {
    on |host| host.memory(768).modules(&["dm-thin-pool", "loop"]).new_disk(512).new_disk(32);
    fn a_pool_that_somebody_else_has_counted_on_is_left_alone_and_others_go_on() {
        let host = Host::new();
        let mut daemon = on_disks(&host).start(&host);
        let (plugin, cli) = (daemon.plugin(), daemon.cli());
        make(&daemon, "beside", &[("backend", "loop"), ("size", "64M")], "beside");
        make(&daemon, "data", &[], "kept");
        let counted = status().transaction;
        message(&format!("set_transaction_id {counted} {}", counted + 100));
        let error = plugin.create("more", &[]).unwrap_err();
        assert!(error.contains("was it changed by something else?"), "{error}");
        assert!(plugin.list().contains(&"data".to_owned()));
        assert_eq!(content(&daemon, "beside"), "beside");

        daemon.kill_and_start_again();
        wait_warning(&cli, "something else has changed the pool");
        for error in [
            plugin.create("more", &[]).unwrap_err(),
            plugin.mount("data", "c").unwrap_err(),
            plugin.remove("data").unwrap_err(),
        ] {
            assert!(error.contains("transaction"), "{error}");
        }
        assert_eq!(plugin.get("data").unwrap()["Name"], "data");
        assert_eq!(content(&daemon, "beside"), "beside");
        make(&daemon, "another", &[("backend", "loop"), ("size", "64M")], "another");
        assert_eq!(volume_devices(), Vec::<String>::new());
        daemon.terminate();
        let metadata = MetadataPart::of("/dev/ubdb");
        assert_eq!(metadata.transaction(), counted + 100);
        metadata.assert_sound();
    }
}

in_lab! {
    on |host| host.memory(1024).modules(&["dm-thin-pool", "loop"]).new_disk(512).new_disk(32);
    fn a_lost_catalog_is_rebuilt_from_the_pool_and_a_lost_pool_gives_no_empty_volumes() {
        let host = Host::new();
        let place = directory();
        let mut daemon = on_files(&host, &place, "512M").start(&host);
        let (plugin, cli) = (daemon.plugin(), daemon.cli());
        make(&daemon, "data", &[("size", "128M")], "one");
        cli.ok(&["snapshot", "create", "data@a"]);
        make(&daemon, "other", &[("size", "256M"), ("fs", "ext4")], "other");
        let before = cli.inspect("data");
        daemon.terminate();
        std::fs::remove_dir_all(daemon.state_dir()).unwrap();
        daemon.start_again();
        assert_eq!(plugin.list(), ["data", "other"]);
        let after = cli.inspect("data");
        for key in ["uuid", "size", "backend", "filesystem", "snapshots", "created"] {
            assert_eq!(after[key], before[key], "{key}");
        }
        assert_eq!(content(&daemon, "data"), "one");
        cli.ok(&["volume", "clone", "data@a", "copy"]);
        assert_eq!(content(&daemon, "copy"), "one");
        daemon.terminate();

        // The pool's files are gone, as if another disk were mounted there.
        let aside = place.with_extension("aside");
        std::fs::rename(&place, &aside).unwrap();
        let mut daemon = on_files(&host, &place, "512M").spawn(&host);
        let log = host.dir().join("holdfast.log");
        let plugin = daemon.plugin();
        crate::common::wait::until_true("it answers or ends", || {
            daemon.has_ended() || plugin.get("data").is_ok()
        });
        if !daemon.has_ended() {
            assert!(plugin.mount("data", "c").is_err(), "an empty volume: {log:?}");
            daemon.terminate();
        }
        drop(daemon);
        assert!(!checked(&mut Command::new("dmsetup"), &["ls"]).contains("holdfast"));
        let _ = std::fs::remove_dir_all(&place);
        std::fs::rename(&aside, &place).unwrap();
        let mut daemon = on_files(&host, &place, "512M").start(&host);
        assert_eq!(content(&daemon, "data"), "one");
        daemon.terminate();
    }
}
