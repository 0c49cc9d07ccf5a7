//! Making backups, and reading what their snapshot files say.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use rustic_core::repofile::{SnapshotFile, SnapshotId, SnapshotSummary, StringList};
use rustic_core::{FileType, jiff};

use super::archive::{Archiver, Parent};
use super::image::Image;
use super::lock::Access;
use super::manifest::{Layout, Manifest};
use super::reading::Indexed;
use super::session::Session;
use super::upkeep::{names, recover};
use super::{Opened, Repository};
use crate::error::{Error, ErrorKind, Result};
use crate::failpoint::{self, BackendStep};
use crate::id::{BackupId, SnapshotUuid};
use crate::model::{Backup, Progress};
use crate::name::RepositoryName;

/// The tag of every backup that we made.
const OURS: &str = "holdfast";

/// The tag of those that a schedule made.
const SCHEDULED: &str = "scheduled";

/// A snapshot of a block volume to back up.
#[derive(Debug)]
pub struct ImageJob {
    /// What it is of.
    pub manifest: Manifest,
    /// Its bytes.
    pub image: Image,
    /// What it is the difference to.
    pub base: Option<Base>,
    /// Whether the volume's schedule makes it.
    pub scheduled: bool,
}

/// A backup of an earlier snapshot of the same volume, and what may differ from that snapshot.
#[derive(Debug)]
pub struct Base {
    /// The backup.
    pub backup: BackupId,
    /// Ascending and disjoint.
    pub changed: Vec<Range<u64>>,
}

/// A backup that was made.
#[derive(Debug)]
pub struct Stored {
    /// The backup.
    pub backup: Backup,
    /// Bytes that were read of the volume to make it.
    pub read: u64,
}

impl Repository {
    /// Backs up the image of a block volume. Whatever fails or is cancelled, there is no backup then.
    ///
    /// # Errors
    /// The image cannot be read, or the repository not written.
    pub fn back_up_image(&self, job: &ImageJob, progress: &Arc<Progress>) -> Result<Stored> {
        self.with_index(|| self.try_to_back_up_image(job, progress))
    }

    fn try_to_back_up_image(&self, job: &ImageJob, progress: &Arc<Progress>) -> Result<Stored> {
        let session = self.session(progress)?;
        let opened = self.open(&session)?;
        let cipher = self.cipher(&opened)?;
        let _lock = self.lock(&session, &opened, Access::Shared)?;
        let (indexed, index) = self.index(&session)?;
        let base = match &job.base {
            Some(base) => {
                parent(&session, &indexed, base.backup)?.map(|(id, file)| (id, file.tree))
            }
            None => None,
        };
        let manifest = Manifest { layout: Layout::IMAGE, ..job.manifest.clone() };
        let mut file = describe(&manifest, &self.settings.node, job.scheduled)?;
        file.parent = base.map(|(id, _)| id);
        let changed = job.base.as_ref().map(|base| base.changed.clone()).unwrap_or_default();
        let parent = base.map(|(_, root)| Parent { root, changed });
        progress.add_total(job.image.size());
        let archived = Archiver::new(&session, &indexed, &cipher, &job.image, parent)
            .run(&manifest.to_json()?)?;
        file.tree = archived.root;
        let mut summary = SnapshotSummary::default();
        summary.total_bytes_processed = job.image.size();
        summary.data_added_packed = archived.added;
        file.summary = Some(summary);
        let backup = self.store_backup(&session, &opened, &index, file)?;
        Ok(Stored { backup, read: archived.read })
    }

    /// Stores the snapshot file of which all else is stored: from then on there is the backup.
    pub(super) fn store_backup(
        &self,
        session: &Session,
        opened: &Opened,
        index: &BTreeSet<String>,
        mut file: SnapshotFile,
    ) -> Result<Backup> {
        let cipher = &self.cipher(opened)?;
        let json = serde_json::to_vec(&file)
            .map_err(|error| Error::internal("a snapshot file").caused_by(error))?;
        let id = session.put_snapshot(cipher, &json)?;
        failpoint::reached_blocking(BackendStep::RepositorySnapshot)?;
        file.id = SnapshotId::from(rustic_core::Id::try_from(id)?);
        let backup = read(&self.settings.name, &file)?
            .ok_or_else(|| Error::internal("a backup that was just made is not ours"))?;
        if let Err(error) = keep_in_index(session, opened, index) {
            self.remove(backup.id)?.ignore();
            return Err(error);
        }
        self.learn(&backup);
        Ok(backup)
    }
}

