//! Backups of file volumes: their trees below `data/`. Not by rustic_core's archiver, which leaves out what it
//! cannot read and stores the backup all the same; nor by its restore, which panics on damage and only warns of
//! what it cannot set.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::ffi::OsString;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use rustic_core::jiff::{SignedDuration, Timestamp};
use rustic_core::repofile::{Node, SnapshotFile, SnapshotSummary};
use rustic_core::{DataId, TreeId};

use super::archive::stored_file;
use super::backup::{Stored, describe, parent};
use super::chunks::{Chunks, Worker, in_parallel};
use super::files::DATA;
use super::image::{CHUNK, chunk_ranges, is_zero, touches};
use super::lock::Access;
use super::manifest::{Layout, MANIFEST, Manifest};
use super::node::{is_linked, to_node};
use super::reading::{Indexed, Reading};
use super::session::Session;
use super::{Cache, Repository, lock};
use crate::error::{Error, Result};
use crate::id::BackupId;
use crate::linux::entry::{EntryKind, FileTime, Found, Tree, data_ranges};
use crate::model::Progress;

/// Entries of a directory from which on several threads look at them.
const MANY: usize = 16;

/// Bytes of a file from which on several threads read it.
const LARGE: u64 = 16 * CHUNK;

/// How long before a backup's snapshot a file must have changed last to be known by its times: the clock that
/// stamps files is coarse, and may be a server's.
const SETTLED: SignedDuration = SignedDuration::from_secs(2);

/// A file volume to back up.
#[derive(Debug)]
pub struct TreeJob {
    /// What it is of.
    pub manifest: Manifest,
    /// The root of its files.
    pub directory: PathBuf,
    /// An earlier backup of the same volume: files that have not changed since are not read.
    pub base: Option<BackupId>,
    /// Whether the volume's schedule makes it.
    pub scheduled: bool,
}

impl Repository {
    /// Backs up the files of a volume, with all that the kernel tells of them but their inode flags. Whatever
    /// cannot be read, fails or is cancelled, there is no backup then.
    ///
    /// The files of a snapshot stay. In a directory that is written to meanwhile, each file is as it was at some
    /// time during the backup, and one that is removed while it is looked at is left out.
    ///
    /// # Errors
    /// Something of the volume cannot be read, or became shorter meanwhile; the repository cannot be written.
    pub fn back_up_tree(&self, job: &TreeJob, progress: &Arc<Progress>) -> Result<Stored> {
        self.with_index(|| self.try_to_back_up_tree(job, progress))
    }

    fn try_to_back_up_tree(&self, job: &TreeJob, progress: &Arc<Progress>) -> Result<Stored> {
        let source = Tree::open(&job.directory)?;
        let session = self.session(progress)?;
        let opened = self.open(&session)?;
        let cipher = self.cipher(&opened)?;
        let _lock = self.lock(&session, &opened, Access::Shared)?;
        let (indexed, index) = self.index(&session)?;
        let base = match job.base {
            Some(backup) => parent(&session, &indexed, backup)?,
            None => None,
        };
        let manifest = Manifest { layout: Layout::Files, ..job.manifest.clone() };
        let mut file = describe(&manifest, &self.settings.node, job.scheduled)?;
        file.parent = base.as_ref().map(|(id, _)| *id);
        let base = base.and_then(|(_, file)| Base::of(&indexed, &file));
        let archived = Archiver {
            session: &session,
            indexed: &indexed,
            chunks: Chunks::new(&session, &indexed, &cipher),
            source: &source,
            settled: base.as_ref().map(|base| base.settled),
            links: Mutex::default(),
            read: AtomicU64::new(0),
            size: AtomicU64::new(0),
            progress,
        }
        .run(&manifest.to_json()?, base.map(|base| base.data))?;
        file.tree = archived.root;
        let mut summary = SnapshotSummary::default();
        summary.total_bytes_processed = archived.size;
        summary.data_added_packed = archived.added;
        file.summary = Some(summary);
        let backup = self.store_backup(&session, &opened, &index, file)?;
        Ok(Stored { backup, read: archived.read })
    }

