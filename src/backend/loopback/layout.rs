//! Where everything of a volume lies below the backend's directory.
//!
//! ```text
//! <dir>/.id                                which storage it is
//! <dir>/.lock                              held by the one daemon that uses the directory
//! <dir>/.work/                             unfinished and deleted things of this run
//! <dir>/.stale-<n>/                        the same of earlier runs, to be removed
//! <dir>/<volume uuid>/volume.json          the description
//! <dir>/<volume uuid>/image.<generation>   the content
//! <dir>/<volume uuid>/snapshots/<uuid>     a snapshot's content, never written to
//! ```
//!
//! Everything is built in `.work` and renamed into its place when it is whole and on disk, so that
//! what has its name is finished.

use std::path::{Path, PathBuf};

use crate::backend::Locator;
use crate::id::{Generation, SnapshotUuid, VolumeUuid};

pub(super) const ID: &str = ".id";
pub(super) const LOCK: &str = ".lock";
pub(super) const WORK: &str = ".work";
pub(super) const STALE: &str = ".stale-";
const DESCRIPTION: &str = "volume.json";
const SNAPSHOTS: &str = "snapshots";
const IMAGE: &str = "image.";

/// The paths below one directory.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    root: PathBuf,
}

impl Layout {
    pub(super) fn new(root: PathBuf) -> Self {
        Self { root }
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn id(&self) -> PathBuf {
        self.root.join(ID)
    }

    /// Where the id is written.
    pub(super) fn new_id(&self) -> PathBuf {
        self.work().join("id")
    }

    pub(super) fn work(&self) -> PathBuf {
        self.root.join(WORK)
    }

    pub(super) fn volume(&self, volume: VolumeUuid) -> PathBuf {
        self.root.join(volume.to_string())
    }

    pub(super) fn image(&self, locator: Locator) -> PathBuf {
        self.volume(locator.volume).join(format!("{IMAGE}{}", locator.generation))
    }

    pub(super) fn snapshots(&self, volume: VolumeUuid) -> PathBuf {
        self.volume(volume).join(SNAPSHOTS)
    }

    pub(super) fn snapshot(&self, volume: VolumeUuid, snapshot: SnapshotUuid) -> PathBuf {
        self.snapshots(volume).join(snapshot.to_string())
    }

    pub(super) fn description(&self, volume: VolumeUuid) -> PathBuf {
        self.volume(volume).join(DESCRIPTION)
    }

    /// Where an image is built.
    pub(super) fn new_image(&self, locator: Locator) -> PathBuf {
        self.work().join(format!("{}-{IMAGE}{}", locator.volume, locator.generation))
    }

    /// Where a snapshot is built.
    pub(super) fn new_snapshot(&self, snapshot: SnapshotUuid) -> PathBuf {
        self.work().join(format!("{snapshot}-snapshot"))
    }

    /// Where a description is written.
    pub(super) fn new_description(&self, volume: VolumeUuid) -> PathBuf {
        self.work().join(format!("{volume}-{DESCRIPTION}"))
    }

    /// Where a deleted volume goes first.
    pub(super) fn deleted(&self, volume: VolumeUuid) -> PathBuf {
        self.work().join(format!("{volume}-deleted"))
    }

    /// The generation that a file's name in a volume's directory stands for.
    pub(super) fn generation_of(name: &str) -> Option<Generation> {
        let number = name.strip_prefix(IMAGE)?.parse().ok()?;
        let generation = Generation::from_number(number);
        // Only the name that we would give: no plus sign, no leading zero.
        (name == format!("{IMAGE}{generation}")).then_some(generation)
    }

    /// The volume that a directory's name stands for.
    pub(super) fn volume_of(name: &str) -> Option<VolumeUuid> {
        let volume: VolumeUuid = name.parse().ok()?;
        (name == volume.to_string()).then_some(volume)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rule_10_only_our_own_names_stand_for_something() {
        assert_eq!(Layout::generation_of("image.7"), Some(Generation::from_number(7)));
        for bad in
            ["image.", "image.07", "image.+7", "image.7x", "image", "image.99999999999999999999"]
        {
            assert_eq!(Layout::generation_of(bad), None, "{bad}");
        }
        let uuid = "6e0b7cf3-3b43-4b4c-8f0e-9c8b6c4e4f10";
        assert!(Layout::volume_of(uuid).is_some());
        for bad in [&uuid.to_uppercase(), &uuid.replace('-', ""), &format!("{{{uuid}}}"), "x"] {
            assert_eq!(Layout::volume_of(bad), None, "{bad}");
        }
    }
}
