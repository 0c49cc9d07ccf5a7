//! Packs: chunks and trees, sealed, one behind the other, with a header at the end that lists them (restic's
//! `doc/design.rst`, "Pack Format"); and the index that tells which pack has what.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::cipher::{Cipher, Digest};
use super::lock;
use super::session::Session;
use crate::error::{Error, Result};
use crate::failpoint::{self, BackendStep};

/// Bytes of a pack before it is stored: large enough for few requests, small enough that some fit in memory
/// at once. restic's default.
const PACK: usize = 16 << 20;

/// Chunks in one index file.
const INDEXED: usize = 20_000;

/// What a stored thing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Kind {
    /// A part of a file.
    Data,
    /// A directory.
    Tree,
}

/// Where a chunk or a tree is in its pack, as the index has it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Blob {
    pub(super) id: Digest,
    #[serde(rename = "type")]
    pub(super) kind: Kind,
    pub(super) offset: u32,
    pub(super) length: u32,
    /// Its length when it is not compressed any more; none if it is not compressed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) uncompressed_length: Option<u32>,
}

/// A pack, as the index has it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct PackEntry {
    pub(super) id: Digest,
    pub(super) blobs: Vec<Blob>,
    /// When it was stored, or marked to be deleted; none if that is not known. A prune spares packs that are young.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) time: Option<jiff::Timestamp>,
}

#[derive(Debug, Serialize)]
struct IndexFile<'a> {
    packs: &'a [PackEntry],
    /// Marked by a prune, and not in the index for those who read.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    packs_to_delete: &'a [PackEntry],
}

/// A pack that is being filled.
#[derive(Debug, Default)]
pub(super) struct Pack {
    parts: Vec<Bytes>,
    size: usize,
    blobs: Vec<Blob>,
}

impl Pack {
    /// Adds what was sealed.
    pub(super) fn add(
        &mut self,
        kind: Kind,
        id: Digest,
        sealed: Bytes,
        uncompressed_length: Option<u32>,
    ) -> Result<()> {
        let too_large = |_| Error::internal("a pack became larger than packs may be");
        let offset = u32::try_from(self.size).map_err(too_large)?;
        let length = u32::try_from(sealed.len()).map_err(too_large)?;
        self.size += sealed.len();
        self.parts.push(sealed);
        self.blobs.push(Blob { id, kind, offset, length, uncompressed_length });
        Ok(())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.blobs.is_empty()
    }

    fn is_full(&self) -> bool {
        self.size >= PACK
    }

    /// Puts the header behind it. Gives its bytes and its entry in the index.
    pub(super) fn close(mut self, cipher: &Cipher) -> Result<(Vec<Bytes>, PackEntry)> {
        let mut header = Vec::new();
        for blob in &self.blobs {
            let tree = u8::from(blob.kind == Kind::Tree);
            header.push(tree + if blob.uncompressed_length.is_some() { 2 } else { 0 });
            header.extend_from_slice(&blob.length.to_le_bytes());
            if let Some(length) = blob.uncompressed_length {
                header.extend_from_slice(&length.to_le_bytes());
            }
            header.extend_from_slice(blob.id.bytes());
        }
        let header = cipher.seal(&header)?;
        let length = u32::try_from(header.len())
            .map_err(|_| Error::internal("a pack has too many chunks"))?;
        self.parts.push(header.into());
        self.parts.push(Bytes::copy_from_slice(&length.to_le_bytes()));
        let id = Digest::of_all(&self.parts);
        Ok((self.parts, PackEntry { id, blobs: self.blobs, time: Some(jiff::Timestamp::now()) }))
    }
}

/// Stores chunks and trees in packs, and at last the index of those.
pub(super) struct Packer<'a> {
    session: &'a Arc<Session>,
    cipher: &'a Cipher,
    data: Mutex<Pack>,
    trees: Mutex<Pack>,
    /// What is stored or on its way.
    added: Mutex<HashSet<(Kind, Digest)>>,
    stored: Mutex<Vec<PackEntry>>,
    bytes: AtomicU64,
}

impl<'a> Packer<'a> {
    pub(super) fn new(session: &'a Arc<Session>, cipher: &'a Cipher) -> Self {
        Self {
            session,
            cipher,
            data: Mutex::default(),
            trees: Mutex::default(),
            added: Mutex::default(),
            stored: Mutex::default(),
            bytes: AtomicU64::new(0),
        }
    }

