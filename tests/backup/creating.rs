//! What a backup stores, and which snapshots stay for the next one.

use serde_json::json;

use crate::common::cli::Cli;
use crate::common::host::Host;
use crate::common::repository::{PASSWORD, backups};
use crate::{back_up, begin, create, put_on_xfs, snapshots, start, start_with, text, write};

const MIB: u64 = 1 << 20;

#[test]
fn a_named_snapshot_is_what_is_stored() {
    let host = Host::new();
    let (daemon, repository) = start(&host);
    let cli = daemon.cli();
    create(&daemon, "data", "of the snapshot");
    cli.ok(&["snapshot", "create", "data@one"]);
    write(&daemon, "data", "later");
    let id = back_up(&cli, "data@one");
    cli.ok(&["backup", "restore", &id, "copy"]);
    assert_eq!(
        (text(&daemon, "copy"), text(&daemon, "data")),
        ("of the snapshot".into(), "later".into())
    );
    assert_eq!(snapshots(&cli, "data"), ["one"]);
    assert_eq!(cli.run(&["backup", "create", "data@two"]).code, 3);
    assert_eq!(cli.run(&["backup", "create", "nothing"]).code, 3);
    repository.assert_sound();
}

/// The bytes that were read for a backup, as its operation reports.
fn read(cli: &Cli, id: &str) -> u64 {
    let all = cli.ok(&["operation", "ls"]).json();
    let reports = all.as_array().unwrap().iter().filter_map(|one| one["report"][0].as_str());
    let told = reports.filter(|text| text.contains(&id[..8])).collect::<Vec<_>>();
    let (before, _) = told[0].split_once(" bytes read").unwrap();
    before.rsplit(' ').next().unwrap().parse().unwrap()
}

#[test]
fn where_snapshots_are_free_one_stays_and_only_changes_are_read() {
    let host = Host::new();
    put_on_xfs(&host);
    let (daemon, repository) = start(&host);
    let cli = daemon.cli();
    create(&daemon, "data", "first");
    let large = daemon.plugin().path("data").unwrap() + "/large";
    host.run("dd", &["if=/dev/urandom", &format!("of={large}"), "bs=1M", "count=32", "conv=fsync"]);
    let (mut all_read, mut ids) = (Vec::new(), Vec::new());
    for content in ["first", "second", "third"] {
        write(&daemon, "data", content);
        let id = back_up(&cli, "data");
        all_read.push(read(&cli, &id));
        let stored = cli.ok(&["backup", "inspect", &id]).json()["snapshot"].clone();
        assert_eq!(snapshots(&cli, "data"), [stored.as_str().unwrap()], "the last one's stays");
        ids.push(id);
    }
    assert!(all_read[0] >= 32 * MIB, "{all_read:?}");
    assert!(all_read[1..].iter().all(|read| (1..8 * MIB).contains(read)), "{all_read:?}");
    for (id, content) in ids.iter().zip(["first", "second", "third"]) {
        cli.ok(&["backup", "restore", id, "copy"]);
        assert_eq!(text(&daemon, "copy"), content);
        daemon.plugin().remove("copy").unwrap();
    }
    repository.assert_sound();

    // That of a backup that is removed is of no use any more.
    for id in &ids {
        cli.ok(&["backup", "rm", id]);
    }
    back_up(&cli, "data");
    assert_eq!(snapshots(&cli, "data").len(), 1);
}

#[test]
fn where_snapshots_take_room_none_stays() {
    let host = Host::new();
    let (daemon, _) = start(&host);
    let cli = daemon.cli();
    create(&daemon, "data", "first");
    for _ in 0..2 {
        back_up(&cli, "data");
        assert_eq!(cli.ok(&["snapshot", "ls"]).json(), json!([]));
    }
}

#[test]
fn two_backups_of_one_volume_at_once_are_two_backups() {
    let host = Host::new();
    // Both have begun before either has cut its snapshot, and most often in the same second.
    let (daemon, repository) =
        start_with(&host, |launch| launch.failpoint("backup.intent=delay:200"));
    let cli = daemon.cli();
    create(&daemon, "data", "both");
    let begin = || begin(&cli, &["backup", "create", "data"]);
    let begun = std::thread::scope(|scope| {
        [(); 2].map(|()| scope.spawn(begin)).map(|begun| begun.join().unwrap())
    });
    for id in &begun {
        let run = cli.run(&["operation", "watch", id]);
        assert_eq!(run.code, 0, "{run:?}");
    }
    let ids = backups(&cli);
    assert_eq!(ids.len(), 2);
    for id in ids {
        cli.ok(&["backup", "restore", &id, "copy"]);
        assert_eq!(text(&daemon, "copy"), "both");
        daemon.plugin().remove("copy").unwrap();
    }
    assert_eq!(snapshots(&cli, "data"), Vec::<String>::new());
    repository.assert_sound();
}

#[test]
fn the_password_is_told_to_nobody() {
    let host = Host::new();
    let (daemon, repository) = start(&host);
    let cli = daemon.cli();
    create(&daemon, "data", "secret");
    let id = back_up(&cli, "data");
    cli.ok(&["backup", "restore", &id, "copy"]);
    let arguments = std::fs::read(format!("/proc/{}/cmdline", daemon.pid())).unwrap();
    let config = host
        .command(crate::common::HOLDFAST)
        .args(["config", "show"])
        .env("HOLDFAST_REPOSITORY_MAIN_URL", &repository.directory)
        .env("HOLDFAST_REPOSITORY_MAIN_PASSWORD", PASSWORD)
        .output()
        .unwrap();
    let config = String::from_utf8(config.stdout).unwrap();
    assert!(config.contains("repository.main.password"), "{config}");
    let told = [daemon.log(), String::from_utf8_lossy(&arguments).into_owned(), config];
    for text in told {
        assert!(!text.is_empty() && !text.contains(PASSWORD));
    }
}
