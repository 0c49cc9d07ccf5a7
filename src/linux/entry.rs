//! What lies in a tree of files, told and made by descriptors of one root: whoever writes there at the same time
//! cannot lead us out of it with a symbolic link, a mount or a name of its own.

use std::ffi::{CStr, OsStr, OsString};
use std::fs::File;
use std::io::ErrorKind as Io;
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, ResolveFlags, StatxFlags, Timespec, Timestamps, XattrFlags,
};
use rustix::io::Errno;

use super::mount::open_directory;
use crate::error::{Error, ErrorKind, Result};

/// What an entry of a directory is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum EntryKind {
    File,
    Directory,
    Symlink(OsString),
    /// With its device number.
    BlockDevice(u64),
    /// With its device number.
    CharDevice(u64),
    Fifo,
    Socket,
}

/// Seconds and nanoseconds since 1970; the nanoseconds count forward.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct FileTime {
    pub(crate) seconds: i64,
    pub(crate) nanoseconds: u32,
}

/// An entry of a directory, without its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) kind: EntryKind,
    /// Permissions, with the bits for set-user-id, set-group-id and sticky.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) modified: FileTime,
    pub(crate) changed: FileTime,
    /// Bytes of a file; 0 of all else.
    pub(crate) size: u64,
    pub(crate) device: u64,
    pub(crate) inode: u64,
    pub(crate) links: u64,
    /// Extended attributes, access lists among them, by their names.
    pub(crate) attributes: Vec<(OsString, Vec<u8>)>,
}

/// The root of a tree of files. All paths are relative to it; the empty one is the root itself.
#[derive(Debug)]
pub(crate) struct Tree {
    root: OwnedFd,
    shown: PathBuf,
}

/// An entry that cannot become another one any more.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) entry: Entry,
    descriptor: OwnedFd,
    shown: PathBuf,
}

impl Tree {
    pub(crate) fn open(directory: &Path) -> Result<Self> {
        let (root, _) = open_directory(directory)?;
        Ok(Self { root, shown: directory.to_owned() })
    }

    fn failed(&self, verb: &str, path: &Path, error: impl Into<std::io::Error>) -> Error {
        failed(verb, &self.shown.join(path), error.into())
    }

    fn open_at(&self, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat2(&self.root, path, flags, Mode::empty(), resolve)
    }