    /// Whether the caller is the first to bring this, and has to add it.
    pub(super) fn claim(&self, kind: Kind, id: Digest) -> bool {
        lock(&self.added).insert((kind, id))
    }

    /// Adds what was claimed. `packing` is the calling thread's.
    pub(super) fn add(
        &self,
        kind: Kind,
        id: Digest,
        plain: &[u8],
        packing: &mut Packing,
    ) -> Result<()> {
        let sealed = packing.seal(self.cipher, plain)?;
        self.bytes.fetch_add(sealed.len() as u64, Ordering::Relaxed);
        let length =
            u32::try_from(plain.len()).map_err(|_| Error::internal("a chunk is too large"))?;
        let pack = match kind {
            Kind::Data => &self.data,
            Kind::Tree => &self.trees,
        };
        let full = {
            let mut pack = lock(pack);
            pack.add(kind, id, sealed.into(), Some(length))?;
            pack.is_full().then(|| std::mem::take(&mut *pack))
        };
        full.map_or(Ok(()), |full| self.store(full))
    }

    fn store(&self, pack: Pack) -> Result<()> {
        let (content, entry) = pack.close(self.cipher)?;
        self.session.store_pack(&entry.id, content)?;
        lock(&self.stored).push(entry);
        Ok(())
    }

    /// Stores what is left and then the index. Gives the bytes that all of it took.
    pub(super) fn finish(self) -> Result<u64> {
        for pack in [&self.data, &self.trees] {
            let pack = std::mem::take(&mut *lock(pack));
            if !pack.is_empty() {
                self.store(pack)?;
            }
        }
        self.session.wait_for_packs(0)?;
        let stored = std::mem::take(&mut *lock(&self.stored));
        let mut rest = &stored[..];
        while !rest.is_empty() {
            let mut blobs = 0;
            let fits = rest.iter().take_while(|pack| {
                blobs += pack.blobs.len();
                blobs <= INDEXED
            });
            let (packs, others) = rest.split_at(fits.count().max(1));
            store_index(self.session, self.cipher, packs, &[])?;
            rest = others;
        }
        Ok(self.bytes.into_inner())
    }
}

/// Stores an index file, which also names packs that are marked to be deleted.
pub(super) fn store_index(
    session: &Session,
    cipher: &Cipher,
    packs: &[PackEntry],
    packs_to_delete: &[PackEntry],
) -> Result<()> {
    let json = serde_json::to_vec(&IndexFile { packs, packs_to_delete })
        .map_err(|error| Error::internal("an index").caused_by(error))?;
    session.put_sealed("index", cipher, &json)?;
    failpoint::reached_blocking(BackendStep::RepositoryIndex)
}

/// What one thread needs to pack.
pub(super) struct Packing {
    compressor: zstd::bulk::Compressor<'static>,
    decompressor: zstd::bulk::Decompressor<'static>,
}

impl Packing {
    pub(super) fn new(level: i32) -> Result<Self> {
        let failed = |error| Error::io("cannot prepare to compress", error);
        Ok(Self {
            compressor: zstd::bulk::Compressor::new(level).map_err(failed)?,
            decompressor: zstd::bulk::Decompressor::new().map_err(failed)?,
        })
    }

    /// Compresses and seals, and proves that it can be undone: a bad memory cell must not damage what is
    /// meant to outlive the machine.
    fn seal(&mut self, cipher: &Cipher, plain: &[u8]) -> Result<Vec<u8>> {
        let compressed =
            self.compressor.compress(plain).map_err(|error| Error::io("cannot compress", error))?;
        let sealed = cipher.seal(&compressed)?;
        let opened = cipher.open(&sealed)?;
        let again = self
            .decompressor
            .decompress(&opened, plain.len())
            .map_err(|error| Error::io("cannot undo the compression", error))?;
        match again == plain {
            true => Ok(sealed),
            false => Err(Error::corrupt(
                "what was packed came out changed; this machine's memory is not sound",
            )),
        }
    }

    /// Undoes what [`Packing::seal`] did.
    pub(super) fn open(
        &mut self,
        cipher: &Cipher,
        sealed: &[u8],
        uncompressed_length: Option<u32>,
    ) -> Result<Vec<u8>> {
        let opened = cipher.open(sealed)?;
        match uncompressed_length {
            None => Ok(opened),
            Some(length) => self
                .decompressor
                .decompress(&opened, length as usize)
                .map_err(|error| Error::corrupt("it does not decompress").caused_by(error)),
        }
    }
}
