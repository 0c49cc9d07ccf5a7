//! What runs in the host: it holds the pool to the journal, then works on it until the power goes.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::Random;
use super::journal::Journal;
use crate::common::cli::Cli;
use crate::common::host::checked;
use crate::common::lab::SHARE;
use crate::common::plugin::PluginClient;
use crate::common::{HOLDFAST, wait};
use crate::pool;

/// The environment variable with the round's seed, and the one that says that there is no load any more.
pub(super) const SEED: &str = "HOLDFAST_POWER_SEED";
pub(super) const LAST: &str = "HOLDFAST_POWER_LAST";

/// Volumes that containers write to all the time; the first one grows.
const BUSY: [&str; 2] = ["busy-0", "busy-1"];
const FIRST_SIZE: u64 = 192 << 20;
const LARGEST_SIZE: u64 = 512 << 20;
/// A volume whose content is a known one at each snapshot.
const STILL: &str = "still";

const RECORD: usize = 4096;
/// The thread that makes snapshots, clones and volumes.
const MANAGER: &str = "manager";

mod in_lab {
    #[test]
    fn round() {
        crate::common::lab::assert_inside();
        super::round();
    }
}

fn round() {
    let mut random = Random(super::number(SEED, 0));
    let journal = Journal::new(Path::new(SHARE));
    let daemon = Daemon::start();
    let mut known = Known::read(&journal);
    if journal.loads() == 0 {
        make_volumes(&daemon, &journal, &mut known);
    }
    verify(&daemon, &journal, &mut known);
    daemon.end();
    assert_metadata_sound();
    if std::env::var(LAST).is_ok_and(|last| !last.is_empty()) {
        return;
    }
    let daemon = Daemon::start();
    journal.begin_load();
    std::thread::scope(|scope| {
        for volume in BUSY {
            let (daemon, journal) = (&daemon, &journal);
            scope.spawn(move || write_records(daemon, journal, volume));
        }
        manage(&daemon, &journal, &mut known, &mut random);
    });
}

/// The daemon, on the disks.
struct Daemon {
    child: Child,
    cli: Cli,
    plugin: PluginClient,
}

impl Daemon {
    fn start() -> Self {
        let runtime = Path::new("/run/holdfast");
        let log = File::options().append(true).create(true).open("/run/holdfast.log").expect("log");
        let child = Command::new(HOLDFAST)
            .args(["daemon", "--state-dir", "/state/holdfast", "--runtime-dir"])
            .arg(runtime)
            .arg("--plugin-socket")
            .arg(runtime.join("plugin.sock"))
            .args(["--default-backend", "thin", "--thin-data", "/dev/mapper/data"])
            .args(["--thin-metadata", "/dev/mapper/metadata"])
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("log"))
            .stderr(log)
            .spawn()
            .expect("holdfast");
        let plugin = PluginClient { socket: runtime.join("plugin.sock") };
        let mut daemon = Self { child, cli: Cli { socket: runtime.join("holdfast.sock") }, plugin };
        wait::until_true("the daemon answers", || {
            let ended = daemon.child.try_wait().expect("wait");
            assert!(ended.is_none(), "the daemon ended at its start: {ended:?}");
            daemon.cli.run(&["status"]).code == 0
        });
        daemon
    }

    fn end(mut self) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).expect("a process id"));
        kill(pid, Signal::SIGTERM).expect("kill");
        let status = wait::until("the daemon ends", || self.child.try_wait().expect("wait"));
        assert!(status.success(), "{status}");
    }

    fn snapshots(&self) -> Vec<String> {
        let list = self.cli.ok(&["snapshot", "ls"]).json();
        let of = |snapshot: &serde_json::Value, key: &str| {
            snapshot[key].as_str().expect("a string").to_owned()
        };
        let list = list.as_array().expect("snapshots");
        list.iter().map(|s| format!("{}@{}", of(s, "volume"), of(s, "name"))).collect()
    }

    /// Gives `look` the file with the content of a volume.
    fn with_content<T>(&self, volume: &str, look: impl FnOnce(&Path) -> T) -> T {
        let mountpoint = self.plugin.mount(volume, "look").unwrap();
        let seen = look(&mountpoint.join("content"));
        self.plugin.unmount(volume, "look").unwrap();
        seen
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- {}", fs::read_to_string("/run/holdfast.log").unwrap_or_default());
            let kernel = Command::new("dmesg").output().expect("dmesg");
            eprintln!("--- {}", String::from_utf8_lossy(&kernel.stdout));
        }
    }
}

