//! Kills the daemon at one failpoint of an operation, starts it again, asks again, and looks at what
//! the user and the kernel then have.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use holdfast::failpoint::{BackendStep, Step};
use serde_json::Value;

use super::operations::{self, Operation, SUBJECT};
use crate::common::daemon::{Daemon, Launch};
use crate::common::host::Host;
use crate::common::{kernel, wait};

/// A volume that has nothing to do with what is killed: mounted all the time, with data.
pub(crate) const BYSTANDER: &str = "bystander";

/// Where the volumes live.
pub(crate) struct Place {
    /// A daemon that keeps them there.
    pub(crate) launch: fn(&Host) -> Launch,
    /// How many are attached.
    pub(crate) attached: fn(&Host) -> usize,
    /// Fails unless there is nothing but these volumes, which are all attached and have no snapshots.
    pub(crate) assert_only: fn(&Daemon<'_>, &Host, &[&str]),
    /// Looks at what a daemon that has ended leaves when it had no volumes.
    pub(crate) ended: fn(&Host),
}

pub(crate) fn operation_of(step: Step) -> &'static str {
    step.name().split_once('.').expect("operation, dot, step").0
}

/// The steps that an operation goes through, those of a repository included.
pub(crate) fn steps_of(operation: &Operation) -> impl Iterator<Item = &'static str> {
    let is_reached = |name: &&str| {
        let of = name.split('.').next().expect("operation, dot, step");
        of == operation.name || operation.also.contains(&of)
    };
    let steps = Step::ALL.iter().map(|step| step.name());
    steps.chain(BackendStep::ALL.iter().map(|step| step.name())).filter(is_reached)
}

/// One host and one state for all of these failpoints, each `STEP` or `STEP@TIME`: what one kill leaves
/// behind is found after it, or makes the next one fail.
pub(crate) fn kill_at_each<'s>(
    place: &Place,
    operation: &Operation,
    failpoints: impl IntoIterator<Item = &'s str>,
) {
    let host = Host::new();
    let mut daemon = (place.launch)(&host).start(&host);
    let plugin = daemon.plugin();
    plugin.create(BYSTANDER, &[("size", "64M")]).unwrap();
    let directory = plugin.mount(BYSTANDER, "bystander").unwrap();
    daemon.write(directory.join("file"), "not to be touched");
    let container = Container::start(&host.inside(directory.join("written")));
    for failpoint in failpoints {
        eprintln!("--- {} is killed at {failpoint}", operation.name);
        daemon = kill_at(place, &host, daemon, operation, failpoint);
        assert_eq!(daemon.read(directory.join("file")), "not to be touched", "{failpoint}");
        container.assert_goes_on(failpoint);
    }
    container.stop();
    remove_all_but(&[], &daemon, &host);
    assert_only(place, &daemon, &host, &[]);
    daemon.terminate();
    (place.ended)(&host);
}

fn kill_at<'h>(
    place: &Place,
    host: &'h Host,
    mut daemon: Daemon<'h>,
    operation: &Operation,
    failpoint: &str,
) -> Daemon<'h> {
    (operation.prepare)(&daemon);
    let container = operation.in_use.then(|| {
        let mountpoint = PathBuf::from(daemon.plugin().path(SUBJECT).unwrap());
        Container::start(&host.inside(mountpoint.join("written")))
    });
    daemon.terminate();

    let mut daemon = (place.launch)(host).failpoint(&armed(failpoint, "kill")).start(host);
    let answer = (operation.run)(&daemon);
    assert!(answer.is_err(), "{failpoint}: answered although it was to be killed");
    assert_killed(&mut daemon, failpoint);

    // Once more while it recovers: what mends an interrupted operation can be interrupted as well.
    daemon.start_again();
    daemon.kill_and_start_again();
    if let Err(error) = (operation.run)(&daemon) {
        let over = operation.already.iter().any(|word| error.contains(word));
        assert!(over, "{failpoint}: the retried request failed: {error}");
    }
    if let Some(container) = container {
        container.assert_goes_on(failpoint);
        container.stop();
    }
    (operation.check)(&daemon, host, place);
    remove_all_but(&[BYSTANDER], &daemon, host);
    assert_only(place, &daemon, host, &[BYSTANDER]);
    daemon
}

