use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::content::Blocks;
use super::{Device, SimWorld, State, StoredVolume, absent};
use crate::backend::{
    Attachment, Backend, BackendKind, BackendStatus, ContentRef, CopyCost, Description, Extents,
    Found, Grow, Locator, MountSource, Presence, Scope, SnapshotImage, Snapshots, Usage,
};
use crate::error::{Error, Result};
use crate::id::{SnapshotUuid, StorageId, VolumeUuid};
use crate::model::{Outcome, Progress, Volume};
use crate::name::BackendName;
use crate::units::ByteSize;

/// A block backend in memory, with every capability.
#[derive(Debug)]
pub struct SimBackend {
    world: SimWorld,
    name: BackendName,
}

impl SimBackend {
    /// The backend `name` on the world's disk.
    pub fn new(world: &SimWorld, name: BackendName) -> Self {
        Self { world: world.clone(), name }
    }
}

/// Lets the device go when its holder does.
#[derive(Debug)]
struct Hold {
    world: SimWorld,
    locator: Locator,
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut state = self.world.lock();
        let held = state.devices.values_mut().find(|device| device.locator() == self.locator);
        if let Some(device) = held {
            device.holds = device.holds.saturating_sub(1);
        }
        state.let_go();
    }
}

/// Lets the snapshot be deleted when nobody reads it any more.
#[derive(Debug)]
struct Reader {
    world: SimWorld,
    volume: VolumeUuid,
    snapshot: SnapshotUuid,
}

impl Drop for Reader {
    fn drop(&mut self) {
        let mut state = self.world.lock();
        let read = (self.volume, self.snapshot);
        let left = state.readers.get(&read).map_or(0, |readers| readers.saturating_sub(1));
        match left {
            0 => state.readers.remove(&read),
            left => state.readers.insert(read, left),
        };
    }
}

fn size_of(volume: &Volume) -> Result<u64> {
    let size = volume.size.and_then(|size| size.round_up(super::content::BLOCK as u64));
    size.map(ByteSize::bytes)
        .filter(|size| *size > 0)
        .ok_or_else(|| Error::invalid("a simulated volume needs a size"))
}

impl State {
    fn content(&self, content: ContentRef) -> Result<&Blocks> {
        match content {
            ContentRef::Live(locator) => {
                self.image(locator).ok_or_else(|| absent(format_args!("{locator:?}")))
            }
            ContentRef::Snapshot { volume, snapshot } => self.snapshot(volume, snapshot),
        }
    }

    /// Puts an image in its place; false if there is one.
    fn add_image(
        &mut self,
        backend: &BackendName,
        locator: Locator,
        image: Blocks,
    ) -> Result<Outcome> {
        if self.image(locator).is_some() {
            return Ok(Outcome::Unchanged);
        }
        self.need_room()?;
        let stored = self.volumes.entry(locator.volume).or_insert_with(|| StoredVolume {
            backend: backend.clone(),
            images: Default::default(),
            snapshots: Default::default(),
            description: None,
        });
        stored.images.insert(locator.generation, image);
        Ok(Outcome::Changed)
    }

    fn refuse_attached(&self, attached: impl Fn(Locator) -> bool) -> Result<()> {
        match self.devices.iter().find(|(_, device)| attached(device.locator())) {
            None => Ok(()),
            Some((path, _)) => Err(Error::in_use(format!("it is attached as {}", path.display()))),
        }
    }

    fn refuse_read(&self, read: impl Fn(VolumeUuid, SnapshotUuid) -> bool) -> Result<()> {
        match self.readers.keys().find(|(volume, snapshot)| read(*volume, *snapshot)) {
            None => Ok(()),
            Some((_, snapshot)) => Err(Error::in_use(format!("snapshot {snapshot} is being read"))
                .hint("try again when nobody reads it")),
        }
    }
}

#[async_trait]
impl Backend for SimBackend {
    fn name(&self) -> &BackendName {
        &self.name
    }

    fn kind(&self) -> BackendKind {
        BackendKind::Block
    }

    fn scope(&self) -> Scope {
        Scope::Local
    }

    fn default_size(&self) -> Option<ByteSize> {
        Some(ByteSize::GIB)
    }

    fn storage(&self) -> Result<StorageId> {
        Ok(self.world.lock().storage())
    }

    async fn status(&self) -> Result<BackendStatus> {
        let state = self.world.lock();
        let used: u64 =
            state.volumes.values().flat_map(|v| v.images.values()).map(Blocks::allocated).sum();
        let total = 1 << 40;
        Ok(BackendStatus {
            total: Some(total),
            free: Some(if state.full { 0 } else { total - used }),
            location: "memory".to_owned(),
            warnings: if state.full { vec!["the disk is full".to_owned()] } else { Vec::new() },
        })
    }

