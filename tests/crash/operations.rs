//! The operations, each in the way that goes through all of its steps.

use std::fs;
use std::path::{Path, PathBuf};

use super::driver::Place;
use crate::common::daemon::Daemon;
use crate::common::host::Host;
use crate::common::repository::{Repository, backups};

/// The volume that the operation is about.
pub(crate) const SUBJECT: &str = "subject";

/// The mount id that holds it.
pub(crate) const ID: &str = "container";

/// ext4 grows while mounted only for who has CAP_SYS_RESOURCE, which a build machine's root may lack.
const GROWING: &[(&str, &str)] = &[("fs", "xfs"), ("size", "512M")];
const GROWN: &str = "640M";

const CONTENT: &str = "what the user wrote";

pub(crate) struct Operation {
    pub(crate) name: &'static str,
    /// Other operations whose steps it goes through as well.
    pub(crate) also: &'static [&'static str],
    /// What must be there before.
    pub(crate) prepare: fn(&Daemon<'_>),
    /// Whether a container writes to the subject meanwhile.
    pub(crate) in_use: bool,
    /// The request; `Err` with the text of the answer, or of the broken connection.
    pub(crate) run: fn(&Daemon<'_>) -> Result<(), String>,
    /// What a retry may be told if the first request had got far enough to be finished at start.
    pub(crate) already: &'static [&'static str],
    /// What must be true after the retry.
    pub(crate) check: fn(&Daemon<'_>, &Host, &Place),
}

pub(crate) fn find(name: &str) -> &'static Operation {
    OPERATIONS.iter().find(|operation| operation.name == name).expect("known")
}

