//! What the thin backend costs, as ratios to `dmsetup`, `mkfs` and `mount` by hand in the same pool and
//! the same run (`docs/benchmarks.md`). `scripts/bench-thin` runs it in a lab host, because it needs
//! device-mapper; `scripts/bench-thin NAME...` runs some of: create, snapshot, many, chunks.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a benchmark that fails should stop")]

#[path = "common/mod.rs"]
mod common;

use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::{BINARY, Client, median, millis, run, summary, timed};

/// `O_DIRECT` of linux/fcntl.h on x86-64.
const O_DIRECT: i32 = 0o40000;

fn main() {
    let chosen: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    assert!(
        Path::new("/dev/mapper/control").exists(),
        "this needs device-mapper: scripts/bench-thin runs it in a lab host"
    );
    let all: [(&str, fn()); 4] =
        [("create", create), ("snapshot", snapshot), ("many", many), ("chunks", chunks)];
    for (name, run) in all {
        if chosen.is_empty() || chosen.iter().any(|one| one == name) {
            println!("\n## {name}");
            run();
        }
    }
}

/// A daemon with a pool in a directory of its own; all of it ends with the value.
struct Daemon {
    root: tempfile::TempDir,
    child: Child,
}

impl Daemon {
    fn with_chunks(chunk_size: &str) -> Self {
        let root = tempfile::tempdir().unwrap();
        let child = Command::new(BINARY)
            .arg("daemon")
            .args([
                "--default-backend",
                "thin",
                "--thin-size",
                "4G",
                "--thin-chunk-size",
                chunk_size,
            ])
            .arg("--thin-file")
            .arg(root.path().join("pool"))
            .arg("--state-dir")
            .arg(root.path().join("state"))
            .arg("--runtime-dir")
            .arg(root.path().join("run"))
            .arg("--plugin-socket")
            .arg(root.path().join("plugin.sock"))
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(root.path().join("log")).unwrap())
            .spawn()
            .unwrap();
        let daemon = Self { root, child };
        // Answered once the pool is there, which Activate does not wait for.
        daemon.plugin().post("/VolumeDriver.List", "{}");
        daemon
    }

    fn new() -> Self {
        Self::with_chunks("64K")
    }

    fn plugin(&self) -> Client {
        Client::connect(&self.root.path().join("plugin.sock"))
    }

    fn admin(&self) -> Client {
        Client::connect(&self.root.path().join("run/holdfast.sock"))
    }

    /// The pool's name in device-mapper.
    fn pool(&self) -> String {
        let pools = run("dmsetup", &["ls", "--target", "thin-pool"]);
        let name = pools.split_whitespace().find(|name| name.starts_with("holdfast-"));
        name.expect("a pool").to_owned()
    }

    /// The pool's device number, which tables name it by.
    fn pool_number(&self) -> String {
        let columns = ["info", "--columns", "--noheadings", "--options", "major,minor"];
        run("dmsetup", &[&columns[..], &[&self.pool()]].concat())
    }

    fn create(&self, plugin: &mut Client, name: &str, size: &str) {
        let body = format!(r#"{{"Name":"{name}","Opts":{{"size":"{size}"}}}}"#);
        plugin.post("/VolumeDriver.Create", &body);
    }

    fn mount(&self, plugin: &mut Client, name: &str) -> PathBuf {
        let body = format!(r#"{{"Name":"{name}","ID":"a"}}"#);
        let answer = plugin.post("/VolumeDriver.Mount", &body);
        let answer: serde_json::Value = serde_json::from_slice(&answer).unwrap();
        answer["Mountpoint"].as_str().unwrap().into()
    }

    fn remove(&self, plugin: &mut Client, name: &str) {
        plugin.post("/VolumeDriver.Unmount", &format!(r#"{{"Name":"{name}","ID":"a"}}"#));
        plugin.post("/VolumeDriver.Remove", &format!(r#"{{"Name":"{name}"}}"#));
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let pid = nix::unistd::Pid::from_raw(self.child.id().try_into().unwrap());
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::SIGTERM);
        let _ = self.child.wait();
    }
}

/// By hand: a thin device with a filesystem, mounted.
fn create_by_hand(pool: &str, number: &str, id: u32, target: &str) {
    let name = format!("hand-{id}");
    let device = format!("/dev/mapper/{name}");
    run("dmsetup", &["message", pool, "0", &format!("create_thin {id}")]);
    run("dmsetup", &["create", &name, "--table", &format!("0 2097152 thin {number} {id}")]);
    run("mkfs.ext4", &["-q", &device]);
    std::fs::create_dir(target).unwrap();
    run("mount", &[&device, target]);
}

fn remove_by_hand(pool: &str, id: u32, target: &str) {
    run("umount", &[target]);
    run("dmsetup", &["remove", &format!("hand-{id}")]);
    run("dmsetup", &["message", pool, "0", &format!("delete {id}")]);
}

/// Create and Mount of a 1 GiB ext4 volume against the same commands by hand, in turn.
fn create() {
    let daemon = Daemon::new();
    let (mut plugin, pool, number) = (daemon.plugin(), daemon.pool(), daemon.pool_number());
    let scratch = tempfile::tempdir().unwrap();
    let (mut ours, mut hands) = (Vec::new(), Vec::new());
    for round in 0..17u32 {
        let name = format!("v{round}");
        let our = timed(|| {
            daemon.create(&mut plugin, &name, "1G");
            daemon.mount(&mut plugin, &name);
        });
        let target = scratch.path().join(&name);
        let (id, target) = (1_000_000 + round, target.to_str().unwrap());
        let hand = timed(|| create_by_hand(&pool, &number, id, target));
        remove_by_hand(&pool, id, target);
        daemon.remove(&mut plugin, &name);
        if round >= 2 {
            ours.push(our);
            hands.push(hand);
        }
    }
    let pairs = ours.iter().zip(&hands).map(|(one, two)| one.as_secs_f64() / two.as_secs_f64());
    let ratio = median(pairs.collect());
    println!(
        "Create and Mount of 1 GiB ext4: median {:.1} ms; dmsetup, mkfs.ext4 and mount by hand: median {:.1} ms; \
         ratio, median of pairs: {ratio:.2}",
        millis(summary(ours).median),
        millis(summary(hands).median),
    );
}

/// A snapshot of a mounted volume against suspend, message and resume by hand, for three sizes.
fn snapshot() {
    let daemon = Daemon::new();
    let (mut plugin, mut admin, pool) = (daemon.plugin(), daemon.admin(), daemon.pool());
    println!("| size | Holdfast ms | by hand ms | ratio |");
    println!("|---|---|---|---|");
    for size in ["1G", "100G", "1T"] {
        let volume = format!("v{size}");
        daemon.create(&mut plugin, &volume, size);
        let mountpoint = daemon.mount(&mut plugin, &volume);
        std::fs::write(mountpoint.join("file"), vec![7; 32 << 20]).unwrap();
        run("sync", &["-f", mountpoint.to_str().unwrap()]);
        let thins = run("dmsetup", &["ls", "--target", "thin"]);
        let device = thins
            .lines()
            .filter_map(|line| line.split_whitespace().next())
            .find(|name| name.starts_with("holdfast-") && !name.ends_with("-records"))
            .expect("the volume's device");
        let table = run("dmsetup", &["table", device]);
        let origin = table.split_whitespace().last().unwrap().to_owned();
        let (mut ours, mut hands) = (Vec::new(), Vec::new());
        for round in 0..17u32 {
            let path = format!("/v1/volumes/{volume}/snapshots");
            let our = timed(|| admin.post(&path, &format!(r#"{{"name":"s{round}"}}"#)));
            let id = 2_000_000 + round;
            let hand = timed(|| {
                run("dmsetup", &["suspend", device]);
                run("dmsetup", &["message", &pool, "0", &format!("create_snap {id} {origin}")]);
                run("dmsetup", &["resume", device]);
            });
            run("dmsetup", &["message", &pool, "0", &format!("delete {id}")]);
            admin.send("DELETE", &format!("{path}/s{round}"), "");
            if round >= 2 {
                ours.push(our);
                hands.push(hand);
            }
        }
        let pairs = ours.iter().zip(&hands).map(|(one, two)| one.as_secs_f64() / two.as_secs_f64());
        let ratio = median(pairs.collect());
        println!(
            "| {size} | {:.1} | {:.1} | {ratio:.2} |",
            millis(summary(ours).median),
            millis(summary(hands).median),
        );
        daemon.remove(&mut plugin, &volume);
    }
}

/// List, create and mount with 10 volumes in the pool and with 1,000.
fn many() {
    let daemon = Daemon::new();
    let mut plugin = daemon.plugin();
    println!("| volumes | List ms | Create ms | Mount ms |");
    println!("|---|---|---|---|");
    let mut made = 0;
    for count in [10, 1000] {
        while made < count {
            daemon.create(&mut plugin, &format!("filler{made}"), "16M");
            made += 1;
        }
        let list = (0..20).map(|_| timed(|| plugin.post("/VolumeDriver.List", "{}")));
        let list = summary(list.collect());
        let (mut creates, mut mounts) = (Vec::new(), Vec::new());
        for round in 0..15 {
            let name = format!("v{round}");
            creates.push(timed(|| daemon.create(&mut plugin, &name, "1G")));
            mounts.push(timed(|| daemon.mount(&mut plugin, &name)));
            daemon.remove(&mut plugin, &name);
        }
        println!(
            "| {count} | {:.2} | {:.1} | {:.1} |",
            millis(list.median),
            millis(summary(creates).median),
            millis(summary(mounts).median),
        );
    }
    for filler in 0..made {
        plugin.post("/VolumeDriver.Remove", &format!(r#"{{"Name":"filler{filler}"}}"#));
    }
}

/// What the size of chunks costs: the first write to a chunk that a snapshot shares, and what scattered
/// small writes take from the pool.
fn chunks() {
    println!("| chunks | new chunk us | shared chunk us | taken by 256 writes of 4 KiB |");
    println!("|---|---|---|---|");
    for chunk_size in ["64K", "128K", "256K", "512K", "1M", "2M"] {
        let daemon = Daemon::with_chunks(chunk_size);
        let (mut plugin, mut admin, pool) = (daemon.plugin(), daemon.admin(), daemon.pool());
        daemon.create(&mut plugin, "v", "1G");
        let mountpoint = daemon.mount(&mut plugin, "v");
        let path = mountpoint.join("file");
        let file = std::fs::File::options()
            .create(true)
            .truncate(true)
            .write(true)
            .custom_flags(O_DIRECT)
            .open(&path)
            .unwrap();
        let block = Aligned([7; 4096]);
        let write_all = || -> Duration {
            let times = (0..256u64).map(|n| {
                // Each in a chunk of its own, whatever the size of chunks.
                timed(|| file.write_all_at(&block.0, n * (3 << 20) % (768 << 20)).unwrap())
            });
            summary(times.collect()).median
        };
        let new = write_all();
        file.sync_all().unwrap();
        admin.post("/v1/volumes/v/snapshots", r#"{"name":"s"}"#);
        let before = used(&pool);
        let shared = write_all();
        file.sync_all().unwrap();
        let taken = used(&pool) - before;
        let chunk_kib = match chunk_size.split_at(chunk_size.len() - 1) {
            (number, "M") => number.parse::<u64>().unwrap() << 10,
            (number, _) => number.parse::<u64>().unwrap(),
        };
        println!(
            "| {chunk_size} | {:.0} | {:.0} | {} MiB |",
            new.as_secs_f64() * 1e6,
            shared.as_secs_f64() * 1e6,
            (taken * chunk_kib) >> 10,
        );
        drop(file);
        admin.send("DELETE", "/v1/volumes/v/snapshots/s", "");
        daemon.remove(&mut plugin, "v");
    }
}

#[repr(align(4096))]
struct Aligned([u8; 4096]);

/// Chunks of the pool's data in use.
fn used(pool: &str) -> u64 {
    let status = run("dmsetup", &["status", pool]);
    let data = status.split_whitespace().nth(5).unwrap();
    data.split_once('/').unwrap().0.parse().unwrap()
}
