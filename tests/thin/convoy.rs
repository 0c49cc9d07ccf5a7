//! What Convoy's integration tests asked of its device-mapper driver, asked of ours: C0 to C15, numbered
//! as they stood in `tests/integration/test_main.py`.
//!
//! Not asked, as there is nothing of the kind here: C2 and C11 (EBS), C3 and C6 (VFS directories). C14
//! and C15 went through an object store; what they asked of the content is asked of clones.

use crate::common::lab::Lab;

#[test]
fn convoys_acceptance_list_holds() {
    let lab = Lab::new();
    let host = lab.host("a").memory(4096).modules(&["dm-thin-pool", "loop"]).boot();
    host.run_tests("convoy::in_lab::");
}

mod in_lab {
    use std::path::Path;

    use serde_json::Value;

    use crate::common::daemon::Daemon;
    use crate::common::host::Host;
    use crate::common::lab::assert_inside;
    use crate::helpers::{assert_filled, directory, fill, on_files};

    const GIB: u64 = 1 << 30;

    fn start(host: &Host) -> Daemon<'_> {
        assert_inside();
        let launch = on_files(host, &directory(), "2G");
        launch.args(&["--thin-default-size", "1G"]).start(host)
    }

    fn names(list: &Value, key: &str) -> Vec<String> {
        let list = list.as_array().unwrap();
        let mut names: Vec<_> =
            list.iter().map(|item| item[key].as_str().unwrap().to_owned()).collect();
        names.sort();
        names
    }

    /// Both drivers, the default one, where the pool is and how large it is.
    #[test]
    fn convoy_c00_status_shows_the_backends_and_the_pool() {
        let host = Host::new();
        let place = directory();
        let daemon = on_files(&host, &place, "512M").start(&host);
        let status = daemon.cli().ok(&["status"]).json();
        assert_eq!(names(&status["backends"], "name"), ["loop", "thin"]);
        let backends = status["backends"].as_array().unwrap();
        let thin = backends.iter().find(|backend| backend["name"] == "thin").unwrap();
        assert_eq!(thin["default"], true);
        assert_eq!(thin["status"]["location"], place.to_str().unwrap());
        assert_eq!(thin["status"]["total"], GIB / 2);
        assert_eq!(status["warnings"], serde_json::json!([]));
    }

    /// Volumes of the default size, of a size in words and of one in bytes come and go.
    #[test]
    fn convoy_c01_volumes_of_default_and_explicit_size_come_and_go() {
        let host = Host::new();
        let daemon = start(&host);
        let (plugin, cli) = (daemon.plugin(), daemon.cli());
        plugin.create("one", &[]).unwrap();
        plugin.create("two", &[]).unwrap();
        plugin.create("words", &[("size", "2G")]).unwrap();
        cli.ok(&["volume", "create", "bytes", "--size", "1073741824"]);
        for (name, size) in [("one", GIB), ("two", GIB), ("words", 2 * GIB), ("bytes", GIB)] {
            let volume = cli.inspect(name);
            assert_eq!((&volume["size"], &volume["backend"]), (&size.into(), &"thin".into()));
            plugin.remove(name).unwrap();
        }
        assert_eq!(plugin.list(), Vec::<String>::new());
    }

    /// A name of all allowed characters; lists show name, driver and time; the same name again and an
    /// unknown driver fail; a deleted name vanishes and is free again; deletion by id, too.
    #[test]
    fn convoy_c04_a_name_is_taken_once_and_free_after_deletion() {
        let host = Host::new();
        let daemon = start(&host);
        let (plugin, cli) = (daemon.plugin(), daemon.cli());
        let name = "vol.1_1-0";
        cli.ok(&["volume", "create", name]);
        let list = cli.ok(&["volume", "ls"]).json();
        let volume = &list[0];
        assert_eq!((&volume["name"], &volume["backend"]), (&name.into(), &"thin".into()));
        assert!(volume["created"].as_str().unwrap().ends_with('Z'));
        assert_eq!(cli.run(&["volume", "create", name, "--size", "3G"]).code, 4);
        let unknown = plugin.create("other", &[("backend", "vault")]).unwrap_err();
        assert!(unknown.contains("vault"), "{unknown}");
        cli.ok(&["volume", "rm", name]);
        assert_eq!(plugin.list(), Vec::<String>::new());
        assert_eq!(cli.run(&["volume", "rm", name]).code, 3);
        cli.ok(&["volume", "create", name]);
        assert_eq!(plugin.list(), [name]);
    }

    /// The first mount formats; what is written is seen at every later mount, and not between them.
    #[test]
    fn convoy_c05_what_is_written_at_the_first_mount_is_there_at_the_third() {
        let host = Host::new();
        let daemon = start(&host);
        let plugin = daemon.plugin();
        plugin.create("data", &[]).unwrap();
        let mut paths = Vec::new();
        for (round, id) in ["first", "second", "third"].into_iter().enumerate() {
            let file = plugin.mount("data", id).unwrap().join("file");
            match round {
                0 => daemon.write(&file, "kept"),
                _ => assert_eq!(daemon.read(&file), "kept"),
            }
            plugin.unmount("data", id).unwrap();
            assert!(!host.inside(&file).exists());
            assert_eq!(plugin.path("data").unwrap(), "");
            paths.push(file);
        }
        assert_eq!(host.mounts(), vec![]);
    }

    /// Nothing at first; then each volume with its size in bytes, in the list and by itself.
    #[test]
    fn convoy_c07_lists_tell_sizes_in_bytes() {
        let host = Host::new();
        let daemon = start(&host);
        let cli = daemon.cli();
        assert_eq!(cli.ok(&["volume", "ls"]).json(), serde_json::json!([]));
        let sizes = [("bytes", "1073741824", GIB), ("default", "", GIB), ("words", "2G", 2 * GIB)];
        for (name, size, _) in sizes {
            let mut args = vec!["volume", "create", name];
            args.extend(["--size", size].iter().filter(|_| !size.is_empty()));
            cli.ok(&args);
        }
        let list = cli.ok(&["volume", "ls"]).json();
        assert_eq!(list.as_array().unwrap().len(), sizes.len());
        for (name, _, bytes) in sizes {
            let of = |list: &Value| {
                let mut list = list.as_array().unwrap().iter();
                list.find(|volume| volume["name"] == name).unwrap()["size"].clone()
            };
            assert_eq!(of(&list), bytes);
            assert_eq!(cli.inspect(name)["size"], bytes);
        }
    }

    /// Snapshots come and go; a volume goes with the snapshots that it still has, if that is said.
    #[test]
    fn convoy_c08_a_volume_goes_with_its_last_snapshots() {
        let host = Host::new();
        let daemon = start(&host);
        let cli = daemon.cli();
        cli.ok(&["volume", "create", "data"]);
        for snapshot in ["data@a", "data@b", "data@c"] {
            cli.ok(&["snapshot", "create", snapshot]);
        }
        cli.ok(&["snapshot", "rm", "data@a"]);
        cli.ok(&["snapshot", "rm", "data@c"]);
        let refused = cli.run(&["volume", "rm", "data"]);
        assert!(refused.code == 4 && refused.stderr.contains("--snapshots"), "{refused:?}");
        cli.ok(&["volume", "rm", "--snapshots", "data"]);
        assert_eq!(cli.ok(&["snapshot", "ls"]).json(), serde_json::json!([]));
        assert_eq!(cli.run(&["snapshot", "inspect", "data@b"]).code, 3);
        // Of another volume of that name there is none either.
        cli.ok(&["volume", "create", "data"]);
        assert_eq!(cli.inspect("data")["snapshots"], serde_json::json!([]));
    }

    /// Lists show a snapshot's name and time; the same name again fails.
    #[test]
    fn convoy_c09_a_snapshots_name_is_taken_once() {
        let host = Host::new();
        let daemon = start(&host);
        let cli = daemon.cli();
        cli.ok(&["volume", "create", "data"]);
        cli.ok(&["snapshot", "create", "data@snap.1_1-0"]);
        let list = cli.ok(&["snapshot", "ls", "data"]).json();
        assert_eq!(names(&list, "name"), ["snap.1_1-0"]);
        assert!(list[0]["created"].as_str().unwrap().ends_with('Z'));
        assert_eq!(cli.run(&["snapshot", "create", "data@snap.1_1-0"]).code, 4);
        assert_eq!(names(&cli.ok(&["snapshot", "ls", "data"]).json(), "name"), ["snap.1_1-0"]);
    }

    /// Six snapshots over two volumes, each with its volume, name and size; none of an unknown or a
    /// deleted one.
    #[test]
    fn convoy_c10_snapshots_of_two_volumes_are_told_apart() {
        let host = Host::new();
        let daemon = start(&host);
        let cli = daemon.cli();
        for (volume, size) in [("one", "1G"), ("two", "2G")] {
            cli.ok(&["volume", "create", volume, "--size", size]);
            for snapshot in ["a", "b", "c"] {
                cli.ok(&["snapshot", "create", &format!("{volume}@{snapshot}")]);
            }
        }
        assert_eq!(cli.run(&["snapshot", "inspect", "one@d"]).code, 3);
        let snapshot = cli.ok(&["snapshot", "inspect", "two@b"]).json();
        assert_eq!((&snapshot["volume"], &snapshot["name"]), (&"two".into(), &"b".into()));
        assert_eq!(snapshot["size"], 2 * GIB);
        assert_eq!(names(&cli.ok(&["snapshot", "ls"]).json(), "name").len(), 6);
        for volume in ["one", "two"] {
            assert_eq!(names(&cli.inspect(volume)["snapshots"], "name"), ["a", "b", "c"]);
        }
        cli.ok(&["snapshot", "rm", "two@b"]);
        assert_eq!(cli.run(&["snapshot", "inspect", "two@b"]).code, 3);
        assert_eq!(names(&cli.inspect("two")["snapshots"], "name"), ["a", "c"]);
        assert_eq!(names(&cli.inspect("one")["snapshots"], "name"), ["a", "b", "c"]);
    }

    fn seeds_in(daemon: &Daemon<'_>, host: &Host, volume: &str, seed: u64) {
        let plugin = daemon.plugin();
        let mountpoint = plugin.mount(volume, "look").unwrap();
        assert_filled(&host.inside(mountpoint.join("file")), seed, 8);
        plugin.unmount(volume, "look").unwrap();
    }

    fn write(daemon: &Daemon<'_>, host: &Host, volume: &str, seed: u64) {
        let plugin = daemon.plugin();
        let mountpoint = plugin.mount(volume, "write").unwrap();
        let (written, error) = fill(&host.inside(mountpoint.join("file")), seed, 8);
        assert!(error.is_none() && written == 8, "{error:?}");
        plugin.unmount(volume, "write").unwrap();
    }

    /// Content that was kept comes back byte by byte after the original is deleted; into a volume of a
    /// smaller size it does not go.
    #[test]
    fn convoy_c14_what_was_kept_of_a_volume_outlives_it() {
        let host = Host::new();
        let daemon = start(&host);
        let (plugin, cli) = (daemon.plugin(), daemon.cli());
        plugin.create("data", &[]).unwrap();
        write(&daemon, &host, "data", 1);
        cli.ok(&["snapshot", "create", "data@kept"]);
        write(&daemon, &host, "data", 100);
        let smaller = [("from-snapshot", "data@kept"), ("size", "512M")];
        assert!(plugin.create("copy", &smaller).is_err());
        plugin.create("copy", &[("from-snapshot", "data@kept")]).unwrap();
        plugin.remove("data").unwrap();
        seeds_in(&daemon, &host, "copy", 1);
    }

    /// Two copies of one snapshot are each whole, and the first stays so when the second is deleted; a
    /// restore brings the same.
    #[test]
    fn convoy_c15_two_copies_of_a_snapshot_are_independent() {
        let host = Host::new();
        let daemon = start(&host);
        let (plugin, cli) = (daemon.plugin(), daemon.cli());
        plugin.create("data", &[]).unwrap();
        write(&daemon, &host, "data", 1);
        cli.ok(&["snapshot", "create", "data@kept"]);
        write(&daemon, &host, "data", 100);
        for copy in ["one", "two"] {
            cli.ok(&["volume", "clone", "data@kept", copy]);
        }
        seeds_in(&daemon, &host, "two", 1);
        write(&daemon, &host, "two", 200);
        plugin.remove("two").unwrap();
        seeds_in(&daemon, &host, "one", 1);
        seeds_in(&daemon, &host, "data", 100);
        cli.ok(&["snapshot", "restore", "data@kept"]);
        seeds_in(&daemon, &host, "data", 1);
    }

    /// Convoy never asked this: all of it is there after the daemon was killed, and after a clean stop,
    /// with which the pool leaves the kernel.
    #[test]
    fn convoy_beyond_a_restart_keeps_volumes_snapshots_and_content() {
        let host = Host::new();
        let mut daemon = start(&host);
        let cli = daemon.cli();
        daemon.plugin().create("data", &[]).unwrap();
        write(&daemon, &host, "data", 1);
        cli.ok(&["snapshot", "create", "data@kept"]);
        let before = cli.inspect("data");
        daemon.kill_and_start_again();
        assert_eq!(cli.inspect("data"), before);
        daemon.terminate();
        daemon.start_again();
        assert_eq!(cli.inspect("data"), before);
        seeds_in(&daemon, &host, "data", 1);
        cli.ok(&["volume", "clone", "data@kept", "copy"]);
        seeds_in(&daemon, &host, "copy", 1);
        assert!(Path::new("/dev/mapper/control").exists());
    }
}
