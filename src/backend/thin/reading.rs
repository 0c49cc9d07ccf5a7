//! Snapshots that are read: each is a device of its own meanwhile, which can only be read and which all its
//! readers share. The last of them takes it away.

use std::collections::HashMap;
use std::fs::File;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::devices::{gone, thin_table};
use super::names::Names;
use super::pool::Pool;
use super::records::Owner;
use crate::backend::SnapshotImage;
use crate::error::{Error, Result};
use crate::id::{SnapshotUuid, VolumeUuid};
use crate::linux::device_mapper::{DeviceMapper, Identity, Mapped, Target};
use crate::linux::device_node::block_number_of;
use crate::model::Outcome;

/// The snapshots that are read, by their devices' uuids.
#[derive(Debug, Default)]
pub(super) struct Readings(Mutex<HashMap<String, Weak<Reading>>>);

/// One of them.
#[derive(Debug, Default)]
struct Reading {
    readers: AtomicUsize,
    /// Locked while the device is made or taken away. It is open until then, so that no reader's closing is
    /// the last one: that throws away all that is cached of the device, which takes its time.
    device: Mutex<Option<File>>,
}

impl Readings {
    fn of(&self, uuid: &str) -> Arc<Reading> {
        let mut readings = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(reading) = readings.get(uuid).and_then(Weak::upgrade) {
            return reading;
        }
        readings.retain(|_, reading| reading.strong_count() > 0);
        let reading = Arc::new(Reading::default());
        readings.insert(uuid.to_owned(), Arc::downgrade(&reading));
        reading
    }
}

impl Reading {
    fn lock_device(&self) -> MutexGuard<'_, Option<File>> {
        self.device.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the device away, and says whether it was there; `None` if anybody reads it.
    fn remove_device(&self, mapper: &DeviceMapper, uuid: &str) -> Result<Option<Outcome>> {
        let mut device = self.lock_device();
        if self.readers.load(Ordering::Acquire) > 0 {
            return Ok(None);
        }
        *device = None;
        mapper.remove(uuid).map(Some)
    }
}

/// One reader.
#[derive(Debug)]
struct Reader {
    reading: Arc<Reading>,
    mapper: DeviceMapper,
    identity: Identity,
}

impl Reader {
    fn new(reading: &Arc<Reading>, mapper: &DeviceMapper, identity: &Identity) -> Self {
        reading.readers.fetch_add(1, Ordering::AcqRel);
        Self { reading: Arc::clone(reading), mapper: mapper.clone(), identity: identity.clone() }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        if self.reading.readers.fetch_sub(1, Ordering::AcqRel) > 1 {
            return;
        }
        // Removing it waits for udev, and for whoever opens the snapshot again just now.
        let (reading, mapper) = (Arc::clone(&self.reading), self.mapper.clone());
        let uuid = self.identity.uuid.clone();
        let remove = move || {
            if let Err(error) = reading.remove_device(&mapper, &uuid) {
                tracing::warn!("{}", error.full_message());
            }
        };
        let begun = std::thread::Builder::new().name("snapshot".to_owned()).spawn(remove);
        if let Err(error) = begun {
            let device = &self.identity.name;
            tracing::warn!(%error, device, "the device stays until it is read or deleted");
        }
    }
}

impl Pool {
    /// Opens a snapshot for one more reader.
    pub(super) fn open_snapshot(
        &self,
        volume: VolumeUuid,
        snapshot: SnapshotUuid,
    ) -> Result<SnapshotImage> {
        let (id, thin) = self.need(Owner::Snapshot { volume, snapshot })?;
        let identity = self.names.snapshot(snapshot);
        let reading = self.readings.of(&identity.uuid);
        let mut device = reading.lock_device();
        let reader = Reader::new(&reading, &self.mapper, &identity);
        let file = {
            let _table = self.lock_table();
            let pool = self.names.pool();
            let pool = self.mapper.find(&pool.uuid)?.ok_or_else(|| gone(&pool))?;
            let table = [thin_table(pool.number, id.number(), thin.size)];
            let active = self.mapper.activate_to_read(&identity, &table)?;
            open_proved(&self.mapper, &active, &table)?
        };
        if device.is_none() {
            let kept = file.try_clone();
            *device = Some(kept.map_err(|error| {
                Error::io(format!("cannot open {} twice", identity.name), error)
            })?);
        }
        Ok(SnapshotImage::held_by(file, thin.size.bytes(), reader))
    }

    /// Takes away the device of a snapshot that is to be deleted.
    ///
    /// # Errors
    /// `InUse` while anybody reads it.
    pub(super) fn close_snapshot(&self, snapshot: SnapshotUuid) -> Result<()> {
        let uuid = self.names.snapshot(snapshot).uuid;
        match self.readings.of(&uuid).remove_device(&self.mapper, &uuid)? {
            Some(_) => Ok(()),
            None => Err(Error::in_use(format!("snapshot {snapshot} is being read"))
                .hint("wait until that is done; `holdfast operation ls` shows what runs")),
        }
    }
}

/// Takes away the devices of snapshots that nobody reads: those that a killed daemon has left, and those
/// whose last reader has just gone. One that cannot go is told of.
pub(super) fn close_unread(mapper: &DeviceMapper, names: Names, readings: &Readings) -> Result<()> {
    for device in mapper.list(&names.snapshots())? {
        let uuid = device.identity.uuid;
        if let Err(error) = readings.of(&uuid).remove_device(mapper, &uuid) {
            tracing::warn!("{}", error.full_message());
        }
    }
    Ok(())
}

/// Opens the device's node. The device cannot go while it is open, so that what is proved then holds.
fn open_proved(mapper: &DeviceMapper, device: &Mapped, table: &[Target]) -> Result<File> {
    let identity = &device.identity;
    let failed = |error| Error::io(format!("cannot open {}", device.path().display()), error);
    let file = File::open(device.path()).map_err(failed)?;
    let opened = file.metadata().and_then(|meta| block_number_of(&meta)).map_err(failed)?;
    let now = mapper.find(&identity.uuid)?.ok_or_else(|| gone(identity))?;
    if opened == now.number && now.read_only && mapper.has_table(&identity.uuid, table)? {
        return Ok(file);
    }
    Err(Error::corrupt(format!("{} is not {}", device.path().display(), identity.name))
        .hint(format!("see: dmsetup info {0}; dmsetup table {0}", identity.name)))
}
