//! Faults in the middle of what `docker run` asks for.

use std::process::Stdio;

use crate::common::daemon::Launch;
use crate::common::engine::Engine;
use crate::common::host::Host;
use crate::{remove_when_free, start};

/// The engine's retry after the crash comes without a body; it must not pass for a success.
#[test]
fn a_daemon_killed_in_the_middle_of_docker_run_is_an_error_and_the_next_run_works() {
    for step in ["create.format", "mount.filesystem", "unmount.filesystem"] {
        let host = Host::new();
        let mut daemon =
            Launch::for_engine().short_grace().failpoint(&format!("{step}=kill")).start(&host);
        let engine = Engine::start(&host);
        let args = ["run", "--rm", "-v", "data:/data", "--volume-driver", "holdfast", "busybox"];
        let run = engine.client(&args).arg("true").stdout(Stdio::null()).spawn().unwrap();
        daemon.wait_end();
        daemon.start_again();
        run.wait_with_output().unwrap();
        assert_eq!(engine.in_volume("data", "echo kept > /data/file; cat /data/file"), "kept");
        remove_when_free(&engine, "data");
        assert_eq!((host.mounts(), host.loops()), (vec![], vec![]), "{step}");
    }
}

#[test]
fn a_volume_that_is_full_says_so_to_its_container_and_to_nobody_else() {
    let host = Host::new();
    let (_daemon, engine) = start(&host);
    for volume in ["full", "other"] {
        engine.docker(&["volume", "create", "-d", "holdfast", "-o", "size=64M", volume]);
    }
    let said = engine.in_volume("full", "dd if=/dev/zero of=/data/fill bs=1M 2>&1 || echo failed");
    assert!(said.contains("No space left") && said.ends_with("failed"), "{said}");
    engine.in_volume("other", "echo fine > /data/file");
    assert_eq!(
        engine.in_volume("full", "rm /data/fill; echo again > /data/a; cat /data/a"),
        "again"
    );
}

/// A volume's name as Docker passes it, unchecked, into requests and paths.
#[test]
fn hostile_names_are_refused() {
    let host = Host::new();
    let (daemon, engine) = start(&host);
    for name in ["../../etc", "a/b", "a b", "$(touch /tmp/x)", "ü", "-x"] {
        engine.docker_fails(&["volume", "create", "-d", "holdfast", "--", name]);
        let mount = format!("type=volume,source={name},target=/data,volume-driver=holdfast");
        engine.docker_fails(&["run", "--rm", "--mount", &mount, "busybox", "true"]);
    }
    assert_eq!(daemon.plugin().list(), Vec::<String>::new());
    assert_eq!((host.mounts(), host.loops()), (vec![], vec![]));
}
