//! Restoring an image, in parallel and as the packs lie.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustic_core::repofile::{BlobType, SnapshotFile, SnapshotId, Tree};
use rustic_core::{BlobId, DataId, FileType, IndexedFullStatus, PackedId, TreeId};
use sha2::{Digest, Sha256};

use super::Repository;
use super::backup::snapshot_id;
use super::image::{IMAGE, SEGMENT, segment_number, segments};
use super::manifest::{MANIFEST, Manifest};
use super::session::{Session, object};
use crate::error::{Error, ErrorKind, Result};
use crate::id::BackupId;
use crate::model::Progress;

/// Chunks that are read at the same time, for each core.
const READERS: usize = 4;

/// What an image is restored to.
#[derive(Debug)]
pub struct Target {
    /// The device, at least as large as the image.
    pub file: File,
    /// Whether it reads as zeros everywhere, so that zeros need not be written.
    pub blank: bool,
}

pub(super) type Indexed = rustic_core::Repository<IndexedFullStatus>;

/// A chunk of an image and where it goes.
pub(super) struct Chunk {
    pub(super) id: DataId,
    pub(super) offset: u64,
    pub(super) length: u64,
}

impl Repository {
    pub(super) fn indexed(&self, session: &Arc<Session>) -> Result<Indexed> {
        self.open(session)?.to_indexed().map_err(|error| session.explain(&error))
    }

    pub(super) fn snapshot_file(
        &self,
        session: &Session,
        indexed: &Indexed,
        id: BackupId,
    ) -> Result<SnapshotFile> {
        let missing = || {
            session
                .store()
                .error(ErrorKind::NotFound, format_args!("there is no backup {}", id.short()))
                .hint("see `holdfast backup ls`")
        };
        let wanted = snapshot_id(session, id)?;
        let mut there = indexed.list::<SnapshotId>().map_err(|error| session.explain(&error))?;
        if !there.any(|one| one == wanted) {
            return Err(missing());
        }
        indexed.get_file(&wanted).map_err(|error| session.explain(&error))
    }

    /// What the backup is of.
    ///
    /// # Errors
    /// `NotFound` if there is no such backup; `Corrupt` if it is damaged; `Unsupported` if a newer version
    /// made it.
    pub fn manifest(&self, id: BackupId) -> Result<Manifest> {
        let session = self.session(&Arc::default())?;
        let indexed = self.indexed(&session)?;
        let file = self.snapshot_file(&session, &indexed, id)?;
        manifest(&session, &indexed, &file).map_err(|fault| fault.into_error(&session))
    }

    /// Restores the image of a backup. Until this returns `Ok` the target holds nothing that may be used.
    ///
    /// # Errors
    /// `NotFound` if there is no such backup; `Corrupt`, naming what is damaged, if any of it cannot be read
    /// back as it was stored; `Cancelled`.
    pub fn restore_image(
        &self,
        id: BackupId,
        target: &Target,
        progress: &Arc<Progress>,
    ) -> Result<()> {
        let session = self.session(progress)?;
        let opened = self.open(&session)?;
        let _lock = self.lock_to_read(&session, &opened)?;
        let indexed = opened.to_indexed().map_err(|error| session.explain(&error))?;
        let file = self.snapshot_file(&session, &indexed, id)?;
        let manifest =
            manifest(&session, &indexed, &file).map_err(|fault| fault.into_error(&session))?;
        let size = manifest.image_size()?;
        let chunks =
            chunks(&session, &indexed, &file, size).map_err(|fault| fault.into_error(&session))?;
        progress.add_total(size);
        let write = |chunk: &Chunk| {
            let data = read_chunk(&session, &indexed, chunk)
                .map_err(|fault| fault.into_error(&session))?;
            if !(target.blank && is_zero(&data)) {
                target.file.write_all_at(&data, chunk.offset).map_err(|error| {
                    Error::io(format!("cannot write the volume at byte {}", chunk.offset), error)
                })?;
            }
            progress.add(chunk.length);
            Ok(())
        };
        for_each_chunk(&session, &chunks, write)?;
        target.file.sync_all().map_err(|error| Error::io("cannot flush the volume", error))
    }
}

impl Manifest {
    pub(super) fn image_size(&self) -> Result<u64> {
        let size = self
            .snapshot
            .size
            .ok_or_else(|| Error::corrupt("the backup does not tell its size"))?;
        Ok(size.bytes())
    }
}

/// Gives each chunk to `use_it`, several at once, until one fails.
pub(super) fn for_each_chunk(
    session: &Arc<Session>,
    chunks: &[Chunk],
    use_it: impl Fn(&Chunk) -> Result<()> + Sync,
) -> Result<()> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let next = AtomicUsize::new(0);
    let work = || -> Result<()> {
        while let Some(chunk) = chunks.get(next.fetch_add(1, Ordering::Relaxed)) {
            session.go_on()?;
            if let Err(error) = use_it(chunk) {
                session.fail(error.again());
                return Err(error);
            }
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..cores * READERS).map(|_| scope.spawn(work)).collect();
        let ends = workers.into_iter().map(|worker| {
            worker.join().unwrap_or_else(|_| Err(Error::internal("a reader of chunks broke off")))
        });
        // All of them end before the first error is told.
        ends.collect::<Vec<_>>().into_iter().collect()
    })
}

