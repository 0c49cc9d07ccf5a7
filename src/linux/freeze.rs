//! Stopping the writes to a mounted filesystem, and letting them go on.
#![allow(unsafe_code, reason = "FIFREEZE and FITHAW are ioctls")]
#![allow(unreachable_pub, reason = "nix makes its ioctls pub")]

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;

use nix::errno::Errno;

use super::mount::open_mounted;
use super::mountinfo;
use crate::error::{Error, Result};
use crate::model::Outcome;

nix::ioctl_readwrite!(fifreeze, b'X', 119, nix::libc::c_int);
nix::ioctl_readwrite!(fithaw, b'X', 120, nix::libc::c_int);

/// Writes out what the filesystem at `target` holds in memory.
pub(crate) fn flush(target: &Path) -> Result<()> {
    let (file, _) = open_mounted(target)?;
    rustix::fs::syncfs(&file).map_err(|errno| {
        Error::io(format!("cannot flush the filesystem at {}", target.display()), errno.into())
    })
}

/// Flushes the filesystem at `target` and stops its writers.
pub(crate) fn freeze(target: &Path) -> Result<Outcome> {
    let (file, _) = open_mounted(target)?;
    let mut unused = 0;
    // SAFETY: the kernel does not read or write the argument of FIFREEZE.
    match unsafe { fifreeze(file.as_raw_fd(), &raw mut unused) } {
        Ok(_) => Ok(Outcome::Changed),
        Err(Errno::EBUSY) => Ok(Outcome::Unchanged),
        Err(errno) => Err(failed("freeze", target, errno)),
    }
}

/// Lets the writers of the filesystem at `target` go on.
pub(crate) fn thaw(target: &Path) -> Result<Outcome> {
    let (file, _) = open_mounted(target)?;
    thaw_open(&file).map_err(|errno| failed("thaw", target, errno))
}

/// Thaws what is to be unmounted from `target`: unmounted while it is frozen, a filesystem stays in
/// the kernel out of everybody's reach, frozen, and holds its device.
pub(crate) fn thaw_to_unmount(target: &Path) -> Result<()> {
    let (Some(parent), Some(name)) = (target.parent(), target.file_name()) else { return Ok(()) };
    // The target itself is not looked at before it is known to be on a device: a server may be dead.
    let Ok(parent) = std::fs::canonicalize(parent) else { return Ok(()) };
    match mountinfo::at(&parent.join(name))? {
        Some(mounted) if mounted.source.starts_with('/') => {}
        _ => return Ok(()),
    }
    // One that cannot be opened is broken, which is no reason to keep it mounted.
    let Ok((file, _)) = open_mounted(target) else { return Ok(()) };
    match thaw_open(&file) {
        Ok(_) | Err(Errno::EOPNOTSUPP | Errno::ENOTTY) => Ok(()),
        Err(errno) => Err(failed("thaw", target, errno)),
    }
}

fn thaw_open(file: &File) -> Result<Outcome, Errno> {
    let mut unused = 0;
    // SAFETY: the kernel does not read or write the argument of FITHAW.
    match unsafe { fithaw(file.as_raw_fd(), &raw mut unused) } {
        Ok(_) => Ok(Outcome::Changed),
        Err(Errno::EINVAL) => Ok(Outcome::Unchanged),
        Err(errno) => Err(errno),
    }
}

fn failed(what: &str, target: &Path, errno: Errno) -> Error {
    Error::io(format!("cannot {what} the filesystem at {}", target.display()), errno.into())
}
