//! A block volume in a repository: its image cut into segments, one file each, in directories that keep
//! trees small. Concatenated in the lexical order of their paths they are the image.

use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use rustic_core::jiff::Timestamp;
use rustic_core::repofile::{Metadata, Node, NodeType};
use rustic_core::{ReadSource, ReadSourceEntry, ReadSourceOpen, RusticResult};

use super::session::Session;
use crate::error::{Error, Result};

/// Bytes of an image in one file, the same in every repository for ever: other segments would have no
/// parent. Small enough that a few changed blocks make little work, large enough that the trees of 1 TiB are
/// read in seconds (`docs/benchmarks.md`).
pub(super) const SEGMENT: u64 = 4 << 20;

/// Segments in one directory.
pub(super) const FANOUT: u64 = 256;

/// The directory of all segments.
pub(super) const IMAGE: &str = "image";

/// Bytes that one read asks for.
const READ: usize = 1 << 20;

/// The name of the directory of the segment at this number.
pub(super) fn directory_name(segment: u64) -> String {
    format!("{:08x}", segment / FANOUT)
}

/// The name of the segment at this number within its directory.
pub(super) fn segment_name(segment: u64) -> String {
    format!("{:02x}", segment % FANOUT)
}

/// Which segment a directory and a name stand for.
pub(super) fn segment_number(directory: &str, name: &str) -> Option<u64> {
    let (directory, segment) = (parse_hex(directory, 8)?, parse_hex(name, 2)?);
    directory.checked_mul(FANOUT)?.checked_add(segment)
}

fn parse_hex(text: &str, digits: usize) -> Option<u64> {
    (text.len() == digits).then(|| u64::from_str_radix(text, 16).ok()).flatten()
}

/// How many segments an image of this size has.
pub(super) fn segments(size: u64) -> u64 {
    size.div_ceil(SEGMENT)
}

/// The bytes of the segment at this number.
pub(super) fn segment_range(segment: u64, size: u64) -> Range<u64> {
    let start = segment * SEGMENT;
    start..(start + SEGMENT).min(size)
}

/// An image to back up.
#[derive(Debug)]
pub struct Image {
    /// Its bytes.
    pub file: Arc<File>,
    /// Its size in bytes.
    pub size: u64,
    /// The ranges that may hold anything but zeros, ascending and disjoint. No others are read.
    pub allocated: Vec<Range<u64>>,
}

/// Stamps of the segments of the backup that this one is the difference to.
pub(super) trait Stamps: Send + 'static {
    /// The stamps of a directory's segments by their numbers; none where it cannot be told.
    fn directory(&mut self, name: &str) -> Option<Vec<(u64, Timestamp)>>;
}

/// What may differ from the parent.
pub(super) struct Difference {
    /// Ascending and disjoint.
    pub(super) changed: Vec<Range<u64>>,
    /// The parent's stamps.
    pub(super) stamps: Box<dyn Stamps + Sync>,
}

/// The files of a backup of an image, in the order of their paths. A segment that is known to be the
/// parent's keeps the parent's stamp as its times, which tells the archiver not to open it.
pub(super) struct ImageSource {
    pub(super) session: Arc<Session>,
    pub(super) image: Arc<Image>,
    pub(super) manifest: Vec<u8>,
    pub(super) manifest_name: &'static str,
    /// The times of what is new. Not those of any earlier backup of the volume.
    pub(super) stamp: Timestamp,
    pub(super) difference: std::sync::Mutex<Option<Difference>>,
}

/// The stamp of a segment that is a hole: directories of nothing else are all the same tree.
const HOLE: Timestamp = Timestamp::UNIX_EPOCH;

impl ReadSource for ImageSource {
    type Open = Opener;
    type Iter = Entries;

    fn size(&self) -> RusticResult<Option<u64>> {
        Ok(Some(self.image.size))
    }

    fn entries(&self) -> Entries {
        let mut difference =
            self.difference.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        Entries {
            session: Arc::clone(&self.session),
            image: Arc::clone(&self.image),
            manifest: Some((self.manifest_name, self.manifest.clone())),
            stamp: self.stamp,
            allocated: Walk::default(),
            changed: Walk::default(),
            difference: difference.take(),
            parent: (String::new(), None),
            next: 0,
        }
    }
}

