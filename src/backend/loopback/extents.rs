//! The bytes of snapshots: which ranges of an image hold data, and which differ between two.

use std::fs::File;
use std::ops::Range;

use async_trait::async_trait;

use super::{LoopBackend, QUICK, SLOW, Shared, files};
use crate::backend::{Extents, SnapshotImage};
use crate::error::{Error, Result};
use crate::id::{SnapshotUuid, VolumeUuid};
use crate::linux::copy::data_ranges;
use crate::linux::fiemap::{Extent, Place, extents};

#[async_trait]
impl Extents for LoopBackend {
    async fn allocated_extents(
        &self,
        volume: VolumeUuid,
        snapshot: SnapshotUuid,
    ) -> Result<Vec<Range<u64>>> {
        self.run("reading a snapshot's extents", SLOW, move |shared| {
            let (file, size) = open(shared, volume, snapshot)?;
            data_ranges(&file, size)
        })
        .await
    }

    async fn changed_extents(
        &self,
        volume: VolumeUuid,
        base: SnapshotUuid,
        snapshot: SnapshotUuid,
    ) -> Result<Vec<Range<u64>>> {
        self.run("comparing two snapshots", SLOW, move |shared| {
            let (old, old_size) = open(shared, volume, base)?;
            let (new, new_size) = open(shared, volume, snapshot)?;
            let everything =
                || if new_size == 0 { Vec::new() } else { vec![Range { start: 0, end: new_size }] };
            let (Some(old), Some(new)) = (extents(&old)?, extents(&new)?) else {
                return Ok(everything());
            };
            Ok(changed(&old, old_size, &new, new_size))
        })
        .await
    }

    /// The file is read on after it was deleted.
    async fn open_snapshot(
        &self,
        volume: VolumeUuid,
        snapshot: SnapshotUuid,
    ) -> Result<SnapshotImage> {
        self.run("opening a snapshot", QUICK, move |shared| {
            let (file, size) = open(shared, volume, snapshot)?;
            Ok(SnapshotImage::lasting(file, size))
        })
        .await
    }
}

fn open(shared: &Shared, volume: VolumeUuid, snapshot: SnapshotUuid) -> Result<(File, u64)> {
    let path = shared.layout.snapshot(volume, snapshot);
    let file = files::open_to_read(&path)?
        .ok_or_else(|| Error::not_found(format!("there is no {}", path.display())))?;
    let size = file
        .metadata()
        .map_err(|error| Error::io(format!("cannot inspect {}", path.display()), error))?
        .len();
    Ok((file, size))
}

/// Ranges of the new file that may differ from the old one. Two bytes are known to be equal only if
/// they lie at one place of the disk, or if both are zeros that were never written.
fn changed(old: &[Extent], old_size: u64, new: &[Extent], new_size: u64) -> Vec<Range<u64>> {
    let mut old = Cursor { extents: old, next: 0 };
    let mut new = Cursor { extents: new, next: 0 };
    let common = old_size.min(new_size);
    let mut ranges: Vec<Range<u64>> = Vec::new();
    let mut differs = |range: Range<u64>| match ranges.last_mut() {
        Some(last) if last.end == range.start => last.end = range.end,
        _ => ranges.push(range),
    };
    let mut at = 0;
    while at < common {
        let (old_place, old_end) = old.at(at);
        let (new_place, new_end) = new.at(at);
        let end = old_end.min(new_end).min(common);
        let equal = match (old_place, new_place) {
            (Place::Zero, Place::Zero) => true,
            (Place::At(one), Place::At(other)) => one == other,
            _ => false,
        };
        if !equal {
            differs(at..end);
        }
        at = end;
    }
    if common < new_size {
        differs(common..new_size);
    }
    ranges
}

/// Walks forward through the extents of one file.
struct Cursor<'a> {
    extents: &'a [Extent],
    next: usize,
}

impl Cursor<'_> {
    /// What the byte at `position` is, and up to where the same can be said of the bytes behind it.
    /// Positions only grow.
    fn at(&mut self, position: u64) -> (Place, u64) {
        while let Some(extent) = self.extents.get(self.next) {
            if extent.start.saturating_add(extent.length) > position {
                break;
            }
            self.next += 1;
        }
        match self.extents.get(self.next) {
            None => (Place::Zero, u64::MAX),
            Some(extent) if extent.start > position => (Place::Zero, extent.start),
            Some(extent) => {
                let place = match extent.place {
                    Place::At(start) => Place::At(start.saturating_add(position - extent.start)),
                    place => place,
                };
                (place, extent.start.saturating_add(extent.length))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn extents_from(blocks: &[Option<Place>]) -> Vec<Extent> {
        let at = |(i, place): (usize, &Option<Place>)| {
            place.map(|place| Extent { start: i as u64 * 10, length: 10, place })
        };
        blocks.iter().enumerate().filter_map(at).collect()
    }

    fn place() -> impl Strategy<Value = Option<Place>> {
        prop_oneof![
            Just(None),
            Just(Some(Place::Zero)),
            Just(Some(Place::Unsure)),
            (0u64..4).prop_map(|n| Some(Place::At(n * 10))),
        ]
    }

    proptest! {
        #[test]
        fn no_change_is_missed_and_no_equal_block_is_told(
            old in prop::collection::vec(place(), 0..12),
            new in prop::collection::vec(place(), 0..12),
        ) {
            let sizes = (old.len() as u64 * 10, new.len() as u64 * 10);
            let ranges = changed(&extents_from(&old), sizes.0, &extents_from(&new), sizes.1);
            prop_assert!(ranges.windows(2).all(|pair| pair[0].end < pair[1].start));
            for (i, here) in new.iter().enumerate() {
                let told = ranges.iter().any(|range| range.contains(&(i as u64 * 10)));
                let zero = |place: &Option<Place>| matches!(place, None | Some(Place::Zero));
                let sure = match (old.get(i), here) {
                    (None, _) => false,
                    (Some(one), other) if zero(one) && zero(other) => true,
                    (Some(Some(Place::At(one))), Some(Place::At(other))) => one == other,
                    _ => false,
                };
                prop_assert_eq!(told, !sure, "block {}", i);
            }
        }
    }
}
