//! What Convoy's integration tests asked of backups, asked of ours: C14 to C17, numbered as they stood in
//! `tests/integration/test_main.py`. On a filesystem that copies, on one that shares, and in a pool.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use serde_json::json;

use crate::common::daemon::Daemon;
use crate::common::host::{Host, checked};
use crate::common::repository::{Repository, backups};
use crate::{back_up, create, put_on_xfs, refused, snapshots, start, text, write};

const MIB: u64 = 1 << 20;

/// A file that does not compress, and its checksum.
fn fill(host: &Host, daemon: &Daemon<'_>, volume: &str) -> String {
    let file = daemon.plugin().mount(volume, "writer").unwrap().join("random");
    let file = file.to_str().unwrap();
    host.run("dd", &["if=/dev/urandom", &format!("of={file}"), "bs=1M", "count=9", "conv=fsync"]);
    checksum(host, daemon, volume)
}

fn checksum(host: &Host, daemon: &Daemon<'_>, volume: &str) -> String {
    let file = daemon.plugin().mount(volume, "summer").unwrap().join("random");
    let sum = checked(&mut Command::new("sha512sum"), &[host.inside(&file).to_str().unwrap()]);
    daemon.plugin().unmount(volume, "summer").unwrap();
    sum.split_whitespace().next().unwrap().to_owned()
}

/// The bytes that the mounted filesystem has room for.
fn room(host: &Host, daemon: &Daemon<'_>, volume: &str) -> u64 {
    let mountpoint = daemon.plugin().mount(volume, "sizer").unwrap();
    let blocks = host.run("stat", &["-f", "-c", "%b %S", mountpoint.to_str().unwrap()]);
    daemon.plugin().unmount(volume, "sizer").unwrap();
    let numbers: Vec<u64> = blocks.split_whitespace().map(|n| n.parse().unwrap()).collect();
    numbers[0] * numbers[1]
}

fn remove(daemon: &Daemon<'_>, volume: &str) {
    for snapshot in snapshots(&daemon.cli(), volume) {
        daemon.cli().ok(&["snapshot", "rm", &format!("{volume}@{snapshot}")]);
    }
    // One that was never written to by `writer` is not mounted by it.
    daemon.plugin().unmount(volume, "writer").unwrap();
    daemon.plugin().unmount(volume, "writer").unwrap();
    daemon.plugin().remove(volume).unwrap();
}

/// All of the list, one after the other in one daemon.
fn run_the_list(host: &Host, daemon: &Daemon<'_>, repository: &Repository) {
    c16_lists(daemon);
    c14_a_backup_outlives_its_volume(host, daemon);
    c15_one_snapshot_is_backed_up_twice(host, daemon);
    assert_eq!(backups(&daemon.cli()), Vec::<String>::new());
    repository.assert_sound();
}

/// Write, snapshot, back up, delete the original; a smaller size fails, the same and a larger one hold what
/// was written; the backup is deleted.
fn c14_a_backup_outlives_its_volume(host: &Host, daemon: &Daemon<'_>) {
    let cli = daemon.cli();
    create(daemon, "original", "kept");
    let sum = fill(host, daemon, "original");
    let before = room(host, daemon, "original");
    cli.ok(&["snapshot", "create", "original@one"]);
    let id = back_up(&cli, "original@one");
    remove(daemon, "original");

    let smaller = cli.run(&["backup", "restore", &id, "smaller", "--size", "32M"]);
    let (code, error) = refused(&smaller);
    assert_eq!((code, &error["code"]), (2, &"invalid".into()), "{smaller:?}");
    assert!(error["message"].as_str().unwrap().contains("smaller than the source"), "{error}");
    assert_eq!(cli.run(&["volume", "inspect", "smaller"]).code, 3, "nothing is left of it");

    for (name, size) in [("same", None), ("larger", Some("128M"))] {
        let mut args = vec!["backup", "restore", &id, name];
        args.extend(size.into_iter().flat_map(|size| ["--size", size]));
        cli.ok(&args);
        assert_eq!(checksum(host, daemon, name), sum, "{name}");
        assert_eq!(text(daemon, name), "kept");
        let room = room(host, daemon, name);
        match size {
            None => assert_eq!(room, before),
            Some(_) => assert!(room > 96 * MIB, "the filesystem has not grown: {room}"),
        }
        remove(daemon, name);
    }
    cli.ok(&["backup", "rm", &id]);
    assert_eq!(cli.run(&["backup", "inspect", &id]).code, 3);
}

/// The second one is restored and deleted; the first one can still be restored.
fn c15_one_snapshot_is_backed_up_twice(host: &Host, daemon: &Daemon<'_>) {
    let cli = daemon.cli();
    create(daemon, "original", "kept");
    let sum = fill(host, daemon, "original");
    cli.ok(&["snapshot", "create", "original@one"]);
    let (first, second) = (back_up(&cli, "original@one"), back_up(&cli, "original@one"));
    assert_ne!(first, second);
    assert_eq!(snapshots(&cli, "original"), ["one"], "what the user has cut stays");
    for id in [second, first] {
        cli.ok(&["backup", "restore", &id, "copy"]);
        assert_eq!(checksum(host, daemon, "copy"), sum);
        remove(daemon, "copy");
        cli.ok(&["backup", "rm", &id]);
    }
    remove(daemon, "original");
}