/// `STEP@TIME` and an action as the daemon wants them.
pub(crate) fn armed(failpoint: &str, action: &str) -> String {
    match failpoint.split_once('@') {
        Some((step, time)) => format!("{step}={action}@{time}"),
        None => format!("{failpoint}={action}"),
    }
}

#[track_caller]
pub(crate) fn assert_killed(daemon: &mut Daemon<'_>, failpoint: &str) {
    let status = daemon.wait_end();
    assert_eq!(status.signal(), Some(9), "{failpoint} was not reached:\n{}", daemon.log());
}

/// Removes the other volumes, their snapshots first.
pub(crate) fn remove_all_but(kept: &[&str], daemon: &Daemon<'_>, host: &Host) {
    let (plugin, cli) = (daemon.plugin(), daemon.cli());
    // A mount whose answer was lost and that was asked for again counts twice.
    for (volume, id) in [(BYSTANDER, "bystander"), (SUBJECT, operations::ID)] {
        if !kept.contains(&volume) {
            plugin.unmount(volume, id).unwrap();
            plugin.unmount(volume, id).unwrap();
        }
    }
    for snapshot in cli.ok(&["snapshot", "ls"]).json().as_array().expect("snapshots") {
        let of = |key: &str| snapshot[key].as_str().unwrap_or_else(|| panic!("{key}: {snapshot}"));
        cli.ok(&["snapshot", "rm", &format!("{}@{}", of("volume"), of("name"))]);
    }
    for name in plugin.list().iter().filter(|name| !kept.contains(&name.as_str())) {
        // A mount whose answer was lost is a mount id of a container that never was: it is forgotten
        // when the kernel has shown for long enough that nobody has it.
        let mut refused = None;
        let removed = wait::try_until(|| match plugin.remove(name) {
            Ok(()) => Some(()),
            Err(error) => {
                refused = Some(error);
                None
            }
        });
        assert!(removed.is_some(), "{name} cannot be removed: {refused:?}\n{:?}", host.mounts());
    }
}

/// Fails unless there is nothing but these volumes, all mounted.
pub(crate) fn assert_only(place: &Place, daemon: &Daemon<'_>, host: &Host, kept: &[&str]) {
    assert_eq!(daemon.plugin().list(), kept);
    assert_eq!((host.mounts().len(), (place.attached)(host)), (kept.len(), kept.len()));
    let mountpoints = kernel::names_in(&daemon.state_dir().join("mounts"));
    assert_eq!(mountpoints, [&[".lock"], kept].concat());
    let operations = daemon.cli().ok(&["operation", "ls"]).json();
    let open = operations
        .as_array()
        .expect("operations")
        .iter()
        .filter(|operation| !matches!(operation["state"].as_str(), Some("done" | "failed")));
    assert_eq!(open.collect::<Vec<&Value>>(), Vec::<&Value>::new());
    (place.assert_only)(daemon, host, kept);
}

/// Writes to a file in a mounted volume as a container does, without knowing of any daemon.
#[derive(Debug)]
pub(crate) struct Container {
    state: Arc<State>,
    thread: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct State {
    over: AtomicBool,
    synced: AtomicU64,
}

impl Container {
    pub(crate) fn start(path: &Path) -> Self {
        let file = File::create(path).expect("a file in the volume");
        let state = Arc::new(State::default());
        let shared = Arc::clone(&state);
        let thread = std::thread::spawn(move || {
            while !shared.over.load(Ordering::Relaxed) {
                let count = shared.synced.load(Ordering::Relaxed) + 1;
                file.write_all_at(&count.to_le_bytes(), 0).expect("write");
                file.sync_all().expect("fsync");
                shared.synced.store(count, Ordering::Relaxed);
                // It is there to be stopped in the middle, not to keep the disk busy.
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
        });
        Self { state, thread }
    }

    /// A device that stayed suspended or a filesystem that stayed frozen would hold it for ever.
    #[track_caller]
    pub(crate) fn assert_goes_on(&self, when: &str) {
        let count = || self.state.synced.load(Ordering::Relaxed);
        let before = count();
        wait::until_true(&format!("a container writes on after {when}"), || count() > before + 1);
    }

    pub(crate) fn stop(self) {
        self.state.over.store(true, Ordering::Relaxed);
        self.thread.join().expect("no write failed");
    }
}