/// A prune that knew nothing of the backup may have taken away what it found in the index, or what it has
/// itself stored since.
fn keep_in_index(session: &Session, opened: &Opened, found: &BTreeSet<String>) -> Result<()> {
    let (index, packs): (Vec<_>, Vec<_>) = session
        .stored()
        .into_iter()
        .filter_map(|name| {
            Some(name.split_once('/')?).map(|(kind, id)| (kind.to_owned(), id.to_owned()))
        })
        .filter(|(kind, _)| kind != FileType::Snapshot.dirname())
        .partition(|(kind, _)| kind == FileType::Index.dirname());
    let own: BTreeSet<String> = index.into_iter().map(|(_, id)| id).collect();
    let there = names(session, FileType::Index)?;
    if !found.is_subset(&there) || !own.is_subset(&there) {
        recover(session, opened)?;
    }
    for (kind, id) in packs {
        let name = format!("{kind}/{id}");
        if session.store().size(&name)?.is_none() {
            return Err(session
                .store()
                .error(
                    ErrorKind::Unavailable,
                    format_args!("{name} was removed by a prune meanwhile"),
                )
                .hint("make the backup again"));
        }
    }
    Ok(())
}

/// The backup to make the difference to, if it is still there.
pub(super) fn parent(
    session: &Session,
    indexed: &Indexed,
    backup: BackupId,
) -> Result<Option<(SnapshotId, SnapshotFile)>> {
    let id = snapshot_id(session, backup)?;
    let mut there = indexed.list::<SnapshotId>().map_err(|error| session.explain(&error))?;
    if !there.any(|one| one == id) {
        return Ok(None);
    }
    let file = indexed.get_file(&id).map_err(|error| session.explain(&error))?;
    Ok(Some((id, file)))
}

/// The id of a backup's snapshot file.
pub(super) fn snapshot_id(session: &Session, backup: BackupId) -> Result<SnapshotId> {
    let id = backup.to_string().parse::<rustic_core::Id>();
    id.map(SnapshotId::from).map_err(|error| session.explain(&error))
}

/// The snapshot file of a backup to be.
pub(super) fn describe(manifest: &Manifest, node: &str, scheduled: bool) -> Result<SnapshotFile> {
    let (volume, cut) = (&manifest.volume, &manifest.snapshot);
    let mut tags = StringList::default();
    for tag in [
        OURS.to_owned(),
        format!("volume={}", volume.name),
        format!("uuid={}", volume.uuid),
        format!("backend={}", volume.backend),
        format!("snapshot={}", cut.name),
        format!("snapshot-uuid={}", cut.uuid),
        format!("size={}", cut.size.map_or(0, |size| size.bytes())),
    ] {
        tags.add(tag);
    }
    if scheduled {
        tags.add(SCHEDULED.to_owned());
    }
    let time = jiff::Timestamp::from_second(cut.created.as_second())
        .map_err(|error| Error::invalid("the snapshot's time makes no sense").caused_by(error))?;
    Ok(SnapshotFile {
        time: time.to_zoned(jiff::tz::TimeZone::UTC),
        program_version: concat!("holdfast ", env!("CARGO_PKG_VERSION")).to_owned(),
        hostname: node.to_owned(),
        username: "root".to_owned(),
        tags,
        ..SnapshotFile::default()
    })
}

/// The id of a snapshot file.
pub(super) fn id(id: SnapshotId) -> Result<BackupId> {
    id.to_hex().parse()
}

/// The backup of a snapshot file; none if it is not one of ours.
pub(super) fn read(repository: &RepositoryName, file: &SnapshotFile) -> Result<Option<Backup>> {
    if !file.tags.contains(OURS) {
        return Ok(None);
    }
    let tag = |key: &str| file.tags.iter().find_map(|tag| tag.strip_prefix(key)?.strip_prefix('='));
    let backup = || {
        let size: u64 = tag("size").and_then(|size| size.parse().ok()).unwrap_or(0);
        Some(Backup {
            id: id(file.id).ok()?,
            repository: repository.clone(),
            volume: tag("volume")?.parse().ok()?,
            uuid: tag("uuid")?.parse().ok()?,
            backend: tag("backend")?.parse().ok()?,
            snapshot: tag("snapshot")?.parse().ok()?,
            snapshot_uuid: tag("snapshot-uuid")?.parse::<SnapshotUuid>().ok()?,
            node: file.hostname.clone(),
            size: (size > 0).then(|| crate::units::ByteSize::new(size)),
            created: to_ours(&file.time)?,
            finished: file
                .summary
                .as_ref()
                .map_or_else(|| to_ours(&file.time), |summary| to_ours(&summary.backup_end))?,
            added: file.summary.as_ref().map_or(0, |summary| summary.data_added_packed),
            parent: file.parent.and_then(|parent| id(parent).ok()),
            scheduled: file.tags.contains(SCHEDULED),
        })
    };
    // One that somebody has tagged by hand is not ours to understand.
    Ok(backup())
}

/// A time of rustic_core's, which has a jiff of its own.
fn to_ours(time: &jiff::Zoned) -> Option<::jiff::Timestamp> {
    let time = time.timestamp();
    ::jiff::Timestamp::new(time.as_second(), time.subsec_nanosecond()).ok()
}
