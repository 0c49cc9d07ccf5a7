//! Loop devices: image files as block devices. A device is known by the inode behind it, never by
//! a path, and goes away by itself when nobody has it mounted or open.
#![allow(unsafe_code, reason = "loop devices are configured by ioctls")]
#![allow(unreachable_pub, reason = "nix makes its ioctls pub, and their structures have to be")]

use std::fs::File;
use std::io::Seek;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::libc::c_int;

use super::device_node::{self, NodeKind};
use crate::error::{Error, ErrorKind, Result};

const LOOP_GET_STATUS64: u64 = 0x4C05;
const LOOP_SET_CAPACITY: u64 = 0x4C07;
const LOOP_CONFIGURE: u64 = 0x4C0A;
const LOOP_CTL_GET_FREE: u64 = 0x4C82;

const LO_FLAGS_AUTOCLEAR: u32 = 4;
const LO_FLAGS_DIRECT_IO: u32 = 16;

/// The logical block size of our devices: what direct I/O needs on every disk. An image is a whole
/// number of them.
pub(crate) const BLOCK_SIZE: u32 = 4096;

/// The major device number of loop devices.
const LOOP_MAJOR: u32 = 7;

/// `struct loop_info64` of linux/loop.h.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct LoopInfo {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

impl LoopInfo {
    const EMPTY: Self = Self {
        device: 0,
        inode: 0,
        rdevice: 0,
        offset: 0,
        size_limit: 0,
        number: 0,
        encrypt_type: 0,
        encrypt_key_size: 0,
        flags: 0,
        file_name: [0; 64],
        crypt_name: [0; 64],
        encrypt_key: [0; 32],
        init: [0; 2],
    };
}

/// `struct loop_config` of linux/loop.h.
#[repr(C)]
pub struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

nix::ioctl_read_bad!(loop_get_status, LOOP_GET_STATUS64, LoopInfo);
nix::ioctl_none_bad!(loop_set_capacity, LOOP_SET_CAPACITY);
nix::ioctl_write_ptr_bad!(loop_configure, LOOP_CONFIGURE, LoopConfig);
nix::ioctl_none_bad!(loop_ctl_get_free, LOOP_CTL_GET_FREE);

/// Which file it is, whatever its path is or becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct FileIdentity {
    device: u64,
    inode: u64,
}

impl From<&std::fs::Metadata> for FileIdentity {
    fn from(meta: &std::fs::Metadata) -> Self {
        Self { device: meta.dev(), inode: meta.ino() }
    }
}

/// A loop device that has a file behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Bound {
    /// The number in its name.
    pub index: u32,
    /// The file behind it, asked of the kernel.
    pub identity: FileIdentity,
    /// The path of that file when it was bound, without the mark of a deleted file. No proof of
    /// anything.
    pub path: PathBuf,
    /// It shows the file from its first byte to its last.
    pub whole: bool,
}

impl Bound {
    /// The path of the device.
    pub(crate) fn device(&self) -> PathBuf {
        device_path(self.index)
    }
}

fn device_path(index: u32) -> PathBuf {
    PathBuf::from(format!("/dev/loop{index}"))
}

/// An open loop device. While it is open, the device stays bound.
#[derive(Debug)]
pub(crate) struct LoopDevice {
    file: File,
    index: u32,
}

