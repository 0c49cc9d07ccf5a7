//! Making and removing image files.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind as Io, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::OnceLock;

use super::layout::{LOCK, Layout, STALE};
use super::{LoopConfig, Shared, attach, copy};
use crate::backend::{Expected, Locator};
use crate::clock::{Entropy, System};
use crate::error::{Error, ErrorKind, Result};
use crate::id::{StorageId, VolumeUuid};
use crate::linux::durable::{make_private_directory, replace_file, sync_directory};
use crate::linux::{LockFile, loop_device};
use crate::model::{Outcome, Volume};
use crate::units::ByteSize;

/// Opens the directory, alone, with an empty place to work in. Writes nothing where the expected
/// storage is not.
pub(super) fn open(config: LoopConfig, expected: &Expected) -> Result<Shared> {
    let place = config.dir.display().to_string();
    if expected.may_be_made() {
        std::fs::create_dir_all(&config.dir).map_err(|error| {
            Error::io(format!("cannot make {place}"), error).hint("set the directory by [loop] dir")
        })?;
    }
    let root = match std::fs::canonicalize(&config.dir) {
        Ok(root) => root,
        Err(error) => {
            if error.kind() == Io::NotFound {
                expected.admit(&place, None, |_| Ok(false))?;
            }
            return Err(Error::io(format!("cannot resolve {place}"), error));
        }
    };
    let layout = Layout::new(root);
    let root = layout.root();
    expected.admit(&place, read_id(&layout)?, |locator| {
        Ok(open_to_read(&layout.image(*locator))?.is_some())
    })?;
    let lock = LockFile::acquire(&root.join(LOCK)).map_err(|error| {
        error.context("the loop directory is in use").hint("one daemon uses a directory at a time")
    })?;
    put_leftovers_aside(&layout)?;
    let id = match read_id(&layout)? {
        Some(id) => id,
        None => make_id(&layout)?,
    };
    Ok(Shared {
        config,
        id,
        layout,
        shares_blocks: OnceLock::new(),
        copy_rate: copy::CopyRate::default(),
        _lock: lock,
    })
}

/// Which storage the directory is; `None` if it was never used.
fn read_id(layout: &Layout) -> Result<Option<StorageId>> {
    let path = layout.id();
    let Some(file) = open_to_read(&path)? else { return Ok(None) };
    let damaged = || Error::corrupt(format!("{} holds no id of a storage", path.display()));
    let mut text = String::new();
    file.take(100).read_to_string(&mut text).map_err(|error| match error.kind() {
        Io::InvalidData => damaged(),
        _ => Error::io(format!("cannot read {}", path.display()), error),
    })?;
    text.trim().parse().map(Some).map_err(|_| damaged())
}

fn make_id(layout: &Layout) -> Result<StorageId> {
    let id = StorageId::from_uuid(System.uuid());
    replace_file(&layout.id(), &layout.new_id(), format!("{id}\n").as_bytes())?;
    Ok(id)
}

fn put_leftovers_aside(layout: &Layout) -> Result<()> {
    let work = layout.work();
    if make_private_directory(&work)? {
        return Ok(());
    }
    let failed = |error| Error::io(format!("cannot put {} aside", work.display()), error);
    if std::fs::read_dir(&work).map_err(failed)?.next().is_none() {
        return Ok(());
    }
    let free = (1..).map(|n: u32| layout.root().join(format!("{STALE}{n}"))).find(|p| !p.exists());
    std::fs::rename(&work, free.unwrap_or_default()).map_err(failed)?;
    make_private_directory(&work)?;
    Ok(())
}

/// Removes what earlier runs left.
pub(super) fn remove_leftovers(shared: &Shared) -> Result<Outcome> {
    let root = shared.layout.root();
    let failed = |error| Error::io(format!("cannot remove leftovers in {}", root.display()), error);
    let mut outcome = Outcome::Unchanged;
    for entry in std::fs::read_dir(root).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if entry.file_name().as_encoded_bytes().starts_with(STALE.as_bytes()) {
            // Does not follow links.
            std::fs::remove_dir_all(entry.path()).map_err(failed)?;
            outcome = Outcome::Changed;
        }
    }
    Ok(outcome)
}

/// The size of a volume's device.
pub(super) fn device_size(volume: &Volume) -> Result<ByteSize> {
    let size = volume.size.ok_or_else(|| Error::invalid("a loop volume needs a size"))?;
    whole_blocks(size)
}

/// The least whole number of the device's blocks.
pub(super) fn whole_blocks(size: ByteSize) -> Result<ByteSize> {
    size.round_up(u64::from(loop_device::BLOCK_SIZE))
        .filter(|size| size.bytes() > 0 && i64::try_from(size.bytes()).is_ok())
        .ok_or_else(|| Error::invalid(format!("no image can be {size} large")))
}