    /// The names in a directory, in the order of their bytes. None if it is gone.
    pub(crate) fn list(&self, path: &Path) -> Result<Option<Vec<OsString>>> {
        let failed = |errno| self.failed("list", path, errno);
        let opened = match self.open_at(path, OFlags::RDONLY | OFlags::DIRECTORY) {
            Err(Errno::NOENT) => return Ok(None),
            opened => opened.map_err(failed)?,
        };
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::new(opened).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                names.push(OsString::from_vec(name.to_vec()));
            }
        }
        names.sort_unstable();
        Ok(Some(names))
    }

    /// Looks at an entry. None if it is gone.
    pub(crate) fn look(&self, path: &Path) -> Result<Option<Found>> {
        let descriptor = match self.open_at(path, OFlags::PATH) {
            Err(Errno::NOENT) => return Ok(None),
            opened => opened.map_err(|errno| self.failed("look at", path, errno))?,
        };
        let entry = entry_of(&descriptor).map_err(|errno| self.failed("look at", path, errno))?;
        Ok(Some(Found { entry, descriptor, shown: self.shown.join(path) }))
    }

    /// Makes an entry that is not there yet, for the owner alone. A file has its size and reads as zeros.
    pub(crate) fn make(&self, path: &Path, entry: &Entry) -> Result<()> {
        let private = Mode::from_raw_mode(0o700);
        let node = |kind, device| rustix::fs::mknodat(&self.root, path, kind, private, device);
        let made = match &entry.kind {
            EntryKind::Directory => rustix::fs::mkdirat(&self.root, path, private),
            EntryKind::Symlink(to) => rustix::fs::symlinkat(to.as_os_str(), &self.root, path),
            EntryKind::BlockDevice(device) => node(FileType::BlockDevice, *device),
            EntryKind::CharDevice(device) => node(FileType::CharacterDevice, *device),
            EntryKind::Fifo => node(FileType::Fifo, 0),
            EntryKind::Socket => node(FileType::Socket, 0),
            EntryKind::File => node(FileType::RegularFile, 0).and_then(|()| {
                let file = self.open_at(path, OFlags::WRONLY)?;
                rustix::fs::ftruncate(file, entry.size)
            }),
        };
        made.map_err(|errno| self.failed("make", path, errno))
    }

    /// Makes another name for a file.
    pub(crate) fn link(&self, from: &Path, to: &Path) -> Result<()> {
        rustix::fs::linkat(&self.root, from, &self.root, to, AtFlags::empty())
            .map_err(|errno| self.failed("link", to, errno))
    }

    /// Writes into a file that [`Tree::make`] has made. Blocks of zeros stay holes.
    pub(crate) fn write(&self, path: &Path, mut offset: u64, data: &[u8]) -> Result<()> {
        const BLOCK: usize = 4096;
        let failed = |error: std::io::Error| self.failed("write", path, error);
        let file: File =
            self.open_at(path, OFlags::WRONLY).map_err(|errno| failed(errno.into()))?.into();
        let is_hole = |block: &[u8]| block.iter().fold(0, |all, byte| all | byte) == 0;
        let blocks: Vec<&[u8]> = data.chunks(BLOCK).collect();
        let mut done = 0;
        for run in blocks.chunk_by(|one, next| is_hole(one) == is_hole(next)) {
            let length = run.iter().map(|block| block.len()).sum::<usize>();
            if !run.first().is_some_and(|block| is_hole(block)) {
                file.write_all_at(&data[done..done + length], offset).map_err(failed)?;
            }
            done += length;
            offset += length as u64;
        }
        Ok(())
    }

    /// Gives an entry its owner, mode, attributes and time of modification.
    pub(crate) fn dress(&self, path: &Path, entry: &Entry) -> Result<()> {
        let descriptor = self
            .open_at(path, OFlags::PATH)
            .map_err(|errno| self.failed("look at", path, errno))?;
        let magic = magic_link(&descriptor);
        let (uid, gid) =
            (rustix::fs::Uid::from_raw(entry.uid), rustix::fs::Gid::from_raw(entry.gid));
        // A change of the owner takes away set-user-id and capabilities, so it comes first.
        rustix::fs::chownat(&descriptor, "", Some(uid), Some(gid), AtFlags::EMPTY_PATH)
            .map_err(|errno| self.failed("set the owner of", path, errno))?;
        if !matches!(entry.kind, EntryKind::Symlink(_)) {
            rustix::fs::chmod(&magic, Mode::from_raw_mode(entry.mode))
                .map_err(|errno| self.failed("set the mode of", path, errno))?;
        }
        for (name, value) in &entry.attributes {
            rustix::fs::setxattr(&magic, name.as_os_str(), value, XattrFlags::empty()).map_err(
                |errno| {
                    let verb = format!("set the attribute {} of", name.display());
                    self.failed(&verb, path, errno)
                },
            )?;
        }
        let time =
            Timespec { tv_sec: entry.modified.seconds, tv_nsec: entry.modified.nanoseconds.into() };
        let times = Timestamps { last_access: time, last_modification: time };
        rustix::fs::utimensat(&descriptor, "", &times, AtFlags::EMPTY_PATH)
            .map_err(|errno| self.failed("set the time of", path, errno))
    }

    /// Has all that was made here reach the disk.
    pub(crate) fn sync(&self) -> Result<()> {
        let failed = |errno| self.failed("flush", Path::new(""), errno);
        let root = self.open_at(Path::new(""), OFlags::RDONLY | OFlags::DIRECTORY);
        rustix::fs::syncfs(root.map_err(failed)?).map_err(failed)
    }
}

