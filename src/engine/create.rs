use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::change::Work;
use super::mount::mount_request;
use crate::backend::{
    Attachment, BackendKind, BackendStatus, ContentRef, Locator, MountSource, Snapshots,
};
use crate::catalog;
use crate::error::{Error, ErrorKind, Result};
use crate::failpoint::Step;
use crate::id::Generation;
use crate::linux::FilesystemSpec;
use crate::model::{
    ActiveSchedule, Content, OperationKind, Outcome, Snapshot, Volume, VolumeState,
};
use crate::name::VolumeName;
use crate::options::{ContentSource, FilesystemKind, VolumeOptions};
use crate::units::ByteSize;

/// Devices are cut in pages: every filesystem's and every device's block divides it.
const SIZE_UNIT: u64 = 4096;

/// With less than this free in the backend, a failed mkfs is taken for a full disk.
const NO_ROOM: u64 = 1 << 20;

/// Content for a new volume, found in the catalog.
pub(super) struct Source {
    pub(super) volume: Arc<Volume>,
    pub(super) snapshot: Option<Arc<Snapshot>>,
}

impl Work {
    pub(super) async fn create(
        &self,
        name: VolumeName,
        options: VolumeOptions,
        labels: BTreeMap<String, String>,
    ) -> Result<Outcome> {
        if let Some(existing) = self.engine.find(&name) {
            return self.same_volume(&existing, &options);
        }
        let source = match &options.source {
            Some(ContentSource::FromBackup(backup)) => {
                let backup = backup.clone();
                return self.create_from_backup(name, options, labels, &backup).await;
            }
            Some(source) => Some(self.find_source(source)?),
            None => None,
        };
        let asked = options.clone();
        let volume = self.plan(name, options, labels, source.as_ref())?;
        let schedule = self.engine.schedule_of(&asked, self.backend(&volume)?.as_ref())?;
        match source {
            None => self.create_empty(volume, schedule).await,
            Some(source) => self.create_clone(volume, schedule, &source).await,
        }
    }

    /// Rule 2: the same options are a success, others are named.
    fn same_volume(&self, existing: &Volume, asked: &VolumeOptions) -> Result<Outcome> {
        let keys: BTreeSet<&String> = existing.options.keys().chain(asked.given().keys()).collect();
        let mut differing = Vec::new();
        for key in keys {
            let now = self.value_in_force(existing, key);
            let wanted =
                asked.given().get(key).cloned().or_else(|| self.default_value(existing, key));
            let created = existing.options.get(key);
            let same = |one: Option<&String>| match (one, &wanted) {
                (Some(one), Some(other)) => VolumeOptions::same_value(key, one, other),
                (one, other) => one == other.as_ref(),
            };
            // A volume that has grown since is still what it was created as.
            let as_created = created.is_some() && same(created);
            if !as_created && !same(now.as_ref()) {
                let show =
                    |value: Option<&String>| value.map_or("unset", String::as_str).to_owned();
                differing.push(format!(
                    "{key} is {} and not {}",
                    show(now.as_ref()),
                    show(wanted.as_ref())
                ));
            }
        }
        if differing.is_empty() {
            return Ok(Outcome::Unchanged);
        }
        Err(Error::conflict(format!(
            "the volume {} exists with other options: {}",
            existing.name,
            differing.join(", ")
        ))
        .hint("use the same options, another name, or remove the volume first"))
    }

    /// The value of an option of an existing volume, whether it was given or a default.
    fn value_in_force(&self, volume: &Volume, key: &str) -> Option<String> {
        match key {
            "size" => volume.size.map(|size| size.bytes().to_string()),
            "backend" => Some(volume.backend.to_string()),
            "fs" => volume.filesystem.map(|filesystem| filesystem.to_string()),
            _ => volume.options.get(key).cloned().or_else(|| default_flag(key)),
        }
    }

    /// The value that an option has when it is not given.
    fn default_value(&self, volume: &Volume, key: &str) -> Option<String> {
        let config = &self.engine.inner.config;
        match key {
            "size" if volume.options.contains_key("size") => {
                let backend = self.engine.known_backend(&volume.backend).ok()?;
                backend.default_size().map(|size| size.bytes().to_string())
            }
            "size" => volume.size.map(|size| size.bytes().to_string()),
            "backend" => Some(config.default_backend.to_string()),
            "fs" => volume.filesystem.map(|_| FilesystemKind::Ext4.to_string()),
            _ => default_flag(key),
        }
    }

