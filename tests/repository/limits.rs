//! Limits of bandwidth, and what a large volume costs.

use std::time::Instant;

use holdfast::backend::SnapshotImage;
use holdfast::repository::{Base, Image, ImageJob};
use holdfast::units::ByteSize;

use crate::world::{Disk, World, progress};

const MIB: usize = 1 << 20;
const GIB: u64 = 1 << 30;

#[test]
fn a_limit_on_uploads_is_kept() {
    let world = World::new();
    let rate = 2 * MIB;
    let slow = world.other(|settings| {
        settings.limits.upload = Some(ByteSize::new(rate as u64));
    });
    let mut disk = Disk::new(1, 8 * MIB);
    disk.fill(0..6 * MIB, 1);
    let (cut, begun) = (disk.cut(), Instant::now());
    let backup = slow.back_up_image(&cut.job(None), &progress()).unwrap().backup;
    let took = begun.elapsed().as_secs_f64();
    assert!(backup.added > 6 * MIB as u64);
    // The index and the snapshot come last and are small; before them all else is due.
    assert!(took > 0.9 * 6.0 * MIB as f64 / rate as f64, "{took} s");
    world.assert_has(&[(&backup, &cut)]);
}

/// 4 GiB, or as many as the soak wants: 1024 take most of an hour.
fn size() -> u64 {
    std::env::var("HOLDFAST_SOAK_GIB").map_or(4, |text| text.parse().unwrap()) * GIB
}

/// The `number`th snapshot of a large volume that is empty but for a MiB every GiB.
fn large(number: usize, base: Option<Base>) -> ImageJob {
    let mut disk = Disk::new(1, MIB);
    disk.fill(0..MIB, 1);
    let cut = (0..number).map(|_| disk.cut()).last().unwrap();
    let mut job = cut.job(None);
    let file = tempfile::tempfile().unwrap();
    file.set_len(size()).unwrap();
    let ranges = (0..size() / GIB).map(|i| i * GIB..i * GIB + MIB as u64);
    for range in ranges.clone() {
        std::os::unix::fs::FileExt::write_all_at(&file, &cut.content, range.start).unwrap();
    }
    job.manifest.volume.size = Some(ByteSize::new(size()));
    job.manifest.snapshot.size = Some(ByteSize::new(size()));
    job.image =
        Image { content: SnapshotImage::lasting(file, size()), allocated: ranges.collect() };
    job.base = base;
    job
}

/// The most memory that this process has used so far.
fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

#[test]
#[ignore = "run by the test below"]
fn backs_up_a_large_volume_again() {
    let world = World::in_child();
    let backup = world.repository.backups().unwrap()[0].id;
    let job = large(2, Some(Base { backup, changed: vec![] }));
    let stored = world.repository.back_up_image(&job, &progress()).unwrap();
    assert_eq!((stored.read, stored.backup.parent), (0, Some(backup)), "{stored:?}");
    println!("{} MiB of memory", peak_memory() / MIB as u64);
    assert!(peak_memory() < 300 * MIB as u64, "{} MiB", peak_memory() / MIB as u64);
}

#[test]
fn a_large_volume_in_which_nothing_changed_costs_little() {
    let world = World::new();
    let begun = Instant::now();
    world.repository.back_up_image(&large(1, None), &progress()).unwrap();
    println!("the first backup of {} GiB took {:?}", size() / GIB, begun.elapsed());
    let begun = Instant::now();
    let status = world.child("limits::backs_up_a_large_volume_again").status().unwrap();
    assert!(status.success());
    println!("the second took {:?}", begun.elapsed());
    assert_eq!(world.repository.backups().unwrap().len(), 2);
}
