use super::Engine;
use super::change::Work;
use super::create::put;
use crate::backend::{Locator, MountSource, Presence};
use crate::error::{Error, Result};
use crate::failpoint::Step;
use crate::model::{OperationKind, Outcome, Volume};
use crate::name::VolumeName;
use crate::units::ByteSize;

impl Work {
    pub(super) async fn grow(&self, name: &VolumeName, size: ByteSize) -> Result<Outcome> {
        let volume = self.engine.ready(name)?;
        let backend = self.backend(&volume)?;
        let (Some(grow), Some(now)) = (backend.grow(), volume.size) else {
            return Err(Error::unsupported(format!(
                "volumes on {} have no size of their own",
                volume.backend
            )));
        };
        let size = super::create::checked_size(size, volume.filesystem, None)?;
        if size < now {
            return Err(Error::invalid(format!(
                "volume {name} has {now} and cannot shrink to {size}"
            ))
            .hint("create a smaller volume and copy the files"));
        }
        // A filesystem that is smaller than its device is tried again.
        if size == now && !volume.grow_pending {
            return Ok(Outcome::Unchanged);
        }
        let kind = OperationKind::Grow { to: size };
        let operation = self.intend(Step::GrowIntent, &volume, kind, vec![]).await?;
        let grown = async {
            let device = grow.grow(Locator::from(&*volume), size);
            self.step(Step::GrowDevice, device).await?;
            let grown = Volume { size: Some(size), grow_pending: true, ..(*volume).clone() };
            let filesystem = self.engine.grow_filesystem_now(&grown);
            let grow_pending = !self.step(Step::GrowFilesystem, filesystem).await?;
            let grown = Volume { grow_pending, ..grown };
            self.step(Step::GrowDescribe, self.engine.describe(&grown, None, None)).await?;
            self.finish(Step::GrowFinish, vec![put(&grown)]).await?;
            let same = size == now && grown.grow_pending == volume.grow_pending;
            Ok(if same { Outcome::Unchanged } else { Outcome::Changed })
        };
        match grown.await {
            Ok(outcome) => Ok(outcome),
            Err(error) => Err(self.undo(&operation, error).await),
        }
    }

    pub(super) async fn rename(&self, name: &VolumeName, new: VolumeName) -> Result<Outcome> {
        let volume = self.engine.ready(name)?;
        if *name == new {
            return Ok(Outcome::Unchanged);
        }
        if let Some(other) = self.engine.find(&new) {
            return Err(Error::conflict(format!("there is a volume {} already", other.name)));
        }
        self.require_unused(&volume).await?;
        let operation =
            self.intend(Step::RenameIntent, &volume, OperationKind::Rename, vec![]).await?;
        let renamed = Volume { name: new, ..(*volume).clone() };
        let described = async {
            // The mountpoint has the old name.
            self.release(&volume, Step::RenameUnmount, Step::RenameDetach).await?;
            let commit = self.engine.inner.catalog.commit(vec![put(&renamed)]);
            self.step(Step::RenameCommit, commit).await?;
            self.step(Step::RenameDescribe, self.engine.describe(&renamed, None, None)).await?;
            self.finish(Step::RenameFinish, vec![]).await
        };
        match described.await {
            Ok(()) => Ok(Outcome::Changed),
            Err(error) => Err(self.undo(&operation, error).await),
        }
    }
}

impl Engine {
    /// Grows the filesystem to its device if it is mounted and writable; says whether it did.
    pub(super) async fn grow_filesystem_now(&self, volume: &Volume) -> Result<bool> {
        let Some(kind) = volume.filesystem else { return Ok(true) };
        let Some(mounted) = self.mounted(volume).await? else { return Ok(false) };
        if mounted.read_only {
            return Ok(false);
        }
        let presence = self.backend(&volume.backend)?.inspect(Locator::from(volume)).await?;
        let Presence::Present { attached: Some(MountSource::Device(device)), .. } = presence else {
            return Ok(false);
        };
        let host = &self.inner.environment.host;
        host.grow_filesystem(&device, kind, &mounted.target).await?;
        Ok(true)
    }
}
