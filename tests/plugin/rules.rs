//! The rules of the design that the protocol carries, one test or more each.

use std::io::Write;
use std::sync::mpsc;
use std::thread;

use serde_json::{Value, json};

use crate::common::daemon::{Daemon, Launch};
use crate::common::host::Host;
use crate::common::plugin::{PluginClient, read_answer};
use crate::common::wait;

/// Docker takes any error to Get as "does not exist" and sends Create.
#[test]
fn rule_01_get_never_fails_for_an_existing_volume() {
    let host = Host::new();
    let mut daemon = Daemon::start(&host);
    let plugin = daemon.plugin();
    plugin.create("data", &[("size", "64M")]).unwrap();
    plugin.get("data").unwrap();
    daemon.kill_and_start_again();
    plugin.get("data").expect("after a kill");
    // The backend has lost it: a reason to warn, not to deny that it exists.
    for image in daemon.volume_files() {
        std::fs::remove_file(image).unwrap();
    }
    plugin.get("data").expect("with its image gone");
    daemon.kill_and_start_again();
    plugin.get("data").expect("with its image gone, after a restart");
    assert_eq!(plugin.list(), ["data"]);
    let error = plugin.mount("data", "id").unwrap_err();
    assert!(error.contains("data"), "a mount says what is wrong: {error}");
}

#[test]
fn rule_01_get_answers_while_the_volume_is_busy() {
    let host = Host::new();
    let daemon = Launch::new(&host).failpoint("mount.attach=delay:60000").start(&host);
    let plugin = daemon.plugin();
    plugin.create("data", &[("size", "64M")]).unwrap();
    let (sender, mounted) = mpsc::channel();
    let mounting = plugin.clone();
    thread::spawn(move || sender.send(mounting.mount("data", "id")));
    wait::until_true("the mount is under way", || !host.loops().is_empty());
    assert_eq!(plugin.get("data").unwrap()["Name"], "data");
    assert_eq!(plugin.path("data").unwrap(), "");
    assert_eq!(plugin.list(), ["data"]);
    assert!(mounted.try_recv().is_err(), "the mount should not have ended yet");
}

#[test]
fn rule_02_create_again_with_the_same_options_creates_nothing() {
    let host = Host::new();
    let daemon = Daemon::start(&host);
    let plugin = daemon.plugin();
    let creating: Vec<_> = (0..20)
        .map(|_| {
            let plugin = plugin.clone();
            thread::spawn(move || plugin.create("data", &[("size", "64M")]))
        })
        .collect();
    for create in creating {
        create.join().unwrap().unwrap();
    }
    assert_eq!(plugin.list(), ["data"]);
    let one = daemon.volume_files();
    plugin.create("data", &[("size", "64M")]).unwrap();
    assert_eq!(daemon.volume_files(), one);
    assert_eq!(host.loops(), []);
}

#[test]
fn rule_02_create_again_with_other_options_says_which_differ() {
    let host = Host::new();
    let daemon = Daemon::start(&host);
    let plugin = daemon.plugin();
    plugin.create("data", &[("size", "64M"), ("fs", "ext4"), ("mode", "0700")]).unwrap();
    let error = plugin
        .create("data", &[("size", "128M"), ("fs", "ext4"), ("mode", "0750")])
        .expect_err("two options differ");
    for word in ["data", "size", "mode"] {
        assert!(error.contains(word), "{word} is missing: {error}");
    }
    assert!(!error.contains("fs"), "fs does not differ: {error}");
}

/// Docker's retry after a crash has an empty body.
#[test]
fn rule_03_a_request_without_a_name_is_an_error() {
    let host = Host::new();
    let daemon = Daemon::start(&host);
    let plugin = daemon.plugin();
    plugin.create("data", &[("size", "64M")]).unwrap();
    let mountpoint = plugin.mount("data", "id").unwrap();
    for method in ["Create", "Remove", "Mount", "Unmount", "Path", "Get"] {
        for body in ["", "\n", "{}", "null", r#"{"Name":""}"#, r#"{"Name":null,"ID":"id"}"#] {
            let answer = plugin.post(&format!("VolumeDriver.{method}"), body.as_bytes()).unwrap();
            let error = answer.error();
            assert!(error.is_some_and(|text| !text.is_empty()), "{method} {body:?}: {answer:?}");
        }
    }
    assert_eq!(plugin.list(), ["data"]);
    assert_eq!(plugin.path("data").unwrap(), mountpoint.to_str().unwrap());
}

/// `docker cp` mounts and unmounts with the id of the running container.
#[test]
fn rule_04_docker_cp_does_not_unmount_under_the_container() {
    let host = Host::new();
    let daemon = Daemon::start(&host);
    let plugin = daemon.plugin();
    plugin.create("data", &[("size", "64M")]).unwrap();
    let mountpoint = plugin.mount("data", "container").unwrap();
    for _ in 0..3 {
        plugin.mount("data", "container").unwrap();
        plugin.unmount("data", "container").unwrap();
    }
    daemon.write(mountpoint.join("file"), "still mine");
    assert_eq!(host.mounts().iter().filter(|mount| mount.filesystem == "ext4").count(), 1);
}

/// Sends a Mount, waits until `reached` holds, and hangs up.
fn hang_up_in_mount(plugin: &PluginClient, id: &str, reached: impl Fn() -> bool) {
    let mut stream = plugin.connect().unwrap();
    let body = json!({"Name": "data", "ID": id}).to_string();
    stream.write_all(&PluginClient::request("VolumeDriver.Mount", body.as_bytes())).unwrap();
    wait::until_true("the mount is under way", reached);
}

