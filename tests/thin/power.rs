//! A pool under load loses its power again and again, on the same disks.
//!
//! Each round boots the host, holds what is there to what was acknowledged before, checks the metadata with
//! the tools, and goes on with the load: containers write and sync, snapshots, clones and volumes come
//! and go, a mounted volume grows. The journal of what was acknowledged is outside the host. Somewhere in
//! the load the host is killed.
//!
//! Killing it loses what the kernel had not written, but keeps every write that a disk was given, flushed
//! or not. That is one test. In the other one a disk loses those too: catalog, metadata and data lie on one
//! disk below dm-log-writes, which logs each write when a flush has made it durable (or at once where it
//! asked for that itself, by FUA). A mark in that log says until when something was acknowledged, and the
//! power goes just before the first flush after it has done its work. The disk is made anew from its
//! content at the boot: all writes before the mark, those after it that asked to be durable at once, and of
//! the others any sectors, as no flush came between them. Sectors have 4 KiB. What was acknowledged before
//! the mark was set has to be there; what was begun until the end may be.
//!
//! The daemon has to come up by itself each time.

mod journal;
mod load;
mod log_writes;

use std::path::Path;
use std::process::Command;

use crate::common::host::checked;
use crate::common::lab::Lab;
use crate::common::wait;
use journal::Journal;

/// Rounds in `scripts/test`; `scripts/soak` sets more.
const ROUNDS: u64 = 3;
const SEED: u64 = 7;

/// What a disk does with writes that were not flushed when the power goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unflushed {
    Kept,
    Lost,
}

#[test]
fn a_pool_survives_losses_of_power() {
    lose_power_again_and_again(Unflushed::Kept);
}

#[test]
fn a_pool_survives_losses_of_power_and_of_what_was_not_flushed() {
    lose_power_again_and_again(Unflushed::Lost);
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().expect("a number"))
}

/// One seed, one sequence of numbers (SplitMix64).
#[derive(Debug, Clone)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

/// The one disk and its parts; they are made anew at each boot.
const PARTS: &str = r#"
    sectors=$(blockdev --getsz "$disk")
    case $unflushed in
        Kept) table="linear $disk 0" ;;
        Lost)
            # The order of the log is that of what it says.
            echo none >"/sys/block/${log##*/}/queue/scheduler"
            table="log-writes $disk $log"
            ;;
    esac
    dmsetup create disk --table "0 $sectors $table"
    part() { dmsetup create "$1" --table "0 $3 linear /dev/mapper/disk $2"; }
    part state 0 524288
    part metadata 524288 131072
    part data 655360 $((sectors - 655360))
    [[ $round != 0 ]] || mkfs.ext4 -q /dev/mapper/state
    mkdir /state
    mount /dev/mapper/state /state"#;

fn lose_power_again_and_again(unflushed: Unflushed) {
    let seed = number("HOLDFAST_SOAK_SEED", SEED);
    let rounds = number("HOLDFAST_SOAK_ROUNDS", ROUNDS);
    let mut random = Random(seed);
    let lab = Lab::new();
    let journal = Journal::new(lab.dir());
    let (disk, log) = (lab.disk(4096), lab.disk(16 << 10));
    // What is on the disk when a round begins.
    let before = lab.dir().join("before");
    copy(disk.file(), &before);
    let modules = ["dm-thin-pool", "dm-log-writes"];
    let host = lab.host("a").memory(1024).modules(&modules).disk(&disk).disk(&log).boot();
    for round in 0..=rounds {
        if round > 0 {
            host.boot_again();
        }
        let settings = format!(
            "unflushed={unflushed:?} round={round} disk={} log={}",
            host.device(&disk).display(),
            host.device(&log).display()
        );
        host.sh(&format!("{settings}\n{PARTS}"));
        let last = round == rounds;
        let load = host
            .test_command("power::load::in_lab::round")
            .env(load::SEED, &random.next().to_string())
            .env(load::LAST, if last { "1" } else { "" })
            .spawn();
        let alive = || {
            if let Some(ended) = load.ended() {
                panic!(
                    "seed {seed}, round {round}, {unflushed:?}: {}{}",
                    ended.stdout, ended.stderr
                );
            }
        };
        if last {
            let ended = load.wait();
            assert_eq!(
                ended.code, 0,
                "seed {seed}, after the last: {}{}",
                ended.stdout, ended.stderr
            );
            break;
        }
        wait::until_true("the load begins", || {
            alive();
            journal.loads() > round
        });
        let enough = journal.lines() + 10 + random.below(400);
        wait::until_true("the load goes on", || {
            alive();
            journal.lines() >= enough
        });
        match unflushed {
            Unflushed::Kept => host.lose_power(),
            Unflushed::Lost => {
                let answered = journal.lengths();
                let mut written = log_writes::Log::open(log.file());
                host.run("dmsetup", &["message", "disk", "0", "mark", "cut"]);
                wait::until_true("a flush after the mark is in the log", || {
                    alive();
                    written.has_cut()
                });
                host.lose_power();
                journal.forget_answers_after(&answered);
                written.apply(&before, || random.below(2) == 0);
                copy(&before, disk.file());
                log_writes::clear(log.file());
            }
        }
        eprintln!(
            "seed {seed}, {unflushed:?}: power lost in round {round}, {} lines",
            journal.lines()
        );
    }
}

fn copy(from: &Path, to: &Path) {
    let paths = [from, to].map(|path| path.to_str().expect("UTF-8"));
    checked(Command::new("cp").args(["--sparse=always", "--reflink=auto"]), &paths);
}
