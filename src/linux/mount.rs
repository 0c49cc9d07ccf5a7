//! Mounting and unmounting, by the mount API that works on file descriptors: it says why a mount
//! failed, and what was looked at is what is mounted on.

use std::fs::File;
use std::io::ErrorKind as Io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount,
};

use super::device_node::block_number;
use super::freeze::thaw_to_unmount;
use super::{MountRequest, Mounted, mountinfo};
use crate::error::{Error, ErrorKind, Result};
use crate::model::Outcome;

/// Mounts and proves by the kernel's list that the source is at the target.
pub(crate) fn mount(request: &MountRequest) -> Result<Outcome> {
    let options = Options::parse(request)?;
    let what = || format!("cannot mount {} at {}", request.source, request.target.display());
    let (directory, target) = open_target(&request.target).map_err(|e| e.context(what()))?;
    match check_target(request, &target)? {
        Some(outcome) => Ok(outcome),
        None => {
            attach(request, &options, &directory).map_err(|e| e.context(what()))?;
            match check_target(request, &target)? {
                Some(_) => Ok(Outcome::Changed),
                None => Err(Error::internal(what()).caused_by("the kernel does not show it")),
            }
        }
    }
}

/// `None` if nothing is mounted there, `Unchanged` if the source is.
fn check_target(request: &MountRequest, target: &Path) -> Result<Option<Outcome>> {
    let Some(mounted) = mountinfo::at(target)? else { return Ok(None) };
    if is_mount_of(&mounted, &request.source)? {
        return Ok(Some(Outcome::Unchanged));
    }
    Err(Error::in_use(format!(
        "{} is mounted at {}, not {}",
        mounted.source,
        target.display(),
        request.source
    )))
}

/// Whether a mount is of this source. A device is compared by number, never by name.
fn is_mount_of(mounted: &Mounted, source: &str) -> Result<bool> {
    if !source.starts_with('/') {
        return Ok(mounted.source == source);
    }
    let device = block_number(Path::new(source))
        .map_err(|error| Error::io(format!("cannot tell which device {source} is"), error))?;
    // A btrfs has a device number of its own; its source is the name of its device.
    Ok(mounted.device == device
        || mounted.source.starts_with('/')
            && block_number(Path::new(&mounted.source)).ok() == Some(device))
}

/// Whether the device is mounted anywhere in our own namespace.
pub(crate) fn is_mounted(device: &Path) -> Result<bool> {
    let source = device.display().to_string();
    for entry in mountinfo::own()? {
        if is_mount_of(&entry.mounted, &source)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Opens the directory to mount on, made if it is not there, and tells its real path, which is the
/// one that the kernel shows.
fn open_target(target: &Path) -> Result<(OwnedFd, PathBuf)> {
    std::fs::create_dir_all(target)
        .map_err(|error| Error::io(format!("cannot make {}", target.display()), error))?;
    open_directory(target)
}

/// Opens a directory as a place, without reading it; a symbolic link is refused.
pub(crate) fn open_directory(path: &Path) -> Result<(OwnedFd, PathBuf)> {
    let file = File::options()
        .read(true)
        .custom_flags(nix::libc::O_PATH | nix::libc::O_NOFOLLOW | nix::libc::O_DIRECTORY)
        .open(path)
        .map_err(|error| Error::io(format!("{} is not a directory", path.display()), error))?;
    let real = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))
        .map_err(|error| Error::io(format!("cannot resolve {}", path.display()), error))?;
    Ok((file.into(), real))
}

fn attach(request: &MountRequest, options: &Options<'_>, directory: &OwnedFd) -> Result<()> {
    let context = open_filesystem(request, options)?;
    let mount = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, options.attributes)
        .map_err(|errno| reason(&context, "the kernel refused", errno))?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    // The descriptors go away with this function: an open one would keep the mount busy for ever.
    move_mount(&mount, "", directory, "", flags)
        .map_err(|errno| Error::io("the kernel refused the directory", errno.into()))
}

