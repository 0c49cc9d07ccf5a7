//! Setting damaged packs aside. As long as the index names a damaged chunk, every later backup takes it for
//! stored; without it the next backup stores it again, if the volume still has it.
//!
//! `verify` leaves a note of each pack that it found damaged, and the next backup puts that in order before
//! it begins. Nothing is deleted: a pack is moved aside, and what is whole in it is stored again first.

use std::collections::BTreeSet;
use std::sync::Arc;

use rustic_core::repofile::{BlobType, IndexBlob, IndexFile, IndexId, IndexPack};
use rustic_core::{FileType, Id, IndexedIdsStatus, RepairIndexOptions};
use serde_json::Value;

use super::cipher::{Cipher, digest};
use super::session::{Session, object};
use super::upkeep::names;
use super::{Cache, Opened, Repository};
use crate::error::{ErrorKind, Result};

/// Notes of packs that were found damaged.
const NOTES: &str = "holdfast/damaged";

/// Packs that were set aside.
const ASIDE: &str = "holdfast/aside";

type IndexedIds = rustic_core::Repository<IndexedIdsStatus>;

/// The note that an index file is damaged.
pub(super) const INDEX: &str = "index";

impl Repository {
    /// Leaves a note that a pack, or the [`INDEX`], is damaged.
    pub(super) fn note_damage(&self, session: &Session, damaged: &str) -> Result<()> {
        session.store().put(&format!("{NOTES}/{damaged}"), &[])
    }

    /// The repository with the ids of all that it has, put in order, and the names of the index files that
    /// told.
    pub(super) fn mended(&self, session: &Arc<Session>) -> Result<(IndexedIds, BTreeSet<String>)> {
        match self.mend_and_index(session) {
            Err(error) if error.kind() == ErrorKind::Corrupt => {
                self.note_damage(session, INDEX)?;
                self.mend_and_index(session)
            }
            other => other,
        }
    }

    fn mend_and_index(&self, session: &Arc<Session>) -> Result<(IndexedIds, BTreeSet<String>)> {
        let opened = self.open(session)?;
        self.mend(session, &opened)?;
        let names = names(session, FileType::Index)?;
        let indexed = opened.to_indexed_ids().map_err(|error| session.explain(&error))?;
        Ok((indexed, names))
    }

    /// Puts in order what was noted.
    fn mend(&self, session: &Arc<Session>, opened: &Opened) -> Result<()> {
        self.mend_index(session)?;
        for (pack, _) in session.store().list(NOTES)? {
            tracing::warn!(repository = %self.name(), pack, "setting a damaged pack aside");
            set_aside(session, opened, &self.cipher(opened)?, &pack)?;
            session.store().remove(&format!("{NOTES}/{pack}"))?;
        }
        Ok(())
    }

    /// Makes the index anew, from what packs say of themselves, where it was noted as damaged. Until that is
    /// done packs look as if nobody needed them.
    pub(super) fn mend_index(&self, session: &Arc<Session>) -> Result<()> {
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
        let options = RepairIndexOptions::default();
        opened.repair_index(&options, false).map_err(|error| session.explain(&error))?;
        store.remove(&note)
    }
}

/// Each step may be the last of a daemon; all of them may be repeated.
fn set_aside(session: &Arc<Session>, opened: &Opened, cipher: &Cipher, pack: &str) -> Result<()> {
    let store = session.store();
    let from = format!("data/{}/{pack}", pack.get(..2).unwrap_or_default());
    let content = store.get(&from)?;
    for item in opened.stream_files::<IndexFile>().map_err(|error| session.explain(&error))? {
        let (id, mut index) = item.map_err(|error| session.explain(&error))?;
        let named = |one: &IndexPack| *one.id.to_hex() == *pack;
        let Some(at) = index.packs.iter().position(named) else { continue };
        let damaged = index.packs.swap_remove(at);
        if let Some(content) = &content
            && let Some(whole) = store_whole(session, cipher, content, &damaged)?
        {
            index.packs.push(whole);
        }
        store_index(session, cipher, &index, id)?;
        store.remove(&object(FileType::Index, &id))?;
    }
    if let Some(content) = content {
        store.put(&format!("{ASIDE}/{pack}"), &[content])?;
        store.remove(&from)?;
    }
    Ok(())
}

