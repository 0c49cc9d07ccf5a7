//! What is in a backup, and telling damage from a store that cannot be asked.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use rustic_core::repofile::{BlobType, SnapshotFile, SnapshotId, Tree};
use rustic_core::{BlobId, DataId, FileType, Id, IndexedFullStatus, TreeId};

use super::Opened;
use super::backup::snapshot_id;
use super::cipher::{Cipher, digest};
use super::image::{FANOUT, IMAGE, directory_name, segment_name, segment_range, segments};
use super::manifest::{MANIFEST, Manifest};
use super::mend::INDEX;
use super::session::{Session, object};
use crate::error::{Error, ErrorKind, Result};
use crate::id::BackupId;

/// The backups of a repository, to be read.
pub(super) struct Contents {
    session: Arc<Session>,
    indexed: rustic_core::Repository<IndexedFullStatus>,
    cipher: Cipher,
}

/// A chunk of an image and where it goes.
pub(super) struct Chunk {
    id: DataId,
    pub(super) offset: u64,
    pub(super) length: u64,
}

/// Why a part of a backup cannot be read.
#[derive(Debug)]
pub(super) enum Fault {
    /// It is not what was stored, or gone.
    Damage {
        /// What is to be noted, so that the next backup puts it in order.
        note: Option<String>,
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
    fn damage(text: String) -> Self {
        Self::Damage { note: None, text }
    }

    fn in_no_pack(what: &str) -> Self {
        Self::Damage { note: Some(INDEX.to_owned()), text: format!("{what}: no pack has it") }
    }

    /// As the error of something that cannot do without the part.
    pub(super) fn into_error(self, session: &Session) -> Error {
        match self {
            Self::Unknown(error) => error,
            Self::Damage { text, .. } => session.store().error(ErrorKind::Corrupt, text).hint(
                "`holdfast backup verify` tells all that is damaged; the next backup stores again what the \
                 volume still has",
            ),
        }
    }
}

impl Contents {
    pub(super) fn new(session: &Arc<Session>, opened: Opened) -> Result<Self> {
        let cipher = Cipher::new(&opened.key())?;
        let indexed = opened.to_indexed().map_err(|error| session.explain(&error))?;
        Ok(Self { session: Arc::clone(session), indexed, cipher })
    }

    pub(super) fn snapshot_file(&self, id: BackupId) -> Result<SnapshotFile> {
        let session = &self.session;
        let wanted = snapshot_id(session, id)?;
        let mut there =
            self.indexed.list::<SnapshotId>().map_err(|error| session.explain(&error))?;
        if !there.any(|one| one == wanted) {
            return Err(session
                .store()
                .error(ErrorKind::NotFound, format_args!("there is no backup {}", id.short()))
                .hint("see `holdfast backup ls`"));
        }
        self.indexed.get_file(&wanted).map_err(|error| session.explain(&error))
    }

    /// What the backup is of, as it says itself.
    pub(super) fn manifest(&self, file: &SnapshotFile) -> Result<Manifest, Fault> {
        let root = self.tree(Some(file.tree), "/")?;
        let node = root.nodes.into_iter().find(|node| node.name == MANIFEST);
        let node = node.ok_or_else(|| Fault::damage(format!("it has no {MANIFEST}")))?;
        let mut text = Vec::new();
        for id in node.content.unwrap_or_default() {
            text.extend_from_slice(&self.blob(BlobType::Data, *id, || MANIFEST.to_owned())?);
        }
        Ok(Manifest::from_json(&text)?)
    }

