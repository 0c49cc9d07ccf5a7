//! A block device as the storage of a redb database, which wants something like a file: with a length
//! that changes.
//!
//! The length stands in the first two blocks of the device, in turn, each with a number that grows and
//! a checksum: after a crash the length is the one before or the one after.

use std::fs::File;
use std::io::{Error as IoError, ErrorKind, Result as IoResult};
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, PoisonError};

use redb::StorageBackend;

const BLOCK: u64 = 4096;
/// Where the database begins.
const START: u64 = 2 * BLOCK;
const ZEROS: usize = 1 << 20;

/// The storage. The device is open and nobody else's.
#[derive(Debug)]
pub(super) struct DeviceStorage {
    file: File,
    capacity: u64,
    length: Mutex<Length>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Length {
    /// Grows with each change; even ones are in the first block, odd ones in the second.
    number: u64,
    bytes: u64,
}

impl DeviceStorage {
    /// A storage of length 0 on a device of `capacity` bytes. The first `ready` of them are written,
    /// so that they have their place in the pool also when it is full.
    pub(super) fn create(file: File, capacity: u64, ready: u64) -> IoResult<Self> {
        let storage = Self { file, capacity, length: Mutex::default() };
        storage.zero(0, ready.min(capacity))?;
        storage.file.sync_all()?;
        storage.write_length(Length::default())?;
        storage.file.sync_all()?;
        Ok(storage)
    }

    /// The storage that is on the device.
    pub(super) fn open(file: File, capacity: u64) -> IoResult<Self> {
        let mut found = None;
        for slot in [0, 1] {
            let mut block = [0; 24];
            file.read_exact_at(&mut block, slot * BLOCK)?;
            let length = Length::parse(&block).filter(|length| length.number % 2 == slot);
            found = found.max(length.map(|length| (length.number, length.bytes)));
        }
        let (number, bytes) =
            found
                .filter(|(_, bytes)| *bytes <= capacity.saturating_sub(START))
                .ok_or_else(|| IoError::new(ErrorKind::InvalidData, "there are no records"))?;
        Ok(Self { file, capacity, length: Mutex::new(Length { number, bytes }) })
    }

    fn length(&self) -> std::sync::MutexGuard<'_, Length> {
        self.length.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_length(&self, length: Length) -> IoResult<()> {
        self.file.write_all_at(&length.block(), length.number % 2 * BLOCK)
    }

    fn zero(&self, from: u64, to: u64) -> IoResult<()> {
        let zeros = vec![0; ZEROS];
        let mut at = from;
        while at < to {
            let length = (to - at).min(ZEROS as u64);
            let part = zeros.get(..usize::try_from(length).unwrap_or(ZEROS)).unwrap_or(&zeros);
            self.file.write_all_at(part, at)?;
            at += length;
        }
        Ok(())
    }

    /// The place on the device of `count` bytes at `offset`, which have to be within the length.
    fn place(&self, offset: u64, count: usize) -> IoResult<u64> {
        let end = offset.checked_add(count as u64);
        match end {
            Some(end) if end <= self.length().bytes => Ok(START + offset),
            _ => Err(IoError::new(ErrorKind::UnexpectedEof, "past the end of the records")),
        }
    }
}

impl Length {
    fn block(self) -> [u8; 24] {
        let mut block = [0; 24];
        block[..8].copy_from_slice(&self.number.to_le_bytes());
        block[8..16].copy_from_slice(&self.bytes.to_le_bytes());
        let checksum = crc32c::crc32c(&block[..16]);
        block[16..20].copy_from_slice(&checksum.to_le_bytes());
        block[20..].copy_from_slice(b"HOLD");
        block
    }

