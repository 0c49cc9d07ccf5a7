//! The pool in the kernel: activated over its storage, asked, told and grown.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

use super::devices::{
    attached, differs_in_length_only, gone, in_use, metadata_path, remove_unless_attached, show,
    show_pool, status, thin_table,
};
use super::header::{Header, Progress};
use super::ids::{Index, Ledger};
use super::metadata::UsageOfAll;
use super::names::Names;
use super::reading::{Readings, close_unread};
use super::records::{RECORDS_ID, RECORDS_SIZE, Records};
use super::status::{Level, METADATA_BLOCK, Mode, PoolStatus};
use super::storage::{Found, Storage};
use super::{ThinConfig, ThinStorage};
use crate::backend::Expected;
use crate::clock::{Entropy as _, System};
use crate::error::{Error, ErrorKind, Result};
use crate::failpoint::{BackendStep, reached_blocking};
use crate::id::PoolUuid;
use crate::linux::device_mapper::{DeviceMapper, Identity, Mapped};
use crate::linux::{blocking, check_thin_metadata, when_idle};
use crate::model::Outcome;
use crate::thin_metadata::Metadata;
use crate::units::ByteSize;

/// For what asks the kernel or writes a little.
const QUICK: Duration = Duration::from_secs(60);

/// A pool that is active.
#[derive(Debug)]
pub(super) struct Pool {
    pub(super) mapper: DeviceMapper,
    pub(super) names: Names,
    pub(super) config: ThinConfig,
    pub(super) storage: Storage,
    header: Header,
    /// The right to change which thin devices there are, and the records of them.
    pub(super) ledger: Mutex<Ledger>,
    /// The thin devices as recorded, for those who only look.
    pub(super) index: RwLock<Index>,
    /// The metadata snapshot, of which there can be one.
    pub(super) metadata_snapshot: Mutex<()>,
    pub(super) readings: Readings,
    /// What all thin devices took when it was last read.
    pub(super) recent_usage: Mutex<Option<(Instant, Arc<UsageOfAll>)>>,
    /// Whether the pool may be suspended to get another table. The kernel activates no thin device
    /// meanwhile.
    table: RwLock<()>,
}

/// A pool's storage, before the kernel is told of the pool.
#[derive(Debug)]
pub(super) struct Opened {
    mapper: DeviceMapper,
    pub(super) names: Names,
    config: ThinConfig,
    storage: Storage,
    header: Header,
    pub(super) is_active: bool,
}

impl Pool {
    /// Activates the pool, or takes over the one that an earlier run left active. One that is not there
    /// yet is made, on devices that are blank.
    ///
    /// # Errors
    /// `InUse` if another daemon has it, `Conflict` if the devices hold something else, `Corrupt` if
    /// its metadata is damaged.
    pub(super) async fn open(config: ThinConfig, expected: Expected) -> Result<Self> {
        let open = move || Opened::new(config, &expected);
        let opened = blocking::run("opening the pool", QUICK, open).await?;
        // An active pool changes its metadata, and was checked when it was activated.
        if !opened.is_active
            && opened.header.progress == Progress::Made
            && let Err(error) = opened.check().await
        {
            blocking::run("closing the pool", QUICK, move || opened.close()).await?.ignore();
            return Err(error.hint("see: holdfast pool check"));
        }
        blocking::run("activating the pool", QUICK, move || opened.activate()).await
    }

    /// The size of a chunk.
    pub(super) fn chunk_size(&self) -> ByteSize {
        self.header.chunk_size
    }

    /// The node of the device with the metadata.
    pub(super) fn metadata_path(&self) -> Result<PathBuf> {
        metadata_path(&self.mapper, self.names)
    }

    /// What the kernel says of the pool now.
    pub(super) fn status(&self) -> Result<PoolStatus> {
        status(&self.mapper, self.names)
    }

    /// Sends the pool a message, which is `step`.
    pub(super) fn message(&self, text: &str, step: BackendStep) -> Result<()> {
        self.mapper.message(&self.names.pool().uuid, text, step)
    }

    /// How full the data is. What the filesystem below has no place for is not there.
    pub(super) fn data_level(&self, status: &PoolStatus) -> Result<Level> {
        let missing = self.storage.without_place()?.div_ceil(self.chunk_size().bytes());
        let Level { used, total } = status.data;
        Ok(Level { used, total: total.saturating_sub(missing).max(used) })
    }