/// [`ImageSource`]'s files.
pub(super) struct Entries {
    session: Arc<Session>,
    image: Arc<Image>,
    manifest: Option<(&'static str, Vec<u8>)>,
    stamp: Timestamp,
    allocated: Walk,
    changed: Walk,
    difference: Option<Difference>,
    /// The parent's stamps of the directory that is under way.
    parent: (String, Option<Vec<(u64, Timestamp)>>),
    next: u64,
}

impl Entries {
    fn parent_stamp(&mut self, segment: u64, directory: &str) -> Option<Timestamp> {
        let difference = self.difference.as_mut()?;
        if self.parent.0 != directory {
            self.parent = (directory.to_owned(), difference.stamps.directory(directory));
        }
        let stamps = self.parent.1.as_ref()?;
        let at = stamps.binary_search_by_key(&segment, |(number, _)| *number).ok()?;
        Some(stamps[at].1)
    }

    fn segment(&mut self, segment: u64) -> ReadSourceEntry<Opener> {
        let range = segment_range(segment, self.image.size);
        let hole = !self.allocated.touches(&self.image.allocated, &range);
        let directory = directory_name(segment);
        let parent = self.parent_stamp(segment, &directory);
        let changed = match &self.difference {
            None => true,
            Some(difference) => self.changed.touches(&difference.changed, &range),
        };
        let stamp = match parent {
            _ if hole => HOLE,
            Some(parent) if !changed => parent,
            // Whatever the clock says, what changed must not look as it did.
            Some(parent) if parent == self.stamp => {
                parent + rustic_core::jiff::SignedDuration::from_nanos(1)
            }
            _ => self.stamp,
        };
        let size = range.end - range.start;
        if parent == Some(stamp) {
            self.session.count(size, 0);
        }
        let path: PathBuf = [IMAGE, &directory, &segment_name(segment)].iter().collect();
        let kind = if hole { Kind::Hole(size) } else { Kind::Data(range) };
        self.entry(path, size, stamp, kind)
    }

    fn entry(
        &self,
        path: PathBuf,
        size: u64,
        stamp: Timestamp,
        kind: Kind,
    ) -> ReadSourceEntry<Opener> {
        let meta = Metadata {
            mode: Some(0o600),
            mtime: Some(stamp),
            ctime: Some(stamp),
            size,
            links: 1,
            ..Metadata::default()
        };
        let node = Node::new_node(path.file_name().unwrap_or_default(), NodeType::File, meta);
        let open =
            Opener { session: Arc::clone(&self.session), image: Arc::clone(&self.image), kind };
        ReadSourceEntry { path, node, open: Some(open) }
    }
}

impl Iterator for Entries {
    type Item = RusticResult<ReadSourceEntry<Opener>>;

    fn next(&mut self) -> Option<Self::Item> {
        // What cannot be stored any more need not be read.
        if let Err(error) = self.session.go_on() {
            self.session.fail(error);
            return None;
        }
        if self.next < segments(self.image.size) {
            let segment = self.next;
            self.next += 1;
            return Some(Ok(self.segment(segment)));
        }
        let (name, content) = self.manifest.take()?;
        let size = content.len() as u64;
        Some(Ok(self.entry(PathBuf::from(name), size, self.stamp, Kind::Text(content))))
    }
}

/// Walks forward through ranges.
#[derive(Debug, Default)]
struct Walk {
    next: usize,
}

impl Walk {
    /// Whether any of `ranges` has a byte of `range`. What is asked for only moves forward.
    fn touches(&mut self, ranges: &[Range<u64>], range: &Range<u64>) -> bool {
        while ranges.get(self.next).is_some_and(|one| one.end <= range.start) {
            self.next += 1;
        }
        ranges.get(self.next).is_some_and(|one| one.start < range.end)
    }
}

#[derive(Debug)]
enum Kind {
    Data(Range<u64>),
    Hole(u64),
    Text(Vec<u8>),
}

/// A file of a backup that can be read.
#[derive(Debug)]
pub(super) struct Opener {
    session: Arc<Session>,
    image: Arc<Image>,
    kind: Kind,
}

impl ReadSourceOpen for Opener {
    type Reader = Reader;

