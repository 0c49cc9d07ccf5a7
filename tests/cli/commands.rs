//! What the commands print and how they end.

use std::io::Read;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::common::cli::Run;
use crate::common::daemon::{Daemon, Launch};
use crate::common::host::Host;
use crate::common::{HOLDFAST, wait};
use crate::{holdfast, json_error};

/// Runs a command as a person would.
fn typed(daemon: &Daemon<'_>, args: &[&str]) -> Run {
    let socket = daemon.cli().socket;
    holdfast(&[("HOLDFAST_ADMIN_SOCKET", socket.to_str().unwrap())], args)
}

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().expect("an object").keys().map(String::as_str).collect()
}

#[test]
fn without_a_daemon_the_exit_code_is_5() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("none.sock");
    let socket = socket.to_str().unwrap();
    for args in [
        &["status"][..],
        &["volume", "ls"],
        &["volume", "create", "x"],
        &["volume", "rm", "x", "y"],
        &["snapshot", "ls"],
        &["operation", "ls"],
        &["pool", "ls"],
        &["pool", "grow"],
        &["backup", "ls"],
        &["backup", "create", "x"],
        &["backup", "rm", "0123abcd", "0123abce"],
        &["backup", "prune"],
        &["repository", "ls"],
        &["operation", "cancel", "b5541c8c-c9b3-40a2-a2a1-3d7a9e0dd7de"],
        &["events"],
        &["events", "--follow"],
    ] {
        let run = holdfast(&[], &[&["--socket", socket], args].concat());
        assert_eq!(run.code, 5, "{args:?}: {run:?}");
        assert!(run.stderr.starts_with("holdfast: cannot reach the daemon"), "{run:?}");
        let way_out = "start it with `holdfast daemon`";
        assert!(run.stderr.lines().all(|line| line.contains(way_out)), "{run:?}");
        assert_eq!(run.stdout, "");
    }
    let run = holdfast(&[], &["--socket", socket, "--output", "json", "volume", "ls"]);
    assert_eq!((run.code, json_error(&run)["code"].as_str()), (5, Some("unavailable")));
    // A file left by a daemon that was killed.
    drop(std::os::unix::net::UnixListener::bind(socket).unwrap());
    assert_eq!(holdfast(&[], &["--socket", socket, "status"]).code, 5);
}

#[test]
fn wrong_usage_is_2_and_needs_no_daemon() {
    for args in [
        &["volume"][..],
        &["frobnicate"],
        &["volume", "create"],
        &["volume", "create", "../x"],
        &["volume", "create", "a", "--size", "much"],
        &["volume", "create", "a", "-o", "=x"],
        &["volume", "create", "a", "--size", "1G", "-o", "size=2G"],
        &["volume", "resize", "a", "-1"],
        &["snapshot", "create", "no-at"],
        &["operation", "watch", "7"],
        &["schedule", "set", "data", "--snapshot-every", "often"],
        &["pool"],
        &["pool", "grow", "much"],
        &["pool", "inspect", "../x"],
        &["backup", "create", "../x"],
        &["backup", "create", "a", "--repository", "../x"],
        &["backup", "inspect", "latest"],
        &["backup", "restore", "0123abcd"],
        &["backup", "restore", "0123abcd", "a", "-o", "from-backup=89abcdef"],
        &["backup", "verify"],
        &["backup", "verify", "0123abcd", "--all"],
        &["backup", "prune", "--dry-run", "--now"],
        &["repository", "init"],
        &["repository", "check", "../x"],
        &["operation", "cancel", "7"],
        &["--output", "xml", "status"],
    ] {
        let run = holdfast(&[("HOLDFAST_ADMIN_SOCKET", "/no/such.sock")], args);
        assert_eq!(run.code, 2, "{args:?}: {run:?}");
        assert_eq!(run.stdout, "", "{args:?}");
        assert!(!run.stderr.is_empty(), "{args:?}");
        let help = args == ["volume"] || args == ["pool"];
        assert!(help || run.stderr.lines().count() == 1, "{args:?}: {run:?}");
    }
    let run = holdfast(&[], &["--output", "json", "volume", "create"]);
    assert_eq!((run.code, json_error(&run)["code"].as_str()), (2, Some("invalid")));
    let run = holdfast(&[], &["volume", "create", "../x"]);
    assert!(run.stderr.starts_with("holdfast: ") && run.stderr.contains("letters"), "{run:?}");
}