    /// Fails if the pool is too full, or too broken, to take anything new.
    pub(super) fn require_room(&self) -> Result<()> {
        let status = self.status()?;
        let data = self.data_level(&status)?;
        let chunk = self.chunk_size().bytes();
        let share = self.config.min_free;
        for (what, level, unit) in
            [("data", data, chunk), ("metadata", status.metadata, METADATA_BLOCK)]
        {
            if level.free() < share.of(level.total) {
                return Err(Error::out_of_space(format!(
                    "the pool {} has only {} of {what} free, less than {share} of {}",
                    self.config.name,
                    ByteSize::new(level.free().saturating_mul(unit)),
                    ByteSize::new(level.total.saturating_mul(unit)),
                ))
                .hint("grow it (`holdfast pool grow SIZE`), or remove volumes or snapshots"));
            }
        }
        Ok(())
    }

    /// Activates a thin device.
    pub(super) fn activate_thin(
        &self,
        identity: &Identity,
        id: u32,
        size: ByteSize,
    ) -> Result<Mapped> {
        let _table = self.lock_table();
        let pool = self.names.pool();
        let pool = self.mapper.find(&pool.uuid)?.ok_or_else(|| gone(&pool))?;
        let table = [thin_table(pool.number, id, size)];
        // A growth that a crash cut off has the new size in the records alone.
        if let Some(device) = self.mapper.find(&identity.uuid)?
            && device.has_table
        {
            let now = self.mapper.table(&identity.uuid)?;
            if differs_in_length_only(&now, &table[0]) {
                self.mapper.reload(&identity.uuid, &table)?;
            }
        }
        self.mapper.activate(identity, &table)
    }

    /// Keeps the pool's table as it is while a thin device is activated.
    pub(super) fn lock_table(&self) -> RwLockReadGuard<'_, ()> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the pool's data `size` bytes large, or as large as its devices have become if none is
    /// given. Never smaller.
    pub(super) fn grow(&self, size: Option<ByteSize>) -> Result<Outcome> {
        let _table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(size) = size {
            let chunk = self.chunk_size();
            let whole = size.round_up(chunk.bytes());
            let whole = whole.ok_or_else(|| Error::invalid(format!("{size} is too large")))?;
            if self.storage.grow_files(whole, chunk)?.is_none() {
                let (_, data) = self.storage.areas(&self.header)?;
                if data.length < size.bytes() {
                    return Err(Error::invalid(format!(
                        "the pool's device has room for {} and not for {size}",
                        ByteSize::new(data.length)
                    ))
                    .hint("make the device larger first, then run this again"));
                }
            }
        }
        let (metadata, data) = self.storage.areas(&self.header)?;
        let grown = [
            show(&self.mapper, &self.names.metadata(), metadata)?,
            show(&self.mapper, &self.names.data(), data)?,
            self.show_table()?,
        ];
        Ok(if grown.contains(&Outcome::Changed) { Outcome::Changed } else { Outcome::Unchanged })
    }

    /// Gives the pool the table that its storage and its fullness ask for.
    pub(super) fn show_pool(&self) -> Result<Outcome> {
        let _table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        self.show_table()
    }

    fn show_table(&self) -> Result<Outcome> {
        let can_grow = self.can_grow()?;
        show_pool(&self.mapper, self.names, &self.config, self.chunk_size(), can_grow)
    }

    /// Whether a full pool will have room again without anybody's doing: then writes wait for it.
    pub(super) fn can_grow(&self) -> Result<bool> {
        can_grow(&self.storage, self.chunk_size())
    }
}

impl Pool {
    /// The devices of volumes that are attached, and of snapshots that are read.
    pub(super) fn attached(&self) -> Result<Vec<Mapped>> {
        close_unread(&self.mapper, self.names, &self.readings)?;
        attached(&self.mapper, self.names)
    }

    /// Takes the pool and what lies below it out of the kernel, if no volume is attached and no snapshot
    /// is read.
    pub(super) fn deactivate(self) -> Result<Outcome> {
        let Self { mapper, names, ledger, storage, readings, .. } = self;
        close_unread(&mapper, names, &readings)?;
        // Closes the records.
        drop(ledger);
        let removed = remove_unless_attached(&mapper, names, &names.own());
        drop(storage);
        removed
    }
}

