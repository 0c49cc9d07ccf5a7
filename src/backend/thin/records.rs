//! What the pool keeps of itself, on a thin device of its own: which thin device is what, and the
//! descriptions of the volumes. It goes where the pool goes.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use redb::{Database, ReadableDatabase as _, ReadableTable as _, TableDefinition};
use serde::{Deserialize, Serialize};

use super::device_storage::DeviceStorage;
use crate::backend::Locator;
use crate::error::{Error, Result};
use crate::failpoint::{BackendStep, reached_blocking};
use crate::id::{Generation, SnapshotUuid, ThinId, VolumeUuid};
use crate::units::ByteSize;

/// The thin device that holds the records.
pub(super) const RECORDS_ID: u32 = 0;

/// Its size: room for hundreds of thousands of volumes; it takes from the pool what is written.
pub(super) const RECORDS_SIZE: ByteSize = ByteSize::GIB;

/// How much of it has its place in the pool from the start, so that things can still be deleted when
/// the pool is full.
const READY: u64 = 32 << 20;

const CACHE_BYTES: usize = 1 << 20;
const FORMAT: u64 = 1;

const NUMBERS: TableDefinition<'_, &str, u64> = TableDefinition::new("numbers");
const THINS: TableDefinition<'_, u32, &[u8]> = TableDefinition::new("thins");
const DESCRIPTIONS: TableDefinition<'_, u128, &[u8]> = TableDefinition::new("descriptions");

const FORMAT_KEY: &str = "format";
const TRANSACTION_KEY: &str = "transaction";

/// What a thin device is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "what")]
pub(super) enum Owner {
    /// A volume's content at one generation.
    Volume { volume: VolumeUuid, generation: Generation },
    /// A snapshot of a volume.
    Snapshot { volume: VolumeUuid, snapshot: SnapshotUuid },
}

impl Owner {
    /// The volume that it belongs to.
    pub(super) fn volume(self) -> VolumeUuid {
        match self {
            Self::Volume { volume, .. } | Self::Snapshot { volume, .. } => volume,
        }
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Volume { volume, generation } => {
                write!(f, "volume {volume} at generation {generation}")
            }
            Self::Snapshot { volume, snapshot } => {
                write!(f, "snapshot {snapshot} of volume {volume}")
            }
        }
    }
}

impl From<Locator> for Owner {
    fn from(locator: Locator) -> Self {
        Self::Volume { volume: locator.volume, generation: locator.generation }
    }
}

/// How far a thin device has been made or deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum ThinState {
    /// The pool may have it or not; nobody was told of it.
    Creating,
    /// The pool has it.
    Ready,
    /// The pool may still have it.
    Deleting,
}

/// The record of a thin device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Thin {
    #[serde(flatten)]
    pub owner: Owner,
    /// Size of the device.
    pub size: ByteSize,
    pub state: ThinState,
}

/// One change of the records.
#[derive(Debug)]
pub(super) enum Edit<'a> {
    Put(ThinId, Thin),
    Remove(ThinId),
    Describe(VolumeUuid, &'a [u8]),
    Forget(VolumeUuid),
    /// The pool's transaction that goes with the records.
    Transaction(u64),
}

/// The records, open.
#[derive(Debug)]
pub(super) struct Records {
    device: File,
    /// `None` after a failure that could not be mended yet.
    database: Option<Database>,
}

impl Records {
    /// Makes empty records on a new device.
    pub(super) fn create(device: File) -> Result<Self> {
        let storage = DeviceStorage::create(duplicate(&device)?, RECORDS_SIZE.bytes(), READY)
            .map_err(|error| Error::io("cannot write the pool's records", error))?;
        let database = connect(storage)?;
        let write = database.begin_write().map_err(broken)?;
        {
            let mut numbers = write.open_table(NUMBERS).map_err(broken)?;
            numbers.insert(FORMAT_KEY, FORMAT).map_err(broken)?;
            numbers.insert(TRANSACTION_KEY, 0).map_err(broken)?;
            write.open_table(THINS).map_err(broken)?;
            write.open_table(DESCRIPTIONS).map_err(broken)?;
        }
        write.commit().map_err(broken)?;
        reached_blocking(BackendStep::PoolRecords)?;
        Ok(Self { device, database: Some(database) })
    }

    /// Opens the records on their device.
    ///
    /// # Errors
    /// `Unsupported` if a newer version wrote them.
    pub(super) fn open(device: File) -> Result<Self> {
        let mut records = Self { device, database: None };
        records.reconnect()?;
        match records.number(FORMAT_KEY)? {
            Some(FORMAT) => Ok(records),
            Some(newer) if newer > FORMAT => Err(Error::unsupported(format!(
                "the pool's records have format {newer}, written by a newer Holdfast; this one reads {FORMAT}"
            ))
            .hint("install the newer version again; nothing was changed")),
            _ => Err(Error::corrupt("the pool's records have no format number")),
        }
    }

    /// Opens the database again. After a failed write it refuses everything until then.
    fn reconnect(&mut self) -> Result<()> {
        self.database = None;
        // What could not be written stays in memory, where it reads as if it had been.
        posix_fadvise(&self.device, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)
            .map_err(|errno| Error::io("cannot read the pool's records afresh", errno.into()))?;
        let storage = DeviceStorage::open(duplicate(&self.device)?, RECORDS_SIZE.bytes())
            .map_err(|error| Error::io("cannot read the pool's records", error))?;
        self.database = Some(connect(storage)?);
        Ok(())
    }

    fn database(&mut self) -> Result<&Database> {
        if self.database.is_none() {
            self.reconnect()?;
        }
        self.database
            .as_ref()
            .ok_or_else(|| Error::unavailable("the pool's records could not be opened again"))
    }

