//! The pool as its administrator sees it.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::common::HOLDFAST;
use crate::common::cli::Run;
use crate::common::daemon::{Daemon, Launch};
use crate::common::host::{Host, checked};
use crate::common::lab::in_lab;
use crate::common::wait;

const MIB: u64 = 1 << 20;

/// A daemon whose pool lies on devices.
pub(crate) fn on_devices(host: &Host, devices: &[&str]) -> Launch {
    let launch = Launch::new(host).args(&["--default-backend", "thin"]);
    match devices {
        [data] => launch.args(&["--thin-data", data]),
        [data, metadata] => launch.args(&["--thin-data", data, "--thin-metadata", metadata]),
        _ => unreachable!("a pool has one or two devices"),
    }
}

/// A daemon whose pool lies on files of this size.
pub(crate) fn on_files(host: &Host, size: &str) -> Launch {
    let directory = host.dir().join("thin");
    Launch::new(host)
        .args(&["--default-backend", "thin", "--thin-file", directory.to_str().unwrap()])
        .args(&["--thin-size", size])
}

pub(crate) fn sh(lines: &str) -> String {
    checked(&mut Command::new("bash"), &["-euo", "pipefail", "-c", lines])
}

#[track_caller]
pub(crate) fn error(run: &Run) -> (i32, String) {
    // Work that takes a while is told of before.
    let told = run.stderr.lines().last().unwrap_or_default();
    let error: Value = serde_json::from_str(told).unwrap_or_else(|_| panic!("{run:?}"));
    let text = |key: &str| error["error"][key].as_str().unwrap_or_default().to_owned();
    (run.code, format!("{}: {}; {}", text("code"), text("message"), text("hint")))
}

