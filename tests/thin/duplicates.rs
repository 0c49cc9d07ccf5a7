//! Originals and their copies mounted side by side.

use std::collections::BTreeSet;
use std::process::Command;

use crate::common::host::{Host, checked};
use crate::common::lab::in_lab;
use crate::helpers::on_disks;

in_lab! {
    on |host| host.memory(1024).modules(&["dm-thin-pool", "xfs", "btrfs"]).new_disk(4096).new_disk(32);
    fn copies_are_mounted_beside_their_original_each_with_its_own_uuid() {
        let host = Host::new();
        let mut daemon = on_disks(&host).start(&host);
        let (plugin, cli) = (daemon.plugin(), daemon.cli());
        for filesystem in ["ext4", "xfs", "btrfs"] {
            plugin.create("data", &[("size", "400M"), ("fs", filesystem)]).unwrap();
            let original = plugin.mount("data", "c").unwrap();
            daemon.write(original.join("file"), "one");
            cli.ok(&["snapshot", "create", "data@one"]);
            daemon.write(original.join("file"), "two");
            // While it is mounted.
            cli.ok(&["volume", "clone", "data", "live"]);
            cli.ok(&["volume", "clone", "data@one", "first"]);
            plugin.create("second", &[("from-snapshot", "data@one")]).unwrap();
            cli.ok(&["volume", "clone", "first", "third"]);

            let copies = [("live", "two"), ("first", "one"), ("second", "one"), ("third", "one")];
            let mut uuids = BTreeSet::new();
            let uuid = |volume: &str| {
                let source = cli.inspect(volume)["source"].as_str().unwrap().to_owned();
                let args = ["-p", "-s", "UUID", "-o", "value", &source];
                let uuid = checked(&mut Command::new("blkid"), &args);
                assert!(!uuid.trim().is_empty(), "{volume}");
                uuid
            };
            uuids.insert(uuid("data"));
            for (copy, content) in copies {
                let mountpoint = plugin.mount(copy, "c").unwrap();
                assert_eq!(daemon.read(mountpoint.join("file")), content, "{copy} on {filesystem}");
                daemon.write(mountpoint.join("file"), copy);
                uuids.insert(uuid(copy));
            }
            assert_eq!(uuids.len(), 1 + copies.len(), "{filesystem}: {uuids:?}");
            assert_eq!(host.mounts().len(), 1 + copies.len());
            assert!(host.mounts().iter().all(|mount| mount.filesystem == filesystem));
            assert_eq!(daemon.read(original.join("file")), "two");
            for (copy, _) in copies {
                plugin.unmount(copy, "c").unwrap();
                let mountpoint = plugin.mount(copy, "again").unwrap();
                assert_eq!(daemon.read(mountpoint.join("file")), copy);
                plugin.unmount(copy, "again").unwrap();
                plugin.remove(copy).unwrap();
            }
            plugin.unmount("data", "c").unwrap();
            plugin.remove("data").unwrap();
        }
        daemon.terminate();
    }
}
