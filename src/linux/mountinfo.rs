//! The kernel's list of mounts, `/proc/<pid>/mountinfo`.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use super::Mounted;
use crate::error::{Error, Result};

/// One line of a mountinfo file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// The kernel's number of the mount, unique while it exists.
    pub id: u64,
    /// What every user of the list wants to know.
    pub mounted: Mounted,
}

/// The mounts of our own namespace, in the kernel's order: a later one hides an earlier one.
pub(crate) fn own() -> Result<Vec<Entry>> {
    read(Path::new("/proc/self/mountinfo"))
}

/// The mounts in one mountinfo file.
pub(crate) fn read(path: &Path) -> Result<Vec<Entry>> {
    let text = std::fs::read(path)
        .map_err(|error| Error::io(format!("cannot read {}", path.display()), error))?;
    parse(&text).map_err(|error| error.context(format!("cannot read {}", path.display())))
}

/// The topmost mount at exactly `target`.
pub(crate) fn at(target: &Path) -> Result<Option<Mounted>> {
    let entries = own()?;
    Ok(entries.into_iter().map(|entry| entry.mounted).rfind(|mounted| mounted.target == target))
}

/// Reads the text of a mountinfo file.
///
/// # Errors
/// A line that is not as proc(5) says: a mount that we cannot see is worse than an error.
pub(crate) fn parse(text: &[u8]) -> Result<Vec<Entry>> {
    text.split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| {
            parse_line(line).ok_or_else(|| {
                let shown: String = String::from_utf8_lossy(line).chars().take(200).collect();
                Error::internal(format!("not a line of mountinfo: {shown:?}"))
            })
        })
        .collect()
}

fn parse_line(line: &[u8]) -> Option<Entry> {
    let mut words = line.split(|byte| *byte == b' ');
    let mut next = || words.next();
    let id = number(next()?)?;
    let _parent = next()?;
    let device = next()?;
    let colon = device.iter().position(|byte| *byte == b':')?;
    let device = (number(&device[..colon])?, number(&device[colon + 1..])?);
    let root = path(next()?);
    let target = path(next()?);
    let mount_options = next()?;
    // Optional fields, as many as there are, up to a lone hyphen.
    while next()? != b"-" {}
    let filesystem = text(next()?);
    let source = text(next()?);
    let super_options = next().unwrap_or_default();
    let read_only = [mount_options, super_options]
        .iter()
        .any(|options| options.split(|byte| *byte == b',').any(|option| option == b"ro"));
    Some(Entry { id, mounted: Mounted { target, source, filesystem, root, device, read_only } })
}

fn number<T: std::str::FromStr>(word: &[u8]) -> Option<T> {
    std::str::from_utf8(word).ok()?.parse().ok()
}

fn path(word: &[u8]) -> PathBuf {
    PathBuf::from(OsString::from_vec(unescape(word)))
}

fn text(word: &[u8]) -> String {
    String::from_utf8_lossy(&unescape(word)).into_owned()
}

/// The kernel writes blank, tab, newline, backslash and `#` as `\` and three octal digits.
fn unescape(word: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(word.len());
    let mut rest = word;
    while let Some((first, tail)) = rest.split_first() {
        match (first, tail) {
            (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', tail @ ..]) => {
                bytes.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest = tail;
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_bind_mount_shows_its_root_and_its_propagation_is_skipped() {
        let text =
            b"36 35 98:0 /data /mnt\\040x rw,noatime master:1 shared:2 - ext4 /dev/loop0 ro\n";
        let entries = parse(text).unwrap();
        assert_eq!(entries[0].id, 36);
        let mounted = &entries[0].mounted;
        assert_eq!(mounted.device, (98, 0));
        assert_eq!(mounted.root, Path::new("/data"));
        assert_eq!(mounted.target, Path::new("/mnt x"));
        assert_eq!((mounted.filesystem.as_str(), mounted.source.as_str()), ("ext4", "/dev/loop0"));
        assert!(mounted.read_only, "the filesystem is, if not the mount");
    }

    #[test]
    fn a_line_that_cannot_be_read_is_an_error() {
        for bad in
            [&b"1 2"[..], b"a b c", b"36 35 98-0 / /mnt rw - ext4 x rw", b"36 35 98:0 / /m rw"]
        {
            assert!(parse(bad).is_err());
        }
    }

    #[test]
    fn the_running_kernel_can_be_read() {
        let entries = own().unwrap();
        assert!(entries.iter().any(|entry| entry.mounted.target == Path::new("/")));
    }

    /// As `seq_path` of the kernel does it.
    fn escape(bytes: &[u8]) -> Vec<u8> {
        let mut text = Vec::new();
        for byte in bytes {
            if b" \t\n\\#".contains(byte) {
                text.extend(format!("\\{byte:03o}").bytes());
            } else {
                text.push(*byte);
            }
        }
        text
    }

    proptest! {
        #[test]
        fn any_path_comes_back(path in prop::collection::vec(1u8.., 1..60)) {
            prop_assert_eq!(unescape(&escape(&path)), path.clone());
            let mut line = b"1 2 3:4 / ".to_vec();
            line.extend(escape(&path));
            line.extend(b" rw - xfs none rw\n");
            let entries = parse(&line).unwrap();
            prop_assert_eq!(entries[0].mounted.target.as_os_str().as_encoded_bytes(), &path[..]);
        }

        #[test]
        fn no_text_breaks_the_parser(text in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&text);
        }
    }
}