    fn find_source(&self, source: &ContentSource) -> Result<Source> {
        match source {
            ContentSource::CloneOf(volume) => {
                Ok(Source { volume: self.engine.ready(volume)?, snapshot: None })
            }
            ContentSource::FromSnapshot(reference) => {
                let volume = self.engine.ready(&reference.volume)?;
                let snapshot = self.engine.complete_snapshot(&volume, &reference.snapshot)?;
                Ok(Source { volume, snapshot: Some(snapshot) })
            }
            ContentSource::FromBackup(_) => Err(Error::internal("a backup is no volume here")),
        }
    }

    /// The record of the volume to be, with every default decided.
    pub(super) fn plan(
        &self,
        name: VolumeName,
        options: VolumeOptions,
        labels: BTreeMap<String, String>,
        source: Option<&Source>,
    ) -> Result<Volume> {
        let from = source.map(|source| &*source.volume);
        let backend_name = options
            .backend
            .clone()
            .or_else(|| from.map(|volume| volume.backend.clone()))
            .unwrap_or_else(|| self.engine.inner.config.default_backend.clone());
        let backend = self.engine.backend(&backend_name)?;
        if let Some(from) = from
            && from.backend != backend_name
        {
            return Err(Error::unsupported(format!(
                "volume {} is on {} and cannot be cloned to {backend_name}",
                from.name, from.backend
            ))
            .hint("clone it on its own backend"));
        }
        let given = options.given().clone();
        let block = backend.kind() == BackendKind::Block;
        if !block && (options.filesystem.is_some() || !options.mkfs_options.is_empty()) {
            return Err(Error::invalid(format!(
                "the backend {backend_name} has a filesystem of its own: fs and mkfs-options mean nothing there"
            )));
        }
        let filesystem = block.then(|| {
            from.and_then(|v| v.filesystem).or(options.filesystem).unwrap_or(FilesystemKind::Ext4)
        });
        if let (Some(asked), Some(has)) = (options.filesystem, filesystem)
            && asked != has
        {
            return Err(Error::invalid(format!("the source has {has}, which a copy keeps")));
        }
        let source_size = source.and_then(|source| match &source.snapshot {
            Some(snapshot) => snapshot.size,
            None => source.volume.size,
        });
        let size = match options.size.or(source_size).or(backend.default_size()) {
            Some(size) if block => Some(checked_size(size, filesystem, source_size)?),
            size => size,
        };
        let content = match source {
            None => Content::Blank,
            // The copy's root gets the owner and mode that were asked for when it is first mounted.
            Some(_) if !options.ownership.is_default() => Content::Formatted,
            Some(Source { snapshot: Some(snapshot), .. }) => snapshot.content,
            Some(Source { volume, .. }) => volume.content,
        };
        Ok(Volume {
            uuid: self.engine.new_volume_uuid(),
            name,
            backend: backend_name,
            generation: Generation::FIRST,
            state: VolumeState::Creating,
            content,
            size,
            grow_pending: source_size.is_some() && source_size != size,
            filesystem,
            mkfs_options: options.mkfs_options,
            mount_options: match options.mount_options.is_empty() {
                true => from.map(|volume| volume.mount_options.clone()).unwrap_or_default(),
                false => options.mount_options,
            },
            ownership: options.ownership,
            read_only: options.read_only,
            on_remove: options.on_remove,
            options: given,
            labels,
            created: self.engine.inner.environment.clock.now(),
        })
    }

