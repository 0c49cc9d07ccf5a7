use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Engine;
use super::change::Work;
use super::create::put;
use crate::backend::{Attachment, BackendKind, Locator, MountSource, Presence};
use crate::catalog;
use crate::clock::has_passed;
use crate::error::{Error, ErrorKind, Result};
use crate::failpoint::Step;
use crate::id::MountId;
use crate::linux::{MountRequest, Mounted};
use crate::model::{Content, Holder, MountLedger, OperationKind, Outcome, Volume};
use crate::name::VolumeName;

/// A mount whose answer has not reached its caller yet. Dropped before that, it is given up: nobody
/// else would (rule 5).
#[derive(Debug)]
pub(super) struct Grant {
    held: Option<(Engine, VolumeName, MountId)>,
    path: PathBuf,
}

impl Grant {
    pub(super) fn new(engine: Engine, name: VolumeName, id: MountId, path: PathBuf) -> Self {
        Self { held: Some((engine, name, id)), path }
    }

    /// The caller has it.
    pub(super) fn accept(mut self) -> PathBuf {
        self.held = None;
        std::mem::take(&mut self.path)
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        let Some((engine, name, id)) = self.held.take() else { return };
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        tracing::warn!(volume = %name, mount = %id, "the caller of a mount is gone; undoing it");
        runtime.spawn(async move { engine.change(None).unmount(name, id).await });
    }
}

impl Work {
    pub(super) async fn mount(
        &self,
        name: &VolumeName,
        id: &MountId,
        holder: Holder,
    ) -> Result<PathBuf> {
        let volume = self.engine.ready(name)?;
        let now = self.engine.inner.environment.clock.now();
        let mut ledger = self.engine.ledger(&volume);
        let there = self.engine.mounted(&volume).await?;
        // What an earlier mount that was broken off could not take back.
        let mut unfinished = false;
        if let Some(there) = &there {
            self.engine.require_own_mount(&volume, there).await?;
            unfinished = volume.read_only && !there.read_only && ledger.is_empty();
            // An engine that was killed mounts again with the id that it never gave up (rule 4).
            if ledger.entries.get(id).is_some_and(|entry| self.engine.is_settled(entry))
                && matches!(self.engine.users(&volume).await, Ok(0))
            {
                ledger.entries.remove(id);
            }
            if volume.content == Content::Prepared && !unfinished {
                ledger.add(id.clone(), holder, now);
                let record = vec![ledger_change(&volume, ledger)];
                self.engine.inner.catalog.commit(record).await?;
                return Ok(self.engine.data_directory(name));
            }
        }
        let operation =
            self.intend(Step::MountIntent, &volume, OperationKind::Mount, vec![]).await?;
        let mounted = async {
            let prepared = match there {
                None => self.mount_filesystem(&volume).await?,
                Some(_) if unfinished => {
                    let target = self.engine.target(name);
                    let unmount = self.engine.unmount_own(&volume, &target);
                    self.step(Step::MountWritableUnmount, unmount).await?;
                    self.mount_filesystem(&volume).await?
                }
                // A read-only volume is mounted so only once it is prepared.
                Some(there) if volume.read_only && there.read_only => {
                    Some(Volume { content: Content::Prepared, ..(*volume).clone() })
                }
                Some(_) => Some(self.step(Step::MountPrepare, self.prepare(&volume)).await?),
            };
            if let Some(prepared) = &prepared {
                self.describe_mounted(prepared).await;
            }
            ledger.add(id.clone(), holder, now);
            let mut changes = vec![ledger_change(&volume, ledger)];
            changes.extend(prepared.as_ref().map(put));
            self.finish(Step::MountFinish, changes).await
        };
        match mounted.await {
            Ok(()) => Ok(self.engine.data_directory(name)),
            Err(error) => Err(self.undo(&operation, error).await),
        }
    }

