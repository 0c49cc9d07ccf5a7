//! Snapshots, clones and restores: copies of whole images.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;

use super::{ENDLESS, LoopBackend, QUICK, SLOW, Shared, files};
use crate::backend::{ContentRef, CopyCost, Locator, Snapshots};
use crate::error::{Error, Result};
use crate::id::{SnapshotUuid, VolumeUuid};
use crate::linux::blocking::CancelOnDrop;
use crate::linux::copy::{CopyControl, allocated, share, sparse};
use crate::linux::durable::{make_private_directory, sync_directory};
use crate::linux::loop_image::set_size;
use crate::model::{Outcome, Progress, Volume};

/// How fast copies are here: what the last long one reached.
#[derive(Debug)]
pub(super) struct CopyRate(AtomicU64);

impl Default for CopyRate {
    /// A slow disk, until we know better: the estimate decides whether a mounted volume may be
    /// frozen for the copy.
    fn default() -> Self {
        Self(AtomicU64::new(100 << 20))
    }
}

impl CopyRate {
    /// Learns from a copy that was long enough to tell.
    fn learn(&self, bytes: u64, took: Duration) {
        const LONG_ENOUGH: u64 = 64 << 20;
        let millis = u64::try_from(took.as_millis()).unwrap_or(u64::MAX).max(1);
        if bytes >= LONG_ENOUGH {
            self.0.store((bytes / millis).saturating_mul(1000).max(1), Ordering::Relaxed);
        }
    }

    fn estimate(&self, bytes: u64) -> Duration {
        Duration::from_millis(bytes.saturating_mul(1000) / self.0.load(Ordering::Relaxed).max(1))
    }
}

impl Shared {
    fn content(&self, content: ContentRef) -> PathBuf {
        match content {
            ContentRef::Live(locator) => self.layout.image(locator),
            ContentRef::Snapshot { volume, snapshot } => self.layout.snapshot(volume, snapshot),
        }
    }

    fn open_content(&self, content: ContentRef) -> Result<File> {
        let path = self.content(content);
        files::open_to_read(&path)?
            .ok_or_else(|| Error::not_found(format!("there is no {}", path.display())))
    }

    /// Whether files here can share blocks. Tried once, with two small files.
    fn shares_blocks(&self) -> Result<bool> {
        if let Some(known) = self.shares_blocks.get() {
            return Ok(*known);
        }
        let tried = {
            let failed = |error| Error::io("cannot try to share blocks", error);
            let work = self.layout.work();
            let from = unnamed_file(&work).map_err(failed)?;
            std::os::unix::fs::FileExt::write_all_at(&from, &[1; 4096], 0).map_err(failed)?;
            share(&from, &unnamed_file(&work).map_err(failed)?)?
        };
        Ok(*self.shares_blocks.get_or_init(|| tried))
    }

    /// Fills the empty file `to` with `from`, sharing its blocks if that can be, and flushes it: a
    /// copy counts its time until it is on disk.
    fn copy(&self, from: &File, to: &File, control: &CopyControl) -> Result<()> {
        if self.shares_blocks()? && share(from, to)? {
            return Ok(());
        }
        let began = Instant::now();
        let copied = sparse(from, to, control)?;
        to.sync_all().map_err(|error| Error::io("cannot flush the copy", error))?;
        self.copy_rate.learn(copied, began.elapsed());
        Ok(())
    }
}

/// A file that has no name and goes away with its descriptor.
fn unnamed_file(directory: &std::path::Path) -> std::io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    File::options()
        .read(true)
        .write(true)
        .custom_flags(nix::libc::O_TMPFILE)
        .mode(0o600)
        .open(directory)
}

fn control(progress: &Arc<Progress>, limit: Option<Duration>, alive: &CancelOnDrop) -> CopyControl {
    CopyControl {
        progress: Arc::clone(progress),
        deadline: limit.and_then(|limit| Instant::now().checked_add(limit)),
        cancelled: alive.flag(),
    }
}

#[async_trait]
impl Snapshots for LoopBackend {
    async fn copy_cost(&self, content: ContentRef) -> Result<CopyCost> {
        self.run("estimating a copy", QUICK, move |shared| {
            let file = shared.open_content(content)?;
            if shared.shares_blocks()? {
                return Ok(CopyCost::Shared);
            }
            let bytes = allocated(&file)?;
            Ok(CopyCost::Full { bytes, estimate: shared.copy_rate.estimate(bytes) })
        })
        .await
    }

    async fn snapshot(
        &self,
        locator: Locator,
        snapshot: SnapshotUuid,
        progress: &Arc<Progress>,
        limit: Option<Duration>,
    ) -> Result<Outcome> {
        let alive = CancelOnDrop::default();
        let control = control(progress, limit, &alive);
        self.change(locator.volume, "the snapshot", ENDLESS, move |shared| {
            let path = shared.layout.snapshot(locator.volume, snapshot);
            if files::open_to_read(&path)?.is_some() {
                return Ok(Outcome::Unchanged);
            }
            let from = shared.open_content(ContentRef::Live(locator))?;
            make_private_directory(&shared.layout.snapshots(locator.volume))?;
            files::build(&shared.layout.new_snapshot(snapshot), &path, 0o400, |to| {
                shared.copy(&from, to, &control)
            })?;
            Ok(Outcome::Changed)
        })
        .await
    }

    async fn delete_snapshot(&self, volume: VolumeUuid, snapshot: SnapshotUuid) -> Result<Outcome> {
        self.change(volume, "the deletion of a snapshot", SLOW, move |shared| {
            let path = shared.layout.snapshot(volume, snapshot);
            super::attach::refuse_attached(&path)?;
            if !files::remove_file(&path)? {
                return Ok(Outcome::Unchanged);
            }
            sync_directory(&shared.layout.snapshots(volume))?;
            Ok(Outcome::Changed)
        })
        .await
    }

    async fn create_from(
        &self,
        source: ContentRef,
        target: &Volume,
        progress: &Arc<Progress>,
        limit: Option<Duration>,
    ) -> Result<Outcome> {
        let (locator, size) = (Locator::from(target), files::device_size(target)?);
        let alive = CancelOnDrop::default();
        let control = control(progress, limit, &alive);
        self.change(target.uuid, "the copy", ENDLESS, move |shared| {
            // A repeat succeeds even if the source is gone by now.
            if files::open_image(&shared.layout.image(locator))?.is_some() {
                return Ok(Outcome::Unchanged);
            }
            let from = shared.open_content(source)?;
            let length = from
                .metadata()
                .map_err(|error| Error::io("cannot inspect the source", error))?
                .len();
            if length > size.bytes() {
                return Err(Error::invalid(format!(
                    "the source is {length} bytes large and does not fit into {size}"
                )));
            }
            files::create_image(shared, locator, |to| {
                shared.copy(&from, to, &control)?;
                set_size(to, size)
            })
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_learnt_from_long_copies_only() {
        let rate = CopyRate::default();
        assert_eq!(rate.estimate(1000 << 20), Duration::from_secs(10));
        rate.learn(1 << 20, Duration::from_millis(1));
        assert_eq!(rate.estimate(1000 << 20), Duration::from_secs(10));
        rate.learn(1000 << 20, Duration::from_secs(1));
        assert!(rate.estimate(1000 << 20) <= Duration::from_millis(1100));
        rate.learn(u64::MAX, Duration::ZERO);
        rate.estimate(u64::MAX);
    }
}
