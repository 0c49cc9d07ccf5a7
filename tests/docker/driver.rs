//! The cases of the engine's own tests of volume drivers, as far as a real driver can have them.

use std::os::unix::net::UnixListener;
use std::process::Stdio;

use serde_json::Value;

use crate::common::daemon::Launch;
use crate::common::engine::Engine;
use crate::common::host::Host;
use crate::common::wait;
use crate::{assert_counts_on, start, start_counter};

#[track_caller]
fn inspect(engine: &Engine<'_>, args: &[&str]) -> Value {
    let text = engine.docker(args);
    serde_json::from_str::<Value>(&text).expect("JSON")[0].take()
}

fn volumes(engine: &Engine<'_>) -> String {
    engine.docker(&["volume", "ls", "--format", "{{.Driver}} {{.Name}}"])
}

#[test]
fn a_name_belongs_to_one_driver() {
    let host = Host::new();
    let (_daemon, engine) = start(&host);
    engine.docker(&["volume", "create", "-d", "holdfast", "data"]);
    let error = engine.docker_fails(&["volume", "create", "-d", "local", "data"]);
    assert!(error.contains("must be unique"), "{error}");
    engine.docker(&["volume", "create", "-d", "holdfast", "data"]);
}

#[test]
fn a_named_volume_stays_until_it_is_removed() {
    let host = Host::new();
    let (daemon, engine) = start(&host);
    assert_eq!(engine.in_volume("data", "echo kept > /data/file; cat /data/file"), "kept");
    assert_eq!((host.mounts(), host.loops()), (vec![], vec![]), "no container, no mount");
    assert_eq!(volumes(&engine), "holdfast data");
    assert_eq!(engine.in_volume("data", "cat /data/file"), "kept");
    engine.docker(&["volume", "rm", "data"]);
    assert_eq!(volumes(&engine), "");
    assert_eq!(daemon.plugin().list(), Vec::<String>::new());
    daemon.wait_no_volume_files();
}

#[test]
fn an_unnamed_volume_goes_with_its_container() {
    let host = Host::new();
    let (daemon, engine) = start(&host);
    let run = ["run", "--rm", "-v", "/data", "--volume-driver", "holdfast", "busybox"];
    engine.docker(&[&run[..], &["sh", "-c", "echo x > /data/file"]].concat());
    assert_eq!(volumes(&engine), "");
    let keep = ["run", "--name", "app", "-v", "/data", "--volume-driver", "holdfast", "busybox"];
    engine.docker(&[&keep[..], &["true"]].concat());
    assert_eq!(daemon.plugin().list().len(), 1);
    engine.docker(&["rm", "-fv", "app"]);
    assert_eq!(daemon.plugin().list(), Vec::<String>::new());
    assert_eq!((host.mounts(), host.loops()), (vec![], vec![]));
}

#[test]
fn a_running_container_is_killed_and_removed_with_its_unnamed_volume() {
    let host = Host::new();
    let (daemon, engine) = start(&host);
    let run =
        ["run", "-d", "--name", "app", "-v", "/data", "--volume-driver", "holdfast", "busybox"];
    engine.docker(&[&run[..], &["sleep", "10000"]].concat());
    assert_eq!(host.loops().len(), 1);
    engine.docker(&["rm", "-fv", "app"]);
    assert_eq!(daemon.plugin().list(), Vec::<String>::new());
    assert_eq!((host.mounts(), host.loops()), (vec![], vec![]));
}

