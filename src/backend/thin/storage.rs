//! What a pool lies on: two block devices, one, or two files behind loop devices.

use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::FallocateFlags;

use super::ThinStorage;
use super::header::{Header, RESERVED, Role};
use crate::backend::Expected;
use crate::error::{Error, ErrorKind, Result};
use crate::failpoint::{BackendStep, reached_blocking};
use crate::linux::device_mapper::{SECTOR, Target};
use crate::linux::device_node::block_number;
use crate::linux::loop_device::LoopDevice;
use crate::linux::{LockFile, durable, is_blank, loop_image, size_of_device};
use crate::units::ByteSize;

const DATA_FILE: &str = "data";
const METADATA_FILE: &str = "metadata";
const LOCK: &str = ".lock";

/// What the kernel may need for one chunk (`thin-provisioning.rst`), and four times that: snapshots
/// that have gone their own ways count several times.
const METADATA_PER_CHUNK: u64 = 4 * 48;
const SMALLEST_METADATA: u64 = 16 << 20;
/// `THIN_METADATA_MAX_SECTORS` of the kernel's dm-thin-metadata.h; what is larger is not used.
const LARGEST_METADATA: u64 = 255 * ((1 << 14) - 64) * 4096;

/// How much of the metadata's file has its place on the filesystem below before it is needed. The kernel
/// takes the lowest free block, so that what is used lies at the beginning.
const METADATA_AHEAD: u64 = 16 << 20;

/// How much a pool on files may grow before its metadata has to: holes cost nothing.
const GROWTH: u64 = 8;

/// The devices of a pool, open, and ours alone among daemons.
#[derive(Debug)]
pub(super) struct Storage {
    data: Member,
    metadata: Option<Member>,
    _lock: Option<LockFile>,
}

/// One device.
#[derive(Debug)]
struct Member {
    path: PathBuf,
    file: File,
    number: (u32, u32),
    image: Option<Image>,
}

/// The file behind a device.
#[derive(Debug)]
struct Image {
    path: PathBuf,
    file: File,
    /// Keeps the device until something lies on it.
    _device: LoopDevice,
}

/// A part of a device, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Area {
    number: (u32, u32),
    start: u64,
    pub length: u64,
}

impl Area {
    /// The table that shows it as a device.
    pub(super) fn table(self) -> [Target; 1] {
        let (major, minor) = self.number;
        [Target {
            start: 0,
            length: self.length / SECTOR,
            kind: "linear",
            parameters: format!("{major}:{minor} {}", self.start / SECTOR),
        }]
    }
}

/// What a pool's devices say of themselves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Found {
    /// There is nothing on them.
    Blank,
    /// A pool of ours; of one that was not finished the second header may be missing.
    Ours(Header),
}

impl Storage {
    /// Whether there is anything to open without making it.
    pub(super) fn is_there(storage: &ThinStorage) -> Result<bool> {
        match storage {
            ThinStorage::Devices { .. } => Ok(true),
            ThinStorage::Files { directory, .. } => {
                directory.join(DATA_FILE).try_exists().map_err(|error| {
                    Error::io(format!("cannot look at {}", directory.display()), error)
                })
            }
        }
    }

