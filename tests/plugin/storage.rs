//! The rules that protect what is stored, seen from outside.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::common::daemon::{Daemon, Launch};
use crate::common::host::Host;
use crate::common::wait;

fn with_volume(host: &Host) -> Daemon<'_> {
    let daemon = Daemon::start(host);
    daemon.plugin().create("data", &[("size", "64M")]).unwrap();
    daemon
}

/// The image of the only volume.
fn image(daemon: &Daemon<'_>) -> PathBuf {
    let is_image = |path: &&PathBuf| path.to_string_lossy().contains("/image");
    daemon.volume_files().iter().find(is_image).expect("an image").clone()
}

/// The path as it is inside the host.
fn inside(path: &Path) -> PathBuf {
    let root = path.iter().position(|part| part == "root").expect("/proc/PID/root");
    Path::new("/").join(path.iter().skip(root + 1).collect::<PathBuf>())
}

/// Rule 6: an image whose beginning reads as zeros is damaged, not new.
#[test]
fn rule_06_a_volume_that_lost_its_filesystem_is_not_made_anew() {
    let host = Host::new();
    let daemon = with_volume(&host);
    let plugin = daemon.plugin();
    let file = plugin.mount("data", "id").unwrap().join("file");
    daemon.write(&file, "content");
    plugin.unmount("data", "id").unwrap();
    let image = image(&daemon);
    let whole = fs::read(&image).unwrap();
    fs::write(&image, vec![0; whole.len()]).unwrap();
    let error = plugin.mount("data", "id").unwrap_err();
    assert!(error.contains("data"), "{error}");
    plugin.create("data", &[("size", "64M")]).expect("it exists, so nothing is created");
    plugin.mount("data", "id").expect_err("still nothing to mount");
    assert!(fs::read(&image).unwrap().iter().all(|byte| *byte == 0), "it was written to");
    assert_eq!((host.mounts(), host.loops()), (vec![], vec![]));
    // What the administrator puts back is there again.
    fs::write(&image, whole).unwrap();
    plugin.mount("data", "id").unwrap();
    assert_eq!(daemon.read(&file), "content");
}

/// Rule 7: a device that shows something else of the same file is not the volume's.
#[test]
fn rule_07_a_device_on_a_part_of_the_image_is_not_taken_for_the_volume() {
    let host = Host::new();
    let daemon = with_volume(&host);
    let plugin = daemon.plugin();
    let image = inside(&image(&daemon));
    let image = image.to_str().unwrap();
    host.run("losetup", &["--find", "--offset", "4096", image]);
    let error = plugin.mount("data", "id").unwrap_err();
    assert!(error.contains("/dev/loop"), "the device must be named: {error}");
    let device = host.loops()[0].device.clone();
    host.run("losetup", &["--detach", device.to_str().unwrap()]);
    wait::until_true("the device is gone", || host.loops().is_empty());
    plugin.mount("data", "id").unwrap();
}

/// A process that has `directory` bound elsewhere in a mount namespace of its own, as a container has.
pub(crate) fn bind_elsewhere(host: &Host, directory: &Path) -> Child {
    let mut holder = host.command("unshare");
    let script = "mount --bind \"$0\" /mnt && echo here && exec cat";
    holder.args(["--mount", "--propagation", "private", "sh", "-c", script]).arg(directory);
    spawn_and_wait(holder)
}

/// Starts a command that says "here" when it is ready, and ends when its standard input does.
pub(crate) fn spawn_and_wait(mut command: Command) -> Child {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = [0; 5];
    child.stdout.as_mut().expect("piped").read_exact(&mut line).expect("here");
    child
}

pub(crate) fn end(mut child: Child) {
    drop(child.stdin.take());
    child.wait().unwrap();
}

/// Rule 8: what is mounted anywhere is not detached, and not deleted.
#[test]
fn rule_08_a_volume_that_another_mount_namespace_holds_is_neither_detached_nor_deleted() {
    let host = Host::new();
    let daemon = with_volume(&host);
    let plugin = daemon.plugin();
    let mountpoint = plugin.mount("data", "id").unwrap();
    let file = mountpoint.join("file");
    daemon.write(&file, "content");
    let holder = bind_elsewhere(&host, &mountpoint);
    plugin.unmount("data", "id").expect("Docker's unmount is not held up by others");
    assert_eq!(host.loops().len(), 1, "the device must stay while somebody has it mounted");
    let error = plugin.remove("data").unwrap_err();
    assert!(error.contains("use") || error.contains("held"), "{error}");
    assert_eq!(plugin.list(), ["data"]);
    plugin.mount("data", "next").expect("the same filesystem, mounted here again");
    assert_eq!(daemon.read(&file), "content");
    plugin.unmount("data", "next").unwrap();
    end(holder);
    wait::until_true("the device is let go", || host.loops().is_empty());
    plugin.remove("data").unwrap();
    daemon.wait_no_volume_files();
}

