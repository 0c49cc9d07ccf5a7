//! Setting damaged packs aside. As long as the index names a damaged chunk, every later backup takes it for
//! stored; without it the next backup stores it again, if the volume still has it.
//!
//! `verify` leaves a note of each pack that it found damaged, and the next backup puts that in order before
//! it begins. Nothing is deleted: a pack is moved aside, and what is whole in it is stored again first.

use std::num::NonZeroU32;
use std::sync::Arc;

use bytes::Bytes;
use rustic_core::FileType;
use rustic_core::repofile::{BlobType, IndexBlob, IndexFile, IndexPack};

use super::cipher::{Cipher, Digest};
use super::pack::{Blob, Kind, Pack, PackEntry, Packing, store_index};
use super::session::{Session, object, pack_name};
use super::{COMPRESSION, Opened, Repository};
use crate::error::Result;

/// Notes of packs that were found damaged.
const NOTES: &str = "holdfast/damaged";

/// Packs that were set aside.
const ASIDE: &str = "holdfast/aside";

impl Repository {
    /// Leaves a note that a pack is damaged.
    pub(super) fn note_damage(&self, session: &Session, pack: &str) -> Result<()> {
        session.store().put(&format!("{NOTES}/{pack}"), &[])
    }

    /// Puts in order what was noted.
    pub(super) fn mend(&self, session: &Arc<Session>, opened: &Opened) -> Result<()> {
        let notes = session.store().list(NOTES)?;
        if notes.is_empty() {
            return Ok(());
        }
        let cipher = self.cipher(opened)?;
        for (pack, _) in notes {
            tracing::warn!(repository = %self.name(), pack, "setting a damaged pack aside");
            set_aside(session, opened, &cipher, &pack)?;
            session.store().remove(&format!("{NOTES}/{pack}"))?;
        }
        Ok(())
    }
}

/// Each step may be the last of a daemon; all of them may be repeated.
fn set_aside(session: &Arc<Session>, opened: &Opened, cipher: &Cipher, pack: &str) -> Result<()> {
    let store = session.store();
    let from = pack_name(&pack);
    let content = store.get(&from)?;
    for item in opened.stream_files::<IndexFile>().map_err(|error| session.explain(&error))? {
        let (id, index) = item.map_err(|error| session.explain(&error))?;
        let (damaged, others): (Vec<_>, Vec<_>) =
            index.packs.into_iter().partition(|one| *one.id.to_hex() == *pack);
        if damaged.is_empty() {
            continue;
        }
        let mut packs = others.iter().map(entry).collect::<Result<Vec<_>>>()?;
        for damaged in &damaged {
            if let Some(content) = &content {
                packs.extend(store_whole(session, cipher, content, entry(damaged)?)?);
            }
        }
        if !packs.is_empty() {
            store_index(session, cipher, &packs)?;
        }
        if !index.packs_to_delete.is_empty() {
            // Left out, they are found as packs that no index names, and removed by a later prune.
            tracing::debug!(
                packs = index.packs_to_delete.len(),
                "marks of packs to delete are dropped"
            );
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