    /// Opens the devices, or makes the files and puts them behind loop devices.
    ///
    /// # Errors
    /// `InUse` if another daemon has them.
    pub(super) fn open(
        storage: &ThinStorage,
        chunk_size: ByteSize,
        expected: &Expected,
    ) -> Result<Self> {
        match storage {
            ThinStorage::Devices { data, metadata } => {
                if metadata.as_ref() == Some(data) {
                    return Err(Error::invalid("thin.data and thin.metadata are the same device")
                        .hint("name only thin.data: one device is divided by Holdfast"));
                }
                let data = Member::device(data)?;
                let metadata = metadata.as_deref().map(Member::device).transpose()?;
                if metadata.as_ref().is_some_and(|metadata| metadata.number == data.number) {
                    return Err(Error::invalid("thin.data and thin.metadata are the same device"));
                }
                Ok(Self { data, metadata, _lock: None })
            }
            ThinStorage::Files { directory, size } => {
                if !Self::is_there(storage)? {
                    expected.admit(&storage.to_string(), None, |_| Ok(false))?;
                }
                std::fs::create_dir_all(directory).map_err(|error| {
                    Error::io(format!("cannot make {}", directory.display()), error)
                        .hint("set the directory by [thin] file")
                })?;
                let lock = LockFile::acquire(&directory.join(LOCK)).map_err(|error| {
                    error.context("the pool is in use").hint("one daemon uses a pool at a time")
                })?;
                let chunk = chunk_size.bytes();
                let data = size.round_up(chunk).and_then(|size| size.bytes().checked_add(RESERVED));
                let data = data.ok_or_else(|| Error::invalid(format!("{size} is too large")))?;
                let metadata = RESERVED + metadata_size(size.bytes().saturating_mul(GROWTH), chunk);
                let storage = Self {
                    data: Member::image(directory.join(DATA_FILE), data)?,
                    metadata: Some(Member::image(directory.join(METADATA_FILE), metadata)?),
                    _lock: Some(lock),
                };
                storage.keep_room_for_metadata(0)?;
                Ok(storage)
            }
        }
    }

    /// Looks at the headers of all devices.
    ///
    /// # Errors
    /// Something on them that is not ours, or not of one pool.
    pub(super) fn look(&self) -> Result<Found> {
        let data = self.data.header()?;
        let Some(member) = &self.metadata else {
            return match data {
                None => Ok(Found::Blank),
                Some(header) if matches!(header.role, Role::Whole { .. }) => {
                    Ok(Found::Ours(header))
                }
                Some(_) => Err(Error::conflict(format!(
                    "{} is one of the two devices of a pool",
                    self.data.path.display()
                ))
                .hint("name the other one too: thin.data and thin.metadata")),
            };
        };
        match (data, member.header()?) {
            (None, None) => Ok(Found::Blank),
            (Some(data), Some(metadata)) => {
                if data.pool != metadata.pool
                    || data.role != Role::Data
                    || metadata.role != Role::Metadata
                {
                    return Err(Error::conflict(format!(
                        "{} and {} are not the data and the metadata of one pool",
                        self.data.path.display(),
                        member.path.display()
                    ))
                    .hint("are the devices exchanged?"));
                }
                Ok(Found::Ours(metadata))
            }
            // The data's header is written first.
            (Some(data), None) if data.role == Role::Data => Ok(Found::Ours(data)),
            _ => Err(Error::conflict(format!(
                "{} is not the data of the pool whose metadata is on {}",
                self.data.path.display(),
                member.path.display()
            ))),
        }
    }

    /// Writes the headers of a new pool, or what has changed in them, which is `step`. The last one is
    /// written when all the others are on the disk.
    pub(super) fn write_headers(&self, header: &Header, step: BackendStep) -> Result<()> {
        match &self.metadata {
            None => header.write(&self.data.file, &self.data.path)?,
            Some(metadata) => {
                let data = Header { role: Role::Data, ..header.clone() };
                data.write(&self.data.file, &self.data.path)?;
                // Between the two as well: then only one of them is there, or they differ.
                reached_blocking(step)?;
                let header = Header { role: Role::Metadata, ..header.clone() };
                header.write(&metadata.file, &metadata.path)?;
            }
        }
        reached_blocking(step)
    }

    /// Makes sure that nobody's data is on devices on which a pool is to be made.
    pub(super) fn require_blank(&self) -> Result<()> {
        for member in [Some(&self.data), self.metadata.as_ref()].into_iter().flatten() {
            member.require_blank()?;
        }
        Ok(())
    }

    /// How a new pool divides the devices.
    pub(super) fn plan(&self, chunk_size: ByteSize) -> Result<Role> {
        if self.metadata.is_some() {
            return Ok(Role::Data);
        }
        let size = self.data.size()?;
        let metadata = ByteSize::new(metadata_size(size, chunk_size.bytes()));
        Ok(Role::Whole { metadata })
    }

