//! The daemon is killed after every step of every operation, started again, and asked again.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a failed helper is a failed test")]

#[path = "../common/mod.rs"]
mod common;

mod load;
mod operations;

use std::os::unix::process::ExitStatusExt;

use common::daemon::{Daemon, Launch};
use common::host::Host;
use common::kernel;
use common::wait;
use holdfast::failpoint::Step;
use operations::{OPERATIONS, Operation, SUBJECT};
use serde_json::Value;

/// A volume that has nothing to do with what is killed: mounted all the time, with data.
const BYSTANDER: &str = "bystander";

fn operation_of(step: Step) -> &'static str {
    step.name().split_once('.').expect("operation, dot, step").0
}

#[test]
fn every_operation_that_has_steps_is_tested_here() {
    for step in Step::ALL {
        let known = OPERATIONS.iter().any(|operation| operation.name == operation_of(*step));
        assert!(known, "{} belongs to an operation that no test here runs", step.name());
    }
    for operation in OPERATIONS {
        let steps = Step::ALL.iter().filter(|step| operation_of(**step) == operation.name).count();
        assert!(steps > 0, "{} has no steps any more", operation.name);
    }
}

macro_rules! kill_at_every_step {
    ($($test:ident => $name:literal),* $(,)?) => {
        $(#[test]
        fn $test() {
            kill_at_every_step_of($name);
        })*

        #[test]
        fn every_operation_has_its_own_test() {
            let tested = [$($name),*];
            assert_eq!(OPERATIONS.map(|operation| operation.name), tested);
        }
    };
}

kill_at_every_step! {
    create_survives_a_kill_at_every_step => "create",
    clone_survives_a_kill_at_every_step => "clone",
    delete_survives_a_kill_at_every_step => "delete",
    mount_survives_a_kill_at_every_step => "mount",
    unmount_survives_a_kill_at_every_step => "unmount",
    snapshot_survives_a_kill_at_every_step => "snapshot",
    delete_snapshot_survives_a_kill_at_every_step => "delete-snapshot",
    restore_survives_a_kill_at_every_step => "restore",
    grow_survives_a_kill_at_every_step => "grow",
    rename_survives_a_kill_at_every_step => "rename",
    undelete_survives_a_kill_at_every_step => "undelete",
    mount_of_a_read_only_volume_survives_a_kill_at_every_step => "mount-read-only",
}

fn kill_at_every_step_of(name: &str) {
    let operation = OPERATIONS.iter().find(|operation| operation.name == name).expect("known");
    let is_reached = |step: &&Step| {
        let of = operation_of(**step);
        of == name || operation.also.contains(&of)
    };
    for step in Step::ALL.iter().filter(is_reached) {
        eprintln!("--- killed at {}", step.name());
        kill_at(operation, step.name());
    }
}

fn kill_at(operation: &Operation, step: &str) {
    let host = Host::new();
    let mut daemon = Launch::new(&host).short_grace().start(&host);
    let plugin = daemon.plugin();
    plugin.create(BYSTANDER, &[("size", "64M")]).unwrap();
    let bystander = plugin.mount(BYSTANDER, "bystander").unwrap().join("file");
    daemon.write(&bystander, "not to be touched");
    (operation.prepare)(&daemon);
    daemon.terminate();

    let launch = Launch::new(&host).short_grace().failpoint(&format!("{step}=kill"));
    let mut daemon = launch.start(&host);
    let answer = (operation.run)(&daemon);
    assert!(answer.is_err(), "{step}: answered although it was to be killed");
    assert_eq!(daemon.wait_end().signal(), Some(9), "{step} was not reached:\n{}", daemon.log());

    // Once more while it recovers: what mends an interrupted operation can be interrupted as well.
    daemon.start_again();
    daemon.kill_and_start_again();
    if let Err(error) = (operation.run)(&daemon) {
        let over = operation.already.iter().any(|word| error.contains(word));
        assert!(over, "{step}: the retried request failed: {error}");
    }
    (operation.check)(&daemon, &host);
    assert_eq!(daemon.read(&bystander), "not to be touched", "{step}");
    remove_everything(&daemon, &host);
    assert_nothing_left(&daemon, &host, step);
}

/// Removes all volumes, their snapshots first.
fn remove_everything(daemon: &Daemon<'_>, host: &Host) {
    let (plugin, cli) = (daemon.plugin(), daemon.cli());
    for (volume, id) in [(BYSTANDER, "bystander"), (SUBJECT, operations::ID)] {
        plugin.unmount(volume, id).unwrap();
    }
    for snapshot in cli.ok(&["snapshot", "ls"]).json().as_array().expect("snapshots") {
        let of = |key: &str| snapshot[key].as_str().unwrap_or_else(|| panic!("{key}: {snapshot}"));
        cli.ok(&["snapshot", "rm", &format!("{}@{}", of("volume"), of("name"))]);
    }
    for name in plugin.list() {
        // A mount whose answer was lost is a mount id of a container that never was: it is forgotten
        // when the kernel has shown for long enough that nobody has it.
        let mut refused = None;
        let removed = wait::try_until(|| match plugin.remove(&name) {
            Ok(()) => Some(()),
            Err(error) => {
                refused = Some(error);
                None
            }
        });
        assert!(removed.is_some(), "{name} cannot be removed: {refused:?}\n{:?}", host.mounts());
    }
}

fn assert_nothing_left(daemon: &Daemon<'_>, host: &Host, step: &str) {
    assert_eq!(daemon.plugin().list(), Vec::<String>::new(), "{step}");
    assert_eq!((host.mounts(), host.loops()), (vec![], vec![]), "{step}");
    daemon.wait_no_volume_files();
    let mountpoints = kernel::names_in(&daemon.state_dir().join("mounts"));
    assert_eq!(mountpoints, [".lock"], "{step}");
    let operations = daemon.cli().ok(&["operation", "ls"]).json();
    let open = operations
        .as_array()
        .expect("operations")
        .iter()
        .filter(|operation| !matches!(operation["state"].as_str(), Some("done" | "failed")));
    assert_eq!(open.collect::<Vec<&Value>>(), Vec::<&Value>::new(), "{step}");
}
