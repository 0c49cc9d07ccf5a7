//! Restoring an image: as the packs lie, in parallel, each chunk proved to be the one that was stored.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bytes::Bytes;
use rustic_core::repofile::{SnapshotFile, SnapshotId, Tree};
use rustic_core::{DataId, IndexedFullStatus, PackedId, TreeId};

use super::backup::snapshot_id;
use super::cipher::{Cipher, Digest};
use super::image::{IMAGE, is_zero, segment_number, segment_range, segments};
use super::manifest::{MANIFEST, Manifest};
use super::pack::Packing;
use super::session::{Session, pack_name};
use super::{COMPRESSION, Repository};
use crate::error::{Error, ErrorKind, Result};
use crate::id::BackupId;
use crate::model::Progress;

/// Threads for each core: while some read, others unpack.
const THREADS: usize = 2;

/// Bytes of a pack that are read at once.
const READ: u32 = 8 << 20;

/// How often what was written is flushed while more is written, so that the end need not wait for all of it.
const FLUSHED: u64 = 64 << 20;

/// What an image is restored to.
#[derive(Debug)]
pub struct Target {
    /// The device, at least as large as the image.
    pub file: File,
    /// Whether it reads as zeros everywhere, so that zeros need not be written.
    pub blank: bool,
}

pub(super) type Indexed = rustic_core::Repository<IndexedFullStatus>;

/// A chunk of an image: where it lies in its pack, and where in the image.
#[derive(Debug)]
pub(super) struct Chunk {
    digest: Digest,
    offset: u32,
    length: u32,
    uncompressed_length: Option<u32>,
    places: Vec<u64>,
}

/// Chunks that lie one behind the other in a pack.
#[derive(Debug)]
pub(super) struct Run {
    pack: String,
    chunks: Vec<Chunk>,
}

impl Repository {
    pub(super) fn snapshot_file(
        &self,
        session: &Session,
        indexed: &Indexed,
        id: BackupId,
    ) -> Result<SnapshotFile> {
        let wanted = snapshot_id(session, id)?;
        let mut there = indexed.list::<SnapshotId>().map_err(|error| session.explain(&error))?;
        if !there.any(|one| one == wanted) {
            return Err(session
                .store()
                .error(ErrorKind::NotFound, format_args!("there is no backup {}", id.short()))
                .hint("see `holdfast backup ls`"));
        }
        indexed.get_file(&wanted).map_err(|error| session.explain(&error))
    }

    /// What the backup is of.
    ///
    /// # Errors
    /// `NotFound` if there is no such backup; `Corrupt` if it is damaged; `Unsupported` if a newer version
    /// made it.
    pub fn manifest(&self, id: BackupId) -> Result<Manifest> {
        let reading = Reading::new(self, id, &Arc::default())?;
        reading.manifest().map_err(|fault| fault.into_error(&reading.session))
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
        let reading = Reading::new(self, id, progress)?;
        let whole = |fault: Fault| fault.into_error(&reading.session);
        let size = reading.manifest().map_err(whole)?.image_size()?;
        let runs = reading.runs(size).map_err(whole)?;
        progress.add_total(size);
        let write = |chunk: &Chunk, data: &[u8]| {
            let write = !(target.blank && is_zero(data));
            for place in &chunk.places {
                if write {
                    target.file.write_all_at(data, *place).map_err(|error| {
                        Error::io(format!("cannot write the volume at byte {place}"), error)
                    })?;
                }
                progress.add(data.len() as u64);
            }
            Ok(())
        };
        let flush =
            || target.file.sync_data().map_err(|error| Error::io("cannot flush the volume", error));
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut flushed = 0;
                while !over.load(Ordering::Relaxed) {
                    std::thread::park_timeout(std::time::Duration::from_millis(20));
                    if progress.done() >= flushed + FLUSHED {
                        flushed = progress.done();
                        // Its error is told by the last one, which flushes all the same.
                        let _ = flush();
                    }
                }
            });
            let done = reading.each(&runs, |chunk, data| match data {
                Ok(data) => write(chunk, data),
                Err(fault) => Err(fault.into_error(&reading.session)),
            });
            over.store(true, Ordering::Relaxed);
            done
        })?;
        flush()
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

/// A backup that is being read.
pub(super) struct Reading {
    pub(super) session: Arc<Session>,
    indexed: Indexed,
    cipher: Cipher,
    file: SnapshotFile,
    _lock: Option<super::lock::Lock>,
}

impl Reading {
    pub(super) fn new(
        repository: &Repository,
        id: BackupId,
        progress: &Arc<Progress>,
    ) -> Result<Self> {
        let session = repository.session(progress)?;
        let opened = repository.open(&session)?;
        let cipher = repository.cipher(&opened)?;
        let lock = repository.lock_to_read(&session, &opened)?;
        let indexed = opened.to_indexed().map_err(|error| session.explain(&error))?;
        let file = repository.snapshot_file(&session, &indexed, id)?;
        Ok(Self { session, indexed, cipher, file, _lock: lock })
    }

