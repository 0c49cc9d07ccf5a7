//! Device nodes below `/dev`, made where nothing makes them for us: in a container's own `/dev`, and
//! where no udev runs.

use std::fs::Metadata;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use nix::errno::Errno;
use nix::libc::{dev_t, major, makedev, minor};
use nix::sys::stat::{Mode, SFlag, mknod};

use crate::error::{Error, Result};

/// The kind of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NodeKind {
    Block,
    Character,
}

/// Makes sure that `path` is the node of the device with this number. A node that stands for
/// another device is of an earlier run of the kernel and is replaced.
pub(crate) fn ensure(path: &Path, kind: NodeKind, number: (u32, u32)) -> Result<()> {
    let failed = |error| Error::io(format!("cannot make the node {}", path.display()), error);
    let wanted = makedev(number.0, number.1);
    match path.symlink_metadata() {
        Ok(meta) if stands_for(&meta, kind, wanted) => return Ok(()),
        Ok(meta) if meta.file_type().is_block_device() || meta.file_type().is_char_device() => {
            std::fs::remove_file(path).map_err(failed)?;
        }
        Ok(_) => return Err(Error::corrupt(format!("{} is not a device", path.display()))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            if let Some(directory) = path.parent() {
                std::fs::create_dir_all(directory).map_err(failed)?;
            }
        }
        Err(error) => return Err(failed(error)),
    }
    let flag = match kind {
        NodeKind::Block => SFlag::S_IFBLK,
        NodeKind::Character => SFlag::S_IFCHR,
    };
    match mknod(path, flag, Mode::S_IRUSR | Mode::S_IWUSR, wanted) {
        Ok(()) => Ok(()),
        // Somebody was faster; it has to be the same device.
        Err(Errno::EEXIST) => match path.symlink_metadata() {
            Ok(meta) if stands_for(&meta, kind, wanted) => Ok(()),
            _ => Err(failed(Errno::EEXIST.into())),
        },
        Err(errno) => Err(failed(errno.into())),
    }
}

fn stands_for(meta: &Metadata, kind: NodeKind, number: dev_t) -> bool {
    let is_kind = match kind {
        NodeKind::Block => meta.file_type().is_block_device(),
        NodeKind::Character => meta.file_type().is_char_device(),
    };
    is_kind && meta.rdev() == number
}

/// The number of the block device that `path` stands for; links are followed.
pub(crate) fn block_number(path: &Path) -> std::io::Result<(u32, u32)> {
    block_number_of(&path.metadata()?)
}

/// The number of the block device that was looked at.
pub(crate) fn block_number_of(meta: &Metadata) -> std::io::Result<(u32, u32)> {
    if !meta.file_type().is_block_device() {
        let what = "it is not a block device";
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, what));
    }
    Ok((major(meta.rdev()), minor(meta.rdev())))
}
