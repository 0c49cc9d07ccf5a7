//! Reading a backup: as the packs lie, in parallel, each chunk proved to be the one that was stored.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use rustic_core::repofile::{SnapshotFile, SnapshotId, Tree};
use rustic_core::{DataId, IndexedFullStatus, PackedId, TreeId};

use super::backup::snapshot_id;
use super::cipher::{Cipher, Digest};
use super::files::Files;
use super::image::{FANOUT, IMAGE, directory_name, segment_name, segment_range, segments};
use super::manifest::{MANIFEST, Manifest};
use super::mend::INDEX;
use super::pack::Packing;
use super::session::{Session, pack_name};
use super::{COMPRESSION, Cache, Repository, backup};
use crate::error::{Error, ErrorKind, Result};
use crate::id::BackupId;
use crate::linux::priority::let_others_go_first;
use crate::model::Progress;
use crate::units::ByteSize;

/// Threads for each core: while some read, others unpack.
const THREADS: usize = 2;

/// Bytes of a pack that are read at once.
const READ: u32 = 8 << 20;

pub(super) type Indexed = rustic_core::Repository<IndexedFullStatus>;

/// A chunk: where it lies in its pack, and where in the content.
#[derive(Debug)]
pub(super) struct Chunk {
    digest: Digest,
    offset: u32,
    length: u32,
    uncompressed_length: Option<u32>,
    /// Where it lies in the content.
    pub(super) places: Vec<u64>,
}

/// All bytes of a backup, each at a place of its own.
#[derive(Debug)]
pub(super) struct Content {
    /// In bytes.
    pub(super) size: u64,
    /// Why some of it is not to be found.
    pub(super) faults: Vec<Fault>,
    runs: Vec<Run>,
    of: ContentOf,
}

/// What the places of a [`Content`] are.
#[derive(Debug)]
enum ContentOf {
    /// Those of an image.
    Image,
    /// Those of all files, one behind the other.
    Files(Arc<Files>),
}

impl Content {
    /// All of it, if nothing is missing.
    pub(super) fn whole(mut self) -> Result<Self, Fault> {
        match self.faults.pop() {
            None => Ok(self),
            Some(fault) => Err(fault),
        }
    }

    /// What lies at a place, for people.
    fn describe(&self, place: u64) -> String {
        match &self.of {
            ContentOf::Image => format!("byte {place} of the image"),
            ContentOf::Files(files) => match files.at(place) {
                Some((file, offset)) => format!("byte {offset} of {}", file.shown()),
                None => format!("byte {place}"),
            },
        }
    }
}

/// The chunks of packs by their place there.
type Packs = BTreeMap<String, BTreeMap<u32, Chunk>>;

/// Chunks that lie one behind the other in a pack.
#[derive(Debug)]
struct Run {
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
    file: SnapshotFile,
    /// Of the volume's device; none if it has none.
    size: Option<ByteSize>,
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
        let size = backup::read(repository.name(), &file)?.and_then(|backup| backup.size);
        Ok(Self { session, indexed, cipher, file, size, _lock: lock })
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
        self.open(&pack, &chunk, &sealed, || what.to_owned(), &mut Packing::new(COMPRESSION)?)
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

    /// Where everything lies. The manifest is not needed for it: it may be what is damaged.
    pub(super) fn content(&self) -> Content {
        match self.size {
            Some(size) => self.image_content(size.bytes()),
            None => match self.files() {
                Ok(files) => self.files_content(&Arc::new(files)),
                Err(fault) => {
                    Content { size: 0, faults: vec![fault], runs: Vec::new(), of: ContentOf::Image }
                }
            },
        }
    }

    /// The files of a backup, each with the place of its first byte.
    pub(super) fn files(&self) -> Result<Files, Fault> {
        Files::read(self.file.tree, |id, name| {
            self.session.go_on()?;
            self.tree(id, name)
        })
    }