    /// Restores the files of a backup to an empty directory, which gets the owner and the mode of the volume's
    /// root. Until this returns `Ok` the directory holds nothing that may be used.
    ///
    /// # Errors
    /// `NotFound` if there is no such backup; `Conflict` if the directory is not empty; `Corrupt`, naming what is
    /// damaged, if any of it cannot be read back as it was stored; something cannot be made as it was;
    /// `Cancelled`.
    pub fn restore_tree(
        &self,
        id: BackupId,
        directory: &Path,
        progress: &Arc<Progress>,
    ) -> Result<()> {
        let target = Tree::open(directory)?;
        if !target.list(Path::new(""))?.is_some_and(|names| names.is_empty()) {
            let what = format!("{} is not empty", directory.display());
            return Err(Error::conflict(what).hint("restore to a new volume"));
        }
        let reading = Reading::new(self, id, Cache::Used, progress)?;
        let whole = |fault: super::reading::Fault| fault.into_error(&reading.session);
        let manifest = reading.manifest().map_err(whole)?;
        if manifest.layout != Layout::Files {
            return Err(Error::invalid("the backup is of an image, and not of files"));
        }
        let files = Arc::new(reading.files().map_err(whole)?);
        let content = reading.files_content(&files).whole().map_err(whole)?;
        progress.add_total(content.size);
        for file in files.entries().iter().skip(1) {
            reading.session.go_on()?;
            match file.link_of.and_then(|first| files.entries().get(first)) {
                Some(first) => target.link(&first.path, &file.path)?,
                None => target.make(&file.path, &file.entry)?,
            }
        }
        reading.each(&content, |chunk, data| {
            let data = data.map_err(|fault| fault.into_error(&reading.session))?;
            for place in &chunk.places {
                let (file, offset) = files
                    .at(*place)
                    .ok_or_else(|| Error::internal("a chunk that is of no file"))?;
                if !is_zero(data) {
                    target.write(&file.path, offset, data)?;
                }
                progress.add(data.len() as u64);
            }
            Ok(())
        })?;
        // What is made in a directory changes its time, so each comes after what is in it.
        for file in files.entries().iter().rev().filter(|file| file.link_of.is_none()) {
            reading.session.go_on()?;
            target.dress(&file.path, &file.entry)?;
        }
        target.sync()
    }
}

/// What is known of an earlier backup.
struct Base {
    data: TreeId,
    /// Files that changed before that are known by their times.
    settled: Timestamp,
}

impl Base {
    fn of(indexed: &Indexed, file: &SnapshotFile) -> Option<Self> {
        let nodes = indexed.get_tree(&file.tree).ok()?.nodes;
        let data = nodes.into_iter().find(|node| node.name == DATA)?.subtree?;
        let settled = file.time.timestamp().checked_sub(SETTLED).ok()?;
        Some(Self { data, settled })
    }
}

/// Writes one tree.
struct Archiver<'a> {
    session: &'a Session,
    indexed: &'a Indexed,
    chunks: Chunks<'a>,
    source: &'a Tree,
    settled: Option<Timestamp>,
    /// Files that have several names, by device and inode.
    links: Mutex<HashMap<(u64, u64), Linked>>,
    read: AtomicU64,
    size: AtomicU64,
    progress: &'a Progress,
}

/// A file that has several names, as it was stored under the first that was met.
struct Linked {
    born: Option<FileTime>,
    changed: FileTime,
    node: Node,
}

impl Linked {
    /// Whether this is what was found under another name, and not a new file that got its inode.
    fn is(&self, found: &Found, born: Option<FileTime>) -> bool {
        match (self.born, born) {
            (Some(then), Some(now)) => then == now,
            // Whatever happens to a file changes this time.
            _ => self.changed == found.entry.changed,
        }
    }

    /// The same under the name of `node`: all names of a file tell of it at one time.
    fn named(&self, node: Node) -> Node {
        Node { name: node.name, ..self.node.clone() }
    }
}

/// What was written.
struct Archived {
    root: TreeId,
    /// Bytes of all files.
    size: u64,
    /// Bytes of them that were read.
    read: u64,
    /// Bytes that were stored.
    added: u64,
}