impl LoopDevice {
    /// Binds a free device to the whole of `image`, in one step: there is no moment at which it
    /// shows something else or stays bound without us. Direct I/O where the filesystem allows it.
    pub(crate) fn bind(image: &File) -> Result<Self> {
        const TRIES: u32 = 256;
        let failed = |errno: Errno| Error::io("cannot bind a loop device", errno.into());
        let control = File::options().read(true).write(true).open("/dev/loop-control");
        let control = control.map_err(|error| {
            Error::io("cannot open /dev/loop-control", error)
                .hint("the kernel's loop driver is needed: modprobe loop")
        })?;
        let fd = u32::try_from(image.as_raw_fd()).map_err(|_| failed(Errno::EBADF))?;
        let direct = if allows_direct_io(image)? { LO_FLAGS_DIRECT_IO } else { 0 };
        let info = LoopInfo { flags: LO_FLAGS_AUTOCLEAR | direct, ..LoopInfo::EMPTY };
        let config = LoopConfig { fd, block_size: BLOCK_SIZE, info, reserved: [0; 8] };
        for _ in 0..TRIES {
            // SAFETY: LOOP_CTL_GET_FREE takes no argument.
            let free: c_int = unsafe { loop_ctl_get_free(control.as_raw_fd()) }.map_err(failed)?;
            let index = u32::try_from(free).map_err(|_| failed(Errno::EINVAL))?;
            let device = Self { file: open_node(index, Access::Change)?, index };
            // SAFETY: `config` is a whole struct loop_config and the kernel only reads it.
            match unsafe { loop_configure(device.file.as_raw_fd(), &raw const config) } {
                Ok(_) => return Ok(device),
                // Somebody else took it between the two calls.
                Err(Errno::EBUSY) => std::thread::yield_now(),
                Err(errno) => return Err(failed(errno)),
            }
        }
        Err(Error::busy("no loop device stayed free long enough to be bound"))
    }

    /// Opens a device that is bound already; `None` if it is not bound any more.
    pub(crate) fn open(index: u32) -> Result<Option<(Self, Bound)>> {
        let device = Self { file: open_node(index, Access::Change)?, index };
        Ok(device.status()?.map(|bound| (device, bound)))
    }

    /// What the kernel has behind the device, if anything.
    pub(crate) fn status(&self) -> Result<Option<Bound>> {
        let Some(info) = status_of(&self.file, self.index)? else { return Ok(None) };
        let path = backing_path(self.index)?.unwrap_or_default();
        Ok(Some(bound_from(self.index, &info, path)))
    }

    /// Its path.
    pub(crate) fn path(&self) -> PathBuf {
        device_path(self.index)
    }

    /// Its size in bytes.
    pub(crate) fn size(&self) -> Result<u64> {
        (&self.file)
            .seek(std::io::SeekFrom::End(0))
            .map_err(|error| Error::io(format!("cannot size {}", self.path().display()), error))
    }

    /// Takes over a new size of the file behind it.
    pub(crate) fn update_capacity(&self) -> Result<()> {
        // SAFETY: LOOP_SET_CAPACITY takes no argument.
        unsafe { loop_set_capacity(self.file.as_raw_fd()) }.map(|_| ()).map_err(|errno| {
            Error::io(format!("cannot resize {}", self.path().display()), errno.into())
        })
    }
}

/// Whether direct I/O to the image is safe. On btrfs it is not: a page that changes while it is
/// written, which every filesystem on the device may do, gets a wrong checksum and cannot be read
/// any more. Elsewhere the kernel itself falls back where it cannot be.
fn allows_direct_io(image: &File) -> Result<bool> {
    const BTRFS_SUPER_MAGIC: i64 = 0x9123_683E;
    rustix::fs::fstatfs(image)
        .map(|room| room.f_type != BTRFS_SUPER_MAGIC)
        .map_err(|errno| Error::io("cannot tell the filesystem of an image", errno.into()))
}

/// All loop devices that have a file behind them. One that cannot be read is an error: it could be
/// the one that matters.
pub(crate) fn bound() -> Result<Vec<Bound>> {
    let entries = std::fs::read_dir("/sys/block")
        .map_err(|error| Error::io("cannot list /sys/block", error))?;
    let mut devices = Vec::new();
    for entry in entries {
        let name = entry.map_err(|error| Error::io("cannot list /sys/block", error))?.file_name();
        let index = name.to_str().and_then(|name| name.strip_prefix("loop")?.parse().ok());
        let Some(index) = index else { continue };
        let Some(path) = backing_path(index)? else { continue };
        // The end of a writable opening has udev read the device again.
        let file = open_node(index, Access::Look)?;
        if let Some(info) = status_of(&file, index)? {
            devices.push(bound_from(index, &info, path));
        }
    }
    Ok(devices)
}

