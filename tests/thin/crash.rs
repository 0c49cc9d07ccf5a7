//! The daemon is killed after every step of every operation on a thin pool, the pool's own steps
//! included, while containers write; and while it makes a pool, starts, stops and grows one. The pool's
//! own steps also fail.

use std::path::PathBuf;

use holdfast::failpoint::{BackendStep, Step};

use super::driver::{
    BYSTANDER, Container, Place, armed, assert_killed, assert_only, kill_at_each, operation_of,
    remove_all_but, steps_of,
};
use super::operations::{self, OPERATIONS, Operation, SUBJECT};
use super::pool::{self, launch, launch_sized};
use crate::common::daemon::Daemon;
use crate::common::host::Host;
use crate::common::lab::in_lab;
use crate::common::wait;

const THIN: Place = Place {
    launch,
    attached: |_| pool::volume_devices().len(),
    assert_only: |daemon, _, kept| assert_pool_has_only(daemon, kept.len()),
    ended: pool::assert_stopped_and_sound,
};

/// Nothing is suspended, and there are no thin devices but the records and `volumes` others.
fn assert_pool_has_only(daemon: &Daemon<'_>, volumes: usize) {
    assert_eq!(pool::suspended_devices(), Vec::<String>::new());
    assert_eq!(pool::own_devices(), ["data", "metadata", "pool", "records"]);
    assert_eq!(pool::thin_ids().len(), 1 + volumes, "the records, and each volume");
    assert_eq!(daemon.cli().ok(&["status"]).json()["warnings"], serde_json::json!([]));
}

/// The pool's own steps within each operation; `@2` where it takes them for the second time.
const WITHIN: &[(&str, &[&str])] = &[
    (
        "create",
        &[
            "thin.create.intent",
            "thin.create.message",
            "thin.create.record",
            "thin.create.count",
            "device.made",
            "device.loaded",
            "device.resumed",
            "device.removed",
            "thin.describe.record",
        ],
    ),
    (
        "clone",
        &[
            "thin.create.intent",
            "device.suspended",
            "thin.create.message",
            "device.resumed",
            "thin.create.record",
            "thin.create.count",
            "device.made",
            "device.loaded",
            "device.resumed@2",
            "device.removed",
            "thin.describe.record",
        ],
    ),
    (
        "snapshot",
        &[
            "thin.create.intent",
            "device.suspended",
            "thin.create.message",
            "device.resumed",
            "thin.create.record",
            "thin.create.count",
            "thin.describe.record",
        ],
    ),
    (
        "delete-snapshot",
        &[
            "thin.describe.record",
            "thin.delete.intent",
            "thin.delete.message",
            "thin.delete.record",
            "thin.delete.count",
        ],
    ),
    (
        "delete",
        &[
            "thin.delete.intent",
            "thin.delete.message",
            "thin.delete.record",
            "thin.delete.count",
            "thin.delete.description",
        ],
    ),
    (
        "restore",
        &[
            "thin.create.intent",
            "thin.create.message",
            "thin.create.record",
            "thin.create.count",
            "thin.create.intent@2",
            "thin.create.message@2",
            "thin.create.record@2",
            "thin.create.count@2",
            "thin.describe.record",
            "thin.delete.intent",
            "thin.delete.message",
            "thin.delete.record",
            "thin.delete.count",
        ],
    ),
    (
        "grow",
        &[
            "thin.grow.record",
            "device.loaded",
            "device.suspended",
            "device.resumed",
            "thin.describe.record",
        ],
    ),
    ("mount", &["device.made", "device.loaded", "device.resumed", "thin.describe.record"]),
    ("mount-read-only", &["device.made", "device.loaded", "device.resumed"]),
    ("unmount", &["device.removed"]),
    ("rename", &["thin.describe.record"]),
    (
        "backup",
        &[
            "repository.pack",
            "repository.index",
            "repository.snapshot",
            "thin.read.reserve@2",
            "thin.read.release@2",
        ],
    ),
    ("restore-backup", &["thin.create.intent", "thin.create.record", "device.resumed"]),
];

/// What a first start does before it answers: four devices, the lowest first.
const MAKING: &[&str] = &[
    "thin.pool.headers",
    "thin.pool.headers@2",
    "device.made",
    "device.loaded",
    "device.resumed",
    "device.made@2",
    "device.loaded@2",
    "device.resumed@2",
    "thin.pool.wipe",
    "device.made@3",
    "device.loaded@3",
    "device.resumed@3",
    "thin.pool.records-device",
    "device.made@4",
    "device.loaded@4",
    "device.resumed@4",
    "thin.pool.records",
    "thin.pool.finish",
    "thin.pool.finish@2",
    "thin.read.reserve",
    "thin.read.release",
];

