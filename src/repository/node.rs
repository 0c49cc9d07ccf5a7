//! Entries of a volume's tree as the repository has them.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use rustic_core::jiff::Timestamp;
use rustic_core::repofile::{Metadata, Node, NodeType};

use crate::error::{Error, Result};
use crate::linux::entry::{Entry, EntryKind, FileTime};

/// Marks in a mode, as Go has them, with what they are in the kernel's: 0 is told by the kind.
const MODES: [(u32, u32); 3] = [(1 << 23, 0o4000), (1 << 22, 0o2000), (1 << 20, 0o1000)];

/// An entry named `name`, without its content.
pub(super) fn to_node(name: &OsStr, entry: &Entry) -> Result<Node> {
    let (kind, mark) = match &entry.kind {
        EntryKind::File => (NodeType::File, 0),
        EntryKind::Directory => (NodeType::Dir, 1 << 31),
        EntryKind::Symlink(to) => (NodeType::from_link(to.as_ref()), 1 << 27),
        EntryKind::BlockDevice(device) => (NodeType::Dev { device: *device }, 1 << 26),
        EntryKind::CharDevice(device) => (NodeType::Chardev { device: *device }, 1 << 26 | 1 << 21),
        EntryKind::Fifo => (NodeType::Fifo, 1 << 25),
        EntryKind::Socket => (NodeType::Socket, 1 << 24),
    };
    let special = MODES.iter().filter(|(_, bit)| entry.mode & bit != 0).map(|(mark, _)| mark);
    let modified = Some(to_timestamp(entry.modified));
    let mut meta = Metadata {
        mode: Some(entry.mode & 0o777 | mark | special.sum::<u32>()),
        mtime: modified,
        atime: modified,
        ctime: Some(to_timestamp(entry.changed)),
        uid: Some(entry.uid),
        gid: Some(entry.gid),
        inode: entry.inode,
        // It tells hard links apart, and otherwise only that the volume was mounted anew.
        device_id: if is_linked(entry) { entry.device } else { 0 },
        size: entry.size,
        // What a directory has of them says nothing, and changes its parent.
        links: if entry.kind == EntryKind::Directory { 0 } else { entry.links },
        ..Metadata::default()
    };
    let names = entry.attributes.iter().map(|(name, _)| {
        let name = name.to_str().ok_or_else(|| {
            let what = format!("the attribute {} cannot be stored", name.display());
            Error::unsupported(what).hint("a repository's attributes have names in UTF-8")
        })?;
        Ok(serde_json::json!({ "name": name, "value": null }))
    });
    // Their type has no public name.
    meta.extended_attributes = serde_json::from_value(names.collect::<Result<_>>()?)
        .map_err(|error| Error::internal("cannot describe attributes").caused_by(error))?;
    for (attribute, (_, value)) in meta.extended_attributes.iter_mut().zip(&entry.attributes) {
        attribute.value = Some(value.clone());
    }
    Ok(Node::new_node(name, kind, meta))
}

/// What an entry was. Nobody is its owner if it does not tell.
pub(super) fn from_node(node: &Node) -> Entry {
    let meta = &node.meta;
    let mode = meta.mode.unwrap_or_default();
    let special = MODES.iter().filter(|(mark, _)| mode & mark != 0).map(|(_, bit)| bit);
    Entry {
        kind: match &node.node_type {
            NodeType::File => EntryKind::File,
            NodeType::Dir => EntryKind::Directory,
            link @ NodeType::Symlink { .. } => {
                EntryKind::Symlink(link.to_link().as_os_str().to_owned())
            }
            NodeType::Dev { device } => EntryKind::BlockDevice(*device),
            NodeType::Chardev { device } => EntryKind::CharDevice(*device),
            NodeType::Fifo => EntryKind::Fifo,
            NodeType::Socket => EntryKind::Socket,
        },
        mode: mode & 0o777 | special.sum::<u32>(),
        uid: meta.uid.unwrap_or_default(),
        gid: meta.gid.unwrap_or_default(),
        modified: from_timestamp(meta.mtime.unwrap_or_default()),
        changed: from_timestamp(meta.ctime.unwrap_or_default()),
        size: if node.is_file() { meta.size } else { 0 },
        device: meta.device_id,
        inode: meta.inode,
        links: meta.links,
        attributes: meta
            .extended_attributes
            .iter()
            .map(|attribute| {
                let name = OsStr::from_bytes(attribute.name.as_bytes()).to_owned();
                (name, attribute.value.clone().unwrap_or_default())
            })
            .collect(),
    }
}

/// Whether an entry is a file that has other names.
pub(super) fn is_linked(entry: &Entry) -> bool {
    entry.kind == EntryKind::File && entry.links > 1
}

/// A time that no calendar knows becomes the nearest that one does.
fn to_timestamp(time: FileTime) -> Timestamp {
    let nanoseconds = i128::from(time.seconds) * 1_000_000_000 + i128::from(time.nanoseconds);
    let nearest = if time.seconds < 0 { Timestamp::MIN } else { Timestamp::MAX };
    Timestamp::from_nanosecond(nanoseconds).unwrap_or(nearest)
}

fn from_timestamp(time: Timestamp) -> FileTime {
    let nanoseconds = time.as_nanosecond();
    FileTime {
        seconds: i64::try_from(nanoseconds.div_euclid(1_000_000_000)).unwrap_or_default(),
        nanoseconds: u32::try_from(nanoseconds.rem_euclid(1_000_000_000)).unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_stored_of_an_entry_comes_back() {
        let kinds = [
            EntryKind::File,
            EntryKind::Directory,
            EntryKind::Symlink(OsStr::from_bytes(b"to/\xff").to_owned()),
            EntryKind::BlockDevice(0x701),
            EntryKind::CharDevice(0x103),
            EntryKind::Fifo,
            EntryKind::Socket,
        ];
        for (kind, seconds) in kinds.into_iter().zip([0, -1, 1_700_000_000, -86_401, 7, 8, 9]) {
            let is_file = kind == EntryKind::File;
            let entry = Entry {
                links: if kind == EntryKind::Directory { 0 } else { 2 },
                device: if is_file { 5 } else { 0 },
                kind,
                mode: 0o6751,
                uid: 1000,
                gid: u32::MAX - 1,
                modified: FileTime { seconds, nanoseconds: 999_999_999 },
                changed: FileTime { seconds: 3, nanoseconds: 0 },
                size: if is_file { 12 } else { 0 },
                inode: 77,
                attributes: vec![("user.a".into(), vec![0, 255]), ("user.b".into(), vec![])],
            };
            let node = to_node(OsStr::new("name"), &entry).unwrap();
            let json = serde_json::to_string(&node).unwrap();
            assert_eq!(from_node(&serde_json::from_str(&json).unwrap()), entry, "{json}");
        }
    }

    #[test]
    fn a_time_beyond_all_calendars_is_the_last_one() {
        let far = FileTime { seconds: i64::MAX, nanoseconds: 0 };
        assert_eq!(to_timestamp(far), Timestamp::MAX);
    }
}
