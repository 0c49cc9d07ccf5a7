//! The catalog's file: redb tables of JSON values, so that an operator can read them with common
//! tools and a new version can add fields.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use redb::{
    Database, DatabaseError, ReadableTable, StorageError, TableDefinition, WriteTransaction,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Change, State};
use crate::error::{Error, Result};
use crate::id::VolumeUuid;
use crate::model::{RunKind, RunOutcome};
use crate::name::VolumeName;

/// How a row becomes the change that makes it.
type ReadRow<'a> = &'a dyn Fn(&[u8], &[u8]) -> Result<Change>;
type Table = TableDefinition<'static, &'static [u8], &'static [u8]>;

const META: TableDefinition<'static, &'static str, u64> = TableDefinition::new("meta");
const VOLUMES: Table = Table::new("volumes");
const SNAPSHOTS: Table = Table::new("snapshots");
const LEDGERS: Table = Table::new("ledgers");
const OPERATIONS: Table = Table::new("operations");
const STORAGES: Table = Table::new("storages");
const SCHEDULES: Table = Table::new("schedules");
/// Results of runs, by volume, kind and [`Which`] of them it is.
const RUNS: Table = Table::new("runs");

const FORMAT_KEY: &str = "format";

/// Brings a catalog from one format to the next.
pub(super) type Migration = fn(&WriteTransaction) -> Result<()>;

/// `MIGRATIONS[n]` brings format `n + 1` to `n + 2`.
pub(super) const MIGRATIONS: &[Migration] = &[add_storages, add_schedules];

fn add_storages(transaction: &WriteTransaction) -> Result<()> {
    add_table(transaction, STORAGES)
}

fn add_schedules(transaction: &WriteTransaction) -> Result<()> {
    add_table(transaction, SCHEDULES)?;
    add_table(transaction, RUNS)
}

fn add_table(transaction: &WriteTransaction, table: Table) -> Result<()> {
    let added = transaction.open_table(table).map(drop);
    added.map_err(|error| Error::internal("cannot add a table to the catalog").caused_by(error))
}

/// Which of the runs of a kind. In this order they are read, so that the last one is read last.
#[derive(Debug, Clone, Copy)]
enum Which {
    Good = 0,
    Last = 1,
}

fn run_key(volume: VolumeUuid, kind: RunKind, which: Which) -> [u8; 18] {
    let mut key = [0; 18];
    key[..16].copy_from_slice(volume.uuid().as_bytes());
    key[16] = match kind {
        RunKind::Snapshot => 0,
        RunKind::Backup => 1,
    };
    key[17] = which as u8;
    key
}

/// redb's default of 1 GiB would be most of a small host; all reads come from memory anyway.
const CACHE_BYTES: usize = 2 << 20;

#[derive(Debug)]
pub(super) struct CatalogFile {
    path: PathBuf,
    /// `None` after a failure to reopen.
    database: Option<Database>,
    migrations: &'static [Migration],
}

