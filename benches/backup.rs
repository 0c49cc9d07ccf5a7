//! What backups cost, as ratios to `restic` on the same image and the same disk in the same run
//! (`docs/benchmarks.md`). `cargo bench --bench backup NAME...` runs some of: full, sparse.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a benchmark that fails should stop")]
#![allow(clippy::cast_possible_truncation, reason = "what is measured here is small")]

#[path = "common/mod.rs"]
mod common;

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use common::{median, timed};
use holdfast::backend::SnapshotImage;
use holdfast::id::{Generation, SnapshotUuid, VolumeUuid};
use holdfast::model::{Backup, Content, Snapshot, SnapshotOrigin, Volume, VolumeState};
use holdfast::options::{FilesystemKind, OnRemove, Ownership};
use holdfast::repository::{
    Base, Image, ImageJob, Layout, Limits, Location, Manifest, Repository, RepositorySettings,
    S3Settings, Secret, SecretSource, Target,
};
use holdfast::units::ByteSize;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const PASSWORD: &str = "secret";

fn main() {
    let chosen: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let all: [(&str, fn()); 2] = [("full", full), ("sparse", sparse)];
    for (name, run) in all {
        if chosen.is_empty() || chosen.iter().any(|one| one == name) {
            println!("\n## {name}");
            run();
        }
    }
}

struct World {
    runtime: tokio::runtime::Runtime,
    place: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        // Of the disk that the target directory is on: /tmp may be memory.
        let place = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        Self { runtime, place }
    }

    fn disk(&self) -> &str {
        self.place.path().to_str().unwrap()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.place.path().join(name)
    }

    fn repository(&self, name: &str) -> Repository {
        let settings = RepositorySettings {
            name: "main".parse().unwrap(),
            node: "node-1".to_owned(),
            location: Location::Directory(self.path(name)),
            password: SecretSource::Given(Secret::new(PASSWORD)),
            cache: self.path("cache"),
            mountpoint: self.path("mountpoint"),
            limits: Limits { upload: None, download: None, connections: 8 },
            s3: S3Settings::default(),
        };
        let repository = Repository::new(settings, self.runtime.handle().clone());
        repository.init().unwrap().ignore();
        repository
    }

    fn restic(&self, name: &str, arguments: &[&str]) {
        let output = Command::new("restic")
            .args(arguments)
            .arg("--no-cache")
            .env("RESTIC_REPOSITORY", self.path(name))
            .env("RESTIC_PASSWORD", PASSWORD)
            .output()
            .expect("apt-get install restic");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// Half of it random, half text.
    fn image(&self, size: u64) -> PathBuf {
        let path = self.path("image");
        let file = File::create(&path).unwrap();
        let mut random = 0x9e37_79b9_7f4a_7c15_u64;
        let mut text = Vec::new();
        for part in 0..size / MIB {
            if part % 2 == 0 {
                let bytes: Vec<u8> =
                    (0..MIB / 8).flat_map(|_| next(&mut random).to_le_bytes()).collect();
                file.write_all_at(&bytes, part * MIB).unwrap();
            } else {
                text.clear();
                while text.len() < MIB as usize {
                    let word = WORDS[(next(&mut random) % WORDS.len() as u64) as usize];
                    text.extend_from_slice(word.as_bytes());
                    text.push(if next(&mut random).is_multiple_of(12) { b'\n' } else { b' ' });
                }
                text.truncate(MIB as usize);
                file.write_all_at(&text, part * MIB).unwrap();
            }
        }
        file.sync_all().unwrap();
        path
    }
}

const WORDS: [&str; 32] = [
    "the",
    "storm",
    "takes",
    "leaves",
    "and",
    "not",
    "plant",
    "select",
    "from",
    "where",
    "insert",
    "into",
    "values",
    "error",
    "warning",
    "connection",
    "192.168.0.1",
    "GET",
    "POST",
    "/index.html",
    "200",
    "404",
    "user",
    "session",
    "timestamp",
    "2024-01-01T00:00:00Z",
    "null",
    "true",
    "false",
    "{\"id\":",
    "}",
    "=",
];

