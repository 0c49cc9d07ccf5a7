use std::ops::Range;

use super::{Trial, device_of};
use crate::backend::ContentRef;
use crate::id::SnapshotUuid;
use crate::model::Volume;
use crate::units::ByteSize;

/// Numbers that look random and are always the same.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

fn check_shape(ranges: &[Range<u64>], size: u64) {
    assert!(ranges.iter().all(|range| range.start < range.end && range.end <= size), "{ranges:?}");
    assert!(ranges.windows(2).all(|pair| pair[0].end <= pair[1].start), "{ranges:?}");
}

/// Every byte that differs between two snapshots lies in a range that is told as changed, and every
/// byte that is not zero in one that is told as allocated, whatever was written.
pub async fn changed_extents_miss_no_change(trial: &Trial) {
    let Some(extents) = trial.backend.extents() else { return };
    let size = 4 << 20;
    let mut volume = trial.volume("v");
    volume.size = Some(ByteSize::new(size));
    trial.backend.create(&volume).await.unwrap().ignore();
    let mut numbers = Numbers(7);
    let mut earlier: Vec<(SnapshotUuid, Vec<u8>)> = Vec::new();
    for round in 0..8u8 {
        write_somewhere(trial, &volume, &mut numbers, round, size).await;
        let snapshot = trial.cut(&volume, None).await;
        let now = trial.raw.read_snapshot(volume.uuid, snapshot).await;
        let allocated = extents.allocated_extents(volume.uuid, snapshot).await.unwrap();
        check_shape(&allocated, size);
        assert_covered(&allocated, &vec![0; now.len()], &now);
        for (base, then) in &earlier {
            let changed = extents.changed_extents(volume.uuid, *base, snapshot).await.unwrap();
            check_shape(&changed, size);
            assert_covered(&changed, then, &now);
        }
        earlier.push((snapshot, now));
    }
    grown_and_restored(trial, &volume, &earlier).await;
}

async fn write_somewhere(
    trial: &Trial,
    volume: &Volume,
    numbers: &mut Numbers,
    round: u8,
    size: u64,
) {
    let attachment = trial.backend.attach(volume.into()).await.unwrap();
    let device = device_of(&attachment);
    for _ in 0..=numbers.below(6) {
        let length = 1 + numbers.below(40_000);
        let at = numbers.below(size - length);
        // Zeros over data are a change, too.
        let byte = if numbers.below(4) == 0 { 0 } else { round + 1 };
        let bytes = vec![byte; usize::try_from(length).unwrap()];
        trial.raw.write(&device, at, &bytes).await;
    }
    drop(attachment);
    trial.backend.detach(volume.into()).await.unwrap().ignore();
}

/// The same over a growth, and between generations.
async fn grown_and_restored(trial: &Trial, volume: &Volume, earlier: &[(SnapshotUuid, Vec<u8>)]) {
    let extents = trial.backend.extents().unwrap();
    let mut restored = volume.clone();
    restored.generation = volume.generation.next();
    restored.size = Some(ByteSize::new(volume.size.unwrap().bytes() + (1 << 20)));
    let (first, _) = earlier[0];
    let source = ContentRef::Snapshot { volume: volume.uuid, snapshot: first };
    let watched = super::progress();
    let copy = trial.snapshots().create_from(source, &restored, &watched, None);
    copy.await.unwrap().ignore();
    let size = restored.size.unwrap().bytes();
    write_somewhere(trial, &restored, &mut Numbers(11), 100, size).await;
    let snapshot = trial.cut(&restored, None).await;
    let now = trial.raw.read_snapshot(volume.uuid, snapshot).await;
    assert_eq!(now.len() as u64, size);
    for (base, then) in earlier {
        let changed = extents.changed_extents(volume.uuid, *base, snapshot).await.unwrap();
        check_shape(&changed, size);
        assert_covered(&changed, then, &now);
        let tail = then.len() as u64..size;
        let covers = |range: &Range<u64>| range.start <= tail.start && range.end >= tail.end;
        assert!(changed.iter().any(covers), "what is new at the end is a change: {changed:?}");
    }
}

fn assert_covered(ranges: &[Range<u64>], before: &[u8], now: &[u8]) {
    let mut ranges = ranges.iter().peekable();
    for (position, byte) in now.iter().enumerate() {
        if before.get(position) == Some(byte) {
            continue;
        }
        let position = position as u64;
        while ranges.next_if(|range| range.end <= position).is_some() {}
        let told = ranges.peek().is_some_and(|range| range.contains(&position));
        assert!(told, "the change of byte {position} was missed");
    }
}
