//! dm-thin's metadata on disk, read without the kernel's help: which devices a pool has, where their
//! blocks lie, what differs between two of them, and what each holds alone.
//!
//! Nothing is ever written. Every block is held against its checksum, and nothing in it is believed:
//! metadata that contradicts itself ends in an error of kind
//! [`Corrupt`](crate::error::ErrorKind::Corrupt) that names the block.
//!
//! The trees of a pool in use change while they are read. Read such a pool through its metadata
//! snapshot ([`Metadata::open_snapshot`]), which the pool's message `reserve_metadata_snap` makes, and
//! which stays as it is until `release_metadata_snap`.

mod block;
mod btree;
mod changes;
#[cfg(test)]
mod image;
mod mappings;
mod runs;
mod superblock;
#[cfg(test)]
mod tests;
mod usage;

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use crate::error::{Error, Result};
use crate::id::ThinId;
use block::{BlockFile, le32, le64};
use btree::{Cursor, Limits, NodeReader, Value};

pub use changes::{Change, ChangeKind, Changes};
pub use mappings::{Mapping, Mappings};
pub use superblock::Superblock;
pub use usage::Usage;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name($inner);

        impl $name {
            /// The bare number.
            pub const fn number(self) -> $inner {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number! {
    /// The place of a block in a thin device, in blocks. The device's bytes up to the end of the block
    /// can be counted in 64 bits.
    ThinBlock(u64)
}
number! {
    /// The place of a block on the pool's data device, in blocks; within the pool's size.
    DataBlock(u64)
}
number! {
    /// A pool's time, which is no clock: it grows by one with each snapshot.
    PoolTime(u32)
}
number! {
    /// The number by which a pool's manager tells how far its own records and the pool agree.
    TransactionId(u64)
}

/// A device of a pool: a volume or a snapshot; to the pool they are the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Device {
    /// Its id.
    pub id: ThinId,
    /// How many blocks it has mapped, by the kernel's own count.
    pub mapped_blocks: u64,
    /// The pool's transaction when it was made.
    pub transaction: TransactionId,
    /// The pool's time when it was made.
    pub created: PoolTime,
    /// The pool's time when a snapshot of it was last made, or when it was made as a snapshot.
    pub snapshotted: PoolTime,
}

/// A pool's metadata, open for reading.
#[derive(Debug)]
pub struct Metadata {
    reader: NodeReader,
    superblock: Superblock,
}

impl Metadata {
    /// Opens the metadata of a pool that is not active, on a device or in a file. Of an active pool
    /// only the superblock can be relied on.
    ///
    /// Fails with `Corrupt` if there is no sound superblock, and with `Unsupported` if it has
    /// features that are not known here.
    pub fn open(path: &Path) -> Result<Self> {
        let file = BlockFile::open(path)?;
        let superblock = Superblock::read(&file)?;
        Ok(Self::new(file, superblock))
    }

    /// Opens the metadata snapshot of a pool, which has to stay reserved for as long as it is read.
    ///
    /// Fails as [`Metadata::open`] does, and with `NotFound` if no metadata snapshot is reserved.
    pub fn open_snapshot(path: &Path) -> Result<Self> {
        let file = BlockFile::open(path)?;
        let superblock = Superblock::read(&file)?.read_held(&file)?.ok_or_else(|| {
            let what = format!("thin metadata {} has no metadata snapshot", path.display());
            Error::not_found(what)
        })?;
        Ok(Self::new(file, superblock))
    }

    fn new(file: BlockFile, superblock: Superblock) -> Self {
        let limits = Limits {
            metadata_blocks: superblock.metadata_blocks,
            data_blocks: superblock.data_blocks,
            thin_blocks: u64::MAX / superblock.block_size.bytes(),
        };
        Self { reader: NodeReader { file, limits }, superblock }
    }

    /// The superblock. In a metadata snapshot, time and transaction are those of the snapshot; all
    /// else is the pool's.
    pub fn superblock(&self) -> &Superblock {
        &self.superblock
    }

    /// All devices, in ascending order of their ids.
    pub fn devices(&self) -> Result<Vec<Device>> {
        let mut cursor = Cursor::<Details>::new(&self.reader, self.superblock.details_root)?;
        let mut devices = Vec::new();
        while let Some((_, Details(device))) = cursor.next_entry()? {
            devices.push(device);
        }
        Ok(devices)
    }

    /// The mappings of a device: its allocated blocks, and where they lie. Needs no memory in
    /// proportion to the device.
    ///
    /// Fails with `NotFound` if there is no such device.
    pub fn mappings(&self, device: ThinId) -> Result<Mappings<'_>> {
        Ok(Mappings::new(Cursor::new(&self.reader, self.root(device)?)?))
    }

    /// What differs in `other` from `base`. The work is in proportion to the difference, however
    /// large the devices are.
    ///
    /// Two blocks count as equal if they lie at the same place of the data device. This says that
    /// they hold the same bytes only if neither device is written to after it was made as a
    /// snapshot: the kernel overwrites in place what is not shared any more. Compare snapshots that
    /// are never written.
    ///
    /// Fails with `NotFound` if one of the devices does not exist.
    pub fn changes(&self, base: ThinId, other: ThinId) -> Result<Changes<'_>> {
        let base = Cursor::new(&self.reader, self.root(base)?)?;
        let other = Cursor::new(&self.reader, self.root(other)?)?;
        Ok(Changes::new(base, other))
    }

    /// What each device uses. Reads the trees of all devices, nodes that they share only once, and
    /// takes two bits of memory for each block of the pool.
    pub fn usage(&self) -> Result<BTreeMap<ThinId, Usage>> {
        let devices = self.devices()?;
        let mut cursor = Cursor::<Root>::new(&self.reader, self.superblock.mapping_root)?;
        let mut roots = Vec::new();
        while let Some((_, root)) = cursor.next_entry()? {
            roots.push(root);
        }
        if !devices.iter().map(|device| device.id).eq(roots.iter().map(|root| root.device)) {
            let what = "the devices below are not those that have mappings";
            return Err(self.reader.file.corrupt(self.superblock.details_root, what));
        }
        let roots: Vec<u64> = roots.iter().map(|root| root.block).collect();
        let exclusive = usage::exclusive_blocks(&self.reader, &roots)?;
        let usage = devices.iter().zip(exclusive).map(|(device, exclusive)| {
            let shared = device.mapped_blocks.checked_sub(exclusive).ok_or_else(|| {
                let what = format!(
                    "device {} has {exclusive} blocks alone, but only {} mapped",
                    device.id, device.mapped_blocks
                );
                self.reader.file.corrupt(self.superblock.details_root, what)
            })?;
            Ok((device.id, Usage { exclusive, shared }))
        });
        usage.collect()
    }

    fn root(&self, device: ThinId) -> Result<u64> {
        let key = u64::from(device.number());
        btree::lookup::<Root>(&self.reader, self.superblock.mapping_root, key)?
            .map(|root| root.block)
            .ok_or_else(|| Error::not_found(format!("the pool has no thin device {device}")))
    }
}