/// What a start with a pool that was stopped does.
const STARTING: &[&str] = &[
    "device.made",
    "device.loaded@2",
    "device.resumed@2",
    "device.made@3",
    "device.loaded@3",
    "device.resumed@3",
    "device.made@4",
    "device.loaded@4",
    "device.resumed@4",
    "thin.read.reserve",
    "thin.read.release",
];

const STOPPING: &[&str] =
    &["device.removed", "device.removed@2", "device.removed@3", "device.removed@4"];

/// What a start does about a creation that was cut off after each of these.
const MENDING: &[(&str, &[&str])] = &[
    (
        "thin.create.message",
        &["thin.delete.intent", "thin.delete.message", "thin.delete.record", "thin.delete.count"],
    ),
    ("thin.create.record", &["thin.pool.count"]),
];

/// What growing a pool on files does; the metadata is large enough.
const GROWING: &[&str] = &[
    "thin.pool.grow-files",
    "device.loaded",
    "device.suspended",
    "device.resumed",
    "device.loaded@2",
    "device.suspended@2",
    "device.resumed@2",
];

/// How many chunks a pool of this size has.
const SMALL: (&str, u64) = ("256M", 4096);

/// What changes the catalog and the description alone, or runs beside the backend, and is killed at every
/// step on the other one.
const ELSEWHERE: &[&str] = &["undelete", "schedule", "snapshot-hook"];

const REFUSED: &str = "thin.create.refused";

#[test]
fn every_step_of_the_pool_is_tested_here() {
    let within = WITHIN.iter().chain(MENDING).flat_map(|(_, steps)| *steps);
    let others = [MAKING, STARTING, STOPPING, GROWING, &[REFUSED]].concat();
    let tested: Vec<_> = within.chain(&others).collect();
    for step in BackendStep::ALL {
        let name = step.name();
        let at = |failpoint: &str| failpoint.split('@').next() == Some(name);
        assert!(tested.iter().any(|failpoint| at(failpoint)), "{name} is not tested");
    }
    for operation in OPERATIONS.iter().filter(|operation| !ELSEWHERE.contains(&operation.name)) {
        assert!(WITHIN.iter().any(|(name, _)| *name == operation.name), "{}", operation.name);
    }
    for step in Step::ALL.iter().filter(|step| !ELSEWHERE.contains(&operation_of(**step))) {
        assert!(WITHIN.iter().any(|(name, _)| *name == operation_of(*step)), "{}", step.name());
    }
}

