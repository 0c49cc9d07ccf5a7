use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::id::{BackupId, SnapshotUuid, VolumeUuid};
use crate::name::{BackendName, RepositoryName, SnapshotName, VolumeName};
use crate::units::ByteSize;

/// A snapshot's contents in a repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backup {
    /// What it is.
    pub id: BackupId,
    /// Where it is.
    pub repository: RepositoryName,
    /// The volume's name at the time.
    pub volume: VolumeName,
    /// The volume.
    pub uuid: VolumeUuid,
    /// The backend that the volume was on.
    pub backend: BackendName,
    /// The snapshot's name.
    pub snapshot: SnapshotName,
    /// The snapshot.
    pub snapshot_uuid: SnapshotUuid,
    /// The node that made it.
    pub node: String,
    /// The volume's size at the time; none for a file volume.
    pub size: Option<ByteSize>,
    /// When the snapshot was cut.
    pub created: Timestamp,
    /// When all of it was stored.
    pub finished: Timestamp,
    /// Bytes that it added to the repository.
    pub added: u64,
    /// The backup that it was made as the difference to.
    pub parent: Option<BackupId>,
    /// Whether the volume's schedule made it, which deletes it when its time is over.
    #[serde(default)]
    pub scheduled: bool,
}