fn next(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

fn job(path: &Path, number: u128, allocated: Vec<Range<u64>>, base: Option<Base>) -> ImageJob {
    let file = File::open(path).unwrap();
    let size = file.metadata().unwrap().len();
    let uuid = VolumeUuid::from_uuid(uuid::Uuid::from_u128(1));
    let volume = Volume {
        uuid,
        name: "data".parse().unwrap(),
        backend: "loop".parse().unwrap(),
        generation: Generation::FIRST,
        state: VolumeState::Ready,
        content: Content::Prepared,
        size: Some(ByteSize::new(size)),
        grow_pending: false,
        filesystem: Some(FilesystemKind::Ext4),
        mkfs_options: vec![],
        mount_options: vec![],
        ownership: Ownership::default(),
        read_only: false,
        on_remove: OnRemove::default(),
        options: BTreeMap::new(),
        labels: BTreeMap::new(),
        created: jiff::Timestamp::UNIX_EPOCH,
    };
    let snapshot = Snapshot {
        uuid: SnapshotUuid::from_uuid(uuid::Uuid::from_u128(number)),
        volume: uuid,
        name: format!("s{number}").parse().unwrap(),
        generation: Generation::FIRST,
        size: Some(ByteSize::new(size)),
        content: Content::Prepared,
        origin: SnapshotOrigin::User,
        complete: true,
        created: jiff::Timestamp::now(),
    };
    ImageJob {
        manifest: Manifest { volume, snapshot, layout: Layout::IMAGE },
        image: Image { content: SnapshotImage::lasting(file, size), allocated },
        scheduled: false,
        base,
    }
}

/// From now on the peak is another one (`man 5 proc`, clear_refs).
fn forget_peak() {
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
}

fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() / 1024
}

const ROUNDS: usize = 3;

fn report(what: &str, ours: &[Duration], theirs: &[Duration], bytes: u64) {
    let seconds = |times: &[Duration]| median(times.iter().map(Duration::as_secs_f64).collect());
    let (ours, theirs) = (seconds(ours), seconds(theirs));
    println!(
        "{what:28} holdfast {ours:7.3} s ({:6.0} MB/s)   restic {theirs:7.3} s   {:5.1} times as fast",
        bytes as f64 / 1e6 / ours,
        theirs / ours
    );
}

/// 1 GiB: the first backup, one with 1 % changed, one with nothing changed, and restores.
fn full() {
    let world = World::new();
    let image = world.image(GIB);
    let (mut first, mut second, mut third) = (Pair::default(), Pair::default(), Pair::default());
    let (mut to_memory, mut to_disk) = (Pair::default(), Pair::default());
    let memory = std::cell::Cell::new(0);
    let restore_memory = std::cell::Cell::new(0);
    for round in 0..ROUNDS {
        let (ours, theirs) = (format!("ours-{round}"), format!("restic-{round}"));
        let repository = world.repository(&ours);
        world.restic(&theirs, &["init", "--repository-version", "2"]);
        let path = image.to_str().unwrap();
        let all = || std::iter::once(0..GIB).collect();
        let number = round as u128 * 8;
        let mut made: Option<Backup> = None;
        let memory = &memory;
        let mut back_up = |number: u128, base: Option<Vec<Range<u64>>>| {
            let base = base.map(|changed| Base { backup: made.as_ref().unwrap().id, changed });
            let job = job(&image, number, all(), base);
            let mut result = None;
            forget_peak();
            let time = timed(|| {
                result = Some(repository.back_up_image(&job, &Arc::default()).unwrap().backup)
            });
            made = result;
            memory.set(memory.get().max(peak_memory()));
            time
        };
        first.ours.push(back_up(number + 1, None));
        first.theirs.push(timed(|| world.restic(&theirs, &["backup", path])));

        let changed = change(&image, round as u64);
        second.ours.push(back_up(number + 2, Some(changed)));
        second.theirs.push(timed(|| world.restic(&theirs, &["backup", path])));

        third.ours.push(back_up(number + 3, Some(vec![])));
        third.theirs.push(timed(|| world.restic(&theirs, &["backup", path])));

        let id = made.unwrap().id;
        for (place, restores) in [("/dev/shm", &mut to_memory), (world.disk(), &mut to_disk)] {
            let place = tempfile::tempdir_in(place).unwrap();
            let target = place.path().join("target");
            forget_peak();
            restores.ours.push(timed(|| {
                let file = File::create(&target).unwrap();
                file.set_len(GIB).unwrap();
                repository
                    .restore_image(id, &Target { file, blank: true }, &Arc::default())
                    .unwrap();
            }));
            restore_memory.set(restore_memory.get().max(peak_memory()));
            assert!(same(&image, &target), "what is restored differs");
            std::fs::remove_file(&target).unwrap();
            let into = place.path().to_str().unwrap();
            restores.theirs.push(timed(|| {
                world.restic(&theirs, &["restore", "latest", "--target", into]);
                // Ours is durable when it is done.
                let status = Command::new("sync").arg("--file-system").arg(into).status().unwrap();
                assert!(status.success());
            }));
        }
        std::fs::remove_dir_all(world.path(&ours)).unwrap();
        std::fs::remove_dir_all(world.path(&theirs)).unwrap();
    }
    report("first backup of 1 GiB", &first.ours, &first.theirs, GIB);
    report("1 % changed", &second.ours, &second.theirs, GIB / 100);
    report("nothing changed", &third.ours, &third.theirs, 0);
    report("restore to memory", &to_memory.ours, &to_memory.theirs, GIB);
    report("restore to disk", &to_disk.ours, &to_disk.theirs, GIB);
    println!("peak memory: backup {} MiB, restore {} MiB", memory.get(), restore_memory.get());
}

