//! Snapshots, clones and restores: thin devices that share their chunks; and which chunks differ.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::ids::Beginning;
use super::pool::Pool;
use super::records::Owner;
use super::{SLOW, ThinBackend, volume};
use crate::backend::{ContentRef, CopyCost, Extents, Locator, SnapshotImage, Snapshots};
use crate::error::{Error, Result};
use crate::id::{SnapshotUuid, VolumeUuid};
use crate::model::{Outcome, Progress, Volume};
use crate::units::ByteSize;

impl From<ContentRef> for Owner {
    fn from(content: ContentRef) -> Self {
        match content {
            ContentRef::Live(locator) => locator.into(),
            ContentRef::Snapshot { volume, snapshot } => Self::Snapshot { volume, snapshot },
        }
    }
}

impl Pool {
    /// Makes a thin device with the content of another one, `size` bytes large if one is given.
    fn copy(&self, source: ContentRef, target: Owner, size: Option<ByteSize>) -> Result<Outcome> {
        // A repeat succeeds even if the source is gone by now.
        if self.index().ready(target).is_some() {
            return Ok(Outcome::Unchanged);
        }
        let (origin, thin) = self.need(source.into())?;
        let size = size.unwrap_or(thin.size);
        if size < thin.size {
            return Err(Error::invalid(format!(
                "the source has {} and does not fit into {size}",
                thin.size
            )));
        }
        let active = match source {
            ContentRef::Live(locator) => Some(self.names.volume(locator).uuid),
            ContentRef::Snapshot { .. } => None,
        };
        let active = match active {
            Some(uuid) => self.mapper.find(&uuid)?.map(|device| device.identity.uuid),
            None => None,
        };
        let beginning = Beginning::SnapshotOf { origin, active: active.as_deref() };
        self.create_thin(target, size, beginning)
    }
}

#[async_trait]
impl Snapshots for ThinBackend {
    async fn copy_cost(&self, content: ContentRef) -> Result<CopyCost> {
        self.active()?.need(content.into()).map(|_| CopyCost::Shared)
    }

    async fn snapshot(
        &self,
        locator: Locator,
        snapshot: SnapshotUuid,
        _progress: &Arc<Progress>,
        _limit: Option<Duration>,
    ) -> Result<Outcome> {
        let target = Owner::Snapshot { volume: locator.volume, snapshot };
        self.change(locator.volume, "the snapshot", move |pool| {
            pool.copy(ContentRef::Live(locator), target, None)
        })
        .await
    }

    async fn delete_snapshot(&self, volume: VolumeUuid, snapshot: SnapshotUuid) -> Result<Outcome> {
        self.change(volume, "the deletion of a snapshot", move |pool| {
            pool.delete_owned(Owner::Snapshot { volume, snapshot })
        })
        .await
    }

    async fn create_from(
        &self,
        source: ContentRef,
        target: &Volume,
        _progress: &Arc<Progress>,
        _limit: Option<Duration>,
    ) -> Result<Outcome> {
        let (locator, size) = (Locator::from(target), volume::device_size(target)?);
        self.change(target.uuid, "the copy", move |pool| {
            pool.copy(source, locator.into(), Some(size))
        })
        .await
    }
}

#[async_trait]
impl Extents for ThinBackend {
    async fn allocated_extents(
        &self,
        volume: VolumeUuid,
        snapshot: SnapshotUuid,
    ) -> Result<Vec<Range<u64>>> {
        let (id, thin) = self.active()?.need(Owner::Snapshot { volume, snapshot })?;
        self.run("reading a snapshot's extents", SLOW, move |pool| {
            pool.allocated(id, thin.size.bytes())
        })
        .await
    }

    async fn changed_extents(
        &self,
        volume: VolumeUuid,
        base: SnapshotUuid,
        snapshot: SnapshotUuid,
    ) -> Result<Vec<Range<u64>>> {
        let pool = self.active()?;
        let (old, old_thin) = pool.need(Owner::Snapshot { volume, snapshot: base })?;
        let (new, thin) = pool.need(Owner::Snapshot { volume, snapshot })?;
        let (old_size, size) = (old_thin.size.bytes(), thin.size.bytes());
        self.run("comparing two snapshots", SLOW, move |pool| {
            let mut ranges = pool.changed(old, new, size)?;
            // What a smaller base does not have is told as changed, as everywhere.
            if old_size < size {
                ranges.retain(|range| range.start < old_size);
                match ranges.last_mut() {
                    Some(last) if last.end >= old_size => last.end = size,
                    _ => ranges.push(old_size..size),
                }
            }
            Ok(ranges)
        })
        .await
    }

    async fn open_snapshot(
        &self,
        volume: VolumeUuid,
        snapshot: SnapshotUuid,
    ) -> Result<SnapshotImage> {
        self.change(volume, "the opening of a snapshot", move |pool| {
            pool.open_snapshot(volume, snapshot)
        })
        .await
    }
}
