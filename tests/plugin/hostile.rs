//! Clients that are broken, slow or many.

use std::io::{Read, Write};
use std::thread;

use serde_json::json;

use crate::common::daemon::Daemon;
use crate::common::host::Host;
use crate::common::plugin::{PluginClient, read_answer};

/// The most that a request may carry.
const BODY_LIMIT: usize = 1024 * 1024;

#[test]
fn malformed_bodies_are_errors() {
    let host = Host::new();
    let daemon = Daemon::start(&host);
    let plugin = daemon.plugin();
    let deep = format!(r#"{{"Name":{}"#, "[".repeat(100_000));
    let bodies: [&[u8]; 16] = [
        b"{",
        b"}",
        b"[]",
        b"[{}]",
        b"1",
        b"\"data\"",
        b"true",
        b"{\"Name\"}",
        b"{\"Name\":}",
        b"{\"Name\":1}",
        b"{\"Name\":[\"data\"]}",
        b"{\"Name\":\"data\",\"Opts\":[]}",
        b"{\"Name\":\"data\",\"Opts\":{\"size\":64}}",
        b"\xff\xfe",
        b"{\"Name\":\"\\ud800\"}",
        deep.as_bytes(),
    ];
    for body in bodies {
        let shown = String::from_utf8_lossy(&body[..body.len().min(60)]).into_owned();
        let answer = plugin.post("VolumeDriver.Create", body).unwrap();
        assert!(answer.error().is_some_and(|text| !text.is_empty()), "{shown}: {answer:?}");
    }
    assert_eq!(plugin.list(), Vec::<String>::new());
}

#[test]
fn unknown_fields_are_ignored() {
    let host = Host::new();
    let daemon = Daemon::start(&host);
    let body = json!({"Name": "data", "Opts": {"size": "64M"}, "Future": {"a": [1]}});
    assert_eq!(daemon.plugin().call("Create", &body).error(), None);
}

#[test]
fn a_body_up_to_the_limit_is_read_and_a_larger_one_is_refused() {
    let host = Host::new();
    let daemon = Daemon::start(&host);
    let plugin = daemon.plugin();
    let padded = |length: usize| {
        let mut body = br#"{"Name":"data","Opts":{"size":"64M"}}"#.to_vec();
        body.resize(length, b' ');
        body
    };
    let answer = plugin.post("VolumeDriver.Create", &padded(BODY_LIMIT + 1)).unwrap();
    assert!(answer.status >= 400, "{answer:?}");
    assert_eq!(plugin.list(), Vec::<String>::new());
    let answer = plugin.post("VolumeDriver.Create", &padded(BODY_LIMIT)).unwrap();
    assert_eq!(answer.error(), None);
    assert_eq!(plugin.list(), ["data"]);
}

#[test]
fn a_body_that_never_ends_is_cut_off() {
    let host = Host::new();
    let daemon = Daemon::start(&host);
    let plugin = daemon.plugin();
    let mut stream = plugin.connect().unwrap();
    let head =
        "POST /VolumeDriver.Create HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";
    stream.write_all(head.as_bytes()).unwrap();
    let mut chunk = b"10000\r\n".to_vec();
    chunk.extend(vec![b' '; 0x10000]);
    chunk.extend(b"\r\n");
    // 64 MiB are far beyond the limit; a daemon that takes them all would take anything.
    let refused = (0..1024).any(|_| stream.write_all(&chunk).is_err());
    assert!(refused || read_answer(stream).is_ok_and(|answer| answer.status >= 400));
    plugin.create("data", &[("size", "64M")]).expect("others are served on");
}

#[test]
fn a_huge_length_is_refused_before_its_bytes_come() {
    let host = Host::new();
    let daemon = Daemon::start(&host);
    let plugin = daemon.plugin();
    for length in ["1073741824", "18446744073709551615", "99999999999999999999999", "-1", "x"] {
        let head = format!(
            "POST /VolumeDriver.Create HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\
             Connection: close\r\n\r\n"
        );
        let mut stream = plugin.connect().unwrap();
        stream.write_all(head.as_bytes()).unwrap();
        match read_answer(stream) {
            Ok(answer) => assert!(answer.status >= 400, "{length}: {answer:?}"),
            Err(error) => assert_ne!(error.kind(), std::io::ErrorKind::WouldBlock, "{length}"),
        }
    }
}

#[test]
fn what_is_not_http_does_no_harm() {
    let host = Host::new();
    let daemon = Daemon::start(&host);
    let plugin = daemon.plugin();
    let long_header = format!("POST / HTTP/1.1\r\nX: {}\r\n\r\n", "a".repeat(4 << 20));
    let many_headers = format!("POST / HTTP/1.1\r\n{}\r\n", "X: a\r\n".repeat(100_000));
    for bytes in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..],
        b"\0\0\0\0\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"hello\r\n\r\n",
        long_header.as_bytes(),
        many_headers.as_bytes(),
    ] {
        let mut stream = plugin.connect().unwrap();
        let _ = stream.write_all(bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
        assert!(!rest.starts_with(b"HTTP/1.1 200"), "{:?}", String::from_utf8_lossy(&rest));
    }
    assert_eq!(plugin.list(), Vec::<String>::new());
}