pub(crate) static OPERATIONS: [Operation; 16] = [
    Operation {
        name: "create",
        also: &[],
        prepare: |_| (),
        in_use: false,
        run: |daemon| daemon.plugin().create(SUBJECT, &[("size", "64M")]),
        already: &[],
        check: |daemon, _, _| {
            mount_and_write(daemon, SUBJECT);
            assert_holds(daemon, SUBJECT, CONTENT);
        },
    },
    Operation {
        name: "clone",
        also: &[],
        // Mounted, so that it has to be frozen.
        prepare: prepare_mounted,
        in_use: true,
        run: |daemon| cli(daemon, &["volume", "clone", SUBJECT, "twin"]),
        already: &["exists"],
        check: |daemon, _, _| {
            assert_writable(daemon);
            assert_holds(daemon, "twin", CONTENT);
        },
    },
    Operation {
        name: "delete",
        also: &[],
        prepare: |daemon| {
            prepare_mounted(daemon);
            daemon.cli().ok(&["snapshot", "create", "subject@one"]);
            daemon.plugin().unmount(SUBJECT, ID).unwrap();
            daemon.cli().ok(&["snapshot", "rm", "subject@one"]);
        },
        in_use: false,
        run: |daemon| daemon.plugin().remove(SUBJECT),
        already: &["no volume", "no such volume"],
        check: |daemon, _, _| assert_eq!(daemon.plugin().list(), [super::driver::BYSTANDER]),
    },
    Operation {
        name: "mount",
        also: &[],
        // Grown while unmounted, and never mounted before: the mount has to see to both.
        prepare: |daemon| {
            daemon.plugin().create(SUBJECT, GROWING).unwrap();
            daemon.cli().ok(&["volume", "resize", SUBJECT, GROWN]);
        },
        in_use: false,
        run: |daemon| daemon.plugin().mount(SUBJECT, ID).map(drop),
        already: &[],
        check: |daemon, host, _| {
            assert_grown(daemon, host);
            assert_writable(daemon);
        },
    },
    Operation {
        name: "unmount",
        also: &[],
        prepare: prepare_mounted,
        in_use: false,
        run: |daemon| daemon.plugin().unmount(SUBJECT, ID),
        already: &[],
        check: |daemon, host, place| {
            assert_eq!(daemon.plugin().path(SUBJECT).unwrap(), "");
            assert_eq!((place.attached)(host), 1, "only the bystander");
            assert_holds(daemon, SUBJECT, CONTENT);
        },
    },
    Operation {
        name: "snapshot",
        also: &[],
        prepare: prepare_mounted,
        in_use: true,
        run: |daemon| cli(daemon, &["snapshot", "create", "subject@one"]),
        already: &["already"],
        check: |daemon, _, _| {
            assert_writable(daemon);
            daemon.plugin().create("copy", &[("from-snapshot", "subject@one")]).unwrap();
            assert_holds(daemon, "copy", CONTENT);
        },
    },
    Operation {
        name: "delete-snapshot",
        also: &[],
        prepare: |daemon| {
            prepare_mounted(daemon);
            daemon.cli().ok(&["snapshot", "create", "subject@one"]);
        },
        in_use: true,
        run: |daemon| cli(daemon, &["snapshot", "rm", "subject@one"]),
        already: &["no snapshot"],
        check: |daemon, _, _| {
            let left = daemon.cli().ok(&["snapshot", "ls", SUBJECT]).json();
            assert_eq!(left, serde_json::json!([]));
            assert_holds(daemon, SUBJECT, CONTENT);
        },
    },
    Operation {
        name: "restore",
        also: &[],
        prepare: |daemon| {
            prepare_mounted(daemon);
            daemon.cli().ok(&["snapshot", "create", "subject@one"]);
            let path = daemon.plugin().path(SUBJECT).unwrap();
            daemon.write(format!("{path}/file"), "a mistake");
            daemon.plugin().unmount(SUBJECT, ID).unwrap();
        },
        in_use: false,
        run: |daemon| cli(daemon, &["snapshot", "restore", "subject@one"]),
        already: &[],
        check: |daemon, _, _| {
            assert_holds(daemon, SUBJECT, CONTENT);
            let snapshots = daemon.cli().ok(&["snapshot", "ls", SUBJECT]).json();
            let safe = snapshots.as_array().expect("snapshots").iter().any(|snapshot| {
                let name = snapshot["name"].as_str().expect("name");
                let from = format!("{SUBJECT}@{name}");
                let made = daemon.plugin().create("safety", &[("from-snapshot", &from)]);
                made.expect("a volume from each snapshot");
                let holds = content(daemon, "safety");
                daemon.plugin().remove("safety").unwrap();
                name != "one" && holds == "a mistake"
            });
            assert!(safe, "the state before the restore is kept: {snapshots}");
        },
    },
    Operation {
        name: "grow",
        also: &[],
        prepare: |daemon| {
            daemon.plugin().create(SUBJECT, GROWING).unwrap();
            mount_and_write(daemon, SUBJECT);
        },
        in_use: true,
        run: |daemon| cli(daemon, &["volume", "resize", SUBJECT, GROWN]),
        already: &[],
        check: |daemon, host, _| {
            assert_writable(daemon);
            assert_grown(daemon, host);
            assert_holds(daemon, SUBJECT, CONTENT);
        },
    },
    Operation {
        name: "rename",
        also: &[],
        prepare: |daemon| {
            prepare_mounted(daemon);
            daemon.plugin().unmount(SUBJECT, ID).unwrap();
        },
        in_use: false,
        run: |daemon| cli(daemon, &["volume", "rename", SUBJECT, "renamed"]),
        already: &["no volume"],
        check: |daemon, _, _| {
            assert_holds(daemon, "renamed", CONTENT);
            daemon.plugin().get(SUBJECT).expect_err("the old name is free");
        },
    },
    Operation {
        name: "undelete",
        also: &[],
        prepare: |daemon| {
            let options = [("size", "64M"), ("on-remove", "trash")];
            daemon.plugin().create(SUBJECT, &options).unwrap();
            mount_and_write(daemon, SUBJECT);
            daemon.plugin().unmount(SUBJECT, ID).unwrap();
            daemon.plugin().remove(SUBJECT).unwrap();
        },
        in_use: false,
        run: |daemon| cli(daemon, &["volume", "undelete", SUBJECT]),
        already: &["is in the trash"],
        check: |daemon, host, _| {
            assert_holds(daemon, SUBJECT, CONTENT);
            // Back into the trash, where it would stay for a week.
            let uuid = daemon.cli().inspect(SUBJECT)["uuid"].as_str().expect("uuid").to_owned();
            daemon.plugin().remove(SUBJECT).unwrap();
            host.run("rm", &["-r", daemon.loop_dir().join(uuid).to_str().unwrap()]);
        },
    },
    Operation {
        name: "mount-read-only",
        also: &["mount"],
        // Never mounted before and grown since: it is mounted writable first.
        prepare: |daemon| {
            let options = [GROWING, &[("read-only", "true")]].concat();
            daemon.plugin().create(SUBJECT, &options).unwrap();
            daemon.cli().ok(&["volume", "resize", SUBJECT, GROWN]);
        },
        in_use: false,
        run: |daemon| daemon.plugin().mount(SUBJECT, ID).map(drop),
        already: &[],
        check: |daemon, host, _| {
            assert_grown(daemon, host);
            let mountpoint = daemon.plugin().path(SUBJECT).unwrap();
            let mounts = host.mounts();
            let mount =
                mounts.iter().find(|mount| Path::new(&mountpoint).starts_with(&mount.target));
            let options = &mount.expect("mounted").options;
            assert!(options.iter().any(|option| option == "ro"), "{options:?}");
        },
    },
    Operation {
        name: "schedule",
        also: &[],
        prepare: prepare_mounted,
        in_use: true,
        run: |daemon| {
            let args = ["schedule", "set", SUBJECT, "--snapshot-every", "1h", "--keep", "3"];
            cli(daemon, &args)
        },
        already: &[],
        check: |daemon, host, _| {
            assert_writable(daemon);
            let uuid = daemon.cli().inspect(SUBJECT)["uuid"].as_str().expect("uuid").to_owned();
            let volume = host.inside(daemon.loop_dir().join(uuid));
            let description = fs::read_to_string(volume.join("volume.json")).expect("description");
            let description: serde_json::Value = serde_json::from_str(&description).expect("JSON");
            assert_eq!(description["schedule"]["keep"], "3l", "{description}");
            let schedules = daemon.cli().ok(&["schedule", "ls"]).json();
            assert_eq!(
                (&schedules[0]["volume"], &schedules[0]["keep"]),
                (&SUBJECT.into(), &"3l".into())
            );
        },
    },
    Operation {
        name: "snapshot-hook",
        also: &["snapshot"],
        prepare: prepare_mounted,
        in_use: true,
        run: |daemon| cli(daemon, &["snapshot", "create", "subject@one", "--hook", "marks"]),
        already: &["already"],
        check: |daemon, host, _| {
            assert_writable(daemon);
            let path = marks(host);
            let marks = fs::read_to_string(&path).expect("the hook has run");
            let lines: Vec<&str> = marks.lines().collect();
            let count = |word: &str| lines.iter().filter(|line| **line == word).count();
            assert_eq!(lines.last(), Some(&"after"), "{marks}");
            assert!(count("before") <= count("after"), "each has its end: {marks}");
            fs::remove_file(path).expect("remove");
        },
    },
    Operation {
        name: "backup",
        also: &["repository"],
        // The second one: there may be the snapshot of the first for it to retire.
        prepare: prepare_backup,
        in_use: true,
        run: |daemon| cli(daemon, &["backup", "create", SUBJECT]),
        already: &[],
        check: |daemon, host, _| {
            assert_writable(daemon);
            assert_snapshots_of_backups(daemon);
            assert_backups_hold(daemon, host);
        },
    },
    Operation {
        name: "restore-backup",
        also: &[],
        prepare: prepare_backup,
        in_use: false,
        run: |daemon| {
            let backups = backups(&daemon.cli());
            daemon.plugin().create("restored", &[("from-backup", &backups[0])])
        },
        already: &[],
        check: |daemon, host, _| {
            assert_holds(daemon, "restored", CONTENT);
            assert_backups_hold(daemon, host);
        },
    },
];