/// Empty and full lists, of all volumes and of one, one with a name of two letters; what they tell, also by
/// id; increments; the newest deleted, the older ones restored.
fn c16_lists(daemon: &Daemon<'_>) {
    let cli = daemon.cli();
    assert_eq!(cli.ok(&["backup", "ls"]).json(), json!([]));
    create(daemon, "volume", "first");
    assert_eq!(cli.run(&["backup", "ls", "volume"]).code, 3, "it has no backup");
    cli.ok(&["snapshot", "create", "volume@one"]);
    let one = back_up(&cli, "volume@one");
    let list = cli.ok(&["backup", "ls", "volume"]).json();
    let told = &list[0];
    let backend = cli.inspect("volume")["backend"].clone();
    assert_eq!((&told["id"], &told["repository"]), (&json!(one), &json!("main")));
    assert_eq!((&told["volume"], &told["snapshot"]), (&json!("volume"), &json!("one")));
    assert_eq!((&told["backend"], &told["size"]), (&backend, &json!(64 * MIB)));
    let cut = cli.ok(&["snapshot", "inspect", "volume@one"]).json();
    let cut = cut.get(0).unwrap_or(&cut);
    let second = |time: &serde_json::Value| time.as_str().unwrap()[..19].to_owned();
    assert_eq!(second(&told["created"]), second(&cut["created"]));
    let details = cli.ok(&["backup", "inspect", &one[..8]]).json();
    for (key, value) in told.as_object().unwrap() {
        assert_eq!(&details[key], value, "{key}");
    }
    assert_eq!((&details["filesystem"], &details["layout"]), (&json!("ext4"), &json!("image")));

    create(daemon, "v2", "second");
    let other_one = back_up(&cli, "v2");
    let mut newest = Vec::new();
    for (volume, content) in [("volume", "first, changed"), ("v2", "second, changed")] {
        write(daemon, volume, content);
        newest.push(back_up(&cli, volume));
    }
    let count = |args: &[&str]| cli.ok(&[&["backup", "ls"], args].concat()).json();
    assert_eq!(count(&[]).as_array().unwrap().len(), 4);
    for (volume, ids) in [("volume", [&one, &newest[0]]), ("v2", [&other_one, &newest[1]])] {
        let list = count(&[volume]);
        let list = list.as_array().unwrap().iter();
        // Within one second they have no order.
        let listed: BTreeSet<_> = list.map(|backup| backup["id"].as_str().unwrap()).collect();
        assert_eq!(listed, BTreeSet::from(ids.map(String::as_str)), "{volume}");
    }
    for (id, content) in [
        (&one, "first"),
        (&other_one, "second"),
        (&newest[0], "first, changed"),
        (&newest[1], "second, changed"),
    ] {
        cli.ok(&["backup", "restore", id, "copy"]);
        assert_eq!(text(daemon, "copy"), content);
        remove(daemon, "copy");
    }
    cli.ok(&["backup", "rm", &newest[0], &newest[1]]);
    for (args, left) in [(&[][..], 2), (&["volume"], 1), (&["v2"], 1)] {
        assert_eq!(count(args).as_array().unwrap().len(), left, "{args:?}");
    }
    for id in [one, other_one] {
        cli.ok(&["backup", "inspect", &id]);
        cli.ok(&["backup", "rm", &id]);
    }
    remove(daemon, "volume");
    remove(daemon, "v2");
}

#[test]
fn convoys_list_holds_where_a_copy_takes_room() {
    let host = Host::new();
    let (daemon, repository) = start(&host);
    run_the_list(&host, &daemon, &repository);
}

#[test]
fn convoys_list_holds_where_a_copy_is_shared() {
    let host = Host::new();
    put_on_xfs(&host);
    let (daemon, repository) = start(&host);
    run_the_list(&host, &daemon, &repository);
    assert!(fs::exists(&repository.directory).unwrap());
}

mod lab {
    use super::*;
    use crate::common::lab::in_lab;
    use crate::start_with;

    fn start_with_pool(host: &Host) -> (Daemon<'_>, Repository) {
        let pool = host.dir().join("thin");
        start_with(host, |launch| {
            let pool = ["--thin-file", pool.to_str().unwrap(), "--thin-size", "1G"];
            launch.args(&["--default-backend", "thin"]).args(&pool)
        })
    }

    in_lab! {
        on |host| host.memory(3072).modules(&["dm-thin-pool", "loop"]);
        fn convoys_list_holds_in_a_pool() {
            let host = Host::new();
            let (daemon, repository) = start_with_pool(&host);
            run_the_list(&host, &daemon, &repository);
        }
    }

    in_lab! {
        on |host| host.memory(3072).modules(&["dm-thin-pool", "loop"]);
        /// Convoy refused this.
        fn convoy_c17_backups_are_restored_across_backends() {
            let host = Host::new();
            let (daemon, repository) = start_with_pool(&host);
            let cli = daemon.cli();
            for (from, to) in [("loop", "thin"), ("thin", "loop")] {
                let options = [("size", "64M"), ("backend", from)];
                daemon.plugin().create("original", &options).unwrap();
                write(&daemon, "original", from);
                let sum = fill(&host, &daemon, "original");
                let id = back_up(&cli, "original");
                for backend in [to, from] {
                    cli.ok(&["backup", "restore", &id, "copy", "--backend", backend]);
                    assert_eq!(cli.inspect("copy")["backend"], backend);
                    assert_eq!(checksum(&host, &daemon, "copy"), sum, "{from} to {backend}");
                    assert_eq!(text(&daemon, "copy"), from);
                    remove(&daemon, "copy");
                }
                cli.ok(&["backup", "restore", &id, "copy"]);
                assert_eq!(cli.inspect("copy")["backend"], from, "where it came from");
                remove(&daemon, "copy");
                remove(&daemon, "original");
            }
            repository.assert_sound();
        }
    }
}
