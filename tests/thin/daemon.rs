//! The daemon with its volumes in a pool, as a user sees it and as the kernel does.

use std::path::Path;

use super::pool::{launch, volume_devices};
use crate::common::host::{Host, checked};
use crate::common::lab::in_lab;

in_lab! {
    on |host| host.memory(1024).modules(&["dm-thin-pool", "loop"]);
    fn a_volume_lives_in_the_pool_over_kills_and_restarts() {
        let host = Host::new();
        let mut daemon = launch(&host).start(&host);
        let plugin = daemon.plugin();
        plugin.create("data", &[("size", "1G")]).unwrap();
        let mountpoint = plugin.mount("data", "c1").unwrap();
        daemon.write(mountpoint.join("file"), "one");
        assert_eq!(volume_devices().len(), 1);
        daemon.cli().ok(&["snapshot", "create", "data@one"]);
        daemon.write(mountpoint.join("file"), "two");

        daemon.kill_and_start_again();
        assert_eq!(daemon.read(mountpoint.join("file")), "two");
        daemon.write(mountpoint.join("file"), "three");
        daemon.cli().ok(&["volume", "clone", "data@one", "copy"]);
        daemon.cli().ok(&["volume", "resize", "data", "2G"]);
        plugin.unmount("data", "c1").unwrap();
        assert_eq!(volume_devices(), Vec::<String>::new());

        daemon.cli().ok(&["snapshot", "restore", "data@one"]);
        for (volume, content) in [("data", "one"), ("copy", "one")] {
            let mountpoint = plugin.mount(volume, "c2").unwrap();
            assert_eq!(daemon.read(mountpoint.join("file")), content);
            plugin.unmount(volume, "c2").unwrap();
            plugin.remove(volume).unwrap();
        }
        let status = daemon.cli().ok(&["status"]).json();
        assert_eq!(status["warnings"], serde_json::json!([]));
        daemon.terminate();
        let left = checked(&mut std::process::Command::new("dmsetup"), &["ls"]);
        assert!(!left.contains("holdfast"), "{left}");
        assert!(Path::new("/dev/mapper/control").exists());
    }
}

in_lab! {
    on |host| host.modules(&["dm-thin-pool", "loop"]);
    fn a_growth_that_is_recorded_and_not_made_is_finished_at_the_start() {
        let host = Host::new();
        let mut daemon = launch(&host).failpoint("thin.grow.record=kill").start(&host);
        daemon.plugin().create("data", &[("size", "64M")]).unwrap();
        let mountpoint = daemon.plugin().mount("data", "c1").unwrap();
        assert_ne!(daemon.cli().run(&["volume", "resize", "data", "128M"]).code, 0);
        daemon.wait_end();
        daemon.start_again();
        assert_eq!(daemon.cli().ok(&["volume", "resize", "data", "128M"]).code, 0);
        let blocks = host.run("stat", &["-f", "-c", "%b %S", mountpoint.to_str().unwrap()]);
        let numbers: Vec<u64> = blocks.split_whitespace().map(|n| n.parse().unwrap()).collect();
        assert!(numbers[0] * numbers[1] > 64 << 20, "the filesystem has not grown: {blocks}");
    }
}

in_lab! {
    on |host| host.modules(&["dm-thin-pool", "loop"]);
    fn a_pool_whose_start_was_cut_off_before_it_was_resumed_is_started_again() {
        let host = Host::new();
        let mut daemon = launch(&host).start(&host);
        // Its answer says that the start is over.
        assert_eq!(daemon.plugin().list(), Vec::<String>::new());
        daemon.terminate();
        // The third device is the pool.
        let mut daemon = launch(&host).failpoint("device.loaded=kill@3").spawn(&host);
        daemon.wait_end();
        daemon.start_again();
        daemon.plugin().create("data", &[("size", "64M")]).unwrap();
    }
}
