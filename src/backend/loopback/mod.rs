//! The embedded default backend: each volume is a sparse image file behind a loop device.

mod attach;
mod copy;
mod description;
mod extents;
mod files;
mod layout;
mod status;

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use self::copy::CopyRate;
use self::layout::Layout;
use super::locks::VolumeLocks;
use super::{
    Attachment, Backend, BackendKind, BackendStatus, Description, Expected, Extents, Found, Grow,
    Locator, MountSource, Presence, Scope, Snapshots, Usage,
};
use crate::error::Result;
use crate::id::{StorageId, VolumeUuid};
use crate::linux::{LockFile, blocking, loop_image};
use crate::model::{Outcome, Volume};
use crate::name::BackendName;
use crate::units::ByteSize;
use async_trait::async_trait;

/// For what touches a few files.
const QUICK: Duration = Duration::from_secs(60);
/// For removing files, which takes as long as they have extents.
const SLOW: Duration = Duration::from_secs(600);
/// Longer than anything that somebody waits for; such work is ended by its own deadline.
const ENDLESS: Duration = Duration::from_secs(30 * 24 * 3600);

/// Where and how a [`LoopBackend`] keeps its volumes.
#[derive(Debug, Clone)]
pub struct LoopConfig {
    /// The name by which users choose it.
    pub name: BackendName,
    /// The directory; made if it is not there and no volume should be in it.
    pub dir: PathBuf,
    /// The size of a volume when the user names none.
    pub default_size: ByteSize,
}

/// Volumes as image files in a directory.
#[derive(Debug)]
pub struct LoopBackend {
    shared: Arc<Shared>,
    locks: VolumeLocks,
}

/// What the threads work with.
#[derive(Debug)]
struct Shared {
    config: LoopConfig,
    id: StorageId,
    layout: Layout,
    /// Whether files in the directory can share blocks: found out by trying, once.
    shares_blocks: OnceLock<bool>,
    copy_rate: CopyRate,
    _lock: LockFile,
}

impl LoopBackend {
    /// Opens the directory, if it is the `expected` storage, for this process alone and puts what earlier runs left unfinished aside,
    /// for [`Self::remove_leftovers`].
    ///
    /// # Errors
    /// `InUse` if another daemon uses the directory; `Unavailable` if it is not the expected storage.
    pub async fn open(config: LoopConfig, expected: Expected) -> Result<Self> {
        let what = format!("opening {}", config.dir.display());
        let shared = blocking::run(&what, QUICK, move || files::open(config, &expected)).await?;
        Ok(Self { shared: Arc::new(shared), locks: VolumeLocks::default() })
    }

    /// Removes what earlier runs left: half-built files and half-deleted volumes. Called once after
    /// start, beside everything else: nothing else touches what it removes.
    ///
    /// # Errors
    /// What could not be removed; it stays for the next time.
    pub async fn remove_leftovers(&self) -> Result<Outcome> {
        self.run("removing leftovers", SLOW, files::remove_leftovers).await
    }

    /// Runs work that changes nothing, or nothing of one volume.
    async fn run<T: Send + 'static>(
        &self,
        what: &str,
        limit: Duration,
        work: impl FnOnce(&Shared) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let shared = Arc::clone(&self.shared);
        blocking::run(what, limit, move || work(&shared)).await
    }

    /// Runs work that changes `volume`, alone.
    async fn change<T: Send + 'static>(
        &self,
        volume: VolumeUuid,
        what: &str,
        limit: Duration,
        work: impl FnOnce(&Shared) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let what = format!("{what} of {volume}");
        let guard = self.locks.lock(volume, QUICK).await?;
        let shared = Arc::clone(&self.shared);
        let done = blocking::run(&what, limit, move || {
            let _guard = guard;
            work(&shared)
        });
        done.await.map_err(|error| error.context(format!("{what} in {}", self.shared.config.name)))
    }
}

#[async_trait]
impl Backend for LoopBackend {
    fn name(&self) -> &BackendName {
        &self.shared.config.name
    }

    fn kind(&self) -> BackendKind {
        BackendKind::Block
    }

    fn scope(&self) -> Scope {
        Scope::Local
    }

    fn default_size(&self) -> Option<ByteSize> {
        Some(self.shared.config.default_size)
    }

    fn storage(&self) -> Result<StorageId> {
        Ok(self.shared.id)
    }

    async fn status(&self) -> Result<BackendStatus> {
        self.run("measuring the backend", QUICK, status::status).await
    }

    async fn create(&self, volume: &Volume) -> Result<Outcome> {
        let (locator, size) = (Locator::from(volume), files::device_size(volume)?);
        self.change(volume.uuid, "the creation", QUICK, move |shared| {
            files::create_image(shared, locator, |image| loop_image::set_size(image, size))
        })
        .await
    }

    async fn delete(&self, volume: VolumeUuid) -> Result<Outcome> {
        self.change(volume, "the deletion", SLOW, move |shared| files::delete(shared, volume)).await
    }

    async fn delete_generation(&self, locator: Locator) -> Result<Outcome> {
        self.change(locator.volume, "the deletion of a generation", SLOW, move |shared| {
            files::delete_generation(shared, locator)
        })
        .await
    }

    async fn attach(&self, locator: Locator) -> Result<Attachment> {
        self.change(locator.volume, "the attachment", QUICK, move |shared| {
            let path = shared.layout.image(locator);
            let device = loop_image::attach(&files::need_image(&path)?, &path)?;
            Ok(Attachment::held_by(MountSource::Device(device.path()), device))
        })
        .await
    }

    async fn detach(&self, locator: Locator) -> Result<Outcome> {
        self.change(locator.volume, "the detachment", QUICK, move |shared| {
            attach::wait_until_detached(&shared.layout.image(locator))
        })
        .await
    }

    async fn inspect(&self, locator: Locator) -> Result<Presence> {
        self.run("inspecting an image", QUICK, move |shared| {
            attach::inspect(&shared.layout.image(locator))
        })
        .await
    }

    async fn usage(&self, locator: Locator) -> Result<Usage> {
        self.run("measuring an image", QUICK, move |shared| status::usage(shared, locator)).await
    }

    async fn describe(&self, description: &Description) -> Result<()> {
        let volume = description.volume.uuid;
        let text = description::to_text(description)?;
        self.change(volume, "the description", QUICK, move |shared| {
            description::write(shared, volume, &text)
        })
        .await
    }

    async fn survey(&self) -> Result<Vec<Found>> {
        self.run("surveying the volumes", SLOW, description::survey).await
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

#[async_trait]
impl Grow for LoopBackend {
    async fn grow(&self, locator: Locator, size: ByteSize) -> Result<Outcome> {
        let size = files::whole_blocks(size)?;
        self.change(locator.volume, "the growth", QUICK, move |shared| {
            let path = shared.layout.image(locator);
            loop_image::grow(&files::need_image(&path)?, &path, size)
        })
        .await
    }
}