    /// Where the metadata and the data are.
    ///
    /// # Errors
    /// `Invalid` if the devices are too small.
    pub(super) fn areas(&self, header: &Header) -> Result<(Area, Area)> {
        let size = self.data.size()?;
        let (metadata, data_start) = match (&self.metadata, &header.role) {
            (Some(member), _) => {
                let length = member.size()?.saturating_sub(RESERVED).min(LARGEST_METADATA);
                let length = length / 4096 * 4096;
                (Area { number: member.number, start: RESERVED, length }, RESERVED)
            }
            (None, Role::Whole { metadata }) => {
                let length = metadata.bytes();
                let area = Area { number: self.data.number, start: RESERVED, length };
                (area, RESERVED.saturating_add(length))
            }
            (None, _) => return Err(Error::internal("a pool without metadata")),
        };
        let chunk = header.chunk_size.bytes();
        let length = size.saturating_sub(data_start) / chunk * chunk;
        let data = Area { number: self.data.number, start: data_start, length };
        const SMALLEST_DATA: u64 = 128 << 20;
        if metadata.length < 2 << 20 || data.length < SMALLEST_DATA {
            return Err(Error::invalid(format!(
                "{} is too small for a pool",
                self.data.path.display()
            ))
            .hint("give 256M at least for the data and 16M for the metadata"));
        }
        Ok((metadata, data))
    }

    /// Makes the data's file `size` bytes larger than its header, and the metadata's in proportion.
    /// `None` where a pool lies on devices.
    pub(super) fn grow_files(&self, size: ByteSize, chunk_size: ByteSize) -> Result<Option<()>> {
        let Some(image) = &self.data.image else { return Ok(None) };
        let whole = |bytes: u64| ByteSize::new(bytes.saturating_add(RESERVED));
        loop_image::grow(&image.file, &image.path, whole(size.bytes()))?.ignore();
        if let Some(Image { file, path, .. }) =
            self.metadata.as_ref().and_then(|m| m.image.as_ref())
        {
            let metadata = metadata_size(size.bytes(), chunk_size.bytes());
            loop_image::grow(file, path, whole(metadata))?.ignore();
        }
        reached_blocking(BackendStep::PoolGrowFiles)?;
        Ok(Some(()))
    }

    /// By how much the data's file may grow so that all of it still finds its place on the filesystem
    /// below; `None` where the pool lies on devices.
    pub(super) fn room_below(&self) -> Result<Option<u64>> {
        let Some(image) = &self.data.image else { return Ok(None) };
        Ok(Some(image.available()?.saturating_sub(image.holes()?)))
    }

    /// How much of the data's file will find no place on the filesystem below.
    pub(super) fn without_place(&self) -> Result<u64> {
        let Some(image) = &self.data.image else { return Ok(0) };
        Ok(image.holes()?.saturating_sub(image.available()?))
    }

    /// Gives the metadata's file its place on the filesystem below, as far as it will be needed next. A
    /// pool without room for data goes on; one without room for metadata is broken.
    pub(super) fn keep_room_for_metadata(&self, used: u64) -> Result<()> {
        let image = self.metadata.as_ref().and_then(|member| member.image.as_ref());
        image.map_or(Ok(()), |image| image.keep_room(RESERVED + used + METADATA_AHEAD))
    }
}

impl Image {
    fn available(&self) -> Result<u64> {
        crate::linux::filesystem_usage(&self.path).map(|room| room.available)
    }

    /// Bytes that have no place on the filesystem below yet.
    fn holes(&self) -> Result<u64> {
        let meta = self.file.metadata().map_err(|error| self.failed(error))?;
        Ok(meta.len().saturating_sub(meta.blocks().saturating_mul(SECTOR)))
    }