impl Found {
    /// When it was made; none if its filesystem does not tell. It tells a file from a later one that has got
    /// the same inode.
    pub(crate) fn born(&self) -> Option<FileTime> {
        let flags = AtFlags::EMPTY_PATH;
        let told = rustix::fs::statx(&self.descriptor, "", flags, StatxFlags::BTIME).ok()?;
        let known = told.stx_mask & StatxFlags::BTIME.bits() != 0;
        known.then_some(FileTime {
            seconds: told.stx_btime.tv_sec,
            nanoseconds: told.stx_btime.tv_nsec,
        })
    }

    /// Opens a file to be read. Nothing else is opened: that can wait for ever, or do something.
    pub(crate) fn open(&self) -> Result<File> {
        if self.entry.kind != EntryKind::File {
            return Err(Error::internal(format!("{} is no file", self.shown.display())));
        }
        File::open(magic_link(&self.descriptor)).map_err(|error| failed("open", &self.shown, error))
    }
}

fn failed(verb: &str, shown: &Path, error: std::io::Error) -> Error {
    let mounted = error.kind() == Io::CrossesDevices;
    match Error::io(format!("cannot {verb} {}", shown.display()), error) {
        // To a caller of ours that would mean that there is no backup.
        error if error.kind() == ErrorKind::NotFound => error.with_kind(ErrorKind::Internal),
        error if mounted => error.hint("another filesystem is mounted there"),
        error => error,
    }
}

/// The ranges of a file of `size` bytes that may hold anything but zeros, ascending and disjoint.
pub(crate) fn data_ranges(file: &File, size: u64) -> std::io::Result<Vec<Range<u64>>> {
    let mut ranges = Vec::new();
    let mut at = 0;
    while at < size {
        let start = match rustix::fs::seek(file, rustix::fs::SeekFrom::Data(at)) {
            Ok(start) => start,
            // Only a hole is left.
            Err(Errno::NXIO) => break,
            // This filesystem cannot tell.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => {
                ranges.push(at..size);
                break;
            }
            Err(errno) => return Err(errno.into()),
        };
        if start >= size {
            break;
        }
        let end = rustix::fs::seek(file, rustix::fs::SeekFrom::Hole(start))?.min(size);
        if end <= start {
            // It changes meanwhile.
            ranges.push(start..size);
            break;
        }
        ranges.push(start..end);
        at = end;
    }
    Ok(ranges)
}

/// The path of what a descriptor stands for, even if that has no other one any more.
fn magic_link(descriptor: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", descriptor.as_raw_fd()))
}

fn entry_of(descriptor: &OwnedFd) -> rustix::io::Result<Entry> {
    let stat = rustix::fs::fstat(descriptor)?;
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => EntryKind::File,
        FileType::Directory => EntryKind::Directory,
        FileType::Symlink => {
            let to = rustix::fs::readlinkat(descriptor, "", Vec::new())?;
            EntryKind::Symlink(OsString::from_vec(to.into_bytes()))
        }
        FileType::BlockDevice => EntryKind::BlockDevice(stat.st_rdev),
        FileType::CharacterDevice => EntryKind::CharDevice(stat.st_rdev),
        FileType::Fifo => EntryKind::Fifo,
        FileType::Socket => EntryKind::Socket,
        FileType::Unknown => return Err(Errno::NOTSUP),
    };
    let time = |seconds: i64, nanoseconds: u64| FileTime {
        seconds,
        nanoseconds: u32::try_from(nanoseconds).unwrap_or_default(),
    };
    Ok(Entry {
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        modified: time(stat.st_mtime, stat.st_mtime_nsec),
        changed: time(stat.st_ctime, stat.st_ctime_nsec),
        size: match kind {
            EntryKind::File => u64::try_from(stat.st_size).unwrap_or_default(),
            _ => 0,
        },
        device: stat.st_dev,
        inode: stat.st_ino,
        links: stat.st_nlink,
        attributes: attributes_of(descriptor)?,
        kind,
    })
}