/// What there is of a thing, as the journal tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Thing {
    /// It was begun or was being removed: it is whole or not there.
    Maybe,
    There,
}

/// What the manager's part of the journal says.
#[derive(Debug, Default)]
struct Known {
    /// Volumes and snapshots by name.
    things: BTreeMap<String, Thing>,
    /// The size of the volume that grows: what was acknowledged, and what was begun.
    size: u64,
    size_begun: u64,
    /// The last number that was used in a name.
    number: u64,
}

impl Known {
    fn read(journal: &Journal) -> Self {
        let mut known = Self { size: FIRST_SIZE, size_begun: FIRST_SIZE, ..Self::default() };
        for line in journal.read(MANAGER) {
            known.apply(&line);
        }
        known
    }

    fn apply(&mut self, line: &str) {
        let words: Vec<_> = line.split(' ').collect();
        match words[..] {
            ["begin", "make" | "remove", thing] => {
                self.things.insert(thing.to_owned(), Thing::Maybe);
                let number = thing.rsplit(|c: char| !c.is_ascii_digit()).next();
                let number = number.and_then(|digits| digits.parse().ok()).unwrap_or_default();
                self.number = self.number.max(number);
            }
            ["done", "make", thing] => {
                self.things.insert(thing.to_owned(), Thing::There);
            }
            ["done", "remove", thing] => {
                self.things.remove(thing);
            }
            ["begin", "grow", size] => self.size_begun = size.parse().expect("a size"),
            ["done", "grow", size] => self.size = size.parse().expect("a size"),
            _ => panic!("{line:?} in the journal"),
        }
    }

    fn note(&mut self, journal: &Journal, line: &str) {
        journal.write(MANAGER, line);
        self.apply(line);
    }

    /// Asks for something, and writes down that it is asked for and that it was done.
    fn change(&mut self, journal: &Journal, what: &str, ask: impl FnOnce()) {
        self.note(journal, &format!("begin {what}"));
        ask();
        self.note(journal, &format!("done {what}"));
    }

    fn there(&self, begins: &str) -> Vec<String> {
        let names = self.things.iter().filter(|(_, thing)| **thing == Thing::There);
        names.map(|(name, _)| name.clone()).filter(|name| name.starts_with(begins)).collect()
    }
}

fn make_volumes(daemon: &Daemon, journal: &Journal, known: &mut Known) {
    let size = FIRST_SIZE.to_string();
    for (volume, size) in [(BUSY[0], &*size), (BUSY[1], &*size), (STILL, "64M")] {
        known.change(journal, &format!("make {volume}"), || {
            daemon.plugin.create(volume, &[("size", size)]).unwrap();
            daemon.with_content(volume, |path| {
                File::create_new(path).and_then(|file| file.sync_all()).expect("a file");
                let directory = path.parent().expect("the volume");
                File::open(directory).and_then(|file| file.sync_all()).expect("fsync");
            });
        });
    }
}