    /// Attaches and mounts; gives the volume's record if it has to change.
    async fn mount_filesystem(&self, volume: &Volume) -> Result<Option<Volume>> {
        let backend = self.backend(volume)?;
        let host = &self.engine.inner.environment.host;
        let attachment =
            self.step(Step::MountAttach, backend.attach(Locator::from(volume))).await?;
        let target = self.engine.target(&volume.name);
        let changes = volume.content != Content::Prepared || volume.grow_pending;
        let request = |read_only| mount_request(volume, &attachment, target.clone(), read_only);
        let to_grow = match (&attachment.source, volume.filesystem) {
            (MountSource::Device(device), Some(kind)) if volume.grow_pending => {
                Some((device, kind))
            }
            _ => None,
        };
        let mut grown = match to_grow {
            Some((device, kind)) => {
                let offline = host.grow_unmounted(device, kind).await;
                self.step(Step::MountGrowUnmounted, async { Ok(offline) }).await?
            }
            None => Ok(Outcome::Unchanged),
        };
        self.step(Step::MountFilesystem, host.mount(&request(volume.read_only && !changes)?))
            .await?;
        self.engine.remember_source(volume, &attachment.source);
        if !changes {
            return Ok(None);
        }
        if let (Some((device, kind)), Ok(Outcome::Unchanged)) = (to_grow, &grown) {
            let online = host.grow_filesystem(device, kind, &target).await;
            grown =
                self.step(Step::MountGrow, async { Ok(online) }).await?.map(|()| Outcome::Changed);
        }
        if let Err(error) = &grown {
            // The data is more than the room: it is mounted as it is, and the next mount tries again.
            self.engine.warn(format!(
                "the filesystem of volume {} could not be grown to its device: {}",
                volume.name,
                error.full_message()
            ));
        }
        let mut changed =
            Volume { grow_pending: volume.grow_pending && grown.is_err(), ..volume.clone() };
        if volume.content != Content::Prepared {
            changed = self.step(Step::MountPrepare, self.prepare(&changed)).await?;
        }
        if volume.read_only {
            self.step(Step::MountWritableUnmount, host.unmount(&target)).await?;
            self.step(Step::MountReadOnly, host.mount(&request(true)?)).await?;
        }
        Ok(Some(changed))
    }

    /// Makes the directory for containers in the mounted volume, with the owner and mode that its user
    /// chose; gives the record that says so.
    async fn prepare(&self, volume: &Volume) -> Result<Volume> {
        let data = self.engine.data_directory(&volume.name);
        self.engine.inner.environment.host.prepare_directory(&data, volume.ownership).await?;
        Ok(Volume { content: Content::Prepared, ..volume.clone() })
    }

    /// Keeps with the data what the mount changed: a catalog rebuilt from an older description would
    /// have the owner and mode applied once more. That is a nuisance in a case that may never come, and
    /// a volume that cannot be described, on a full disk for one, is one that somebody needs now: so a
    /// failure does not fail the mount.
    async fn describe_mounted(&self, volume: &Volume) {
        let describe = self.engine.describe(volume, None, None);
        if let Err(error) = self.step(Step::MountDescribe, describe).await {
            self.engine.warn(format!(
                "the description of volume {} is out of date until it is next changed: {}",
                volume.name,
                error.full_message()
            ));
        }
    }

    pub(super) async fn unmount(&self, name: &VolumeName, id: &MountId) -> Result<Outcome> {
        let Some(volume) = self.engine.find(name) else { return Ok(Outcome::Unchanged) };
        let mut ledger = self.engine.ledger(&volume);
        let held = ledger.remove(id);
        // What the last holder's unmount found busy is made up for by any later one.
        let late = !held && ledger.is_empty() && self.engine.is_stray(&volume).await;
        if !held && !late {
            return Ok(Outcome::Unchanged);
        }
        if !ledger.is_empty() && self.engine.all_gone(&volume, &ledger).await {
            tracing::info!(volume = %name, "no container has it any more; forgetting its other mount ids");
            ledger.entries.clear();
        }
        if !ledger.is_empty() {
            self.engine.inner.catalog.commit(vec![ledger_change(&volume, ledger)]).await?;
            return Ok(Outcome::Changed);
        }
        let record = vec![ledger_change(&volume, ledger)];
        let operation =
            self.intend(Step::UnmountIntent, &volume, OperationKind::Unmount, record).await?;
        let released = async {
            self.release(&volume, Step::UnmountFilesystem, Step::UnmountDetach).await?;
            self.finish(Step::UnmountFinish, vec![]).await
        };
        match released.await {
            Ok(()) => Ok(Outcome::Changed),
            Err(error) => Err(self.undo(&operation, error).await),
        }
    }