#[derive(Default)]
struct Pair {
    ours: Vec<Duration>,
    theirs: Vec<Duration>,
}

/// Changes 1 % of the image, as a database does: in runs of 64 KiB in an eighth of it.
fn change(image: &Path, seed: u64) -> Vec<Range<u64>> {
    const RUN: u64 = 64 << 10;
    let file = OpenOptions::new().write(true).open(image).unwrap();
    let mut state = seed.wrapping_mul(77) | 1;
    let mut ranges: Vec<Range<u64>> = (0..GIB / 100 / RUN)
        .map(|i| {
            let start = i * (GIB / 8) / (GIB / 100 / RUN) / RUN * RUN;
            let bytes: Vec<u8> =
                (0..RUN / 8).flat_map(|_| next(&mut state).to_le_bytes()).collect();
            file.write_all_at(&bytes, start).unwrap();
            start..start + RUN
        })
        .collect();
    ranges.sort_by_key(|range| range.start);
    ranges
}

fn same(one: &Path, other: &Path) -> bool {
    let status = Command::new("cmp").arg("--silent").args([one, other]).status().unwrap();
    status.success()
}

/// A volume of 1 TiB with 64 MiB in it, and one of 10 GiB in which nothing has changed.
fn sparse() {
    let world = World::new();
    let repository = world.repository("ours");
    for (size, what) in [(10 * GIB, "10 GiB"), (1024 * GIB, "1 TiB")] {
        let path = world.path("sparse");
        let file = File::create(&path).unwrap();
        file.set_len(size).unwrap();
        let bytes: Vec<u8> = (0..MIB / 4).flat_map(|i| (i as u32).to_le_bytes()).collect();
        let data: Vec<Range<u64>> =
            (0..64).map(|i| i * (size / 64)..i * (size / 64) + MIB).collect();
        for range in &data {
            file.write_all_at(&bytes, range.start).unwrap();
        }
        let number = u128::from(size);
        let mut backup = None;
        let first = timed(|| {
            let job = job(&path, number, data.clone(), None);
            backup = Some(repository.back_up_image(&job, &Arc::default()).unwrap().backup);
        });
        let base = Base { backup: backup.unwrap().id, changed: vec![] };
        let again = timed(|| {
            repository
                .back_up_image(&job(&path, number + 1, data, Some(base)), &Arc::default())
                .unwrap();
        });
        println!(
            "{what}: first {:.2} s, nothing changed {:.3} s, peak memory {} MiB",
            first.as_secs_f64(),
            again.as_secs_f64(),
            peak_memory()
        );
        std::fs::remove_file(&path).unwrap();
    }
}
