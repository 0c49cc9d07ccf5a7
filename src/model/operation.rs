use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::id::{Generation, OperationId, SnapshotUuid, VolumeUuid};
use crate::name::{HookName, SnapshotName, VolumeName};
use crate::options::OnRemove;
use crate::units::ByteSize;

/// One change in progress, recorded before its first side effect and until its last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operation {
    /// What it is.
    pub id: OperationId,
    /// The volume that it changes.
    pub volume: VolumeUuid,
    /// The volume's name when it began.
    pub name: VolumeName,
    /// What it does.
    #[serde(flatten)]
    pub kind: OperationKind,
    /// When it began.
    pub started: Timestamp,
}

impl Operation {
    /// The hook that may have begun and whose end is still to come.
    pub fn hook(&self) -> Option<&HookName> {
        match &self.kind {
            OperationKind::Snapshot { hook, .. } => hook.as_ref(),
            _ => None,
        }
    }
}

/// What an operation does, with all that recovery needs to finish or undo it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum OperationKind {
    /// A new volume, empty or with content. Undone by recovery: nobody was told of it.
    Create {
        /// The mounted volume that was frozen to copy its content.
        frozen: Option<VolumeUuid>,
    },
    /// The end of a volume. Finished by recovery once the volume is `Deleting`.
    Delete {
        /// What becomes of its data.
        disposal: OnRemove,
    },
    /// The first mount on this host. Undone by recovery: nobody will send its unmount.
    Mount,
    /// The last unmount on this host. Finished by recovery.
    Unmount,
    /// A new snapshot. Undone by recovery.
    Snapshot {
        /// The snapshot.
        snapshot: SnapshotUuid,
        /// The hook that may have begun and whose end is still to come.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        hook: Option<HookName>,
    },
    /// The end of a snapshot. Finished by recovery.
    DeleteSnapshot {
        /// The snapshot.
        snapshot: SnapshotUuid,
    },
    /// A snapshot's content in place of the volume's. Finished if the volume has generation `to`,
    /// else undone.
    Restore {
        /// The snapshot to restore.
        from: SnapshotUuid,
        /// The snapshot of what is replaced.
        safety: SnapshotUuid,
        /// The generation that is replaced.
        old: Generation,
        /// The generation that takes its place.
        new: Generation,
    },
    /// A larger device and filesystem. Recorded by recovery if the device has grown, else forgotten.
    Grow {
        /// The size to reach.
        to: ByteSize,
    },
    /// Another name. Finished by recovery if the name is recorded, else undone.
    Rename,
    /// The way back out of the trash. Finished by recovery.
    Undelete,
    /// A backup of a snapshot. What was cut for it is deleted by recovery, unless it costs nothing to keep.
    Backup {
        /// The snapshot's name.
        snapshot: SnapshotName,
        /// Whether it is cut for the backup.
        made: bool,
    },
    /// Another schedule, or none any more. Finished by recovery.
    Schedule,
}

impl OperationKind {
    /// One word for people and programs.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Create { .. } => "create",
            Self::Delete { .. } => "delete",
            Self::Mount => "mount",
            Self::Unmount => "unmount",
            Self::Snapshot { .. } => "snapshot",
            Self::DeleteSnapshot { .. } => "delete-snapshot",
            Self::Restore { .. } => "restore",
            Self::Grow { .. } => "grow",
            Self::Rename => "rename",
            Self::Undelete => "undelete",
            Self::Backup { .. } => "backup",
            Self::Schedule => "schedule",
        }
    }
}