    /// Unmounts and detaches what no id holds.
    pub(super) async fn release(&self, volume: &Volume, unmount: Step, detach: Step) -> Result<()> {
        let target = self.engine.target(&volume.name);
        self.step(unmount, self.engine.unmount_own(volume, &target)).await?;
        let backend = self.backend(volume)?;
        self.step(detach, async {
            match backend.detach(Locator::from(volume)).await {
                // Another mount namespace still has it. It goes with that; rule 8 forbids force.
                Err(error) if error.kind() == ErrorKind::InUse => {
                    tracing::warn!(volume = %volume.name, "{}", error.full_message());
                    Ok(())
                }
                other => other.map(Outcome::ignore),
            }
        })
        .await
    }

    /// Makes sure that nobody uses the volume: mounts whose containers are gone are forgotten.
    ///
    /// # Errors
    /// `InUse`, naming the holders.
    pub(super) async fn require_unused(&self, volume: &Volume) -> Result<()> {
        let ledger = self.engine.ledger(volume);
        let mounted = self.engine.mounted(volume).await?.is_some();
        let used = mounted
            && match self.engine.users(volume).await {
                Ok(users) => users > 0,
                // What cannot be told is settled by the ledger, if it says anything.
                Err(error) if ledger.is_empty() => return Err(error),
                Err(_) => true,
            };
        if ledger.is_empty() && !used {
            return Ok(());
        }
        if used || !self.engine.all_gone(volume, &ledger).await {
            let mut holders: Vec<String> = ledger
                .entries
                .keys()
                .map(|id| id.as_str().chars().take(12).collect::<String>())
                .collect();
            if holders.is_empty() {
                holders.push("a container".to_owned());
            }
            return Err(Error::in_use(format!(
                "volume {} is mounted on node {} by {}",
                volume.name,
                self.engine.inner.config.node,
                holders.join(", ")
            ))
            .hint("stop the containers that use it; a mount made by hand ends with `holdfast volume unmount`"));
        }
        let empty = MountLedger::new(ledger.boot);
        self.engine.inner.catalog.commit(vec![ledger_change(volume, empty)]).await
    }
}

impl Engine {
    /// Who holds the volume mounted in this run of the kernel.
    pub(super) fn ledger(&self, volume: &Volume) -> MountLedger {
        let boot = self.inner.environment.host.boot_id();
        let recorded = self.inner.catalog.read(|state| state.ledger(volume.uuid).cloned());
        match recorded {
            Some(ledger) if ledger.boot == boot => Arc::unwrap_or_clone(ledger),
            _ => MountLedger::new(boot),
        }
    }

    /// What the kernel shows at the volume's target.
    pub(super) async fn mounted(&self, volume: &Volume) -> Result<Option<Mounted>> {
        self.mounted_at(&self.target(&volume.name)).await
    }

    async fn mounted_at(&self, target: &Path) -> Result<Option<Mounted>> {
        let mounts = self.inner.environment.host.mounts_below(target).await?;
        // The last of several covers the others.
        Ok(mounts.into_iter().rfind(|mount| mount.target == target))
    }

    /// Unmounts the volume from `target`, and nothing else that may be there (rules 7 and 8).
    pub(super) async fn unmount_own(&self, volume: &Volume, target: &Path) -> Result<Outcome> {
        if let Some(mounted) = self.mounted_at(target).await? {
            self.require_own_mount(volume, &mounted).await?;
        }
        self.inner.environment.host.unmount(target).await
    }

