//! While a backup is on its way.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use crate::common::cli::Cli;
use crate::common::daemon::Daemon;
use crate::common::host::Host;
use crate::common::repository::{Repository, backups};
use crate::common::wait;
use crate::{begin, create, operation, refused, snapshots, start_with, text};

/// How long each pack takes on its way: a backup is not over sooner.
const ON_ITS_WAY: Duration = Duration::from_secs(8);

fn start_slow(host: &Host) -> (Daemon<'_>, Repository) {
    let delay = format!("repository.pack=delay:{}", ON_ITS_WAY.as_millis());
    start_with(host, |launch| launch.failpoint(&delay))
}

/// Begins a backup, and waits until its content is on its way.
fn begin_backup(cli: &Cli, repository: &Repository, volume: &str) -> String {
    let id = begin(cli, &["backup", "create", volume]);
    wait::until_true("a pack is stored", || {
        !crate::common::kernel::files_under(&repository.directory.join("data")).is_empty()
    });
    id
}

#[track_caller]
fn assert_runs(cli: &Cli, id: &str) {
    assert_eq!(operation(cli, id)["state"], "running", "it was over too soon for this test");
}

#[track_caller]
fn cancel(cli: &Cli, id: &str) {
    let over = cli.ok(&["operation", "cancel", id]).json();
    assert_eq!((&over["state"], &over["error"]["code"]), (&"failed".into(), &"cancelled".into()));
}

#[test]
fn a_container_writes_as_if_there_were_no_backup() {
    let host = Host::new();
    let (daemon, repository) = start_slow(&host);
    let cli = daemon.cli();
    create(&daemon, "data", "before");
    let path = host.inside(daemon.plugin().path("data").unwrap() + "/written");
    let id = begin_backup(&cli, &repository, "data");
    let file = File::create(path).unwrap();
    let mut slowest = Duration::ZERO;
    for count in 0..20_u64 {
        let begun = Instant::now();
        file.write_all_at(&count.to_le_bytes(), 0).unwrap();
        file.sync_all().unwrap();
        slowest = slowest.max(begun.elapsed());
    }
    assert_runs(&cli, &id);
    assert!(slowest < ON_ITS_WAY / 2, "{slowest:?}");
    cli.ok(&["operation", "watch", &id]);
    cli.ok(&["backup", "restore", &backups(&cli)[0], "copy"]);
    assert_eq!(text(&daemon, "copy"), "before");
    repository.assert_sound();
}

#[test]
fn others_change_the_volume_and_others_but_its_snapshot_stays() {
    let host = Host::new();
    let (daemon, repository) = start_slow(&host);
    let (cli, plugin) = (daemon.cli(), daemon.plugin());
    create(&daemon, "data", "kept");
    create(&daemon, "other", "else");
    plugin.unmount("data", "writer").unwrap();
    let id = begin_backup(&cli, &repository, "data");
    for volume in ["data", "other"] {
        assert_eq!(plugin.get(volume).unwrap()["Name"], volume);
        plugin.mount(volume, "container").unwrap();
        cli.ok(&["snapshot", "create", &format!("{volume}@during")]);
        plugin.unmount(volume, "container").unwrap();
    }
    let made = snapshots(&cli, "data").into_iter().find(|name| name != "during").unwrap();
    for args in [["snapshot", "rm", &format!("data@{made}")], ["volume", "rm", "data"]] {
        let run = cli.run(&args);
        let (code, error) = refused(&run);
        assert_eq!((code, &error["code"]), (4, &"in-use".into()), "{args:?}: {run:?}");
        assert!(error["hint"].as_str().unwrap().contains("operation cancel"), "{error}");
    }
    let removed = plugin.remove("data").unwrap_err();
    assert!(removed.contains("a backup of volume data is being made"), "{removed}");
    cli.ok(&["snapshot", "rm", "data@during"]);
    cli.ok(&["volume", "rename", "data", "renamed"]);
    assert_runs(&cli, &id);
    cli.ok(&["operation", "watch", &id]);
    assert_eq!(snapshots(&cli, "renamed"), Vec::<String>::new());
    plugin.remove("renamed").unwrap();
    cli.ok(&["backup", "restore", &backups(&cli)[0], "data"]);
    assert_eq!(text(&daemon, "data"), "kept");
}

