//! Mount ids: who holds a volume, how often, and what outlives whom.

use std::path::Path;

use crate::common::daemon::{Daemon, Launch};
use crate::common::host::Host;

/// A daemon with one volume `data`.
fn with_volume(host: &Host) -> Daemon<'_> {
    let daemon = Daemon::start(host);
    daemon.plugin().create("data", &[("size", "64M")]).unwrap();
    daemon
}

#[track_caller]
fn assert_mounted(host: &Host, mountpoint: &Path) {
    let mounts = host.mounts();
    assert!(mounts.iter().any(|mount| mountpoint.starts_with(&mount.target)), "{mounts:?}");
}

#[track_caller]
fn assert_idle(host: &Host) {
    assert_eq!((host.mounts(), host.loops()), (vec![], vec![]));
}

#[test]
fn an_id_that_mounted_twice_holds_until_its_second_unmount() {
    let host = Host::new();
    let daemon = with_volume(&host);
    let plugin = daemon.plugin();
    let mountpoint = plugin.mount("data", "container").unwrap();
    // What `docker cp` does while the container runs.
    assert_eq!(plugin.mount("data", "container").unwrap(), mountpoint);
    plugin.unmount("data", "container").unwrap();
    assert_mounted(&host, &mountpoint);
    plugin.unmount("data", "container").unwrap();
    assert_idle(&host);
}

#[test]
fn many_ids_share_one_mount() {
    let host = Host::new();
    let daemon = with_volume(&host);
    let plugin = daemon.plugin();
    let mountpoint = plugin.mount("data", "a").unwrap();
    assert_eq!(plugin.mount("data", "b").unwrap(), mountpoint);
    assert_eq!(host.loops().len(), 1);
    assert_eq!(host.mounts().iter().filter(|mount| mount.filesystem == "ext4").count(), 1);
    plugin.unmount("data", "a").unwrap();
    assert_mounted(&host, &mountpoint);
    plugin.unmount("data", "b").unwrap();
    assert_idle(&host);
}

#[test]
fn unmounting_an_unknown_id_succeeds_and_takes_nobody_elses() {
    let host = Host::new();
    let daemon = with_volume(&host);
    let plugin = daemon.plugin();
    plugin.unmount("data", "stranger").unwrap();
    let mountpoint = plugin.mount("data", "container").unwrap();
    for _ in 0..3 {
        plugin.unmount("data", "stranger").unwrap();
    }
    assert_mounted(&host, &mountpoint);
    plugin.unmount("data", "container").unwrap();
    plugin.unmount("data", "container").expect("an id that is gone is an unknown one");
    assert_idle(&host);
}

#[test]
fn counts_survive_a_kill() {
    let host = Host::new();
    let mut daemon = with_volume(&host);
    let plugin = daemon.plugin();
    let mountpoint = plugin.mount("data", "a").unwrap();
    plugin.mount("data", "a").unwrap();
    plugin.mount("data", "b").unwrap();
    daemon.write(mountpoint.join("file"), "before");
    daemon.kill_and_start_again();
    for id in ["a", "b"] {
        plugin.unmount("data", id).unwrap();
        assert_mounted(&host, &mountpoint);
    }
    assert_eq!(daemon.read(mountpoint.join("file")), "before");
    plugin.unmount("data", "a").unwrap();
    assert_idle(&host);
}

#[test]
fn a_mounted_volume_works_while_the_daemon_is_down() {
    let host = Host::new();
    let mut daemon = with_volume(&host);
    let plugin = daemon.plugin();
    let mountpoint = plugin.mount("data", "container").unwrap();
    daemon.kill();
    daemon.write(mountpoint.join("file"), "while killed");
    daemon.start_again();
    daemon.terminate();
    assert_mounted(&host, &mountpoint);
    assert_eq!(daemon.read(mountpoint.join("file")), "while killed");
    daemon.write(mountpoint.join("file"), "while stopped");
    daemon.start_again();
    assert_eq!(plugin.mount("data", "container").unwrap(), mountpoint);
    assert_eq!(daemon.read(mountpoint.join("file")), "while stopped");
}

#[test]
fn ids_and_counts_are_shown_by_inspect() {
    let host = Host::new();
    let daemon = with_volume(&host);
    for id in ["a", "b", "a"] {
        daemon.plugin().mount("data", id).unwrap();
    }
    let mounts = daemon.cli().inspect("data")["mounts"].clone();
    let mut told: Vec<_> = mounts
        .as_array()
        .expect("mounts")
        .iter()
        .map(|mount| (mount["id"].as_str().unwrap(), mount["count"].as_u64().unwrap()))
        .collect();
    told.sort_unstable();
    assert_eq!(told, [("a", 2), ("b", 1)]);
}

/// After a reboot the kernel has no mounts, and the engine's old containers will never unmount.
#[test]
fn after_a_reboot_stale_ids_are_gone_and_mounts_are_made_when_asked() {
    let host = Host::new();
    let mut daemon = with_volume(&host);
    let plugin = daemon.plugin();
    let mountpoint = plugin.mount("data", "before").unwrap();
    daemon.write(mountpoint.join("file"), "content");
    daemon.kill();
    for mount in host.mounts().iter().rev() {
        host.run("umount", &[mount.target.to_str().unwrap()]);
    }
    for device in host.loops() {
        host.run("losetup", &["--detach", device.device.to_str().unwrap()]);
    }
    let boot_id = host.dir().join("boot_id");
    std::fs::write(&boot_id, "5e1b0c6e-0000-4000-8000-000000000000\n").unwrap();
    let target = "/proc/sys/kernel/random/boot_id";
    host.run("mount", &["--bind", boot_id.to_str().unwrap(), target]);
    daemon.start_again();
    assert_idle(&host);
    assert_eq!(plugin.get("data").unwrap()["Mountpoint"], "");
    assert_eq!(plugin.mount("data", "after").unwrap(), mountpoint);
    assert_eq!(daemon.read(mountpoint.join("file")), "content");
    plugin.unmount("data", "after").unwrap();
    assert_idle(&host);
}

/// Somebody unmounted it by hand: the ledger says held, the kernel says no.
#[test]
fn a_mount_that_vanished_is_made_again_when_docker_asks() {
    let host = Host::new();
    let mut daemon = with_volume(&host);
    let plugin = daemon.plugin();
    let mountpoint = plugin.mount("data", "container").unwrap();
    daemon.write(mountpoint.join("file"), "content");
    daemon.kill();
    for mount in host.mounts().iter().rev() {
        host.run("umount", &[mount.target.to_str().unwrap()]);
    }
    daemon.start_again();
    assert_eq!(plugin.mount("data", "container").unwrap(), mountpoint);
    assert_mounted(&host, &mountpoint);
    assert_eq!(daemon.read(mountpoint.join("file")), "content");
}

#[test]
fn a_second_daemon_on_the_same_state_is_refused() {
    let host = Host::new();
    let mut daemon = with_volume(&host);
    let mut second = Launch::new(&host).args(&["--admin-socket", "/run/second.sock"]);
    second.plugin_socket = host.dir().join("second.sock");
    let mut second = second.spawn(&host);
    assert!(!second.wait_end().success());
    assert!(!daemon.has_ended());
    daemon.plugin().get("data").expect("the first one serves on");
}