impl Opened {
    /// Opens the storage and makes its two parts devices. Writes nothing where the expected pool is not.
    pub(super) fn new(config: ThinConfig, expected: &Expected) -> Result<Self> {
        let mapper = DeviceMapper::open()?;
        let storage = Storage::open(&config.storage, config.chunk_size, expected)?;
        let place = config.storage.to_string();
        let header = match storage.look()? {
            Found::Ours(header) => {
                // Whether it holds volumes that nobody has recorded the pool of is seen once it is active.
                expected.admit(&place, Some(Names::new(header.pool).storage()), |_| Ok(true))?;
                header
            }
            Found::Blank => {
                expected.admit(&place, None, |_| Ok(false))?;
                storage.require_blank()?;
                let pool = PoolUuid::from_uuid(System.uuid());
                let role = storage.plan(config.chunk_size)?;
                let header = Header::new(pool, role, config.chunk_size);
                storage.areas(&header)?;
                header
            }
        };
        let names = Names::new(header.pool);
        resume_suspended(&mapper, names)?.ignore();
        close_unread(&mapper, names, &Readings::default())?;
        if header.progress == Progress::Begun {
            // What an earlier try left in the kernel.
            for identity in names.own() {
                mapper.remove(&identity.uuid)?.ignore();
            }
            storage.write_headers(&header, BackendStep::PoolHeaders)?;
        }
        let (metadata, data) = storage.areas(&header)?;
        show(&mapper, &names.metadata(), metadata)?.ignore();
        show(&mapper, &names.data(), data)?.ignore();
        let pool = mapper.find(&names.pool().uuid)?;
        let is_active = pool.as_ref().is_some_and(|pool| pool.has_table);
        if pool.is_some() && !is_active {
            // What a kill left between its table and its resume: it holds the metadata, which could
            // not be checked.
            mapper.remove(&names.pool().uuid)?.ignore();
        }
        Ok(Self { mapper, names, config, storage, header, is_active })
    }

    /// The node of the device with the metadata.
    pub(super) fn metadata_path(&self) -> Result<PathBuf> {
        metadata_path(&self.mapper, self.names)
    }

    /// Reads all metadata of a pool that is not active.
    ///
    /// # Errors
    /// `Corrupt` if it is not sound, or a change of it has failed since it was last checked.
    pub(super) async fn check(&self) -> Result<()> {
        let device = self.metadata_path()?;
        let pool = self.names.pool_uuid();
        check_thin_metadata(&device).await.map_err(|error| {
            error.context(format!(
                "the metadata of pool {pool} is not sound, and the pool is not activated"
            ))
        })?;
        let read = move || Metadata::open(&device).map(|read| read.superblock().needs_check);
        match blocking::run("reading the pool's superblock", QUICK, read).await? {
            false => Ok(()),
            true => Err(Error::corrupt(format!(
                "the metadata of pool {pool} has to be checked because a change of it has failed \
                 (needs_check), and the pool is not activated"
            ))),
        }
    }

    /// Takes out of the kernel what lies below the pool, and the pool, if no volume is attached.
    pub(super) fn close(self) -> Result<Outcome> {
        remove_unless_attached(&self.mapper, self.names, &self.names.own())
    }

    /// Takes the pool out of the kernel, and leaves what it lies on.
    ///
    /// # Errors
    /// `InUse` while a volume is attached.
    pub(super) fn stop_pool(&mut self) -> Result<()> {
        let above = [self.names.records(), self.names.pool()];
        match remove_unless_attached(&self.mapper, self.names, &above)? {
            Outcome::Unchanged => Err(in_use(&attached(&self.mapper, self.names)?)),
            Outcome::Changed => {
                self.is_active = false;
                Ok(())
            }
        }
    }

    /// Makes the pool one that works. What was activated for one that does not is taken back.
    fn activate(self) -> Result<Pool> {
        let names = self.names;
        self.start().inspect_err(|_| {
            let removed = DeviceMapper::open()
                .and_then(|mapper| remove_unless_attached(&mapper, names, &names.own()));
            if let Err(error) = removed {
                tracing::warn!("{}", error.full_message());
            }
        })
    }