    fn keep_room(&self, length: u64) -> Result<()> {
        let meta = self.file.metadata().map_err(|error| self.failed(error))?;
        let length = i64::try_from(length.min(meta.len())).unwrap_or(i64::MAX);
        let flags = FallocateFlags::FALLOC_FL_KEEP_SIZE;
        match nix::fcntl::fallocate(&self.file, flags, 0, length) {
            // Where that is unknown there may be no such thing as a place kept.
            Ok(()) | Err(Errno::EOPNOTSUPP) => Ok(()),
            Err(errno) => Err(Error::io(
                format!("cannot keep room for {}", self.path.display()),
                errno.into(),
            )
            .hint("make room on the filesystem that it is on")),
        }
    }

    fn failed(&self, error: std::io::Error) -> Error {
        Error::io(format!("cannot inspect {}", self.path.display()), error)
    }
}

impl Member {
    fn device(path: &Path) -> Result<Self> {
        let failed =
            |error| Error::io(format!("cannot open the pool's device {}", path.display()), error);
        let number = block_number(path).map_err(|error| {
            failed(error).hint("thin.data and thin.metadata name block devices")
        })?;
        let file = OpenOptions::new().read(true).write(true).open(path).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Error::in_use(format!(
                    "another process has locked {}",
                    path.display()
                ))
                .hint("one daemon uses a pool at a time"));
            }
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        Ok(Self { path: path.to_owned(), file, number, image: None })
    }

    fn image(path: PathBuf, size: u64) -> Result<Self> {
        let failed = |error| Error::io(format!("cannot open {}", path.display()), error);
        let image = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(nix::libc::O_NOFOLLOW)
            .open(&path)
            .map_err(failed)?;
        if image.metadata().map_err(failed)?.len() == 0 {
            loop_image::set_size(&image, ByteSize::new(size))?;
            image.sync_all().map_err(failed)?;
            path.parent().map_or(Ok(()), durable::sync_directory)?;
        }
        let device = loop_image::attach(&image, &path)?;
        let node = device.path();
        let file = OpenOptions::new().read(true).write(true).open(&node).map_err(failed)?;
        let number = block_number(&node).map_err(failed)?;
        let image = Some(Image { path, file: image, _device: device });
        Ok(Self { path: node, file, number, image })
    }

    fn size(&self) -> Result<u64> {
        size_of_device(&self.file)
            .map_err(|error| Error::io(format!("cannot size {}", self.path.display()), error))
    }

    fn header(&self) -> Result<Option<Header>> {
        Header::read(&self.file, &self.path)
    }

    fn require_blank(&self) -> Result<()> {
        let exclusive = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(nix::libc::O_EXCL)
            .open(&self.path);
        if let Err(error) = exclusive {
            let error = Error::io(format!("{} is in use", self.path.display()), error);
            return Err(error
                .with_kind(ErrorKind::InUse)
                .hint(format!("see who uses it: findmnt {0}; lsblk {0}", self.path.display())));
        }
        if is_blank(&self.path)? {
            return Ok(());
        }
        Err(Error::conflict(format!(
            "{} holds something; no pool is made on it",
            self.path.display()
        ))
        .hint("if nobody needs what is there: wipefs --all DEVICE, then overwrite its first and last MiB with zeros"))
    }
}

/// What the metadata of so much data may need, in bytes.
fn metadata_size(data: u64, chunk: u64) -> u64 {
    let needed = (data / chunk.max(1)).saturating_mul(METADATA_PER_CHUNK);
    let whole = needed.checked_next_multiple_of(1 << 20).unwrap_or(LARGEST_METADATA);
    whole.clamp(SMALLEST_METADATA, LARGEST_METADATA)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_grows_with_the_data_and_shrinks_with_the_chunks() {
        let (gib, kib) = (1u64 << 30, 1u64 << 10);
        assert_eq!(metadata_size(gib, 64 * kib), 16 << 20);
        assert_eq!(metadata_size(1024 * gib, 64 * kib), 3072 << 20);
        assert_eq!(metadata_size(1024 * gib, 1024 * kib), 192 << 20);
        assert_eq!(metadata_size(u64::MAX, 64 * kib), LARGEST_METADATA);
        assert!(LARGEST_METADATA.is_multiple_of(4096));
    }
}