/// Has the kernel open the filesystem as for a mount, which replays its journal, and let it go
/// again. Nobody can see it meanwhile, and no container that starts takes it with it.
pub(crate) fn open_and_close(request: &MountRequest) -> Result<()> {
    let options = Options::parse(request)?;
    open_filesystem(request, &options).map(drop)
}

/// Opens the filesystem. It stays open while the descriptor does, mounted or not. A child process
/// on its way may have the device for itself for a moment, as with an unmount.
fn open_filesystem(request: &MountRequest, options: &Options<'_>) -> Result<OwnedFd> {
    when_idle(|| try_open_filesystem(request, options), |error| error.kind() == ErrorKind::InUse)
}

fn try_open_filesystem(request: &MountRequest, options: &Options<'_>) -> Result<OwnedFd> {
    let filesystem = request.filesystem.as_str();
    let context = fsopen(filesystem, FsOpenFlags::FSOPEN_CLOEXEC).map_err(|errno| {
        let error = Error::io(format!("this kernel has no filesystem {filesystem}"), errno.into());
        error.with_kind(ErrorKind::Unsupported).hint(format!("try: modprobe {filesystem}"))
    })?;
    fsconfig_set_string(&context, "source", request.source.as_str())
        .map_err(|errno| reason(&context, "the source was refused", errno))?;
    for (key, value) in &options.filesystem {
        match value {
            None => fsconfig_set_flag(&context, *key),
            Some(value) => fsconfig_set_string(&context, *key, *value),
        }
        .map_err(|errno| {
            let what = format!("{filesystem} does not take the mount option {key:?}");
            reason(&context, &what, errno).with_kind(ErrorKind::Invalid)
        })?;
    }
    fsconfig_create(&context).map_err(|errno| {
        let error = reason(&context, "the kernel refused", errno);
        match errno {
            // Older kernels look at the options of some filesystems only now.
            rustix::io::Errno::INVAL if !options.are_ours => error
                .with_kind(ErrorKind::Invalid)
                .context(format!("with the mount options {}", request.options.join(",")))
                .hint("check the volume's mount-options; dmesg may say more"),
            rustix::io::Errno::INVAL | rustix::io::Errno::UCLEAN | rustix::io::Errno::BADMSG => {
                error.with_kind(ErrorKind::Corrupt).hint("dmesg may say more")
            }
            _ => error,
        }
    })?;
    Ok(context)
}

/// The error with what the kernel wrote about it, which it keeps in the descriptor.
fn reason(context: &OwnedFd, what: &str, errno: rustix::io::Errno) -> Error {
    let mut said = Vec::new();
    let mut line = [0u8; 512];
    while let Ok(length @ 1..) = rustix::io::read(context.as_fd(), &mut line) {
        let text = String::from_utf8_lossy(&line[..length]);
        // Each line begins with its level: e, w or i.
        said.push(text.trim_end().get(2..).unwrap_or_default().to_owned());
        if said.len() == 8 {
            break;
        }
    }
    let what =
        if said.is_empty() { what.to_owned() } else { format!("{what}: {}", said.join("; ")) };
    Error::io(what, errno.into())
}

/// Mount options, sorted by who they are for.
struct Options<'a> {
    attributes: MountAttrFlags,
    filesystem: Vec<(&'a str, Option<&'a str>)>,
    /// No option for the filesystem came from a user.
    are_ours: bool,
}

impl<'a> Options<'a> {
    fn parse(request: &'a MountRequest) -> Result<Self> {
        let mut options =
            Self { attributes: MountAttrFlags::empty(), filesystem: Vec::new(), are_ours: true };
        for option in &request.options {
            options.add(option)?;
        }
        options.are_ours = options.filesystem.is_empty();
        if request.read_only {
            options.add("ro")?;
        }
        // A clone or a restored volume has its original's uuid until its first use.
        if request.filesystem == "xfs" && !options.filesystem.contains(&("nouuid", None)) {
            options.filesystem.push(("nouuid", None));
        }
        Ok(options)
    }