fn holders(daemon: &Daemon<'_>) -> Vec<Value> {
    daemon.cli().inspect("data")["mounts"].as_array().cloned().unwrap_or_default()
}

#[test]
fn rule_05_a_mount_whose_client_hung_up_is_undone() {
    let host = Host::new();
    let daemon = Launch::new(&host).failpoint("mount.filesystem=delay:1000").start(&host);
    let plugin = daemon.plugin();
    plugin.create("data", &[("size", "64M")]).unwrap();
    hang_up_in_mount(&plugin, "gone", || !host.mounts().is_empty());
    wait::until_true("the abandoned mount is undone", || {
        host.mounts().is_empty() && host.loops().is_empty()
    });
    assert_eq!(holders(&daemon), Vec::<Value>::new());
    let mountpoint = plugin.mount("data", "next").unwrap();
    daemon.write(mountpoint.join("file"), "content");
    plugin.unmount("data", "next").unwrap();
    assert_eq!(host.mounts(), []);
}

#[test]
fn rule_05_a_mount_given_up_on_leaves_other_holders_alone() {
    let host = Host::new();
    let daemon = Launch::new(&host).failpoint("mount.filesystem=delay:1000").start(&host);
    let plugin = daemon.plugin();
    plugin.create("data", &[("size", "64M")]).unwrap();
    let staying = plugin.clone();
    let stays = thread::spawn(move || staying.mount("data", "stays"));
    wait::until_true("the mount is under way", || !host.mounts().is_empty());
    hang_up_in_mount(&plugin, "gone", || true);
    let mountpoint = stays.join().unwrap().unwrap();
    wait::until_true("only the one that stayed is a holder", || {
        let holders = holders(&daemon);
        holders.len() == 1 && holders[0]["id"] == "stays"
    });
    daemon.write(mountpoint.join("file"), "content");
}

/// A request that is cut before its end was never made.
#[test]
fn rule_05_half_a_request_changes_nothing() {
    let host = Host::new();
    let daemon = Daemon::start(&host);
    let plugin = daemon.plugin();
    let body = br#"{"Name":"data","Opts":{"size":"64M"}}"#;
    let request = PluginClient::request("VolumeDriver.Create", body);
    for length in [1, 20, request.len() / 2, request.len() - body.len(), request.len() - 1] {
        let mut stream = plugin.connect().unwrap();
        stream.write_all(&request[..length]).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        // Whatever it answers, if anything, it must have seen the end before we look.
        let _ = read_answer(stream);
    }
    assert_eq!(plugin.list(), Vec::<String>::new());
}

/// Rule 9: `lost+found` would stop Docker's copy-up and break initdb.
#[test]
fn rule_09_a_new_volume_is_empty() {
    let host = Host::new();
    let daemon = Daemon::start(&host);
    let plugin = daemon.plugin();
    for kind in ["ext4", "xfs", "btrfs"] {
        plugin.create(kind, &[("size", "512M"), ("fs", kind)]).unwrap();
        let mountpoint = plugin.mount(kind, "id").unwrap();
        assert_eq!(std::fs::read_dir(host.inside(mountpoint)).unwrap().count(), 0, "{kind}");
    }
}

/// Rule 11: a call about one volume never waits for work on another.
#[test]
fn rule_11_a_stuck_volume_does_not_delay_another() {
    let host = Host::new();
    let daemon = Launch::new(&host).failpoint("snapshot.intent=delay:60000").start(&host);
    let plugin = daemon.plugin();
    plugin.create("stuck", &[("size", "64M")]).unwrap();
    let (sender, cut) = mpsc::channel();
    let cli = daemon.cli();
    thread::spawn(move || sender.send(cli.run(&["snapshot", "create", "stuck@one"]).code));
    wait::until_true("the snapshot is under way", || {
        let running = daemon.cli().ok(&["operation", "ls"]).json();
        running.to_string().contains("stuck")
    });
    plugin.create("free", &[("size", "64M")]).unwrap();
    plugin.mount("free", "id").unwrap();
    plugin.unmount("free", "id").unwrap();
    plugin.remove("free").unwrap();
    assert_eq!(plugin.list(), ["stuck"]);
    assert!(cut.try_recv().is_err(), "the snapshot should not have ended yet");
}

/// Rule 16: what a removal does is the volume's own option, not the way it was asked for.
#[test]
fn rule_16_retain_forgets_the_volume_and_keeps_the_data() {
    let host = Host::new();
    let daemon = Daemon::start(&host);
    let plugin = daemon.plugin();
    plugin.create("data", &[("size", "64M"), ("on-remove", "retain")]).unwrap();
    plugin.remove("data").unwrap();
    assert_eq!(plugin.list(), Vec::<String>::new());
    assert!(!daemon.volume_files().is_empty());
}

#[test]
fn rule_16_trash_can_be_undeleted() {
    let host = Host::new();
    let daemon = Daemon::start(&host);
    let plugin = daemon.plugin();
    plugin.create("data", &[("size", "64M"), ("on-remove", "trash")]).unwrap();
    let mountpoint = plugin.mount("data", "id").unwrap();
    daemon.write(mountpoint.join("file"), "content");
    plugin.unmount("data", "id").unwrap();
    plugin.remove("data").unwrap();
    assert_eq!(plugin.list(), Vec::<String>::new());
    plugin.get("data").unwrap_err();
    daemon.cli().ok(&["volume", "undelete", "data"]);
    let mountpoint = plugin.mount("data", "id").unwrap();
    assert_eq!(daemon.read(mountpoint.join("file")), "content");
}