#[test]
fn help_and_version_are_answers() {
    for args in [&["--help"][..], &["-h"], &["--version"], &["volume", "create", "--help"]] {
        let run = holdfast(&[], args);
        assert_eq!((run.code, run.stderr.as_str()), (0, ""), "{args:?}");
        assert!(!run.stdout.is_empty(), "{args:?}");
    }
    let help = holdfast(&[], &["volume", "create", "--help"]).stdout;
    assert!(help.contains("Examples:"), "{help}");
    // What is not there yet is not promised.
    let help = holdfast(&[], &["--help"]).stdout;
    assert!(!help.contains("doctor"), "{help}");
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let mut child = Command::new(HOLDFAST)
        .args(["completions", "bash"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let mut told = String::new();
    child.stderr.take().unwrap().read_to_string(&mut told).unwrap();
    let status = child.wait().unwrap();
    assert_eq!((status.code(), told.as_str()), (Some(0), ""));
}

#[test]
fn completions_are_scripts() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let run = holdfast(&[], &["completions", shell]);
        assert_eq!(run.code, 0, "{shell}");
        assert!(run.stdout.contains("holdfast"), "{shell}");
    }
}

#[test]
fn a_volume_is_told_with_all_its_keys() {
    let host = Host::new();
    let daemon = Daemon::start(&host);
    let cli = daemon.cli();
    let made = cli
        .ok(&["volume", "create", "data", "--size", "64M", "-o", "mode=0700", "--label", "a=b"])
        .json();
    assert_eq!(keys(&made), ["changed", "name", "operation"]);
    assert_eq!((&made["name"], &made["changed"]), (&"data".into(), &true.into()));
    let again = cli.ok(&["volume", "create", "data", "--size", "65536K", "-o", "mode=700"]).json();
    assert_eq!(again["changed"], false);

    let volume = cli.inspect("data");
    assert_eq!(
        keys(&volume),
        [
            "backend",
            "created",
            "exclusive",
            "filesystem",
            "health",
            "labels",
            "last_backup",
            "last_backup_run",
            "last_snapshot_run",
            "mountpoint",
            "mounts",
            "name",
            "node",
            "options",
            "schedule",
            "size",
            "snapshots",
            "source",
            "state",
            "used",
            "uuid"
        ]
    );
    assert_eq!(volume["size"], 64 << 20);
    assert_eq!(volume["state"], "ready");
    assert_eq!(volume["filesystem"], "ext4");
    assert_eq!(volume["labels"]["a"], "b");
    assert_eq!(volume["options"]["size"], "64M", "as it was typed");
    assert_eq!(volume["mounts"].as_array().map(Vec::len), Some(0));
    assert!(volume["created"].as_str().unwrap().parse::<jiff::Timestamp>().is_ok());

    let listed = cli.ok(&["volume", "ls"]).json();
    assert_eq!(
        keys(&listed[0]),
        [
            "backend",
            "created",
            "filesystem",
            "mountpoint",
            "mounts",
            "name",
            "size",
            "snapshots",
            "state",
            "uuid"
        ]
    );
    let status = cli.ok(&["status"]).json();
    assert_eq!(
        keys(&status),
        [
            "backends",
            "mounted",
            "node",
            "operations",
            "pools",
            "scope",
            "version",
            "volumes",
            "warnings"
        ]
    );
    assert_eq!(status["pools"], serde_json::json!([]));
    assert_eq!((&status["volumes"]["ready"], &status["scope"]), (&1.into(), &"local".into()));
}