/// The attributes that mean the same everywhere. `system.` has, besides the access lists of POSIX, what only one
/// server understands.
fn attributes_of(descriptor: &OwnedFd) -> rustix::io::Result<Vec<(OsString, Vec<u8>)>> {
    const POSIX_ACL: &[u8] = b"system.posix_acl_";
    let magic = magic_link(descriptor);
    let list = match grown(|buffer| rustix::fs::listxattr(&magic, buffer)) {
        Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
        list => list?,
    };
    let mut attributes = Vec::new();
    for name in list.split_inclusive(|byte| *byte == 0) {
        let Ok(name) = CStr::from_bytes_with_nul(name) else { continue };
        let bytes = name.to_bytes();
        if bytes.starts_with(b"system.") && !bytes.starts_with(POSIX_ACL) {
            continue;
        }
        match grown(|buffer| rustix::fs::getxattr(&magic, name, buffer)) {
            Ok(value) => attributes.push((OsStr::from_bytes(bytes).to_owned(), value)),
            // It has gone since it was listed.
            Err(Errno::NODATA) => {}
            Err(errno) => return Err(errno),
        }
    }
    attributes.sort_unstable();
    Ok(attributes)
}

/// What a call writes into a buffer. The kernel has a largest one; most want far less.
fn grown(call: impl Fn(&mut [u8]) -> rustix::io::Result<usize>) -> rustix::io::Result<Vec<u8>> {
    const USUAL: usize = 256;
    const LARGEST: usize = 64 << 10;
    let mut buffer = vec![0; USUAL];
    let length = match call(&mut buffer) {
        Err(Errno::RANGE) => {
            buffer.resize(LARGEST, 0);
            call(&mut buffer)?
        }
        length => length?,
    };
    buffer.truncate(length);
    Ok(buffer)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn no_link_leads_out_of_a_tree_and_what_is_gone_is_none() {
        let place = tempfile::tempdir().unwrap();
        let root = place.path().join("root");
        std::fs::create_dir_all(root.join("d")).unwrap();
        std::fs::write(place.path().join("secret"), "x").unwrap();
        symlink("..", root.join("out")).unwrap();
        let tree = Tree::open(&root).unwrap();
        for path in ["out/secret", "../secret", "/etc/passwd", "d/../../secret"] {
            assert!(tree.look(Path::new(path)).is_err(), "{path}");
        }
        assert!(tree.list(Path::new("out")).is_err());
        let link = tree.look(Path::new("out")).unwrap().unwrap();
        assert_eq!(link.entry.kind, EntryKind::Symlink("..".into()));
        assert!(link.open().is_err());
        assert!(tree.look(Path::new("gone")).unwrap().is_none());
        assert!(tree.list(Path::new("d/gone")).unwrap().is_none());
        assert_eq!(tree.list(Path::new("")).unwrap().unwrap(), ["d", "out"]);
    }

    #[test]
    fn what_was_found_stays_the_one_that_is_opened() {
        let place = tempfile::tempdir().unwrap();
        std::fs::write(place.path().join("file"), "old").unwrap();
        let tree = Tree::open(place.path()).unwrap();
        let found = tree.look(Path::new("file")).unwrap().unwrap();
        std::fs::remove_file(place.path().join("file")).unwrap();
        nix::unistd::mkfifo(&place.path().join("file"), nix::sys::stat::Mode::S_IRUSR).unwrap();
        assert_eq!(std::io::read_to_string(found.open().unwrap()).unwrap(), "old");
        let fifo = tree.look(Path::new("file")).unwrap().unwrap();
        assert!(fifo.open().is_err(), "nobody waits for a writer");
    }

    #[test]
    fn only_what_is_no_hole_is_data() {
        let file = tempfile::tempfile().unwrap();
        let size = 8 << 20;
        file.set_len(size).unwrap();
        assert_eq!(data_ranges(&file, size).unwrap(), []);
        file.write_all_at(b"x", 5 << 20).unwrap();
        let ranges = data_ranges(&file, size).unwrap();
        assert!(ranges.iter().any(|range| range.contains(&(5 << 20))), "{ranges:?}");
        assert!(ranges.iter().all(|range| range.end <= size));
    }
}
