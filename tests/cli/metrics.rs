//! Metrics, as Prometheus would read them.

use crate::common::daemon::Daemon;
use crate::common::host::Host;
use crate::common::plugin::PluginClient;

#[track_caller]
fn scrape(daemon: &Daemon<'_>) -> String {
    let client = PluginClient { socket: daemon.cli().socket };
    let request = "GET /metrics HTTP/1.1\r\nHost: holdfast\r\nConnection: close\r\n\r\n";
    let answer = client.send(request.as_bytes()).unwrap();
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(answer.headers.contains("content-type: application/openmetrics-text"), "{answer:?}");
    assert!(answer.text.ends_with("# EOF\n"), "{answer:?}");
    answer.text
}

#[track_caller]
fn value(text: &str, series: &str) -> f64 {
    let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {series} in\n{text}")).parse().unwrap()
}

#[test]
fn what_docker_asks_for_and_what_comes_of_it_is_counted() {
    let host = Host::new();
    let daemon = Daemon::start(&host);
    let plugin = daemon.plugin();
    assert!(scrape(&daemon).contains("holdfast_build_info{version="));
    plugin.create("data", &[("size", "64M")]).unwrap();
    plugin.mount("data", "c1").unwrap();
    plugin.mount("nothing", "c1").unwrap_err();
    daemon.cli().run(&["volume", "rm", "data"]);

    let text = scrape(&daemon);
    for (series, expected) in [
        ("holdfast_volumes{backend=\"loop\",state=\"ready\"}", 1.0),
        ("holdfast_mounted_volumes", 1.0),
        ("holdfast_plugin_requests_total{endpoint=\"Mount\",result=\"ok\"}", 1.0),
        ("holdfast_plugin_requests_total{endpoint=\"Mount\",result=\"error\"}", 1.0),
        ("holdfast_plugin_request_duration_seconds_count{endpoint=\"Mount\"}", 2.0),
        ("holdfast_operations_total{kind=\"create\",subject=\"volume\",result=\"done\"}", 1.0),
        ("holdfast_operations_total{kind=\"remove\",subject=\"volume\",result=\"failed\"}", 1.0),
    ] {
        assert_eq!(value(&text, series), expected, "{series}");
    }
    plugin.unmount("data", "c1").unwrap();
    plugin.remove("data").unwrap();
    let text = scrape(&daemon);
    assert_eq!(value(&text, "holdfast_mounted_volumes"), 0.0);
    assert!(!text.contains("holdfast_volumes{"), "{text}");
}
