//! `docker cp`, which borrows the running container's mount id, and copy-up of image content.

use crate::common::host::Host;
use crate::{assert_counts_on, start, start_counter};

#[test]
fn docker_cp_into_a_running_container_leaves_its_volume_mounted() {
    let host = Host::new();
    let (daemon, engine) = start(&host);
    start_counter(&engine, "app", "data");
    let file = host.dir().join("file");
    std::fs::write(&file, "from the host").unwrap();
    for _ in 0..3 {
        engine.docker(&["cp", file.to_str().unwrap(), "app:/data/file"]);
        engine.docker(&["cp", "app:/data/file", host.dir().join("back").to_str().unwrap()]);
    }
    assert_eq!(std::fs::read_to_string(host.dir().join("back")).unwrap(), "from the host");
    assert_counts_on(&engine, "app");
    assert_eq!(engine.docker(&["exec", "app", "cat", "/data/file"]), "from the host");
    assert_eq!(daemon.cli().inspect("data")["mounts"].as_array().map(Vec::len), Some(1));
    engine.docker(&["rm", "-f", "app"]);
    assert_eq!((host.mounts(), host.loops()), (vec![], vec![]), "the last unmount is the last");
    assert_eq!(engine.in_volume("data", "cat /data/file"), "from the host");
}

#[test]
fn docker_cp_after_the_daemon_was_killed_still_leaves_the_volume_mounted() {
    let host = Host::new();
    let (mut daemon, engine) = start(&host);
    start_counter(&engine, "app", "data");
    daemon.kill_and_start_again();
    let file = host.dir().join("file");
    std::fs::write(&file, "from the host").unwrap();
    engine.docker(&["cp", file.to_str().unwrap(), "app:/data/file"]);
    assert_counts_on(&engine, "app");
    engine.docker(&["rm", "-f", "app"]);
    assert_eq!((host.mounts(), host.loops()), (vec![], vec![]));
}

#[test]
fn docker_cp_into_a_stopped_container_works_and_lets_go() {
    let host = Host::new();
    let (_daemon, engine) = start(&host);
    let create = ["create", "--name", "app", "-v", "data:/data", "--volume-driver", "holdfast"];
    engine.docker(&[&create[..], &["busybox", "cat", "/data/file"]].concat());
    let file = host.dir().join("file");
    std::fs::write(&file, "from the host").unwrap();
    engine.docker(&["cp", file.to_str().unwrap(), "app:/data/file"]);
    assert_eq!((host.mounts(), host.loops()), (vec![], vec![]));
    assert_eq!(engine.docker(&["start", "-a", "app"]), "from the host");
}

/// The content of the image at the mount's place goes into a volume that is empty, and only there.
#[test]
fn image_content_is_copied_into_a_new_volume() {
    let host = Host::new();
    let (_daemon, engine) = start(&host);
    for kind in ["ext4", "xfs", "btrfs"] {
        let option = format!("fs={kind}");
        engine.docker(&["volume", "create", "-d", "holdfast", "-o", &option, kind]);
        let volume = format!("{kind}:/seed");
        let run =
            |line: &str| engine.docker(&["run", "--rm", "-v", &volume, "seeded", "sh", "-c", line]);
        assert_eq!(run("ls -A /seed"), "below\nfile", "{kind}");
        assert_eq!(run("cat /seed/file; stat -c %u:%g /seed/below/owned"), "seeded1000:1000");
        run("rm /seed/file; echo mine > /seed/own");
        assert_eq!(run("ls -A /seed"), "below\nown", "{kind}: what is not empty is left alone");
    }
}

#[test]
fn image_content_is_not_copied_where_the_user_says_so() {
    let host = Host::new();
    let (_daemon, engine) = start(&host);
    let volume = "data:/seed:nocopy";
    let run = ["run", "--rm", "-v", volume, "--volume-driver", "holdfast", "seeded"];
    assert_eq!(engine.docker(&[&run[..], &["ls", "-A", "/seed"]].concat()), "");
}

#[test]
fn a_new_volume_is_empty() {
    let host = Host::new();
    let (_daemon, engine) = start(&host);
    assert_eq!(engine.in_volume("data", "ls -A /data"), "");
}