/// Makes the image of a volume's generation: `fill` writes it, under another name.
pub(super) fn create_image(
    shared: &Shared,
    locator: Locator,
    fill: impl FnOnce(&File) -> Result<()>,
) -> Result<Outcome> {
    let layout = &shared.layout;
    let image = layout.image(locator);
    if open_image(&image)?.is_some() {
        return Ok(Outcome::Unchanged);
    }
    let directory = layout.volume(locator.volume);
    let made = make_private_directory(&directory)?;
    if let Err(error) = build(&layout.new_image(locator), &image, 0o600, fill) {
        if made {
            let _ = std::fs::remove_dir(&directory);
        }
        return Err(error);
    }
    Ok(Outcome::Changed)
}

/// Builds a file at `temporary` and renames it to `path` when it is on disk. Leaves nothing if it
/// fails.
pub(super) fn build(
    temporary: &Path,
    path: &Path,
    mode: u32,
    fill: impl FnOnce(&File) -> Result<()>,
) -> Result<()> {
    let failed = |error| Error::io(format!("cannot make {}", path.display()), error);
    // A call that was abandoned may have left one; this run holds the volume's lock.
    remove_file(temporary)?;
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).create_new(true).mode(mode).open(temporary);
    let built = file.map_err(failed).and_then(|file| {
        fill(&file)?;
        file.sync_all().map_err(failed)?;
        std::fs::rename(temporary, path).map_err(failed)
    });
    if let Err(error) = built {
        // Blocks that a failed copy holds are needed by others on a full disk.
        let _ = remove_file(temporary);
        return Err(error);
    }
    path.parent().map_or(Ok(()), sync_directory)
}

/// Removes a file; false if there is none.
pub(super) fn remove_file(path: &Path) -> Result<bool> {
    match std::fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == Io::NotFound => Ok(false),
        Err(error) => Err(Error::io(format!("cannot remove {}", path.display()), error)),
    }
}

/// Opens an image for writing; `None` if there is none. Anything but a plain file with content is
/// not an image.
pub(super) fn open_image(path: &Path) -> Result<Option<File>> {
    open_plain(path, OpenOptions::new().read(true).write(true))
}

/// Opens a file for reading, like [`open_image`].
pub(super) fn open_to_read(path: &Path) -> Result<Option<File>> {
    open_plain(path, OpenOptions::new().read(true))
}

fn open_plain(path: &Path, options: &mut OpenOptions) -> Result<Option<File>> {
    // Nonblocking, so that a named pipe in the image's place does not hang us.
    let flags = nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK;
    let file = match options.custom_flags(flags).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == Io::NotFound => return Ok(None),
        Err(error) => {
            let link = error.raw_os_error() == Some(nix::libc::ELOOP);
            let error = Error::io(format!("cannot open {}", path.display()), error);
            return Err(if link { error.with_kind(ErrorKind::Corrupt) } else { error });
        }
    };
    let meta = file
        .metadata()
        .map_err(|error| Error::io(format!("cannot inspect {}", path.display()), error))?;
    if !meta.is_file() {
        return Err(Error::corrupt(format!("{} is not a plain file", path.display())));
    }
    Ok(Some(file))
}

/// Opens an image for writing, or says that there is none.
pub(super) fn need_image(path: &Path) -> Result<File> {
    open_image(path)?.ok_or_else(|| Error::not_found(format!("there is no {}", path.display())))
}

/// Deletes a volume with all that belongs to it.
pub(super) fn delete(shared: &Shared, volume: VolumeUuid) -> Result<Outcome> {
    let directory = shared.layout.volume(volume);
    let deleted = shared.layout.deleted(volume);
    // An earlier try may have been abandoned between the rename and the end.
    let mut outcome = remove_tree(&deleted)?;
    match directory.symlink_metadata() {
        Ok(meta) if meta.is_dir() => {}
        Ok(_) => {
            return Err(Error::corrupt(format!("{} is not a directory", directory.display())));
        }
        Err(error) if error.kind() == Io::NotFound => return Ok(outcome),
        Err(error) => {
            return Err(Error::io(format!("cannot inspect {}", directory.display()), error));
        }
    }
    attach::refuse_attached_below(&directory)?;
    std::fs::rename(&directory, &deleted)
        .map_err(|error| Error::io(format!("cannot delete {}", directory.display()), error))?;
    sync_directory(shared.layout.root())?;
    outcome = outcome_or(outcome, remove_tree(&deleted)?);
    Ok(outcome)
}

fn outcome_or(one: Outcome, other: Outcome) -> Outcome {
    if one == Outcome::Changed { one } else { other }
}

/// Removes a directory with all below it; links are removed, not followed.
fn remove_tree(directory: &Path) -> Result<Outcome> {
    match std::fs::remove_dir_all(directory) {
        Ok(()) => Ok(Outcome::Changed),
        Err(error) if error.kind() == Io::NotFound => Ok(Outcome::Unchanged),
        Err(error) => Err(Error::io(format!("cannot remove {}", directory.display()), error)),
    }
}

/// Deletes one image.
pub(super) fn delete_generation(shared: &Shared, locator: Locator) -> Result<Outcome> {
    let image = shared.layout.image(locator);
    attach::refuse_attached(&image)?;
    if !remove_file(&image)? {
        return Ok(Outcome::Unchanged);
    }
    image.parent().map_or(Ok(()), sync_directory)?;
    Ok(Outcome::Changed)
}
