//! The superblock: what a pool is, and where its trees begin.

use uuid::Uuid;

use super::block::{BLOCK_SIZE, Block, BlockFile, BlockKind, le32, le64};
use super::{PoolTime, TransactionId};
use crate::error::{Error, Result};
use crate::units::ByteSize;

/// `THIN_SUPERBLOCK_LOCATION` of the kernel's dm-thin-metadata.c, as are the next four.
const LOCATION: u64 = 0;
const MAGIC: u64 = 27_022_010;
const VERSION: u32 = 2;
const DATA_SPACE_MAP_ROOT: usize = 64;
const METADATA_SPACE_MAP_ROOT: usize = 192;

/// `THIN_METADATA_NEEDS_CHECK_FLAG` of dm-thin-metadata.h.
const NEEDS_CHECK: u32 = 1;

const SECTOR: u64 = 512;

/// `DATA_DEV_BLOCK_SIZE_MIN_SECTORS` of dm-thin.c; a block size is a multiple of it.
const SMALLEST_BLOCK: u64 = 64 << 10;
/// `DATA_DEV_BLOCK_SIZE_MAX_SECTORS` of dm-thin.c.
const LARGEST_BLOCK: u64 = 1 << 30;

/// Blocks that one bitmap block of a space map counts: two bits each behind a header of
/// 16 bytes (persistent-data/dm-space-map-common.h).
const BLOCKS_PER_BITMAP: u64 = 4 * (BLOCK_SIZE as u64 - 16);

/// The space map of the metadata has at most so many bitmap blocks (`MAX_METADATA_BITMAPS` there).
const MAX_METADATA_BITMAPS: u64 = 255;

/// What the superblock says of a pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Superblock {
    /// The UUID field. The kernel leaves it zero.
    pub uuid: Uuid,
    /// How often the pool has made snapshots.
    pub time: PoolTime,
    /// The transaction that the pool's manager set last.
    pub transaction: TransactionId,
    /// Size of a data block, and so of a thin block.
    pub block_size: ByteSize,
    /// Metadata blocks of 4096 bytes that the pool uses or may use.
    pub metadata_blocks: u64,
    /// Data blocks of the pool, used and free.
    pub data_blocks: u64,
    /// Whether the kernel refuses to change the pool until `thin_check` has passed.
    pub needs_check: bool,
    /// The block of the metadata snapshot, if one is reserved.
    pub held_root: Option<u64>,
    pub(super) mapping_root: u64,
    pub(super) details_root: u64,
}

impl Superblock {
    /// The superblock of the pool as it is now.
    pub(super) fn read(file: &BlockFile) -> Result<Self> {
        let superblock = Self::read_at(file, LOCATION)?;
        let wrong = |what: String| Err(file.corrupt(LOCATION, what));
        if superblock.metadata_blocks > MAX_METADATA_BITMAPS * BLOCKS_PER_BITMAP {
            return wrong(format!("no pool has {} metadata blocks", superblock.metadata_blocks));
        }
        if superblock.metadata_blocks > file.blocks() {
            return wrong(format!(
                "the pool has {} metadata blocks, but the device only {}",
                superblock.metadata_blocks,
                file.blocks()
            ));
        }
        // Keeps what is counted per data block in proportion to the metadata.
        if superblock.data_blocks.div_ceil(BLOCKS_PER_BITMAP) > superblock.metadata_blocks {
            return wrong(format!(
                "{} data blocks need a larger space map than {} metadata blocks hold",
                superblock.data_blocks, superblock.metadata_blocks
            ));
        }
        Ok(superblock)
    }

    /// The same pool as its metadata snapshot shows it. `None` if none is reserved.
    pub(super) fn read_held(self, file: &BlockFile) -> Result<Option<Self>> {
        let Some(root) = self.held_root else { return Ok(None) };
        let held = Self::read_at(file, root)?;
        if held.block_size != self.block_size {
            return Err(file.corrupt(root, "its data block size is not the pool's"));
        }
        // The kernel wipes the space maps' roots in the copy, so the sizes are the pool's.
        Ok(Some(Self {
            time: held.time,
            transaction: held.transaction,
            mapping_root: held.mapping_root,
            details_root: held.details_root,
            ..self
        }))
    }

    fn read_at(file: &BlockFile, number: u64) -> Result<Self> {
        let block = file.read(number, BlockKind::Superblock)?;
        Self::parse(&block).map_err(|problem| match problem {
            Problem::Wrong(what) => file.corrupt(number, what),
            Problem::Foreign(what) => Error::unsupported(format!("{}: {what}", file.name(number))),
        })
    }

    /// Reads `struct thin_disk_superblock` of dm-thin-metadata.c.
    fn parse(block: &Block) -> Result<Self, Problem> {
        let bytes = &block.0;
        let wrong = |what: String| Err(Problem::Wrong(what));
        let foreign = |what: String| Err(Problem::Foreign(what));
        let magic = le64(bytes, 32);
        if magic != MAGIC {
            return wrong(format!("its magic number is {magic} and should be {MAGIC}"));
        }
        let version = le32(bytes, 40);
        if version != VERSION {
            return foreign(format!("it has version {version}; only {VERSION} is known"));
        }
        let incompatible = le32(bytes, 360);
        if incompatible != 0 {
            return foreign(format!("it has the unknown features {incompatible:#x}"));
        }
        let metadata_block_size = u64::from(le32(bytes, 340)) * SECTOR;
        if metadata_block_size != BLOCK_SIZE as u64 {
            return foreign(format!("its metadata blocks have {metadata_block_size} bytes"));
        }
        let block_size = u64::from(le32(bytes, 336)) * SECTOR;
        if !(SMALLEST_BLOCK..=LARGEST_BLOCK).contains(&block_size)
            || !block_size.is_multiple_of(SMALLEST_BLOCK)
        {
            return wrong(format!("no data block has {block_size} bytes"));
        }
        let mut uuid = [0; 16];
        uuid.copy_from_slice(&bytes[16..32]);
        Ok(Self {
            uuid: Uuid::from_bytes(uuid),
            time: PoolTime(le32(bytes, 44)),
            transaction: TransactionId(le64(bytes, 48)),
            block_size: ByteSize::new(block_size),
            metadata_blocks: le64(bytes, METADATA_SPACE_MAP_ROOT),
            data_blocks: le64(bytes, DATA_SPACE_MAP_ROOT),
            needs_check: le32(bytes, 4) & NEEDS_CHECK != 0,
            held_root: Some(le64(bytes, 56)).filter(|root| *root != LOCATION),
            mapping_root: le64(bytes, 320),
            details_root: le64(bytes, 328),
        })
    }
}

enum Problem {
    Wrong(String),
    Foreign(String),
}