#[test]
fn a_person_sees_tables_and_pairs() {
    let host = Host::new();
    let daemon = Daemon::start(&host);
    let run = typed(&daemon, &["volume", "create", "data", "--size", "64M"]);
    assert_eq!((run.code, run.stdout.as_str()), (0, "data\n"), "{run:?}");
    let run = typed(&daemon, &["volume", "ls"]);
    let words: Vec<&str> = run.stdout.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(words[..7], ["data", "loop", "64M", "ext4", "ready", "0", "0"], "{run:?}");
    let run = typed(&daemon, &["volume", "inspect", "data"]);
    for line in ["Name:        data", "Size:        64M", "Mountpoint:  -"] {
        assert!(run.stdout.lines().any(|told| told == line), "{line}: {run:?}");
    }
    let run = typed(&daemon, &["status"]);
    assert!(run.stdout.contains("loop (default)"), "{run:?}");
}

#[test]
fn conflict_in_use_and_not_found_have_their_own_codes() {
    let host = Host::new();
    let daemon = Daemon::start(&host);
    let cli = daemon.cli();
    cli.ok(&["volume", "create", "data", "--size", "64M"]);
    let code = |args: &[&str]| {
        let run = cli.run(args);
        (run.code, json_error(&run)["code"].as_str().unwrap().to_owned())
    };
    let own = |code: i32, word: &str| (code, word.to_owned());
    assert_eq!(code(&["volume", "create", "data", "--size", "65M"]), own(4, "conflict"));
    assert_eq!(code(&["volume", "create", "x", "-o", "sze=1G"]), own(2, "invalid"));
    assert_eq!(code(&["volume", "create", "x", "--backend", "none"]), own(2, "invalid"));
    assert_eq!(code(&["volume", "inspect", "nothing"]), own(3, "not-found"));
    assert_eq!(code(&["volume", "rm", "nothing"]), own(3, "not-found"));
    assert_eq!(code(&["volume", "clone", "nothing", "x"]), own(3, "not-found"));
    assert_eq!(code(&["snapshot", "inspect", "data@nothing"]), own(3, "not-found"));
    assert_eq!(code(&["operation", "watch", &uuid::Uuid::nil().to_string()]), own(3, "not-found"));
    assert_eq!(code(&["volume", "resize", "data", "1M"]), own(2, "invalid"));

    let mounted = typed(&daemon, &["volume", "mount", "data"]);
    let place = daemon.state_dir().join("mounts/data/data");
    assert_eq!(mounted.stdout.trim(), place.to_str().unwrap(), "{mounted:?}");
    assert_eq!(cli.inspect("data")["mounts"][0]["id"], "cli");
    assert_eq!(code(&["volume", "rm", "data"]), own(4, "in-use"));
    let run = typed(&daemon, &["volume", "rm", "data"]);
    let lines: Vec<_> = run.stderr.lines().collect();
    assert_eq!(lines.len(), 1, "{run:?}");
    assert!(lines[0].starts_with("holdfast: cannot remove data on node "), "{run:?}");
    assert!(lines[0].contains("; stop the containers"), "what to do: {run:?}");
    cli.ok(&["volume", "unmount", "data", "--id", "somebody-else"]);
    assert_eq!(cli.inspect("data")["mounts"][0]["count"], 1);
    cli.ok(&["volume", "unmount", "data"]);
    cli.ok(&["volume", "rm", "data"]);
}

