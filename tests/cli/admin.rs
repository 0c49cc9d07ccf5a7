//! The admin API over its socket.

use serde_json::{Value, json};

use crate::common::daemon::{Daemon, Launch};
use crate::common::host::Host;
use crate::common::plugin::PluginClient;
use crate::common::wait;

/// Sends a request to the admin socket: the status and the body.
#[track_caller]
fn ask(daemon: &Daemon<'_>, method: &str, path: &str, body: &str) -> (u16, Value) {
    let client = PluginClient { socket: daemon.cli().socket };
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: holdfast\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let answer = client.send(request.as_bytes()).unwrap();
    assert!(answer.headers.contains("content-type: application/json"), "{answer:?}");
    (answer.status, answer.json())
}

#[test]
fn a_volume_lives_over_http() {
    let host = Host::new();
    let daemon = Daemon::start(&host);
    let make =
        json!({"name": "data", "options": {"size": "64M"}, "labels": {"a": "b"}}).to_string();
    let (status, made) = ask(&daemon, "POST", "/v1/volumes", &make);
    assert_eq!((status, &made["changed"]), (200, &json!(true)));
    let (status, again) = ask(&daemon, "POST", "/v1/volumes", &make);
    assert_eq!((status, &again["changed"]), (200, &json!(false)));
    let (_, mounted) = ask(&daemon, "POST", "/v1/volumes/data/mount", r#"{"id":"job"}"#);
    let (_, volume) = ask(&daemon, "GET", "/v1/volumes/data", "");
    assert_eq!(volume["mountpoint"], mounted["mountpoint"]);
    assert_eq!(volume["mounts"][0]["holder"], "host");
    ask(&daemon, "POST", "/v1/volumes/data/unmount", r#"{"id":"job"}"#);
    let (_, cut) = ask(&daemon, "POST", "/v1/volumes/data/snapshots", r#"{"name":"one"}"#);
    assert_eq!(cut["name"], "data@one");
    let (_, restored) = ask(&daemon, "POST", "/v1/volumes/data/snapshots/one/restore", "");
    assert!(restored["safety"].is_string(), "{restored}");
    for path in ["/v1/snapshots", "/v1/snapshots?volume=data", "/v1/volumes/data/snapshots"] {
        let (status, all) = ask(&daemon, "GET", path, "");
        assert_eq!((status, all.as_array().map(Vec::len)), (200, Some(2)), "{path}");
    }
    for size in [r#"{"size":"96M"}"#, r#"{"size":104857600}"#] {
        assert_eq!(ask(&daemon, "POST", "/v1/volumes/data/resize", size).0, 200);
    }
    assert_eq!(ask(&daemon, "POST", "/v1/volumes/data/rename", r#"{"name":"new"}"#).0, 200);
    let (status, refused) = ask(&daemon, "DELETE", "/v1/volumes/new", "");
    assert_eq!((status, &refused["error"]["code"]), (409, &json!("conflict")), "snapshots go too");
    let (status, gone) = ask(&daemon, "DELETE", "/v1/volumes/new?snapshots=true", "");
    assert_eq!((status, &gone["name"]), (200, &json!("new")));
    assert_eq!(ask(&daemon, "GET", "/v1/volumes", "").1, json!([]));
}

#[test]
fn every_error_has_the_same_form() {
    let host = Host::new();
    let daemon = Daemon::start(&host);
    ask(&daemon, "POST", "/v1/volumes", r#"{"name":"data","options":{"size":"64M"}}"#);
    let long = format!(r#"{{"name":"{}"}}"#, "x".repeat(4 << 20));
    for (method, path, body, status, code) in [
        ("GET", "/v1/nothing", "", 404, "not-found"),
        ("GET", "/", "", 404, "not-found"),
        ("PUT", "/v1/volumes", "", 405, "invalid"),
        ("GET", "/v1/volumes/nothing", "", 404, "not-found"),
        ("GET", "/v1/volumes/..%2f..%2fx", "", 400, "invalid"),
        ("GET", "/v1/volumes/%ff", "", 400, "invalid"),
        ("DELETE", "/v1/volumes/nothing", "", 404, "not-found"),
        ("POST", "/v1/volumes", "", 400, "invalid"),
        ("POST", "/v1/volumes", "{", 400, "invalid"),
        ("POST", "/v1/volumes", r#"{"name":"x","size":"1G"}"#, 400, "invalid"),
        ("POST", "/v1/volumes", r#"{"name":"x","options":{"sze":"1G"}}"#, 400, "invalid"),
        ("POST", "/v1/volumes", r#"{"name":"data","options":{"size":"65M"}}"#, 409, "conflict"),
        ("POST", "/v1/volumes", &long, 400, "invalid"),
        ("POST", "/v1/volumes?operation=7", r#"{"name":"x"}"#, 400, "invalid"),
        ("POST", "/v1/volumes?detach=perhaps", r#"{"name":"x"}"#, 400, "invalid"),
        ("POST", "/v1/volumes/data/mount", "", 400, "invalid"),
        ("POST", "/v1/volumes/data/resize", r#"{"size":"much"}"#, 400, "invalid"),
        ("GET", "/v1/pools/loop", "", 404, "not-found"),
        ("GET", "/v1/pools/.", "", 400, "invalid"),
        ("POST", "/v1/pools/loop/grow", r#"{"size":"much"}"#, 400, "invalid"),
        ("POST", "/v1/pools/loop/check", "", 404, "not-found"),
        ("GET", "/v1/backups?volume=..", "", 400, "invalid"),
        ("GET", "/v1/backups?repository=a%2fb", "", 400, "invalid"),
        ("GET", "/v1/backups/latest", "", 400, "invalid"),
        ("POST", "/v1/backups", "", 400, "invalid"),
        ("POST", "/v1/backups", r#"{"volume":"data","snapshot":"../x"}"#, 400, "invalid"),
        ("POST", "/v1/backups", r#"{"volume":"data","all":true}"#, 400, "invalid"),
        ("POST", "/v1/backups/verify", r#"{"backup":"latest"}"#, 400, "invalid"),
        ("GET", "/v1/backups/verify", "", 405, "invalid"),
        ("POST", "/v1/repositories/../init", "", 400, "invalid"),
        ("POST", "/v1/repositories/.x/check", "", 400, "invalid"),
        ("POST", "/v1/repositories/main/prune", r#"{"how":"gently"}"#, 400, "invalid"),
        ("POST", "/v1/operations/7/cancel", "", 400, "invalid"),
        (
            "POST",
            "/v1/operations/00000000-0000-0000-0000-000000000000/cancel",
            "",
            404,
            "not-found",
        ),
        ("GET", "/v1/operations/7", "", 400, "invalid"),
        ("GET", "/v1/operations/00000000-0000-0000-0000-000000000000", "", 404, "not-found"),
    ] {
        let (told, answer) = ask(&daemon, method, path, body);
        let (told_code, message) = (&answer["error"]["code"], &answer["error"]["message"]);
        let sample: String = body.chars().take(60).collect();
        assert_eq!((told, told_code), (status, &json!(code)), "{method} {path} {sample}: {answer}");
        assert!(message.as_str().is_some_and(|text| !text.is_empty()), "{answer}");
    }
    assert_eq!(ask(&daemon, "GET", "/v1/volumes", "").1.as_array().map(Vec::len), Some(1));
}

#[test]
fn a_change_is_watched_by_the_id_that_its_client_chose() {
    let host = Host::new();
    let daemon = Launch::new(&host).failpoint("create.allocate=delay:1000").start(&host);
    let id = uuid::Uuid::new_v4();
    let path = format!("/v1/volumes?operation={id}&detach=true");
    let (status, begun) = ask(&daemon, "POST", &path, r#"{"name":"a","options":{"size":"64M"}}"#);
    assert_eq!((status, &begun["operation"]), (202, &json!(id.to_string())));
    assert_eq!(begun.get("changed"), None);
    let operation = || ask(&daemon, "GET", &format!("/v1/operations/{id}"), "").1;
    assert_eq!(operation()["state"], "running");
    wait::until_true("it is done", || operation()["state"] == "done");
    assert_eq!(ask(&daemon, "GET", "/v1/volumes/a", "").1["state"], "ready");
}
