//! The daemon is killed after every step of every operation, started again, and asked again.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a failed helper is a failed test")]

#[path = "../common/mod.rs"]
mod common;

mod driver;
mod failures;
mod load;
mod operations;

use common::daemon::Launch;
use common::repository::Repository;
use driver::{Place, kill_at_each, operation_of, steps_of};
use holdfast::failpoint::Step;
use operations::{OPERATIONS, Operation, find};

/// Images behind loop devices.
const LOOP: Place = Place {
    launch: |host| Launch::new(host).short_grace(),
    attached: |host| host.loops().len(),
    assert_only: |daemon, _, kept| {
        if kept.is_empty() {
            daemon.wait_no_volume_files();
        }
    },
    ended: |_| (),
};

/// The same with a repository.
const BACKED_UP: Place =
    Place { launch: |host| Repository::of(host).known_to((LOOP.launch)(host)), ..LOOP };

/// The same with a hook, whose programs leave marks.
const HOOKED: Place = Place {
    launch: |host| {
        let (config, marks) = (host.dir().join("config.toml"), operations::marks(host));
        let program = |word: &str| {
            format!("['sh', '-c', 'echo {word} >> \"$1\"', 'sh', '{}']", marks.display())
        };
        let (before, after) = (program("before"), program("after"));
        let text = format!("[hook.marks]\nbefore = {before}\nafter = {after}\n");
        std::fs::write(&config, text).expect("configuration");
        Launch::new(host).short_grace().args(&["--config", config.to_str().expect("UTF-8")])
    },
    ..LOOP
};

#[test]
fn every_operation_that_has_steps_is_tested_here() {
    for step in Step::ALL {
        let known = OPERATIONS.iter().any(|operation| operation.name == operation_of(*step));
        assert!(known, "{} belongs to an operation that no test here runs", step.name());
    }
    for operation in &OPERATIONS {
        assert!(steps_of(operation).count() > 0, "{} has no steps", operation.name);
    }
}

fn kill_at_every_step_of(operation: &Operation) {
    if operation.name == "snapshot-hook" {
        kill_at_each(&HOOKED, operation, steps_of(operation));
    } else if ["backup", "restore-backup"].contains(&operation.name) {
        kill_at_each(&BACKED_UP, operation, steps_of(operation));
    } else if operation.name == "undelete" {
        // What one round leaves in the trash would be found there by the next.
        steps_of(operation).for_each(|step| kill_at_each(&LOOP, operation, [step]));
    } else {
        kill_at_each(&LOOP, operation, steps_of(operation));
    }
}

macro_rules! kill_at_every_step {
    ($($(#[$note:meta])* $test:ident => $name:literal),* $(,)?) => {
        $(#[test]
        $(#[$note])*
        fn $test() {
            kill_at_every_step_of(find($name));
        })*

        #[test]
        fn every_operation_has_its_own_test() {
            let tested = [$($name),*];
            assert_eq!(OPERATIONS.each_ref().map(|operation| operation.name), tested);
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
    schedule_survives_a_kill_at_every_step => "schedule",
    snapshot_with_a_hook_survives_a_kill_at_every_step => "snapshot-hook",
    backup_survives_a_kill_at_every_step => "backup",
    restore_of_a_backup_survives_a_kill_at_every_step => "restore-backup",
}

/// The snapshot that it cuts and removes.
fn steps_within_a_backup() -> impl Iterator<Item = &'static str> {
    ["snapshot", "delete-snapshot"].into_iter().flat_map(|name| steps_of(find(name)))
}

#[test]
fn backup_survives_a_kill_at_every_step_of_its_snapshot() {
    kill_at_each(&BACKED_UP, find("backup"), steps_within_a_backup());
}