    async fn create_empty(
        &self,
        mut volume: Volume,
        schedule: Option<ActiveSchedule>,
    ) -> Result<Outcome> {
        let kind = OperationKind::Create { frozen: None };
        let record = put_new(&volume, schedule);
        let operation = self.intend(Step::CreateIntent, &volume, kind, record).await?;
        let made = async {
            let backend = self.backend(&volume)?;
            self.step(Step::CreateAllocate, backend.create(&volume)).await?;
            if let Some(filesystem) = volume.filesystem {
                let locator = Locator::from(&volume);
                let attachment = self.step(Step::CreateAttach, backend.attach(locator)).await?;
                self.step(Step::CreateFormat, async {
                    self.format(&volume, filesystem, &attachment).await?;
                    self.try_options(&volume, &attachment).await
                })
                .await?;
                volume.content = Content::Formatted;
                let record = vec![put(&volume)];
                self.step(Step::CreateRecordFormat, self.engine.inner.catalog.commit(record))
                    .await?;
                drop(attachment);
                self.step(Step::CreateDetach, backend.detach(locator)).await?;
            }
            self.progress.go_on()?;
            volume.state = VolumeState::Ready;
            self.step(Step::CreateDescribe, self.engine.describe(&volume, None, None)).await?;
            self.finish(Step::CreateFinish, vec![put(&volume)]).await
        };
        match made.await {
            Ok(()) => Ok(Outcome::Changed),
            Err(error) => Err(self.undo(&operation, error).await),
        }
    }

    /// Rule 6: only what was never formatted and reads as zeros gets a filesystem.
    async fn format(
        &self,
        volume: &Volume,
        kind: FilesystemKind,
        attachment: &Attachment,
    ) -> Result<()> {
        let device = attachment.device()?;
        let host = &self.engine.inner.environment.host;
        if volume.content != Content::Blank || !host.is_blank(device).await? {
            return Err(Error::corrupt(format!(
                "the new device {} is not blank; nothing was written to it",
                device.display()
            )));
        }
        let options = volume.mkfs_options.clone();
        let spec = FilesystemSpec { kind, uuid: volume.uuid.uuid(), options };
        match host.make_filesystem(device, &spec).await {
            Ok(()) => Ok(()),
            Err(error) => Err(self.or_no_room(volume, error).await),
        }
    }

    /// Mount options that the filesystem does not take fail the creation and not the first mount, when
    /// there is only a volume that can never be used.
    pub(super) async fn try_options(&self, volume: &Volume, attachment: &Attachment) -> Result<()> {
        if volume.mount_options.is_empty() {
            return Ok(());
        }
        // As its first mount will be: to be prepared or grown it has to be writable.
        let read_only =
            volume.read_only && volume.content == Content::Prepared && !volume.grow_pending;
        let target = self.engine.target(&volume.name);
        let request = mount_request(volume, attachment, target, read_only)?;
        self.engine.inner.environment.host.try_mount(&request).await
    }

    /// A full disk below a sparse image looks like a broken device to mkfs: says what it is.
    async fn or_no_room(&self, volume: &Volume, error: Error) -> Error {
        let Ok(backend) = self.backend(volume) else { return error };
        match backend.status().await {
            Ok(BackendStatus { free: Some(free), location, .. }) if free < NO_ROOM => error
                .with_kind(ErrorKind::OutOfSpace)
                .context(format!("there is no space left in {location}"))
                .hint("free some room there, and try again"),
            _ => error,
        }
    }

    async fn create_clone(
        &self,
        mut volume: Volume,
        schedule: Option<ActiveSchedule>,
        source: &Source,
    ) -> Result<Outcome> {
        let backend = self.backend(&volume)?;
        let snapshots = backend.snapshots().ok_or_else(|| {
            Error::unsupported(format!("the backend {} cannot clone", volume.backend))
        })?;
        let content = match &source.snapshot {
            Some(snapshot) => {
                ContentRef::Snapshot { volume: source.volume.uuid, snapshot: snapshot.uuid }
            }
            None => ContentRef::Live(Locator::from(&*source.volume)),
        };
        let frozen = match source.snapshot {
            None => self.must_freeze(&source.volume, snapshots, content).await?,
            Some(_) => false,
        };
        let kind = OperationKind::Create { frozen: frozen.then_some(source.volume.uuid) };
        let record = put_new(&volume, schedule);
        let operation = self.intend(Step::CloneIntent, &volume, kind, record).await?;
        let made = async {
            let steps = [Step::CloneFreeze, Step::CloneCopy, Step::CloneThaw];
            self.cut(frozen.then_some(&*source.volume), steps, async |limit| {
                snapshots.create_from(content, &volume, &self.progress, limit).await
            })
            .await?;
            if let Some(filesystem) = volume.filesystem {
                let locator = Locator::from(&volume);
                let attachment = self.step(Step::CloneAttach, backend.attach(locator)).await?;
                let device = attachment.device()?;
                let host = &self.engine.inner.environment.host;
                // No volume's name begins with a dot.
                let scratch = self.engine.inner.config.mount_dir.join(format!(".{}", volume.uuid));
                let renew = host.renew_identity(device, filesystem, volume.uuid.uuid(), &scratch);
                self.step(Step::CloneIdentity, async {
                    renew.await?;
                    self.try_options(&volume, &attachment).await
                })
                .await?;
                drop(attachment);
                self.step(Step::CloneDetach, backend.detach(locator)).await?;
            }
            self.progress.go_on()?;
            volume.state = VolumeState::Ready;
            self.step(Step::CloneDescribe, self.engine.describe(&volume, None, None)).await?;
            self.finish(Step::CloneFinish, vec![put(&volume)]).await
        };
        match made.await {
            Ok(()) => Ok(Outcome::Changed),
            Err(error) => Err(self.undo(&operation, error).await),
        }
    }

