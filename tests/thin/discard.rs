//! Room that a volume no longer needs.

use crate::common::host::Host;
use crate::common::lab::in_lab;
use crate::common::wait;
use crate::helpers::{fill, on_disks, status};

in_lab! {
    on |host| host.memory(768).modules(&["dm-thin-pool", "xfs"]).new_disk(2048).new_disk(32);
    fn a_deleted_file_gives_its_room_back_to_the_pool() {
        const FILE: u64 = 64;
        let host = Host::new();
        let mut daemon = on_disks(&host).start(&host);
        let plugin = daemon.plugin();
        let chunks = FILE << 20 >> 16;
        for filesystem in ["ext4", "xfs"] {
            plugin.create("data", &[("size", "1G"), ("fs", filesystem)]).unwrap();
            let file = host.inside(plugin.mount("data", "c").unwrap().join("file"));
            let empty = status().data.0;
            assert!(fill(&file, 1, FILE).1.is_none());
            let full = status().data.0;
            let used = || daemon.cli().inspect("data")["used"].as_u64().unwrap();
            let used_before = used();
            assert!(full >= empty + chunks, "{filesystem}: {empty} to {full}");
            std::fs::remove_file(&file).unwrap();
            let directory = std::fs::File::open(file.parent().unwrap()).unwrap();
            wait::until_true("the pool has the room again", || {
                // Makes the filesystem commit the deletion, after which it discards.
                nix::unistd::syncfs(&directory).unwrap();
                status().data.0 + chunks * 9 / 10 <= full
            });
            drop(directory);
            wait::until_true("the volume is told to use less", || {
                used() + (FILE << 20) * 9 / 10 <= used_before
            });
            plugin.unmount("data", "c").unwrap();
            plugin.remove("data").unwrap();
        }
        daemon.terminate();
    }
}
