//! Volumes: a thin device each, active while it is attached.

use std::path::PathBuf;

use super::ids::Beginning;
use super::names;
use super::pool::Pool;
use super::records::{Owner, Thin};
use crate::backend::{Description, Found, Locator, MountSource, Presence, Usage};
use crate::error::{Error, Result};
use crate::id::{ThinId, VolumeUuid};
use crate::linux::device_mapper::{DeviceMapper, Mapped};
use crate::model::{Outcome, Volume};
use crate::units::ByteSize;

/// What the size of a device is a multiple of: every filesystem's block divides it.
const UNIT: u64 = 4096;

/// The size of a volume's device.
pub(super) fn device_size(volume: &Volume) -> Result<ByteSize> {
    let size = volume.size.ok_or_else(|| Error::invalid("a thin volume needs a size"))?;
    whole_sectors(size)
}

/// The size that a device gets.
pub(super) fn whole_sectors(size: ByteSize) -> Result<ByteSize> {
    size.round_up(UNIT)
        .filter(|size| size.bytes() > 0 && i64::try_from(size.bytes()).is_ok())
        .ok_or_else(|| Error::invalid(format!("no thin device can be {size} large")))
}

/// Detaches a volume whose pool cannot be used: a pool can be mended once nothing of it is attached.
pub(super) fn detach_from_damaged(locator: Locator) -> Result<Outcome> {
    let mapper = DeviceMapper::open()?;
    let devices = mapper.list(names::OURS)?;
    match devices.into_iter().find(|device| names::is_volume(&device.identity, locator)) {
        Some(device) => mapper.remove(&device.identity.uuid),
        None => Ok(Outcome::Unchanged),
    }
}

impl Pool {
    /// The thin device of a volume's generation.
    pub(super) fn need(&self, owner: Owner) -> Result<(ThinId, Thin)> {
        self.index()
            .ready(owner)
            .ok_or_else(|| Error::not_found(format!("the pool has no {owner}")))
    }

    /// The active device of a volume's generation.
    fn active(&self, locator: Locator) -> Result<Option<Mapped>> {
        let device = self.mapper.find(&self.names.volume(locator).uuid)?;
        Ok(device.filter(|device| device.has_table))
    }

    pub(super) fn create(&self, locator: Locator, size: ByteSize) -> Result<Outcome> {
        self.create_thin(locator.into(), size, Beginning::Blank)
    }

    pub(super) fn attach(&self, locator: Locator) -> Result<PathBuf> {
        let (id, thin) = self.need(locator.into())?;
        let device = self.activate_thin(&self.names.volume(locator), id.number(), thin.size)?;
        Ok(device.path())
    }

    pub(super) fn detach(&self, locator: Locator) -> Result<Outcome> {
        self.mapper.remove(&self.names.volume(locator).uuid)
    }

    pub(super) fn inspect(&self, locator: Locator) -> Result<Presence> {
        let Some((_, thin)) = self.index().ready(locator.into()) else {
            return Ok(Presence::Absent);
        };
        let attached = self.active(locator)?.map(|device| MountSource::Device(device.path()));
        Ok(Presence::Present { size: Some(thin.size), attached })
    }

    pub(super) fn delete(&self, volume: VolumeUuid) -> Result<Outcome> {
        let thins = self.index().of_volume(volume);
        for (_, thin) in &thins {
            self.refuse_active(thin.owner)?;
        }
        let ids: Vec<ThinId> = thins.into_iter().map(|(id, _)| id).collect();
        self.delete_thins(&ids, Some(volume))
    }

    pub(super) fn delete_generation(&self, locator: Locator) -> Result<Outcome> {
        self.delete_owned(locator.into())
    }

    /// Deletes one thin device, if it is there.
    pub(super) fn delete_owned(&self, owner: Owner) -> Result<Outcome> {
        self.refuse_active(owner)?;
        let thins = self.index().of_volume(owner.volume());
        let id = thins.into_iter().find(|(_, thin)| thin.owner == owner).map(|(id, _)| id);
        self.delete_thins(id.as_slice(), None)
    }

    /// Rule 8: nothing that is attached or read is deleted.
    fn refuse_active(&self, owner: Owner) -> Result<()> {
        let (volume, generation) = match owner {
            Owner::Volume { volume, generation } => (volume, generation),
            Owner::Snapshot { snapshot, .. } => return self.close_snapshot(snapshot),
        };
        let identity = self.names.volume(Locator { volume, generation });
        match self.mapper.find(&identity.uuid)? {
            None => Ok(()),
            Some(device) => {
                let path = device.path();
                Err(Error::in_use(format!("{} is attached as {}", identity.name, path.display()))
                    .hint(format!("see who uses it: findmnt {0}; fuser -v {0}", path.display())))
            }
        }
    }

    pub(super) fn grow_volume(&self, locator: Locator, size: ByteSize) -> Result<Outcome> {
        let (_, thin) = self.need(locator.into())?;
        let grows = thin.size < size;
        if grows {
            self.record_size(locator.into(), size)?;
        }
        if self.active(locator)?.is_some() {
            self.attach(locator)?;
        }
        Ok(if grows { Outcome::Changed } else { Outcome::Unchanged })
    }

    pub(super) fn volume_usage(&self, locator: Locator) -> Result<Usage> {
        let (id, _) = self.need(locator.into())?;
        let chunk = self.chunk_size().bytes();
        let of_pool = self.recent_usage(id)?;
        let taken = |id: ThinId| {
            of_pool.get(&id).map_or((0, 0), |usage| {
                (usage.exclusive.saturating_mul(chunk), usage.shared.saturating_mul(chunk))
            })
        };
        let (exclusive, shared) = taken(id);
        let snapshots = self.index().of_volume(locator.volume);
        let snapshots =
            snapshots.iter().filter(|(_, thin)| matches!(thin.owner, Owner::Snapshot { .. }));
        Ok(Usage {
            allocated: exclusive.saturating_add(shared),
            exclusive: Some(exclusive),
            snapshots: snapshots.map(|(id, _)| taken(*id).0).sum(),
        })
    }

    pub(super) fn survey(&self) -> Result<Vec<Found>> {
        let volumes = self.index().volumes();
        let found = volumes.into_iter().map(|volume| {
            let description = self.description(volume).and_then(|text| {
                let text = text.ok_or_else(|| {
                    Error::not_found(format!("volume {volume} has no description"))
                })?;
                let description: Description = serde_json::from_slice(&text).map_err(|error| {
                    Error::corrupt(format!("the description of volume {volume} is damaged"))
                        .caused_by(error)
                })?;
                match description.volume.uuid == volume {
                    true => Ok(description),
                    false => Err(Error::corrupt(format!(
                        "the description of volume {volume} is of another one"
                    ))),
                }
            });
            Ok(Found { volume, description })
        });
        found.collect()
    }
}
