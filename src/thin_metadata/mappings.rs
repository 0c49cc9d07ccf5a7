//! Where the blocks of one device lie on the pool's data device.

use std::iter::FusedIterator;

use super::btree::{Cursor, Limits, Value};
use super::runs::{Run, Runs};
use super::{DataBlock, ThinBlock};
use crate::error::Result;

/// A leaf's value in a device's tree: where a thin block lies.
#[derive(Debug, Clone, Copy)]
pub(super) struct Location(pub u64);

impl Value for Location {
    const SIZE: usize = 8;

    fn parse(key: u64, bytes: &[u8], limits: &Limits) -> Result<Self, String> {
        if key >= limits.thin_blocks {
            return Err(format!("thin block {key} lies beyond the largest device"));
        }
        // The lower 24 bits are the time of the mapping (`unpack_block_time` of dm-thin-metadata.c).
        let block = super::block::le64(bytes, 0) >> 24;
        if block >= limits.data_blocks {
            return Err(format!(
                "thin block {key} is mapped to data block {block}, but the pool has only {}",
                limits.data_blocks
            ));
        }
        Ok(Self(block))
    }
}

/// A run of thin blocks that lie in one piece on the data device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mapping {
    /// The first thin block.
    pub begin: ThinBlock,
    /// Where it lies; each further one lies a block further.
    pub data: DataBlock,
    /// How many blocks; never 0.
    pub length: u64,
}

impl Run for Mapping {
    fn extend(&mut self, next: &Self) -> bool {
        let continues =
            self.begin.0 + self.length == next.begin.0 && self.data.0 + self.length == next.data.0;
        if continues {
            self.length += next.length;
        }
        continues
    }
}

/// The mappings of one device in ascending order, as long as possible each. What lies between two of
/// them was never written, or was discarded. After an error there is nothing more.
#[derive(Debug)]
pub struct Mappings<'a> {
    cursor: Cursor<'a, Location>,
    runs: Runs<Mapping>,
}

impl<'a> Mappings<'a> {
    pub(super) fn new(cursor: Cursor<'a, Location>) -> Self {
        Self { cursor, runs: Runs::new() }
    }
}

impl Iterator for Mappings<'_> {
    type Item = Result<Mapping>;

    fn next(&mut self) -> Option<Self::Item> {
        self.runs.next(|| {
            let entry = self.cursor.next_entry()?;
            Ok(entry.map(|(key, Location(data))| Mapping {
                begin: ThinBlock(key),
                data: DataBlock(data),
                length: 1,
            }))
        })
    }
}

impl FusedIterator for Mappings<'_> {}
