//! Devices below the pool that answer with errors.

use std::fs::File;

use crate::common::host::Host;
use crate::common::lab::in_lab;
use crate::common::wait;
use crate::helpers::{MIB, assert_filled, beginning, dmsetup, fill, on_devices, warnings};

/// Puts another table below a device that is in use.
fn reload(device: &str, table: &str) {
    dmsetup(&["suspend", "--noflush", "--nolockfs", device]);
    dmsetup(&["load", device, "--table", table]);
    dmsetup(&["resume", device]);
}

fn sectors(mebibytes: u64) -> u64 {
    mebibytes * MIB / 512
}

in_lab! {
    on |host| host.memory(768).modules(&["dm-thin-pool", "loop"]).new_disk(512).new_disk(32);
    fn a_pool_whose_data_fails_says_so_and_others_go_on() {
        let host = Host::new();
        let linear = format!("0 {} linear /dev/ubda 0", sectors(512));
        dmsetup(&["create", "data", "--table", &linear]);
        let mut daemon = on_devices(&host, "/dev/mapper/data", "/dev/ubdb").start(&host);
        let (plugin, cli) = (daemon.plugin(), daemon.cli());
        plugin.create("beside", &[("backend", "loop"), ("size", "64M")]).unwrap();
        plugin.create("data", &[("size", "256M")]).unwrap();
        plugin.create("idle", &[("size", "256M")]).unwrap();
        plugin.create("new", &[("size", "256M")]).unwrap();
        let idle = plugin.mount("idle", "c").unwrap();
        daemon.write(idle.join("file"), "idle");
        plugin.unmount("idle", "c").unwrap();
        let file = host.inside(plugin.mount("data", "c").unwrap().join("file"));
        assert!(fill(&file, 1, 20).1.is_none());

        reload("data", &format!("0 {} error", sectors(512)));
        let (_, error) = fill(&file, 100, 20);
        assert!(error.is_some(), "a write that cannot have happened");
        assert_eq!(plugin.list().len(), 4);
        // What cannot be read is neither mounted nor formatted.
        for volume in ["idle", "new"] {
            let error = plugin.mount(volume, "c").unwrap_err();
            assert!(error.contains(volume), "{error}");
        }
        assert!(plugin.create("more", &[]).is_err());
        let beside = plugin.mount("beside", "b").unwrap();
        daemon.write(beside.join("file"), "written");
        plugin.unmount("beside", "b").unwrap();

        reload("data", &linear);
        plugin.unmount("data", "c").unwrap();
        let file = host.inside(plugin.mount("data", "c").unwrap().join("file"));
        assert_eq!(File::open(&file).unwrap().metadata().unwrap().len(), 20 * MIB);
        plugin.unmount("data", "c").unwrap();
        let idle = plugin.mount("idle", "c").unwrap();
        assert_eq!(daemon.read(idle.join("file")), "idle");
        plugin.unmount("idle", "c").unwrap();
        wait::until_true("something new is made", || plugin.create("more", &[]).is_ok());
        // What was told is on the disk too.
        daemon.kill_and_start_again();
        assert_eq!(plugin.list(), ["beside", "data", "idle", "more", "new"]);
        let more = plugin.mount("more", "c").unwrap();
        daemon.write(more.join("file"), "more");
        plugin.unmount("more", "c").unwrap();
        assert_eq!(warnings(&cli), "[]");
        daemon.terminate();
    }
}

in_lab! {
    on |host| host.memory(768).modules(&["dm-thin-pool", "loop"]).new_disk(512).new_disk(32);
    fn a_daemon_over_devices_that_fail_serves_the_other_backends() {
        let host = Host::new();
        let linear = format!("0 {} linear /dev/ubda 0", sectors(512));
        dmsetup(&["create", "data", "--table", &linear]);
        let mut daemon = on_devices(&host, "/dev/mapper/data", "/dev/ubdb").start(&host);
        let plugin = daemon.plugin();
        plugin.create("beside", &[("backend", "loop"), ("size", "64M")]).unwrap();
        plugin.create("data", &[("size", "256M")]).unwrap();
        let file = host.inside(plugin.mount("data", "c").unwrap().join("file"));
        assert!(fill(&file, 1, 20).1.is_none());
        plugin.unmount("data", "c").unwrap();
        daemon.terminate();

        reload("data", &format!("0 {} error", sectors(512)));
        daemon.start_again();
        assert!(warnings(&daemon.cli()).contains("/dev/mapper/data"), "{}", warnings(&daemon.cli()));
        let beside = plugin.mount("beside", "b").unwrap();
        daemon.write(beside.join("file"), "written");
        plugin.unmount("beside", "b").unwrap();
        assert!(plugin.mount("data", "c").is_err());
        assert!(plugin.create("more", &[]).is_err());
        assert_eq!(plugin.list(), ["beside", "data"]);

        daemon.kill();
        reload("data", &linear);
        daemon.start_again();
        let file = host.inside(plugin.mount("data", "c").unwrap().join("file"));
        assert_filled(&file, 1, 20);
        plugin.unmount("data", "c").unwrap();
        daemon.terminate();
    }
}

in_lab! {
    on |host| host.memory(768).modules(&["dm-thin-pool", "loop"]).new_disk(512).new_disk(32);
    fn a_device_that_cannot_be_read_to_its_ends_is_not_blank() {
        let host = Host::new();
        let all = sectors(512);
        let (end, start) = (all - 8, 8);
        let tables = [
            format!("0 {end} linear /dev/ubda 0\n{end} 8 error"),
            format!("0 {start} error\n{start} {} linear /dev/ubda {start}", all - start),
            // The headers can be read, and what comes after them cannot.
            format!("0 64 linear /dev/ubda 0\n64 8 error\n72 {} linear /dev/ubda 72", all - 72),
        ];
        dmsetup(&["create", "data", "--table", &format!("0 {all} zero")]);
        for table in tables {
            reload("data", &table);
            let mut daemon = on_devices(&host, "/dev/mapper/data", "/dev/ubdb").spawn(&host);
            let plugin = daemon.plugin();
            wait::until_true("it ends, or tells that there is no pool", || {
                daemon.has_ended() || plugin.create("volume", &[]).is_err_and(|e| !e.contains("no answer"))
            });
            if !daemon.has_ended() {
                daemon.kill();
            }
            drop(daemon);
            // Nothing was written where something may be.
            for device in ["/dev/ubda", "/dev/ubdb"] {
                assert!(beginning(device).iter().all(|byte| *byte == 0), "{device} under {table}");
            }
        }
        // The same device, once it can be read, becomes a pool.
        reload("data", &format!("0 {all} linear /dev/ubda 0"));
        let mut daemon = on_devices(&host, "/dev/mapper/data", "/dev/ubdb").start(&host);
        daemon.plugin().create("volume", &[]).unwrap();
        daemon.terminate();
        assert!(beginning("/dev/ubda").starts_with(b"HOLDFAST"));
    }
}