fn bound_from(index: u32, info: &LoopInfo, path: PathBuf) -> Bound {
    let identity = FileIdentity { device: info.device, inode: info.inode };
    Bound { index, identity, path, whole: info.offset == 0 && info.size_limit == 0 }
}

fn status_of(file: &File, index: u32) -> Result<Option<LoopInfo>> {
    let mut info = LoopInfo::EMPTY;
    // SAFETY: `info` is a whole struct loop_info64 for the kernel to write.
    match unsafe { loop_get_status(file.as_raw_fd(), &raw mut info) } {
        Ok(_) => Ok(Some(info)),
        Err(Errno::ENXIO) => Ok(None),
        Err(errno) => {
            let what = format!("cannot tell which file is behind /dev/loop{index}");
            Err(Error::io(what, errno.into()))
        }
    }
}

/// The path behind a device; `None` if it is not bound.
fn backing_path(index: u32) -> Result<Option<PathBuf>> {
    let file = format!("/sys/block/loop{index}/loop/backing_file");
    let mut path = match std::fs::read(&file) {
        Ok(path) => path,
        Err(error) => {
            // A device that is let go while we read loses the file.
            let error = Error::io(format!("cannot read {file}"), error);
            let gone = error.kind() == ErrorKind::NotFound || error_is_gone(&error);
            return if gone { Ok(None) } else { Err(error) };
        }
    };
    if path.last() == Some(&b'\n') {
        path.pop();
    }
    const DELETED: &[u8] = b" (deleted)";
    if path.ends_with(DELETED) {
        path.truncate(path.len() - DELETED.len());
    }
    Ok(Some(PathBuf::from(std::ffi::OsString::from_vec(path))))
}

fn error_is_gone(error: &Error) -> bool {
    std::error::Error::source(error)
        .and_then(|source| source.downcast_ref::<std::io::Error>())
        .and_then(std::io::Error::raw_os_error)
        .is_some_and(|errno| errno == nix::libc::ENODEV || errno == nix::libc::ENXIO)
}

/// What a device is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Access {
    Look,
    Change,
}

/// Opens the device's node, made where nothing makes it for us.
fn open_node(index: u32, access: Access) -> Result<File> {
    let path = device_path(index);
    device_node::ensure(&path, NodeKind::Block, (LOOP_MAJOR, index))?;
    File::options()
        .read(true)
        .write(access == Access::Change)
        .open(&path)
        .map_err(|error| Error::io(format!("cannot open {}", path.display()), error))
}

/// The bound devices that show this file; fails if a device that was bound to `path` shows another
/// file now, because then the file was replaced under it.
pub(crate) fn showing<'a>(
    devices: &'a [Bound],
    identity: FileIdentity,
    path: &Path,
) -> Result<Vec<&'a Bound>> {
    if let Some(device) = devices.iter().find(|d| d.identity != identity && d.path == path) {
        return Err(Error::corrupt(format!(
            "{} shows another file than {}: the image was replaced while it was in use",
            device.device().display(),
            path.display()
        ))
        .hint("put the first image back, or unmount the volume and detach the device"));
    }
    Ok(devices.iter().filter(|device| device.identity == identity).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bound(index: u32, inode: u64, path: &str) -> Bound {
        let identity = FileIdentity { device: 1, inode };
        Bound { index, identity, path: path.into(), whole: true }
    }

    #[test]
    fn the_structures_have_the_kernels_sizes() {
        assert_eq!(size_of::<LoopInfo>(), 232);
        assert_eq!(size_of::<LoopConfig>(), 304);
    }

    #[test]
    fn rule_07_a_device_is_known_by_its_inode() {
        let devices = [bound(0, 5, "/a"), bound(1, 6, "/elsewhere"), bound(2, 7, "/b")];
        let six = FileIdentity { device: 1, inode: 6 };
        let found = showing(&devices, six, Path::new("/c")).unwrap();
        assert_eq!(found[0].index, 1, "whatever the path says");
        let error = showing(&devices, six, Path::new("/b")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "the file at this path was replaced");
    }
}