/// Starts a daemon that must refuse to run, and gives what it says.
#[track_caller]
fn refused(host: &Host, args: &[&str]) -> String {
    let other = host.dir().join("other");
    let at = |name: &str| other.join(name).to_str().unwrap().to_owned();
    let output = host
        .command(HOLDFAST)
        .args(["daemon", "--state-dir", &at("state"), "--runtime-dir", &at("run")])
        .args(["--plugin-socket", &at("plugin.sock")])
        .args(args)
        .output()
        .unwrap();
    assert!(!output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[track_caller]
fn is_sound(daemon: &Daemon<'_>) {
    let checked = daemon.cli().ok(&["pool", "check"]).json();
    assert_eq!(checked["check"]["sound"], true, "{checked}");
    assert_eq!(checked["check"]["advice"], json!([]));
}

fn data(daemon: &Daemon<'_>) -> u64 {
    daemon.cli().ok(&["pool", "inspect"]).json()["data"]["total"].as_u64().unwrap()
}

in_lab! {
    // The filesystem has room for all that the pool is to hold.
    on |host| host.memory(5120).modules(&["dm-thin-pool", "loop"]);
    fn a_pool_on_files_is_shown_grown_and_checked() {
        let host = Host::new();
        let mut daemon = on_files(&host, "1G").start(&host);
        let (cli, plugin) = (daemon.cli(), daemon.plugin());
        plugin.create("data", &[("size", "512M")]).unwrap();
        let mountpoint = plugin.mount("data", "c1").unwrap();
        daemon.write(mountpoint.join("file"), "kept");

        let pools = cli.ok(&["pool", "ls"]).json();
        let pool = cli.ok(&["pool", "inspect", "thin"]).json();
        let keys: Vec<&String> = pool.as_object().unwrap().keys().collect();
        assert_eq!(keys, [
            "chunk_size", "data", "devices", "grows", "location", "metadata", "name", "state",
            "uuid", "volumes", "warnings",
        ]);
        assert_eq!(pools.as_array().unwrap().len(), 1);
        assert_eq!((&pool["name"], &pool["state"]), (&json!("thin"), &json!("active")));
        assert_eq!((&pool["volumes"], &pool["devices"]), (&json!(1), &json!(1)));
        assert_eq!((&pool["data"]["total"], &pool["grows"]), (&json!(1024 * MIB), &json!(true)));
        assert!(pool["data"]["used"].as_u64().unwrap() > 0 && pool["uuid"].is_string(), "{pool}");
        is_sound(&daemon);

        let volume = cli.inspect("data");
        let exclusive = |volume: &Value| volume["exclusive"].as_u64().unwrap();
        assert!(exclusive(&volume) > 0 && volume["exclusive"] == volume["used"], "{volume}");
        cli.ok(&["snapshot", "create", "data@one"]);
        wait::until_true("what the snapshot shares is told as such", || {
            let now = cli.inspect("data");
            exclusive(&now) < exclusive(&volume) && now["used"] == volume["used"]
        });
        cli.ok(&["snapshot", "rm", "data@one"]);

        let grown = cli.ok(&["pool", "grow", "2G"]).json();
        assert_eq!((&grown["name"], &grown["changed"]), (&json!("thin"), &json!(true)));
        assert_eq!(data(&daemon), 2048 * MIB);
        assert_eq!(cli.ok(&["pool", "grow", "2G"]).json()["changed"], false);
        let (code, why) = error(&cli.run(&["pool", "grow", "1G"]));
        assert_eq!(code, 2);
        assert!(why.contains("the pool has 2G and cannot shrink to 1G"), "{why}");

        let begun = cli.ok(&["pool", "check", "--detach"]).json();
        let watched = cli.ok(&["operation", "watch", begun["operation"].as_str().unwrap()]).json();
        assert_eq!((&watched["kind"], &watched["pool"]), (&json!("check"), &json!("thin")));
        assert!(watched["report"][0].as_str().unwrap().contains("sound"), "{watched}");
        let status = cli.ok(&["status"]).json();
        assert_eq!(status["pools"][0]["data"]["total"], 2048 * MIB);

        let directory = host.dir().join("thin");
        let why = refused(&host, &["--thin-file", directory.to_str().unwrap()]);
        assert!(why.contains("one daemon uses a pool at a time"), "{why}");
        assert_eq!(daemon.read(mountpoint.join("file")), "kept");

        daemon.kill_and_start_again();
        assert_eq!(data(&daemon), 2048 * MIB);
        is_sound(&daemon);
        plugin.unmount("data", "c1").unwrap();
    }
}

in_lab! {
    on |host| host.memory(1024).modules(&["dm-thin-pool", "loop"]).new_disk(1024);
    fn a_pool_on_one_disk_takes_what_the_disk_has_become() {
        let host = Host::new();
        sh("dmsetup create disk --table '0 1048576 linear /dev/ubda 0'");
        let mut daemon = on_devices(&host, &["/dev/mapper/disk"]).start(&host);
        let (cli, plugin) = (daemon.cli(), daemon.plugin());
        plugin.create("data", &[("size", "256M")]).unwrap();
        let mountpoint = plugin.mount("data", "c1").unwrap();
        daemon.write(mountpoint.join("file"), "kept");
        let before = data(&daemon);
        assert_eq!(cli.ok(&["pool", "inspect"]).json()["grows"], false);
        let (code, why) = error(&cli.run(&["pool", "grow", "900M"]));
        assert_eq!(code, 2);
        assert!(why.contains("make the device larger first"), "{why}");
        assert_eq!(cli.ok(&["pool", "grow"]).json()["changed"], false);

        sh("dmsetup suspend disk; dmsetup reload disk --table '0 2097152 linear /dev/ubda 0'; dmsetup resume disk");
        assert_eq!(cli.ok(&["pool", "grow"]).json()["changed"], true);
        assert_eq!(data(&daemon), before + 512 * MIB);
        is_sound(&daemon);
        let why = refused(&host, &["--thin-data", "/dev/mapper/disk"]);
        assert!(why.contains("one daemon uses a pool at a time"), "{why}");
        plugin.unmount("data", "c1").unwrap();
        daemon.terminate();

        // Moved to another host: only the disk goes along, and another node of it is as good.
        std::fs::remove_dir_all(daemon.state_dir()).unwrap();
        sh("dmsetup remove disk");
        drop(daemon);
        let daemon = on_devices(&host, &["/dev/ubda"]).start(&host);
        let mountpoint = daemon.plugin().mount("data", "c2").unwrap();
        assert_eq!(daemon.read(mountpoint.join("file")), "kept");
        daemon.plugin().unmount("data", "c2").unwrap();
    }
}

in_lab! {
    on |host| host.memory(1024).modules(&["dm-thin-pool", "loop"]).new_disk(64).new_disk(512).new_disk(256);
    fn devices_that_are_not_the_pools_are_refused() {
        let host = Host::new();
        let (metadata, disk, foreign) = ("/dev/ubda", "/dev/ubdb", "/dev/ubdc");
        let mut daemon = on_devices(&host, &[disk, metadata]).start(&host);
        daemon.plugin().create("data", &[("size", "64M")]).unwrap();
        is_sound(&daemon);
        let why = refused(&host, &["--thin-data", disk, "--thin-metadata", metadata]);
        assert!(why.contains("one daemon uses a pool at a time"), "{why}");
        daemon.terminate();
        drop(daemon);

        let why = refused(&host, &["--thin-data", metadata, "--thin-metadata", disk]);
        assert!(why.contains("are the devices exchanged?"), "{why}");
        let why = refused(&host, &["--thin-data", disk]);
        assert!(why.contains("name the other one too"), "{why}");

        sh(&format!("mkfs.ext4 -q {foreign}; mount {foreign} /mnt; echo mine > /mnt/f; umount /mnt"));
        let before = sh(&format!("sha256sum < {foreign}"));
        for args in [
            &["--thin-data", foreign][..],
            &["--thin-data", disk, "--thin-metadata", foreign],
            &["--thin-data", foreign, "--thin-metadata", metadata],
        ] {
            let why = refused(&host, args);
            assert!(why.contains("holds something that is not ours"), "{args:?}: {why}");
        }
        assert_eq!(sh(&format!("sha256sum < {foreign}")), before);
        // A filesystem in use, whose first MiB is blank.
        sh(&format!("wipefs -qa {foreign}; dd if=/dev/zero of={foreign} bs=1M count=1 conv=notrunc status=none"));
        sh(&format!("dmsetup create used --table '0 2048 linear {foreign} 0'"));
        let why = refused(&host, &["--thin-data", foreign]);
        assert!(why.contains("is in use"), "{why}");
        sh("dmsetup remove used");

        let daemon = on_devices(&host, &[disk, metadata]).start(&host);
        is_sound(&daemon);
        assert_eq!(daemon.cli().inspect("data")["state"], "ready");
        assert!(Path::new(disk).exists());
    }
}

in_lab! {
    on |host| host.memory(1024).modules(&["dm-thin-pool", "loop"]).new_disk(512);
    fn a_pool_that_fills_up_tells_so_once_and_works_again_when_it_has_room() {
        let host = Host::new();
        let daemon = on_devices(&host, &["/dev/ubda"]).start(&host);
        let (cli, plugin) = (daemon.cli(), daemon.plugin());
        plugin.create("small", &[("size", "64M")]).unwrap();
        plugin.create("data", &[("size", "2G")]).unwrap();
        let mountpoint = plugin.mount("data", "c1").unwrap();
        let fill = |mebibytes: u32| {
            let file = host.inside(mountpoint.join("file"));
            let to = format!("of={}", file.display());
            let count = format!("count={mebibytes}");
            let dd = ["if=/dev/zero", &to, "bs=1M", &count, "conv=fsync,notrunc", "status=none"];
            Command::new("dd").args(dd).output().unwrap().status.success()
        };
        let pool_events = || {
            let told = cli.ok(&["events"]).stdout;
            let events = told.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
            let of_pool = events.filter(|event| event["subject"] == "thin");
            of_pool.map(|event| event["kind"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        let until = |expected: &[&str]| {
            let told = wait::try_until(|| (pool_events() == expected).then_some(()));
            assert!(told.is_some(), "{:?} and not {expected:?}", pool_events());
        };
        assert!(fill(380));
        until(&["pool.low"]);
        assert!(!fill(600), "there is no room for it");
        until(&["pool.low", "pool.full"]);
        let pool = cli.ok(&["pool", "inspect"]).json();
        assert_eq!(pool["state"], "full");
        assert!(pool["warnings"][0].as_str().unwrap().contains("pool grow"), "{pool}");
        let why = plugin.create("more", &[("size", "64M")]).unwrap_err();
        assert!(why.contains("only") && why.contains("free"), "{why}");

        plugin.unmount("data", "c1").unwrap();
        plugin.remove("data").unwrap();
        until(&["pool.low", "pool.full", "pool.recovered"]);
        assert_eq!(cli.ok(&["pool", "inspect"]).json()["state"], "active");
        is_sound(&daemon);
        plugin.mount("small", "c1").unwrap();
        plugin.unmount("small", "c1").unwrap();
    }
}