    async fn create(&self, volume: &Volume) -> Result<Outcome> {
        let image = Blocks::zeros(size_of(volume)?);
        self.world.lock().add_image(&self.name, volume.into(), image)
    }

    async fn delete(&self, volume: VolumeUuid) -> Result<Outcome> {
        let mut state = self.world.lock();
        state.refuse_attached(|locator| locator.volume == volume)?;
        state.refuse_read(|of, _| of == volume)?;
        Ok(match state.volumes.remove(&volume) {
            Some(_) => Outcome::Changed,
            None => Outcome::Unchanged,
        })
    }

    async fn delete_generation(&self, locator: Locator) -> Result<Outcome> {
        let mut state = self.world.lock();
        state.refuse_attached(|attached| attached == locator)?;
        let stored = state.volumes.get_mut(&locator.volume);
        Ok(match stored.and_then(|stored| stored.images.remove(&locator.generation)) {
            Some(_) => Outcome::Changed,
            None => Outcome::Unchanged,
        })
    }

    async fn attach(&self, locator: Locator) -> Result<Attachment> {
        let mut state = self.world.lock();
        if state.image(locator).is_none() {
            return Err(absent(format_args!("{locator:?}")));
        }
        let path = match state.device_of(locator) {
            Some(path) => path.clone(),
            None => {
                let path = format!("/dev/sim/{}.{}", locator.volume, locator.generation).into();
                state.devices_made += 1;
                let number = state.devices_made;
                let Locator { volume, generation } = locator;
                state.devices.insert(path, Device { volume, generation, number, holds: 0 });
                state.device_of(locator).cloned().unwrap_or_default()
            }
        };
        if let Some(device) = state.devices.get_mut(&path) {
            device.holds += 1;
        }
        let hold = Hold { world: self.world.clone(), locator };
        Ok(Attachment::held_by(MountSource::Device(path), hold))
    }

    async fn detach(&self, locator: Locator) -> Result<Outcome> {
        // It goes away with its last user; while it is there, somebody uses it.
        self.world.lock().refuse_attached(|attached| attached == locator)?;
        Ok(Outcome::Unchanged)
    }

    async fn inspect(&self, locator: Locator) -> Result<Presence> {
        let state = self.world.lock();
        Ok(match state.image(locator) {
            None => Presence::Absent,
            Some(image) => Presence::Present {
                size: Some(ByteSize::new(image.size)),
                attached: state.device_of(locator).cloned().map(MountSource::Device),
            },
        })
    }

    async fn usage(&self, locator: Locator) -> Result<Usage> {
        let state = self.world.lock();
        let allocated = state.content(ContentRef::Live(locator))?.allocated();
        let stored = state.volumes.get(&locator.volume);
        let snapshots =
            stored.map_or(0, |stored| stored.snapshots.values().map(Blocks::allocated).sum());
        Ok(Usage { allocated, exclusive: None, snapshots })
    }

    async fn describe(&self, description: &Description) -> Result<()> {
        let text = serde_json::to_string(description)
            .map_err(|error| Error::internal("cannot write a description").caused_by(error))?;
        let mut state = self.world.lock();
        state.need_room()?;
        let volume = description.volume.uuid;
        let stored = state.volumes.get_mut(&volume);
        stored.ok_or_else(|| absent(format_args!("volume {volume}")))?.description = Some(text);
        Ok(())
    }

    async fn survey(&self) -> Result<Vec<Found>> {
        let state = self.world.lock();
        let ours = state.volumes.iter().filter(|(_, stored)| stored.backend == self.name);
        Ok(ours
            .map(|(volume, stored)| Found {
                volume: *volume,
                description: match &stored.description {
                    None => Err(absent(format_args!("description of {volume}"))),
                    Some(text) => serde_json::from_str(text).map_err(|error| {
                        Error::corrupt("it is not a description").caused_by(error)
                    }),
                },
            })
            .collect())
    }

    fn snapshots(&self) -> Option<&dyn Snapshots> {
        Some(self)
    }

    fn grow(&self) -> Option<&dyn Grow> {
        Some(self)
    }

    fn extents(&self) -> Option<&dyn Extents> {
        Some(self)
    }
}

