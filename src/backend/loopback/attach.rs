//! Images behind loop devices.

use std::collections::HashMap;
use std::fs::File;
use std::io::ErrorKind as Io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::files;
use crate::backend::{MountSource, Presence};
use crate::error::{Error, ErrorKind, Result};
use crate::linux::loop_device::{BLOCK_SIZE, Bound, FileIdentity, LoopDevice, bound, showing};
use crate::model::Outcome;
use crate::units::ByteSize;

/// How long the kernel may take to let go a device after its last user went.
const LET_GO_WITHIN: Duration = Duration::from_secs(5);

/// Puts the image behind a device, or finds the one that it is behind, and proves that the device
/// shows this very file.
pub(super) fn attach(path: &Path) -> Result<LoopDevice> {
    let image = files::need_image(path)?;
    let identity = identity(&image, path)?;
    let size = whole_size(&image, path)?;
    if let Some(device) = find(identity, path)? {
        // Only a growth that stopped half-way leaves them different.
        if device.size()? != size {
            device.update_capacity()?;
        }
        return proved(device, identity, size, path);
    }
    let device = LoopDevice::bind(&image)
        .map_err(|error| error.context(format!("cannot attach {}", path.display())))?;
    proved(device, identity, size, path)
}

/// The device that shows the image, open.
fn find(identity: FileIdentity, path: &Path) -> Result<Option<LoopDevice>> {
    let devices = bound()?;
    let found = showing(&devices, identity, path)?;
    if let Some(partly) = found.iter().find(|device| !device.whole) {
        return Err(Error::in_use(format!(
            "{} shows a part of {}",
            partly.device().display(),
            path.display()
        ))
        .hint(format!("detach it first: losetup -d {}", partly.device().display())));
    }
    match found[..] {
        [] => Ok(None),
        [one] => {
            // It may have been let go, and even bound again, since it was listed.
            let opened = LoopDevice::open(one.index)?;
            Ok(opened.filter(|(_, now)| now.identity == identity).map(|(device, _)| device))
        }
        [one, other, ..] => Err(Error::corrupt(format!(
            "{} and {} both show {}: to write through both destroys it",
            one.device().display(),
            other.device().display(),
            path.display()
        ))
        .hint("detach the one that is not mounted: losetup -d DEVICE")),
    }
}

fn proved(
    device: LoopDevice,
    identity: FileIdentity,
    size: u64,
    path: &Path,
) -> Result<LoopDevice> {
    let shown = device.status()?;
    let wrong = match shown {
        Some(Bound { identity: now, whole: true, .. }) if now == identity => device.size()? != size,
        _ => true,
    };
    if wrong {
        return Err(Error::corrupt(format!(
            "{} does not show {}",
            device.path().display(),
            path.display()
        )));
    }
    Ok(device)
}

fn identity(image: &File, path: &Path) -> Result<FileIdentity> {
    image
        .metadata()
        .map(|meta| FileIdentity::from(&meta))
        .map_err(|error| Error::io(format!("cannot inspect {}", path.display()), error))
}

fn whole_size(image: &File, path: &Path) -> Result<u64> {
    let size = image
        .metadata()
        .map(|meta| meta.len())
        .map_err(|error| Error::io(format!("cannot inspect {}", path.display()), error))?;
    if size == 0 || !size.is_multiple_of(u64::from(BLOCK_SIZE)) {
        return Err(Error::corrupt(format!(
            "{} is {size} bytes large: not an image that we made",
            path.display()
        )));
    }
    Ok(size)
}

/// What exists at the image's path, and the device that shows it.
pub(super) fn inspect(path: &Path) -> Result<Presence> {
    let Some(image) = files::open_to_read(path)? else { return Ok(Presence::Absent) };
    let identity = identity(&image, path)?;
    let size = image
        .metadata()
        .map(|meta| ByteSize::new(meta.len()))
        .map_err(|error| Error::io(format!("cannot inspect {}", path.display()), error))?;
    let devices = bound()?;
    let attached =
        showing(&devices, identity, path)?.first().map(|b| MountSource::Device(b.device()));
    Ok(Presence::Present { size: Some(size), attached })
}

