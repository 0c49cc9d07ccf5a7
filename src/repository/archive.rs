//! Writing the image of a block volume. rustic_core's own archiver is not used for it: it leaves out what it
//! cannot read and stores the backup all the same, it hashes every hole, and it reads whole files where one
//! block of them has changed.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustic_core::repofile::{Metadata, Node, NodeType};
use rustic_core::{DataId, TreeId, jiff};

use super::COMPRESSION;
use super::chunks::{Chunks, Worker, in_parallel};
use super::cipher::Cipher;
use super::image::{
    CHUNK, FANOUT, IMAGE, Image, SEGMENT, chunk_ranges, directory_name, is_zero, segment_name,
    segment_number, segment_range, segments as image_segments, touches,
};
use super::manifest::MANIFEST;
use super::pack::Packing;
use super::reading::Indexed;
use super::session::Session;
use crate::error::Result;

/// The chunks of the segments of one directory, by their numbers; as the parent has them.
type Segments = HashMap<u64, Vec<DataId>>;

/// What is known of an earlier backup of the same volume.
pub(super) struct Parent {
    /// The root of its trees.
    pub(super) root: TreeId,
    /// Where the image may differ from it, ascending and disjoint.
    pub(super) changed: Vec<Range<u64>>,
}

/// Writes one image.
pub(super) struct Archiver<'a> {
    session: &'a Arc<Session>,
    indexed: &'a Indexed,
    chunks: Chunks<'a>,
    image: &'a Image,
    parent: Option<Parent>,
    /// The parent's directories of segments by their names.
    directories: HashMap<String, TreeId>,
    /// The directory of which all segments are holes.
    hole: Option<TreeId>,
    read: AtomicU64,
}

/// What was written.
pub(super) struct Archived {
    pub(super) root: TreeId,
    /// Bytes that were read of the image.
    pub(super) read: u64,
    /// Bytes that were stored.
    pub(super) added: u64,
}

impl<'a> Archiver<'a> {
    pub(super) fn new(
        session: &'a Arc<Session>,
        indexed: &'a Indexed,
        cipher: &'a Cipher,
        image: &'a Image,
        parent: Option<Parent>,
    ) -> Self {
        let directories = parent.as_ref().and_then(|parent| directories(indexed, parent.root));
        Self {
            session,
            indexed,
            chunks: Chunks::new(session, indexed, cipher),
            image,
            parent,
            directories: directories.unwrap_or_default(),
            hole: None,
            read: AtomicU64::new(0),
        }
    }

    /// Stores all of the image, and `manifest` beside it.
    pub(super) fn run(mut self, manifest: &[u8]) -> Result<Archived> {
        let mut packing = Packing::new(COMPRESSION)?;
        let count = image_segments(self.image.size());
        let mut directories = Vec::new();
        for directory in 0..count.div_ceil(FANOUT) {
            self.session.go_on()?;
            let numbers = directory * FANOUT..((directory + 1) * FANOUT).min(count);
            let tree = self.directory(directory, numbers, &mut packing)?;
            let mut node = node(&directory_name(directory), NodeType::Dir, 0);
            node.subtree = Some(tree);
            directories.push(node);
        }
        let mut image = node(IMAGE, NodeType::Dir, 0);
        image.subtree = Some(self.chunks.tree(directories, &mut packing)?);
        let content = vec![self.chunks.chunk(manifest, &mut packing)?];
        let described = stored_file(MANIFEST, manifest.len() as u64, content);
        let root = self.chunks.tree(vec![image, described], &mut packing)?;
        let read = self.read.load(Ordering::Relaxed);
        Ok(Archived { root, read, added: self.chunks.finish()? })
    }

    /// The tree of one directory of segments.
    fn directory(
        &mut self,
        directory: u64,
        numbers: Range<u64>,
        packing: &mut Packing,
    ) -> Result<TreeId> {
        let bytes = segment_range(numbers.start, self.image.size()).start
            ..segment_range(numbers.end - 1, self.image.size()).end;
        // The last directory may have as many segments, and a last one that is shorter.
        let whole = bytes.end - bytes.start == FANOUT * SEGMENT;
        let hole = whole && !touches(&self.image.allocated, &bytes);
        if hole && let Some(tree) = self.hole {
            self.session.count(bytes.end - bytes.start);
            return Ok(tree);
        }
        let parent = self.parent_segments(directory);
        if let Some((Some(tree), segments)) = &parent
            && !self.may_differ(&bytes)
            && segments.len() as u64 == numbers.end - numbers.start
            && self.is_whole(segments, &numbers)
        {
            self.session.count(bytes.end - bytes.start);
            return Ok(*tree);
        }
        let parent = parent.map(|(_, segments)| segments).unwrap_or_default();
        let contents = self.segments(numbers.clone(), &parent)?;
        let nodes = numbers.zip(contents).map(|(number, content)| {
            let range = segment_range(number, self.image.size());
            stored_file(&segment_name(number), range.end - range.start, content)
        });
        let tree = self.chunks.tree(nodes.collect(), packing)?;
        if hole {
            self.hole = Some(tree);
        }
        Ok(tree)
    }

