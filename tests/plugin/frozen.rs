//! Rule 14, seen from outside: whatever happens to a daemon that holds a filesystem frozen, those who
//! write to it go on.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;

use nix::sys::signal::{Signal, kill};

use crate::common::daemon::{Daemon, Launch};
use crate::common::host::Host;
use crate::common::wait;
use crate::storage::{bind_elsewhere, end, spawn_and_wait};

/// A daemon that was killed just after it froze the volume `data`, and where that is mounted.
fn killed_while_frozen(host: &Host) -> (Daemon<'_>, PathBuf) {
    let mut daemon = Launch::new(host).failpoint("snapshot.freeze=kill").start(host);
    let plugin = daemon.plugin();
    plugin.create("data", &[("size", "64M")]).unwrap();
    let mountpoint = plugin.mount("data", "id").unwrap();
    let run = daemon.cli().run(&["snapshot", "create", "data@one"]);
    assert_ne!(run.code, 0, "{run:?}");
    daemon.wait_end();
    (daemon, mountpoint)
}

#[test]
fn rule_14_what_a_killed_daemon_froze_is_thawed_whatever_became_of_its_catalog() {
    for fate in ["kept", "lost", "rebuilt", "damaged"] {
        let host = Host::new();
        let (daemon, mountpoint) = killed_while_frozen(&host);
        let container = bind_elsewhere(&host, &mountpoint);
        let catalog = daemon.state_dir().join("catalog.redb");
        match fate {
            "lost" => fs::remove_file(&catalog).unwrap(),
            "damaged" => fs::write(&catalog, vec![7; 64 << 10]).unwrap(),
            _ => {}
        }
        let next = match fate {
            "damaged" => {
                let mut next = Launch::new(&host).spawn(&host);
                assert!(!next.wait_end().success(), "it needs a word");
                next
            }
            "rebuilt" => Launch::new(&host).args(&["--rebuild-catalog"]).start(&host),
            _ => Launch::new(&host).start(&host),
        };
        // This would hang.
        next.write(mountpoint.join("file"), fate);
        end(container);
    }
}

/// Unmounted while it is frozen, it would stay in the kernel and keep its device.
#[test]
fn rule_14_what_nobody_holds_is_not_unmounted_while_it_is_frozen() {
    let host = Host::new();
    let (mut daemon, mountpoint) = killed_while_frozen(&host);
    fs::remove_file(daemon.state_dir().join("catalog.redb")).unwrap();
    daemon.start_again();
    wait::until_true("the device is let go", || host.loops().is_empty());
    assert_eq!(daemon.plugin().mount("data", "id").unwrap(), mountpoint);
    daemon.write(mountpoint.join("file"), "not frozen");
}

/// Whether the process waits for a frozen filesystem.
fn hangs(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/wchan")).is_ok_and(|at| at.starts_with("percpu_rwsem"))
}

/// A process that writes all the time.
fn writer(host: &Host, directory: &Path) -> std::process::Child {
    let mut writer = host.command("sh");
    let script = "cd \"$0\" && echo here && while :; do : > busy; done & cat";
    writer.args(["-c", script]).arg(directory);
    spawn_and_wait(writer)
}

fn writer_hangs(host: &Host, directory: &Path) -> bool {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let mut pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.any(|pid| {
        let at = fs::read_link(format!("/proc/{pid}/cwd"));
        at.is_ok_and(|at| at == directory && at.starts_with(host.dir())) && hangs(pid)
    })
}

#[test]
fn rule_14_a_daemon_that_is_told_to_stop_thaws_what_it_has_frozen() {
    const SNAPSHOT: &[&str] = &["snapshot", "create", "data@one"];
    const CLONE: &[&str] = &["volume", "clone", "data", "copy"];
    for (signals, step, freezing) in [
        (1, "snapshot.freeze", SNAPSHOT),
        (2, "snapshot.freeze", SNAPSHOT),
        (2, "clone.freeze", CLONE),
    ] {
        let host = Host::new();
        let launch = Launch::new(&host).failpoint(&format!("{step}=delay:600000"));
        let mut daemon = launch.args(&["--loop-freeze-limit", "1s"]).start(&host);
        let plugin = daemon.plugin();
        plugin.create("data", &[("size", "64M")]).unwrap();
        let mountpoint = plugin.mount("data", "id").unwrap();
        let writer = writer(&host, &mountpoint);
        let cli = daemon.cli();
        let asked = thread::spawn(move || cli.run(freezing));
        wait::until_true("the volume is frozen", || writer_hangs(&host, &mountpoint));
        for signal in 0..signals {
            kill(daemon.pid(), Signal::SIGTERM).unwrap();
            wait::until_true("it has heard", || {
                daemon.has_ended() || daemon.log().matches("stop").count() > signal
            });
        }
        assert!(daemon.wait_end().success());
        // This would hang.
        daemon.write(mountpoint.join("file"), "not frozen");
        end(writer);
        asked.join().unwrap();
        daemon.start_again();
        let left = daemon.cli().ok(&["snapshot", "ls", "data"]).json();
        assert_eq!(left, serde_json::json!([]), "{step}: half a snapshot is none");
        assert_eq!(daemon.plugin().list(), ["data"]);
    }
}