    /// What the backup is of, as it says itself.
    pub(super) fn manifest(&self) -> Result<Manifest, Fault> {
        let root = self.tree(Some(self.file.tree), "/")?;
        let node = root.nodes.into_iter().find(|node| node.name == MANIFEST);
        let node = node.ok_or_else(|| damage(format!("it has no {MANIFEST}")))?;
        let mut text = Vec::new();
        let mut packing = Packing::new(COMPRESSION)?;
        for id in node.content.unwrap_or_default() {
            let (pack, chunk) =
                self.find(&id).ok_or_else(|| damage(format!("no pack has {MANIFEST}")))?;
            let sealed = self.read(&pack, chunk.offset, chunk.length, MANIFEST)?;
            text.extend(self.open(&pack, &chunk, &sealed, &mut packing)?);
        }
        Ok(Manifest::from_json(&text)?)
    }

    fn tree(&self, id: Option<TreeId>, name: &str) -> Result<Tree, Fault> {
        let id = id.ok_or_else(|| damage(format!("{name} is no directory")))?;
        let error = match self.indexed.get_tree(&id) {
            Ok(tree) => return Ok(tree),
            Err(error) => error,
        };
        // Damage, or a store that does not answer: asked once more, it tells which.
        let Some((pack, chunk)) = self.find(&id) else {
            return Err(damage(format!("no pack has the directory {name}")));
        };
        self.read(&pack, chunk.offset, chunk.length, name)?;
        let text = format!("the directory {name} in pack {pack}: {}", error.display_log());
        Err(Fault::Damage { pack: Some(pack), text })
    }

    fn find<I: PackedId>(&self, id: &I) -> Option<(String, Chunk)> {
        let entry = self.indexed.get_index_entry(id).ok()?;
        let chunk = Chunk {
            digest: Digest::try_from((*id).into().into_inner()).ok()?,
            offset: entry.location.offset,
            length: entry.location.length,
            uncompressed_length: entry.location.uncompressed_length.map(std::num::NonZeroU32::get),
            places: Vec::new(),
        };
        Some((entry.pack.to_hex().to_string(), chunk))
    }

    /// Where everything lies of an image of `size` bytes, which it covers without a gap.
    pub(super) fn runs(&self, size: u64) -> Result<Vec<Run>, Fault> {
        let root = self.tree(Some(self.file.tree), "/")?;
        let image = root.nodes.into_iter().find(|node| node.name == IMAGE);
        let image = image.ok_or_else(|| damage("it holds no image".to_owned()))?;
        let mut packs: BTreeMap<String, BTreeMap<u32, Chunk>> = BTreeMap::new();
        let mut next = 0;
        for directory in self.tree(image.subtree, IMAGE)?.nodes {
            for segment in self.tree(directory.subtree, &directory.name)?.nodes {
                if segment_number(&directory.name, &segment.name) != Some(next)
                    || next >= segments(size)
                {
                    return Err(damage(format!("segment {next} of the image is missing")));
                }
                let range = segment_range(next, size);
                self.add_segment(&segment.content.unwrap_or_default(), &range, &mut packs)?;
                next += 1;
            }
        }
        if next != segments(size) {
            return Err(damage(format!(
                "the image ends after {next} segments of {}",
                segments(size)
            )));
        }
        Ok(packs.into_iter().flat_map(|(pack, chunks)| runs(&pack, chunks.into_values())).collect())
    }

    fn add_segment(
        &self,
        content: &[DataId],
        range: &Range<u64>,
        packs: &mut BTreeMap<String, BTreeMap<u32, Chunk>>,
    ) -> Result<(), Fault> {
        let mut place = range.start;
        for id in content {
            let (pack, chunk) = self
                .find(id)
                .ok_or_else(|| damage(format!("no pack has bytes {place} and on of the image")))?;
            // What is not compressed is as long as it is stored, less nonce and tag.
            let length =
                chunk.uncompressed_length.unwrap_or_else(|| chunk.length.saturating_sub(32));
            let known = packs.entry(pack).or_default().entry(chunk.offset).or_insert(chunk);
            known.places.push(place);
            place += u64::from(length);
        }
        match place == range.end {
            true => Ok(()),
            false => {
                Err(damage(format!("bytes {place} to {} of the image are missing", range.end)))
            }
        }
    }

