//! The B-trees of dm-thin: nodes that are checked before use, and a cursor that goes through a tree
//! in the order of its keys and can leave out whole subtrees.
//!
//! A corrupt tree cannot keep the cursor for long. All leaves lie at one depth, which is limited, and
//! the keys of a node lie between those that its parent gives it. So no node is met twice on one
//! level, and the nodes on the stack are the most that is held in memory.

use super::block::{BLOCK_SIZE, Block, BlockFile, BlockKind, le32, le64};
use crate::error::Result;

/// `struct node_header` of persistent-data/dm-btree-internal.h; keys follow it, then values.
const HEADER: usize = 32;
const INTERNAL_NODE: u32 = 1;
const LEAF_NODE: u32 = 2;

const KEY_SIZE: usize = 8;
const CHILD_SIZE: usize = 8;

/// `MAX_SPINE_DEPTH` of persistent-data/dm-btree.c: the kernel itself goes no deeper.
const MAX_DEPTH: u32 = 64;

/// What keys and values can be in one pool.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Metadata blocks are numbered below this.
    pub metadata_blocks: u64,
    /// Data blocks are numbered below this.
    pub data_blocks: u64,
    /// Thin blocks are numbered below this.
    pub thin_blocks: u64,
}

/// What the leaves of a tree hold.
pub(super) trait Value: Copy {
    /// Bytes that it takes in a leaf.
    const SIZE: usize;

    /// Reads the value of a key from its `SIZE` bytes, or says what is wrong with the pair.
    fn parse(key: u64, bytes: &[u8], limits: &Limits) -> Result<Self, String>;
}

/// Reads nodes.
#[derive(Debug)]
pub(super) struct NodeReader {
    pub file: BlockFile,
    pub limits: Limits,
}

impl NodeReader {
    fn read<V: Value>(&self, block: u64) -> Result<Entries<V>> {
        if block >= self.limits.metadata_blocks {
            let what = format!("the pool has only {} blocks", self.limits.metadata_blocks);
            return Err(self.file.corrupt(block, what));
        }
        let bytes = self.file.read(block, BlockKind::BtreeNode)?;
        parse(&bytes, &self.limits).map_err(|what| self.file.corrupt(block, what))
    }

    /// How many levels lie above the leaves of a tree.
    fn height<V: Value>(&self, root: u64) -> Result<u32> {
        let mut block = root;
        for height in 0..MAX_DEPTH {
            match self.read::<V>(block)? {
                Entries::Values(_) => return Ok(height),
                Entries::Children(children) => match children.first() {
                    Some((_, child)) => block = *child,
                    None => return Err(self.file.corrupt(block, NO_CHILDREN)),
                },
            }
        }
        Err(self.file.corrupt(root, format!("the tree below has more than {MAX_DEPTH} levels")))
    }
}

const NO_CHILDREN: &str = "it is an internal node without entries";

/// What one node lists, in ascending order of the keys.
#[derive(Debug)]
enum Entries<V> {
    /// An internal node's: the smallest key that a child can have, and the child's block.
    Children(Vec<(u64, u64)>),
    /// A leaf's: keys and values.
    Values(Vec<(u64, V)>),
}

fn parse<V: Value>(block: &Block, limits: &Limits) -> Result<Entries<V>, String> {
    let bytes = &block.0;
    let flags = le32(bytes, 4);
    let count = le32(bytes, 16);
    let capacity = le32(bytes, 20);
    let value_size = le32(bytes, 24);
    let size = match flags {
        INTERNAL_NODE => CHILD_SIZE,
        LEAF_NODE => V::SIZE,
        _ => return Err(format!("the flags {flags:#x} are not those of a node")),
    };
    if usize::try_from(value_size).ok() != Some(size) {
        return Err(format!("it has values of {value_size} bytes where {size} belong"));
    }
    if count > capacity {
        return Err(format!("it has {count} entries where {capacity} fit"));
    }
    let count = usize::try_from(count).map_err(|error| error.to_string())?;
    let keys_and_values = usize::try_from(capacity)
        .ok()
        .filter(|capacity| *capacity <= (BLOCK_SIZE - HEADER) / (KEY_SIZE + size))
        .map(|capacity| bytes[HEADER..].split_at(capacity * KEY_SIZE))
        .ok_or_else(|| format!("{capacity} entries do not fit into a node"))?;
    let keys = keys_and_values.0.chunks_exact(KEY_SIZE).map(|key| le64(key, 0)).take(count);
    let pairs = keys.zip(keys_and_values.1.chunks_exact(size));
    let entries = if flags == INTERNAL_NODE {
        if count == 0 {
            return Err(NO_CHILDREN.into());
        }
        Entries::Children(pairs.map(|(key, value)| (key, le64(value, 0))).collect())
    } else {
        let values = pairs.map(|(key, value)| Ok((key, V::parse(key, value, limits)?)));
        Entries::Values(values.collect::<Result<_, String>>()?)
    };
    let ascending = match &entries {
        Entries::Children(list) => list.is_sorted_by(|one, next| one.0 < next.0),
        Entries::Values(list) => list.is_sorted_by(|one, next| one.0 < next.0),
    };
    if !ascending {
        return Err("its keys are not in ascending order".into());
    }
    Ok(entries)
}

