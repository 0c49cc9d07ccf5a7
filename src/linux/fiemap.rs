//! Where the ranges of a file lie on its disk, which tells what two reflinked files share.
#![allow(unsafe_code, reason = "FS_IOC_FIEMAP is an ioctl")]
#![allow(unreachable_pub, reason = "nix makes its ioctls pub, and their structures have to be")]

use std::fs::File;
use std::os::fd::AsRawFd;

use nix::errno::Errno;

use crate::error::{Error, Result};

const SYNC: u32 = 1;
const LAST: u32 = 0x1;
const UNKNOWN: u32 = 0x2;
const DELALLOC: u32 = 0x4;
const ENCODED: u32 = 0x8;
const DATA_ENCRYPTED: u32 = 0x80;
const NOT_ALIGNED: u32 = 0x100;
const DATA_INLINE: u32 = 0x200;
const DATA_TAIL: u32 = 0x400;
const UNWRITTEN: u32 = 0x800;

/// The place of these says nothing certain about their bytes.
const UNSURE: u32 =
    UNKNOWN | DELALLOC | ENCODED | DATA_ENCRYPTED | NOT_ALIGNED | DATA_INLINE | DATA_TAIL;

/// Extents asked for in one call.
const BATCH: u32 = 512;

/// `struct fiemap_extent` of linux/fiemap.h.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct RawExtent {
    logical: u64,
    physical: u64,
    length: u64,
    reserved64: [u64; 2],
    flags: u32,
    reserved: [u32; 3],
}

/// `struct fiemap` of linux/fiemap.h, with room for extents.
#[repr(C)]
pub struct RawMap {
    start: u64,
    length: u64,
    flags: u32,
    mapped: u32,
    count: u32,
    reserved: u32,
    extents: [RawExtent; BATCH as usize],
}

// The number carries the size of the structure without the extents behind it.
nix::ioctl_readwrite_bad!(fs_ioc_fiemap, nix::request_code_readwrite!(b'f', 11, 32), RawMap);

/// What a range of a file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// Zeros: allocated and never written.
    Zero,
    /// The bytes at this place of the disk.
    At(u64),
    /// Something that its place does not tell.
    Unsure,
}

/// A range of a file. What lies between two of them is a hole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Extent {
    /// First byte in the file.
    pub start: u64,
    /// Length in bytes.
    pub length: u64,
    /// What it holds.
    pub place: Place,
}

/// The extents of a file in ascending order, after its pending writes reached the disk. `None` if
/// the filesystem cannot tell.
pub(crate) fn extents(file: &File) -> Result<Option<Vec<Extent>>> {
    const NONE: RawExtent = RawExtent {
        logical: 0,
        physical: 0,
        length: 0,
        reserved64: [0; 2],
        flags: 0,
        reserved: [0; 3],
    };
    let mut found: Vec<Extent> = Vec::new();
    let mut start = 0;
    loop {
        let mut map = Box::new(RawMap {
            start,
            length: u64::MAX - start,
            flags: SYNC,
            mapped: 0,
            count: BATCH,
            reserved: 0,
            extents: [NONE; BATCH as usize],
        });
        // SAFETY: `map` is a whole struct fiemap followed by the `count` extents that it promises.
        match unsafe { fs_ioc_fiemap(file.as_raw_fd(), &raw mut *map) } {
            Ok(_) => {}
            Err(Errno::EOPNOTSUPP | Errno::ENOTTY | Errno::EINVAL) => return Ok(None),
            Err(errno) => return Err(Error::io("cannot read a file's extents", errno.into())),
        }
        let mapped = map.mapped.min(BATCH) as usize;
        let batch = &map.extents[..mapped];
        found.extend(batch.iter().map(|raw| Extent {
            start: raw.logical,
            length: raw.length,
            place: match raw.flags {
                flags if flags & UNSURE != 0 => Place::Unsure,
                flags if flags & UNWRITTEN != 0 => Place::Zero,
                _ => Place::At(raw.physical),
            },
        }));
        match batch.last() {
            Some(last) if last.flags & LAST == 0 => start = last.logical + last.length,
            _ => return Ok(Some(found)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn the_structures_have_the_kernels_sizes() {
        assert_eq!(size_of::<RawExtent>(), 56);
        assert_eq!(size_of::<RawMap>(), 32 + 56 * BATCH as usize);
    }

    #[test]
    fn more_extents_than_one_batch_are_all_found() {
        let file = tempfile::tempfile().unwrap();
        for i in 0..1500 {
            file.write_all_at(&[1; 4096], i * 16384).unwrap();
        }
        let Some(extents) = extents(&file).unwrap() else { return };
        let total: u64 = extents.iter().map(|extent| extent.length).sum();
        assert_eq!(total, 1500 * 4096);
        assert!(extents.windows(2).all(|pair| pair[0].start + pair[0].length <= pair[1].start));
    }
}