#[test]
fn slow_clients_are_hung_up_on_and_delay_nobody() {
    let host = Host::new();
    let daemon = Daemon::start(&host);
    let plugin = daemon.plugin();
    let body = br#"{"Name":"slow","Opts":{"size":"64M"}}"#;
    let request = PluginClient::request("VolumeDriver.Create", body);
    let head = request.len() - body.len();
    // Stopped in the request line, in the headers, and in the body.
    let mut stalled = Vec::new();
    for length in [3, head / 2, head + 5] {
        for _ in 0..20 {
            let mut stream = plugin.connect().unwrap();
            stream.write_all(&request[..length]).unwrap();
            stalled.push((length, stream));
        }
    }
    plugin.create("data", &[("size", "64M")]).unwrap();
    assert_eq!(plugin.list(), ["data"]);
    for (length, mut stream) in stalled {
        let mut rest = Vec::new();
        let end = stream.read_to_end(&mut rest);
        let timed_out = end.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock);
        assert!(!timed_out, "a client that stopped after {length} bytes is held for ever");
        assert!(!rest.starts_with(b"HTTP/1.1 200"), "{:?}", String::from_utf8_lossy(&rest));
    }
    assert_eq!(plugin.list(), ["data"]);
}

#[test]
fn two_hundred_connections_at_once_are_all_served() {
    let host = Host::new();
    let daemon = Daemon::start(&host);
    let plugin = daemon.plugin();
    plugin.create("data", &[("size", "64M")]).unwrap();
    // All are open before the first one asks.
    let open: Vec<_> = (0..200).map(|_| plugin.connect().unwrap()).collect();
    let asking: Vec<_> = open
        .into_iter()
        .enumerate()
        .map(|(number, mut stream)| {
            thread::spawn(move || {
                let (method, body) = match number % 4 {
                    0 => ("Get", json!({"Name": "data"})),
                    1 => ("List", json!({})),
                    2 => ("Mount", json!({"Name": "data", "ID": format!("id-{number}")})),
                    _ => ("Capabilities", json!({})),
                };
                let body = body.to_string();
                let method = format!("VolumeDriver.{method}");
                stream.write_all(&PluginClient::request(&method, body.as_bytes())).unwrap();
                read_answer(stream).map(|answer| answer.error())
            })
        })
        .collect();
    for asked in asking {
        assert_eq!(asked.join().unwrap().unwrap(), None);
    }
    let mounts = daemon.cli().inspect("data")["mounts"].clone();
    assert_eq!(mounts.as_array().map(Vec::len), Some(50));
    for number in (2..200).step_by(4) {
        plugin.unmount("data", &format!("id-{number}")).unwrap();
    }
    assert_eq!((host.mounts(), host.loops()), (vec![], vec![]));
}

#[test]
fn many_volumes_at_once_are_made_used_and_removed() {
    let host = Host::new();
    let daemon = Daemon::start(&host);
    let plugin = daemon.plugin();
    let working: Vec<_> = (0..32)
        .map(|number| {
            let plugin = plugin.clone();
            thread::spawn(move || {
                let name = format!("volume-{number}");
                plugin.create(&name, &[("size", "64M")])?;
                plugin.mount(&name, "id")?;
                plugin.unmount(&name, "id")?;
                plugin.remove(&name)
            })
        })
        .collect();
    for work in working {
        work.join().unwrap().unwrap();
    }
    assert_eq!(plugin.list(), Vec::<String>::new());
    assert_eq!((host.mounts(), host.loops()), (vec![], vec![]));
}

/// Clients can use up the daemon's file descriptors, but not for longer than they stay.
#[test]
fn more_connections_than_it_may_have_files_open_do_no_lasting_harm() {
    let host = Host::new();
    let daemon = Daemon::start(&host);
    let plugin = daemon.plugin();
    plugin.create("data", &[("size", "64M")]).unwrap();
    let limit = "--nofile=128:128";
    host.run("prlimit", &["--pid", &daemon.pid_inside().to_string(), limit]);
    let idle: Vec<_> = (0..300).map(|_| plugin.connect()).collect();
    drop(idle);
    plugin.mount("data", "id").expect("a mount after they are gone");
    plugin.unmount("data", "id").unwrap();
    plugin.remove("data").unwrap();
}
