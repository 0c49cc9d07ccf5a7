//! What the engine tells of volumes, snapshots and operations: the shapes that users see as JSON.
//! Keys are stable, sizes are bytes, times RFC 3339.

use std::collections::BTreeMap;
use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::backend::{BackendStatus, PoolLevel, Scope};
use crate::id::{BackupId, MountId, OperationId, PoolUuid, SnapshotUuid, VolumeUuid};
use crate::keep::Keep;
use crate::model::{Backup, Holder, RunResult, SnapshotOrigin, Subject};
use crate::name::{BackendName, HookName, RepositoryName, SnapshotName, VolumeName};
use crate::options::FilesystemKind;
use crate::timing::Timing;
use crate::units::ByteSize;

/// A volume in a list; told without asking any backend.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeSummary {
    /// Its name.
    pub name: VolumeName,
    /// Its uuid.
    pub uuid: VolumeUuid,
    /// Where it lives.
    pub backend: BackendName,
    /// Its size.
    pub size: Option<ByteSize>,
    /// The filesystem on its device.
    pub filesystem: Option<FilesystemKind>,
    /// `creating`, `ready`, `trashed` or `deleting`.
    pub state: String,
    /// The directory for containers, while it is mounted.
    pub mountpoint: Option<PathBuf>,
    /// Mounts less unmounts, of all ids.
    pub mounts: u32,
    /// Snapshots it has.
    pub snapshots: usize,
    /// When it was created.
    pub created: Timestamp,
}

/// All about one volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeDetails {
    /// Its name.
    pub name: VolumeName,
    /// Its uuid.
    pub uuid: VolumeUuid,
    /// Where it lives.
    pub backend: BackendName,
    /// Its size.
    pub size: Option<ByteSize>,
    /// Bytes that its content takes in the backend; none if the backend did not answer in time.
    pub used: Option<u64>,
    /// Bytes of those that neither its snapshots nor other volumes share; none if the backend does not
    /// know.
    pub exclusive: Option<u64>,
    /// `creating`, `ready`, `trashed` or `deleting`.
    pub state: String,
    /// `ok`, or what is wrong with it.
    pub health: String,
    /// The filesystem on its device.
    pub filesystem: Option<FilesystemKind>,
    /// The directory for containers, while it is mounted.
    pub mountpoint: Option<PathBuf>,
    /// Device or export, while it is mounted.
    pub source: Option<String>,
    /// Who holds it mounted.
    pub mounts: Vec<MountView>,
    /// The node that tells this.
    pub node: String,
    /// Its snapshots, oldest first.
    pub snapshots: Vec<SnapshotView>,
    /// The options as given.
    pub options: BTreeMap<String, String>,
    /// The labels.
    pub labels: BTreeMap<String, String>,
    /// When it was created.
    pub created: Timestamp,
    /// When it was last backed up.
    pub last_backup: Option<Timestamp>,
    /// When snapshots and backups are made by themselves.
    pub schedule: Option<ScheduleView>,
    /// The last snapshot by a schedule, or the attempt.
    pub last_snapshot_run: Option<RunResult>,
    /// The last backup by a schedule, or the attempt.
    pub last_backup_run: Option<RunResult>,
}

/// When snapshots and backups of a volume are made by themselves, and how many are kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScheduleView {
    /// When snapshots are cut.
    pub snapshot_every: Option<Timing>,
    /// When backups are made.
    pub backup_every: Option<Timing>,
    /// How many are kept; all if it is empty.
    pub keep: Keep,
    /// Where backups go, if that was said.
    pub repository: Option<RepositoryName>,
    /// What runs before and after each snapshot.
    pub hook: Option<HookName>,
    /// When the next snapshot is due.
    pub next_snapshot: Option<Timestamp>,
    /// When the next backup is due.
    pub next_backup: Option<Timestamp>,
}

/// The schedule of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeSchedule {
    /// The volume.
    pub volume: VolumeName,
    /// Its schedule.
    #[serde(flatten)]
    pub schedule: ScheduleView,
    /// The last snapshot that it made, or tried to make.
    pub last_snapshot_run: Option<RunResult>,
    /// The last backup that it made, or tried to make.
    pub last_backup_run: Option<RunResult>,
}

/// One holder of a mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountView {
    /// The mount id.
    pub id: MountId,
    /// Mounts less unmounts.
    pub count: u32,
    /// `container` or `host`.
    pub holder: Holder,
    /// When it mounted last.
    pub since: Timestamp,
}

/// A snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotView {
    /// The volume.
    pub volume: VolumeName,
    /// Its name within the volume.
    pub name: SnapshotName,
    /// Its uuid.
    pub uuid: SnapshotUuid,
    /// The volume's size at the time.
    pub size: Option<ByteSize>,
    /// `user`, `safety` for what a restore replaced, `schedule`, or `backup` for what one was made of.
    pub origin: SnapshotOrigin,
    /// When it was cut.
    pub created: Timestamp,
}

/// An operation, running or over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperationView {
    /// Its id.
    pub id: OperationId,
    /// What it does: `create`, `delete`, `snapshot` and so on.
    pub kind: String,
    /// What it changes, as the key `volume`, `pool` or `repository`.
    #[serde(flatten)]
    pub subject: Subject,
    /// How it stands.
    pub state: OperationState,
    /// Bytes done, for operations that copy.
    pub done: u64,
    /// Bytes to do; 0 while unknown or where nothing is copied.
    pub total: u64,
    /// When it began.
    pub started: Timestamp,
    /// When it ended.
    pub finished: Option<Timestamp>,
    /// Why it failed.
    pub error: Option<ErrorView>,
    /// What it found or did, as sentences, where there is more to tell than that it is done.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub report: Vec<String>,
}

