use std::ops::Range;
use std::os::unix::fs::FileExt;

use super::{Trial, device_of, progress};
use crate::backend::{ContentRef, Extents, SnapshotImage};
use crate::error::ErrorKind;
use crate::id::SnapshotUuid;
use crate::model::{Outcome, Volume};
use crate::units::ByteSize;

const SIZE: u64 = 4 << 20;

/// Numbers that look random and are always the same.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

/// A volume without a filesystem, and what its device should hold.
struct Written {
    volume: Volume,
    bytes: Vec<u8>,
}

impl Written {
    /// One that holds zeros.
    async fn blank(trial: &Trial) -> Self {
        let mut volume = trial.volume("v");
        volume.size = Some(ByteSize::new(SIZE));
        trial.backend.create(&volume).await.unwrap().ignore();
        Self { volume, bytes: vec![0; usize::try_from(SIZE).unwrap()] }
    }

    /// One that holds something.
    async fn somewhere(trial: &Trial) -> Self {
        let mut written = Self::blank(trial).await;
        written.write(trial, &mut Numbers(3), 1).await;
        written
    }

    /// Writes here and there.
    async fn write(&mut self, trial: &Trial, numbers: &mut Numbers, round: u8) {
        let locator = (&self.volume).into();
        let attachment = trial.backend.attach(locator).await.unwrap();
        let device = device_of(&attachment);
        for _ in 0..=numbers.below(6) {
            let length = 1 + numbers.below(40_000);
            let at = numbers.below(self.bytes.len() as u64 - length);
            // Zeros over data are a change, too.
            let byte = if numbers.below(4) == 0 { 0 } else { round + 1 };
            let bytes = vec![byte; usize::try_from(length).unwrap()];
            trial.raw.write(&device, at, &bytes).await;
            let at = usize::try_from(at).unwrap();
            self.bytes[at..at + bytes.len()].copy_from_slice(&bytes);
        }
        drop(attachment);
        trial.backend.detach(locator).await.unwrap().ignore();
    }

    async fn open(&self, trial: &Trial, snapshot: SnapshotUuid) -> SnapshotImage {
        let extents = trial.backend.extents().unwrap();
        extents.open_snapshot(self.volume.uuid, snapshot).await.unwrap()
    }
}

/// All that an image holds.
fn bytes_of(image: &SnapshotImage) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(image.size).unwrap()];
    image.file.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(image.file.read_at(&mut [0; 512], image.size).unwrap(), 0, "it ends there");
    bytes
}

#[track_caller]
fn assert_holds(image: &SnapshotImage, expected: &[u8]) {
    let bytes = bytes_of(image);
    assert_eq!(bytes.len(), expected.len());
    // Compared byte by byte only to say where.
    let first = || bytes.iter().zip(expected).position(|(one, other)| one != other);
    assert!(bytes == expected, "byte {:?} differs", first());
}

fn check_shape(ranges: &[Range<u64>], size: u64) {
    assert!(ranges.iter().all(|range| range.start < range.end && range.end <= size), "{ranges:?}");
    assert!(ranges.windows(2).all(|pair| pair[0].end <= pair[1].start), "{ranges:?}");
}

/// Every byte that differs between two snapshots lies in a range that is told as changed, and every
/// byte that is not zero in one that is told as allocated, whatever was written. The snapshots hold what
/// was there when they were cut.
pub async fn changed_extents_miss_no_change(trial: &Trial) {
    let Some(extents) = trial.backend.extents() else { return };
    let mut written = Written::blank(trial).await;
    let mut numbers = Numbers(7);
    let mut earlier: Vec<(SnapshotUuid, Vec<u8>)> = Vec::new();
    for round in 0..8u8 {
        written.write(trial, &mut numbers, round).await;
        let snapshot = trial.cut(&written.volume, None).await;
        check_extents(trial, extents, &written, snapshot, &earlier).await;
        earlier.push((snapshot, written.bytes.clone()));
    }
    grown_and_restored(trial, written, &earlier).await;
}

/// Holds what is told of a snapshot that was cut just now, and of earlier ones, against what they hold.
async fn check_extents(
    trial: &Trial,
    extents: &dyn Extents,
    written: &Written,
    snapshot: SnapshotUuid,
    earlier: &[(SnapshotUuid, Vec<u8>)],
) {
    let (volume, size) = (written.volume.uuid, written.bytes.len() as u64);
    let image = written.open(trial, snapshot).await;
    assert_holds(&image, &written.bytes);
    let now = bytes_of(&image);
    let allocated = extents.allocated_extents(volume, snapshot).await.unwrap();
    check_shape(&allocated, size);
    assert_covered(&allocated, &vec![0; now.len()], &now);
    for (base, bytes) in earlier {
        let then = written.open(trial, *base).await;
        assert_holds(&then, bytes);
        let changed = extents.changed_extents(volume, *base, snapshot).await.unwrap();
        check_shape(&changed, size);
        assert_covered(&changed, &bytes_of(&then), &now);
        if then.size < size {
            let tail = then.size..size;
            let covers = |range: &Range<u64>| range.start <= tail.start && range.end >= tail.end;
            assert!(changed.iter().any(covers), "what is new at the end is a change: {changed:?}");
        }
    }
}

