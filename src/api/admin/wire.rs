//! What goes over the admin socket besides the engine's views.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::backend::PoolCheck;
use crate::engine::view::{ErrorView, PruneReport, RepositoryCheck, Verification};
use crate::error::Error;
use crate::id::OperationId;
use crate::model::{Backup, Schedule};
use crate::name::SnapshotName;
use crate::repository::Prune;
use crate::units::ByteSize;

/// A volume to be made.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateVolume {
    /// Its name.
    pub name: String,
    /// Its options, as for `docker volume create -o`.
    #[serde(default)]
    pub options: BTreeMap<String, String>,
    /// Its labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// A snapshot to be cut.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cut {
    /// Its name.
    pub name: String,
    /// The hook that runs before and after it; else the volume's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hook: Option<String>,
}

/// The new name of a volume.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Named {
    /// The name.
    pub name: String,
}

/// A volume that a backend holds and nobody knows, to be taken up.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Adopt {
    /// Its uuid.
    pub uuid: String,
    /// Its name from now on; else the one that it had last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// When snapshots and backups of a volume are to be made, and how many are kept.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetSchedule {
    /// When snapshots are cut.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot_every: Option<String>,
    /// When backups are made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup_every: Option<String>,
    /// How many are kept; else all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep: Option<String>,
    /// Where backups go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repository: Option<String>,
    /// What runs before and after each snapshot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hook: Option<String>,
}

impl TryFrom<SetSchedule> for Schedule {
    type Error = Error;

    fn try_from(asked: SetSchedule) -> Result<Self, Error> {
        let timing = |text: Option<String>| text.map(|text| text.parse()).transpose();
        Ok(Self {
            snapshot: timing(asked.snapshot_every)?,
            backup: timing(asked.backup_every)?,
            keep: asked.keep.as_deref().unwrap_or_default().parse()?,
            repository: asked.repository.map(TryInto::try_into).transpose()?,
            hook: asked.hook.map(TryInto::try_into).transpose()?,
        })
    }
}

/// Who mounts or unmounts.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MountBy {
    /// The mount id.
    pub id: String,
}

/// How large a volume is to be.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resize {
    /// A size as users write it, or bytes.
    pub size: Size,
}

/// How large a pool is to be.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GrowPool {
    /// A size as users write it, or bytes; without it as large as what it lies on has become.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<Size>,
}

/// A volume to be backed up.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateBackup {
    /// The volume.
    pub volume: String,
    /// Its snapshot to store; else one is cut.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<String>,
    /// What runs before and after the snapshot, by its name in the configuration; else the volume's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hook: Option<String>,
    /// Where to; else the default repository.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repository: Option<String>,
}

/// Backups to be read back.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VerifyBackups {
    /// One backup; else every one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup: Option<String>,
    /// Where they are; else the default repository.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repository: Option<String>,
}

/// What to do about that which no backup needs.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PruneRepository {
    /// `plan`, `mark` or `now`; `mark` if it is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub how: Option<Prune>,
}

/// A size in either form.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Size {
    /// Bytes.
    Bytes(u64),
    /// Text such as `10G`.
    Text(String),
}

impl TryFrom<Size> for ByteSize {
    type Error = Error;

    fn try_from(size: Size) -> Result<Self, Error> {
        match size {
            Size::Bytes(bytes) => Ok(Self::new(bytes)),
            Size::Text(text) => text.parse(),
        }
    }
}

/// What a check of a pool or a repository has found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// Whether nothing is wrong.
    pub sound: bool,
    /// What was found, as sentences.
    pub findings: Vec<String>,
    /// What to do, one step each, in order; empty if nothing has to be done.
    pub advice: Vec<String>,
}

impl From<PoolCheck> for Check {
    fn from(PoolCheck { sound, findings, advice }: PoolCheck) -> Self {
        Self { sound, findings, advice }
    }
}

impl From<RepositoryCheck> for Check {
    fn from(RepositoryCheck { sound, findings, advice }: RepositoryCheck) -> Self {
        Self { sound, findings, advice }
    }
}

/// The answer to a change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changed {
    /// The volume, the snapshot as `volume@snapshot`, the pool, the backup, or the repository.
    pub name: String,
    /// What the change could be watched by.
    pub operation: OperationId,
    /// Whether anything had to be done; not told of a change that goes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changed: Option<bool>,
    /// Where the volume is mounted now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mountpoint: Option<PathBuf>,
    /// The snapshot that keeps what a restore replaced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub safety: Option<SnapshotName>,
    /// What a check of a pool or a repository has found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub check: Option<Check>,
    /// What a repair of a pool has done, as sentences.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub report: Option<Vec<String>>,
    /// The backup that was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup: Option<Backup>,
    /// What reading backups back has found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verification: Option<Verification>,
    /// What a prune has done or would do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prune: Option<PruneReport>,
}

impl Changed {
    /// A change that goes on.
    pub(super) fn begun(name: String, operation: OperationId) -> Self {
        Self {
            name,
            operation,
            changed: None,
            mountpoint: None,
            safety: None,
            check: None,
            report: None,
            backup: None,
            verification: None,
            prune: None,
        }
    }
}

/// An error as the body of an answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ErrorBody {
    /// The error.
    pub error: ErrorView,
}

impl From<&Error> for ErrorBody {
    fn from(error: &Error) -> Self {
        Self {
            error: ErrorView {
                code: error.kind().code().to_owned(),
                message: error.full_message(),
                hint: error.hint_text().map(str::to_owned),
            },
        }
    }
}