#[test]
fn of_several_volumes_each_is_done_or_told_of() {
    let host = Host::new();
    let daemon = Daemon::start(&host);
    for name in ["a", "b"] {
        daemon.cli().ok(&["volume", "create", name, "--size", "64M"]);
    }
    let run = typed(&daemon, &["volume", "inspect", "a", "nothing", "b"]);
    assert_eq!(run.code, 3, "{run:?}");
    assert_eq!(run.stdout.lines().filter(|line| line.starts_with("Name:")).count(), 2, "{run:?}");
    assert!(run.stderr.contains("nothing"), "{run:?}");
    let run = typed(&daemon, &["volume", "rm", "nothing", "a", "b"]);
    assert_eq!((run.code, run.stdout.as_str()), (3, "a\nb\n"), "{run:?}");
    let both = daemon.cli().run(&["volume", "inspect", "a", "b"]);
    assert_eq!((both.code, both.stdout.as_str()), (3, ""));
}

#[test]
fn snapshots_are_cut_restored_cloned_and_removed() {
    let host = Host::new();
    let daemon = Daemon::start(&host);
    let cli = daemon.cli();
    cli.ok(&["volume", "create", "data", "--size", "64M"]);
    let file = |name: &str| daemon.state_dir().join(format!("mounts/{name}/data/file"));
    cli.ok(&["volume", "mount", "data"]);
    daemon.write(file("data"), "before");
    assert_eq!(cli.ok(&["snapshot", "create", "data@one"]).json()["name"], "data@one");
    daemon.write(file("data"), "after");
    cli.ok(&["volume", "unmount", "data"]);
    let run = cli.run(&["snapshot", "create", "data@one"]);
    assert_eq!(run.code, 4, "{run:?}");

    let one = cli.ok(&["snapshot", "inspect", "data@one"]).json();
    assert_eq!(keys(&one), ["created", "name", "origin", "size", "uuid", "volume"]);
    let restored = cli.ok(&["snapshot", "restore", "data@one"]).json();
    let safety = format!("data@{}", restored["safety"].as_str().unwrap());
    cli.ok(&["volume", "clone", &safety, "after"]);
    for (name, content) in [("data", "before"), ("after", "after")] {
        cli.ok(&["volume", "mount", name]);
        assert_eq!(daemon.read(file(name)), content);
        cli.ok(&["volume", "unmount", name]);
    }
    let listed = typed(&daemon, &["snapshot", "ls", "data"]);
    assert_eq!(listed.stdout.lines().count(), 3, "{listed:?}");
    cli.ok(&["snapshot", "rm", "data@one"]);
    assert_eq!(cli.ok(&["snapshot", "ls"]).json().as_array().map(Vec::len), Some(1));
}

#[test]
fn volumes_grow_change_names_and_come_back_from_the_trash() {
    let host = Host::new();
    let daemon = Daemon::start(&host);
    let cli = daemon.cli();
    cli.ok(&["volume", "create", "data", "--size", "64M", "-o", "on-remove=trash"]);
    cli.ok(&["volume", "resize", "data", "96M"]);
    assert_eq!(cli.inspect("data")["size"], 96 << 20);
    assert_eq!(cli.ok(&["volume", "resize", "data", "96M"]).json()["changed"], false);
    assert_eq!(cli.ok(&["volume", "rename", "data", "other"]).json()["name"], "other");
    assert_eq!(cli.run(&["volume", "inspect", "data"]).code, 3);
    cli.ok(&["volume", "rm", "other"]);
    assert_eq!(cli.ok(&["volume", "ls"]).json()[0]["state"], "trashed");
    cli.ok(&["volume", "undelete", "other"]);
    assert_eq!(cli.inspect("other")["size"], 96 << 20);
}