/// How an operation stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OperationState {
    /// Waiting for another operation on the same volume, or at work.
    Running,
    /// Done.
    Done,
    /// Failed, and undone.
    Failed,
    /// Failed, and what it left could not be cleaned up yet; tried again at the next request, each minute, and at the next start.
    Stuck,
}

/// An error as programs see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorView {
    /// Stable word.
    pub code: String,
    /// What failed, and why.
    pub message: String,
    /// What to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// The node on one screen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusView {
    /// This node's name.
    pub node: String,
    /// The daemon's version.
    pub version: String,
    /// Where volumes can be reached from.
    pub scope: Scope,
    /// The backends.
    pub backends: Vec<BackendView>,
    /// The pools of those that have one.
    pub pools: Vec<PoolView>,
    /// Volumes by state.
    pub volumes: BTreeMap<String, usize>,
    /// Volumes mounted on this node.
    pub mounted: usize,
    /// Operations that run or are stuck.
    pub operations: Vec<OperationView>,
    /// What an administrator should know, as sentences.
    pub warnings: Vec<String>,
}

/// One backend on one screen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendView {
    /// Its name.
    pub name: BackendName,
    /// Whether volumes go there when nothing else is said.
    pub default: bool,
    /// Volumes it has.
    pub volumes: usize,
    /// Room and health; none if it did not answer in time.
    pub status: Option<BackendStatus>,
}

/// A pool of room that the volumes of a backend share.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolView {
    /// The name of the backend, which is the pool's.
    pub name: BackendName,
    /// Its uuid; none if that cannot be told.
    pub uuid: Option<PoolUuid>,
    /// `active`, `full`, `read-only`, `damaged`, or `unknown` if the backend did not tell in time.
    pub state: String,
    /// What it lies on; none while that is unknown.
    pub location: Option<String>,
    /// The unit in which it gives out room, in bytes.
    pub chunk_size: Option<ByteSize>,
    /// Room for data, in bytes; none if the pool cannot be asked.
    pub data: Option<PoolLevel>,
    /// Room for metadata, in bytes; none if the pool cannot be asked.
    pub metadata: Option<PoolLevel>,
    /// Whether it becomes larger by itself when little is free.
    pub grows: bool,
    /// Volumes that the catalog has in it.
    pub volumes: usize,
    /// Volumes, snapshots and earlier contents that it holds; none if the pool cannot be asked.
    pub devices: Option<usize>,
    /// What an administrator should know or mend, as sentences.
    pub warnings: Vec<String>,
}

/// Something that has happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventView {
    /// Its number: one more than that of the event before, and larger than all of the daemon's last run.
    pub sequence: u64,
    /// When it happened.
    pub time: Timestamp,
    /// Stable word, such as `volume.created`.
    pub kind: String,
    /// The volume, snapshot, pool, repository or backend.
    pub subject: String,
    /// A sentence for people.
    pub message: String,
}

/// All about one backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupDetails {
    /// What a list tells of it.
    #[serde(flatten)]
    pub backup: Backup,
    /// The filesystem in it; none for a file volume.
    pub filesystem: Option<FilesystemKind>,
    /// The volume's options at the time.
    pub options: BTreeMap<String, String>,
    /// The volume's labels at the time.
    pub labels: BTreeMap<String, String>,
    /// `image` or `files`.
    pub layout: String,
}

/// What reading backups back has found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verification {
    /// Those that were read, oldest first.
    pub backups: Vec<VerifiedBackup>,
}

/// What reading one backup back has found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifiedBackup {
    /// The backup.
    pub id: BackupId,
    /// The volume's name at the time.
    pub volume: VolumeName,
    /// Whether all of it can be restored.
    pub sound: bool,
    /// Bytes of the volume that are as they were stored.
    pub bytes: u64,
    /// What is damaged, as sentences.
    pub damage: Vec<String>,
}

/// What a prune has done or would do, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PruneReport {
    /// Whether nothing was changed.
    pub planned_only: bool,
    /// Needed by backups.
    pub used: u64,
    /// Needed by none, before the prune.
    pub unused: u64,
    /// Given back now.
    pub removed: u64,
    /// Given back by a later prune.
    pub marked: u64,
    /// Written again to get it apart from what is not needed.
    pub repacked: u64,
}

/// What a check of a repository has found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepositoryCheck {
    /// Whether nothing is wrong.
    pub sound: bool,
    /// What was found, as sentences.
    pub findings: Vec<String>,
    /// What to do about it, one step each.
    pub advice: Vec<String>,
}

/// A repository of the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepositoryView {
    /// Its name.
    pub name: RepositoryName,
    /// Where it is, without secrets.
    pub url: String,
    /// Whether backups go there when nothing else is said.
    pub default: bool,
    /// How it stands.
    pub state: RepositoryState,
    /// Backups in it; none if it cannot be asked.
    pub backups: Option<usize>,
    /// Bytes that it takes; none if that is not known.
    pub size: Option<u64>,
    /// Why it cannot be used.
    pub error: Option<ErrorView>,
}

/// How a repository stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RepositoryState {
    /// It can be used.
    Ready,
    /// Nobody has made it yet.
    Missing,
    /// It did not answer.
    Unreachable,
    /// It answered, and does not let us in: a wrong password or credentials.
    Refused,
}
