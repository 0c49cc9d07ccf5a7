//! What comes of a backup.

use std::os::unix::fs::MetadataExt;

use crate::common::daemon::Launch;
use crate::common::engine::Engine;
use crate::common::host::Host;
use crate::common::repository::{Repository, backups};
use crate::{back_up, create, refused, start, start_with, text, write};

#[test]
fn a_restored_volume_is_used_beside_the_original() {
    let host = Host::new();
    let (daemon, repository) = start(&host);
    let (cli, plugin) = (daemon.cli(), daemon.plugin());
    for filesystem in ["ext4", "xfs", "btrfs"] {
        plugin.create(filesystem, &[("size", "512M"), ("fs", filesystem)]).unwrap();
        write(&daemon, filesystem, filesystem);
        let id = back_up(&cli, filesystem);
        let copy = format!("{filesystem}-copy");
        cli.ok(&["backup", "restore", &id, &copy]);
        write(&daemon, &copy, "of the copy");
        assert_eq!(text(&daemon, filesystem), filesystem);
        let uuids: Vec<_> = [filesystem, &copy]
            .into_iter()
            .map(|volume| {
                let data = plugin.path(volume).unwrap();
                let device = host.run("findmnt", &["-n", "-o", "SOURCE", "--target", &data]);
                let device = device.trim().split('[').next().unwrap();
                host.run("blkid", &["-p", "-s", "UUID", "-o", "value", device])
            })
            .collect();
        assert_ne!(uuids[0], uuids[1], "{filesystem}");
        for volume in [filesystem, &copy] {
            plugin.unmount(volume, "writer").unwrap();
            plugin.remove(volume).unwrap();
        }
    }
    repository.assert_sound();
}

#[test]
fn docker_makes_a_volume_of_a_backup_once() {
    let host = Host::new();
    let (daemon, _) = start_with(&host, |launch| Launch {
        plugin_socket: Launch::for_engine().plugin_socket,
        ..launch
    });
    let engine = Engine::start(&host);
    engine.docker(&["volume", "create", "-d", "holdfast", "-o", "size=64M", "data"]);
    let mut ids = Vec::new();
    for word in ["one", "two"] {
        engine.in_volume("data", &format!("echo {word} > /data/file && sync"));
        ids.push(back_up(&daemon.cli(), "data"));
    }
    let make = |id: &str| {
        let from = format!("from-backup={id}");
        let args = ["volume", "create", "-d", "holdfast", "-o", &from, "copy"];
        engine.client(&args).output().unwrap()
    };
    // Docker asks again what it has not got an answer to.
    for _ in 0..2 {
        let made = make(&ids[0]);
        assert!(made.status.success(), "{made:?}");
    }
    let retried = daemon.plugin().create("copy", &[("from-backup", &ids[0])]);
    retried.expect("the same once more");
    let other = daemon.plugin().create("copy", &[("from-backup", &ids[1])]).unwrap_err();
    assert!(other.contains("from-backup is"), "{other}");
    assert_eq!(engine.in_volume("copy", "cat /data/file"), "one");
}

#[test]
fn a_restored_volume_gets_the_options_that_are_asked_for() {
    let host = Host::new();
    let (daemon, _) = start(&host);
    create(&daemon, "data", "kept");
    let id = back_up(&daemon.cli(), "data");
    let options = [
        ("from-backup", &*id),
        ("backup-every", "1d"),
        ("keep", "7d"),
        ("uid", "1000"),
        ("mode", "0750"),
    ];
    for _ in 0..2 {
        daemon.plugin().create("copy", &options).unwrap();
    }
    assert_eq!(text(&daemon, "copy"), "kept");
    let root = daemon.plugin().mount("copy", "reader").unwrap();
    let root = host.inside(root).metadata().unwrap();
    assert_eq!((root.uid(), root.mode() & 0o7777), (1000, 0o750));
    let schedules = daemon.cli().ok(&["schedule", "ls"]).json();
    let told = |key: &str| schedules[0][key].as_str().unwrap_or_else(|| panic!("{schedules}"));
    assert_eq!((told("volume"), told("backup_every"), told("keep")), ("copy", "1d", "7d"));
    let taken = daemon.cli().run(&["backup", "restore", &id, "data"]);
    assert_eq!(refused(&taken).0, 4, "never over a volume that is there");
    for (key, value) in [("fs", "xfs"), ("hook", "unknown"), ("backend", "unknown")] {
        let options = [("from-backup", &*id), (key, value)];
        daemon.plugin().create("more", &options).unwrap_err();
    }
    assert_eq!(daemon.plugin().list(), ["copy", "data"]);
}

#[test]
fn a_lost_host_is_restored_on_another() {
    let (lost, other) = (Host::new(), Host::new());
    let elsewhere = tempfile::tempdir().unwrap();
    let repository = Repository::at(elsewhere.path());
    let daemon = repository.known_to(Launch::new(&lost)).start(&lost);
    daemon.cli().ok(&["repository", "init", "main"]);
    let label = ["volume", "create", "data", "--size", "64M", "--label", "team=blue"];
    daemon.cli().ok(&label);
    write(&daemon, "data", "survives");
    back_up(&daemon.cli(), "data");
    drop(daemon);
    drop(lost);

    let daemon = repository.known_to(Launch::new(&other)).start(&other);
    let cli = daemon.cli();
    let ids = backups(&cli);
    let listed = cli.ok(&["backup", "ls", "data"]).json();
    assert_eq!(listed[0]["id"], ids[0].as_str());
    cli.ok(&["backup", "restore", &ids[0][..8], "data"]);
    assert_eq!(text(&daemon, "data"), "survives");
    assert_eq!(cli.inspect("data")["labels"]["team"], "blue");
    back_up(&cli, "data");
    assert_eq!(backups(&cli).len(), 2);
    assert_eq!(refused(&cli.run(&["backup", "restore", "0123abcd", "more"])).0, 3);
    repository.assert_sound();
}