/// Waits until the kernel has let the device go, which it does by itself when nobody has it mounted
/// or open.
pub(super) fn wait_until_detached(path: &Path) -> Result<Outcome> {
    let Some(image) = files::open_to_read(path)? else { return Ok(Outcome::Unchanged) };
    let identity = identity(&image, path)?;
    let began = Instant::now();
    let mut pause = Duration::from_millis(1);
    let mut outcome = Outcome::Unchanged;
    loop {
        let devices = bound()?;
        let found = showing(&devices, identity, path)?;
        let Some(device) = found.first() else { return Ok(outcome) };
        outcome = Outcome::Changed;
        if began.elapsed() >= LET_GO_WITHIN || is_mounted(device)? {
            return Err(in_use(device, path));
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(100));
    }
}

/// Whether it is mounted in our own namespace: then waiting is in vain.
fn is_mounted(device: &Bound) -> Result<bool> {
    crate::linux::is_mounted(&device.device())
}

fn in_use(device: &Bound, path: &Path) -> Error {
    let device = device.device();
    let device = device.display();
    Error::in_use(format!("{} is attached as {device}, which is mounted or open", path.display()))
        .hint(format!("see who uses it: findmnt {device}; fuser -v {device}"))
}

/// Fails if the file is behind a device.
pub(super) fn refuse_attached(path: &Path) -> Result<()> {
    let Some(image) = files::open_to_read(path)? else { return Ok(()) };
    let identity = identity(&image, path)?;
    match showing(&bound()?, identity, path)?.first() {
        None => Ok(()),
        Some(device) => Err(in_use(device, path)),
    }
}

/// Fails if any file of a volume is behind a device, or was and has been replaced since.
pub(super) fn refuse_attached_below(directory: &Path) -> Result<()> {
    let devices = bound()?;
    if devices.is_empty() {
        return Ok(());
    }
    let mut files = HashMap::new();
    list_files(directory, &mut files)?;
    for device in &devices {
        if let Some(path) = files.get(&device.identity) {
            return Err(in_use(device, path));
        }
        if device.path.starts_with(directory) {
            return Err(in_use(device, &device.path));
        }
    }
    Ok(())
}

fn list_files(directory: &Path, files: &mut HashMap<FileIdentity, PathBuf>) -> Result<()> {
    let failed = |error| Error::io(format!("cannot list {}", directory.display()), error);
    for entry in std::fs::read_dir(directory).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let path = entry.path();
        let meta = match path.symlink_metadata() {
            Ok(meta) => meta,
            Err(error) if error.kind() == Io::NotFound => continue,
            Err(error) => return Err(failed(error)),
        };
        if meta.is_dir() {
            list_files(&path, files)?;
        } else if meta.is_file() {
            files.insert(FileIdentity::from(&meta), path);
        }
    }
    Ok(())
}

/// Makes the image larger, and the device that shows it.
pub(super) fn grow(path: &Path, size: ByteSize) -> Result<Outcome> {
    let image = files::need_image(path)?;
    let identity = identity(&image, path)?;
    let mut outcome = Outcome::Unchanged;
    if whole_size(&image, path)? < size.bytes() {
        files::set_size(&image, size)?;
        image
            .sync_all()
            .map_err(|error| Error::io(format!("cannot flush {}", path.display()), error))?;
        outcome = Outcome::Changed;
    }
    if let Some(device) = find(identity, path).map_err(|error| match error.kind() {
        ErrorKind::Corrupt | ErrorKind::InUse => error,
        _ => error.context("cannot find the image's device"),
    })? {
        let now = whole_size(&image, path)?;
        if device.size()? != now {
            device.update_capacity()?;
            outcome = Outcome::Changed;
        }
        proved(device, identity, now, path)?;
    }
    Ok(outcome)
}