/// A directory that is being stored.
struct Directory {
    path: PathBuf,
    node: Node,
    /// What is in it. A directory is missing until it is stored.
    nodes: Vec<Option<Node>>,
    /// Those directories, by their numbers among the nodes, with what the base has of them.
    left: VecDeque<(usize, Node, Option<TreeId>)>,
}

impl Archiver<'_> {
    /// Stores all files, and `manifest` beside them.
    fn run(self, manifest: &[u8], base: Option<TreeId>) -> Result<Archived> {
        let mut worker = Worker::new()?;
        let gone = || Error::not_found("the root of the volume's files is gone");
        let root = self.source.look(Path::new(""))?.ok_or_else(gone)?;
        let data = to_node(DATA.as_ref(), &root.entry)?;
        let root = self.directory(PathBuf::new(), data, base, &mut worker)?.ok_or_else(gone)?;
        let data = self.follow(root, &mut worker)?;
        let content = vec![self.chunks.chunk(manifest, &mut worker.packing)?];
        let described = stored_file(MANIFEST, manifest.len() as u64, content);
        let root = self.chunks.tree(vec![data, described], &mut worker.packing)?;
        Ok(Archived {
            root,
            size: self.size.into_inner(),
            read: self.read.into_inner(),
            added: self.chunks.finish()?,
        })
    }

    /// Stores a directory with all that is below it, which may be deeper than a thread's stack.
    fn follow(&self, root: Directory, worker: &mut Worker) -> Result<Node> {
        let mut above: Vec<(Directory, usize)> = Vec::new();
        let mut at = root;
        loop {
            self.session.go_on()?;
            if let Some((number, node, base)) = at.left.pop_front() {
                let path = at.path.join(&*node.name());
                if let Some(below) = self.directory(path, node, base, worker)? {
                    above.push((std::mem::replace(&mut at, below), number));
                }
                continue;
            }
            let nodes = at.nodes.into_iter().flatten().collect();
            at.node.subtree = Some(self.chunks.tree(nodes, &mut worker.packing)?);
            let Some((mut parent, number)) = above.pop() else { return Ok(at.node) };
            if let Some(place) = parent.nodes.get_mut(number) {
                *place = Some(at.node);
            }
            at = parent;
        }
    }

    /// Stores what is in a directory, but the directories among it. None if it is gone.
    fn directory(
        &self,
        path: PathBuf,
        node: Node,
        base: Option<TreeId>,
        worker: &mut Worker,
    ) -> Result<Option<Directory>> {
        let Some(names) = self.source.list(&path)? else { return Ok(None) };
        let mut before = self.nodes_of(base);
        let store = |name: &OsString, worker: &mut Worker| {
            self.entry(&path.join(name), name, before.get(name), worker)
        };
        let mut nodes = if names.len() < MANY {
            names.iter().map(|name| store(name, worker)).collect::<Result<Vec<_>>>()?
        } else {
            in_parallel(0..names.len() as u64, |number, worker| {
                let name = usize::try_from(number).ok().and_then(|number| names.get(number));
                store(name.ok_or_else(|| Error::internal("a name too many"))?, worker)
            })?
        };
        let mut left = VecDeque::new();
        for (number, place) in nodes.iter_mut().enumerate() {
            if let Some(node) = place.take_if(|node| node.is_dir()) {
                let base = before.remove(&*node.name()).and_then(|before| before.subtree);
                left.push_back((number, node, base));
            }
        }
        Ok(Some(Directory { path, node, nodes, left }))
    }

    /// What a directory of the base holds; nothing if it cannot be read.
    fn nodes_of(&self, tree: Option<TreeId>) -> HashMap<OsString, Node> {
        let tree = tree.and_then(|tree| self.indexed.get_tree(&tree).ok());
        let nodes = tree.map(|tree| tree.nodes).unwrap_or_default();
        nodes.into_iter().map(|node| (node.name().into_owned(), node)).collect()
    }

    /// Stores what is to be stored of an entry before the directory that it is in. None if it is gone.
    fn entry(
        &self,
        path: &Path,
        name: &OsString,
        before: Option<&Node>,
        worker: &mut Worker,
    ) -> Result<Option<Node>> {
        self.session.go_on()?;
        let Some(found) = self.source.look(path)? else { return Ok(None) };
        let mut node = to_node(name, &found.entry)?;
        if found.entry.kind != EntryKind::File {
            return Ok(Some(node));
        }
        let size = found.entry.size;
        self.progress.add_total(size);
        self.size.fetch_add(size, Ordering::Relaxed);
        let link = is_linked(&found.entry).then_some((found.entry.device, found.entry.inode));
        let born = link.and_then(|_| found.born());
        if let Some(link) = &link
            && let Some(first) = self.links().get(link).filter(|first| first.is(&found, born))
        {
            self.session.count(size);
            return Ok(Some(first.named(node)));
        }
        let content = match before.and_then(|before| self.unchanged(before, &node)) {
            Some(content) => {
                self.session.count(size);
                content
            }
            None => match self.content(&found, path, worker) {
                Ok(content) => content,
                Err(error) => {
                    // A failure to store is no file's own, and stays one.
                    self.session.go_on()?;
                    return match self.source.look(path)? {
                        None => Ok(None),
                        Some(_) => Err(error),
                    };
                }
            },
        };
        node.content = Some(content);
        Ok(Some(match link {
            Some(link) => self.linked(link, &found, born, node),
            None => node,
        }))
    }

    /// The node of a file that has several names, which was stored.
    fn linked(
        &self,
        link: (u64, u64),
        found: &Found,
        born: Option<FileTime>,
        mut node: Node,
    ) -> Node {
        match self.links().entry(link) {
            Entry::Vacant(place) => {
                let changed = found.entry.changed;
                place.insert(Linked { born, changed, node: node.clone() });
            }
            // Another thread was faster.
            Entry::Occupied(first) if first.get().is(found, born) => {
                return first.get().named(node);
            }
            // A restore makes one file of two that have the same numbers, and links.
            Entry::Occupied(_) => {
                (node.meta.device_id, node.meta.inode, node.meta.links) = (0, 0, 1);
            }
        }
        node
    }

    fn links(&self) -> std::sync::MutexGuard<'_, HashMap<(u64, u64), Linked>> {
        lock(&self.links)
    }

    /// The content of a file that has not changed since the base, if all of it can be had.
    fn unchanged(&self, before: &Node, now: &Node) -> Option<Vec<DataId>> {
        let (old, new) = (&before.meta, &now.meta);
        let same = before.is_file()
            && (old.size, old.inode, old.mtime, old.ctime)
                == (new.size, new.inode, new.mtime, new.ctime)
            && new.ctime < self.settled;
        let content = before.content.as_ref().filter(|_| same)?;
        content.iter().all(|chunk| self.chunks.has(chunk)).then(|| content.clone())
    }

    /// Reads and stores the content of a file, as long as it was when it was looked at.
    fn content(&self, found: &Found, path: &Path, worker: &mut Worker) -> Result<Vec<DataId>> {
        let size = found.entry.size;
        if size == 0 {
            return Ok(Vec::new());
        }
        let file = found.open()?;
        let data = match size > CHUNK {
            true => data_ranges(&file, size).map_err(|error| unreadable(path, error))?,
            false => std::iter::once(0..size).collect(),
        };
        let store = |chunk: &Range<u64>, worker: &mut Worker| {
            self.session.go_on()?;
            let id = self.chunk(&file, chunk, touches(&data, chunk), path, worker)?;
            self.session.count(chunk.end - chunk.start);
            Ok(id)
        };
        if size < LARGE {
            return chunk_ranges(&(0..size)).map(|chunk| store(&chunk, worker)).collect();
        }
        in_parallel(0..size.div_ceil(CHUNK), |number, worker| {
            let start = number * CHUNK;
            store(&(start..(start + CHUNK).min(size)), worker)
        })
    }

    fn chunk(
        &self,
        file: &File,
        range: &Range<u64>,
        may_hold_data: bool,
        path: &Path,
        worker: &mut Worker,
    ) -> Result<DataId> {
        let length = range.end - range.start;
        if !may_hold_data {
            return self.chunks.zeros(length, &mut worker.packing);
        }
        worker.buffer.resize(usize::try_from(length).unwrap_or_default(), 0);
        file.read_exact_at(&mut worker.buffer, range.start)
            .map_err(|error| unreadable(path, error))?;
        self.read.fetch_add(length, Ordering::Relaxed);
        self.chunks.chunk(&worker.buffer, &mut worker.packing)
    }
}

