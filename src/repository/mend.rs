//! Setting damaged packs aside. As long as the index names a damaged chunk, every later backup takes it for
//! stored; without it the next backup stores it again, if the volume still has it.
//!
//! `verify` leaves a note of each pack that it found damaged, and the next backup puts that in order before
//! it begins. Nothing is deleted: a pack is moved aside, and what is whole in it is stored again first.

use std::sync::Arc;

use rustic_core::repofile::{BlobType, IndexBlob, IndexFile, IndexId, IndexPack};
use rustic_core::{FileType, Id};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::cipher::Cipher;
use super::session::{Session, object};
use super::{Opened, Repository};
use crate::error::{ErrorKind, Result};
use crate::id::BackupId;

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
    let plain = cipher.open(sealed).ok()?;
    let plain = match blob.location.uncompressed_length {
        Some(_) => zstd::decode_all(&plain[..]).ok()?,
        None => plain,
    };
    (digest(&plain) == *blob.id.to_hex()).then_some(sealed)
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

fn digest(bytes: &[u8]) -> String {
    BackupId::from_bytes(Sha256::digest(bytes).into()).to_string()
}