/// Holds what is there to what the journal says.
fn verify(daemon: &Daemon, journal: &Journal, known: &mut Known) {
    wait::until_true("what was interrupted is finished or undone", || {
        let operations = daemon.cli.ok(&["operation", "ls"]).json();
        let mut operations = operations.as_array().expect("operations").iter();
        operations.all(|operation| matches!(operation["state"].as_str(), Some("done" | "failed")))
    });
    assert_eq!(daemon.cli.ok(&["status"]).json()["warnings"], serde_json::json!([]));
    assert_eq!(pool::suspended_devices(), Vec::<String>::new());

    let mut listed = daemon.plugin.list();
    listed.extend(daemon.snapshots());
    for name in &listed {
        assert!(known.things.contains_key(name), "{name} was removed, or never made");
        assert_holds(daemon, journal, name);
    }
    for (name, thing) in known.things.clone() {
        let there = listed.contains(&name);
        assert!(there || thing == Thing::Maybe, "{name} is lost; there are {listed:?}");
        if thing == Thing::Maybe {
            let outcome = if there { "make" } else { "remove" };
            known.note(journal, &format!("done {outcome} {name}"));
        }
    }
    let size = daemon.cli.inspect(BUSY[0])["size"].as_u64().expect("a size");
    assert!((known.size..=known.size_begun).contains(&size), "{size}: {known:?}");

    assert_eq!(pool::volume_devices(), Vec::<String>::new());
    assert_eq!(pool::thin_ids().len(), 1 + listed.len(), "the records and {listed:?}");
}

fn assert_holds(daemon: &Daemon, journal: &Journal, name: &str) {
    if let Some((volume, snapshot)) = name.split_once('@') {
        daemon.plugin.create("look", &[("from-snapshot", name)]).unwrap();
        daemon.with_content("look", |path| match snapshot.split(['a', 'v', '-']).nth(1) {
            Some(version) if volume == STILL => assert_is_version(path, version, name),
            Some(record) => assert_has_records(path, volume, record.parse().expect("a number")),
            None => panic!("{name}?"),
        });
        daemon.plugin.remove("look").unwrap();
        return;
    }
    daemon.with_content(name, |path| {
        if BUSY.contains(&name) {
            assert_has_records(path, name, last_record(journal, name));
        } else if let Some((version, _)) =
            name.strip_prefix("copy-").and_then(|n| n.split_once('-'))
        {
            assert_is_version(path, version, name);
        }
    });
}

/// The last record of a volume that was acknowledged; 0 if none was.
fn last_record(journal: &Journal, volume: &str) -> u64 {
    let lines = journal.read(volume);
    let last = lines.last().and_then(|line| line.strip_prefix("done "));
    last.map_or(0, |number| number.parse().expect("a number"))
}

/// What a record holds: bytes that no other record of any volume has.
fn record(volume: &str, number: u64) -> Vec<u8> {
    let volume = volume.bytes().fold(number, |sum, byte| sum.rotate_left(8) ^ u64::from(byte));
    let mut random = Random(volume ^ number.rotate_left(32));
    (0..RECORD / 8).flat_map(|_| random.next().to_le_bytes()).collect()
}

fn assert_has_records(path: &Path, volume: &str, last: u64) {
    let bytes = fs::read(path).expect("the content");
    for (block, number) in bytes.chunks(RECORD).zip(1..=last) {
        assert!(block == record(volume, number), "{volume} has lost record {number} of {last}");
    }
    assert!(bytes.len() as u64 >= last * RECORD as u64, "{volume} has {} bytes", bytes.len());
}

/// The content of the volume that has known ones.
fn version(number: u64) -> Vec<u8> {
    (0..64).flat_map(|block| record(STILL, number << 8 | block)).collect()
}

fn assert_is_version(path: &Path, number: &str, name: &str) {
    let expected = version(number.parse().expect("a number"));
    assert!(fs::read(path).expect("the content") == expected, "{name} is not what it was");
}

/// The content's file of a volume that is mounted for as long as there is power.
fn content_of(daemon: &Daemon, volume: &str) -> File {
    let path: PathBuf = daemon.plugin.mount(volume, "container").unwrap().join("content");
    File::options().write(true).open(path).expect("the content")
}