/// Stores what is whole in a pack as a pack of its own.
fn store_whole(
    session: &Session,
    cipher: &Cipher,
    content: &[u8],
    damaged: &IndexPack,
) -> Result<Option<IndexPack>> {
    let mut pack = Vec::new();
    let mut header = Vec::new();
    let mut blobs = Vec::new();
    for blob in &damaged.blobs {
        let Some(sealed) = whole(cipher, content, blob) else { continue };
        let mut kept = *blob;
        let too_large =
            || session.store().error(ErrorKind::Corrupt, "a pack is larger than packs may be");
        kept.location.offset = u32::try_from(pack.len()).map_err(|_| too_large())?;
        pack.extend_from_slice(sealed);
        header.extend_from_slice(&header_entry(&kept));
        blobs.push(kept);
    }
    if blobs.is_empty() {
        return Ok(None);
    }
    let header = cipher.seal(&header)?;
    pack.extend_from_slice(&header);
    let length = u32::try_from(header.len());
    let length = length
        .map_err(|_| session.store().error(ErrorKind::Corrupt, "a pack has too many chunks"))?;
    pack.extend_from_slice(&length.to_le_bytes());
    let digest = digest(&pack);
    let id: Id = digest.parse().map_err(|error: Box<_>| session.explain(&error))?;
    session.store().put(&object(FileType::Pack, &id), &[pack.into()])?;
    Ok(Some(IndexPack { id: id.into(), blobs, time: None, size: None }))
}

/// The sealed bytes of a chunk, if they are what was stored.
fn whole<'a>(cipher: &Cipher, content: &'a [u8], blob: &IndexBlob) -> Option<&'a [u8]> {
    let start = usize::try_from(blob.location.offset).ok()?;
    let sealed = content.get(start..)?.get(..usize::try_from(blob.location.length).ok()?)?;
    let compressed = blob.location.uncompressed_length.is_some();
    cipher.open_blob(sealed, compressed, &blob.id.to_hex()).map(|_| sealed)
}

/// A chunk in the header of a pack (restic's `doc/design.rst`, "Pack Format").
fn header_entry(blob: &IndexBlob) -> Vec<u8> {
    let tree = u8::from(blob.tpe == BlobType::Tree);
    let mut entry = match blob.location.uncompressed_length {
        None => vec![tree],
        Some(_) => vec![2 + tree],
    };
    entry.extend_from_slice(&blob.location.length.to_le_bytes());
    if let Some(length) = blob.location.uncompressed_length {
        entry.extend_from_slice(&length.get().to_le_bytes());
    }
    // An id is its digest.
    let digest: Option<Vec<u8>> = {
        let hex = blob.id.to_hex();
        (0..32).map(|i| u8::from_str_radix(hex.get(2 * i..2 * i + 2)?, 16).ok()).collect()
    };
    entry.extend(digest.unwrap_or_default());
    entry
}

fn store_index(session: &Session, cipher: &Cipher, index: &IndexFile, old: IndexId) -> Result<()> {
    let internal = |error| session.store().error(ErrorKind::Internal, "an index").caused_by(error);
    let mut json = serde_json::to_value(index).map_err(internal)?;
    json["supersedes"] = Value::from(vec![old.to_hex().to_string()]);
    let sealed = cipher.seal(&serde_json::to_vec(&json).map_err(internal)?)?;
    let name = format!("{}/{}", FileType::Index.dirname(), digest(&sealed));
    session.store().put(&name, &[sealed.into()])
}