fn device_id(key: u64) -> Result<ThinId, String> {
    u32::try_from(key)
        .ok()
        .and_then(|number| ThinId::try_from(number).ok())
        .ok_or_else(|| format!("{key} is no id of a thin device"))
}

/// A leaf's value in the details tree: `struct disk_device_details` of dm-thin-metadata.c.
#[derive(Debug, Clone, Copy)]
struct Details(Device);

impl Value for Details {
    const SIZE: usize = 24;

    fn parse(key: u64, bytes: &[u8], limits: &Limits) -> Result<Self, String> {
        let id = device_id(key)?;
        let mapped_blocks = le64(bytes, 0);
        if mapped_blocks > limits.thin_blocks {
            return Err(format!("device {id} cannot have {mapped_blocks} blocks mapped"));
        }
        Ok(Self(Device {
            id,
            mapped_blocks,
            transaction: TransactionId(le64(bytes, 8)),
            created: PoolTime(le32(bytes, 16)),
            snapshotted: PoolTime(le32(bytes, 20)),
        }))
    }
}

/// A leaf's value in the upper mapping tree: the root of one device's tree.
#[derive(Debug, Clone, Copy)]
struct Root {
    device: ThinId,
    block: u64,
}

impl Value for Root {
    const SIZE: usize = 8;

    fn parse(key: u64, bytes: &[u8], _: &Limits) -> Result<Self, String> {
        Ok(Self { device: device_id(key)?, block: le64(bytes, 0) })
    }
}
