//! Create's options as a user sees them.

use crate::common::daemon::Daemon;
use crate::common::host::Host;

#[test]
fn the_same_options_again_create_nothing_and_lose_nothing() {
    let host = Host::new();
    let daemon = Daemon::start(&host);
    let plugin = daemon.plugin();
    plugin.create("data", &[("size", "64M"), ("fs", "ext4")]).unwrap();
    let mountpoint = plugin.mount("data", "id").unwrap();
    daemon.write(mountpoint.join("file"), "content");
    let uuid = daemon.cli().inspect("data")["uuid"].clone();
    let files = daemon.volume_files();
    plugin.create("data", &[("fs", "ext4"), ("size", "64M")]).unwrap();
    plugin.create("data", &[("size", "67108864"), ("fs", "ext4")]).expect("the same size");
    assert_eq!(daemon.cli().inspect("data")["uuid"], uuid);
    assert_eq!(daemon.volume_files(), files);
    assert_eq!(daemon.read(mountpoint.join("file")), "content");
}

#[test]
fn other_options_fail_and_tell_which_differ() {
    let host = Host::new();
    let daemon = Daemon::start(&host);
    let plugin = daemon.plugin();
    plugin.create("data", &[("size", "64M"), ("uid", "1000")]).unwrap();
    let error = plugin.create("data", &[("size", "65M"), ("uid", "1000")]).unwrap_err();
    assert!(error.contains("data") && error.contains("size"), "{error}");
    assert!(!error.contains("uid"), "only what differs: {error}");
    let error = plugin.create("data", &[("size", "64M"), ("uid", "1000"), ("fs", "xfs")]);
    assert!(error.unwrap_err().contains("fs"));
    let error = plugin.create("data", &[("size", "64M"), ("uid", "1001")]).unwrap_err();
    assert!(error.contains("uid"), "{error}");
    assert_eq!(plugin.list(), ["data"]);
}

#[test]
fn an_unknown_option_is_refused_with_the_known_ones() {
    let host = Host::new();
    let daemon = Daemon::start(&host);
    let error = daemon.plugin().create("data", &[("siez", "64M")]).unwrap_err();
    assert!(error.contains("siez") && error.contains("size"), "{error}");
    assert!(error.contains("mount-options") && error.contains("uid"), "{error}");
    assert_eq!(daemon.plugin().list(), Vec::<String>::new());
}

#[test]
fn a_bad_value_is_refused_with_its_key() {
    let host = Host::new();
    let daemon = Daemon::start(&host);
    let plugin = daemon.plugin();
    for (key, value) in [
        ("size", "-1"),
        ("size", "0"),
        ("size", "10 parsecs"),
        ("size", "99999999999999999999G"),
        ("fs", "ntfs"),
        ("uid", "root; rm -rf /"),
        ("mode", "999"),
        ("backend", "floppy"),
        ("read-only", "perhaps"),
        ("from-snapshot", "no-at-sign"),
        ("from-snapshot", "absent@absent"),
        ("clone-of", "absent"),
        ("on-remove", "burn"),
    ] {
        let error = plugin.create("data", &[(key, value)]).unwrap_err();
        assert!(!error.is_empty(), "{key}={value}");
        assert_eq!(plugin.list(), Vec::<String>::new(), "{key}={value}: {error}");
    }
    daemon.wait_no_volume_files();
}

#[test]
fn a_filesystem_of_each_kind_holds_data_over_a_remount() {
    let host = Host::new();
    let daemon = Daemon::start(&host);
    let plugin = daemon.plugin();
    for kind in ["ext4", "xfs", "btrfs"] {
        plugin.create(kind, &[("size", "512M"), ("fs", kind)]).unwrap();
        let mountpoint = plugin.mount(kind, "id").unwrap();
        let mounts = host.mounts();
        let mount = mounts.iter().find(|mount| mountpoint.starts_with(&mount.target));
        assert_eq!(mount.expect("mounted").filesystem, kind);
        daemon.write(mountpoint.join("file"), kind);
        plugin.unmount(kind, "id").unwrap();
        let mountpoint = plugin.mount(kind, "id").unwrap();
        assert_eq!(daemon.read(mountpoint.join("file")), kind);
    }
}

#[test]
fn owner_and_mode_are_those_asked_for_and_set_once() {
    let host = Host::new();
    let daemon = Daemon::start(&host);
    let plugin = daemon.plugin();
    let options = [("size", "64M"), ("uid", "1000"), ("gid", "1001"), ("mode", "0750")];
    plugin.create("data", &options).unwrap();
    let mountpoint = plugin.mount("data", "id").unwrap();
    let owner = |host: &Host| host.run("stat", &["-c", "%u:%g %a", mountpoint.to_str().unwrap()]);
    assert_eq!(owner(&host), "1000:1001 750\n");
    host.run("chown", &["5:6", mountpoint.to_str().unwrap()]);
    plugin.unmount("data", "id").unwrap();
    plugin.mount("data", "id").unwrap();
    assert_eq!(owner(&host), "5:6 750\n", "a later mount does not undo what the service did");
}

