//! Image files behind loop devices: found by the file itself, proved, grown.

use std::fs::File;
use std::path::Path;

use super::loop_device::{BLOCK_SIZE, Bound, FileIdentity, LoopDevice, bound, showing};
use crate::error::{Error, ErrorKind, Result};
use crate::model::Outcome;
use crate::units::ByteSize;

/// Puts the image behind a device, or finds the one that it is behind, and proves that the device
/// shows this very file.
pub(crate) fn attach(image: &File, path: &Path) -> Result<LoopDevice> {
    let identity = identity(image, path)?;
    let size = whole_size(image, path)?;
    if let Some(device) = find(identity, path)? {
        // Only a growth that stopped half-way leaves them different.
        if device.size()? != size {
            device.update_capacity()?;
        }
        return proved(device, identity, size, path);
    }
    let device = LoopDevice::bind(image)
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

/// Which file the image is.
pub(crate) fn identity(image: &File, path: &Path) -> Result<FileIdentity> {
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

/// Makes the image larger, and the device that shows it.
pub(crate) fn grow(image: &File, path: &Path, size: ByteSize) -> Result<Outcome> {
    let identity = identity(image, path)?;
    let mut outcome = Outcome::Unchanged;
    if whole_size(image, path)? < size.bytes() {
        set_size(image, size)?;
        image
            .sync_all()
            .map_err(|error| Error::io(format!("cannot flush {}", path.display()), error))?;
        outcome = Outcome::Changed;
    }
    if let Some(device) = find(identity, path).map_err(|error| match error.kind() {
        ErrorKind::Corrupt | ErrorKind::InUse => error,
        _ => error.context("cannot find the image's device"),
    })? {
        let now = whole_size(image, path)?;
        if device.size()? != now {
            device.update_capacity()?;
            outcome = Outcome::Changed;
        }
        proved(device, identity, now, path)?;
    }
    Ok(outcome)
}

/// Sets the size of an image; what is new in it reads as zeros.
pub(crate) fn set_size(image: &File, size: ByteSize) -> Result<()> {
    image.set_len(size.bytes()).map_err(|error| {
        let large = error.kind() == std::io::ErrorKind::FileTooLarge;
        let error = Error::io(format!("cannot make an image of {size}"), error);
        match large {
            true => error
                .with_kind(ErrorKind::Invalid)
                .hint("the filesystem below holds no file that large"),
            false => error,
        }
    })
}
