//! What differs between two devices, found without reading what they share.

use std::cmp::Ordering;
use std::iter::FusedIterator;

use super::ThinBlock;
use super::btree::{Cursor, Head};
use super::mappings::Location;
use super::runs::{Run, Runs};
use crate::error::Result;

/// How a block of the other device differs from the base's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangeKind {
    /// Mapped in the other device only.
    Added,
    /// Mapped in the base only: in the other device it reads as zeros, or as its external origin.
    Removed,
    /// Mapped in both, to different data blocks.
    Replaced,
}

/// A run of thin blocks that differ in one way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    /// The first thin block.
    pub begin: ThinBlock,
    /// How many blocks; never 0.
    pub length: u64,
    /// In which way they differ.
    pub kind: ChangeKind,
}

impl Run for Change {
    fn extend(&mut self, next: &Self) -> bool {
        let continues = self.begin.0 + self.length == next.begin.0 && self.kind == next.kind;
        if continues {
            self.length += next.length;
        }
        continues
    }
}

/// The changes from one device to another in ascending order, as long as possible each. After an
/// error there is nothing more.
///
/// Both trees are gone through together. Where both continue with the same node, all that lies below
/// it is the same and is left out, so that the work is in proportion to what differs. Which node is
/// read first is a matter of speed alone: an entry is judged only once the other tree is known to
/// hold its key or not.
#[derive(Debug)]
pub struct Changes<'a> {
    trees: Trees<'a>,
    runs: Runs<Change>,
}

impl<'a> Changes<'a> {
    pub(super) fn new(base: Cursor<'a, Location>, other: Cursor<'a, Location>) -> Self {
        Self { trees: Trees { base, other }, runs: Runs::new() }
    }
}

#[derive(Debug)]
struct Trees<'a> {
    base: Cursor<'a, Location>,
    other: Cursor<'a, Location>,
}

impl Trees<'_> {
    /// The next thin block that differs.
    fn next_block(&mut self) -> Result<Option<(u64, ChangeKind)>> {
        loop {
            match (self.base.head(), self.other.head()) {
                (Head::End, Head::End) => return Ok(None),
                (Head::Subtree(one), Head::Subtree(two)) => {
                    if (one.block, one.level) == (two.block, two.level) {
                        self.base.skip();
                        self.other.skip();
                        continue;
                    }
                    // What begins first is behind in the order. Of two that begin together, the
                    // lower may be found again within the higher.
                    let order = one.low.cmp(&two.low).then_with(|| two.level.cmp(&one.level));
                    if order.is_le() {
                        self.base.expand(one)?;
                    }
                    if order.is_ge() {
                        self.other.expand(two)?;
                    }
                }
                (Head::Subtree(subtree), Head::Entry(key, _)) if key < subtree.low => {
                    self.other.skip();
                    return Ok(Some((key, ChangeKind::Added)));
                }
                (Head::Entry(key, _), Head::Subtree(subtree)) if key < subtree.low => {
                    self.base.skip();
                    return Ok(Some((key, ChangeKind::Removed)));
                }
                (Head::Subtree(subtree), Head::Entry(..) | Head::End) => {
                    self.base.expand(subtree)?;
                }
                (Head::Entry(..) | Head::End, Head::Subtree(subtree)) => {
                    self.other.expand(subtree)?;
                }
                (Head::Entry(key, _), Head::End) => {
                    self.base.skip();
                    return Ok(Some((key, ChangeKind::Removed)));
                }
                (Head::End, Head::Entry(key, _)) => {
                    self.other.skip();
                    return Ok(Some((key, ChangeKind::Added)));
                }
                (Head::Entry(one, from), Head::Entry(two, to)) => match one.cmp(&two) {
                    Ordering::Less => {
                        self.base.skip();
                        return Ok(Some((one, ChangeKind::Removed)));
                    }
                    Ordering::Greater => {
                        self.other.skip();
                        return Ok(Some((two, ChangeKind::Added)));
                    }
                    Ordering::Equal => {
                        self.base.skip();
                        self.other.skip();
                        if from.0 != to.0 {
                            return Ok(Some((one, ChangeKind::Replaced)));
                        }
                    }
                },
            }
        }
    }
}

impl Iterator for Changes<'_> {
    type Item = Result<Change>;

    fn next(&mut self) -> Option<Self::Item> {
        self.runs.next(|| {
            let block = self.trees.next_block()?;
            Ok(block.map(|(key, kind)| Change { begin: ThinBlock(key), length: 1, kind }))
        })
    }
}

impl FusedIterator for Changes<'_> {}
