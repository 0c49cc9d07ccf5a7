//! Walk-throughs by which users learned the earlier systems.

use crate::common::host::Host;
use crate::common::wait;
use crate::{assert_counts_on, start, start_counter};

#[test]
fn recipe_1_a_volume_outlives_its_container() {
    let host = Host::new();
    let (_daemon, engine) = start(&host);
    let run = ["run", "--name", "first", "-v", "data:/data", "--volume-driver", "holdfast"];
    engine.docker(&[&run[..], &["busybox", "sh", "-c", "echo kept > /data/file"]].concat());
    engine.docker(&["rm", "first"]);
    assert_eq!(engine.in_volume("data", "cat /data/file"), "kept");
}

#[test]
fn recipe_1_a_data_container_lends_its_volume() {
    let host = Host::new();
    let (daemon, engine) = start(&host);
    let create = ["create", "--name", "keeper", "-v", "/data", "--volume-driver", "holdfast"];
    engine.docker(&[&create[..], &["busybox"]].concat());
    let borrow = |line: &str| {
        engine.docker(&["run", "--rm", "--volumes-from", "keeper", "busybox", "sh", "-c", line])
    };
    borrow("echo kept > /data/file");
    assert_eq!(borrow("cat /data/file"), "kept");
    let long = ["run", "-d", "--name", "long", "--volumes-from", "keeper", "busybox"];
    engine.docker(&[&long[..], &["sleep", "10000"]].concat());
    assert_eq!(borrow("cat /data/file"), "kept");
    assert_eq!(
        engine.docker(&["exec", "long", "cat", "/data/file"]),
        "kept",
        "one leaves, one stays"
    );
    engine.docker(&["rm", "-f", "long"]);
    assert_eq!((host.mounts(), host.loops()), (vec![], vec![]));
    engine.docker(&["rm", "-v", "keeper"]);
    assert_eq!(daemon.plugin().list(), Vec::<String>::new());
}

#[test]
fn recipe_4_a_service_that_is_not_root_shares_with_the_host_and_with_others() {
    let host = Host::new();
    let (daemon, engine) = start(&host);
    let create = ["volume", "create", "-d", "holdfast", "-o", "uid=1000", "-o", "gid=1000"];
    engine.docker(&[&create[..], &["-o", "mode=0770", "shared"]].concat());
    let run = ["run", "-d", "--name", "service", "--user", "1000:1000", "-v", "shared:/data"];
    let line = "echo $(id -u) > /data/service; sleep 10000";
    engine.docker(&[&run[..], &["busybox", "sh", "-c", line]].concat());
    let mountpoint = daemon.plugin().path("shared").unwrap();
    let written = host.inside(format!("{mountpoint}/service"));
    wait::until_true("the service has written with its own id", || {
        std::fs::read_to_string(&written).is_ok_and(|text| text == "1000\n")
    });
    daemon.write(format!("{mountpoint}/host"), "from the host");
    assert_eq!(engine.docker(&["exec", "service", "cat", "/data/host"]), "from the host");
    let as_user = |user: &str, line: &str| {
        let run =
            ["run", "--rm", "--user", user, "-v", "shared:/data", "busybox", "sh", "-c", line];
        engine.client(&run).output().unwrap().status.success()
    };
    assert!(as_user("2000:1000", "echo x > /data/group"), "the group may write");
    assert!(!as_user("2000:2000", "ls /data"), "others may not even look");
}

#[test]
fn recipe_4_two_containers_write_to_one_volume() {
    let host = Host::new();
    let (_daemon, engine) = start(&host);
    start_counter(&engine, "app", "data");
    engine.in_volume("data", "echo beside > /data/beside");
    assert_eq!(engine.docker(&["exec", "app", "cat", "/data/beside"]), "beside");
    assert_counts_on(&engine, "app");
}

