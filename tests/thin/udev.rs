//! Hosts without udev, and with one that does not answer.

use std::fs;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::common::host::Host;
use crate::common::lab::in_lab;
use crate::helpers::{on_disks, volume_devices};

/// Where udev listens, and where others look for whether it runs.
const CONTROL: &str = "/run/udev/control";

in_lab! {
    on |host| host.memory(768).modules(&["dm-thin-pool", "loop"]).new_disk(512).new_disk(32);
    fn a_host_without_udev_has_volumes_all_the_same() {
        let host = Host::new();
        assert!(!host.inside(CONTROL).exists());
        let mut daemon = on_disks(&host).start(&host);
        let plugin = daemon.plugin();
        plugin.create("data", &[]).unwrap();
        let mountpoint = plugin.mount("data", "c").unwrap();
        daemon.write(mountpoint.join("file"), "kept");
        let node = daemon.cli().inspect("data")["source"].as_str().unwrap().to_owned();
        assert!(Path::new(&node).exists(), "{node}");
        plugin.unmount("data", "c").unwrap();
        plugin.remove("data").unwrap();
        daemon.terminate();
    }
}

in_lab! {
    on |host| host.memory(768).modules(&["dm-thin-pool", "loop"]).new_disk(512).new_disk(32);
    fn an_udev_that_does_not_answer_holds_nothing_up_for_long() {
        /// Docker waits for two minutes.
        const LIMIT: Duration = Duration::from_secs(40);
        let host = Host::new();
        let mut daemon = on_disks(&host).start(&host);
        let (plugin, cli) = (daemon.plugin(), daemon.cli());
        for volume in ["mounted", "idle"] {
            plugin.create(volume, &[]).unwrap();
        }
        let mountpoint = plugin.mount("mounted", "c").unwrap();
        daemon.write(mountpoint.join("file"), "kept");

        let control = host.inside(CONTROL);
        fs::create_dir_all(control.parent().unwrap()).unwrap();
        let _deaf = UnixListener::bind(&control).unwrap();
        let timed = |what: &str, call: &dyn Fn()| {
            let began = Instant::now();
            call();
            assert!(began.elapsed() < LIMIT, "{what}: {:?}", began.elapsed());
        };
        std::thread::scope(|scope| {
            scope.spawn(|| timed("a mount", &|| drop(plugin.mount("idle", "c").unwrap())));
            scope.spawn(|| timed("a snapshot", &|| drop(cli.ok(&["snapshot", "create", "mounted@a"]))));
            // What needs no device goes on.
            timed("a list", &|| assert_eq!(plugin.list(), ["idle", "mounted"]));
            timed("a creation", &|| plugin.create("new", &[]).unwrap());
            timed("a second mount", &|| drop(plugin.mount("mounted", "d").unwrap()));
            timed("a write", &|| daemon.write(mountpoint.join("file"), "more"));
        });
        timed("a growth", &|| drop(cli.ok(&["volume", "resize", "mounted", "11G"])));
        timed("an unmount", &|| plugin.unmount("idle", "c").unwrap());
        timed("a removal", &|| plugin.remove("idle").unwrap());
        assert_eq!(volume_devices().len(), 1);

        // Nor the start of a daemon over an active pool, and over one that is not.
        daemon.kill();
        let began = Instant::now();
        daemon.start_again();
        assert!(began.elapsed() < LIMIT);
        assert_eq!(daemon.read(mountpoint.join("file")), "more");
        for id in ["c", "d"] {
            plugin.unmount("mounted", id).unwrap();
        }
        assert_eq!(volume_devices(), Vec::<String>::new());
        let began = Instant::now();
        daemon.terminate();
        daemon.start_again();
        assert!(began.elapsed() < 2 * LIMIT);
        let mountpoint = plugin.mount("mounted", "e").unwrap();
        assert_eq!(daemon.read(mountpoint.join("file")), "more");
        plugin.unmount("mounted", "e").unwrap();
    }
}
