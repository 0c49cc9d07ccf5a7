//! Repositories that cannot be used: what is said, and what to do.

use std::fs;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::common::cli::Cli;
use crate::common::daemon::Launch;
use crate::common::host::Host;
use crate::common::repository::{PASSWORD, Repository};
use crate::{back_up, create, refused, snapshots, start, start_with, text};

/// What `backup create data` ends with, and what lists say of the repository.
#[track_caller]
fn refusal(cli: &Cli) -> (i32, Value, Value) {
    let (code, error) = refused(&cli.run(&["backup", "create", "data"]));
    assert_eq!(snapshots(cli, "data"), Vec::<String>::new(), "nothing is cut in vain");
    let listed = cli.ok(&["repository", "ls"]).json();
    (code, error, listed[0]["state"].clone())
}

#[track_caller]
fn assert_says(error: &Value, message: &str, hint: &str) {
    let says = |key: &str, text: &str| error[key].as_str().is_some_and(|said| said.contains(text));
    assert!(says("message", message) && says("hint", hint), "{error}");
}

#[test]
fn one_that_was_never_made() {
    let host = Host::new();
    let repository = Repository::of(&host);
    let daemon = repository.known_to(Launch::new(&host)).start(&host);
    create(&daemon, "data", "kept");
    fs::create_dir(&repository.directory).unwrap();
    let (code, error, state) = refusal(&daemon.cli());
    assert_eq!((code, &error["code"], &state), (3, &json!("not-found"), &json!("missing")));
    assert_says(&error, "there is no repository there", "`holdfast repository init main`");
}

#[test]
fn one_whose_directory_is_away() {
    let host = Host::new();
    let (daemon, repository) = start(&host);
    let cli = daemon.cli();
    create(&daemon, "data", "kept");
    let id = back_up(&cli, "data");
    let away = repository.directory.with_extension("away");
    fs::rename(&repository.directory, &away).unwrap();
    let (code, error, state) = refusal(&cli);
    assert_eq!((code, &error["code"], &state), (3, &json!("not-found"), &json!("missing")));
    assert_says(&error, repository.directory.to_str().unwrap(), "`holdfast repository init main`");
    assert_eq!(text(&daemon, "data"), "kept", "volumes need no repository");
    // A daemon that starts meanwhile starts.
    drop(daemon);
    let daemon = repository.known_to(Launch::new(&host)).start(&host);
    let (code, error, _) = refusal(&daemon.cli());
    assert_eq!((code, &error["code"]), (3, &json!("not-found")), "{error}");
    fs::rename(&away, &repository.directory).unwrap();
    daemon.cli().ok(&["backup", "verify", &id]);
    back_up(&daemon.cli(), "data");
    repository.assert_sound();
}

#[test]
fn one_whose_password_is_another() {
    let host = Host::new();
    let (mut daemon, repository) = start(&host);
    create(&daemon, "data", "kept");
    daemon.terminate();
    fs::write(&repository.key, "a guess").unwrap();
    daemon.start_again();
    let cli = daemon.cli();
    let (code, error, state) = refusal(&cli);
    assert_eq!((code, &error["code"], &state), (1, &json!("unsupported"), &json!("refused")));
    assert_says(&error, "the password is wrong", "password_file");
    assert_eq!(refused(&cli.run(&["repository", "init", "main"])).0, 1, "it is not made anew");
    fs::write(&repository.key, PASSWORD).unwrap();
    back_up(&cli, "data");
    repository.assert_sound();
}

#[test]
fn one_that_cannot_be_written() {
    let host = Host::new();
    let (daemon, repository) = start(&host);
    let cli = daemon.cli();
    create(&daemon, "data", "kept");
    let id = back_up(&cli, "data");
    let directory = repository.directory.to_str().unwrap();
    host.run("mount", &["--bind", directory, directory]);
    host.run("mount", &["-o", "remount,bind,ro", directory]);
    let (code, error) = refused(&cli.run(&["backup", "create", "data"]));
    assert_eq!((code, &error["code"]), (1, &json!("unsupported")), "{error}");
    assert_says(&error, "cannot write", "may only be read");
    cli.ok(&["backup", "restore", &id, "copy"]);
    assert_eq!(text(&daemon, "copy"), "kept", "it may still be read");
    host.run("umount", &[directory]);
    back_up(&cli, "data");
}

#[test]
fn one_whose_disk_hangs_holds_up_no_other() {
    let host = Host::new();
    let stuck = host.dir().join("stuck");
    fs::create_dir(&stuck).unwrap();
    // Whoever opens it waits for ever.
    host.run("mkfifo", &[stuck.join("config").to_str().unwrap()]);
    let key = Repository::of(&host).key;
    let (daemon, _) = start_with(&host, |launch| {
        launch
            .env("HOLDFAST_REPOSITORY_STUCK_URL", stuck.to_str().unwrap())
            .env("HOLDFAST_REPOSITORY_STUCK_PASSWORD_FILE", key.to_str().unwrap())
            .env("HOLDFAST_DEFAULT_REPOSITORY", "main")
    });
    let cli = daemon.cli();
    create(&daemon, "data", "kept");
    let began = Instant::now();
    let (list, views) = std::thread::scope(|scope| {
        let list = scope.spawn(|| cli.run(&["backup", "ls"]));
        let views = scope.spawn(|| cli.ok(&["repository", "ls"]).json());
        back_up(&cli, "data");
        assert_eq!(text(&daemon, "data"), "kept");
        assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
        let backups = cli.ok(&["backup", "ls", "--repository", "main"]).json();
        assert_eq!(backups.as_array().unwrap().len(), 1);
        (list.join().unwrap(), views.join().unwrap())
    });
    assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
    let (_, error) = refused(&list);
    assert_eq!(error["code"], "unavailable", "{error}");
    assert_says(&error, "repository stuck at", "try again");
    assert_eq!((&views[0]["state"], &views[1]["state"]), (&json!("ready"), &json!("unreachable")));
}
