//! Room taken and room left.

use std::io::ErrorKind as Io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::layout::{ID, LOCK, Layout, STALE, WORK};
use super::{Shared, files};
use crate::backend::{BackendStatus, Locator, Usage};
use crate::error::{Error, Result};
use crate::linux::copy::allocated;
use crate::linux::filesystem_usage;
use crate::units::ByteSize;

/// What a volume's image and its snapshots take.
pub(super) fn usage(shared: &Shared, locator: Locator) -> Result<Usage> {
    let image = shared.layout.image(locator);
    let file = files::open_to_read(&image)?
        .ok_or_else(|| Error::not_found(format!("there is no {}", image.display())))?;
    let mut usage = Usage { allocated: allocated(&file)?, ..Usage::default() };
    for (_, meta) in list(&shared.layout.snapshots(locator.volume))? {
        usage.snapshots += meta.blocks() * 512;
    }
    Ok(usage)
}

/// The room below and what an administrator should know.
pub(super) fn status(shared: &Shared) -> Result<BackendStatus> {
    let root = shared.layout.root();
    let room = filesystem_usage(root)?;
    let mut warnings = Vec::new();
    let mut promised = 0u64;
    for (name, meta) in list(root)? {
        if Layout::volume_of(&name).is_some() && meta.is_dir() {
            promised = promised.saturating_add(unwritten(&root.join(name))?);
        } else if name.starts_with(STALE) {
            warnings.push(format!("{name} of an earlier run is not removed yet"));
        } else if ![ID, LOCK, WORK, "lost+found"].contains(&name.as_str()) {
            warnings.push(format!("{name} in {} is not ours", root.display()));
        }
    }
    if promised > room.available {
        warnings.push(format!(
            "the volumes may still grow by {}, but {} has only {} free",
            ByteSize::new(promised),
            root.display(),
            ByteSize::new(room.available)
        ));
    }
    Ok(BackendStatus {
        total: Some(room.total),
        free: Some(room.available),
        location: root.display().to_string(),
        warnings,
    })
}

/// What a volume's images may still allocate.
fn unwritten(volume: &Path) -> Result<u64> {
    let images = list(volume)?;
    let images = images.iter().filter(|(name, _)| Layout::generation_of(name).is_some());
    Ok(images.map(|(_, meta)| meta.len().saturating_sub(meta.blocks() * 512)).sum())
}

/// The entries of a directory that may be gone. Names that are not text are not ours.
fn list(directory: &Path) -> Result<Vec<(String, std::fs::Metadata)>> {
    let failed = |error| Error::io(format!("cannot list {}", directory.display()), error);
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == Io::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed)?;
        match entry.metadata() {
            Ok(meta) => found.push((entry.file_name().to_string_lossy().into_owned(), meta)),
            Err(error) if error.kind() == Io::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
    }
    found.sort_by(|one, other| one.0.cmp(&other.0));
    Ok(found)
}
