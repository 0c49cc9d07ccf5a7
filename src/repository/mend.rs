//! Setting damaged packs aside. As long as the index names a damaged chunk, every later backup takes it for
//! stored; without it the next backup stores it again, if the volume still has it.
//!
//! `verify` leaves a note of each pack that it found damaged, and the next backup puts that in order before
//! it begins. Nothing is deleted: a pack is moved aside, and what is whole in it is stored again first.

use std::collections::BTreeSet;
use std::num::NonZeroU32;
use std::sync::Arc;

use bytes::Bytes;
use rustic_core::repofile::{BlobType, IndexBlob, IndexFile, IndexId, IndexPack};
use rustic_core::{FileType, RepairIndexOptions};

use super::cipher::{Cipher, Digest};
use super::lock::Access;
use super::pack::{Blob, Kind, Pack, PackEntry, Packing, store_index};
use super::reading::Indexed;
use super::session::{Session, object, pack_name};
use super::upkeep::names;
use super::{COMPRESSION, Cache, Opened, Repository};
use crate::error::{ErrorKind, Result};

/// Notes of packs that were found damaged.
const NOTES: &str = "holdfast/damaged";

/// Packs that were set aside.
const ASIDE: &str = "holdfast/aside";

/// The note that an index file is damaged.
pub(super) const INDEX: &str = "index";

impl Repository {
    /// Leaves a note that a pack, or the [`INDEX`], is damaged.
    pub(super) fn note_damage(&self, session: &Session, damaged: &str) -> Result<()> {
        session.store().put(&format!("{NOTES}/{damaged}"), &[])
    }

    /// Takes such a note back.
    pub(super) fn forget_damage(&self, session: &Session, damaged: &str) -> Result<()> {
        session.store().remove(&format!("{NOTES}/{damaged}"))
    }

    /// The repository with its index, and the names of the index files that told. Leaves a note if the index
    /// is damaged.
    pub(super) fn index(&self, session: &Arc<Session>) -> Result<(Indexed, BTreeSet<String>)> {
        let opened = self.open(session)?;
        let names = names(session, FileType::Index)?;
        let indexed = opened.to_indexed().map_err(|error| session.explain(&error));
        if let Err(error) = &indexed
            && error.kind() == ErrorKind::Corrupt
        {
            self.note_damage(session, INDEX)?;
        }
        Ok((indexed?, names))
    }

    /// Runs `work`, and once more if it found the index damaged and left a note of that.
    pub(super) fn with_index<T>(&self, work: impl Fn() -> Result<T>) -> Result<T> {
        self.mend()?;
        match work() {
            Err(error) if error.kind() == ErrorKind::Corrupt => {
                self.mend()?;
                work()
            }
            other => other,
        }
    }

    /// Puts in order what was noted. Nobody else may use the repository meanwhile: what they have read of the
    /// index would not hold any more.
    ///
    /// # Errors
    /// `InUse` while others use it, if there is something to mend.
    pub(super) fn mend(&self) -> Result<()> {
        let session = self.session(&Arc::default())?;
        if session.store().list(NOTES)?.is_empty() {
            return Ok(());
        }
        let opened = self.open(&session)?;
        let _lock = self.lock(&session, &opened, Access::Exclusive)?;
        self.mend_index(&session)?;
        for (pack, _) in session.store().list(NOTES)? {
            tracing::warn!(repository = %self.name(), pack, "setting a damaged pack aside");
            set_aside(&session, &opened, &self.cipher(&opened)?, &pack)?;
            session.store().remove(&format!("{NOTES}/{pack}"))?;
        }
        Ok(())
    }

    /// Makes the index anew, from what packs say of themselves, where it was noted as damaged. Until that is
    /// done packs look as if nobody needed them.
    fn mend_index(&self, session: &Arc<Session>) -> Result<()> {
        let (store, note) = (session.store(), format!("{NOTES}/{INDEX}"));
        if store.size(&note)?.is_none() {
            return Ok(());
        }
        // What is kept here of a damaged file may be whole.
        let opened = self.open_with(session, Cache::Unused)?;
        let ids: Vec<IndexId> = opened.list().map_err(|error| session.explain(&error))?.collect();
        for id in ids {
            let Err(error) = opened.get_file::<IndexFile>(&id) else { continue };
            let error = session.explain(&error);
            if error.kind() != ErrorKind::Corrupt {
                return Err(error);
            }
            let name = object(FileType::Index, &id);
            tracing::warn!(repository = %self.name(), name, "setting a damaged index aside");
            if let Some(content) = store.get(&name)? {
                store.put(&format!("{ASIDE}/{}", id.to_hex().as_str()), &[content])?;
            }
            store.remove(&name)?;
        }
        self.unmark(session, &opened)?;
        let options = RepairIndexOptions::default();
        opened.repair_index(&options, false).map_err(|error| session.explain(&error))?;
        store.remove(&note)
    }
}