/// The same over a growth, and between generations.
async fn grown_and_restored(trial: &Trial, written: Written, earlier: &[(SnapshotUuid, Vec<u8>)]) {
    let extents = trial.backend.extents().unwrap();
    let Written { volume, .. } = written;
    let mut restored = volume.clone();
    restored.generation = volume.generation.next();
    restored.size = Some(ByteSize::new(SIZE + (1 << 20)));
    let (first, bytes) = &earlier[0];
    let source = ContentRef::Snapshot { volume: volume.uuid, snapshot: *first };
    let watched = progress();
    let copy = trial.snapshots().create_from(source, &restored, &watched, None);
    copy.await.unwrap().ignore();
    // In place: the old content is gone, and its snapshots are not.
    trial.backend.delete_generation((&volume).into()).await.unwrap().ignore();
    let size = restored.size.unwrap().bytes();
    let mut bytes = bytes.clone();
    bytes.resize(usize::try_from(size).unwrap(), 0);
    let mut written = Written { volume: restored, bytes };
    written.write(trial, &mut Numbers(11), 100).await;
    let snapshot = trial.cut(&written.volume, None).await;
    check_extents(trial, extents, &written, snapshot, earlier).await;
}

/// What is written after the snapshot was cut is not in it; nor can it be written to.
pub async fn an_opened_snapshot_is_what_was_cut(trial: &Trial) {
    let Some(extents) = trial.backend.extents() else { return };
    let mut written = Written::somewhere(trial).await;
    let snapshot = trial.cut(&written.volume, None).await;
    let cut = written.bytes.clone();
    let before = written.open(trial, snapshot).await;
    written.write(trial, &mut Numbers(5), 2).await;
    assert_ne!(written.bytes, cut);
    let after = written.open(trial, snapshot).await;
    for image in [&before, &after] {
        assert_holds(image, &cut);
        image.file.write_at(b"x", 0).unwrap_err();
    }
    let (uuid, other) = (written.volume.uuid, trial.created("w").await.uuid);
    for (volume, snapshot) in [(uuid, trial.snapshot_id()), (other, snapshot)] {
        let refused = extents.open_snapshot(volume, snapshot).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::NotFound, "{}", refused.full_message());
    }
}

/// Several read a snapshot at once, each with threads of its own, and one that is done disturbs nobody.
pub async fn a_snapshot_has_many_readers(trial: &Trial) {
    if trial.backend.extents().is_none() {
        return;
    }
    let written = Written::somewhere(trial).await;
    let snapshot = trial.cut(&written.volume, None).await;
    let last = written.open(trial, snapshot).await;
    for _ in 0..8 {
        let images = [written.open(trial, snapshot).await, written.open(trial, snapshot).await];
        std::thread::scope(|scope| {
            for image in images.iter().chain(&images) {
                scope.spawn(|| assert_holds(image, &written.bytes));
            }
        });
        let [one, other] = images;
        drop(one);
        assert_holds(&other, &written.bytes);
    }
    // Opened while the one before is let go.
    for _ in 0..20 {
        drop(written.open(trial, snapshot).await);
    }
    assert_holds(&last, &written.bytes);
}

/// A snapshot that is read is either kept, with its volume, or read on after it was deleted.
pub async fn a_snapshot_that_is_read_can_be_read_on(trial: &Trial) {
    let Some(extents) = trial.backend.extents() else { return };
    let written = Written::somewhere(trial).await;
    let volume = written.volume.uuid;
    let snapshot = trial.cut(&written.volume, None).await;
    let image = written.open(trial, snapshot).await;
    let deleted = trial.snapshots().delete_snapshot(volume, snapshot).await;
    assert_in_use_or_done(deleted);
    assert_holds(&image, &written.bytes);
    drop(image);
    trial.snapshots().delete_snapshot(volume, snapshot).await.unwrap().ignore();
    let gone = extents.open_snapshot(volume, snapshot).await.unwrap_err();
    assert_eq!(gone.kind(), ErrorKind::NotFound);

    let snapshot = trial.cut(&written.volume, None).await;
    let image = written.open(trial, snapshot).await;
    assert_in_use_or_done(trial.backend.delete(volume).await);
    assert_holds(&image, &written.bytes);
    drop(image);
    trial.backend.delete(volume).await.unwrap().ignore();
    assert!(!trial.exists((&written.volume).into()).await);
}

#[track_caller]
fn assert_in_use_or_done(deleted: crate::error::Result<Outcome>) {
    if let Err(error) = deleted {
        assert_eq!(error.kind(), ErrorKind::InUse, "{}", error.full_message());
        assert!(error.hint_text().is_some());
    }
}

/// Outside these ranges nothing differs.
fn assert_covered(ranges: &[Range<u64>], before: &[u8], now: &[u8]) {
    let end = now.len() as u64;
    let begins = ranges.iter().map(|range| range.start).chain([end]);
    let ends = [0].into_iter().chain(ranges.iter().map(|range| range.end));
    for (untold, begin) in ends.zip(begins).filter(|(untold, begin)| untold < begin) {
        let untold = usize::try_from(untold).unwrap()..usize::try_from(begin).unwrap();
        assert!(before.get(untold.clone()) == now.get(untold.clone()), "not told of: {untold:?}");
    }
}