impl CatalogFile {
    /// Opens the catalog that is there.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let mut file = Self { path: path.to_owned(), database: None, migrations: MIGRATIONS };
        file.connect()?;
        Ok(file)
    }

    pub(super) fn open_or_make(path: &Path) -> Result<Self> {
        Self::open_or_make_with(path, MIGRATIONS)
    }

    pub(super) fn open_or_make_with(path: &Path, migrations: &'static [Migration]) -> Result<Self> {
        let mut file = Self { path: path.to_owned(), database: None, migrations };
        if !file.is_there()? {
            file.create()?;
        }
        file.connect()?;
        Ok(file)
    }

    /// On a storage that a test makes fail.
    #[cfg(test)]
    pub(super) fn on(database: Database, empty: bool) -> Result<Self> {
        let mut file = Self { path: PathBuf::from("test"), database: None, migrations: MIGRATIONS };
        if empty {
            file.make_tables(&database)?;
        }
        file.database = Some(database);
        Ok(file)
    }

    fn format(&self) -> u64 {
        self.migrations.len() as u64 + 1
    }

    /// What cannot be looked at is not absent: an empty catalog in its place would deny every volume.
    fn is_there(&self) -> Result<bool> {
        self.path.try_exists().map_err(|error| {
            Error::io(format!("cannot look at the catalog {}", self.path.display()), error)
        })
    }

    fn connect(&mut self) -> Result<()> {
        // redb allows one opening per process.
        self.database = None;
        if !self.is_there()? {
            return Err(Error::unavailable(format!("the catalog {} is gone", self.path.display()))
                .hint("put it back, or restart the daemon, which makes a new one of what the backends hold"));
        }
        let database = Database::builder()
            .set_cache_size(CACHE_BYTES)
            .open(&self.path)
            .map_err(|error| self.open_error(error))?;
        let format = self.read_format(&database)?;
        if format > self.format() {
            return Err(Error::unsupported(format!(
                "the catalog {} has format {format}, written by a newer Holdfast; this one reads up to {}",
                self.path.display(),
                self.format()
            ))
            .hint("install the newer version again; nothing was changed"));
        }
        if format < self.format() {
            self.migrate(&database, format)?;
        }
        self.database = Some(database);
        Ok(())
    }

    /// Makes an empty catalog beside and renames it, so that a crash leaves no half-made one.
    fn create(&self) -> Result<()> {
        let draft = self.path.with_extension("new");
        let failed = |error: std::io::Error| {
            Error::io(format!("cannot create the catalog {}", self.path.display()), error)
        };
        match std::fs::remove_file(&draft) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(failed(error));
            }
            _ => {}
        }
        let database = Database::builder()
            .set_cache_size(CACHE_BYTES)
            .create(&draft)
            .map_err(|error| self.open_error(error))?;
        self.make_tables(&database)?;
        drop(database);
        std::fs::rename(&draft, &self.path).map_err(failed)?;
        if let Some(directory) = self.path.parent() {
            std::fs::File::open(directory).and_then(|d| d.sync_all()).map_err(failed)?;
        }
        Ok(())
    }

    fn make_tables(&self, database: &Database) -> Result<()> {
        let transaction = database.begin_write().map_err(|e| self.broken(e))?;
        for table in [VOLUMES, SNAPSHOTS, LEDGERS, OPERATIONS, STORAGES, SCHEDULES, RUNS] {
            transaction.open_table(table).map_err(|e| self.broken(e))?;
        }
        self.commit_format(transaction)
    }

    fn read_format(&self, database: &Database) -> Result<u64> {
        use redb::ReadableDatabase as _;
        let transaction = database.begin_read().map_err(|e| self.broken(e))?;
        let meta = transaction.open_table(META).map_err(|e| self.broken(e))?;
        let format = meta.get(FORMAT_KEY).map_err(|e| self.broken(e))?;
        format.map(|value| value.value()).ok_or_else(|| self.damaged("it has no format number"))
    }

    fn migrate(&self, database: &Database, from: u64) -> Result<()> {
        let kept = self.path.with_extension(format!("format-{from}.redb"));
        std::fs::copy(&self.path, &kept).map_err(|error| {
            Error::io(format!("cannot keep a copy of the catalog as {}", kept.display()), error)
        })?;
        tracing::info!(from, to = self.format(), kept = %kept.display(), "migrating the catalog");
        let transaction = database.begin_write().map_err(|e| self.broken(e))?;
        let first = usize::try_from(from).unwrap_or(usize::MAX).saturating_sub(1);
        for migration in self.migrations.iter().skip(first) {
            migration(&transaction)?;
        }
        self.commit_format(transaction)
    }

    /// Commits the transaction as one of this format.
    fn commit_format(&self, transaction: WriteTransaction) -> Result<()> {
        let mut meta = transaction.open_table(META).map_err(|e| self.broken(e))?;
        meta.insert(FORMAT_KEY, self.format()).map_err(|e| self.broken(e))?;
        drop(meta);
        transaction.commit().map_err(|e| self.broken(e))
    }

    /// Reads everything.
    pub(super) fn load(&self) -> Result<State> {
        use redb::ReadableDatabase as _;
        let database = self.database()?;
        let transaction = database.begin_read().map_err(|e| self.broken(e))?;
        let mut state = State::default();
        let mut each = |table: Table, put: ReadRow<'_>| -> Result<()> {
            let table = transaction.open_table(table).map_err(|e| self.broken(e))?;
            for row in table.iter().map_err(|e| self.broken(e))? {
                let (key, value) = row.map_err(|e| self.broken(e))?;
                state.apply(put(key.value(), value.value())?);
            }
            Ok(())
        };
        each(VOLUMES, &|_, value| Ok(Change::PutVolume(self.decode(value)?)))?;
        each(SNAPSHOTS, &|_, value| Ok(Change::PutSnapshot(self.decode(value)?)))?;
        each(OPERATIONS, &|_, value| Ok(Change::PutOperation(self.decode(value)?)))?;
        each(STORAGES, &|key, value| {
            let name = std::str::from_utf8(key).ok().and_then(|name| name.parse().ok());
            let name = name.ok_or_else(|| self.damaged("a key is no backend's name"))?;
            Ok(Change::PutStorage(name, self.decode(value)?))
        })?;
        let volume = |key: &[u8]| {
            uuid::Uuid::from_slice(key)
                .map(VolumeUuid::from_uuid)
                .map_err(|error| self.damaged("a key is no UUID").caused_by(error))
        };
        each(LEDGERS, &|key, value| Ok(Change::PutLedger(volume(key)?, self.decode(value)?)))?;
        each(SCHEDULES, &|key, value| Ok(Change::PutSchedule(volume(key)?, self.decode(value)?)))?;
        each(RUNS, &|key, value| {
            let (key, _) = key.split_at_checked(16).unwrap_or((key, &[]));
            Ok(Change::PutRun(volume(key)?, self.decode(value)?))
        })?;
        Ok(state)
    }

    /// After a failed write redb refuses everything until it is opened again.
    pub(super) fn reopen(&mut self) -> Result<State> {
        self.connect()?;
        self.load()
    }

    /// Writes each group whole or not at all, all in one durable transaction on top of `state`. The
    /// outer error means that any of it may have happened.
    pub(super) fn write(&mut self, groups: &[&[Change]], state: &State) -> Result<Vec<Result<()>>> {
        if self.database.is_none() {
            self.connect()?;
        }
        let mut so_far = SoFar { state, names: HashMap::new(), removed: HashSet::new() };
        let transaction = self.database()?.begin_write().map_err(|e| self.broken(e))?;
        let mut answers = Vec::with_capacity(groups.len());
        for group in groups {
            let answer = group.iter().try_for_each(|change| so_far.check(change));
            if answer.is_ok() {
                for change in *group {
                    so_far.track(change);
                    self.put(&transaction, change, state)?;
                }
            }
            answers.push(answer);
        }
        transaction.commit().map_err(|e| self.broken(e))?;
        Ok(answers)
    }

    fn put(&self, transaction: &WriteTransaction, change: &Change, state: &State) -> Result<()> {
        let insert_at = |table: Table, key: &[u8], value: &dyn erased::Json| -> Result<()> {
            let json = value.json()?;
            let mut table = transaction.open_table(table).map_err(|e| self.broken(e))?;
            table.insert(key, &json[..]).map_err(|e| self.broken(e))?;
            Ok(())
        };
        let insert = |table: Table, key: uuid::Uuid, value: &dyn erased::Json| {
            insert_at(table, &key.as_bytes()[..], value)
        };
        let remove_at = |table: Table, key: &[u8]| -> Result<()> {
            let mut table = transaction.open_table(table).map_err(|e| self.broken(e))?;
            table.remove(key).map_err(|e| self.broken(e))?;
            Ok(())
        };
        let remove = |table: Table, key: uuid::Uuid| remove_at(table, &key.as_bytes()[..]);
        match change {
            Change::PutVolume(volume) => insert(VOLUMES, volume.uuid.uuid(), &**volume),
            Change::PutSnapshot(snapshot) => insert(SNAPSHOTS, snapshot.uuid.uuid(), &**snapshot),
            Change::PutOperation(operation) => {
                insert(OPERATIONS, operation.id.uuid(), &**operation)
            }
            Change::PutLedger(uuid, ledger) if ledger.is_empty() => remove(LEDGERS, uuid.uuid()),
            Change::PutLedger(uuid, ledger) => insert(LEDGERS, uuid.uuid(), ledger),
            Change::RemoveSnapshot(uuid) => remove(SNAPSHOTS, uuid.uuid()),
            Change::RemoveOperation(id) => remove(OPERATIONS, id.uuid()),
            Change::PutStorage(backend, storage) => {
                insert_at(STORAGES, backend.as_str().as_bytes(), storage)
            }
            Change::PutSchedule(uuid, schedule) => insert(SCHEDULES, uuid.uuid(), &**schedule),
            Change::RemoveSchedule(uuid) => remove(SCHEDULES, uuid.uuid()),
            Change::PutRun(uuid, result) => {
                if matches!(result.outcome, RunOutcome::Done(_)) {
                    insert_at(RUNS, &run_key(*uuid, result.kind, Which::Good), &**result)?;
                }
                insert_at(RUNS, &run_key(*uuid, result.kind, Which::Last), &**result)
            }
            Change::RemoveVolume(uuid) => {
                remove(VOLUMES, uuid.uuid())?;
                remove(LEDGERS, uuid.uuid())?;
                remove(SCHEDULES, uuid.uuid())?;
                for kind in RunKind::ALL {
                    remove_at(RUNS, &run_key(*uuid, kind, Which::Good))?;
                    remove_at(RUNS, &run_key(*uuid, kind, Which::Last))?;
                }
                for snapshot in state.snapshots(*uuid) {
                    remove(SNAPSHOTS, snapshot.uuid.uuid())?;
                }
                Ok(())
            }
        }
    }

    fn database(&self) -> Result<&Database> {
        self.database.as_ref().ok_or_else(|| {
            Error::unavailable(format!("the catalog {} is not open", self.path.display()))
        })
    }

    fn decode<T: DeserializeOwned>(&self, json: &[u8]) -> Result<T> {
        serde_json::from_slice(json)
            .map_err(|error| self.damaged("a record cannot be read").caused_by(error))
    }

    fn damaged(&self, why: &str) -> Error {
        Error::corrupt(format!("the catalog {} is damaged: {why}", self.path.display())).hint(
            "start once with --rebuild-catalog: the damaged file is kept, and a new one is made from \
             the descriptions beside the volumes' data",
        )
    }

    fn open_error(&self, error: DatabaseError) -> Error {
        match error {
            DatabaseError::DatabaseAlreadyOpen => Error::in_use(format!(
                "another process has the catalog {} open",
                self.path.display()
            )),
            DatabaseError::Storage(error) => self.broken(error),
            other => self.damaged("it cannot be opened").caused_by(other),
        }
    }

    fn broken(&self, error: impl Into<redb::Error>) -> Error {
        match error.into() {
            redb::Error::Io(error) if error.kind() != std::io::ErrorKind::InvalidData => {
                Error::io(format!("cannot use the catalog {}", self.path.display()), error)
            }
            redb::Error::PreviousIo => Error::from(StorageError::PreviousIo)
                .context(format!("cannot use the catalog {}", self.path.display())),
            other => self.damaged("its tables do not hold together").caused_by(other),
        }
    }
}

