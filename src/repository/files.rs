//! The tree of a file volume as a backup has it.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustic_core::repofile::{Node, Tree};
use rustic_core::{DataId, TreeId};

use super::node::{from_node, is_linked};
use super::reading::{Fault, damage};
use crate::linux::entry::{Entry, EntryKind};

/// The directory of a backup that is the root of a file volume.
pub(super) const DATA: &str = "data";

/// All entries of a tree, each directory before what is in it. The content of its files, one behind the
/// other, is what is read of the backup.
#[derive(Debug, Default)]
pub(super) struct Files {
    entries: Vec<FileEntry>,
    /// The files that are not empty, by the place of their first byte.
    with_content: Vec<usize>,
    size: u64,
    /// What of the tree is damaged, and missing among the entries.
    faults: Vec<Fault>,
    /// The first of a file's names, by the device and the inode that it had.
    linked: HashMap<(u64, u64), usize>,
}

/// An entry of the tree.
#[derive(Debug)]
pub(super) struct FileEntry {
    /// Below the volume's root, which has the empty one.
    pub(super) path: PathBuf,
    pub(super) entry: Entry,
    pub(super) content: Vec<DataId>,
    /// The place of its first byte.
    pub(super) start: u64,
    /// Which other entry it is only another name of.
    pub(super) link_of: Option<usize>,
}

impl FileEntry {
    /// The places of its bytes.
    pub(super) fn range(&self) -> Range<u64> {
        self.start..self.start.saturating_add(self.entry.size)
    }

    /// Its path within the volume, for people.
    pub(super) fn shown(&self) -> String {
        Path::new("/").join(&self.path).display().to_string()
    }
}

impl Files {
    /// Follows the trees below `root`, which `get` gives by their ids and their names for people. Goes on past
    /// directories that are damaged.
    pub(super) fn read(
        root: TreeId,
        mut get: impl FnMut(Option<TreeId>, &str) -> Result<Tree, Fault>,
    ) -> Result<Self, Fault> {
        let nodes = get(Some(root), "/")?.nodes;
        let data = nodes.into_iter().find(|node| node.name == DATA && node.is_dir());
        let data = data.ok_or_else(|| damage("it holds no files".to_owned()))?;
        let mut files = Self::default();
        files.add(PathBuf::new(), &data)?;
        let mut directories = vec![(PathBuf::new(), data.subtree)];
        while let Some((path, tree)) = directories.pop() {
            let shown = Path::new("/").join(&path).display().to_string();
            let nodes = match get(tree, &shown) {
                Ok(tree) => tree.nodes,
                Err(fault) => {
                    files.note(fault)?;
                    continue;
                }
            };
            for node in nodes {
                let name = node.name();
                if !is_name(&name) {
                    files.note(damage(format!("{shown} has an entry that is named {name:?}")))?;
                    continue;
                }
                let path = path.join(&*name);
                match files.add(path.clone(), &node) {
                    Err(fault) => files.note(fault)?,
                    Ok(()) if node.is_dir() => directories.push((path, node.subtree)),
                    Ok(()) => {}
                }
            }
        }
        Ok(files)
    }

    /// Keeps what is damage, and gives back what is none.
    fn note(&mut self, fault: Fault) -> Result<(), Fault> {
        match fault {
            Fault::Damage { .. } => self.faults.push(fault),
            Fault::Unknown(_) => return Err(fault),
        }
        Ok(())
    }

    fn add(&mut self, path: PathBuf, node: &Node) -> Result<(), Fault> {
        let (number, entry) = (self.entries.len(), from_node(node));
        let content = node.content.clone().unwrap_or_default();
        let key = (entry.device, entry.inode);
        let link_of = if is_linked(&entry) && key.0 != 0 && key.1 != 0 {
            // A file that got the inode of one that went while the tree was stored is another one.
            let same =
                |first: &usize| self.entries.get(*first).is_some_and(|one| one.content == content);
            Some(*self.linked.entry(key).or_insert(number)).filter(same)
        } else {
            None
        };
        let start = self.size;
        if entry.kind == EntryKind::File && link_of.is_none() && entry.size > 0 {
            self.with_content.push(number);
            self.size = start
                .checked_add(entry.size)
                .ok_or_else(|| damage(format!("/{} has no possible size", path.display())))?;
        }
        self.entries.push(FileEntry { path, entry, content, start, link_of });
        Ok(())
    }

