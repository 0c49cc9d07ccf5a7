//! The real Docker Engine as the client: what a user of `docker` sees.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a failed helper is a failed test")]

#[path = "../common/mod.rs"]
mod common;

mod copy;
mod driver;
mod faults;
mod recipes;
mod restarts;
mod swarm;

use common::daemon::{Daemon, Launch};
use common::engine::Engine;
use common::host::Host;

/// A daemon and an engine that finds it.
fn start(host: &Host) -> (Daemon<'_>, Engine<'_>) {
    (Launch::for_engine().short_grace().start(host), Engine::start(host))
}

/// Starts a container with `volume` at /data that writes a rising number to /data/count for ever.
fn start_counter(engine: &Engine<'_>, name: &str, volume: &str) {
    let volume = format!("{volume}:/data");
    let line = "n=0; while true; do n=$((n+1)); echo $n > /data/next && mv /data/next /data/count || exit 1; done";
    engine.docker(&[
        "run",
        "-d",
        "--name",
        name,
        "-v",
        &volume,
        "--volume-driver",
        "holdfast",
        "busybox",
        "sh",
        "-c",
        line,
    ]);
}

fn count(engine: &Engine<'_>, container: &str) -> Option<u64> {
    let output = engine.client(&["exec", container, "cat", "/data/count"]).output().ok()?;
    String::from_utf8(output.stdout).ok()?.trim().parse().ok()
}

/// Waits until the counter has gone on from where it is now.
#[track_caller]
fn assert_counts_on(engine: &Engine<'_>, container: &str) {
    let from = common::wait::until("the counter has begun", || count(engine, container));
    common::wait::until_true("the counter goes on", || {
        count(engine, container).is_some_and(|now| now > from)
    });
}

/// Removes a volume whose last container may have gone without an Unmount: it is free when the kernel
/// has shown for long enough that nobody has it.
#[track_caller]
fn remove_when_free(engine: &Engine<'_>, volume: &str) {
    common::wait::until_true("the volume can be removed", || {
        engine.client(&["volume", "rm", volume]).output().is_ok_and(|run| run.status.success())
    });
}
