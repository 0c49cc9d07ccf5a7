//! `holdfast schedule`, and what other commands tell of it.

use serde_json::json;

use crate::common::daemon::Daemon;
use crate::common::host::Host;
use crate::holdfast;

#[test]
fn a_schedule_is_set_told_changed_and_ended() {
    let host = Host::new();
    let mut daemon = Daemon::start(&host);
    let cli = daemon.cli();
    cli.ok(&["volume", "create", "data", "--size", "64M"]);
    assert_eq!(cli.ok(&["schedule", "ls"]).json(), json!([]));
    assert_eq!(cli.inspect("data")["schedule"], json!(null));

    let set = ["schedule", "set", "data", "--snapshot-every", "60m", "--keep", "24h,7d,4w"];
    assert_eq!(cli.ok(&set).json()["changed"], true);
    assert_eq!(cli.ok(&set).json()["changed"], false);
    daemon.kill_and_start_again();
    let cli = daemon.cli();
    let told = &cli.ok(&["schedule", "ls"]).json()[0];
    assert_eq!((&told["volume"], &told["snapshot_every"]), (&json!("data"), &json!("1h")));
    assert_eq!((&told["keep"], &told["backup_every"]), (&json!("24h,7d,4w"), &json!(null)));
    assert_eq!(told["last_snapshot_run"], json!(null));
    let volume = cli.inspect("data");
    let created: jiff::Timestamp = volume["created"].as_str().unwrap().parse().unwrap();
    let next = volume["schedule"]["next_snapshot"].as_str().unwrap();
    let wait = next.parse::<jiff::Timestamp>().unwrap().duration_since(created).as_secs();
    assert!((3600..3600 + 120).contains(&wait), "{next} is an hour after it was set");

    let daily = ["schedule", "set", "data", "--snapshot-every", "0 3 * * mon-fri"];
    assert_eq!(cli.ok(&daily).json()["changed"], true);
    let told = &cli.ok(&["schedule", "ls"]).json()[0];
    assert_eq!((&told["snapshot_every"], &told["keep"]), (&json!("0 3 * * mon-fri"), &json!("")));
    let socket = cli.socket.to_str().unwrap().to_owned();
    let table = holdfast(&[("HOLDFAST_ADMIN_SOCKET", &socket)], &["schedule", "ls"]);
    let row = table.stdout.lines().nth(1).unwrap();
    assert!(row.starts_with("data    0 3 * * mon-fri  20"), "{table:?}");

    cli.ok(&["schedule", "rm", "data"]);
    assert_eq!(cli.ok(&["schedule", "ls"]).json(), json!([]));
    assert_eq!(cli.run(&["schedule", "rm", "data"]).code, 3);
    assert_eq!(cli.run(&["schedule", "set", "nobody", "--snapshot-every", "1h"]).code, 3);
    let events = cli.run(&["events"]).stdout;
    for kind in ["schedule.set", "schedule.removed"] {
        assert!(events.contains(kind), "{events}");
    }
}

#[test]
fn wrong_schedules_are_wrong_usage() {
    let host = Host::new();
    let daemon = Daemon::start(&host);
    let cli = daemon.cli();
    cli.ok(&["volume", "create", "data", "--size", "64M"]);
    for args in [
        &["--snapshot-every", "30s"][..],
        &["--snapshot-every", "0 25 * * *"],
        &["--snapshot-every", "1h", "--keep", "many"],
        &["--snapshot-every", "1h", "--hook", "unknown"],
        &["--snapshot-every", "1h", "--repository", "main"],
        &["--keep", "3"],
    ] {
        let run = cli.run(&[&["schedule", "set", "data"], args].concat());
        assert_eq!(run.code, 2, "{args:?}: {run:?}");
    }
    let hook = ["snapshot", "create", "data@one", "--hook", "unknown"];
    assert_eq!(cli.run(&hook).code, 2);
}

#[test]
fn a_volume_gets_a_schedule_with_its_options() {
    let host = Host::new();
    let daemon = Daemon::start(&host);
    let options = [("size", "64M"), ("snapshot-every", "1d"), ("keep", "7d")];
    for _ in 0..2 {
        daemon.plugin().create("data", &options).unwrap();
    }
    let told = &daemon.cli().ok(&["schedule", "ls"]).json()[0];
    assert_eq!((&told["snapshot_every"], &told["keep"]), (&json!("1d"), &json!("7d")));
    let other = [("size", "64M"), ("snapshot-every", "2d"), ("keep", "7d")];
    let error = daemon.plugin().create("data", &other).unwrap_err();
    assert!(error.contains("snapshot-every is 1d and not 2d"), "{error}");
    daemon.plugin().remove("data").unwrap();
    assert_eq!(daemon.cli().ok(&["schedule", "ls"]).json(), json!([]));
}