#[test]
fn long_work_is_shown_and_can_be_left_and_followed() {
    let host = Host::new();
    let launch = Launch::new(&host).failpoint("create.allocate=delay:2500");
    let daemon = launch.start(&host);
    let run = typed(&daemon, &["volume", "create", "slow", "--size", "64M"]);
    assert_eq!((run.code, run.stdout.as_str()), (0, "slow\n"));
    assert!(run.stderr.contains("create slow"), "a line of progress: {run:?}");

    let run = typed(&daemon, &["volume", "create", "left", "--size", "64M", "--detach"]);
    assert_eq!(run.code, 0, "{run:?}");
    let id = run.stdout.trim().to_owned();
    let running = daemon.cli().ok(&["operation", "ls"]).json();
    let view = running.as_array().unwrap().iter().find(|view| view["id"] == id.as_str()).unwrap();
    assert_eq!((&view["state"], &view["kind"]), (&"running".into(), &"create".into()));
    let over = daemon.cli().ok(&["operation", "watch", &id]).json();
    assert_eq!(over["state"], "done");
    assert_eq!(daemon.cli().inspect("left")["state"], "ready");

    // What is wrong from the start is told although nobody waits.
    let run = daemon.cli().run(&["volume", "rm", "nothing", "--detach"]);
    assert_eq!((run.code, json_error(&run)["code"].as_str()), (3, Some("not-found")));
}

#[test]
fn a_change_goes_on_when_its_command_is_interrupted() {
    let host = Host::new();
    let daemon = Launch::new(&host).failpoint("create.allocate=delay:1500").start(&host);
    let mut child = Command::new(HOLDFAST)
        .arg("--socket")
        .arg(daemon.cli().socket)
        .args(["volume", "create", "data", "--size", "64M"])
        .spawn()
        .unwrap();
    wait::until_true("the create is under way", || {
        daemon.cli().ok(&["operation", "ls"]).json().as_array().is_some_and(|all| !all.is_empty())
    });
    child.kill().unwrap();
    child.wait().unwrap();
    wait::until_true("the volume is there all the same", || {
        daemon.cli().run(&["volume", "inspect", "data"]).code == 0
    });
}

#[test]
fn a_backend_without_a_pool_is_told_as_such() {
    let host = Host::new();
    let daemon = Daemon::start(&host);
    let cli = daemon.cli();
    assert_eq!(cli.ok(&["pool", "ls"]).json(), serde_json::json!([]));
    for (args, why) in [
        (&["pool", "inspect"][..], "no backend of this node has a pool"),
        (&["pool", "check"], "no backend of this node has a pool"),
        (&["pool", "grow", "1G", "--pool", "loop"], "the backend loop keeps its volumes without"),
        (&["pool", "repair", "none"], "there is no pool none"),
        (&["pool", "inspect", "none"], "there is no pool none"),
    ] {
        let run = cli.run(args);
        let error = json_error(&run);
        assert_eq!((run.code, error["code"].as_str()), (3, Some("not-found")), "{args:?}");
        assert!(error["message"].as_str().unwrap().contains(why), "{args:?}: {error}");
        assert!(error["hint"].is_string(), "{args:?}: {error}");
    }
    let operations = cli.ok(&["operation", "ls"]).json();
    let failed = operations.as_array().unwrap().iter().find(|one| one["kind"] == "repair").unwrap();
    assert_eq!((&failed["pool"], failed.get("volume")), (&"none".into(), None));
}

#[test]
fn a_daemon_that_ends_under_a_command_is_not_reachable() {
    let host = Host::new();
    let mut daemon = Launch::new(&host).failpoint("create.allocate=delay:60000").start(&host);
    let cli = daemon.cli();
    let waiting = std::thread::spawn(move || cli.run(&["volume", "create", "x", "--size", "64M"]));
    wait::until_true("the create is under way", || {
        daemon.cli().ok(&["operation", "ls"]).json().as_array().is_some_and(|all| !all.is_empty())
    });
    std::thread::sleep(Duration::from_millis(100));
    daemon.kill();
    let run = waiting.join().unwrap();
    assert_eq!((run.code, json_error(&run)["code"].as_str()), (5, Some("unavailable")));
}

