//! A full disk under the daemon's own files.

use std::fs::{self, File};
use std::io::Write;

use crate::common::daemon::{Daemon, Launch};
use crate::common::host::Host;

/// The daemon's state on a filesystem that is soon full.
fn start_on_small_disk(host: &Host) -> Daemon<'_> {
    let state = host.dir().join("state");
    fs::create_dir(&state).unwrap();
    host.run("mount", &["-t", "tmpfs", "-o", "size=64M", "tmpfs", state.to_str().unwrap()]);
    Launch::new(host).start(host)
}

#[test]
fn a_full_disk_is_an_error_that_loses_nothing_and_passes() {
    let host = Host::new();
    let mut daemon = start_on_small_disk(&host);
    let plugin = daemon.plugin();
    plugin.create("before", &[("size", "64M")]).unwrap();
    let mountpoint = plugin.mount("before", "id").unwrap();
    daemon.write(mountpoint.join("file"), "kept");
    let ballast = host.inside(daemon.state_dir().join("ballast"));
    let mut filling = File::create(&ballast).unwrap();
    for size in [1 << 20, 4096, 1] {
        while filling.write_all(&vec![1; size]).is_ok() {}
    }

    let files = daemon.volume_files();
    let error = plugin.create("more", &[("size", "64M")]).unwrap_err();
    assert!(error.contains("more"), "{error}");
    assert!(error.to_lowercase().contains("space"), "the reason must be told: {error}");
    plugin.get("before").expect("rule 1, whatever the disk");
    assert_eq!(daemon.read(mountpoint.join("file")), "kept");
    daemon.kill_and_start_again();
    plugin.get("before").expect("after a restart on a full disk");
    assert_eq!(plugin.path("before").unwrap(), mountpoint.to_str().unwrap());

    fs::remove_file(&ballast).unwrap();
    drop(filling);
    plugin.create("more", &[("size", "64M")]).expect("there is room again");
    plugin.remove("more").unwrap();
    assert_eq!(daemon.volume_files(), files);
    plugin.unmount("before", "id").unwrap();
    plugin.mount("before", "id").unwrap();
    assert_eq!(daemon.read(mountpoint.join("file")), "kept");
    plugin.unmount("before", "id").unwrap();
    plugin.remove("before").unwrap();
    assert_eq!(host.loops(), []);
}
