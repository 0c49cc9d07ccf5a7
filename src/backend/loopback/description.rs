//! What is kept beside a volume's images, so that a lost catalog can be rebuilt from them.

use std::io::{ErrorKind as Io, Read};

use super::layout::Layout;
use super::{Shared, files};
use crate::backend::{Description, Found};
use crate::error::{Error, Result};
use crate::id::VolumeUuid;
use crate::linux::durable::replace_file;

/// Far more than the description of a volume with thousands of snapshots.
const LONGEST: u64 = 16 << 20;

pub(super) fn to_text(description: &Description) -> Result<Vec<u8>> {
    serde_json::to_vec_pretty(description)
        .map_err(|error| Error::internal("cannot write a description").caused_by(error))
}

/// Keeps the description with the volume.
pub(super) fn write(shared: &Shared, volume: VolumeUuid, text: &[u8]) -> Result<()> {
    let directory = shared.layout.volume(volume);
    let is_there = directory.symlink_metadata().is_ok_and(|meta| meta.is_dir());
    if !is_there {
        return Err(Error::not_found(format!("there is no {}", directory.display())));
    }
    replace_file(&shared.layout.description(volume), &shared.layout.new_description(volume), text)
}

/// Every volume that has anything in the directory.
pub(super) fn survey(shared: &Shared) -> Result<Vec<Found>> {
    let root = shared.layout.root();
    let failed = |error| Error::io(format!("cannot list {}", root.display()), error);
    let mut found = Vec::new();
    for entry in std::fs::read_dir(root).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let Some(volume) = entry.file_name().to_str().and_then(Layout::volume_of) else { continue };
        let description = read(shared, volume);
        found.push(Found { volume, description });
    }
    found.sort_by_key(|found| found.volume);
    Ok(found)
}

/// Reads a description that anybody may have written.
fn read(shared: &Shared, volume: VolumeUuid) -> Result<Description> {
    let path = shared.layout.description(volume);
    let name = path.display();
    let file = files::open_to_read(&path)?
        .ok_or_else(|| Error::not_found(format!("there is no {name}")))?;
    let mut text = Vec::new();
    file.take(LONGEST + 1).read_to_end(&mut text).map_err(|error| match error.kind() {
        Io::InvalidData => Error::corrupt(format!("cannot read {name}")).caused_by(error),
        _ => Error::io(format!("cannot read {name}"), error),
    })?;
    if text.len() as u64 > LONGEST {
        return Err(Error::corrupt(format!("{name} is too long to be ours")));
    }
    let description: Description = serde_json::from_slice(&text)
        .map_err(|error| Error::corrupt(format!("{name} is not a description")).caused_by(error))?;
    let others = description.snapshots.iter().any(|snapshot| snapshot.volume != volume);
    if description.volume.uuid != volume || others {
        return Err(Error::corrupt(format!("{name} describes another volume")));
    }
    Ok(description)
}
