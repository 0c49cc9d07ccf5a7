//! Where the blocks of one device lie on the pool's data device.

use std::iter::FusedIterator;

use super::btree::{Cursor, Limits, Value};
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

/// The mappings of one device in ascending order, as long as possible each. What lies between two of
/// them was never written, or was discarded. After an error there is nothing more.
#[derive(Debug)]
pub struct Mappings<'a> {
    cursor: Cursor<'a, Location>,
    next: Option<Mapping>,
    failed: bool,
}

impl<'a> Mappings<'a> {
    pub(super) fn new(cursor: Cursor<'a, Location>) -> Self {
        Self { cursor, next: None, failed: false }
    }

    fn advance(&mut self) -> Result<Option<Mapping>> {
        while let Some((key, Location(data))) = self.cursor.next_entry()? {
            match &mut self.next {
                Some(run) if run.begin.0 + run.length == key && run.data.0 + run.length == data => {
                    run.length += 1;
                }
                next => {
                    let run = Mapping { begin: ThinBlock(key), data: DataBlock(data), length: 1 };
                    if let Some(finished) = next.replace(run) {
                        return Ok(Some(finished));
                    }
                }
            }
        }
        Ok(self.next.take())
    }
}

impl Iterator for Mappings<'_> {
    type Item = Result<Mapping>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let item = self.advance();
        self.failed = item.is_err();
        item.transpose()
    }
}

impl FusedIterator for Mappings<'_> {}
