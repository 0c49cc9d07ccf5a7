//! Making, growing and looking after filesystems.

use std::ffi::OsString;
use std::fs::File;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::process::{Program, Programs};
use super::{FilesystemSpec, FilesystemUsage, MountRequest, blocking, durable, mount};
use crate::error::{Error, ErrorKind, Result};
use crate::model::Outcome;
use crate::options::{FilesystemKind, Ownership};

/// How much of each end of a device is read to see whether it is blank. Every filesystem that
/// blkid knows, and every partition table, has its signature there.
const ENDS: u64 = 1 << 20;

/// Making or checking a filesystem on a large slow device.
const TOOL_LIMIT: Duration = Duration::from_secs(600);
const DEVICE_LIMIT: Duration = Duration::from_secs(60);
/// Within [`DEVICE_LIMIT`], so that what is said at the end is why.
const IDLE_LIMIT: Duration = Duration::from_secs(50);

/// Whether both ends of the device hold only zeros.
pub(crate) fn is_blank(device: &Path) -> Result<bool> {
    let failed = |error| Error::io(format!("cannot read {}", device.display()), error);
    let file = File::open(device).map_err(failed)?;
    let size = size_of_device(&file).map_err(failed)?;
    if size == 0 {
        return Err(Error::corrupt(format!("{} has no size", device.display())));
    }
    let length = size.min(ENDS);
    let zeros = vec![0; usize::try_from(length).unwrap_or_default()];
    let mut bytes = zeros.clone();
    for start in [0, size - length] {
        file.read_exact_at(&mut bytes, start).map_err(failed)?;
        if bytes != zeros {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The size of an open device in bytes.
pub(crate) fn size_of_device(mut file: &File) -> std::io::Result<u64> {
    use std::io::{Seek, SeekFrom};
    file.seek(SeekFrom::End(0))
}

/// Makes a filesystem on a device that holds only zeros.
pub(crate) async fn make(programs: &Programs, device: &Path, spec: &FilesystemSpec) -> Result<()> {
    check_mkfs_options(&spec.options)?;
    let uuid = spec.uuid.hyphenated().to_string();
    let (program, ours) = match spec.kind {
        // The device is blank, so nothing has to be zeroed now or by the kernel later, when it
        // would fill the image's holes. With the seed, a clone's uuid is changed in an instant.
        FilesystemKind::Ext4 => {
            let zeroed = "-E nodiscard,assume_storage_prezeroed=1";
            let users = spec.options.iter().any(|word| word.contains("metadata_csum"));
            let seed = if users { "" } else { "-O metadata_csum_seed" };
            (Program::MkfsExt4, format!("-q -F -m 0 -U {uuid} {zeroed} {seed}"))
        }
        FilesystemKind::Xfs => (Program::MkfsXfs, format!("-q -K -m uuid={uuid}")),
        FilesystemKind::Btrfs => (Program::MkfsBtrfs, format!("-q -K -U {uuid}")),
    };
    let mut arguments: Vec<OsString> = ours.split_whitespace().map(OsString::from).collect();
    arguments.extend(spec.options.iter().map(OsString::from));
    arguments.push("--".into());
    arguments.push(device.into());
    let made = match spec.kind {
        FilesystemKind::Btrfs => run_btrfs(programs, program, &arguments).await,
        _ => programs.run(program, &arguments, TOOL_LIMIT).await,
    };
    made.map_err(|error| {
        // With words of the user's, a failure is first of all theirs to look at.
        let users = !spec.options.is_empty() && error.kind() == ErrorKind::Internal;
        let error = error.context(format!("cannot make {} on {}", spec.kind, device.display()));
        match users {
            true => error
                .with_kind(ErrorKind::Invalid)
                .hint(format!("check the mkfs-options: {}", spec.options.join(" "))),
            false => error,
        }
    })?;
    flush(device).await?;
    let path = device.to_owned();
    if blocking::run("reading the new filesystem", DEVICE_LIMIT, move || is_blank(&path)).await? {
        return Err(Error::invalid(format!("{} made no filesystem", program.name()))
            .hint(format!("check the mkfs-options: {}", spec.options.join(" "))));
    }
    Ok(())
}

/// Refuses words that would have mkfs read or write anything but its device.
fn check_mkfs_options(options: &[String]) -> Result<()> {
    for word in options {
        if word.contains('/') || word.contains("device=") || word.contains('\0') {
            return Err(Error::invalid(format!("the mkfs option {word:?} is not for users"))
                .hint("options that name files or other devices are refused"));
        }
    }
    Ok(())
}

async fn flush(device: &Path) -> Result<()> {
    let device = device.to_owned();
    blocking::run("flushing a device", DEVICE_LIMIT, move || {
        File::open(&device)
            .and_then(|file| file.sync_all())
            .map_err(|error| Error::io(format!("cannot flush {}", device.display()), error))
    })
    .await
}

/// Gives a copy of a filesystem an identity of its own.
pub(crate) async fn renew_identity(
    programs: &Programs,
    device: &Path,
    kind: FilesystemKind,
    uuid: Uuid,
) -> Result<()> {
    let uuid = uuid.hyphenated().to_string();
    let device_word = OsString::from(device);
    let with = |words: &[&str]| {
        let mut arguments: Vec<OsString> = words.iter().map(OsString::from).collect();
        arguments.push(device_word.clone());
        arguments
    };
    let changed = match kind {
        FilesystemKind::Ext4 => {
            replay_journal(device, kind).await?;
            let arguments = with(&["-U", &uuid]);
            match programs.run(Program::Tune2fs, &arguments, TOOL_LIMIT).await {
                // Without the seed of the checksums every one is written anew, and tune2fs wants
                // to be sure of what it reads.
                Err(error) if error.full_message().contains("e2fsck") => {
                    programs.run(Program::E2fsck, &with(&["-f", "-p"]), TOOL_LIMIT).await?;
                    programs.run(Program::Tune2fs, &arguments, TOOL_LIMIT).await
                }
                done => done,
            }
        }
        FilesystemKind::Xfs => {
            replay_journal(device, kind).await?;
            programs.run(Program::XfsAdmin, &with(&["-U", &uuid]), TOOL_LIMIT).await
        }
        // Older kernels do not mount a copy while its original is mounted. A copy of a frozen or
        // unmounted btrfs has no log, and then it need not be.
        FilesystemKind::Btrfs => {
            let path = device.to_owned();
            if blocking::run("reading a superblock", DEVICE_LIMIT, move || has_btrfs_log(&path))
                .await?
            {
                replay_journal(device, kind).await?;
            } else {
                wait_until_idle(device).await?;
            }
            run_btrfs(programs, Program::Btrfstune, &with(&["-f", "-M", &uuid])).await
        }
    };
    changed.map_err(|error| {
        error.context(format!("cannot give the copy on {} its own identity", device.display()))
    })?;
    flush(device).await
}

/// Whether a btrfs holds flushed changes beside its trees. btrfstune would make them unreadable.
fn has_btrfs_log(device: &Path) -> Result<bool> {
    const SUPERBLOCK: u64 = 65536;
    const MAGIC: std::ops::Range<usize> = 0x40..0x48;
    const LOG_ROOT: std::ops::Range<usize> = 0x60..0x68;
    let mut head = [0u8; 0x68];
    File::open(device)
        .and_then(|file| file.read_exact_at(&mut head, SUPERBLOCK))
        .map_err(|error| Error::io(format!("cannot read {}", device.display()), error))?;
    if head[MAGIC] != *b"_BHRfS_M" {
        return Err(Error::corrupt(format!("{} holds no btrfs", device.display())));
    }
    Ok(head[LOG_ROOT].iter().any(|byte| *byte != 0))
}

/// The tools refuse a filesystem whose journal holds changes: the kernel applies them when it opens
/// it.
async fn replay_journal(device: &Path, kind: FilesystemKind) -> Result<()> {
    let request = MountRequest {
        source: device.display().to_string(),
        filesystem: kind.as_str().to_owned(),
        target: PathBuf::new(),
        options: Vec::new(),
        read_only: false,
    };
    let what = "replaying a copied journal";
    blocking::run(what, DEVICE_LIMIT, move || mount::open_and_close(&request))
        .await
        .map_err(|error| error.context(what))?;
    wait_until_idle(device).await
}

/// Waits until the kernel has no filesystem open on the device. It may have one longer than it is
/// mounted: while a child process that we start for another volume has our descriptors, or a
/// container a copy of our mounts, and until the last of them has written what the filesystem still
/// had in memory, which takes its time on a busy disk. A tool that writes meanwhile destroys it.
async fn wait_until_idle(device: &Path) -> Result<()> {
    const LONGEST_PAUSE: Duration = Duration::from_millis(64);
    let (device, until) = (device.to_owned(), Instant::now() + IDLE_LIMIT);
    blocking::run("waiting for a device", DEVICE_LIMIT, move || {
        let mut pause = Duration::from_millis(1);
        loop {
            // A mounted filesystem has its device exclusively.
            let opened = File::options()
                .read(true)
                .write(true)
                .custom_flags(nix::libc::O_EXCL)
                .open(&device);
            match opened {
                Ok(_) => return Ok(()),
                Err(error)
                    if error.kind() == std::io::ErrorKind::ResourceBusy
                        && Instant::now() < until =>
                {
                    std::thread::sleep(pause);
                    pause = LONGEST_PAUSE.min(pause * 2);
                }
                Err(error) => {
                    return Err(Error::io(
                        format!("cannot have {} alone", device.display()),
                        error,
                    ));
                }
            }
        }
    })
    .await
}

/// Runs a program of btrfs-progs. It looks at every mounted loop device first and fails when one of
/// them, any other, goes away meanwhile.
async fn run_btrfs(
    programs: &Programs,
    program: Program,
    arguments: &[OsString],
) -> Result<String> {
    let mut tries = 1..=20;
    loop {
        match programs.run(program, arguments, TOOL_LIMIT).await {
            Err(error)
                if tries.next().is_some() && error.full_message().contains("mount status") =>
            {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            done => return done,
        }
    }
}

/// Grows the filesystem mounted at `target` to the size of its device.
pub(crate) async fn grow(
    programs: &Programs,
    device: &Path,
    kind: FilesystemKind,
    target: &Path,
) -> Result<()> {
    let (device, target) = (OsString::from(device), OsString::from(target));
    let (program, arguments) = match kind {
        FilesystemKind::Ext4 => (Program::Resize2fs, vec![device]),
        FilesystemKind::Xfs => (Program::XfsGrowfs, vec!["-d".into(), target]),
        FilesystemKind::Btrfs => {
            (Program::Btrfs, vec!["filesystem".into(), "resize".into(), "max".into(), target])
        }
    };
    let grown = programs.run(program, &arguments, TOOL_LIMIT).await.map(drop);
    grown.map_err(|error| {
        let forbidden = kind == FilesystemKind::Ext4 && !may_grow_mounted_ext4();
        let error = error.context(format!("cannot grow the {kind}"));
        match forbidden {
            true => error
                .with_kind(ErrorKind::Unsupported)
                .hint("ext4 grows while it is mounted only with CAP_SYS_RESOURCE, which this daemon does not have; unmounted it grows without"),
            false => error,
        }
    })
}

/// Whether the kernel lets us grow a mounted ext4.
fn may_grow_mounted_ext4() -> bool {
    const CAP_SYS_RESOURCE: u32 = 24;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    effective.is_none_or(|bits| bits >> CAP_SYS_RESOURCE & 1 == 1)
}

/// Grows the filesystem on a device that is not mounted, if that is the only way here: it has to be
/// checked as a whole first.
pub(crate) async fn grow_unmounted(
    programs: &Programs,
    device: &Path,
    kind: FilesystemKind,
) -> Result<Outcome> {
    if kind != FilesystemKind::Ext4 || may_grow_mounted_ext4() {
        return Ok(Outcome::Unchanged);
    }
    let failed = |error: Error| error.context("cannot grow the unmounted ext4");
    wait_until_idle(device).await.map_err(failed)?;
    let device = OsString::from(device);
    let check: [OsString; 3] = ["-f".into(), "-p".into(), device.clone()];
    programs.run(Program::E2fsck, &check, TOOL_LIMIT).await.map_err(failed)?;
    programs.run(Program::Resize2fs, &[device], TOOL_LIMIT).await.map_err(failed)?;
    Ok(Outcome::Changed)
}

/// Makes a directory with an owner and a mode; what is given of them is applied also to one that is
/// there already. A link is refused: what the volume holds may be hostile.
pub(crate) fn prepare_directory(directory: &Path, ownership: Ownership) -> Result<()> {
    let failed = |what: &str| {
        let what = format!("cannot {what} {}", directory.display());
        move |error: std::io::Error| Error::io(what, error)
    };
    let made = match std::fs::DirBuilder::new().mode(0o755).create(directory) {
        Ok(()) => true,
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => false,
        Err(error) => return Err(failed("make")(error)),
    };
    let file = File::options()
        .read(true)
        .custom_flags(nix::libc::O_NOFOLLOW | nix::libc::O_DIRECTORY)
        .open(directory)
        .map_err(|error| failed("open the directory")(error).with_kind(ErrorKind::Corrupt))?;
    if ownership.uid.is_some() || ownership.gid.is_some() {
        std::os::unix::fs::fchown(&file, ownership.uid, ownership.gid)
            .map_err(failed("set the owner of"))?;
    }
    // The process's umask has no say.
    if let Some(mode) = ownership.mode.or(made.then_some(0o755)) {
        file.set_permissions(std::fs::Permissions::from_mode(mode))
            .map_err(failed("set the mode of"))?;
    }
    file.sync_all().map_err(failed("flush"))?;
    directory.parent().map_or(Ok(()), durable::sync_directory)
}

/// Room in the filesystem that holds `path`.
pub(crate) fn usage(path: &Path) -> Result<FilesystemUsage> {
    let room = rustix::fs::statvfs(path).map_err(|errno| {
        Error::io(format!("cannot tell the room at {}", path.display()), errno.into())
    })?;
    let bytes = |blocks: u64| blocks.saturating_mul(room.f_frsize);
    Ok(FilesystemUsage {
        total: bytes(room.f_blocks),
        used: bytes(room.f_blocks.saturating_sub(room.f_bfree)),
        available: bytes(room.f_bavail),
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn rule_06_a_device_is_blank_only_if_both_ends_are_zeros() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(is_blank(file.path()).is_err(), "no size");
        file.as_file().set_len(8 << 20).unwrap();
        assert!(is_blank(file.path()).unwrap());
        for position in [0, 1080, (1 << 20) - 1, (7 << 20) + 5, (8 << 20) - 1] {
            file.as_file().write_all_at(&[1], position).unwrap();
            assert!(!is_blank(file.path()).unwrap(), "a byte at {position}");
            file.as_file().write_all_at(&[0], position).unwrap();
        }
        assert!(is_blank(Path::new("/nonexistent")).is_err(), "a failed read is not blank");
    }

    #[test]
    fn rule_10_mkfs_is_given_no_other_file() {
        for bad in ["/etc", "-d/etc", "device=UUID=1", "../x", "logdev=/dev/vda"] {
            assert!(check_mkfs_options(&[bad.to_owned()]).is_err(), "{bad}");
        }
        assert!(check_mkfs_options(&["-i".to_owned(), "size=1024".to_owned()]).is_ok());
    }

    #[test]
    fn a_prepared_directory_has_its_owner_and_mode_and_is_never_a_link() {
        let directory = tempfile::tempdir().unwrap();
        let data = directory.path().join("data");
        let ownership = Ownership { uid: None, gid: None, mode: Some(0o2770) };
        for _ in 0..2 {
            prepare_directory(&data, ownership).unwrap();
            assert_eq!(data.metadata().unwrap().mode() & 0o7777, 0o2770);
        }
        prepare_directory(&data, Ownership::default()).unwrap();
        assert_eq!(data.metadata().unwrap().mode() & 0o7777, 0o2770, "not asked for");
        let link = directory.path().join("link");
        std::os::unix::fs::symlink("/etc", &link).unwrap();
        let error = prepare_directory(&link, ownership).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
    }
}