impl From<StorageError> for Error {
    fn from(error: StorageError) -> Self {
        Self::unavailable("an earlier write of the catalog failed").caused_by(error)
    }
}

/// The records, with what the transaction has changed so far.
struct SoFar<'a> {
    state: &'a State,
    names: HashMap<VolumeName, Option<VolumeUuid>>,
    removed: HashSet<VolumeUuid>,
}

impl SoFar<'_> {
    fn holder(&self, name: &VolumeName) -> Option<VolumeUuid> {
        self.names.get(name).copied().unwrap_or_else(|| self.state.name_holder(name))
    }

    fn check(&self, change: &Change) -> Result<()> {
        match change {
            Change::PutVolume(volume)
                if volume.holds_name()
                    && self.holder(&volume.name).is_some_and(|holder| holder != volume.uuid) =>
            {
                Err(Error::conflict(format!("there is a volume {} already", volume.name)))
            }
            // Who puts it owns no volume: this one may have gone meanwhile.
            Change::PutRun(uuid, _)
                if self.state.volume(*uuid).is_none() || self.removed.contains(uuid) =>
            {
                Err(Error::not_found(format!("there is no volume {uuid} any more")))
            }
            _ => Ok(()),
        }
    }

    fn track(&mut self, change: &Change) {
        let (uuid, new) = match change {
            Change::PutVolume(volume) => (volume.uuid, volume.holds_name().then_some(&volume.name)),
            Change::RemoveVolume(uuid) => {
                self.removed.insert(*uuid);
                (*uuid, None)
            }
            _ => return,
        };
        // One volume changes once in a transaction: its owner waits for each commit.
        if let Some(old) = self.state.volume(uuid)
            && self.holder(&old.name) == Some(uuid)
        {
            self.names.insert(old.name.clone(), None);
        }
        if let Some(name) = new {
            self.names.insert(name.clone(), Some(uuid));
        }
    }
}

/// Serialising through a reference whose type is not known.
mod erased {
    use super::{Error, Result, Serialize};

    pub(super) trait Json {
        fn json(&self) -> Result<Vec<u8>>;
    }

    impl<T: Serialize> Json for T {
        fn json(&self) -> Result<Vec<u8>> {
            serde_json::to_vec(self)
                .map_err(|error| Error::internal("cannot write a record").caused_by(error))
        }
    }
}
