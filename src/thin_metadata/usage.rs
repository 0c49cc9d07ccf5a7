//! How much of the pool each device holds alone.

use super::btree::{Cursor, Head, NodeReader};
use super::mappings::Location;
use crate::error::Result;

/// How many data blocks a device has mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Those that no other device has mapped: deleting the device sets them free.
    pub exclusive: u64,
    /// Those that another device has mapped as well.
    pub shared: u64,
}

/// How many blocks each device holds alone, in the order of the roots of their trees.
///
/// What lies below a node that two trees lead to is shared, so such nodes are read once, for the sake
/// of the same blocks in nodes that are not shared.
pub(super) fn exclusive_blocks(reader: &NodeReader, roots: &[u64]) -> Result<Vec<u64>> {
    let mut visits = Counts::new(reader.limits.metadata_blocks);
    let mut references = Counts::new(reader.limits.data_blocks);
    for root in roots {
        let mut cursor = Cursor::<Location>::new(reader, *root)?;
        loop {
            match cursor.head() {
                Head::Subtree(subtree) => match visits.increment(subtree.block) {
                    Count::None => cursor.expand(subtree)?,
                    Count::One | Count::Many => cursor.skip(),
                },
                Head::Entry(_, location) => {
                    references.increment(location.0);
                    cursor.skip();
                }
                Head::End => break,
            }
        }
    }
    let mut exclusive = Vec::new();
    for root in roots {
        let mut cursor = Cursor::<Location>::new(reader, *root)?;
        let mut blocks = 0;
        loop {
            match cursor.head() {
                Head::Subtree(subtree) if visits.get(subtree.block) == Count::Many => cursor.skip(),
                Head::Subtree(subtree) => cursor.expand(subtree)?,
                Head::Entry(_, location) => {
                    blocks += u64::from(references.get(location.0) == Count::One);
                    cursor.skip();
                }
                Head::End => break,
            }
        }
        exclusive.push(blocks);
    }
    Ok(exclusive)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Count {
    None,
    One,
    Many,
}

/// Counts up to "many" in two bits each, with memory only for the parts that are used: a full pool of
/// 16 TiB in blocks of 64 KiB takes 64 MiB.
struct Counts(Vec<Option<Box<Part>>>);

type Part = [u8; 4096];

const COUNTS_PER_BYTE: u64 = 4;
const COUNTS_PER_PART: u64 = COUNTS_PER_BYTE * size_of::<Part>() as u64;

impl Counts {
    fn new(length: u64) -> Self {
        // The superblock's limits keep this within a few million.
        let parts = usize::try_from(length.div_ceil(COUNTS_PER_PART)).unwrap_or(usize::MAX);
        Self(vec![None; parts])
    }

    /// Where a count is: its part, its byte there, and its lowest bit there.
    fn place(index: u64) -> (usize, usize, u64) {
        let part = usize::try_from(index / COUNTS_PER_PART).unwrap_or(usize::MAX);
        let byte = usize::try_from(index % COUNTS_PER_PART / COUNTS_PER_BYTE).unwrap_or_default();
        (part, byte, index % COUNTS_PER_BYTE * 2)
    }

    fn get(&self, index: u64) -> Count {
        let (part, byte, bit) = Self::place(index);
        match self.0.get(part).and_then(Option::as_ref).map_or(0, |part| part[byte] >> bit & 3) {
            0 => Count::None,
            1 => Count::One,
            _ => Count::Many,
        }
    }

    /// Adds one, and tells what was there before.
    fn increment(&mut self, index: u64) -> Count {
        let before = self.get(index);
        let (part, byte, bit) = Self::place(index);
        if before != Count::Many
            && let Some(part) = self.0.get_mut(part)
        {
            part.get_or_insert_with(|| Box::new([0; size_of::<Part>()]))[byte] += 1 << bit;
        }
        before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_stop_at_many_and_touch_no_neighbour() {
        use Count::{Many, None, One};
        let mut counts = Counts::new(COUNTS_PER_PART + 5);
        for begin in [0, COUNTS_PER_PART - 4] {
            for (index, times) in [(3, 1), (4, 5), (8, 2)] {
                for _ in 0..times {
                    counts.increment(begin + index);
                }
            }
            let all: Vec<Count> = (begin..begin + 9).map(|index| counts.get(index)).collect();
            assert_eq!(all, [None, None, None, One, Many, None, None, None, Many]);
        }
    }
}