    /// Rule 7: what is mounted there is the volume and nothing else.
    async fn require_own_mount(&self, volume: &Volume, mounted: &Mounted) -> Result<()> {
        let backend = self.backend(&volume.backend)?;
        let presence = backend.inspect(Locator::from(volume)).await?;
        let own = match &presence {
            Presence::Present { attached: Some(MountSource::Device(device)), .. } => {
                device.to_str() == Some(&mounted.source)
            }
            Presence::Present { attached: Some(MountSource::Export { source, .. }), .. } => {
                *source == mounted.source
            }
            Presence::Present { .. } => false,
            Presence::Absent => return Err(self.no_data(volume)),
        };
        if own {
            return Ok(());
        }
        Err(Error::in_use(format!(
            "{} is mounted at {}, where volume {} belongs",
            mounted.source,
            mounted.target.display(),
            volume.name
        ))
        .hint("unmount it; Holdfast did not mount it"))
    }

    /// Refuses a volume that is not mounted here but that something else on this host has attached:
    /// it may be written to at any time.
    pub(super) async fn refuse_foreign_users(&self, volume: &Volume) -> Result<()> {
        let backend = self.backend(&volume.backend)?;
        if backend.kind() == BackendKind::File {
            return Ok(());
        }
        match backend.inspect(Locator::from(volume)).await? {
            Presence::Present { attached: Some(MountSource::Device(device)), .. } => {
                Err(Error::in_use(format!(
                    "volume {} is not mounted by Holdfast, but its device {} is held by something else",
                    volume.name,
                    device.display()
                ))
                .hint("another mount namespace or a program has it open; find it with `lsof` or `findmnt`"))
            }
            Presence::Present { .. } => Ok(()),
            Presence::Absent => Err(self.no_data(volume)),
        }
    }

    fn no_data(&self, volume: &Volume) -> Error {
        let Volume { name, backend, .. } = volume;
        let error =
            Error::corrupt(format!("the data of volume {name} is not in the backend {backend}"));
        error.hint(format!(
            "bring it back; while {} is mounted, the files can still be copied from there",
            self.target(name).display()
        ))
    }

    /// Whether the volume is mounted although no container has it; asked where no id holds it.
    async fn is_stray(&self, volume: &Volume) -> bool {
        let Ok(Some(mounted)) = self.mounted(volume).await else { return false };
        self.require_own_mount(volume, &mounted).await.is_ok()
            && matches!(self.users(volume).await, Ok(0))
    }

    /// Containers that have the volume, as the kernel sees it.
    pub(super) async fn users(&self, volume: &Volume) -> Result<usize> {
        self.inner.environment.host.bind_mounts_of(&self.target(&volume.name)).await
    }

    /// Whether every holder is a container that is provably gone. What cannot be proved is "no".
    async fn all_gone(&self, volume: &Volume, ledger: &MountLedger) -> bool {
        ledger.entries.values().all(|entry| self.is_settled(entry))
            && match self.mounted(volume).await {
                Ok(Some(_)) => matches!(self.users(volume).await, Ok(0)),
                Ok(None) => self.refuse_foreign_users(volume).await.is_ok(),
                Err(_) => false,
            }
    }

    fn is_settled(&self, entry: &crate::model::MountEntry) -> bool {
        let now = self.inner.environment.clock.now();
        entry.holder == Holder::Container
            && has_passed(self.inner.config.mount_grace, entry.last_mounted, now)
    }
}

pub(super) fn ledger_change(volume: &Volume, ledger: MountLedger) -> catalog::Change {
    catalog::Change::PutLedger(volume.uuid, ledger)
}

pub(super) fn mount_request(
    volume: &Volume,
    attachment: &Attachment,
    target: PathBuf,
    read_only: bool,
) -> Result<MountRequest> {
    let (source, filesystem, mut options) = match &attachment.source {
        MountSource::Device(device) => {
            let kind = volume.filesystem.ok_or_else(|| {
                Error::internal(format!("volume {} has a device and no filesystem", volume.name))
            })?;
            // Deleted files give their room back to the backend.
            let options = match volume.mount_options.iter().any(|o| o.contains("discard")) {
                true => vec![],
                false => vec!["discard".to_owned()],
            };
            let device = device.to_str().ok_or_else(|| Error::internal("a device with no name"))?;
            (device.to_owned(), kind.to_string(), options)
        }
        MountSource::Export { filesystem, source, options } => {
            (source.clone(), filesystem.clone(), options.clone())
        }
    };
    options.extend(volume.mount_options.iter().cloned());
    Ok(MountRequest { source, filesystem, target, options, read_only })
}