    fn open(self) -> RusticResult<Reader> {
        let buffer = match &self.kind {
            Kind::Text(content) => content.clone(),
            _ => Vec::new(),
        };
        let (range, data) = match self.kind {
            Kind::Data(range) => (range, true),
            Kind::Hole(size) => (0..size, false),
            Kind::Text(_) => (0..0, false),
        };
        Ok(Reader { session: self.session, image: self.image, rest: range, data, buffer, at: 0 })
    }
}

/// Reads a file of a backup. The archiver leaves out a file that cannot be read and goes on, so an error
/// here is kept by the session, which then stores no backup.
#[derive(Debug)]
pub(super) struct Reader {
    session: Arc<Session>,
    image: Arc<Image>,
    rest: Range<u64>,
    data: bool,
    buffer: Vec<u8>,
    at: usize,
}

impl Reader {
    fn fill(&mut self) -> Result<()> {
        self.session.go_on()?;
        let length = usize::try_from(self.rest.end - self.rest.start).unwrap_or(READ).min(READ);
        self.buffer.clear();
        self.buffer.resize(length, 0);
        self.at = 0;
        let mut read = 0;
        if self.data {
            let part = self.rest.start..self.rest.start + length as u64;
            read = read_allocated(&self.image, &part, &mut self.buffer)?;
        }
        self.session.count(length as u64, read);
        self.rest.start += length as u64;
        Ok(())
    }
}

impl Read for Reader {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.at == self.buffer.len() && !self.rest.is_empty() {
            self.fill().map_err(|error| io::Error::other(self.session.fail(error)))?;
        }
        let left = &self.buffer[self.at..];
        let length = left.len().min(into.len());
        into[..length].copy_from_slice(&left[..length]);
        self.at += length;
        Ok(length)
    }
}

/// Reads those bytes of `part` that may be no zeros into `buffer`, which is all zeros, and tells how many
/// those are.
fn read_allocated(image: &Image, part: &Range<u64>, buffer: &mut [u8]) -> Result<u64> {
    let mut read = 0;
    let first = image.allocated.partition_point(|range| range.end <= part.start);
    for range in &image.allocated[first..] {
        if range.start >= part.end {
            break;
        }
        let (start, end) = (range.start.max(part.start), range.end.min(part.end));
        let within = |at: u64| usize::try_from(at - part.start).unwrap_or(usize::MAX);
        image.file.read_exact_at(&mut buffer[within(start)..within(end)], start).map_err(
            |error| Error::io(format!("cannot read the snapshot at byte {start}"), error),
        )?;
        read += end - start;
    }
    Ok(read)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_paths_is_the_order_of_segments() {
        let numbers = [0, 1, 9, 10, 255, 256, 257, 65_535, 65_536, 1 << 24, (1 << 32) + 5];
        let path = |n: &u64| format!("{}/{}", directory_name(*n), segment_name(*n));
        let paths: Vec<String> = numbers.iter().map(path).collect();
        assert!(paths.is_sorted(), "{paths:?}");
        for (number, path) in numbers.iter().zip(&paths) {
            let (directory, name) = path.split_once('/').unwrap();
            assert_eq!(segment_number(directory, name), Some(*number));
        }
        assert_eq!(segment_number("0000000", "00"), None);
        assert_eq!(segment_number("00000000", "xy"), None);
        assert_eq!(
            (segments(0), segments(1), segments(SEGMENT), segments(SEGMENT + 1)),
            (0, 1, 1, 2)
        );
    }

    #[test]
    fn a_walk_finds_what_any_range_touches() {
        let ranges = [5..10, 20..30, 30..31];
        let mut walk = Walk::default();
        let touched: Vec<bool> =
            (0..5).map(|i| walk.touches(&ranges, &(i * 10..(i + 1) * 10))).collect();
        assert_eq!(touched, [true, false, true, true, false]);
    }
}