#[test]
fn recipe_9_the_disk_test_measures_a_volume_beside_the_directory() {
    let host = Host::new();
    let (daemon, engine) = start(&host);
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/disk-test");
    let mut measure = engine.for_client(script);
    measure.arg(daemon.loop_dir()).env("RUNTIME", "1").env("SIZE", "16M");
    let output = measure.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    for (job, unit) in [("randwrite", "IOPS"), ("seqwrite", "MB/s"), ("fsync", "us")] {
        let row = text.lines().find(|line| line.contains(job)).unwrap_or_else(|| panic!("{text}"));
        assert_eq!(
            row.matches(unit).count(),
            2,
            "a figure for the volume and one beside it: {row}"
        );
        assert!(!row.contains(&format!(" 0 {unit}")), "{row}");
    }
    assert_eq!(daemon.plugin().list(), Vec::<String>::new(), "it cleans up after itself");
}

#[test]
fn recipe_4_the_host_takes_part_by_a_mount_of_its_own() {
    let host = Host::new();
    let (daemon, engine) = start(&host);
    engine.in_volume("shared", "echo from the container > /data/note");
    let cli = daemon.cli();
    cli.ok(&["volume", "mount", "shared"]);
    let mountpoint = daemon.plugin().path("shared").unwrap();
    assert_eq!(daemon.read(format!("{mountpoint}/note")), "from the container\n");
    daemon.write(format!("{mountpoint}/note"), "from the host");
    assert_eq!(engine.in_volume("shared", "cat /data/note"), "from the host");
    assert_eq!(daemon.plugin().path("shared").unwrap(), mountpoint, "the host still has it");
    cli.ok(&["volume", "unmount", "shared"]);
    assert_eq!((host.mounts(), host.loops()), (vec![], vec![]));
}

#[test]
fn recipe_7_a_migration_is_tried_on_a_clone_while_the_service_runs() {
    let host = Host::new();
    let (daemon, engine) = start(&host);
    start_counter(&engine, "app", "data");
    assert_counts_on(&engine, "app");
    daemon.cli().ok(&["volume", "clone", "data", "trial"]);
    assert_counts_on(&engine, "app");
    engine.in_volume("trial", "test -s /data/count && echo 0 > /data/count && rm -f /data/next");
    assert_counts_on(&engine, "app");
    engine.docker(&["volume", "rm", "trial"]);
    assert_eq!(daemon.plugin().list(), ["data"]);
}

#[test]
fn recipe_3_a_snapshot_before_an_upgrade_is_the_way_back_from_a_bad_one() {
    let host = Host::new();
    let (daemon, engine) = start(&host);
    let cli = daemon.cli();
    start_counter(&engine, "app", "data");
    assert_counts_on(&engine, "app");
    engine.docker(&["exec", "app", "sh", "-c", "echo old > /data/version"]);
    cli.ok(&["snapshot", "create", "data@before-upgrade"]);
    assert_counts_on(&engine, "app");
    engine.docker(&["exec", "app", "sh", "-c", "echo bad > /data/version"]);
    let refused = cli.run(&["snapshot", "restore", "data@before-upgrade"]);
    assert_eq!(refused.code, 4, "not under a running container: {refused:?}");
    engine.docker(&["rm", "-f", "app"]);
    cli.ok(&["snapshot", "restore", "data@before-upgrade"]);
    assert_eq!(engine.in_volume("data", "cat /data/version"), "old");
    let snapshots = cli.ok(&["snapshot", "ls", "data"]).json();
    let kept = snapshots.as_array().unwrap().iter().find_map(|snapshot| {
        snapshot["name"].as_str().filter(|name| name.starts_with("before-restore-"))
    });
    let source = format!("from-snapshot=data@{}", kept.expect("what was replaced is kept"));
    engine.docker(&["volume", "create", "-d", "holdfast", "-o", &source, "look"]);
    assert_eq!(engine.in_volume("look", "cat /data/version"), "bad");
}
