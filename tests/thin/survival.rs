//! Volumes over the end of their daemon and of their host.

use std::time::Duration;

use crate::common::HOLDFAST;
use crate::common::lab::{Host, Lab};
use crate::common::wait;

/// The state directory is on the third disk, with a thin_check that says when it runs.
const SET_UP: &str = r#"
    touch /run/checked
    mkdir -p /state
    [[ $1 = again ]] || mkfs.ext4 -q /dev/ubdc
    mount /dev/ubdc /state
    mkdir -p /state/bin
    printf '#!/bin/sh\necho >>/run/checked\nexec %s "$@"\n' "$(PATH=/usr/sbin:/sbin command -v thin_check)" \
        >/state/bin/thin_check
    chmod +x /state/bin/thin_check"#;

const DAEMON: &str = r#"
    PATH=/state/bin:$PATH "$0" daemon --state-dir /state/holdfast --runtime-dir /run/holdfast \
        --plugin-socket /run/plugin.sock --default-backend thin --thin-data /dev/ubda \
        --thin-metadata /dev/ubdb >/run/holdfast.log 2>&1 &
    echo $! >/run/daemon
    wait $!"#;

fn set_up(host: &Host<'_>, how: &str) {
    host.run("bash", &["-euo", "pipefail", "-c", SET_UP, "set-up", how]);
}

/// Runs `holdfast ARGS`; `None` if it fails.
fn try_cli(host: &Host<'_>, args: &[&str]) -> Option<String> {
    let command = host.command(HOLDFAST);
    let command = command.args(&["--socket", "/run/holdfast/holdfast.sock", "--output", "json"]);
    let output = command.args(args).output();
    (output.code == 0).then_some(output.stdout)
}

#[track_caller]
fn cli(host: &Host<'_>, args: &[&str]) -> serde_json::Value {
    let printed = try_cli(host, args).unwrap_or_else(|| panic!("{args:?}"));
    serde_json::from_str(&printed).unwrap_or_default()
}

#[track_caller]
fn start(host: &Host<'_>) {
    host.command("bash").args(&["-c", DAEMON, HOLDFAST]).limit(Duration::from_secs(1)).spawn();
    wait::until("the daemon answers", || try_cli(host, &["status"]));
}

#[track_caller]
fn volume(host: &Host<'_>, name: &str) -> serde_json::Value {
    cli(host, &["volume", "inspect", name])[0].clone()
}

fn mounted(host: &Host<'_>, name: &str) -> String {
    volume(host, name)["mountpoint"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn attached_volumes_survive_a_killed_daemon_and_a_loss_of_power() {
    let lab = Lab::new();
    let disks = [lab.disk(1024), lab.disk(32), lab.disk(256)];
    let plan = lab.host("a").modules(&["dm-thin-pool", "loop", "xfs"]);
    let host = disks.iter().fold(plan, |plan, disk| plan.disk(disk)).boot();
    set_up(&host, "first");
    start(&host);
    for filesystem in ["ext4", "xfs"] {
        let fs = format!("fs={filesystem}");
        cli(&host, &["volume", "create", filesystem, "--size", "400M", "-o", &fs]);
        cli(&host, &["volume", "mount", filesystem, "--id", "before"]);
        let place = mounted(&host, filesystem);
        host.sh(&format!(
            "echo kept >{place}/file; sync {place}/file; echo lost >{place}/not-flushed"
        ));
        cli(&host, &["snapshot", "create", &format!("{filesystem}@one")]);
    }

    host.sh("kill -9 $(cat /run/daemon)");
    start(&host);
    for filesystem in ["ext4", "xfs"] {
        let place = mounted(&host, filesystem);
        assert_eq!(
            host.sh(&format!("cat {place}/file; findmnt -no FSTYPE {place}/..")),
            format!("kept\n{filesystem}\n")
        );
        assert_eq!(volume(&host, filesystem)["mounts"][0]["id"], "before");
        host.sh(&format!("echo flushed >{place}/later; sync {place}/later"));
    }
    let first = host.sh("wc -l </run/checked");
    assert_eq!(first.trim(), "0", "a new pool and an active one need no check");

    host.lose_power();
    host.boot_again();
    assert!(!host.sh("dmsetup ls").contains("holdfast"));
    set_up(&host, "again");
    start(&host);
    assert_eq!(host.sh("wc -l </run/checked").trim(), "1");
    assert!(host.sh("dmsetup ls --target thin-pool").contains("holdfast"));
    let status = cli(&host, &["status"]);
    assert_eq!((&status["warnings"], &status["mounted"]), (&serde_json::json!([]), &0.into()));
    for filesystem in ["ext4", "xfs"] {
        assert_eq!(volume(&host, filesystem)["mounts"], serde_json::json!([]), "the ids are stale");
        cli(&host, &["volume", "mount", filesystem, "--id", "after"]);
        let place = mounted(&host, filesystem);
        assert_eq!(host.sh(&format!("cat {place}/file {place}/later")), "kept\nflushed\n");
        let copy = format!("{filesystem}-copy");
        cli(&host, &["volume", "clone", &format!("{filesystem}@one"), &copy]);
        cli(&host, &["volume", "mount", &copy]);
        assert_eq!(host.sh(&format!("cat {}/file", mounted(&host, &copy))), "kept\n");
        assert_eq!(volume(&host, filesystem)["mounts"][0]["id"], "after");
    }
}