    fn parse(block: &[u8; 24]) -> Option<Self> {
        let (number, rest) = block.split_first_chunk()?;
        let (bytes, _) = rest.split_first_chunk()?;
        let length =
            Self { number: u64::from_le_bytes(*number), bytes: u64::from_le_bytes(*bytes) };
        (length.block() == *block).then_some(length)
    }
}

impl StorageBackend for DeviceStorage {
    fn len(&self) -> IoResult<u64> {
        Ok(self.length().bytes)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> IoResult<()> {
        let place = self.place(offset, out.len())?;
        self.file.read_exact_at(out, place)
    }

    fn set_len(&self, len: u64) -> IoResult<()> {
        if len > self.capacity.saturating_sub(START) {
            return Err(IoError::new(ErrorKind::StorageFull, "the pool's records are full"));
        }
        let mut length = self.length();
        if len > length.bytes {
            // A file that grows reads as zeros there.
            self.zero(START + length.bytes, START + len)?;
            self.file.sync_data()?;
        }
        let changed = Length { number: length.number + 1, bytes: len };
        self.write_length(changed)?;
        *length = changed;
        Ok(())
    }

    fn sync_data(&self) -> IoResult<()> {
        self.file.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> IoResult<()> {
        let place = self.place(offset, data.len())?;
        self.file.write_all_at(data, place)
    }
}

#[cfg(test)]
mod tests {
    use redb::{Database, ReadableDatabase, TableDefinition};

    use super::*;

    const CAPACITY: u64 = 8 << 20;
    const TABLE: TableDefinition<'_, u32, &[u8]> = TableDefinition::new("t");

    fn device() -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(CAPACITY).unwrap();
        // What was on the device before must not show.
        file.write_all_at(&vec![0xa5; 4 << 20], 0).unwrap();
        file
    }

    #[test]
    fn the_length_survives_a_torn_write_of_it() {
        let file = device();
        let storage = DeviceStorage::create(file.try_clone().unwrap(), CAPACITY, 0).unwrap();
        for length in [4096, 65536, 8192] {
            storage.set_len(length).unwrap();
        }
        let open = || DeviceStorage::open(file.try_clone().unwrap(), CAPACITY).unwrap();
        assert_eq!(open().len().unwrap(), 8192);
        // The third change is in the second block.
        file.write_all_at(&[1; 8], BLOCK).unwrap();
        assert_eq!(open().len().unwrap(), 65536);
    }

    #[test]
    fn what_grows_reads_as_zeros_and_nothing_lies_past_the_end() {
        let storage = DeviceStorage::create(device(), CAPACITY, 0).unwrap();
        storage.set_len(8192).unwrap();
        storage.write(0, &[7; 8192]).unwrap();
        storage.set_len(4096).unwrap();
        let mut bytes = [1; 4096];
        assert!(storage.read(4096, &mut bytes).is_err());
        assert!(storage.write(4000, &[0; 100]).is_err());
        storage.set_len(8192).unwrap();
        storage.read(4096, &mut bytes).unwrap();
        assert_eq!(bytes, [0; 4096]);
        let full = storage.set_len(CAPACITY).unwrap_err();
        assert_eq!(full.kind(), ErrorKind::StorageFull);
    }

    #[test]
    fn a_database_lives_on_it_and_a_blank_device_has_none() {
        let file = device();
        assert!(DeviceStorage::open(file.try_clone().unwrap(), CAPACITY).is_err());
        let storage = DeviceStorage::create(file.try_clone().unwrap(), CAPACITY, 1 << 20).unwrap();
        let database = Database::builder().create_with_backend(storage).unwrap();
        for number in 0..200 {
            let write = database.begin_write().unwrap();
            write.open_table(TABLE).unwrap().insert(number, &[5; 1000][..]).unwrap();
            write.commit().unwrap();
        }
        drop(database);
        let storage = DeviceStorage::open(file, CAPACITY).unwrap();
        let database = Database::builder().create_with_backend(storage).unwrap();
        let table = database.begin_read().unwrap().open_table(TABLE).unwrap();
        assert!((0..200).all(|number| table.get(number).unwrap().unwrap().value() == [5; 1000]));
    }
}