fn write_records(daemon: &Daemon, journal: &Journal, volume: &str) {
    /// So that they fit.
    const MOST: u64 = (FIRST_SIZE / 4 * 3) / RECORD as u64;
    let file = content_of(daemon, volume);
    for number in last_record(journal, volume) + 1..=MOST {
        file.write_all_at(&record(volume, number), (number - 1) * RECORD as u64).expect("write");
        file.sync_all().expect("fsync");
        journal.write(volume, &format!("done {number}"));
    }
}

/// Makes and removes, one after the other, until the power goes.
fn manage(daemon: &Daemon, journal: &Journal, known: &mut Known, random: &mut Random) {
    const SNAPSHOTS: usize = 5;
    const COPIES: usize = 3;
    let still = content_of(daemon, STILL);
    let plugin = &daemon.plugin;
    loop {
        let number = known.number + 1;
        let (snapshots, copies) = (known.there(STILL), known.there("copy-"));
        let snapshots: Vec<_> = snapshots.into_iter().chain(known.there("busy-")).collect();
        let snapshots: Vec<_> = snapshots.into_iter().filter(|name| name.contains('@')).collect();
        let any = |random: &mut Random, of: &[String]| {
            of[usize::try_from(random.below(of.len() as u64)).expect("small")].clone()
        };
        match random.below(6) {
            0 | 1 if snapshots.len() >= SNAPSHOTS => {
                let name = any(random, &snapshots);
                known.change(journal, &format!("remove {name}"), || {
                    daemon.cli.ok(&["snapshot", "rm", &name]);
                });
            }
            0 => {
                still.write_all_at(&version(number), 0).expect("write");
                still.sync_all().expect("fsync");
                let name = format!("{STILL}@v{number}");
                known.change(journal, &format!("make {name}"), || {
                    daemon.cli.ok(&["snapshot", "create", &name]);
                });
            }
            1 => {
                let volume = BUSY[usize::try_from(random.below(2)).expect("small")];
                let name = format!("{volume}@a{}-{number}", last_record(journal, volume));
                known.change(journal, &format!("make {name}"), || {
                    daemon.cli.ok(&["snapshot", "create", &name]);
                });
            }
            2 if copies.len() >= COPIES => {
                let name = any(random, &copies);
                known.change(journal, &format!("remove {name}"), || plugin.remove(&name).unwrap());
            }
            2 => {
                let of_still: Vec<_> =
                    snapshots.into_iter().filter(|name| name.starts_with(STILL)).collect();
                if of_still.is_empty() {
                    continue;
                }
                let source = any(random, &of_still);
                let version = source.trim_start_matches("still@v");
                let name = format!("copy-{version}-{number}");
                known.change(journal, &format!("make {name}"), || {
                    plugin.create(&name, &[("from-snapshot", &source)]).unwrap();
                });
            }
            3 if known.size_begun < LARGEST_SIZE => {
                let size = known.size_begun + (1 << 20);
                known.change(journal, &format!("grow {size}"), || {
                    daemon.cli.ok(&["volume", "resize", BUSY[0], &size.to_string()]);
                });
            }
            _ => {
                let name = format!("fleeting-{number}");
                known.change(journal, &format!("make {name}"), || {
                    plugin.create(&name, &[("size", "32M")]).unwrap();
                });
                known.change(journal, &format!("remove {name}"), || plugin.remove(&name).unwrap());
            }
        }
    }
}

/// The pool is stopped; its metadata begins behind the header.
fn assert_metadata_sound() {
    let device = Path::new("/dev/mapper/metadata");
    let sectors = checked(&mut Command::new("blockdev"), &["--getsz", "/dev/mapper/metadata"]);
    let sectors: u64 = sectors.trim().parse().expect("a number");
    let table = format!("0 {} linear {} 2048", sectors - 2048, device.display());
    checked(&mut Command::new("dmsetup"), &["create", "check", "--readonly", "--table", &table]);
    checked(&mut Command::new("thin_check"), &["/dev/mapper/check"]);
    checked(&mut Command::new("dmsetup"), &["remove", "check"]);
}
