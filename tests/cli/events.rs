//! Events, as they are shown and followed.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use crate::common::daemon::Daemon;
use crate::common::host::Host;
use crate::common::{HOLDFAST, wait};

fn kinds(lines: &str) -> Vec<String> {
    let events = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    events.map(|event| event["kind"].as_str().unwrap().to_owned()).collect()
}

fn sequence(event: &Value) -> u64 {
    event["sequence"].as_u64().unwrap()
}

fn follow(daemon: &Daemon<'_>, args: &[&str]) -> Child {
    Command::new(HOLDFAST)
        .arg("--socket")
        .arg(daemon.cli().socket)
        .args(["--output", "json", "events", "--follow"])
        .args(args)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

#[test]
fn what_happens_is_told_in_order() {
    let host = Host::new();
    let daemon = Daemon::start(&host);
    let (cli, plugin) = (daemon.cli(), daemon.plugin());
    assert_eq!(cli.ok(&["events"]).stdout, "");
    plugin.create("data", &[("size", "64M")]).unwrap();
    // What changes nothing is no event.
    plugin.create("data", &[("size", "64M")]).unwrap();
    plugin.mount("data", "c1").unwrap();
    cli.ok(&["snapshot", "create", "data@one"]);
    assert_eq!(cli.run(&["volume", "rm", "data"]).code, 4);
    plugin.unmount("data", "c1").unwrap();
    cli.ok(&["snapshot", "restore", "data@one"]);
    cli.ok(&["snapshot", "rm", "data@one"]);
    cli.ok(&["volume", "resize", "data", "96M"]);
    cli.ok(&["volume", "rename", "data", "new"]);
    plugin.remove("new").unwrap();
    let told = cli.ok(&["events"]).stdout;
    assert_eq!(
        kinds(&told),
        [
            "volume.created",
            "volume.mounted",
            "snapshot.created",
            "operation.failed",
            "volume.unmounted",
            "snapshot.restored",
            "snapshot.removed",
            "volume.grown",
            "volume.renamed",
            "volume.removed",
        ]
    );
    let events: Vec<Value> = told.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for (index, event) in events.iter().enumerate() {
        let keys: Vec<&String> = event.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["kind", "message", "sequence", "subject", "time"]);
        assert_eq!(sequence(event), sequence(&events[0]) + index as u64);
        assert!(event["time"].as_str().unwrap().parse::<jiff::Timestamp>().is_ok());
    }
    assert_eq!(events[0]["subject"], "data");
    assert_eq!(events[2]["subject"], "data@one");
    assert!(events[3]["message"].as_str().unwrap().contains("cannot remove data"));
    let eighth = sequence(&events[7]).to_string();
    assert_eq!(
        kinds(&cli.ok(&["events", "--after", &eighth]).stdout),
        ["volume.renamed", "volume.removed"]
    );
}

#[test]
fn events_are_followed_until_the_daemon_stops() {
    let host = Host::new();
    let mut daemon = Daemon::start(&host);
    let plugin = daemon.plugin();
    plugin.create("old", &[("size", "64M")]).unwrap();
    let mut follower = follow(&daemon, &["--after", "0"]);
    let mut lines = BufReader::new(follower.stdout.take().unwrap()).lines();
    let mut next = || serde_json::from_str::<Value>(&lines.next().unwrap().unwrap()).unwrap();
    assert_eq!(next()["subject"], "old");
    plugin.create("new", &[("size", "64M")]).unwrap();
    let event = next();
    assert_eq!((&event["kind"], &event["subject"]), (&json!("volume.created"), &json!("new")));

    // One that never reads, and one whose reader has seen enough.
    let mut deaf = follow(&daemon, &[]);
    let mut brief = follow(&daemon, &["--after", "0"]);
    BufReader::new(brief.stdout.take().unwrap()).read_line(&mut String::new()).unwrap();
    plugin.remove("new").unwrap();
    let last = next();
    assert_eq!(last["kind"], "volume.removed");
    wait::until_true("it ends without a reader", || brief.try_wait().unwrap().is_some());
    assert!(brief.wait().unwrap().success());

    daemon.terminate();
    assert_eq!(follower.wait().unwrap().code(), Some(5));
    deaf.wait().unwrap();

    // What may have happened in between is not passed over.
    daemon.start_again();
    plugin.remove("old").unwrap();
    let last = sequence(&last).to_string();
    let told = daemon.cli().ok(&["events", "--after", &last]).stdout;
    assert_eq!(kinds(&told), ["events.missed", "volume.removed"]);
}