    fn start(self) -> Result<Pool> {
        let Self { mapper, names, config, storage, mut header, .. } = self;
        let chunk = header.chunk_size;
        let metadata = names.metadata();
        let metadata = mapper.find(&metadata.uuid)?.ok_or_else(|| gone(&metadata))?.path();
        let is_new = header.progress == Progress::Begun;
        match is_new {
            // The kernel makes a pool where this block holds zeros.
            true => wipe_superblock(&metadata)?,
            // ... and would make one over a damaged one as well.
            false => Metadata::open(&metadata).map(drop).map_err(|error| {
                error.context(format!("pool {} cannot be activated", names.pool_uuid()))
            })?,
        }
        let can_grow = can_grow(&storage, chunk)?;
        show_pool(&mapper, names, &config, chunk, can_grow)?.ignore();
        let now = status(&mapper, names)?;
        if now.holds_metadata_snapshot && now.mode != Mode::ReadOnly {
            let pool = names.pool();
            mapper.message(&pool.uuid, "release_metadata_snap", BackendStep::ThinReadRelease)?;
        }
        if is_new {
            let (pool, step) = (names.pool(), BackendStep::PoolRecordsDevice);
            match mapper.message(&pool.uuid, &format!("create_thin {RECORDS_ID}"), step) {
                Err(error) if error.kind() != ErrorKind::Conflict => return Err(error),
                _ => {}
            }
        }
        let pool = mapper.find(&names.pool().uuid)?.ok_or_else(|| gone(&names.pool()))?;
        let table = [thin_table(pool.number, RECORDS_ID, RECORDS_SIZE)];
        let device = open_exclusively(&mapper.activate(&names.records(), &table)?)?;
        let records = match is_new {
            true => Records::create(device)?,
            false => Records::open(device)?,
        };
        if is_new {
            header.progress = Progress::Made;
            storage.write_headers(&header, BackendStep::PoolFinish)?;
        }
        let (ledger, index) = Ledger::load(records)?;
        let pool = Pool {
            mapper,
            names,
            config,
            storage,
            header,
            ledger: Mutex::new(ledger),
            index: RwLock::new(index),
            metadata_snapshot: Mutex::default(),
            readings: Readings::default(),
            recent_usage: Mutex::default(),
            table: RwLock::default(),
        };
        pool.reconcile()?;
        Ok(pool)
    }
}

/// See [`super::resume_interrupted`].
pub(super) fn resume_interrupted(storage: &ThinStorage) -> Result<Outcome> {
    if !Storage::is_there(storage)? {
        return Ok(Outcome::Unchanged);
    }
    let mapper = DeviceMapper::open()?;
    match Storage::open(storage, ByteSize::MIB, &Expected::Anything)?.look()? {
        Found::Ours(header) => resume_suspended(&mapper, Names::new(header.pool)),
        Found::Blank => Ok(Outcome::Unchanged),
    }
}

/// Everybody who writes to a suspended device hangs.
fn resume_suspended(mapper: &DeviceMapper, names: Names) -> Result<Outcome> {
    let mut outcome = Outcome::Unchanged;
    for device in mapper.list(&names.prefix())? {
        if device.suspended && device.has_table {
            tracing::warn!(device = device.identity.name, "resuming a suspended device");
            mapper.resume(&device.identity.uuid)?;
            outcome = Outcome::Changed;
        }
    }
    Ok(outcome)
}

fn can_grow(storage: &Storage, chunk_size: ByteSize) -> Result<bool> {
    Ok(storage.room_below()?.is_some_and(|room| room > chunk_size.bytes()))
}

/// Opens the device with the records, which no other process may have open meanwhile.
fn open_exclusively(device: &Mapped) -> Result<File> {
    let open = || {
        OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(nix::libc::O_EXCL)
            .open(device.path())
    };
    when_idle(open, |error| error.kind() == std::io::ErrorKind::ResourceBusy).map_err(|error| {
        Error::io("the pool's records are in use", error).hint("one daemon uses a pool at a time")
    })
}

fn wipe_superblock(metadata: &std::path::Path) -> Result<()> {
    OpenOptions::new()
        .write(true)
        .open(metadata)
        .and_then(|file| {
            file.write_all_at(&[0; 4096], 0)?;
            file.sync_all()
        })
        .map_err(|error| Error::io(format!("cannot write {}", metadata.display()), error))?;
    reached_blocking(BackendStep::PoolWipe)
}
