//! The nine endpoints, each as the engine calls it.

use std::io::Write;

use serde_json::json;

use crate::common::daemon::Daemon;
use crate::common::host::Host;
use crate::common::plugin::{PluginClient, read_answer};

#[test]
fn activate_has_an_empty_body_and_tells_the_volume_driver() {
    let host = Host::new();
    let daemon = Daemon::start(&host);
    let answer = daemon.plugin().post("Plugin.Activate", b"").expect("Activate");
    assert_eq!(answer.status, 200);
    assert_eq!(answer.json(), json!({"Implements": ["VolumeDriver"]}));
    assert!(answer.headers.contains("content-type: application/vnd.docker.plugins.v1"));
}

#[test]
fn capabilities_tell_a_local_scope_while_only_host_bound_backends_are_on() {
    let host = Host::new();
    let daemon = Daemon::start(&host);
    for body in ["{}\n", ""] {
        let answer = daemon.plugin().post("VolumeDriver.Capabilities", body.as_bytes());
        assert_eq!(answer.unwrap().json()["Capabilities"]["Scope"], "local", "body {body:?}");
    }
}

#[test]
fn list_tells_every_volume_with_its_mountpoint_and_needs_no_body() {
    let host = Host::new();
    let daemon = Daemon::start(&host);
    let plugin = daemon.plugin();
    assert_eq!(plugin.list(), Vec::<String>::new());
    for name in ["one", "two", "three"] {
        plugin.create(name, &[("size", "64M")]).unwrap();
    }
    let mountpoint = plugin.mount("two", "id").unwrap();
    for body in ["{}\n", ""] {
        let answer = plugin.post("VolumeDriver.List", body.as_bytes()).unwrap().json();
        let mut volumes = answer["Volumes"].as_array().expect("Volumes").clone();
        volumes.sort_by_key(|volume| volume["Name"].to_string());
        let told: Vec<_> = volumes
            .iter()
            .map(|volume| (volume["Name"].as_str().unwrap(), volume["Mountpoint"].as_str()))
            .collect();
        let mounted = mountpoint.to_str();
        assert_eq!(told, [("one", Some("")), ("three", Some("")), ("two", mounted)]);
    }
}

#[test]
fn get_tells_created_at_in_rfc_3339_and_what_inspect_shows() {
    let host = Host::new();
    let daemon = Daemon::start(&host);
    let plugin = daemon.plugin();
    plugin.create("data", &[("size", "64M")]).unwrap();
    let volume = plugin.get("data").unwrap();
    assert_eq!(volume["Name"], "data");
    assert_eq!(volume["Mountpoint"], "");
    let created = volume["CreatedAt"].as_str().expect("CreatedAt");
    assert!(created.parse::<jiff::Timestamp>().is_ok(), "{created}");
    assert!(created.ends_with('Z'), "{created}");
    let status = &volume["Status"];
    assert_eq!(status["backend"], "loop", "{status}");
    assert_eq!(status["filesystem"], "ext4", "{status}");
    for key in ["size", "used", "state", "node"] {
        assert!(!status[key].is_null(), "{key} is missing in {status}");
    }
}

#[test]
fn get_of_an_unknown_volume_says_so() {
    let host = Host::new();
    let daemon = Daemon::start(&host);
    let error = daemon.plugin().get("nothing").unwrap_err();
    assert!(error.contains("nothing"), "{error}");
}

#[test]
fn path_is_empty_until_mounted_and_after_the_last_unmount() {
    let host = Host::new();
    let daemon = Daemon::start(&host);
    let plugin = daemon.plugin();
    plugin.create("data", &[("size", "64M")]).unwrap();
    assert_eq!(plugin.path("data").unwrap(), "");
    let mountpoint = plugin.mount("data", "id").unwrap();
    assert_eq!(plugin.path("data").unwrap(), mountpoint.to_str().unwrap());
    assert_eq!(plugin.get("data").unwrap()["Mountpoint"], mountpoint.to_str().unwrap());
    plugin.unmount("data", "id").unwrap();
    assert_eq!(plugin.path("data").unwrap(), "");
    plugin.path("nothing").unwrap_err();
}

#[test]
fn mount_gives_a_filesystem_behind_a_loop_device_on_the_image() {
    let host = Host::new();
    let daemon = Daemon::start(&host);
    let plugin = daemon.plugin();
    plugin.create("data", &[("size", "64M")]).unwrap();
    assert_eq!(host.mounts(), [], "a volume that is not in use is not mounted");
    let mountpoint = plugin.mount("data", "id").unwrap();
    assert_eq!(mountpoint, daemon.state_dir().join("mounts/data/data"));
    let mount = host
        .mounts()
        .into_iter()
        .find(|mount| mountpoint.starts_with(&mount.target))
        .expect("a mount at or above the mountpoint");
    assert_eq!(mount.filesystem, "ext4");
    let device = &host.loops()[0];
    assert_eq!(mount.source, device.device.to_str().unwrap());
    assert!(device.backing_file.starts_with(daemon.loop_dir()), "{device:?}");
    daemon.write(mountpoint.join("file"), "content");
    assert_eq!(daemon.read(mountpoint.join("file")), "content");
}