/// Each of these boots a host of its own, so that two run at once and none takes too long.
macro_rules! in_hosts {
    ($($(#[$attribute:meta])* fn $test:ident() $body:block)*) => {$(
        in_lab! {
            on |host| host.memory(3072).modules(&["dm-thin-pool", "loop", "xfs"]);
            $(#[$attribute])*
            fn $test() $body
        }
    )*};
}

in_hosts! {
    fn creating_survives_kills() {
        kill_everywhere("create");
    }

    fn cloning_survives_kills() {
        kill("clone", &engine_steps("clone"));
    }

    fn cloning_survives_kills_in_the_pool() {
        kill("clone", pool_steps("clone"));
    }

    fn snapshots_survive_kills() {
        kill_everywhere("snapshot");
    }

    fn deleting_snapshots_survives_kills() {
        kill_everywhere("delete-snapshot");
    }

    fn restoring_survives_kills() {
        kill("restore", &engine_steps("restore"));
    }

    fn restoring_survives_kills_in_the_pool() {
        kill("restore", pool_steps("restore"));
    }

    fn growing_survives_kills() {
        kill_everywhere("grow");
    }

    fn mounting_survives_kills() {
        kill_everywhere("mount");
    }

    fn mounting_read_only_survives_kills() {
        kill_everywhere("mount-read-only");
    }

    fn unmounting_survives_kills() {
        kill_everywhere("unmount");
    }

    fn renaming_survives_kills() {
        kill_everywhere("rename");
    }

    fn deleting_survives_kills() {
        kill_everywhere("delete");
    }

    fn backups_survive_kills() {
        let steps = engine_steps("backup");
        kill("backup", &steps[..steps.len() / 2]);
    }

    fn backups_survive_later_kills() {
        let steps = engine_steps("backup");
        kill("backup", &steps[steps.len() / 2..]);
    }

    /// The start reads the pool's metadata as well.
    fn backups_survive_kills_in_the_pool() {
        kill("backup", &["thin.read.reserve@2", "thin.read.release@2"]);
    }

    fn restoring_backups_survives_kills() {
        let steps = engine_steps("restore-backup");
        kill("restore-backup", &steps[..steps.len() / 2]);
    }

    fn restoring_backups_survives_later_kills() {
        let steps = engine_steps("restore-backup");
        kill("restore-backup", &steps[steps.len() / 2..]);
    }

    fn beginning_a_pool_survives_kills() {
        make_pools(&MAKING[..MAKING.len() / 2]);
    }

    fn finishing_a_pool_survives_kills() {
        make_pools(&MAKING[MAKING.len() / 2..]);
    }

    fn starting_and_stopping_a_pool_survives_kills() {
        let host = Host::new();
        make_and_stop(&host);
        for failpoint in STARTING {
            eprintln!("--- the start is killed at {failpoint}");
            let mut daemon = launch(&host).failpoint(&armed(failpoint, "kill")).spawn(&host);
            assert_killed(&mut daemon, failpoint);
            daemon.start_again();
            assert_usable_and_stop(&host, daemon);
        }
        for failpoint in STOPPING {
            eprintln!("--- the stop is killed at {failpoint}");
            let mut daemon = launch(&host).failpoint(&armed(failpoint, "kill")).start(&host);
            wait_for_the_pool(&daemon);
            daemon.ask_to_end();
            assert_killed(&mut daemon, failpoint);
            daemon.start_again();
            assert_usable_and_stop(&host, daemon);
        }
    }

    fn mending_a_pool_survives_kills() {
        let host = Host::new();
        make_and_stop(&host);
        for (first, seconds) in MENDING {
            for second in *seconds {
                eprintln!("--- killed at {first}, and the start at {second}");
                let mut daemon = launch(&host).failpoint(&armed(first, "kill")).start(&host);
                daemon.plugin().create("data", &[("size", "64M")]).expect_err("it is killed");
                assert_killed(&mut daemon, first);
                let mut daemon = launch(&host).failpoint(&armed(second, "kill")).spawn(&host);
                assert_killed(&mut daemon, second);
                daemon.start_again();
                assert_usable_and_stop(&host, daemon);
            }
        }
    }

    fn growing_a_pool_survives_kills() {
        for failpoint in GROWING {
            eprintln!("--- the growth of a pool is killed at {failpoint}");
            let host = Host::new();
            let small = || launch_sized(&host, SMALL.0);
            let mut daemon = small().start(&host);
            daemon.plugin().create(BYSTANDER, &[("size", "512M")]).unwrap();
            let directory = daemon.plugin().mount(BYSTANDER, "bystander").unwrap();
            let container = Container::start(&host.inside(directory.join("written")));
            daemon.terminate();
            let mut daemon = small().failpoint(&armed(failpoint, "kill")).start(&host);
            // Until little of the pool is free, and it grows.
            let file = directory.join("large");
            let of = format!("of={}", file.to_str().unwrap());
            host.run("dd", &["if=/dev/urandom", &of, "bs=1M", "count=180", "conv=fsync"]);
            assert_killed(&mut daemon, failpoint);
            daemon.start_again();
            container.assert_goes_on(failpoint);
            wait::until_true("the pool has grown", || pool::data_chunks() > SMALL.1);
            container.stop();
            daemon.plugin().unmount(BYSTANDER, "bystander").unwrap();
            daemon.plugin().remove(BYSTANDER).unwrap();
            daemon.terminate();
            pool::assert_stopped_and_sound(&host);
        }
    }

    fn failures_leave_nothing() {
        fail_in_each(|name| !name.contains("backup"));
    }

    fn failures_of_backups_leave_nothing() {
        fail_in_each(|name| name.contains("backup"));
    }

    /// A thin device that somebody else has made is never taken for ours.
    fn a_number_that_is_taken_is_passed_over() {
        let host = Host::new();
        let mut daemon = launch(&host).start(&host);
        wait_for_the_pool(&daemon);
        pool::message("create_thin 1");
        daemon.terminate();
        // The start finds that one. Another is made after it.
        let mut daemon = launch(&host).failpoint(&armed(REFUSED, "kill")).start(&host);
        wait_for_the_pool(&daemon);
        pool::message("create_thin 2");
        daemon.plugin().create("data", &[("size", "64M")]).expect_err("it is killed");
        assert_killed(&mut daemon, REFUSED);
        daemon.start_again();
        daemon.plugin().create("data", &[("size", "64M")]).unwrap();
        assert_eq!(pool::thin_ids(), [0, 1, 2, 3]);
        daemon.plugin().remove("data").unwrap();
        assert_eq!(pool::thin_ids(), [0, 1, 2]);
        daemon.terminate();
    }
}

fn engine_steps(name: &str) -> Vec<&'static str> {
    steps_of(operations::find(name)).collect()
}

fn pool_steps(name: &str) -> &'static [&'static str] {
    WITHIN.iter().find(|(operation, _)| *operation == name).expect("known").1
}