    /// What is damaged, and missing among the entries.
    pub(super) fn faults(&self) -> &[Fault] {
        &self.faults
    }

    pub(super) fn entries(&self) -> &[FileEntry] {
        &self.entries
    }

    /// The files that are not empty, each once.
    pub(super) fn with_content(&self) -> impl Iterator<Item = &FileEntry> {
        self.with_content.iter().filter_map(|number| self.entries.get(*number))
    }

    /// Bytes of all files.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// The file that has a place, and which of its bytes is there.
    pub(super) fn at(&self, place: u64) -> Option<(&FileEntry, u64)> {
        let start = |number: &usize| self.entries.get(*number).map(|file| file.start);
        let after = self.with_content.partition_point(|number| start(number) <= Some(place));
        let file = self.entries.get(*self.with_content.get(after.checked_sub(1)?)?)?;
        file.range().contains(&place).then(|| (file, place - file.start))
    }
}

/// Whether this names an entry, and nothing outside of its directory.
fn is_name(name: &OsStr) -> bool {
    let bytes = name.as_bytes();
    !bytes.is_empty()
        && bytes != b"."
        && bytes != b".."
        && !bytes.iter().any(|b| b"/\0".contains(b))
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use rustic_core::repofile::{Metadata, NodeType};

    use super::*;

    fn node(name: &str, size: u64, inode: u64) -> Node {
        let meta = Metadata {
            size,
            inode,
            device_id: 1,
            links: if inode == 0 { 1 } else { 2 },
            ..Metadata::default()
        };
        let mut node = Node::new_node(OsStr::new("x"), NodeType::File, meta);
        node.name = name.to_owned();
        node
    }

    fn files(nodes: Vec<Node>) -> Result<Files, Fault> {
        let root = Node::new_node(OsStr::new(DATA), NodeType::Dir, Metadata::default());
        let trees = RefCell::new(vec![Tree { nodes }, Tree { nodes: vec![root] }]);
        Files::read(TreeId::default(), |_, _| Ok(trees.borrow_mut().pop().unwrap()))
    }

    #[test]
    fn every_place_is_a_byte_of_one_file() {
        let all = vec![node("a", 3, 0), node("b", 0, 0), node("c", 2, 9), node("d", 2, 9)];
        let files = files(all).unwrap();
        assert_eq!(files.size(), 5);
        let at = |place| files.at(place).map(|(file, offset)| (file.shown(), offset));
        assert_eq!(at(0), Some(("/a".to_owned(), 0)));
        assert_eq!(at(2), Some(("/a".to_owned(), 2)));
        assert_eq!(at(3), Some(("/c".to_owned(), 0)));
        assert_eq!(at(4), Some(("/c".to_owned(), 1)));
        assert_eq!(at(5), None);
        assert_eq!(files.entries()[4].link_of, Some(3), "another name of the same file");
    }

    #[test]
    fn a_name_that_leads_elsewhere_is_damage() {
        for name in ["", ".", "..", "a/b", "/etc/passwd", "a\\x00b"] {
            let files = files(vec![node(name, 0, 0), node("good", 1, 0)]).unwrap();
            assert!(matches!(files.faults(), [Fault::Damage { .. }]), "{name}");
            assert_eq!(files.entries()[1].shown(), "/good", "what is beside it is found");
        }
        let files = files(vec![node("...", 0, 0), node("a\\xffb", 0, 0)]).unwrap();
        assert!(files.faults().is_empty(), "{:?}", files.faults());
    }
}