/// The chunk's bytes, which have its id.
pub(super) fn read_chunk(
    session: &Session,
    indexed: &Indexed,
    chunk: &Chunk,
) -> Result<bytes::Bytes, Fault> {
    let what = || {
        let end = chunk.offset + chunk.length;
        format!(
            "bytes {} to {end} of the image (chunk {})",
            chunk.offset,
            chunk.id.to_hex().as_str()
        )
    };
    let blob = BlobId::from(*chunk.id);
    let data = match indexed.get_blob_cached(&blob, BlobType::Data) {
        Ok(data) => data,
        Err(error) => return Err(fault(session, indexed, &chunk.id, what(), &error.display_log())),
    };
    let found = BackupId::from_bytes(Sha256::digest(&data).into());
    if found.to_string() != *chunk.id.to_hex() || data.len() as u64 != chunk.length {
        return Err(fault(
            session,
            indexed,
            &chunk.id,
            what(),
            "its content is not what was stored",
        ));
    }
    Ok(data)
}

/// Why a part of a backup cannot be read.
#[derive(Debug)]
pub(super) enum Fault {
    /// It is not what was stored, or gone.
    Damage {
        /// The pack that should hold it.
        pack: Option<String>,
        /// What and why.
        text: String,
    },
    /// It cannot be told.
    Unknown(Error),
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self::Unknown(error)
    }
}

impl Fault {
    /// As the error of something that cannot do without the part.
    fn into_error(self, session: &Session) -> Error {
        match self {
            Self::Unknown(error) => error,
            Self::Damage { text, .. } => session.store().error(ErrorKind::Corrupt, text).hint(
                "`holdfast backup verify` tells all that is damaged; the next backup stores again what the \
                 volume still has",
            ),
        }
    }
}

/// Tells damage from a store that cannot be asked, by asking once more.
fn fault<I: PackedId>(
    session: &Session,
    indexed: &Indexed,
    id: &I,
    what: String,
    why: &str,
) -> Fault {
    let Ok(entry) = indexed.get_index_entry(id) else {
        return Fault::Damage { pack: None, text: format!("{what}: no pack has it") };
    };
    let pack = entry.pack.to_hex().to_string();
    let read = session.store().get_range(
        &object(FileType::Pack, &entry.pack),
        entry.location.offset.into(),
        entry.location.length.into(),
    );
    let why = match read {
        Ok(_) => why.to_owned(),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Corrupt) => {
            "the pack is missing or too short".to_owned()
        }
        Err(error) => return Fault::Unknown(error),
    };
    Fault::Damage { text: format!("{what} in pack {pack}: {why}"), pack: Some(pack) }
}

/// Whether all bytes are zeros.
pub(super) fn is_zero(data: &[u8]) -> bool {
    data.chunks(4096).all(|part| part.iter().fold(0, |all, byte| all | byte) == 0)
}

/// What the backup is of, as it says itself.
pub(super) fn manifest(
    session: &Session,
    indexed: &Indexed,
    file: &SnapshotFile,
) -> Result<Manifest, Fault> {
    let root = tree(session, indexed, Some(file.tree), "/")?;
    let node = root.nodes.into_iter().find(|node| node.name == MANIFEST);
    let damaged = |text: String| Fault::Damage { pack: None, text };
    let node = node.ok_or_else(|| damaged(format!("it has no {MANIFEST}")))?;
    let mut text = Vec::new();
    for id in node.content.unwrap_or_default() {
        match indexed.get_blob_cached(&BlobId::from(*id), BlobType::Data) {
            Ok(data) => text.extend_from_slice(&data),
            Err(error) => {
                return Err(fault(
                    session,
                    indexed,
                    &id,
                    MANIFEST.to_owned(),
                    &error.display_log(),
                ));
            }
        }
    }
    Ok(Manifest::from_json(&text)?)
}

fn tree(
    session: &Session,
    indexed: &Indexed,
    id: Option<TreeId>,
    name: &str,
) -> Result<Tree, Fault> {
    let damaged = || Fault::Damage { pack: None, text: format!("{name} is no directory") };
    let id = id.ok_or_else(damaged)?;
    let read = indexed.get_tree(&id);
    read.map_err(|error| {
        fault(session, indexed, &id, format!("directory {name}"), &error.display_log())
    })
}

/// The chunks of an image of `size` bytes, which they cover without a gap.
pub(super) fn chunks(
    session: &Session,
    indexed: &Indexed,
    file: &SnapshotFile,
    size: u64,
) -> Result<Vec<Chunk>, Fault> {
    let damaged = |text: String| Fault::Damage { pack: None, text };
    let root = tree(session, indexed, Some(file.tree), "/")?;
    let image = root.nodes.into_iter().find(|node| node.name == IMAGE);
    let image = image.ok_or_else(|| damaged("it holds no image".to_owned()))?;
    let mut chunks = Vec::new();
    let mut next = 0;
    for directory in tree(session, indexed, image.subtree, IMAGE)?.nodes {
        for segment in tree(session, indexed, directory.subtree, &directory.name)?.nodes {
            let number = segment_number(&directory.name, &segment.name);
            if number != Some(next) {
                return Err(damaged(format!("segment {next} of the image is missing")));
            }
            let start = next * SEGMENT;
            let end = (start + SEGMENT).min(size);
            let content = segment.content.unwrap_or_default();
            add_chunks(indexed, &content, start..end, &mut chunks).ok_or_else(|| {
                damaged(format!("chunks of bytes {start} to {end} of the image are missing"))
            })?;
            next += 1;
        }
    }
    match next == segments(size) {
        true => Ok(chunks),
        false => {
            Err(damaged(format!("the image ends after {next} segments of {}", segments(size))))
        }
    }
}

fn add_chunks(
    indexed: &Indexed,
    content: &[DataId],
    range: std::ops::Range<u64>,
    into: &mut Vec<Chunk>,
) -> Option<()> {
    let mut offset = range.start;
    for id in content {
        let length = u64::from(indexed.get_index_entry(id).ok()?.data_length());
        into.push(Chunk { id: *id, offset, length });
        offset += length;
    }
    (offset == range.end).then_some(())
}