/// A shell of the administrator's stands in the directory: the unmount is late, not lost.
#[test]
fn rule_08_a_busy_unmount_is_told_of_and_made_up_for_later() {
    let host = Host::new();
    let daemon = with_volume(&host);
    let plugin = daemon.plugin();
    let mountpoint = plugin.mount("data", "id").unwrap();
    let is_told = || {
        let warnings = daemon.cli().ok(&["status"]).json()["warnings"].to_string();
        warnings.contains("volume unmount data")
    };
    assert!(!is_told());
    let mut sitting = host.command("sh");
    sitting.args(["-c", "cd \"$0\" && echo here && exec cat"]).arg(&mountpoint);
    let sitting = spawn_and_wait(sitting);
    for _ in 0..2 {
        plugin.unmount("data", "id").expect_err("it is neither forced nor forgotten");
        assert!(!host.mounts().is_empty(), "unmounted under somebody's feet");
        assert!(is_told());
    }
    plugin.remove("data").expect_err("somebody is in it");
    end(sitting);
    plugin.unmount("data", "id").unwrap();
    assert_eq!((host.mounts(), host.loops()), (vec![], vec![]));
    assert!(!is_told());
    assert_eq!(plugin.mount("data", "id").unwrap(), mountpoint);
    plugin.unmount("data", "id").unwrap();
    plugin.remove("data").unwrap();
}

/// After a lost catalog nobody knows the ids of the containers that run.
#[test]
fn rule_08_an_unmount_of_an_unknown_id_takes_no_container_its_volume() {
    let host = Host::new();
    let mut daemon = with_volume(&host);
    let plugin = daemon.plugin();
    let mountpoint = plugin.mount("data", "id").unwrap();
    let holder = bind_elsewhere(&host, &mountpoint);
    daemon.terminate();
    fs::remove_file(daemon.state_dir().join("catalog.redb")).unwrap();
    daemon.start_again();
    let mounts = host.mounts();
    assert!(!mounts.is_empty());
    plugin.unmount("data", "another").unwrap();
    assert_eq!(host.mounts(), mounts);
    end(holder);
    plugin.unmount("data", "id").unwrap();
    assert_eq!((host.mounts(), host.loops()), (vec![], vec![]));
}

/// What an administrator mounted where volumes are mounted is his.
#[test]
fn rule_08_what_holdfast_did_not_mount_is_not_unmounted() {
    let host = Host::new();
    let mut daemon = Launch::new(&host).failpoint("mount.intent=kill").start(&host);
    let plugin = daemon.plugin();
    plugin.create("data", &[("size", "64M")]).unwrap();
    plugin.mount("data", "id").expect_err("killed");
    daemon.wait_end();
    let mounts = daemon.state_dir().join("mounts");
    let foreign = ["usbdisk", "data", ".6e0b7cf3-3b43-4b4c-8f0e-9c8b6c4e4f10", ".cache"];
    for name in foreign {
        let target = mounts.join(name);
        host.run("mkdir", &["-p", target.to_str().unwrap()]);
        host.run("mount", &["-t", "tmpfs", "tmpfs", target.to_str().unwrap()]);
        daemon.write(target.join("file"), name);
    }
    daemon.start_again();
    // Asked for after the recovery of `data`.
    let refused = [
        plugin.mount("data", "id").unwrap_err(),
        plugin.remove("data").unwrap_err(),
        daemon.cli().run(&["volume", "rename", "data", "other"]).stderr,
    ];
    for error in refused {
        assert!(error.contains("tmpfs"), "what is in the way is named: {error}");
    }
    daemon.kill_and_start_again();
    for name in foreign {
        assert_eq!(daemon.read(mounts.join(name).join("file")), name, "it is still mounted");
    }
    let status = daemon.cli().ok(&["status"]).json().to_string();
    assert!(status.contains("usbdisk"), "{status}");
    host.run("umount", &[mounts.join("data").to_str().unwrap()]);
    plugin.mount("data", "id").expect("with nothing in the way");
}

/// Rule 14: whoever writes must not hang for ever because a snapshot failed.
#[test]
fn rule_14_a_failed_snapshot_thaws() {
    for step in ["snapshot.freeze", "snapshot.cut", "snapshot.thaw"] {
        let host = Host::new();
        let daemon = Launch::new(&host).failpoint(&format!("{step}=error")).start(&host);
        let plugin = daemon.plugin();
        plugin.create("data", &[("size", "64M")]).unwrap();
        let mountpoint = plugin.mount("data", "id").unwrap();
        let run = daemon.cli().run(&["snapshot", "create", "data@one"]);
        assert_eq!(run.code, 1, "{step}: {run:?}");
        daemon.write(mountpoint.join("file"), "not frozen");
        let left = daemon.cli().ok(&["snapshot", "ls", "data"]).json();
        assert_eq!(left, serde_json::json!([]), "{step}");
        plugin.unmount("data", "id").unwrap();
        plugin.remove("data").unwrap();
        daemon.wait_no_volume_files();
    }
}

/// Rule 17: an error tells the volume, the node, and what to do; the backend where it is known.
#[test]
fn rule_17_errors_tell_what_where_why_and_what_to_do() {
    let host = Host::new();
    let daemon = with_volume(&host);
    let plugin = daemon.plugin();
    let node = daemon.cli().inspect("data")["node"].as_str().expect("node").to_owned();
    plugin.mount("data", "id").unwrap();
    let errors = [
        plugin.remove("data").unwrap_err(),
        plugin.create("data", &[("size", "65M")]).unwrap_err(),
        plugin.mount("missing", "id").unwrap_err(),
    ];
    for error in &errors[..2] {
        assert!(error.contains("loop"), "the backend is missing: {error}");
    }
    for (error, volume) in errors.iter().zip(["data", "data", "missing"]) {
        for word in [volume, &node, "holdfast"] {
            assert!(error.contains(word), "{word} is missing: {error}");
        }
    }
}