#[test]
fn a_driver_that_hangs_does_not_block_ours() {
    let host = Host::new();
    let (_daemon, engine) = start(&host);
    // It accepts, by its backlog, and never answers.
    let dead = UnixListener::bind(host.inside("/run/docker/plugins/dead.sock")).unwrap();
    let mut stuck = engine
        .client(&["volume", "create", "-d", "dead", "stuck"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let (connection, _) = dead.accept().unwrap();
    engine.docker(&["volume", "create", "-d", "holdfast", "data"]);
    assert_eq!(engine.in_volume("data", "echo here"), "here");
    assert!(stuck.try_wait().unwrap().is_none(), "the other driver should still be waited for");
    stuck.kill().unwrap();
    stuck.wait().unwrap();
    drop(connection);
}

#[test]
fn a_daemon_that_comes_late_is_waited_for() {
    let host = Host::new();
    let engine = Engine::start(&host);
    let run = engine
        .client(&["run", "--rm", "-v", "data:/data", "--volume-driver", "holdfast", "busybox"])
        .args(["sh", "-c", "echo here > /data/file; cat /data/file"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    wait::until_true("the engine looks for the plugin", || engine.log().contains("retrying in"));
    let _daemon = Launch::for_engine().start(&host);
    let output = run.wait_with_output().unwrap();
    assert!(output.status.success());
    assert_eq!(String::from_utf8_lossy(&output.stdout), "here\n");
}

#[test]
fn inspect_of_a_container_names_volume_and_driver() {
    let host = Host::new();
    let (_daemon, engine) = start(&host);
    start_counter(&engine, "app", "data");
    let mount = inspect(&engine, &["inspect", "app"])["Mounts"][0].take();
    assert_eq!(mount["Name"], "data");
    assert_eq!(mount["Driver"], "holdfast");
    assert_eq!(mount["RW"], true);
}

#[test]
fn volume_inspect_shows_status_scope_and_time() {
    let host = Host::new();
    let (_daemon, engine) = start(&host);
    let create = ["volume", "create", "-d", "holdfast", "-o", "size=64M", "--label", "a=b", "data"];
    engine.docker(&create);
    let volume = inspect(&engine, &["volume", "inspect", "data"]);
    assert_eq!(volume["Driver"], "holdfast");
    assert_eq!(volume["Scope"], "local");
    assert_eq!(volume["Labels"]["a"], "b");
    assert_eq!(volume["Options"]["size"], "64M");
    assert_eq!(volume["Mountpoint"], "");
    assert_eq!(volume["Status"]["backend"], "loop", "{volume}");
    assert!(!volume["CreatedAt"].as_str().unwrap().starts_with("0001"), "{volume}");
}

#[test]
fn an_unknown_volume_is_no_such_volume() {
    let host = Host::new();
    let (_daemon, engine) = start(&host);
    engine.docker(&["volume", "create", "-d", "holdfast", "other"]);
    let error = engine.docker_fails(&["volume", "inspect", "data"]);
    assert!(error.to_lowercase().contains("no such volume"), "{error}");
}

#[test]
fn options_that_make_no_sense_are_refused_with_the_reason() {
    let host = Host::new();
    let (_daemon, engine) = start(&host);
    let error = engine.docker_fails(&["volume", "create", "-d", "holdfast", "-o", "siez=1G", "a"]);
    assert!(error.contains("siez") && error.contains("size"), "{error}");
    let error = engine.docker_fails(&["volume", "create", "-d", "holdfast", "../../etc"]);
    assert!(!error.is_empty());
    assert_eq!(volumes(&engine), "");
}

#[test]
fn the_mount_id_is_the_engines() {
    let host = Host::new();
    let (daemon, engine) = start(&host);
    start_counter(&engine, "app", "data");
    let mounts = daemon.cli().inspect("data")["mounts"].clone();
    let id = mounts[0]["id"].as_str().expect("an id");
    assert!(id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{id}");
}

#[test]
fn a_volume_removed_behind_the_engines_back_can_be_made_again_by_any_driver() {
    let host = Host::new();
    let (daemon, engine) = start(&host);
    for driver in ["holdfast", "local"] {
        engine.docker(&["volume", "create", "-d", "holdfast", "data"]);
        daemon.cli().ok(&["volume", "rm", "data"]);
        engine.docker(&["volume", "create", "-d", driver, "data"]);
        assert_eq!(volumes(&engine), format!("{driver} data"));
        engine.docker(&["volume", "rm", "data"]);
    }
}

#[test]
fn a_mount_that_fails_leaves_nothing_held() {
    let host = Host::new();
    let mut daemon = Launch::for_engine().failpoint("mount.filesystem=error").start(&host);
    let engine = Engine::start(&host);
    let run = ["run", "--rm", "-v", "data:/data", "--volume-driver", "holdfast", "busybox", "true"];
    let error = engine.docker_fails(&run);
    assert!(error.contains("data"), "{error}");
    assert_eq!((host.mounts(), host.loops()), (vec![], vec![]));
    daemon.terminate();
    daemon.start_again();
    engine.docker(&run);
    assert_eq!((host.mounts(), host.loops()), (vec![], vec![]));
    engine.docker(&["volume", "rm", "data"]);
}

#[test]
fn a_volume_in_use_is_not_removed() {
    let host = Host::new();
    let (daemon, engine) = start(&host);
    start_counter(&engine, "app", "data");
    let error = engine.docker_fails(&["volume", "rm", "data"]);
    assert!(error.contains("in use"), "{error}");
    let run = daemon.cli().run(&["volume", "rm", "data"]);
    assert_eq!(run.code, 4, "the command line must refuse as well: {run:?}");
    assert_counts_on(&engine, "app");
}

#[test]
fn read_only_use_is_the_containers_own() {
    let host = Host::new();
    let (_daemon, engine) = start(&host);
    engine.in_volume("data", "echo kept > /data/file");
    let run = ["run", "--rm", "-v", "data:/data:ro", "--volume-driver", "holdfast", "busybox"];
    let error = engine.docker_fails(&[&run[..], &["touch", "/data/other"]].concat());
    assert!(error.contains("Read-only"), "{error}");
    assert_eq!(engine.docker(&[&run[..], &["cat", "/data/file"]].concat()), "kept");
}
