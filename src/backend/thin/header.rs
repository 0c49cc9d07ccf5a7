//! Which pool a device or file belongs to, written at its beginning: what is not ours is never
//! touched.
//!
//! ```text
//! 0        4096     8192              1 MiB
//! | header | header | nothing         | the pool's metadata, its data, or both
//! ```
//!
//! A header is `HOLDFAST`, the length of a JSON text, its checksum (both 32 bits, little-endian), and the
//! text. There are two, written one after the other, so that one is whole at any time.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::id::PoolUuid;
use crate::units::ByteSize;

/// Where the pool's own part begins.
pub(super) const RESERVED: u64 = 1 << 20;

const MAGIC: &[u8; 8] = b"HOLDFAST";
const BLOCK: usize = 4096;
const PLACES: [u64; 2] = [0, BLOCK as u64];
const FORMAT: u32 = 1;

/// What a device or file is to its pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "role")]
pub(super) enum Role {
    /// Everything from the first byte after the header on is data.
    Data,
    /// ... is metadata.
    Metadata,
    /// First metadata, then data.
    Whole {
        /// How much of it is metadata.
        metadata: ByteSize,
    },
}

/// How far the pool has been made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Progress {
    /// Nobody was told of it yet: it may be made again from the beginning.
    Begun,
    /// It holds data. A pool whose metadata is gone is damaged, not new.
    Made,
}

/// The header of one device or file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Header {
    pub format: u32,
    /// The pool.
    pub pool: PoolUuid,
    #[serde(flatten)]
    pub role: Role,
    /// Size of the pool's chunks, fixed for its life.
    pub chunk_size: ByteSize,
    pub progress: Progress,
}

impl Header {
    pub(super) fn new(pool: PoolUuid, role: Role, chunk_size: ByteSize) -> Self {
        Self { format: FORMAT, pool, role, chunk_size, progress: Progress::Begun }
    }

    /// Reads the header; `None` if both of its places hold zeros.
    ///
    /// # Errors
    /// `Conflict` if something else is there, `Unsupported` if a newer version wrote it.
    pub(super) fn read(file: &File, path: &Path) -> Result<Option<Self>> {
        let mut blank = true;
        for place in PLACES {
            let mut block = [0; BLOCK];
            file.read_exact_at(&mut block, place)
                .map_err(|error| Error::io(format!("cannot read {}", path.display()), error))?;
            blank &= block == [0; BLOCK];
            if let Some(header) = Self::parse(&block) {
                if header.format > FORMAT {
                    return Err(Error::unsupported(format!(
                        "{} belongs to a pool that a newer Holdfast made",
                        path.display()
                    ))
                    .hint("install the newer version again; nothing was changed"));
                }
                return Ok(Some(header));
            }
        }
        if blank {
            return Ok(None);
        }
        Err(Error::conflict(format!("{} holds something that is not ours", path.display()))
            .hint("name another device, or wipe this one if nobody needs it: wipefs --all DEVICE, then overwrite its first MiB with zeros"))
    }

    fn parse(block: &[u8; BLOCK]) -> Option<Self> {
        let rest = block.strip_prefix(MAGIC)?;
        let (length, rest) = rest.split_first_chunk::<4>()?;
        let (checksum, rest) = rest.split_first_chunk::<4>()?;
        let text = rest.get(..usize::try_from(u32::from_le_bytes(*length)).ok()?)?;
        if crc32c::crc32c(text) != u32::from_le_bytes(*checksum) {
            return None;
        }
        serde_json::from_slice(text).ok()
    }

    /// Writes the header through to the disk.
    pub(super) fn write(&self, file: &File, path: &Path) -> Result<()> {
        let text = serde_json::to_vec(self)
            .map_err(|error| Error::internal("cannot write a header").caused_by(error))?;
        let length = u32::try_from(text.len()).unwrap_or(u32::MAX).to_le_bytes();
        let mut block = [&MAGIC[..], &length, &crc32c::crc32c(&text).to_le_bytes(), &text].concat();
        if block.len() > BLOCK {
            return Err(Error::internal("a header is too long"));
        }
        block.resize(BLOCK, 0);
        for place in PLACES {
            file.write_all_at(&block, place)
                .and_then(|()| file.sync_all())
                .map_err(|error| Error::io(format!("cannot write {}", path.display()), error))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::error::ErrorKind;

    fn header() -> Header {
        let pool = PoolUuid::from_uuid(Uuid::from_u128(7));
        Header::new(pool, Role::Whole { metadata: ByteSize::GIB }, ByteSize::new(65536))
    }

    #[test]
    fn a_header_comes_back_also_when_one_of_the_two_is_torn() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(RESERVED).unwrap();
        let path = Path::new("device");
        assert_eq!(Header::read(&file, path).unwrap(), None);
        header().write(&file, path).unwrap();
        let made = Header { progress: Progress::Made, ..header() };
        for torn in PLACES {
            made.write(&file, path).unwrap();
            file.write_all_at(&[0xff; 512], torn).unwrap();
            assert_eq!(Header::read(&file, path).unwrap().unwrap(), made);
        }
    }

    #[test]
    fn what_is_not_ours_is_never_taken_for_blank() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(RESERVED).unwrap();
        let path = Path::new("device");
        for place in [0, 1080, 5000, 8191] {
            file.write_all_at(b"x", place).unwrap();
            assert_eq!(Header::read(&file, path).unwrap_err().kind(), ErrorKind::Conflict);
            file.write_all_at(&[0], place).unwrap();
        }
        Header { format: FORMAT + 1, ..header() }.write(&file, path).unwrap();
        assert_eq!(Header::read(&file, path).unwrap_err().kind(), ErrorKind::Unsupported);
        file.write_all_at(b"x", 100).unwrap();
        file.write_all_at(b"x", 4196).unwrap();
        assert_eq!(Header::read(&file, path).unwrap_err().kind(), ErrorKind::Conflict);
        file.set_len(100).unwrap();
        assert!(Header::read(&file, path).is_err(), "too short to be read");
    }
}
