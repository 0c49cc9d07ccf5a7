//! Metadata for tests: trees of any shape, whose nodes are shared wherever they are alike, and
//! blocks that can be spoilt.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use super::block::{BLOCK_SIZE, Block, BlockKind};

/// Blocks for data and for metadata that every image has.
pub(super) const DATA_BLOCKS: u64 = 1 << 20;
pub(super) const METADATA_BLOCKS: u64 = 4096;

/// How the nodes of a tree are cut.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    /// A leaf holds keys of one multiple of this.
    pub leaf: u64,
    /// Children of an internal node.
    pub fan_out: usize,
    /// Whether a child's first key can lie above the one that its parent has for it.
    pub loose: bool,
}

#[derive(Debug, Clone)]
pub(super) struct Image {
    pub blocks: Vec<Block>,
    known: HashMap<Vec<u8>, u64>,
}

impl Image {
    /// Only room for a superblock.
    pub(super) fn new() -> Self {
        Self { blocks: vec![Block([0; BLOCK_SIZE])], known: HashMap::new() }
    }

    /// The block of a node like this one, which is written if there is none.
    pub(super) fn node(&mut self, leaf: bool, entries: &[(u64, Vec<u8>)], size: usize) -> u64 {
        let mut block = Block([0; BLOCK_SIZE]);
        let capacity = (BLOCK_SIZE - 32) / (8 + size);
        let header = [if leaf { 2 } else { 1 }, 0, 0, entries.len(), capacity, size];
        for (i, number) in header.into_iter().enumerate() {
            let number = u32::try_from(number).unwrap().to_le_bytes();
            block.0[4 + 4 * i..][..4].copy_from_slice(&number);
        }
        for (i, (key, value)) in entries.iter().enumerate() {
            block.0[32 + 8 * i..][..8].copy_from_slice(&key.to_le_bytes());
            block.0[32 + 8 * capacity + size * i..][..size].copy_from_slice(value);
        }
        if let Some(number) = self.known.get(&block.0[..]) {
            return *number;
        }
        let number = self.blocks.len() as u64;
        self.known.insert(block.0.to_vec(), number);
        self.blocks.push(block);
        self.seal(number, BlockKind::BtreeNode);
        number
    }

    /// Writes a block's number and checksum into it.
    pub(super) fn seal(&mut self, number: u64, kind: BlockKind) {
        let block = &mut self.blocks[usize::try_from(number).unwrap()];
        block.0[8..16].copy_from_slice(&number.to_le_bytes());
        let checksum = block.checksum(kind);
        block.0[..4].copy_from_slice(&checksum.to_le_bytes());
    }

    /// The root of a tree of a shape.
    pub(super) fn tree(
        &mut self,
        entries: &BTreeMap<u64, Vec<u8>>,
        size: usize,
        shape: Shape,
    ) -> u64 {
        let entries: Vec<(u64, Vec<u8>)> = entries.clone().into_iter().collect();
        let leaves = entries.chunk_by(|one, next| one.0 / shape.leaf == next.0 / shape.leaf);
        let mut level: Vec<(u64, Vec<u8>)> = leaves
            .map(|leaf| {
                let first = leaf[0].0;
                let low = if shape.loose { first - first % shape.leaf } else { first };
                (low, self.node(true, leaf, size).to_le_bytes().to_vec())
            })
            .collect();
        if level.is_empty() {
            return self.node(true, &[], size);
        }
        while level.len() > 1 {
            level = level
                .chunks(shape.fan_out)
                .map(|children| {
                    (children[0].0, self.node(false, children, 8).to_le_bytes().to_vec())
                })
                .collect();
        }
        u64::from_le_bytes(level[0].1.clone().try_into().unwrap())
    }

    /// A device's tree: thin blocks and where they lie.
    pub(super) fn device(&mut self, mapped: &BTreeMap<u64, u64>, shape: Shape) -> u64 {
        let value = |(key, data): (&u64, &u64)| (*key, (data << 24 | 5).to_le_bytes().to_vec());
        self.tree(&mapped.iter().map(value).collect(), 8, shape)
    }

    /// Writes the superblock of a pool with these devices: the root and the count of mapped blocks.
    pub(super) fn finish(&mut self, devices: &BTreeMap<u64, (u64, u64)>) {
        let shape = Shape { leaf: 100, fan_out: 100, loose: false };
        let roots = devices.iter().map(|(id, (root, _))| (*id, root.to_le_bytes().to_vec()));
        let mapping_root = self.tree(&roots.collect(), 8, shape);
        let details = devices.iter().map(|(id, (_, mapped))| {
            (
                *id,
                [&mapped.to_le_bytes()[..], &[7, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0]]
                    .concat(),
            )
        });
        let details_root = self.tree(&details.collect(), 24, shape);
        let numbers: [(usize, u64); 9] = [
            (32, 27_022_010),
            (40, 9 << 32 | 2),
            (48, 11),
            (64, DATA_BLOCKS),
            (192, METADATA_BLOCKS),
            (320, mapping_root),
            (328, details_root),
            (336, 8 << 32 | 128),
            (344, METADATA_BLOCKS),
        ];
        for (at, number) in numbers {
            self.put(0, at, &number.to_le_bytes());
        }
        self.seal(0, BlockKind::Superblock);
    }

    /// Overwrites some bytes of a block.
    pub(super) fn put(&mut self, number: u64, at: usize, bytes: &[u8]) {
        let block = &mut self.blocks[usize::try_from(number).unwrap()];
        block.0[at..][..bytes.len()].copy_from_slice(bytes);
    }

    pub(super) fn write(&self, path: &Path) {
        let bytes: Vec<u8> = self.blocks.iter().flat_map(|block| block.0).collect();
        std::fs::write(path, bytes).unwrap();
        let file = std::fs::File::options().write(true).open(path).unwrap();
        file.set_len(METADATA_BLOCKS * BLOCK_SIZE as u64).unwrap();
    }
}
