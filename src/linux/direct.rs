//! Writing large files past the page cache. What lies in the cache is written to the disk in one burst, and a small
//! durable write of somebody else waits behind it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::libc::{O_DIRECT, O_TMPFILE};
use rustix::fs::{AtFlags, CWD, linkat};

/// What is written at once: as much as keeps a disk busy, and no more than others can wait for.
const PIECE: usize = 1 << 20;

/// What direct I/O is aligned to: no less than the blocks of any disk.
const ALIGNMENT: usize = 4096;

/// Writes a file at `path`, in place of one that may be there; it is whole and durable when this returns, and before
/// that nobody can see it. The directories above it are made.
///
/// `Unsupported`, with nothing done, where the filesystem has no direct I/O or no files without a name.
pub(crate) fn write_file<'a>(
    path: &Path,
    content: impl IntoIterator<Item = &'a [u8]>,
) -> io::Result<()> {
    let directory = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let file = open_nameless(directory)?;
    write_content(&file, content)?;
    file.sync_all()?;
    publish(&file, path)?;
    File::open(directory)?.sync_all()
}

/// A file that is gone with its descriptor, unless it gets a name.
fn open_nameless(directory: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).custom_flags(O_TMPFILE | O_DIRECT);
    let opened = match options.open(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            make_directory(directory)?;
            options.open(directory)
        }
        opened => opened,
    };
    opened.map_err(|error| match error.raw_os_error() {
        // Older kernels take it for an attempt to write the directory.
        Some(nix::libc::EISDIR | nix::libc::EINVAL | nix::libc::EOPNOTSUPP) => {
            io::Error::new(io::ErrorKind::Unsupported, error)
        }
        _ => error,
    })
}

/// Makes a directory and those above it, durably.
fn make_directory(directory: &Path) -> io::Result<()> {
    let above = directory.parent().ok_or(io::ErrorKind::NotFound)?;
    match std::fs::create_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            make_directory(above)?;
            return make_directory(directory);
        }
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    File::open(above)?.sync_all()
}

fn write_content<'a>(file: &File, content: impl IntoIterator<Item = &'a [u8]>) -> io::Result<()> {
    let mut memory = vec![0; PIECE + ALIGNMENT];
    let start = memory.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT);
    let piece = &mut memory[start..start + PIECE];
    let (mut written, mut filled) = (0, 0);
    for mut bytes in content {
        while !bytes.is_empty() {
            let length = bytes.len().min(PIECE - filled);
            let (now, later) = bytes.split_at(length);
            piece[filled..filled + length].copy_from_slice(now);
            bytes = later;
            filled += length;
            if filled == PIECE {
                file.write_all_at(piece, written)?;
                written += PIECE as u64;
                filled = 0;
            }
        }
    }
    if filled > 0 {
        let whole = filled.next_multiple_of(ALIGNMENT);
        piece[filled..whole].fill(0);
        file.write_all_at(&piece[..whole], written)?;
        file.set_len(written + filled as u64)?;
    }
    Ok(())
}

/// Gives the file its name.
fn publish(file: &File, path: &Path) -> io::Result<()> {
    let nameless = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    let link = |name: &Path| linkat(CWD, &nameless, CWD, name, AtFlags::SYMLINK_FOLLOW);
    match link(path) {
        // A link replaces nothing; a rename does.
        Err(rustix::io::Errno::EXIST) => {
            let mut beside = path.as_os_str().to_owned();
            // As object_store names what is on its way, which it never lists.
            beside.push(format!("#{}", uuid::Uuid::new_v4().as_u128()));
            let beside = PathBuf::from(beside);
            link(&beside)?;
            std::fs::rename(&beside, path).inspect_err(|_| drop(std::fs::remove_file(&beside)))
        }
        linked => Ok(linked?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// On the disk: /tmp may be memory, which has no direct I/O.
    fn place() -> tempfile::TempDir {
        tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap()
    }

    #[test]
    fn every_length_is_written_as_it_is() {
        let place = place();
        let lengths = [0, 1, ALIGNMENT - 1, ALIGNMENT, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE + 77];
        for length in lengths {
            let content: Vec<u8> =
                (0..length).map(|i| u8::try_from(i * 31 % 251).unwrap()).collect();
            let path = place.path().join(format!("below/it/{length}"));
            write_file(&path, content.chunks(100_003)).unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), content, "{length}");
        }
    }

    #[test]
    fn a_file_is_replaced_whole_and_nothing_is_left_beside_it() {
        let place = place();
        let path = place.path().join("file");
        write_file(&path, [&b"one and more"[..]]).unwrap();
        write_file(&path, [&b"two"[..]]).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_fails_leaves_nothing() {
        let place = place();
        std::fs::create_dir(place.path().join("taken")).unwrap();
        assert!(write_file(&place.path().join("taken"), [&b"x"[..]]).is_err());
        assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_filesystem_without_it_says_so() {
        let error = write_file(Path::new("/sys/kernel/x"), [&b"x"[..]]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::Unsupported, "{error}");
    }
}
