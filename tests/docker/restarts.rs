//! The engine or the daemon goes away under a running container.

use crate::common::daemon::Launch;
use crate::common::engine::Engine;
use crate::common::host::Host;
use crate::common::wait;
use crate::{assert_counts_on, remove_when_free, start, start_counter};

#[test]
fn a_volume_keeps_its_driver_and_data_over_an_engine_restart() {
    let host = Host::new();
    let (_daemon, mut engine) = start(&host);
    engine.in_volume("data", "echo kept > /data/file");
    engine.terminate();
    engine.start_again();
    assert_eq!(engine.docker(&["volume", "inspect", "-f", "{{.Driver}}", "data"]), "holdfast");
    assert_eq!(engine.in_volume("data", "cat /data/file"), "kept");
}

#[test]
fn the_container_counts_on_while_the_daemon_is_killed_and_started_again() {
    let host = Host::new();
    let (mut daemon, engine) = start(&host);
    start_counter(&engine, "app", "data");
    for _ in 0..3 {
        daemon.kill();
        assert_counts_on(&engine, "app");
        daemon.start_again();
        assert_counts_on(&engine, "app");
        let beside = engine.in_volume("data", "test -s /data/count && echo seen");
        assert_eq!(beside, "seen", "another container shares it");
    }
    daemon.terminate();
    assert_counts_on(&engine, "app");
    daemon.start_again();
    engine.docker(&["rm", "-f", "app"]);
    assert_eq!((host.mounts(), host.loops()), (vec![], vec![]));
    engine.docker(&["volume", "rm", "data"]);
}

#[test]
fn a_container_stopped_while_the_daemon_is_down_does_not_hold_its_volume_for_ever() {
    let host = Host::new();
    let (mut daemon, engine) = start(&host);
    start_counter(&engine, "app", "data");
    daemon.kill();
    // The engine tries to say Unmount for half a minute, then gives up for good.
    engine.docker(&["rm", "-f", "app"]);
    daemon.start_again();
    engine.in_volume("data", "test -s /data/count");
    remove_when_free(&engine, "data");
    assert_eq!((host.mounts(), host.loops()), (vec![], vec![]));
}

#[test]
fn with_live_restore_the_container_counts_on_over_a_killed_engine() {
    let host = Host::new();
    let daemon = Launch::for_engine().start(&host);
    let mut engine = Engine::start_with(&host, &["--live-restore"]);
    start_counter(&engine, "app", "data");
    let before = engine.docker(&["inspect", "-f", "{{.State.StartedAt}}", "app"]);
    engine.kill();
    assert!(!host.mounts().is_empty());
    engine.start_again();
    assert_counts_on(&engine, "app");
    assert_eq!(engine.docker(&["inspect", "-f", "{{.State.StartedAt}}", "app"]), before);
    engine.terminate();
    engine.start_again();
    assert_counts_on(&engine, "app");
    assert_eq!(engine.docker(&["inspect", "-f", "{{.State.StartedAt}}", "app"]), before);
    engine.docker(&["rm", "-f", "app"]);
    assert_eq!((host.mounts(), host.loops()), (vec![], vec![]));
    assert_eq!(daemon.plugin().list(), ["data"]);
}

/// A killed engine never unmounts, and comes back with the ids that it had.
#[test]
fn without_live_restore_a_killed_engine_can_start_the_container_again() {
    let host = Host::new();
    let (_daemon, mut engine) = start(&host);
    start_counter(&engine, "app", "data");
    assert_counts_on(&engine, "app");
    engine.kill();
    engine.start_again();
    wait::until_true("the engine has stopped what it found", || {
        engine.docker(&["inspect", "-f", "{{.State.Running}}", "app"]) == "false"
    });
    engine.docker(&["start", "app"]);
    assert_counts_on(&engine, "app");
    engine.docker(&["rm", "-f", "app"]);
    assert_eq!(engine.in_volume("data", "test -s /data/count && echo kept"), "kept");
    remove_when_free(&engine, "data");
    assert_eq!((host.mounts(), host.loops()), (vec![], vec![]));
}

#[test]
fn engine_and_daemon_killed_together_lose_nothing() {
    let host = Host::new();
    let (mut daemon, mut engine) = start(&host);
    start_counter(&engine, "app", "data");
    assert_counts_on(&engine, "app");
    engine.kill();
    daemon.kill();
    daemon.start_again();
    engine.start_again();
    engine.docker(&["rm", "-f", "app"]);
    assert_eq!(engine.in_volume("data", "test -s /data/count && echo kept"), "kept");
    remove_when_free(&engine, "data");
    assert_eq!((host.mounts(), host.loops()), (vec![], vec![]));
}

#[test]
fn an_engine_that_starts_without_the_daemon_finds_it_later() {
    let host = Host::new();
    let (mut daemon, mut engine) = start(&host);
    let create = ["create", "--name", "app", "-v", "data:/data", "--volume-driver", "holdfast"];
    engine
        .docker(&[&create[..], &["busybox", "sh", "-c", "echo here | cat - /data/file"]].concat());
    engine.in_volume("data", "echo kept > /data/file");
    engine.terminate();
    daemon.terminate();
    engine.start_again();
    assert_eq!(engine.docker(&["run", "--rm", "busybox", "echo", "no volume"]), "no volume");
    daemon.start_again();
    assert_eq!(engine.docker(&["start", "-a", "app"]), "here\nkept");
    assert_eq!(engine.docker(&["volume", "inspect", "-f", "{{.Driver}}", "data"]), "holdfast");
}