/// The subject, mounted, with a backup.
fn prepare_backup(daemon: &Daemon<'_>) {
    prepare_mounted(daemon);
    let cli = daemon.cli();
    cli.ok(&["repository", "init", "main"]);
    cli.ok(&["backup", "create", SUBJECT]);
}

/// Of the snapshots that are cut for backups none stays where it costs room, and one where it is free.
fn assert_snapshots_of_backups(daemon: &Daemon<'_>) {
    let snapshots = daemon.cli().ok(&["snapshot", "ls", SUBJECT]).json();
    let kept = usize::from(daemon.cli().inspect(SUBJECT)["backend"] == "thin");
    assert_eq!(snapshots.as_array().expect("snapshots").len(), kept, "{snapshots}");
}

/// Each backup there is can be restored, and restic finds nothing wrong. Removes them.
fn assert_backups_hold(daemon: &Daemon<'_>, host: &Host) {
    let cli = daemon.cli();
    for id in backups(&cli) {
        cli.ok(&["backup", "restore", &id, "whole"]);
        assert_holds(daemon, "whole", CONTENT);
        daemon.plugin().remove("whole").unwrap();
    }
    Repository::of(host).assert_sound();
    for id in backups(&cli) {
        cli.ok(&["backup", "rm", &id]);
    }
}

