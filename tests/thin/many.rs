//! Many volumes at once and one after another, and what is left of them in the pool.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::common::daemon::Daemon;
use crate::common::host::Host;
use crate::common::lab::in_lab;
use crate::helpers::{MetadataPart, assert_filled, fill, on_disks, volume_devices};

const CLIENTS: usize = 8;
const PARALLEL: u32 = 100;
const SEQUENCE: u32 = 100;

/// A volume and a snapshot of it, made and deleted.
fn one_life(daemon: &Daemon<'_>, name: &str) {
    let (plugin, cli) = (daemon.plugin(), daemon.cli());
    plugin.create(name, &[("size", "16M")]).unwrap();
    let snapshot = format!("{name}@a");
    cli.ok(&["snapshot", "create", &snapshot]);
    // Of some the snapshot is deleted with the volume.
    if !name.ends_with('0') {
        cli.ok(&["snapshot", "rm", &snapshot]);
    }
    plugin.remove(name).unwrap();
}

in_lab! {
    on |host| host.memory(1024).modules(&["dm-thin-pool", "loop"]).new_disk(2048).new_disk(32);
    fn convoy_c12_c13_volumes_in_parallel_and_in_sequence_leave_nothing() {
        let host = Host::new();
        let mut daemon = on_disks(&host).start(&host);
        let plugin = daemon.plugin();
        plugin.create("bystander", &[("size", "1G")]).unwrap();
        let file = host.inside(plugin.mount("bystander", "c").unwrap().join("file"));
        assert!(fill(&file, 7, 16).1.is_none());

        let next = AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..CLIENTS {
                scope.spawn(|| {
                    loop {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        if number >= PARALLEL {
                            break;
                        }
                        one_life(&daemon, &format!("parallel{number}"));
                    }
                });
            }
        });
        for number in 0..SEQUENCE {
            one_life(&daemon, &format!("sequence{number}"));
        }

        assert_eq!(plugin.list(), ["bystander"]);
        assert_filled(&file, 7, 16);
        plugin.unmount("bystander", "c").unwrap();
        plugin.remove("bystander").unwrap();
        assert_eq!(volume_devices(), Vec::<String>::new());
        daemon.terminate();
        let metadata = MetadataPart::of("/dev/ubdb");
        metadata.assert_sound();
        assert_eq!(metadata.ids(), BTreeSet::from([0]), "the records alone");
    }
}