#[test]
fn a_volume_with_snapshots_is_removed_when_that_is_asked_for() {
    let host = Host::new();
    let daemon = Daemon::start(&host);
    let cli = daemon.cli();
    for name in ["data", "trashed", "dockers"] {
        let on_remove = if name == "trashed" { "on-remove=trash" } else { "on-remove=delete" };
        cli.ok(&["volume", "create", name, "--size", "64M", "-o", on_remove]);
        cli.ok(&["snapshot", "create", &format!("{name}@one")]);
    }
    let refused = cli.run(&["volume", "rm", "data"]);
    assert_eq!(refused.code, 4, "{refused:?}");
    for word in ["data", "one", "--snapshots"] {
        assert!(refused.stderr.contains(word), "{word}: {refused:?}");
    }
    assert_eq!(cli.inspect("data")["snapshots"][0]["name"], "one");
    cli.ok(&["volume", "rm", "trashed"]);
    cli.ok(&["volume", "undelete", "trashed"]);
    assert_eq!(cli.inspect("trashed")["snapshots"][0]["name"], "one", "nothing was deleted");
    daemon.plugin().remove("dockers").unwrap();

    cli.ok(&["snapshot", "restore", "data@one"]);
    cli.ok(&["snapshot", "rm", "data@one"]);
    cli.ok(&["snapshot", "create", "data@two"]);
    cli.ok(&["volume", "rm", "--snapshots", "data"]);
    assert_eq!(daemon.plugin().list(), ["trashed"]);
    cli.ok(&["volume", "create", "data", "--size", "64M"]);
    cli.ok(&["snapshot", "create", "data@one"]);
    cli.ok(&["snapshot", "restore", "data@one"]);
    cli.ok(&["snapshot", "rm", "data@one"]);
    cli.ok(&["volume", "rm", "data"]);
}

#[test]
fn a_retained_volume_is_taken_back_with_all_that_is_in_it() {
    let host = Host::new();
    let mut daemon = Daemon::start(&host);
    let (cli, plugin) = (daemon.cli(), daemon.plugin());
    cli.ok(&["volume", "create", "data", "--size", "64M", "-o", "on-remove=retain"]);
    let file = plugin.mount("data", "id").unwrap().join("file");
    daemon.write(&file, "content");
    plugin.unmount("data", "id").unwrap();
    cli.ok(&["snapshot", "create", "data@one"]);
    let before = cli.inspect("data");
    let uuid = before["uuid"].as_str().unwrap();
    let taken = cli.run(&["volume", "adopt", uuid, "other"]);
    assert_eq!(taken.code, 4, "it is a volume: {taken:?}");
    cli.ok(&["volume", "rm", "data"]);

    cli.ok(&["volume", "create", "data", "--size", "64M"]);
    let taken = cli.run(&["volume", "adopt", uuid]);
    assert_eq!(taken.code, 4, "the name is taken: {taken:?}");
    cli.ok(&["volume", "rm", "data"]);
    assert_eq!(cli.ok(&["volume", "adopt", uuid]).json()["name"], "data");
    assert_eq!(cli.ok(&["volume", "adopt", uuid]).json()["changed"], false);
    assert_eq!(cli.inspect("data"), before);
    plugin.mount("data", "id").unwrap();
    assert_eq!(daemon.read(&file), "content");
    plugin.unmount("data", "id").unwrap();
    let nothing = cli.run(&["volume", "adopt", "248ef1cf-e985-4763-ab0c-b4f4bcdd31f3"]);
    assert_eq!(nothing.code, 3, "{nothing:?}");

    // A rebuilt catalog knows it again, and forgets it again when it is removed again.
    daemon.terminate();
    std::fs::remove_file(daemon.state_dir().join("catalog.redb")).unwrap();
    daemon.start_again();
    assert_eq!(plugin.list(), ["data"]);
    cli.ok(&["volume", "rm", "data"]);
    cli.ok(&["volume", "adopt", uuid, "renamed"]);
    assert_eq!(plugin.list(), ["renamed"]);
}