/// Where the programs of the hook leave what they have done.
pub(crate) fn marks(host: &Host) -> PathBuf {
    host.dir().join("marks")
}

fn cli(daemon: &Daemon<'_>, args: &[&str]) -> Result<(), String> {
    let run = daemon.cli().run(args);
    if run.code == 0 { Ok(()) } else { Err(format!("{}{}", run.stdout, run.stderr)) }
}

/// The subject, mounted by the container, with content.
fn prepare_mounted(daemon: &Daemon<'_>) {
    daemon.plugin().create(SUBJECT, &[("size", "64M")]).unwrap();
    mount_and_write(daemon, SUBJECT);
}

fn mount_and_write(daemon: &Daemon<'_>, volume: &str) {
    let mountpoint = daemon.plugin().mount(volume, ID).unwrap();
    daemon.write(mountpoint.join("file"), CONTENT);
}

fn content(daemon: &Daemon<'_>, volume: &str) -> String {
    let plugin = daemon.plugin();
    let mountpoint = plugin.mount(volume, "reader").unwrap();
    let content = daemon.read(mountpoint.join("file"));
    plugin.unmount(volume, "reader").unwrap();
    content
}

#[track_caller]
fn assert_holds(daemon: &Daemon<'_>, volume: &str, expected: &str) {
    assert_eq!(content(daemon, volume), expected, "{volume}");
}

/// A filesystem that was left frozen would hang this.
fn assert_writable(daemon: &Daemon<'_>) {
    let mountpoint = daemon.plugin().path(SUBJECT).unwrap();
    daemon.write(format!("{mountpoint}/later"), "written after the kill");
}

fn assert_grown(daemon: &Daemon<'_>, host: &Host) {
    assert_eq!(daemon.cli().inspect(SUBJECT)["size"], 640_u64 << 20);
    let mountpoint = daemon.plugin().path(SUBJECT).unwrap();
    let blocks = host.run("stat", &["-f", "-c", "%b %S", &mountpoint]);
    let numbers: Vec<u64> = blocks.split_whitespace().map(|n| n.parse().unwrap()).collect();
    assert!(numbers[0] * numbers[1] > 512 << 20, "the filesystem has not grown: {blocks}");
}