    /// The chunks of an image of `size` bytes, which they cover without a gap if there are no faults.
    pub(super) fn chunks(&self, file: &SnapshotFile, size: u64) -> (Vec<Chunk>, Vec<Fault>) {
        let (mut chunks, mut faults) = (Vec::new(), Vec::new());
        let directories = self.tree(Some(file.tree), "/").and_then(|root| {
            let image = root.nodes.into_iter().find(|node| node.name == IMAGE);
            let image = image.ok_or_else(|| Fault::damage("it holds no image".to_owned()))?;
            self.tree(image.subtree, IMAGE)
        });
        let directories = match directories {
            Ok(tree) => tree.nodes,
            Err(fault) => return (chunks, vec![fault]),
        };
        for directory in 0..segments(size).div_ceil(FANOUT) {
            let first = directory * FANOUT;
            let name = directory_name(first);
            let last = (first + FANOUT).min(segments(size));
            let directory = directories.iter().find(|node| node.name == name);
            let tree = self.tree(directory.and_then(|node| node.subtree), &name);
            match tree {
                Ok(tree) => {
                    for segment in first..last {
                        let node =
                            tree.nodes.iter().find(|node| node.name == segment_name(segment));
                        let content = node.and_then(|node| node.content.as_deref());
                        let range = segment_range(segment, size);
                        if let Err(fault) = self.add_chunks(content, range, &mut chunks) {
                            faults.push(fault);
                        }
                    }
                }
                Err(fault) => faults.push(fault),
            }
        }
        (chunks, faults)
    }

    fn add_chunks(
        &self,
        content: Option<&[DataId]>,
        range: Range<u64>,
        into: &mut Vec<Chunk>,
    ) -> Result<(), Fault> {
        let mut offset = range.start;
        for id in content.unwrap_or_default() {
            let Ok(entry) = self.indexed.get_index_entry(id) else { break };
            let length = u64::from(entry.data_length());
            into.push(Chunk { id: *id, offset, length });
            offset += length;
        }
        match offset == range.end {
            true => Ok(()),
            false => {
                let what = format!("bytes {offset} to {} of the image", range.end);
                Err(Fault::in_no_pack(&what))
            }
        }
    }

    /// The chunk's bytes, which have its id.
    pub(super) fn read(&self, chunk: &Chunk) -> Result<Bytes, Fault> {
        let id = *chunk.id;
        let what = || {
            let end = chunk.offset + chunk.length;
            format!("bytes {} to {end} of the image (chunk {})", chunk.offset, id.to_hex().as_str())
        };
        let data = self.blob(BlobType::Data, id, what)?;
        match data.len() as u64 == chunk.length {
            true => Ok(data),
            false => Err(Fault::damage(format!("{} has another length", what()))),
        }
    }

    fn tree(&self, id: Option<TreeId>, name: &str) -> Result<Tree, Fault> {
        let id = id.ok_or_else(|| Fault::damage(format!("{name} is no directory")))?;
        let text = self.blob(BlobType::Tree, *id, || format!("directory {name}"))?;
        serde_json::from_slice(&text)
            .map_err(|error| Fault::damage(format!("directory {name} makes no sense: {error}")))
    }

    fn blob(&self, tpe: BlobType, id: Id, what: impl Fn() -> String) -> Result<Bytes, Fault> {
        let is_whole = |data: &[u8]| digest(data) == *id.to_hex();
        match self.indexed.get_blob_cached(&BlobId::from(id), tpe) {
            Ok(data) if is_whole(&data) => Ok(data),
            _ => self.read_again(tpe, id, what),
        }
    }

    /// rustic_core does not tell why it could not read something, so the store is asked once more.
    fn read_again(&self, tpe: BlobType, id: Id, what: impl Fn() -> String) -> Result<Bytes, Fault> {
        let entry = match tpe {
            BlobType::Tree => self.indexed.get_index_entry(&TreeId::from(id)),
            BlobType::Data => self.indexed.get_index_entry(&DataId::from(id)),
        };
        let Ok(entry) = entry else {
            return Err(Fault::in_no_pack(&what()));
        };
        let (pack, location) = (&entry.pack, &entry.location);
        let read = self.session.store().get_range(
            &object(FileType::Pack, pack),
            location.offset.into(),
            location.length.into(),
        );
        let why = match read {
            Ok(sealed) => {
                let compressed = location.uncompressed_length.is_some();
                match self.cipher.open_blob(&sealed, compressed, &id.to_hex()) {
                    Some(data) => return Ok(data.into()),
                    None => "its content is not what was stored",
                }
            }
            Err(error) if error.kind() == ErrorKind::NotFound => "the pack is missing",
            Err(error) if error.kind() == ErrorKind::Corrupt => "the pack is too short",
            Err(error) => return Err(Fault::Unknown(error)),
        };
        let pack = pack.to_hex().to_string();
        Err(Fault::Damage { text: format!("{} in pack {pack}: {why}", what()), note: Some(pack) })
    }
}
