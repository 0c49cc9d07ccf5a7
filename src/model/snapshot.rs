use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::id::{Generation, SnapshotUuid, VolumeUuid};
use crate::model::Content;
use crate::name::SnapshotName;
use crate::units::ByteSize;

/// A read-only point in time of one volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// What it is.
    pub uuid: SnapshotUuid,
    /// The volume that it was cut from.
    pub volume: VolumeUuid,
    /// Its name within the volume.
    pub name: SnapshotName,
    /// The volume's generation at the time.
    pub generation: Generation,
    /// The volume's size at the time.
    pub size: Option<ByteSize>,
    /// How far the volume's filesystem had been made.
    pub content: Content,
    /// Who asked for it.
    pub origin: SnapshotOrigin,
    /// Whether it may be read: not before its last step.
    pub complete: bool,
    /// When it was cut.
    pub created: Timestamp,
}

/// Who asked for a snapshot. Retention deletes those of schedules and no others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SnapshotOrigin {
    /// A user.
    User,
    /// A restore in place, which keeps what it replaces.
    Safety,
    /// A schedule, which deletes it when its time is over.
    Schedule,
    /// A backup, of whose contents it is.
    Backup,
}

impl SnapshotOrigin {
    /// One word for people and programs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Safety => "safety",
            Self::Schedule => "schedule",
            Self::Backup => "backup",
        }
    }
}