    /// Where the content of all files lies.
    pub(super) fn files_content(&self, files: &Arc<Files>) -> Content {
        let mut packs = Packs::new();
        let mut faults: Vec<Fault> = files.faults().iter().map(Fault::again).collect();
        for file in files.with_content() {
            let added = self.add_file(&file.content, &file.range(), &file.shown(), &mut packs);
            faults.extend(added.err());
        }
        let of = ContentOf::Files(Arc::clone(files));
        Content { size: files.size(), faults, runs: all_runs(packs), of }
    }

    /// Where everything lies of an image of `size` bytes, which it covers without a gap if there are no
    /// faults.
    fn image_content(&self, size: u64) -> Content {
        let (mut packs, mut faults) = (Packs::new(), Vec::new());
        let directories = self.tree(Some(self.file.tree), "/").and_then(|root| {
            let image = root.nodes.into_iter().find(|node| node.name == IMAGE);
            let image = image.ok_or_else(|| damage("it holds no image".to_owned()))?;
            self.tree(image.subtree, IMAGE)
        });
        let (directories, count) = match directories {
            Ok(tree) => (tree.nodes, segments(size).div_ceil(FANOUT)),
            Err(fault) => {
                faults.push(fault);
                (Vec::new(), 0)
            }
        };
        for directory in 0..count {
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
                let range = segment_range(segment, size);
                faults.extend(self.add_file(content, &range, "the image", &mut packs).err());
            }
        }
        Content { size, faults, runs: all_runs(packs), of: ContentOf::Image }
    }

    /// Adds what lies at the places of `range`; `of` tells what that is a part of.
    fn add_file(
        &self,
        content: &[DataId],
        range: &Range<u64>,
        of: &str,
        packs: &mut Packs,
    ) -> Result<(), Fault> {
        let mut place = range.start;
        for id in content {
            let what = || format!("byte {place} and on of {of}");
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
            false => Err(damage(format!("bytes {place} to {} of {of} are missing", range.end))),
        }
    }

    /// Gives each chunk, proved to be the one, or what is wrong with it to `use_it`, several at once, until
    /// that fails.
    pub(super) fn each(
        &self,
        content: &Content,
        use_it: impl Fn(&Chunk, Result<&[u8], Fault>) -> Result<()> + Sync,
    ) -> Result<()> {
        let next = AtomicUsize::new(0);
        let work = || -> Result<()> {
            let_others_go_first();
            let mut packing = Packing::new(COMPRESSION)?;
            while let Some(run) = content.runs.get(next.fetch_add(1, Ordering::Relaxed)) {
                self.session.go_on()?;
                let done = self.run(run, content, &mut packing, &use_it);
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
        content: &Content,
        packing: &mut Packing,
        use_it: &impl Fn(&Chunk, Result<&[u8], Fault>) -> Result<()>,
    ) -> Result<()> {
        let (Some(first), Some(last)) = (run.chunks.first(), run.chunks.last()) else {
            return Ok(());
        };
        let length = last.offset + last.length - first.offset;
        let whole = self.read(&run.pack, first.offset, length, "chunks");
        for chunk in &run.chunks {
            let what = || match chunk.places.first() {
                Some(place) => format!("chunk {} at {}", chunk.digest, content.describe(*place)),
                None => format!("chunk {}", chunk.digest),
            };
            let data = match &whole {
                Ok(bytes) => {
                    let start = (chunk.offset - first.offset) as usize;
                    let sealed =
                        bytes.get(start..start + chunk.length as usize).unwrap_or_default();
                    self.open(&run.pack, chunk, sealed, what, packing)
                }
                // The pack may only be cut short.
                Err(_) => self
                    .read(&run.pack, chunk.offset, chunk.length, &what())
                    .and_then(|sealed| self.open(&run.pack, chunk, &sealed, what, packing)),
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
        what: impl Fn() -> String,
        packing: &mut Packing,
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
    /// Bytes of the content that it stands for.
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

pub(super) fn damage(text: String) -> Fault {
    Fault::Damage { note: None, text }
}

fn all_runs(packs: Packs) -> Vec<Run> {
    packs.into_iter().flat_map(|(pack, chunks)| runs(&pack, chunks.into_values())).collect()
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