#[test]
fn a_read_only_volume_cannot_be_written() {
    let host = Host::new();
    let daemon = Daemon::start(&host);
    let plugin = daemon.plugin();
    plugin.create("data", &[("size", "64M"), ("read-only", "true")]).unwrap();
    let mountpoint = plugin.mount("data", "id").unwrap();
    let error = std::fs::write(host.inside(mountpoint.join("file")), "x").unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
}

#[test]
fn mount_options_reach_the_kernel() {
    let host = Host::new();
    let daemon = Daemon::start(&host);
    let plugin = daemon.plugin();
    plugin.create("data", &[("size", "64M"), ("mount-options", "noatime,nodev")]).unwrap();
    let mountpoint = plugin.mount("data", "id").unwrap();
    let mounts = host.mounts();
    let mount = mounts.iter().find(|mount| mountpoint.starts_with(&mount.target)).unwrap();
    for option in ["noatime", "nodev"] {
        assert!(mount.options.iter().any(|found| found == option), "{option}: {mount:?}");
    }
}

#[test]
fn ro_among_the_mount_options_makes_a_read_only_volume() {
    let host = Host::new();
    let daemon = Daemon::start(&host);
    let plugin = daemon.plugin();
    plugin.create("data", &[("size", "64M"), ("mount-options", "ro,noatime")]).unwrap();
    let mountpoint = plugin.mount("data", "id").unwrap();
    let error = std::fs::write(host.inside(mountpoint.join("file")), "x").unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    for same in [
        &[("size", "64M"), ("mount-options", "ro,noatime")][..],
        &[("size", "64M"), ("mount-options", "noatime"), ("read-only", "true")],
    ] {
        plugin.create("data", same).expect("the same in other words");
    }
    let error = plugin.create("data", &[("size", "64M"), ("mount-options", "noatime")]);
    assert!(error.unwrap_err().contains("read-only is true"));
    plugin.create("other", &[("size", "64M"), ("mount-options", "rw")]).unwrap();
    let mountpoint = plugin.mount("other", "id").unwrap();
    daemon.write(mountpoint.join("file"), "content");
}

#[test]
fn a_mount_option_that_the_filesystem_does_not_know_fails_the_creation() {
    let host = Host::new();
    let daemon = Daemon::start(&host);
    let plugin = daemon.plugin();
    for kind in ["ext4", "xfs", "btrfs"] {
        let size = [("size", "512M"), ("fs", kind)];
        let with = |words| [&size[..], &[("mount-options", words)]].concat();
        let error = plugin.create("data", &with("noatime,bogus")).unwrap_err();
        assert!(error.contains("bogus"), "{kind}: {error}");
        assert_eq!(plugin.list(), [""; 0]);
        daemon.wait_no_volume_files();
        plugin.create("data", &with("noatime")).unwrap();
        plugin.mount("data", "id").unwrap();
        plugin.unmount("data", "id").unwrap();
        let clone = [("clone-of", "data"), ("mount-options", "bogus")];
        assert!(plugin.create("copy", &clone).unwrap_err().contains("bogus"), "{kind}");
        plugin.remove("data").unwrap();
        daemon.wait_no_volume_files();
    }
    assert_eq!((host.mounts(), host.loops()), (vec![], vec![]));
}

#[test]
fn a_clone_and_a_volume_from_a_snapshot_have_the_content_of_then() {
    let host = Host::new();
    let daemon = Daemon::start(&host);
    let plugin = daemon.plugin();
    plugin.create("data", &[("size", "64M")]).unwrap();
    let mountpoint = plugin.mount("data", "id").unwrap();
    daemon.write(mountpoint.join("file"), "first");
    daemon.cli().ok(&["snapshot", "create", "data@one"]);
    daemon.write(mountpoint.join("file"), "second");
    plugin.unmount("data", "id").unwrap();
    plugin.create("old", &[("from-snapshot", "data@one")]).unwrap();
    plugin.create("twin", &[("clone-of", "data")]).unwrap();
    for (name, content) in [("old", "first"), ("twin", "second"), ("data", "second")] {
        let mountpoint = plugin.mount(name, "id").unwrap();
        assert_eq!(daemon.read(mountpoint.join("file")), content, "{name}");
        daemon.write(mountpoint.join("file"), "changed");
    }
    daemon.cli().ok(&["snapshot", "inspect", "data@one"]);
}
