//! Rule 10: Docker checks no name, so names are checked here.

use serde_json::json;

use crate::common::daemon::Daemon;
use crate::common::host::Host;

#[test]
fn rule_10_hostile_names_are_refused_everywhere_and_touch_nothing() {
    let host = Host::new();
    let daemon = Daemon::start(&host);
    let plugin = daemon.plugin();
    std::fs::write(host.dir().join("outside"), "untouched").unwrap();
    let long = "a".repeat(10 * 1024);
    let over = "a".repeat(129);
    let hostile = [
        "../outside",
        "..",
        ".",
        ".hidden",
        "/",
        "/etc/passwd",
        "a/b",
        "a/../b",
        "a\\b",
        "-rf",
        "_a",
        "a b",
        " a",
        "a ",
        "a\n",
        "a\tb",
        "a\0b",
        "\0",
        "$(reboot)",
        "`reboot`",
        "a;b",
        "a|b",
        "a&b",
        "a'b",
        "a\"b",
        "a*",
        "a?",
        "~",
        "ä",
        "a\u{301}",
        "名前",
        "🦑",
        "a\u{202e}b",
        "\u{feff}a",
        "a@b",
        "a:b",
        "%2e%2e%2f",
        "{{.Task.Slot}}",
        &long,
        &over,
    ];
    for name in hostile {
        for method in ["Create", "Mount", "Unmount", "Remove", "Path", "Get"] {
            let answer = plugin.call(method, &json!({"Name": name, "ID": "id"}));
            let error = answer.error();
            assert!(error.is_some_and(|text| !text.is_empty()), "{method} {name:?}: {answer:?}");
        }
        let error = plugin.create(name, &[("size", "64M")]).unwrap_err();
        assert!(error.len() < 1024, "the error repeats a long name whole: {} bytes", error.len());
    }
    assert_eq!(plugin.list(), Vec::<String>::new());
    daemon.wait_no_volume_files();
    assert_eq!(std::fs::read_to_string(host.dir().join("outside")).unwrap(), "untouched");
    assert_eq!((host.mounts(), host.loops()), (vec![], vec![]));
}

#[test]
fn rule_10_names_at_the_edge_of_the_rule_work_in_full() {
    let host = Host::new();
    let daemon = Daemon::start(&host);
    let plugin = daemon.plugin();
    let longest = "a".repeat(128);
    // The last ones look like files that a backend or the daemon may keep beside images.
    for name in ["a", "0", "A.b_c-d", "a..b", "a--", &longest, "lost", "data.img", "tmp", "catalog"]
    {
        plugin.create(name, &[("size", "64M")]).unwrap_or_else(|error| panic!("{name}: {error}"));
        let mountpoint = plugin.mount(name, "id").unwrap();
        daemon.write(mountpoint.join("file"), name);
        assert_eq!(plugin.get(name).unwrap()["Name"], name);
        plugin.unmount(name, "id").unwrap();
        plugin.remove(name).unwrap();
    }
    daemon.wait_no_volume_files();
}

#[test]
fn names_that_differ_only_in_case_or_by_a_suffix_are_two_volumes() {
    let host = Host::new();
    let daemon = Daemon::start(&host);
    let plugin = daemon.plugin();
    let names = ["data", "DATA", "data.img", "data.json", "data-1"];
    for name in names {
        plugin.create(name, &[("size", "64M")]).unwrap();
        let mountpoint = plugin.mount(name, "id").unwrap();
        daemon.write(mountpoint.join("file"), name);
        plugin.unmount(name, "id").unwrap();
    }
    for name in names {
        let mountpoint = plugin.mount(name, "id").unwrap();
        assert_eq!(daemon.read(mountpoint.join("file")), name);
    }
}

/// Docker's own are 64 hexadecimal digits.
#[test]
fn mount_ids_may_be_any_printable_word_and_nothing_else() {
    let host = Host::new();
    let mut daemon = Daemon::start(&host);
    let plugin = daemon.plugin();
    plugin.create("data", &[("size", "64M")]).unwrap();
    let (long, longer) = ("f".repeat(256), "f".repeat(257));
    let good = ["0123abcd", "../../x", "'x", "$(x)", "a/b", "%00", &long];
    for id in good {
        plugin.mount("data", id).unwrap_or_else(|error| panic!("{id:?}: {error}"));
    }
    for id in ["", "a\0b", "a\nb", "名前", &longer] {
        plugin.mount("data", id).expect_err(id);
    }
    daemon.kill_and_start_again();
    for id in good {
        assert!(!host.mounts().is_empty(), "still held by {id:?}");
        plugin.unmount("data", id).unwrap_or_else(|error| panic!("{id:?}: {error}"));
    }
    assert_eq!(host.mounts(), []);
}
