use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::id::{Generation, VolumeUuid};
use crate::name::{BackendName, VolumeName};
use crate::options::{FilesystemKind, OnRemove, Ownership};
use crate::units::ByteSize;

/// A named filesystem that a container can mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// What the volume is, whatever its name becomes.
    pub uuid: VolumeUuid,
    /// What users call it. Unique among the volumes that are not in the trash or on their way out of it.
    pub name: VolumeName,
    /// Where it lives.
    pub backend: BackendName,
    /// Which content it holds.
    pub generation: Generation,
    /// Whether it can be used.
    pub state: VolumeState,
    /// How far its filesystem has been made.
    pub content: Content,
    /// Size of its device; on a file backend what the user asked for, as a label.
    pub size: Option<ByteSize>,
    /// Its device is larger than its filesystem: the next mount grows the filesystem.
    #[serde(default)]
    pub grow_pending: bool,
    /// The filesystem on its device; none on a file backend.
    pub filesystem: Option<FilesystemKind>,
    /// Words for mkfs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mkfs_options: Vec<String>,
    /// Options of each mount.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mount_options: Vec<String>,
    /// Owner and mode of its root, applied once.
    #[serde(default)]
    pub ownership: Ownership,
    /// Every mount is read-only.
    #[serde(default)]
    pub read_only: bool,
    /// What removing it does.
    #[serde(default)]
    pub on_remove: OnRemove,
    /// The options as the user gave them, under canonical keys.
    #[serde(default)]
    pub options: BTreeMap<String, String>,
    /// The user's labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// When it was created.
    pub created: Timestamp,
}

/// Whether a volume can be used.
///
/// ```text
///   Creating --> Ready <--> Trashed --> Purging
///      |           |
///      +-----> Deleting
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VolumeState {
    /// Being made; nobody was told that it exists.
    Creating,
    /// In use or ready for it.
    Ready,
    /// Removed by its user, kept until its time is over. Its name is free.
    Trashed {
        /// When it was removed.
        since: Timestamp,
    },
    /// Being deleted; only its backend may still hold something.
    Deleting,
    /// The same, out of the trash: its name may be another's.
    Purging,
}

impl VolumeState {
    /// One word for people and programs.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Ready => "ready",
            Self::Trashed { .. } => "trashed",
            Self::Deleting | Self::Purging => "deleting",
        }
    }
}

/// How far the filesystem of a volume has been made. Only grows, so that it is made once in a
/// volume's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Content {
    /// mkfs never finished on it.
    Blank,
    /// mkfs has finished.
    Formatted,
    /// The directory that containers see exists and has its owner and mode.
    Prepared,
}

impl Volume {
    /// Whether a user can see and use it.
    pub fn is_ready(&self) -> bool {
        self.state == VolumeState::Ready
    }

    /// Whether it keeps its name from others.
    pub fn holds_name(&self) -> bool {
        !matches!(self.state, VolumeState::Trashed { .. } | VolumeState::Purging)
    }
}