    fn may_differ(&self, bytes: &Range<u64>) -> bool {
        self.parent.as_ref().is_none_or(|parent| touches(&parent.changed, bytes))
    }

    /// The segments of the parent's directory that this one may have too, if they can be read, and its tree
    /// if there are no others.
    fn parent_segments(&self, directory: u64) -> Option<(Option<TreeId>, Segments)> {
        let name = directory_name(directory);
        let tree = *self.directories.get(&name)?;
        let nodes = self.indexed.get_tree(&tree).ok()?.nodes;
        let mut segments = Segments::new();
        let count = nodes.len();
        for node in nodes {
            let number = segment_number(&name, &node.name)?;
            let range = segment_range(number, self.image.size());
            let content = node.content?;
            // One that has had another length, or chunks of other lengths, is new.
            if number < image_segments(self.image.size())
                && node.meta.size == range.end - range.start
                && content.len() == chunk_ranges(&range).count()
            {
                segments.insert(number, content);
            }
        }
        // A tree with more in it than that is another one.
        let same = segments.len() == count;
        Some((same.then_some(tree), segments))
    }

    /// Whether all chunks of the parent's segments can be had: what was found damaged is out of the index,
    /// and is stored again.
    fn is_whole(&self, segments: &Segments, numbers: &Range<u64>) -> bool {
        numbers.clone().all(|number| {
            segments
                .get(&number)
                .is_some_and(|chunks| chunks.iter().all(|chunk| self.chunks.has(chunk)))
        })
    }

    /// The chunks of these segments, found or stored by several threads.
    fn segments(&self, numbers: Range<u64>, parent: &Segments) -> Result<Vec<Vec<DataId>>> {
        in_parallel(numbers, |number, Worker { packing, buffer }| {
            let range = segment_range(number, self.image.size());
            let parent = parent.get(&number);
            let content = chunk_ranges(&range).enumerate().map(|(i, chunk)| {
                let before = parent.and_then(|chunks| chunks.get(i));
                self.image_chunk(&chunk, before, buffer, packing)
            });
            content.collect()
        })
    }

    /// The id of one chunk of the image, which is stored now.
    fn image_chunk(
        &self,
        range: &Range<u64>,
        before: Option<&DataId>,
        buffer: &mut Vec<u8>,
        packing: &mut Packing,
    ) -> Result<DataId> {
        let length = range.end - range.start;
        if let Some(before) = before
            && !self.may_differ(range)
            && self.chunks.has(before)
        {
            self.session.count(length);
            return Ok(*before);
        }
        self.session.go_on()?;
        if !touches(&self.image.allocated, range) {
            self.session.count(length);
            return self.chunks.zeros(length, packing);
        }
        buffer.clear();
        buffer.resize(usize::try_from(length).unwrap_or_default(), 0);
        self.read.fetch_add(self.image.read(range, buffer)?, Ordering::Relaxed);
        let id = match is_zero(buffer) {
            true => self.chunks.zeros(length, packing),
            false => self.chunks.chunk(buffer, packing),
        };
        self.session.count(length);
        id
    }
}

/// The directories of segments below the root of a backup; none if they cannot be read.
fn directories(indexed: &Indexed, root: TreeId) -> Option<HashMap<String, TreeId>> {
    let nodes = indexed.get_tree(&root).ok()?.nodes;
    let image = nodes.into_iter().find(|node| node.name == IMAGE)?.subtree?;
    let nodes = indexed.get_tree(&image).ok()?.nodes;
    nodes.into_iter().map(|node| Some((node.name, node.subtree?))).collect()
}

/// A file of the repository's own, of `size` bytes.
pub(super) fn stored_file(name: &str, size: u64, content: Vec<DataId>) -> Node {
    let mut node = node(name, NodeType::File, size);
    node.content = Some(content);
    node
}

/// A file or directory. All of them have the same times, so that trees are equal when their content is.
fn node(name: &str, kind: NodeType, size: u64) -> Node {
    // The mark of a directory, as Go has it.
    let mode = if kind == NodeType::Dir { 1 << 31 | 0o700 } else { 0o600 };
    let epoch = Some(jiff::Timestamp::UNIX_EPOCH);
    let meta = Metadata {
        mode: Some(mode),
        mtime: epoch,
        atime: epoch,
        ctime: epoch,
        size,
        links: 1,
        ..Metadata::default()
    };
    Node::new_node(OsStr::new(name), kind, meta)
}

const _: () = assert!(super::image::SEGMENT.is_multiple_of(CHUNK));
