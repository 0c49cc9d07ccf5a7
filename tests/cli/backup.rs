//! `holdfast backup`, `repository` and `operation cancel`, as far as they need no repository.

use serde_json::json;

use crate::common::cli::Run;
use crate::common::daemon::{Daemon, Launch};
use crate::common::host::Host;
use crate::common::wait;
use crate::{holdfast, json_error};

fn error_of(run: &Run) -> (i32, String) {
    (run.code, json_error(run)["code"].as_str().unwrap().to_owned())
}

#[test]
fn the_help_of_backups_teaches_with_examples() {
    for command in [
        &["backup", "create"][..],
        &["backup", "ls"],
        &["backup", "restore"],
        &["backup", "rm"],
        &["backup", "verify"],
        &["backup", "prune"],
        &["repository", "init"],
        &["repository", "check"],
        &["operation", "cancel"],
    ] {
        let run = holdfast(&[], &[command, &["--help"]].concat());
        assert_eq!(run.code, 0, "{run:?}");
        let example = format!("  holdfast {}", command.join(" "));
        let examples = run.stdout.split_once("Examples:").map_or("", |(_, examples)| examples);
        assert!(examples.contains(&example), "{run:?}");
    }
}

#[test]
fn a_node_without_repositories_says_so() {
    let host = Host::new();
    let daemon = Daemon::start(&host);
    let cli = daemon.cli();
    assert_eq!(cli.ok(&["repository", "ls"]).json(), json!([]));
    for args in [&["backup", "prune"][..], &["backup", "prune", "--dry-run"]] {
        let run = cli.run(args);
        assert_eq!(error_of(&run), (3, "not-found".to_owned()), "{args:?}: {run:?}");
        assert!(run.stderr.contains("[repository.NAME]"), "what to do: {run:?}");
    }
}

#[test]
fn a_password_file_that_is_missing_is_told_of_in_the_status() {
    let host = Host::new();
    let key = host.dir().join("no.key");
    let launch = Launch::new(&host)
        .env("HOLDFAST_REPOSITORY_MAIN_URL", "/backups")
        .env("HOLDFAST_REPOSITORY_MAIN_PASSWORD_FILE", key.to_str().unwrap());
    let daemon = launch.start(&host);
    let status = daemon.cli().ok(&["status"]).json();
    let warnings = status["warnings"].as_array().unwrap();
    let told = |text: &str| warnings.iter().any(|one| one.as_str().unwrap().starts_with(text));
    assert!(told("repository.main.password_file: cannot read "), "{status}");
    daemon.cli().ok(&["volume", "create", "data", "--size", "64M"]);
}

#[test]
fn a_create_is_cancelled_and_undone() {
    let host = Host::new();
    let launch = Launch::new(&host).failpoint("create.allocate=delay:1500@1");
    let daemon = launch.start(&host);
    let cli = daemon.cli();
    let create = ["volume", "create", "data", "--size", "64M", "--detach"];
    let id = cli.ok(&create).json()["operation"].as_str().unwrap().to_owned();
    let run = cli.ok(&["operation", "cancel", &id]);
    let over = run.json();
    assert_eq!((&over["state"], &over["error"]["code"]), (&"failed".into(), &"cancelled".into()));
    assert_eq!(cli.run(&["volume", "inspect", "data"]).code, 3, "nothing of it is left");
    assert_eq!(cli.run(&["operation", "watch", &id]).code, 1);
    let again = cli.run(&["operation", "cancel", &id]);
    assert_eq!(error_of(&again), (4, "conflict".to_owned()), "it is over: {again:?}");
    cli.ok(&create[..5]);
    assert_eq!(cli.inspect("data")["state"], "ready");
}

#[test]
fn what_cannot_be_cancelled_goes_on() {
    let host = Host::new();
    let daemon = Launch::new(&host).failpoint("snapshot.cut=delay:1500").start(&host);
    let cli = daemon.cli();
    cli.ok(&["volume", "create", "data", "--size", "64M"]);
    let cut = cli.ok(&["snapshot", "create", "data@one", "--detach"]).json();
    let id = cut["operation"].as_str().unwrap();
    let refused = cli.run(&["operation", "cancel", id]);
    assert_eq!(error_of(&refused), (1, "unsupported".to_owned()), "{refused:?}");
    assert!(refused.stderr.contains("a snapshot cannot be cancelled"), "{refused:?}");
    wait::until_true("the snapshot is there", || {
        cli.run(&["snapshot", "inspect", "data@one"]).code == 0
    });
    let nothing = cli.run(&["operation", "cancel", &uuid::Uuid::nil().to_string()]);
    assert_eq!(error_of(&nothing), (3, "not-found".to_owned()));
}
