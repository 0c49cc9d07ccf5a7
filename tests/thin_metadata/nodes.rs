//! Changes the nodes of real metadata: makes devices share what is alike in them, as snapshots do, and
//! spoils single bytes under a good checksum. `thin_restore` writes each device's tree on its own.

use std::collections::HashMap;

pub(crate) const BLOCK: usize = 4096;

/// The checksums' salts of the superblock and of a node (`SUPERBLOCK_CSUM_XOR` of the kernel's
/// dm-thin-metadata.c, `BTREE_CSUM_XOR` of dm-btree-spine.c).
const SALTS: [u32; 2] = [160_774, 121_107];

fn le64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn le32(bytes: &[u8], at: usize) -> usize {
    usize::try_from(u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())).unwrap()
}

pub(crate) struct Nodes<'a> {
    pub bytes: &'a mut Vec<u8>,
}

impl Nodes<'_> {
    pub(crate) fn block(&mut self, number: u64) -> &mut [u8] {
        let at = usize::try_from(number).unwrap() * BLOCK;
        &mut self.bytes[at..at + BLOCK]
    }

    /// Makes the checksum of a block right again.
    pub(crate) fn seal(&mut self, number: u64) {
        let salt = SALTS[usize::from(number != 0)];
        let block = self.block(number);
        let checksum = !crc32c::crc32c(&block[4..]) ^ salt;
        block[..4].copy_from_slice(&checksum.to_le_bytes());
    }

    /// The roots of the mapping tree and of the details tree.
    pub(crate) fn roots(&self) -> [u64; 2] {
        [le64(self.bytes, 320), le64(self.bytes, 328)]
    }

    /// Places in a node of numbers of blocks, and whether it is a leaf.
    fn values(&mut self, number: u64) -> (bool, Vec<usize>) {
        let block = self.block(number);
        let (leaf, count, capacity) = (block[4] & 2 != 0, le32(block, 16), le32(block, 20));
        (leaf, (0..count).map(|i| 32 + 8 * capacity + 8 * i).collect())
    }

    /// The nodes of a tree, or of two above each other.
    pub(crate) fn all(&mut self, root: u64, levels: u32) -> Vec<u64> {
        let mut found = vec![root];
        let (leaf, places) = self.values(root);
        if !leaf || levels > 1 {
            for place in places {
                let child = le64(self.block(root), place);
                found.extend(self.all(child, levels - u32::from(leaf)));
            }
        }
        found
    }

    /// Lets all nodes that are alike in the mapping tree be one. The space maps are wrong afterwards,
    /// but nothing that only reads looks into them.
    pub(crate) fn share(&mut self) {
        let root = self.roots()[0];
        self.share_below(root, 2, &mut HashMap::new());
    }

    fn share_below(&mut self, node: u64, levels: u32, known: &mut HashMap<Vec<u8>, u64>) -> u64 {
        let (leaf, places) = self.values(node);
        if !leaf || levels > 1 {
            for place in places {
                let child = le64(self.block(node), place);
                let same = self.share_below(child, levels - u32::from(leaf), known);
                self.block(node)[place..place + 8].copy_from_slice(&same.to_le_bytes());
            }
            self.seal(node);
        }
        let content = self.block(node)[16..].to_vec();
        *known.entry(content).or_insert(node)
    }
}