    /// Whether `volume` has to be frozen while `content` is copied.
    ///
    /// # Errors
    /// `Busy` if that would hold it frozen for longer than the limit.
    pub(super) async fn must_freeze(
        &self,
        volume: &Volume,
        snapshots: &dyn Snapshots,
        content: ContentRef,
    ) -> Result<bool> {
        use crate::backend::CopyCost;
        if self.engine.mounted(volume).await?.is_none() {
            self.engine.refuse_foreign_users(volume).await?;
            return Ok(false);
        }
        if volume.read_only {
            return Ok(false);
        }
        let limit = self.engine.inner.config.freeze_limit;
        if let CopyCost::Full { bytes, estimate } = snapshots.copy_cost(content).await?
            && estimate > limit
        {
            return Err(Error::busy(format!(
                "volume {} is mounted, and copying its {} would hold it frozen for about {} s, \
                 longer than the limit of {} s",
                volume.name,
                ByteSize::new(bytes),
                estimate.as_secs().max(1),
                limit.as_secs(),
            ))
            .hint(
                "stop its containers first, keep the volumes on xfs or btrfs where nothing is copied, \
                 or raise loop.freeze_limit",
            ));
        }
        Ok(true)
    }
}

impl Attachment {
    /// The block device.
    pub(super) fn device(&self) -> Result<&std::path::Path> {
        match &self.source {
            MountSource::Device(path) => Ok(path),
            MountSource::Export { source, .. } => {
                Err(Error::internal(format!("{source} is no block device")))
            }
        }
    }
}

pub(super) fn put(volume: &Volume) -> catalog::Change {
    catalog::Change::PutVolume(Box::new(volume.clone()))
}

pub(super) fn put_new(volume: &Volume, schedule: Option<ActiveSchedule>) -> Vec<catalog::Change> {
    let schedule = schedule.map(|s| catalog::Change::PutSchedule(volume.uuid, Box::new(s)));
    std::iter::once(put(volume)).chain(schedule).collect()
}

fn default_flag(key: &str) -> Option<String> {
    match key {
        "read-only" => Some("false".to_owned()),
        "on-remove" => Some("delete".to_owned()),
        _ => None,
    }
}

/// The size a device gets: whole pages, and room for its filesystem and its content.
pub(super) fn checked_size(
    size: ByteSize,
    filesystem: Option<FilesystemKind>,
    content: Option<ByteSize>,
) -> Result<ByteSize> {
    let rounded = size.round_up(SIZE_UNIT).filter(|size| i64::try_from(size.bytes()).is_ok());
    let size = rounded.ok_or_else(|| Error::invalid(format!("{size} is too large")))?;
    if let Some(filesystem) = filesystem
        && size < filesystem.smallest()
    {
        return Err(Error::invalid(format!("{size} is too small for {filesystem}"))
            .hint(format!("give at least {}", filesystem.smallest())));
    }
    if let Some(content) = content
        && size < content
    {
        return Err(Error::invalid(format!(
            "{size} is smaller than the source, which has {content}"
        ))
        .hint("a copy is at least as large as its source"));
    }
    Ok(size)
}
