//! Backups of volumes, and the repositories that hold them.

#![expect(clippy::unused_async, reason = "not yet")]

use super::view::{BackupDetails, PruneReport, RepositoryCheck, RepositoryView, Verification};
use super::{Change, Engine};
use crate::error::{Error, Result};
use crate::id::BackupRef;
use crate::model::{Backup, Outcome};
use crate::name::{RepositoryName, SnapshotName, VolumeName};
use crate::repository::Prune;

/// Which backups to read back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verify {
    /// One.
    One(BackupRef),
    /// Every one in the repository.
    All,
}

fn not_yet() -> Error {
    Error::unsupported("not yet")
}

impl Change {
    /// Stores a volume's content in a repository: that of a snapshot, or of one that is cut for it.
    ///
    /// # Errors
    /// `NotFound` if there is no such volume, snapshot or repository; whatever the repository says.
    pub async fn back_up(
        self,
        _volume: VolumeName,
        _snapshot: Option<SnapshotName>,
        _repository: Option<RepositoryName>,
    ) -> Result<Backup> {
        Err(not_yet())
    }

    /// Removes a backup. Its room is given back by a prune.
    ///
    /// # Errors
    /// `NotFound` if there is none.
    pub async fn remove_backup(
        self,
        _backup: BackupRef,
        _repository: Option<RepositoryName>,
    ) -> Result<Outcome> {
        Err(not_yet())
    }

    /// Reads backups back and compares them with what was stored.
    ///
    /// # Errors
    /// `NotFound` if there is no such backup. Damage is no error, but what is told.
    pub async fn verify_backups(
        self,
        _which: Verify,
        _repository: Option<RepositoryName>,
    ) -> Result<Verification> {
        Err(not_yet())
    }

    /// Gives back the room of what no backup needs, or tells how much that is.
    ///
    /// # Errors
    /// `InUse` while others use the repository, for [`Prune::Now`].
    pub async fn prune(
        self,
        _repository: Option<RepositoryName>,
        _how: Prune,
    ) -> Result<PruneReport> {
        Err(not_yet())
    }

    /// Makes a repository. `Unchanged` if it is there and its password opens it.
    ///
    /// # Errors
    /// `NotFound` if the configuration has no such repository; it cannot be written.
    pub async fn init_repository(self, _repository: RepositoryName) -> Result<Outcome> {
        Err(not_yet())
    }

    /// Compares what a repository's index says with what is stored, and says what is wrong and what to do.
    ///
    /// # Errors
    /// `NotFound` if the configuration has no such repository; it cannot be read at all.
    pub async fn check_repository(self, _repository: RepositoryName) -> Result<RepositoryCheck> {
        Err(not_yet())
    }
}

impl Engine {
    /// The backups of one volume or of all, newest last.
    ///
    /// # Errors
    /// `NotFound` if there is no such repository; it cannot be read.
    pub async fn backups(
        &self,
        _volume: Option<&VolumeName>,
        _repository: Option<&RepositoryName>,
    ) -> Result<Vec<Backup>> {
        Err(not_yet())
    }

    /// All about one backup.
    ///
    /// # Errors
    /// `NotFound` if there is none; `Invalid` if several begin so.
    pub async fn backup(
        &self,
        _backup: &BackupRef,
        _repository: Option<&RepositoryName>,
    ) -> Result<BackupDetails> {
        Err(not_yet())
    }

    /// The repositories of the configuration, by name. One that cannot be reached hides no other.
    pub async fn repositories(&self) -> Vec<RepositoryView> {
        Vec::new()
    }
}