fn kill(name: &str, failpoints: &[&str]) {
    kill_at_each(&THIN, operations::find(name), failpoints.iter().copied());
}

fn kill_everywhere(name: &str) {
    kill(name, &[&engine_steps(name)[..], pool_steps(name)].concat());
}

fn fail_in_each(which: fn(&str) -> bool) {
    for (name, steps) in WITHIN.iter().filter(|(name, _)| which(name)) {
        eprintln!("--- {name} fails in the pool");
        let steps: Vec<_> = steps.iter().copied().filter(|step| !step.contains('@')).collect();
        fail_at_each(operations::find(name), &steps);
    }
}

/// Lets each of these steps fail once, in the order in which the operation comes to them, until it
/// succeeds.
fn fail_at_each(operation: &Operation, steps: &[&str]) {
    let host = Host::new();
    let mut daemon = launch(&host).start(&host);
    // Attached, so that the pool stays active while the daemon is started again.
    daemon.plugin().create(BYSTANDER, &[("size", "64M")]).unwrap();
    daemon.plugin().mount(BYSTANDER, "bystander").unwrap();
    (operation.prepare)(&daemon);
    let container = operation.in_use.then(|| {
        let mountpoint = PathBuf::from(daemon.plugin().path(SUBJECT).unwrap());
        Container::start(&host.inside(mountpoint.join("written")))
    });
    daemon.terminate();
    let armed: Vec<_> = steps.iter().map(|step| format!("{step}=error@1")).collect();
    let mut daemon = launch(&host).failpoint(&armed.join(",")).start(&host);
    let mut failures = Vec::new();
    while let Err(error) = (operation.run)(&daemon) {
        if operation.already.iter().any(|word| error.contains(word)) {
            break;
        }
        let known = steps.iter().any(|step| error.contains(&format!("failpoint {step}")));
        assert!(known, "{} failed otherwise: {error}", operation.name);
        if let Some(container) = &container {
            container.assert_goes_on(&error);
        }
        failures.push(error);
        assert!(failures.len() <= steps.len(), "{failures:#?}");
    }
    assert!(!failures.is_empty(), "{} passed all of {steps:?}", operation.name);
    if let Some(container) = container {
        container.stop();
    }
    // What was said of the failures is not said for ever.
    daemon.terminate();
    daemon.start_again();
    (operation.check)(&daemon, &host, &THIN);
    remove_all_but(&[], &daemon, &host);
    assert_only(&THIN, &daemon, &host, &[]);
    daemon.terminate();
    pool::assert_stopped_and_sound(&host);
}

fn make_pools(failpoints: &[&str]) {
    for failpoint in failpoints {
        eprintln!("--- the making of a pool is killed at {failpoint}");
        let host = Host::new();
        let mut daemon = launch(&host).failpoint(&armed(failpoint, "kill")).spawn(&host);
        assert_killed(&mut daemon, failpoint);
        daemon.start_again();
        assert_usable_and_stop(&host, daemon);
    }
}

fn make_and_stop(host: &Host) {
    let mut daemon = launch(host).start(host);
    wait_for_the_pool(&daemon);
    daemon.terminate();
}

/// The daemon answers some requests before it has the pool, but not this one.
fn wait_for_the_pool(daemon: &Daemon<'_>) {
    assert_eq!(daemon.plugin().list(), Vec::<String>::new());
}

/// A volume can be made, written and removed; then the daemon ends.
#[track_caller]
fn assert_usable_and_stop(host: &Host, mut daemon: Daemon<'_>) {
    let plugin = daemon.plugin();
    plugin.create(BYSTANDER, &[("size", "64M")]).unwrap();
    let mountpoint = plugin.mount(BYSTANDER, "bystander").unwrap();
    daemon.write(mountpoint.join("file"), "text");
    assert_pool_has_only(&daemon, 1);
    remove_all_but(&[], &daemon, host);
    assert_only(&THIN, &daemon, host, &[]);
    daemon.terminate();
    pool::assert_stopped_and_sound(host);
}
