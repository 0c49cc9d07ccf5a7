//! The bytes of a simulated device, and the simulated filesystem in them.
//!
//! The first block names the filesystem; the tree of files follows as JSON. So everything that is
//! done to the bytes of a device (copying, growing, comparing) is done to its files.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{DirBuilder, File};
use std::io::Write;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::MemfdFlags;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::error::{Error, Result};
use crate::options::FilesystemKind;

/// The unit of allocation.
pub(super) const BLOCK: usize = 4096;

/// A sparse device: what is not there is zeros.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Blocks {
    pub size: u64,
    blocks: BTreeMap<u64, Vec<u8>>,
}

/// Where a position lies in its block.
fn within(position: u64) -> usize {
    usize::try_from(position % BLOCK as u64).unwrap_or_default()
}

impl Blocks {
    pub(super) fn zeros(size: u64) -> Self {
        Self { size, blocks: BTreeMap::new() }
    }

    pub(super) fn is_blank(&self) -> bool {
        self.blocks.is_empty()
    }

    pub(super) fn allocated(&self) -> u64 {
        (self.blocks.len() * BLOCK) as u64
    }

    pub(super) fn write(&mut self, at: u64, bytes: &[u8]) -> Result<()> {
        let end = at.checked_add(bytes.len() as u64);
        if end.is_none_or(|end| end > self.size) {
            return Err(Error::out_of_space("the simulated device is full"));
        }
        for (position, byte) in (at..).zip(bytes) {
            let block =
                self.blocks.entry(position / BLOCK as u64).or_insert_with(|| vec![0; BLOCK]);
            block[within(position)] = *byte;
        }
        self.blocks.retain(|_, block| block.iter().any(|byte| *byte != 0));
        Ok(())
    }

    pub(super) fn read(&self, range: Range<u64>) -> Vec<u8> {
        let byte = |position: u64| {
            let block = self.blocks.get(&(position / BLOCK as u64));
            block.map_or(0, |block| block[within(position)])
        };
        range.map(byte).collect()
    }

    /// The device's bytes as a file in memory, which can only be read.
    pub(super) fn to_file(&self) -> Result<File> {
        let failed = |error| Error::io("cannot show a simulated snapshot as a file", error);
        let written = rustix::fs::memfd_create("snapshot", MemfdFlags::CLOEXEC)
            .map_err(|errno| failed(errno.into()))?;
        let written = File::from(written);
        written.set_len(self.size).map_err(failed)?;
        for (index, block) in &self.blocks {
            let at = index * BLOCK as u64;
            let length = usize::try_from(self.size.saturating_sub(at)).unwrap_or(BLOCK).min(BLOCK);
            written.write_all_at(&block[..length], at).map_err(failed)?;
        }
        File::open(format!("/proc/self/fd/{}", written.as_raw_fd())).map_err(failed)
    }

    fn block(&self, index: u64) -> Option<&[u8]> {
        self.blocks.get(&index).map(Vec::as_slice)
    }

    /// Ranges for whose blocks `differs` says so, of the blocks that either device has.
    fn ranges(
        &self,
        other: &Self,
        differs: impl Fn(Option<&[u8]>, Option<&[u8]>) -> bool,
    ) -> Vec<Range<u64>> {
        let mut ranges: Vec<Range<u64>> = Vec::new();
        let indices: BTreeSet<u64> =
            self.blocks.keys().chain(other.blocks.keys()).copied().collect();
        for index in indices {
            if !differs(self.block(index), other.block(index)) {
                continue;
            }
            let start = index * BLOCK as u64;
            let end = (start + BLOCK as u64).min(self.size);
            match ranges.last_mut() {
                Some(last) if last.end == start => last.end = end,
                _ if start < end => ranges.push(start..end),
                _ => {}
            }
        }
        ranges
    }

    pub(super) fn allocated_ranges(&self) -> Vec<Range<u64>> {
        self.ranges(self, |block, _| block.is_some())
    }

    pub(super) fn changed_since(&self, base: &Self) -> Vec<Range<u64>> {
        let mut ranges = self.ranges(base, |now, before| now != before);
        if base.size < self.size {
            ranges.retain(|range| range.start < base.size);
            match ranges.last_mut() {
                Some(last) if last.end >= base.size => last.end = self.size,
                _ => ranges.push(base.size..self.size),
            }
        }
        ranges
    }
}

/// What the first block says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Superblock {
    pub kind: FilesystemKind,
    pub uuid: Uuid,
    pub size: u64,
    tree_length: u64,
}

/// The files of a simulated filesystem, by path from its root.
pub(super) type Tree = BTreeMap<PathBuf, Node>;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Node {
    Directory { mode: u32 },
    File { mode: u32, content: Vec<u8> },
    Link { target: PathBuf },
}

