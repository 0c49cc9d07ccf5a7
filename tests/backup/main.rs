//! Backups as users make and restore them, with the real daemon. Debian's restic is the judge.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a failed helper is a failed test")]

#[path = "../common/mod.rs"]
mod common;

mod convoy;
mod creating;
mod database;
mod refused;
mod restoring;
mod running;
mod scheduled;

use std::fs;

use common::cli::{Cli, Run};
use common::daemon::{Daemon, Launch};
use common::host::Host;
use common::repository::Repository;

/// A daemon with a repository that is made.
fn start(host: &Host) -> (Daemon<'_>, Repository) {
    start_with(host, |launch| launch)
}

fn start_with(host: &Host, with: impl FnOnce(Launch) -> Launch) -> (Daemon<'_>, Repository) {
    let repository = Repository::of(host);
    let daemon = with(repository.known_to(Launch::new(host))).start(host);
    daemon.cli().ok(&["repository", "init", "main"]);
    (daemon, repository)
}

/// The state of the daemons to come lies on xfs, where a copy shares what it can.
fn put_on_xfs(host: &Host) {
    let (image, state) = (host.dir().join("xfs.img"), host.dir().join("state"));
    let file = fs::File::create(&image).expect("image");
    file.set_len(2 << 30).expect("image");
    fs::create_dir(&state).expect("state");
    let (image, state) = (image.to_str().expect("UTF-8"), state.to_str().expect("UTF-8"));
    host.run("mkfs.xfs", &["-q", image]);
    host.run("mount", &["-o", "loop", image, state]);
}

/// A volume of 64 MiB with a text in a file, mounted by `writer`.
fn create(daemon: &Daemon<'_>, volume: &str, text: &str) {
    daemon.plugin().create(volume, &[("size", "64M")]).unwrap();
    write(daemon, volume, text);
}

fn write(daemon: &Daemon<'_>, volume: &str, text: &str) {
    let mountpoint = daemon.plugin().mount(volume, "writer").unwrap();
    daemon.write(mountpoint.join("file"), text);
}

/// The text in a volume.
#[track_caller]
fn text(daemon: &Daemon<'_>, volume: &str) -> String {
    let mountpoint = daemon.plugin().mount(volume, "reader").unwrap();
    let text = daemon.read(mountpoint.join("file"));
    daemon.plugin().unmount(volume, "reader").unwrap();
    text
}

/// Makes a backup and gives its id.
#[track_caller]
fn back_up(cli: &Cli, what: &str) -> String {
    let made = cli.ok(&["backup", "create", what]).json();
    made["backup"]["id"].as_str().unwrap_or_else(|| panic!("{made}")).to_owned()
}

/// Begins something that `--detach` lets go on, and gives its operation.
#[track_caller]
fn begin(cli: &Cli, args: &[&str]) -> String {
    let begun = cli.ok(&[args, &["--detach"]].concat()).json();
    begun["operation"].as_str().unwrap_or_else(|| panic!("{begun}")).to_owned()
}

#[track_caller]
fn operation(cli: &Cli, id: &str) -> serde_json::Value {
    let all = cli.ok(&["operation", "ls"]).json();
    let found = all.as_array().expect("operations").iter().find(|one| one["id"] == id);
    found.unwrap_or_else(|| panic!("{id} is not in {all}")).clone()
}

/// The names of a volume's snapshots.
#[track_caller]
fn snapshots(cli: &Cli, volume: &str) -> Vec<String> {
    let list = cli.ok(&["snapshot", "ls", volume]).json();
    let names = list.as_array().expect("snapshots").iter();
    names.map(|one| one["name"].as_str().expect("name").to_owned()).collect()
}

/// The exit code and the error of a command that must fail.
#[track_caller]
fn refused(run: &Run) -> (i32, serde_json::Value) {
    // What takes long tells of its progress first.
    let last = run.stderr.lines().last().unwrap_or_default();
    let error: serde_json::Value =
        serde_json::from_str(last).unwrap_or_else(|_| panic!("no error: {run:?}"));
    (run.code, error["error"].clone())
}