/// A part of a tree that has not been read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Subtree {
    /// Its topmost node.
    pub block: u64,
    /// Levels between its topmost node and its leaves.
    pub level: u32,
    /// No key in it is smaller.
    pub low: u64,
    /// All keys in it are smaller.
    end: Option<u64>,
}

/// What comes next in a tree.
#[derive(Debug, Clone, Copy)]
pub(super) enum Head<V> {
    /// Keys from `low` on, in nodes that have not been read.
    Subtree(Subtree),
    /// A key and its value.
    Entry(u64, V),
    /// Nothing.
    End,
}

#[derive(Debug)]
struct Frame<V> {
    entries: Entries<V>,
    next: usize,
    level: u32,
    end: Option<u64>,
}

/// Goes once through a tree in ascending order of the keys.
#[derive(Debug)]
pub(super) struct Cursor<'a, V> {
    reader: &'a NodeReader,
    /// Each frame has a next entry.
    stack: Vec<Frame<V>>,
}

impl<'a, V: Value> Cursor<'a, V> {
    /// A cursor before the first key of the tree.
    pub(super) fn new(reader: &'a NodeReader, root: u64) -> Result<Self> {
        let level = reader.height::<V>(root)? + 1;
        let entries = Entries::Children(vec![(0, root)]);
        Ok(Self { reader, stack: vec![Frame { entries, next: 0, level, end: None }] })
    }

    /// What comes next.
    pub(super) fn head(&self) -> Head<V> {
        let Some(frame) = self.stack.last() else { return Head::End };
        match &frame.entries {
            Entries::Values(list) => {
                list.get(frame.next).map_or(Head::End, |(key, value)| Head::Entry(*key, *value))
            }
            Entries::Children(list) => list.get(frame.next).map_or(Head::End, |(low, block)| {
                let end = list.get(frame.next + 1).map(|(key, _)| *key).or(frame.end);
                let level = frame.level.saturating_sub(1);
                Head::Subtree(Subtree { block: *block, level, low: *low, end })
            }),
        }
    }

    /// Leaves out the head, be it an entry or a whole subtree.
    pub(super) fn skip(&mut self) {
        if let Some(frame) = self.stack.last_mut() {
            frame.next += 1;
        }
        self.drop_finished();
    }

    /// Reads the topmost node of the subtree at the head, and puts what it lists in its place.
    pub(super) fn expand(&mut self, subtree: Subtree) -> Result<()> {
        let Subtree { block, level, low, end } = subtree;
        let entries = self.reader.read::<V>(block)?;
        let (is_leaf, first, last) = match &entries {
            Entries::Children(list) => (false, list.first().map(key), list.last().map(key)),
            Entries::Values(list) => (true, list.first().map(key), list.last().map(key)),
        };
        let problem = if is_leaf != (level == 0) {
            Some("it is not on the level that its parent says".to_owned())
        } else if first.is_none() && !self.is_at_root() {
            Some("it is empty and not the root".to_owned())
        } else if let Some(first) = first.filter(|first| *first < low) {
            Some(format!("its first key {first} is below {low}, where its parent lets it begin"))
        } else if let (Some(last), Some(end)) = (last, end)
            && last >= end
        {
            Some(format!("its last key {last} is not below {end}, where its neighbour begins"))
        } else {
            None
        };
        if let Some(what) = problem {
            return Err(self.reader.file.corrupt(block, what));
        }
        if let Some(frame) = self.stack.last_mut() {
            frame.next += 1;
        }
        self.stack.push(Frame { entries, next: 0, level, end });
        self.drop_finished();
        Ok(())
    }

    fn is_at_root(&self) -> bool {
        self.stack.len() == 1
    }

    fn drop_finished(&mut self) {
        while self.stack.last().is_some_and(|frame| match &frame.entries {
            Entries::Children(list) => frame.next >= list.len(),
            Entries::Values(list) => frame.next >= list.len(),
        }) {
            self.stack.pop();
        }
    }

    /// The next entry.
    pub(super) fn next_entry(&mut self) -> Result<Option<(u64, V)>> {
        loop {
            match self.head() {
                Head::Subtree(subtree) => self.expand(subtree)?,
                Head::Entry(key, value) => {
                    self.skip();
                    return Ok(Some((key, value)));
                }
                Head::End => return Ok(None),
            }
        }
    }
}

fn key<T>(entry: &(u64, T)) -> u64 {
    entry.0
}

/// The value of one key.
pub(super) fn lookup<V: Value>(reader: &NodeReader, root: u64, key: u64) -> Result<Option<V>> {
    let mut cursor = Cursor::<V>::new(reader, root)?;
    loop {
        match cursor.head() {
            Head::Subtree(subtree) if subtree.end.is_some_and(|end| end <= key) => cursor.skip(),
            Head::Subtree(subtree) if subtree.low <= key => cursor.expand(subtree)?,
            Head::Entry(found, _) if found < key => cursor.skip(),
            Head::Entry(found, value) if found == key => return Ok(Some(value)),
            _ => return Ok(None),
        }
    }
}