fn unreadable(path: &Path, error: std::io::Error) -> Error {
    let shown = path.display();
    match error.kind() {
        std::io::ErrorKind::UnexpectedEof => Error::conflict(format!(
            "the file {shown} of the volume became shorter while it was read"
        ))
        .hint("try again, or back up a snapshot"),
        _ => Error::io(format!("cannot read the file {shown} of the volume"), error),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::MetadataExt;

    use super::super::store::Limits;
    use super::super::{Location, RepositorySettings, S3Settings, Secret, SecretSource};
    use super::*;

    /// Makes files until one has this inode again.
    fn reuse(directory: &Path, inode: u64, content: &str) -> PathBuf {
        for number in 0..10_000 {
            let path = directory.join(format!("new-{number}"));
            fs::write(&path, content).unwrap();
            if fs::metadata(&path).unwrap().ino() == inode {
                return path;
            }
        }
        panic!("this filesystem does not give an inode again");
    }

    #[test]
    fn a_file_that_gets_the_inode_of_one_that_went_is_another_one() {
        let place = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let settings = RepositorySettings {
            name: "main".parse().unwrap(),
            node: "node-1".to_owned(),
            location: Location::Directory(place.path().join("repository")),
            password: SecretSource::Given(Secret::new("secret")),
            cache: place.path().join("cache"),
            mountpoint: place.path().join("mounted"),
            limits: Limits { upload: None, download: None, connections: 1 },
            s3: S3Settings::default(),
        };
        let repository = Repository::new(settings, runtime.handle().clone());
        repository.init().unwrap();
        let session = repository.session(&Arc::default()).unwrap();
        let opened = repository.open(&session).unwrap();
        let cipher = repository.cipher(&opened).unwrap();
        let (indexed, _) = repository.index(&session).unwrap();
        let directory = place.path().join("volume");
        fs::create_dir(&directory).unwrap();
        let source = Tree::open(&directory).unwrap();
        let archiver = Archiver {
            session: &session,
            indexed: &indexed,
            chunks: Chunks::new(&session, &indexed, &cipher),
            source: &source,
            settled: None,
            links: Mutex::default(),
            read: AtomicU64::new(0),
            size: AtomicU64::new(0),
            progress: &Progress::default(),
        };
        let mut worker = Worker::new().unwrap();
        let mut store = |name: &str| {
            let found = archiver.entry(name.as_ref(), &name.into(), None, &mut worker);
            found.unwrap().unwrap()
        };
        let (one, two) = (directory.join("one"), directory.join("two"));
        fs::write(&one, "content").unwrap();
        fs::hard_link(&one, &two).unwrap();
        let first = store("one");
        // It is written to before its other name is met.
        fs::write(&one, "a longer content").unwrap();
        let second = store("two");
        assert_eq!((second.name.as_str(), &second.content), ("two", &first.content));
        assert_eq!(second.meta, first.meta, "the names of one file do not differ");

        let inode = fs::metadata(&one).unwrap().ino();
        fs::remove_file(&one).unwrap();
        fs::remove_file(&two).unwrap();
        let new = reuse(&directory, inode, "another");
        fs::hard_link(&new, &two).unwrap();
        for name in [new.file_name().unwrap().to_str().unwrap(), "two"] {
            let node = store(name);
            assert_ne!(node.content, first.content, "{name} has the content of a file that went");
            let link = |node: &Node| (node.meta.links > 1).then_some(node.meta.inode);
            assert_ne!(link(&node), link(&first), "{name} would be restored as a link to it");
        }
    }
}