impl Repository {
    /// Takes back all marks of packs to be deleted. What else named those packs may be what is damaged; and of a
    /// pack that one file names and another marks, as a prune that was broken off leaves it, rustic_core would
    /// keep the mark alone. The next prune marks again what nobody needs.
    fn unmark(&self, session: &Session, opened: &Opened) -> Result<()> {
        for (id, index) in index_files(session, opened)? {
            if index.packs_to_delete.is_empty() {
                continue;
            }
            let packs = index.packs.iter().chain(&index.packs_to_delete);
            let packs = packs.map(entry).collect::<Result<Vec<_>>>()?;
            store_index(session, &self.cipher(opened)?, &packs, &[])?;
            session.store().remove(&object(FileType::Index, &id))?;
        }
        Ok(())
    }
}

/// All of them, read before any is written.
fn index_files(session: &Session, opened: &Opened) -> Result<Vec<(IndexId, IndexFile)>> {
    let files = opened.stream_files::<IndexFile>().map_err(|error| session.explain(&error))?;
    files.map(|file| file.map_err(|error| session.explain(&error))).collect()
}

/// Each step may be the last of a daemon; all of them may be repeated.
fn set_aside(session: &Arc<Session>, opened: &Opened, cipher: &Cipher, pack: &str) -> Result<()> {
    let store = session.store();
    let from = pack_name(&pack);
    let content = store.get(&from)?;
    for (id, index) in index_files(session, opened)? {
        let is_damaged = |one: &IndexPack| *one.id.to_hex() == *pack;
        let split = |packs: Vec<IndexPack>| packs.into_iter().partition::<Vec<_>, _>(is_damaged);
        let ((damaged, others), (marked, others_marked)) =
            (split(index.packs), split(index.packs_to_delete));
        if damaged.is_empty() && marked.is_empty() {
            continue;
        }
        let mut packs = others.iter().map(entry).collect::<Result<Vec<_>>>()?;
        // A backup may need what is marked, until a prune has looked.
        for damaged in damaged.iter().chain(&marked) {
            if let Some(content) = &content {
                packs.extend(store_whole(session, cipher, content, entry(damaged)?)?);
            }
        }
        let others_marked = others_marked.iter().map(entry).collect::<Result<Vec<_>>>()?;
        if !packs.is_empty() || !others_marked.is_empty() {
            store_index(session, cipher, &packs, &others_marked)?;
        }
        store.remove(&object(FileType::Index, &id))?;
    }
    if let Some(content) = content {
        store.put(&format!("{ASIDE}/{pack}"), &[content])?;
        store.remove(&from)?;
    }
    Ok(())
}

/// A pack's entry in the index, as we write it.
fn entry(pack: &IndexPack) -> Result<PackEntry> {
    let blob = |blob: &IndexBlob| -> Result<Blob> {
        Ok(Blob {
            id: Digest::try_from(blob.id.into_inner())?,
            kind: match blob.tpe {
                BlobType::Data => Kind::Data,
                BlobType::Tree => Kind::Tree,
            },
            offset: blob.location.offset,
            length: blob.location.length,
            uncompressed_length: blob.location.uncompressed_length.map(NonZeroU32::get),
        })
    };
    Ok(PackEntry {
        id: Digest::try_from(pack.id.into_inner())?,
        blobs: pack.blobs.iter().map(blob).collect::<Result<_>>()?,
        time: pack
            .time
            .and_then(|time| jiff::Timestamp::new(time.as_second(), time.subsec_nanosecond()).ok()),
    })
}

/// Stores what is whole in a damaged pack as a pack of its own.
fn store_whole(
    session: &Session,
    cipher: &Cipher,
    content: &Bytes,
    damaged: PackEntry,
) -> Result<Option<PackEntry>> {
    let mut packing = Packing::new(COMPRESSION)?;
    let mut pack = Pack::default();
    for blob in damaged.blobs {
        let start = blob.offset as usize;
        let end = start + blob.length as usize;
        if end > content.len() {
            continue;
        }
        let sealed = content.slice(start..end);
        let plain = packing.open(cipher, &sealed, blob.uncompressed_length);
        if plain.is_ok_and(|plain| Digest::of(&plain) == blob.id) {
            pack.add(blob.kind, blob.id, sealed, blob.uncompressed_length)?;
        }
    }
    if pack.is_empty() {
        return Ok(None);
    }
    let (content, entry) = pack.close(cipher)?;
    session.store_pack(&entry.id, content)?;
    Ok(Some(entry))
}