#[test]
fn a_cancelled_backup_leaves_nothing() {
    let host = Host::new();
    let (daemon, repository) = start_slow(&host);
    let cli = daemon.cli();
    create(&daemon, "data", "kept");
    let id = begin_backup(&cli, &repository, "data");
    cancel(&cli, &id);
    assert_eq!(cli.run(&["operation", "watch", &id]).code, 1);
    assert_eq!(backups(&cli), Vec::<String>::new());
    assert_eq!(snapshots(&cli, "data"), Vec::<String>::new());
    repository.assert_sound();
}

#[test]
fn a_backup_that_waits_for_its_turn_is_cancelled_at_once() {
    let host = Host::new();
    let delay = format!("repository.pack=delay:{}", ON_ITS_WAY.as_millis());
    let (daemon, repository) = start_with(&host, |launch| {
        launch.failpoint(&delay).env("HOLDFAST_BACKUP_CONCURRENCY", "1")
    });
    let cli = daemon.cli();
    create(&daemon, "first", "kept");
    create(&daemon, "second", "kept");
    let first = begin_backup(&cli, &repository, "first");
    let second = begin(&cli, &["backup", "create", "second"]);
    assert_runs(&cli, &second);
    assert_eq!(snapshots(&cli, "second"), Vec::<String>::new(), "none waits with it");
    cancel(&cli, &second);
    assert_runs(&cli, &first);
    assert_eq!(snapshots(&cli, "second"), Vec::<String>::new());
    cli.ok(&["operation", "watch", &first]);
    assert_eq!(backups(&cli).len(), 1);
}

#[test]
fn a_cancelled_restore_leaves_nothing() {
    let host = Host::new();
    let (daemon, repository) =
        start_with(&host, |launch| launch.failpoint("restore-backup.data=delay:3000@1"));
    let cli = daemon.cli();
    create(&daemon, "data", "kept");
    let backup = crate::back_up(&cli, "data");
    let files = daemon.volume_files();
    let id = begin(&cli, &["backup", "restore", &backup, "copy"]);
    wait::until_true("the copy is there", || daemon.volume_files().len() > files.len());
    cancel(&cli, &id);
    assert_eq!(daemon.plugin().list(), ["data"]);
    assert_eq!(daemon.volume_files(), files);
    assert_eq!(host.loops().len(), 1, "only that of the mounted volume");
    cli.ok(&["backup", "restore", &backup, "copy"]);
    assert_eq!(text(&daemon, "copy"), "kept");
    repository.assert_sound();
}

#[test]
fn a_daemon_that_is_told_to_end_does_not_wait_for_a_backup() {
    let host = Host::new();
    // Longer than any test may take.
    let (mut daemon, repository) =
        start_with(&host, |launch| launch.failpoint("repository.pack=delay:600000"));
    create(&daemon, "data", "kept");
    let cli = daemon.cli();
    begin_backup(&cli, &repository, "data");
    let asked = Instant::now();
    daemon.terminate();
    assert!(asked.elapsed() < Duration::from_secs(30), "{:?}", asked.elapsed());
    daemon.start_again();
    assert_eq!(backups(&cli), Vec::<String>::new());
    wait::until_true("what was begun is undone", || {
        cli.ok(&["operation", "ls"]).json().as_array().unwrap().is_empty()
    });
    assert_eq!(snapshots(&cli, "data"), Vec::<String>::new());
    crate::back_up(&cli, "data");
    repository.assert_sound();
}
