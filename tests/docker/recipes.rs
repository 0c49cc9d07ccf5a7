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