    fn number(&mut self, key: &str) -> Result<Option<u64>> {
        let read = self.database()?.begin_read().map_err(broken)?;
        let numbers = read.open_table(NUMBERS).map_err(broken)?;
        Ok(numbers.get(key).map_err(broken)?.map(|number| number.value()))
    }

    /// The transaction of the last change.
    pub(super) fn transaction(&mut self) -> Result<u64> {
        self.number(TRANSACTION_KEY)?
            .ok_or_else(|| Error::corrupt("the pool's records have no transaction"))
    }

    /// All thin devices but the one with the records.
    pub(super) fn thins(&mut self) -> Result<BTreeMap<ThinId, Thin>> {
        let read = self.database()?.begin_read().map_err(broken)?;
        let table = read.open_table(THINS).map_err(broken)?;
        let mut thins = BTreeMap::new();
        for row in table.iter().map_err(broken)? {
            let (id, text) = row.map_err(broken)?;
            let id = ThinId::try_from(id.value())
                .map_err(|error| error.with_kind(crate::error::ErrorKind::Corrupt))?;
            let thin = serde_json::from_slice(text.value()).map_err(|error| {
                Error::corrupt(format!("the record of thin device {id} is damaged"))
                    .caused_by(error)
            })?;
            thins.insert(id, thin);
        }
        Ok(thins)
    }

    /// The description of a volume.
    pub(super) fn description(&mut self, volume: VolumeUuid) -> Result<Option<Vec<u8>>> {
        let read = self.database()?.begin_read().map_err(broken)?;
        let table = read.open_table(DESCRIPTIONS).map_err(broken)?;
        let text = table.get(volume.uuid().as_u128()).map_err(broken)?;
        Ok(text.map(|text| text.value().to_vec()))
    }

    /// Makes all the changes, or none, and has them on the disk when it returns; that is `step`.
    pub(super) fn commit(&mut self, edits: &[Edit<'_>], step: BackendStep) -> Result<()> {
        let done = self.try_commit(edits);
        if done.is_err() {
            // If this fails too, the next commit tries again.
            let _ = self.reconnect();
        }
        done?;
        reached_blocking(step)
    }

    fn try_commit(&mut self, edits: &[Edit<'_>]) -> Result<()> {
        let write = self.database()?.begin_write().map_err(broken)?;
        {
            let mut numbers = write.open_table(NUMBERS).map_err(broken)?;
            let mut thins = write.open_table(THINS).map_err(broken)?;
            let mut descriptions = write.open_table(DESCRIPTIONS).map_err(broken)?;
            for edit in edits {
                match edit {
                    Edit::Put(id, thin) => {
                        let text = serde_json::to_vec(thin).map_err(|error| {
                            Error::internal("cannot write a record").caused_by(error)
                        })?;
                        thins.insert(id.number(), &text[..]).map(drop).map_err(broken)?;
                    }
                    Edit::Remove(id) => {
                        thins.remove(id.number()).map(drop).map_err(broken)?;
                    }
                    Edit::Describe(volume, text) => {
                        let key = volume.uuid().as_u128();
                        descriptions.insert(key, *text).map(drop).map_err(broken)?;
                    }
                    Edit::Forget(volume) => {
                        let key = volume.uuid().as_u128();
                        descriptions.remove(key).map(drop).map_err(broken)?;
                    }
                    Edit::Transaction(number) => {
                        numbers.insert(TRANSACTION_KEY, *number).map(drop).map_err(broken)?;
                    }
                }
            }
        }
        write.commit().map_err(broken)
    }
}

fn duplicate(device: &File) -> Result<File> {
    device.try_clone().map_err(|error| Error::io("cannot open the pool's records again", error))
}

fn connect(storage: DeviceStorage) -> Result<Database> {
    Database::builder().set_cache_size(CACHE_BYTES).create_with_backend(storage).map_err(broken)
}

fn broken(error: impl Into<redb::Error>) -> Error {
    let error = error.into();
    let what = "the pool's records cannot be read or written";
    match error {
        redb::Error::Corrupted(_) => Error::corrupt(what).caused_by(error),
        redb::Error::Io(error) => Error::io(what, error),
        error => Error::internal(what).caused_by(error),
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn records_come_back() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(RECORDS_SIZE.bytes()).unwrap();
        let volume = VolumeUuid::from_uuid(Uuid::from_u128(7));
        let snapshot = SnapshotUuid::from_uuid(Uuid::from_u128(8));
        let thin = |owner| Thin { owner, size: ByteSize::GIB, state: ThinState::Ready };
        let one = thin(Owner::Volume { volume, generation: Generation::FIRST });
        let two = thin(Owner::Snapshot { volume, snapshot });
        let id = |number| ThinId::try_from(number).unwrap();

        let mut records = Records::create(file.try_clone().unwrap()).unwrap();
        let edits = [
            Edit::Put(id(1), one),
            Edit::Put(id(2), two),
            Edit::Describe(volume, b"text"),
            Edit::Transaction(3),
        ];
        let step = BackendStep::ThinDescribe;
        records.commit(&edits, step).unwrap();
        records.commit(&[Edit::Remove(id(1)), Edit::Transaction(4)], step).unwrap();
        drop(records);

        let mut records = Records::open(file).unwrap();
        assert_eq!(records.transaction().unwrap(), 4);
        assert_eq!(records.thins().unwrap(), BTreeMap::from([(id(2), two)]));
        assert_eq!(records.description(volume).unwrap().unwrap(), b"text");
        records.commit(&[Edit::Forget(volume)], step).unwrap();
        assert_eq!(records.description(volume).unwrap(), None);
    }
}