    fn add(&mut self, option: &'a str) -> Result<()> {
        let attribute = match option {
            "nosuid" => MountAttrFlags::MOUNT_ATTR_NOSUID,
            "nodev" => MountAttrFlags::MOUNT_ATTR_NODEV,
            "noexec" => MountAttrFlags::MOUNT_ATTR_NOEXEC,
            "nosymfollow" => MountAttrFlags::MOUNT_ATTR_NOSYMFOLLOW,
            "nodiratime" => MountAttrFlags::MOUNT_ATTR_NODIRATIME,
            "noatime" | "strictatime" | "relatime" => {
                self.attributes.remove(MountAttrFlags::MOUNT_ATTR__ATIME);
                match option {
                    "noatime" => MountAttrFlags::MOUNT_ATTR_NOATIME,
                    "strictatime" => MountAttrFlags::MOUNT_ATTR_STRICTATIME,
                    _ => MountAttrFlags::MOUNT_ATTR_RELATIME,
                }
            }
            "ro" => {
                self.filesystem.push(("ro", None));
                MountAttrFlags::MOUNT_ATTR_RDONLY
            }
            // What every mount is, or what only fstab reads.
            "defaults" | "rw" | "suid" | "dev" | "exec" | "atime" | "diratime" | "async"
            | "auto" | "noauto" | "nofail" | "_netdev" => MountAttrFlags::empty(),
            _ => return self.add_for_filesystem(option),
        };
        self.attributes |= attribute;
        Ok(())
    }

    fn add_for_filesystem(&mut self, option: &'a str) -> Result<()> {
        let (key, value) = match option.split_once('=') {
            None => (option, None),
            Some((key, value)) => (key, Some(value)),
        };
        // These name other devices or files of the host.
        if matches!(key, "source" | "device" | "logdev" | "rtdev" | "journal_path" | "journal_dev")
        {
            return Err(Error::invalid(format!("the mount option {key:?} is not for users")));
        }
        if key.is_empty() || option.contains('\0') {
            return Err(Error::invalid(format!("{option:?} is not a mount option")));
        }
        self.filesystem.push((key, value));
        Ok(())
    }
}

/// Unmounts, never lazily, by force or frozen, and removes the directory if it is empty then.
pub(crate) fn unmount(target: &Path) -> Result<Outcome> {
    thaw_to_unmount(target)?;
    let unmounted = when_idle(
        || rustix::mount::unmount(target, UnmountFlags::NOFOLLOW),
        |errno| *errno == rustix::io::Errno::BUSY,
    );
    let outcome = match unmounted {
        Ok(()) => Outcome::Changed,
        // Not a mount point, or not there.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => Outcome::Unchanged,
        Err(errno) => {
            return Err(Error::io(format!("cannot unmount {}", target.display()), errno.into()));
        }
    };
    // Not there, not empty or still mounted on: none of them makes the unmount less done.
    let _ = std::fs::remove_dir(target);
    Ok(outcome)
}

/// Waits a moment for users that are on their way out: a child process that we start for another
/// volume has copies of all our descriptors until it runs its program.
pub(crate) fn when_idle<T, E>(
    act: impl Fn() -> Result<T, E>,
    is_busy: impl Fn(&E) -> bool,
) -> Result<T, E> {
    const LONGEST_PAUSE: Duration = Duration::from_millis(256);
    let mut pause = Duration::from_millis(1);
    loop {
        match act() {
            Err(error) if pause <= LONGEST_PAUSE && is_busy(&error) => std::thread::sleep(pause),
            done => return done,
        }
        pause *= 2;
    }
}

/// The mounts at or below `directory`, in the kernel's order.
pub(crate) fn below(directory: &Path) -> Result<Vec<Mounted>> {
    let real = match std::fs::canonicalize(directory) {
        Ok(real) => real,
        Err(error) if error.kind() == Io::NotFound => return Ok(Vec::new()),
        Err(error) => {
            return Err(Error::io(format!("cannot resolve {}", directory.display()), error));
        }
    };
    let mounts = mountinfo::own()?.into_iter().map(|entry| entry.mounted);
    Ok(mounts
        .filter_map(|mut mounted| {
            // Told under the name that was asked for.
            let rest = mounted.target.strip_prefix(&real).ok()?.to_owned();
            mounted.target = match rest.as_os_str().is_empty() {
                true => directory.to_owned(),
                false => directory.join(rest),
            };
            Some(mounted)
        })
        .collect())
}