#[test]
fn mount_of_an_unknown_volume_fails_and_makes_nothing() {
    let host = Host::new();
    let daemon = Daemon::start(&host);
    let error = daemon.plugin().mount("nothing", "id").unwrap_err();
    assert!(error.contains("nothing"), "{error}");
    assert_eq!(daemon.plugin().list(), Vec::<String>::new());
    assert_eq!((host.mounts(), host.loops()), (vec![], vec![]));
}

#[test]
fn remove_leaves_nothing_behind() {
    let host = Host::new();
    let daemon = Daemon::start(&host);
    let plugin = daemon.plugin();
    plugin.create("data", &[("size", "64M")]).unwrap();
    let mountpoint = plugin.mount("data", "id").unwrap();
    plugin.unmount("data", "id").unwrap();
    plugin.remove("data").unwrap();
    assert_eq!(plugin.list(), Vec::<String>::new());
    plugin.get("data").unwrap_err();
    assert_eq!((host.mounts(), host.loops()), (vec![], vec![]));
    daemon.wait_no_volume_files();
    assert!(!host.inside(mountpoint.parent().unwrap()).exists());
    plugin.create("data", &[("size", "64M")]).expect("the name is free again");
}

#[test]
fn remove_of_a_volume_in_use_is_refused_and_harms_nothing() {
    let host = Host::new();
    let daemon = Daemon::start(&host);
    let plugin = daemon.plugin();
    plugin.create("data", &[("size", "64M")]).unwrap();
    let mountpoint = plugin.mount("data", "id").unwrap();
    daemon.write(mountpoint.join("file"), "content");
    let error = plugin.remove("data").unwrap_err();
    assert!(error.contains("data") && error.contains("use"), "{error}");
    assert_eq!(daemon.read(mountpoint.join("file")), "content");
    assert_eq!(plugin.list(), ["data"]);
}

#[test]
fn one_connection_serves_one_request_after_another() {
    let host = Host::new();
    let daemon = Daemon::start(&host);
    let plugin = daemon.plugin();
    let mut stream = plugin.connect().unwrap();
    for body in ["{}", "{}"] {
        let kept = String::from_utf8(PluginClient::request("VolumeDriver.List", body.as_bytes()));
        stream.write_all(kept.unwrap().replace("Connection: close\r\n", "").as_bytes()).unwrap();
    }
    stream.write_all(&PluginClient::request("VolumeDriver.Capabilities", b"{}")).unwrap();
    let answers = read_answer(stream).unwrap();
    let all = format!("{}{}", answers.headers, answers.text.to_ascii_lowercase());
    assert_eq!(all.matches("http/1.1 200").count(), 3, "{all}");
}

#[test]
fn a_content_type_is_neither_needed_nor_minded() {
    let host = Host::new();
    let daemon = Daemon::start(&host);
    let plugin = daemon.plugin();
    let body = br#"{"Name":"data","Opts":{"size":"64M"}}"#;
    let request = String::from_utf8(PluginClient::request("VolumeDriver.Create", body)).unwrap();
    for kind in ["application/json", "text/plain", "application/x-www-form-urlencoded"] {
        let with = request.replace("Accept:", &format!("Content-Type: {kind}\r\nAccept:"));
        assert_eq!(plugin.send(with.as_bytes()).unwrap().error(), None, "{kind}");
    }
    assert_eq!(plugin.send(request.as_bytes()).unwrap().error(), None);
}

#[test]
fn options_may_be_null_or_absent() {
    let host = Host::new();
    let daemon = Daemon::start(&host);
    let plugin = daemon.plugin();
    for (name, body) in [("a", json!({"Name": "a", "Opts": null})), ("b", json!({"Name": "b"}))] {
        assert_eq!(plugin.call("Create", &body).error(), None, "{body}");
        plugin.get(name).unwrap();
    }
}

#[test]
fn an_unknown_method_or_path_is_an_error_and_nothing_else() {
    let host = Host::new();
    let daemon = Daemon::start(&host);
    let plugin = daemon.plugin();
    for path in ["VolumeDriver.Format", "", "VolumeDriver.Get/../../x", "v1/volumes"] {
        let answer = plugin.post(path, b"{}").unwrap();
        assert!(answer.status >= 400, "{path}: {answer:?}");
    }
    let get = b"GET /VolumeDriver.List HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    assert!(plugin.send(get).unwrap().status >= 400);
    assert_eq!(plugin.list(), Vec::<String>::new());
}
