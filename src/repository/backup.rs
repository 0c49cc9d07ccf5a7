//! Making backups, and reading what their snapshot files say.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use rustic_core::jiff;
use rustic_core::repofile::{SnapshotFile, SnapshotId, StringList};
use rustic_core::{BackupOptions, FileType, IndexedIdsStatus, ParentOptions, TreeId};

use super::image::{Difference, IMAGE, Image, ImageSource, Stamps, segment_number, segments};
use super::lock::Access;
use super::manifest::{Layout, MANIFEST, Manifest};
use super::session::Session;
use super::upkeep::{names, recover};
use super::{Opened, Repository};
use crate::error::{Error, Result};
use crate::id::{BackupId, SnapshotUuid};
use crate::model::{Backup, Progress};
use crate::name::RepositoryName;

/// The tag of every backup that we made.
const OURS: &str = "holdfast";

/// A snapshot of a block volume to back up.
#[derive(Debug)]
pub struct ImageJob {
    /// What it is of.
    pub manifest: Manifest,
    /// Its bytes.
    pub image: Image,
    /// What it is the difference to.
    pub base: Option<Base>,
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
    pub fn back_up_image(&self, job: ImageJob, progress: &Arc<Progress>) -> Result<Stored> {
        let session = self.session(progress)?;
        let opened = self.open(&session)?;
        let _lock = self.lock(&session, &opened, Access::Shared)?;
        let (indexed, index) = self.mended(&session)?;
        let indexed = Arc::new(indexed);
        let size = job.image.size;
        let mut options = BackupOptions::default();
        options.no_scan = true;
        let parent = match &job.base {
            Some(base) => parent_of(&session, &indexed, base.backup)?,
            None => None,
        };
        options.parent_opts = ParentOptions::default();
        match &parent {
            Some(parent) => options.parent_opts.parents = vec![parent.id.to_hex().to_string()],
            None => options.parent_opts.force = true,
        }
        let difference = job.base.zip(parent).map(|(base, parent)| Difference {
            changed: base.changed,
            stamps: Box::new(ParentStamps::new(Arc::clone(&indexed), parent.tree)),
        });
        let manifest = Manifest { layout: Layout::IMAGE, ..job.manifest };
        let snapshot = describe(&manifest, &self.settings.node)?;
        progress.add_total(size);
        let source = ImageSource {
            session: Arc::clone(&session),
            image: Arc::new(job.image),
            manifest: manifest.to_json()?,
            manifest_name: MANIFEST,
            stamp: stamp(&manifest)?,
            difference: Mutex::new(difference),
        };
        let stored = indexed
            .archive(&options, &source, snapshot, &[PathBuf::from("/")])
            .map_err(|error| session.explain(&error))?;
        let files = stored.summary.as_ref().map_or(0, |summary| summary.total_files_processed);
        let backup = read(&self.settings.name, &stored)?
            .ok_or_else(|| Error::internal("a backup that was just made is not ours"))?;
        if files != segments(size) + 1 {
            // The session refuses a backup from which anything was left out; were that to fail, this tells.
            self.remove(backup.id)?;
            return Err(Error::internal(format!(
                "the backup has {files} files and should have {}; it was removed",
                segments(size) + 1
            )));
        }
        if let Err(error) = keep_in_index(&session, &opened, &index) {
            self.remove(backup.id)?;
            return Err(error);
        }
        Ok(Stored { backup, read: session.read() })
    }
}

/// A prune that knew nothing of the backup may have taken away what it found in the index.
fn keep_in_index(session: &Session, opened: &Opened, found: &BTreeSet<String>) -> Result<()> {
    match found.is_subset(&names(session, FileType::Index)?) {
        true => Ok(()),
        false => recover(session, opened),
    }
}

/// The backup to make the difference to, if it is still there and its trees can be read.
fn parent_of(
    session: &Session,
    repository: &rustic_core::Repository<IndexedIdsStatus>,
    backup: BackupId,
) -> Result<Option<SnapshotFile>> {
    let id = snapshot_id(session, backup)?;
    let mut there = repository.list::<SnapshotId>().map_err(|error| session.explain(&error))?;
    if !there.any(|one| one == id) {
        return Ok(None);
    }
    let mut file: SnapshotFile =
        repository.get_file(&id).map_err(|error| session.explain(&error))?;
    file.id = id;
    Ok(Some(file))
}

/// The id of a backup's snapshot file.
pub(super) fn snapshot_id(session: &Session, backup: BackupId) -> Result<SnapshotId> {
    let id = backup.to_string().parse::<rustic_core::Id>();
    id.map(SnapshotId::from).map_err(|error| session.explain(&error))
}

/// The stamps in the trees of a parent.
struct ParentStamps {
    repository: Arc<rustic_core::Repository<IndexedIdsStatus>>,
    /// The directories of segments by name.
    directories: Vec<(String, TreeId)>,
}

impl ParentStamps {
    fn new(repository: Arc<rustic_core::Repository<IndexedIdsStatus>>, root: TreeId) -> Self {
        let subtree = |tree: TreeId, name: &str| {
            let tree = repository.get_tree(&tree).ok()?;
            tree.nodes.into_iter().find(|node| node.name == name)?.subtree
        };
        let directories = subtree(root, IMAGE)
            .and_then(|image| repository.get_tree(&image).ok())
            .map(|tree| {
                tree.nodes.into_iter().filter_map(|node| Some((node.name, node.subtree?))).collect()
            })
            .unwrap_or_default();
        Self { repository, directories }
    }
}

impl Stamps for ParentStamps {
    fn directory(&mut self, name: &str) -> Option<Vec<(u64, jiff::Timestamp)>> {
        let (_, tree) = self.directories.iter().find(|(one, _)| one == name)?;
        let tree = self.repository.get_tree(tree).ok()?;
        let stamps = tree
            .nodes
            .iter()
            .map(|node| Some((segment_number(name, &node.name)?, node.meta.mtime?)));
        stamps.collect()
    }
}

/// The times of what is new in a backup: the second at which its snapshot was cut, and in place of the
/// nanoseconds a part of the snapshot's uuid, so that two snapshots never have the same, whatever the clock does.
fn stamp(manifest: &Manifest) -> Result<jiff::Timestamp> {
    let nanoseconds = i32::try_from(manifest.snapshot.uuid.uuid().as_u128() % 999_999_998 + 1);
    let nanoseconds = nanoseconds.map_err(|error| Error::internal("a stamp").caused_by(error))?;
    jiff::Timestamp::new(manifest.snapshot.created.as_second(), nanoseconds)
        .map_err(|error| Error::invalid("the snapshot's time makes no sense").caused_by(error))
}

/// The snapshot file of a backup to be.
fn describe(manifest: &Manifest, node: &str) -> Result<SnapshotFile> {
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
            created: ::jiff::Timestamp::from_second(file.time.timestamp().as_second()).ok()?,
            added: file.summary.as_ref().map_or(0, |summary| summary.data_added_packed),
            parent: file.parent.and_then(|parent| id(parent).ok()),
        })
    };
    // One that somebody has tagged by hand is not ours to understand.
    Ok(backup())
}