    /// Gives each chunk, proved to be the one, or what is wrong with it to `use_it`, several at once, until
    /// that fails.
    pub(super) fn each(
        &self,
        runs: &[Run],
        use_it: impl Fn(&Chunk, Result<&[u8], Fault>) -> Result<()> + Sync,
    ) -> Result<()> {
        let next = AtomicUsize::new(0);
        let work = || -> Result<()> {
            let mut packing = Packing::new(COMPRESSION)?;
            while let Some(run) = runs.get(next.fetch_add(1, Ordering::Relaxed)) {
                self.session.go_on()?;
                let done = self.run(run, &mut packing, &use_it);
                if let Err(error) = done {
                    self.session.fail(error.again());
                    return Err(error);
                }
            }
            Ok(())
        };
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..cores * THREADS).map(|_| scope.spawn(work)).collect();
            let ends = threads.into_iter().map(|thread| {
                thread
                    .join()
                    .unwrap_or_else(|_| Err(Error::internal("a thread of the restore broke off")))
            });
            // All of them end before the first error is told.
            ends.collect::<Vec<_>>().into_iter().collect()
        })
    }

    fn run(
        &self,
        run: &Run,
        packing: &mut Packing,
        use_it: &impl Fn(&Chunk, Result<&[u8], Fault>) -> Result<()>,
    ) -> Result<()> {
        let (Some(first), Some(last)) = (run.chunks.first(), run.chunks.last()) else {
            return Ok(());
        };
        let length = last.offset + last.length - first.offset;
        let whole = self.read(&run.pack, first.offset, length, "chunks");
        for chunk in &run.chunks {
            let data = match &whole {
                Ok(bytes) => {
                    let start = (chunk.offset - first.offset) as usize;
                    let sealed =
                        bytes.get(start..start + chunk.length as usize).unwrap_or_default();
                    self.open(&run.pack, chunk, sealed, packing)
                }
                // The pack may only be cut short.
                Err(_) => {
                    let what = format!("chunk {}", chunk.digest);
                    self.read(&run.pack, chunk.offset, chunk.length, &what)
                        .and_then(|sealed| self.open(&run.pack, chunk, &sealed, packing))
                }
            };
            use_it(chunk, data.as_deref().map_err(|fault| fault.again()))?;
        }
        Ok(())
    }

    /// Reads a part of a pack.
    fn read(&self, pack: &str, offset: u32, length: u32, what: &str) -> Result<Bytes, Fault> {
        let read = self.session.store().get_range(&pack_name(&pack), offset.into(), length.into());
        read.map_err(|error| match error.kind() {
            ErrorKind::NotFound | ErrorKind::Corrupt => Fault::Damage {
                text: format!("{what} in pack {pack}: the pack is missing or too short"),
                pack: Some(pack.to_owned()),
            },
            _ => Fault::Unknown(error),
        })
    }

    /// Opens a chunk and proves that it is the one.
    fn open(
        &self,
        pack: &str,
        chunk: &Chunk,
        sealed: &[u8],
        packing: &mut Packing,
    ) -> Result<Vec<u8>, Fault> {
        let opened =
            packing.open(&self.cipher, sealed, chunk.uncompressed_length).and_then(|plain| {
                match Digest::of(&plain) == chunk.digest {
                    true => Ok(plain),
                    false => Err(Error::corrupt("its content is not what was stored")),
                }
            });
        opened.map_err(|error| {
            let place = match chunk.places.first() {
                Some(place) => format!(" (byte {place} of the image)"),
                None => String::new(),
            };
            Fault::Damage {
                text: format!(
                    "chunk {}{place} in pack {pack}: {}",
                    chunk.digest,
                    error.full_message()
                ),
                pack: Some(pack.to_owned()),
            }
        })
    }
}

impl Chunk {
    /// Bytes of the image that it stands for.
    pub(super) fn bytes(&self, data: &[u8]) -> u64 {
        data.len() as u64 * self.places.len() as u64
    }
}

impl Fault {
    fn again(&self) -> Self {
        match self {
            Self::Damage { pack, text } => Self::Damage { pack: pack.clone(), text: text.clone() },
            Self::Unknown(error) => Self::Unknown(error.again()),
        }
    }
}

fn damage(text: String) -> Fault {
    Fault::Damage { pack: None, text }
}

/// The chunks of a pack, in their order, in runs that are read at once.
fn runs(pack: &str, chunks: impl Iterator<Item = Chunk>) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for chunk in chunks {
        let fits = |run: &Run| {
            let (Some(first), Some(last)) = (run.chunks.first(), run.chunks.last()) else {
                return false;
            };
            last.offset + last.length == chunk.offset
                && chunk.offset + chunk.length - first.offset <= READ
        };
        match runs.last_mut() {
            Some(run) if fits(run) => run.chunks.push(chunk),
            _ => runs.push(Run { pack: pack.to_owned(), chunks: vec![chunk] }),
        }
    }
    runs
}
