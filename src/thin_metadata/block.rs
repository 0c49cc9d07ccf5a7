//! The blocks of a metadata device, read one at a time and held against their checksums.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{FcntlArg, OFlag, fcntl};

use crate::error::{Error, Result};

/// `THIN_METADATA_BLOCK_SIZE` of the kernel's dm-thin-metadata.h, in bytes.
pub(super) const BLOCK_SIZE: usize = 4096;

/// What a block is; its checksum is salted with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BlockKind {
    Superblock,
    BtreeNode,
}

impl BlockKind {
    fn salt(self) -> u32 {
        match self {
            // SUPERBLOCK_CSUM_XOR of dm-thin-metadata.c.
            Self::Superblock => 160_774,
            // BTREE_CSUM_XOR of persistent-data/dm-btree-spine.c.
            Self::BtreeNode => 121_107,
        }
    }
}

/// The bytes of one block, where direct reads can put them.
#[derive(Debug, Clone)]
#[repr(C, align(4096))]
pub(super) struct Block(pub [u8; BLOCK_SIZE]);

impl Block {
    /// What the checksum of this block has to be. It covers all but itself (`dm_bm_checksum`).
    pub(super) fn checksum(&self, kind: BlockKind) -> u32 {
        !crc32c::crc32c(&self.0[4..]) ^ kind.salt()
    }
}

/// The little-endian number at a place of a structure that has one there.
pub(super) fn le32(bytes: &[u8], at: usize) -> u32 {
    let mut raw = [0; 4];
    raw.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(raw)
}

/// The little-endian number at a place of a structure that has one there.
pub(super) fn le64(bytes: &[u8], at: usize) -> u64 {
    let mut raw = [0; 8];
    raw.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(raw)
}

/// A metadata device, or a copy of one in a file.
#[derive(Debug)]
pub(super) struct BlockFile {
    file: File,
    path: PathBuf,
    blocks: u64,
}

impl BlockFile {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let failed =
            |error| Error::io(format!("cannot open thin metadata {}", path.display()), error);
        let mut file = File::open(path).map_err(failed)?;
        if file.metadata().map_err(failed)?.file_type().is_block_device() {
            // The kernel writes metadata past the page cache, where an old block can linger.
            fcntl(&file, FcntlArg::F_SETFL(OFlag::O_DIRECT))
                .map_err(|errno| failed(io::Error::from(errno)))?;
        }
        let length = file.seek(SeekFrom::End(0)).map_err(failed)?;
        Ok(Self { file, path: path.to_owned(), blocks: length / BLOCK_SIZE as u64 })
    }

    /// How many whole blocks there are.
    pub(super) fn blocks(&self) -> u64 {
        self.blocks
    }

    /// The block with this number, once its checksum and the number written in it are right.
    pub(super) fn read(&self, number: u64, kind: BlockKind) -> Result<Box<Block>> {
        if number >= self.blocks {
            return Err(self.corrupt(number, format!("there are only {} blocks", self.blocks)));
        }
        let mut block = Box::new(Block([0; BLOCK_SIZE]));
        self.file
            .read_exact_at(&mut block.0, number * BLOCK_SIZE as u64)
            .map_err(|error| Error::io(format!("cannot read {}", self.name(number)), error))?;
        // Both structures begin alike: checksum, flags, block number.
        let (stored, expected) = (le32(&block.0, 0), block.checksum(kind));
        if stored != expected {
            let what = format!("its checksum is {stored:#010x} and should be {expected:#010x}");
            return Err(self.corrupt(number, what));
        }
        let written = le64(&block.0, 8);
        if written != number {
            return Err(self.corrupt(number, format!("it says that it is block {written}")));
        }
        Ok(block)
    }

    /// A block as errors call it.
    pub(super) fn name(&self, number: u64) -> String {
        format!("block {number} of thin metadata {}", self.path.display())
    }

    /// The error for a block that is not what it should be.
    pub(super) fn corrupt(&self, number: u64, what: impl std::fmt::Display) -> Error {
        Error::corrupt(format!("{}: {what}", self.name(number)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn a_block_counts_only_with_its_checksum_its_number_and_its_kind() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("metadata");
        let mut block = Block([7; BLOCK_SIZE]);
        block.0[8..16].copy_from_slice(&1u64.to_le_bytes());
        let checksum = block.checksum(BlockKind::BtreeNode);
        block.0[..4].copy_from_slice(&checksum.to_le_bytes());
        let write = |bytes: &[u8]| std::fs::write(&path, bytes).unwrap();
        let kind = |number, kind| {
            let read = BlockFile::open(&path).unwrap().read(number, kind);
            read.map(|_| ()).map_err(|error| error.kind())
        };

        write(&[&block.0[..], &block.0[..]].concat());
        assert_eq!(kind(1, BlockKind::BtreeNode), Ok(()));
        assert_eq!(kind(1, BlockKind::Superblock), Err(ErrorKind::Corrupt));
        assert_eq!(kind(0, BlockKind::BtreeNode), Err(ErrorKind::Corrupt), "the other's number");
        assert_eq!(kind(2, BlockKind::BtreeNode), Err(ErrorKind::Corrupt), "past the end");
        assert_eq!(kind(u64::MAX, BlockKind::BtreeNode), Err(ErrorKind::Corrupt));
        write(&[&block.0[..], &block.0[..4095]].concat());
        assert_eq!(kind(1, BlockKind::BtreeNode), Err(ErrorKind::Corrupt), "half a block");
        block.0[4000] ^= 1;
        write(&[&block.0[..], &block.0[..]].concat());
        assert_eq!(kind(1, BlockKind::BtreeNode), Err(ErrorKind::Corrupt));
    }
}
