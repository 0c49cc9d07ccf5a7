//! What differs between two devices, found without reading what they share.

use std::cmp::Ordering;
use std::iter::FusedIterator;

use super::ThinBlock;
use super::btree::{Cursor, Head};
use super::mappings::Location;
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

/// The changes from one device to another in ascending order, as long as possible each. After an
/// error there is nothing more.
///
/// Both trees are gone through together. Where both continue with the same node, all that lies below
/// it is the same and is left out, so that the work is in proportion to what differs. Which node is
/// read first is a matter of speed alone: an entry is judged only once the other tree is known to
/// hold its key or not.
#[derive(Debug)]
pub struct Changes<'a> {
    base: Cursor<'a, Location>,
    other: Cursor<'a, Location>,
    next: Option<Change>,
    failed: bool,
}

impl<'a> Changes<'a> {
    pub(super) fn new(base: Cursor<'a, Location>, other: Cursor<'a, Location>) -> Self {
        Self { base, other, next: None, failed: false }
    }

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

    fn advance(&mut self) -> Result<Option<Change>> {
        while let Some((key, kind)) = self.next_block()? {
            match &mut self.next {
                Some(run) if run.begin.0 + run.length == key && run.kind == kind => {
                    run.length += 1;
                }
                next => {
                    let run = Change { begin: ThinBlock(key), length: 1, kind };
                    if let Some(finished) = next.replace(run) {
                        return Ok(Some(finished));
                    }
                }
            }
        }
        Ok(self.next.take())
    }
}

impl Iterator for Changes<'_> {
    type Item = Result<Change>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let item = self.advance();
        self.failed = item.is_err();
        item.transpose()
    }
}

impl FusedIterator for Changes<'_> {}
