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
use super::image::{FANOUT, IMAGE, directory_name, is_zero, segment_name, segment_range, segments};
use super::manifest::{MANIFEST, Manifest};
use super::mend::INDEX;
use super::pack::Packing;
use super::session::{Session, pack_name};
use super::{COMPRESSION, Cache, Repository};
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
        let reading = Reading::new(self, id, Cache::Used, &Arc::default())?;
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
        let reading = Reading::new(self, id, Cache::Used, progress)?;
        let whole = |fault: Fault| fault.into_error(&reading.session);
        let size = reading.manifest().map_err(whole)?.image_size()?;
        let (runs, faults) = reading.runs(size);
        if let Some(fault) = faults.into_iter().next() {
            return Err(whole(fault));
        }
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
    pub(super) file: SnapshotFile,
    _lock: Option<super::lock::Lock>,
}

impl Reading {
    pub(super) fn new(
        repository: &Repository,
        id: BackupId,
        cache: Cache,
        progress: &Arc<Progress>,
    ) -> Result<Self> {
        let session = repository.session(progress)?;
        let opened = repository.open_with(&session, cache)?;
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
        for id in node.content.unwrap_or_default() {
            text.extend(self.whole(&id, MANIFEST)?);
        }
        Ok(Manifest::from_json(&text)?)
    }

    fn tree(&self, id: Option<TreeId>, name: &str) -> Result<Tree, Fault> {
        let id = id.ok_or_else(|| damage(format!("{name} is no directory")))?;
        let text = self.whole(&id, &format!("the directory {name}"))?;
        serde_json::from_slice(&text)
            .map_err(|error| damage(format!("the directory {name} makes no sense: {error}")))
    }

    /// All of something small, proved to be what was stored.
    fn whole<I: PackedId>(&self, id: &I, what: &str) -> Result<Vec<u8>, Fault> {
        let (pack, chunk) = self.find(id).ok_or_else(|| in_no_pack(what))?;
        let sealed = self.read(&pack, chunk.offset, chunk.length, what)?;
        self.open(&pack, &chunk, &sealed, &mut Packing::new(COMPRESSION)?, || what.to_owned())
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

    /// Where everything lies of an image of `size` bytes, which it covers without a gap if there are no
    /// faults.
    pub(super) fn runs(&self, size: u64) -> (Vec<Run>, Vec<Fault>) {
        let mut packs: BTreeMap<String, BTreeMap<u32, Chunk>> = BTreeMap::new();
        let mut faults = Vec::new();
        let directories = self.tree(Some(self.file.tree), "/").and_then(|root| {
            let image = root.nodes.into_iter().find(|node| node.name == IMAGE);
            let image = image.ok_or_else(|| damage("it holds no image".to_owned()))?;
            self.tree(image.subtree, IMAGE)
        });
        let directories = match directories {
            Ok(tree) => tree.nodes,
            Err(fault) => return (Vec::new(), vec![fault]),
        };
        for directory in 0..segments(size).div_ceil(FANOUT) {
            let name = directory_name(directory);
            let found = directories.iter().find(|node| node.name == name);
            let tree = match self.tree(found.and_then(|node| node.subtree), &name) {
                Ok(tree) => tree,
                Err(fault) => {
                    faults.push(fault);
                    continue;
                }
            };
            let last = ((directory + 1) * FANOUT).min(segments(size));
            for segment in directory * FANOUT..last {
                let node = tree.nodes.iter().find(|node| node.name == segment_name(segment));
                let content = node.and_then(|node| node.content.as_deref()).unwrap_or_default();
                let added = self.add_segment(content, &segment_range(segment, size), &mut packs);
                faults.extend(added.err());
            }
        }
        let runs = packs.into_iter().flat_map(|(pack, chunks)| runs(&pack, chunks.into_values()));
        (runs.collect(), faults)
    }

    fn add_segment(
        &self,
        content: &[DataId],
        range: &Range<u64>,
        packs: &mut BTreeMap<String, BTreeMap<u32, Chunk>>,
    ) -> Result<(), Fault> {
        let mut place = range.start;
        for id in content {
            let what = || format!("byte {place} and on of the image");
            let (pack, chunk) = self.find(id).ok_or_else(|| in_no_pack(&what()))?;
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
                    self.open(&run.pack, chunk, sealed, packing, || chunk.what())
                }
                // The pack may only be cut short.
                Err(_) => {
                    let what = chunk.what();
                    self.read(&run.pack, chunk.offset, chunk.length, &what).and_then(|sealed| {
                        self.open(&run.pack, chunk, &sealed, packing, || chunk.what())
                    })
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
                text: match error.kind() {
                    ErrorKind::NotFound => format!("{what} in pack {pack}: the pack is missing"),
                    _ => format!("{what} in pack {pack}: the pack is too short"),
                },
                note: Some(pack.to_owned()),
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
        what: impl Fn() -> String,
    ) -> Result<Vec<u8>, Fault> {
        let opened =
            packing.open(&self.cipher, sealed, chunk.uncompressed_length).and_then(|plain| {
                match Digest::of(&plain) == chunk.digest {
                    true => Ok(plain),
                    false => Err(Error::corrupt("its content is not what was stored")),
                }
            });
        opened.map_err(|error| Fault::Damage {
            text: format!("{} in pack {pack}: {}", what(), error.full_message()),
            note: Some(pack.to_owned()),
        })
    }
}

impl Chunk {
    fn what(&self) -> String {
        match self.places.first() {
            Some(place) => format!("chunk {} at byte {place} of the image", self.digest),
            None => format!("chunk {}", self.digest),
        }
    }

    /// Bytes of the image that it stands for.
    pub(super) fn bytes(&self, data: &[u8]) -> u64 {
        data.len() as u64 * self.places.len() as u64
    }
}

impl Fault {
    fn again(&self) -> Self {
        match self {
            Self::Damage { note, text } => Self::Damage { note: note.clone(), text: text.clone() },
            Self::Unknown(error) => Self::Unknown(error.again()),
        }
    }
}

/// What the index does not know, though a backup needs it.
fn in_no_pack(what: &str) -> Fault {
    Fault::Damage { note: Some(INDEX.to_owned()), text: format!("{what}: no pack has it") }
}

fn damage(text: String) -> Fault {
    Fault::Damage { note: None, text }
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
