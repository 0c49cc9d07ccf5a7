//! Images behind loop devices.

use std::collections::HashMap;
use std::io::ErrorKind as Io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::files;
use crate::backend::{MountSource, Presence};
use crate::error::{Error, Result};
use crate::linux::LET_GO_WITHIN;
use crate::linux::loop_device::{Bound, FileIdentity, bound, showing};
use crate::linux::loop_image::identity;
use crate::model::Outcome;
use crate::units::ByteSize;

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