impl Blocks {
    /// Makes an empty filesystem: as in life, ext4 has a directory of its own in it.
    pub(super) fn format(&mut self, kind: FilesystemKind, uuid: Uuid) -> Result<()> {
        let mut tree = Tree::new();
        if kind == FilesystemKind::Ext4 {
            tree.insert("lost+found".into(), Node::Directory { mode: 0o700 });
        }
        self.save(Superblock { kind, uuid, size: self.size, tree_length: 0 }, &tree)
    }

    pub(super) fn superblock(&self) -> Result<Superblock> {
        let block = self.read(0..BLOCK as u64);
        let end = block.iter().position(|byte| *byte == 0).unwrap_or(BLOCK);
        serde_json::from_slice(&block[..end])
            .map_err(|_| Error::corrupt("the simulated device holds no filesystem"))
    }

    pub(super) fn set_superblock(&mut self, superblock: &Superblock) -> Result<()> {
        let mut text = to_json(superblock)?;
        text.resize(BLOCK, 0);
        self.write(0, &text)
    }

    pub(super) fn tree(&self) -> Result<Tree> {
        let superblock = self.superblock()?;
        let text = self.read(BLOCK as u64..BLOCK as u64 + superblock.tree_length);
        serde_json::from_slice(&text)
            .map_err(|error| Error::corrupt("the simulated filesystem is damaged").caused_by(error))
    }

    pub(super) fn save_tree(&mut self, tree: &Tree) -> Result<()> {
        let superblock = self.superblock()?;
        self.save(superblock, tree)
    }

    fn save(&mut self, mut superblock: Superblock, tree: &Tree) -> Result<()> {
        let mut text = to_json(tree)?;
        let old = superblock.tree_length;
        superblock.tree_length = text.len() as u64;
        if BLOCK as u64 + superblock.tree_length > superblock.size {
            return Err(Error::out_of_space("the simulated filesystem is full"));
        }
        // What a longer tree left behind is wiped.
        let length = text.len().max(usize::try_from(old).unwrap_or_default());
        text.resize(length, 0);
        self.write(BLOCK as u64, &text)?;
        self.set_superblock(&superblock)
    }
}

fn to_json(value: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|error| Error::internal("cannot encode").caused_by(error))
}

/// Makes the files of a tree in an empty directory.
pub(super) fn unpack(tree: &Tree, directory: &Path) -> Result<()> {
    let failed = |error| Error::io(format!("cannot unpack into {}", directory.display()), error);
    for (path, node) in tree {
        let path = directory.join(path);
        match node {
            Node::Directory { mode } => DirBuilder::new()
                .mode(0o700)
                .create(&path)
                .and_then(|()| std::fs::set_permissions(&path, permissions(*mode))),
            Node::File { mode, content } => {
                File::options().write(true).create_new(true).mode(0o600).open(&path).and_then(
                    |mut file| {
                        file.write_all(content)?;
                        file.set_permissions(permissions(*mode))
                    },
                )
            }
            Node::Link { target } => symlink(target, &path),
        }
        .map_err(failed)?;
    }
    Ok(())
}

fn permissions(mode: u32) -> std::fs::Permissions {
    std::fs::Permissions::from_mode(mode)
}

/// Reads all files below a directory.
pub(super) fn pack(directory: &Path) -> Result<Tree> {
    let mut tree = Tree::new();
    pack_into(&mut tree, directory, Path::new(""))
        .map_err(|error| Error::io(format!("cannot read {}", directory.display()), error))?;
    Ok(tree)
}

fn pack_into(tree: &mut Tree, root: &Path, below: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(root.join(below))? {
        let entry = entry?;
        let meta = entry.metadata()?;
        let mode = meta.permissions().mode() & 0o7777;
        let path = below.join(entry.file_name());
        if meta.is_dir() {
            tree.insert(path.clone(), Node::Directory { mode });
            pack_into(tree, root, &path)?;
        } else if meta.is_file() {
            let content = std::fs::read(entry.path())?;
            tree.insert(path, Node::File { mode, content });
        } else if meta.is_symlink() {
            let target = std::fs::read_link(entry.path())?;
            tree.insert(path, Node::Link { target });
        }
    }
    Ok(())
}

/// Empties a directory.
pub(super) fn clear(directory: &Path) -> Result<()> {
    let cleared = std::fs::read_dir(directory).and_then(|entries| {
        for entry in entries {
            let entry = entry?;
            match entry.file_type()?.is_dir() {
                true => std::fs::remove_dir_all(entry.path())?,
                false => std::fs::remove_file(entry.path())?,
            }
        }
        Ok(())
    });
    cleared.map_err(|error| Error::io(format!("cannot empty {}", directory.display()), error))
}