impl SimBackend {
    /// Takes as long as copies take here.
    async fn copy(
        &self,
        content: ContentRef,
        progress: &Progress,
        limit: Option<Duration>,
    ) -> Result<Blocks> {
        // What is copied is what is there when the copy begins: its owner keeps it so.
        let (blocks, takes) = {
            let state = self.world.lock();
            (state.content(content)?.clone(), state.copies_take)
        };
        progress.add_total(blocks.allocated());
        if let Some(takes) = takes {
            tokio::time::sleep(limit.unwrap_or(takes).min(takes)).await;
            if limit.is_some_and(|limit| limit < takes) {
                return Err(Error::busy("the copy was not done in time"));
            }
        }
        progress.add(blocks.allocated());
        Ok(blocks)
    }
}

#[async_trait]
impl Snapshots for SimBackend {
    async fn copy_cost(&self, content: ContentRef) -> Result<CopyCost> {
        let state = self.world.lock();
        let bytes = state.content(content)?.allocated();
        Ok(match state.copies_take {
            None => CopyCost::Shared,
            Some(estimate) => CopyCost::Full { bytes, estimate },
        })
    }

    async fn snapshot(
        &self,
        locator: Locator,
        snapshot: SnapshotUuid,
        progress: &Arc<Progress>,
        limit: Option<Duration>,
    ) -> Result<Outcome> {
        if self.world.lock().snapshot(locator.volume, snapshot).is_ok() {
            return Ok(Outcome::Unchanged);
        }
        let blocks = self.copy(ContentRef::Live(locator), progress, limit).await?;
        let mut state = self.world.lock();
        state.need_room()?;
        let stored = state.volumes.get_mut(&locator.volume);
        let stored = stored.ok_or_else(|| absent(format_args!("{locator:?}")))?;
        stored.snapshots.insert(snapshot, blocks);
        Ok(Outcome::Changed)
    }

    async fn delete_snapshot(&self, volume: VolumeUuid, snapshot: SnapshotUuid) -> Result<Outcome> {
        let mut state = self.world.lock();
        state.refuse_read(|of, read| (of, read) == (volume, snapshot))?;
        let stored = state.volumes.get_mut(&volume);
        Ok(match stored.and_then(|stored| stored.snapshots.remove(&snapshot)) {
            Some(_) => Outcome::Changed,
            None => Outcome::Unchanged,
        })
    }

    async fn create_from(
        &self,
        source: ContentRef,
        target: &Volume,
        progress: &Arc<Progress>,
        limit: Option<Duration>,
    ) -> Result<Outcome> {
        let size = size_of(target)?;
        if self.world.lock().image(target.into()).is_some() {
            return Ok(Outcome::Unchanged);
        }
        let mut blocks = self.copy(source, progress, limit).await?;
        if blocks.size > size {
            return Err(Error::invalid("the source does not fit into the target"));
        }
        blocks.size = size;
        self.world.lock().add_image(&self.name, target.into(), blocks)
    }
}

#[async_trait]
impl Grow for SimBackend {
    async fn grow(&self, locator: Locator, size: ByteSize) -> Result<Outcome> {
        let size = size
            .round_up(super::content::BLOCK as u64)
            .ok_or_else(|| Error::invalid("no device is that large"))?;
        let mut state = self.world.lock();
        let stored = state.volumes.get_mut(&locator.volume);
        let image = stored
            .and_then(|stored| stored.images.get_mut(&locator.generation))
            .ok_or_else(|| absent(format_args!("{locator:?}")))?;
        if size.bytes() <= image.size {
            return Ok(Outcome::Unchanged);
        }
        image.size = size.bytes();
        Ok(Outcome::Changed)
    }
}

#[async_trait]
impl Extents for SimBackend {
    async fn allocated_extents(
        &self,
        volume: VolumeUuid,
        snapshot: SnapshotUuid,
    ) -> Result<Vec<Range<u64>>> {
        Ok(self.world.lock().snapshot(volume, snapshot)?.allocated_ranges())
    }

    async fn changed_extents(
        &self,
        volume: VolumeUuid,
        base: SnapshotUuid,
        snapshot: SnapshotUuid,
    ) -> Result<Vec<Range<u64>>> {
        let state = self.world.lock();
        Ok(state.snapshot(volume, snapshot)?.changed_since(state.snapshot(volume, base)?))
    }

    async fn open_snapshot(
        &self,
        volume: VolumeUuid,
        snapshot: SnapshotUuid,
    ) -> Result<SnapshotImage> {
        let mut state = self.world.lock();
        let blocks = state.snapshot(volume, snapshot)?;
        let (file, size) = (blocks.to_file()?, blocks.size);
        *state.readers.entry((volume, snapshot)).or_default() += 1;
        let hold = Reader { world: self.world.clone(), volume, snapshot };
        Ok(SnapshotImage::held_by(file, size, hold))
    }
}