/// Opens the root of the mount at `target` and proves that it is one: an ioctl on the directory
/// beneath would reach the host's own filesystem.
pub(crate) fn open_mounted(target: &Path) -> Result<(File, Mounted)> {
    let failed = |error| Error::io(format!("cannot open {}", target.display()), error);
    let file = File::options()
        .read(true)
        .custom_flags(nix::libc::O_NOFOLLOW | nix::libc::O_DIRECTORY)
        .open(target)
        .map_err(failed)?;
    let fd = file.as_raw_fd();
    let real = std::fs::read_link(format!("/proc/self/fd/{fd}")).map_err(failed)?;
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).map_err(failed)?;
    let id = info
        .lines()
        .find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse::<u64>().ok())
        .ok_or_else(|| Error::internal("the kernel does not tell the mount of a file"))?;
    mountinfo::own()?
        .into_iter()
        .find(|entry| entry.id == id && entry.mounted.target == real)
        .map(|entry| (file, entry.mounted))
        .ok_or_else(|| Error::not_found(format!("nothing is mounted at {}", target.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(filesystem: &str, options: &[&str]) -> MountRequest {
        MountRequest {
            source: "/dev/null".to_owned(),
            filesystem: filesystem.to_owned(),
            target: "/nonexistent".into(),
            options: options.iter().map(|option| (*option).to_owned()).collect(),
            read_only: false,
        }
    }

    #[test]
    fn options_go_to_the_mount_or_to_the_filesystem() {
        let request = request("ext4", &["noatime", "nodev", "rw", "discard", "data=ordered"]);
        let options = Options::parse(&request).unwrap();
        assert_eq!(
            options.attributes,
            MountAttrFlags::MOUNT_ATTR_NOATIME | MountAttrFlags::MOUNT_ATTR_NODEV
        );
        assert_eq!(options.filesystem, [("discard", None), ("data", Some("ordered"))]);
        assert!(!options.are_ours);
    }

    #[test]
    fn read_only_wins_over_rw_and_xfs_never_compares_uuids() {
        let mut request = request("xfs", &["rw"]);
        request.read_only = true;
        let options = Options::parse(&request).unwrap();
        assert_eq!(options.filesystem, [("ro", None), ("nouuid", None)]);
        assert!(options.attributes.contains(MountAttrFlags::MOUNT_ATTR_RDONLY));
        assert!(options.are_ours);
    }

    #[test]
    fn rule_10_options_that_name_other_devices_are_refused() {
        for option in
            ["source=/dev/vda", "device=/dev/vda", "logdev=/dev/vda", "journal_path=/x", "=x"]
        {
            let request = request("ext4", &[option]);
            assert!(Options::parse(&request).is_err(), "{option}");
        }
    }

    #[test]
    fn rule_14_a_directory_that_is_no_mount_is_never_taken_for_one() {
        let directory = tempfile::tempdir().unwrap();
        let error = open_mounted(directory.path()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
    }

    #[test]
    fn a_link_is_not_a_place_to_mount() {
        let directory = tempfile::tempdir().unwrap();
        let link = directory.path().join("link");
        std::os::unix::fs::symlink("/", &link).unwrap();
        assert!(open_target(&link).is_err());
    }

    #[test]
    fn unmounting_nothing_changes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("x");
        assert_eq!(unmount(&target).unwrap(), Outcome::Unchanged);
        std::fs::create_dir(&target).unwrap();
        assert_eq!(unmount(&target).unwrap(), Outcome::Unchanged);
        assert!(!target.exists(), "an interrupted unmount leaves no directory");
    }
}
