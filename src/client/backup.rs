//! Backups and repositories.

use hyper::Method;

use super::{Answer, Client, How};
use crate::api::admin::{Changed, CreateBackup, PruneRepository, VerifyBackups};
use crate::engine::view::{BackupDetails, RepositoryView};
use crate::id::BackupRef;
use crate::model::Backup;
use crate::name::{HookName, RepositoryName, SnapshotName, VolumeName};
use crate::repository::Prune;

impl Client {
    /// The backups of one volume or of all, newest last.
    ///
    /// # Errors
    /// [`super::Failure`]
    pub async fn backups(
        &self,
        volume: Option<&VolumeName>,
        repository: Option<&RepositoryName>,
    ) -> Answer<Vec<Backup>> {
        let volume = volume.map(|volume| format!("volume={volume}"));
        let repository = repository.map(|repository| format!("repository={repository}"));
        let query: Vec<String> = volume.into_iter().chain(repository).collect();
        self.get(&format!("/v1/backups?{}", query.join("&"))).await
    }

    /// One backup.
    ///
    /// # Errors
    /// [`super::Failure`]
    pub async fn backup(
        &self,
        id: &BackupRef,
        repository: Option<&RepositoryName>,
    ) -> Answer<BackupDetails> {
        self.get(&of(id, repository)).await
    }

    /// Backs a volume up: `snapshot` of it, or one that is cut for it.
    ///
    /// # Errors
    /// [`super::Failure`]
    pub async fn back_up(
        &self,
        how: How,
        volume: &VolumeName,
        snapshot: Option<&SnapshotName>,
        repository: Option<&RepositoryName>,
        hook: Option<&HookName>,
    ) -> Answer<Changed> {
        let asked = CreateBackup {
            hook: hook.map(ToString::to_string),
            volume: volume.to_string(),
            snapshot: snapshot.map(ToString::to_string),
            repository: repository.map(ToString::to_string),
        };
        self.change(how, Method::POST, "/v1/backups", &asked).await
    }

    /// Removes a backup.
    ///
    /// # Errors
    /// [`super::Failure`]
    pub async fn remove_backup(
        &self,
        how: How,
        id: &BackupRef,
        repository: Option<&RepositoryName>,
    ) -> Answer<Changed> {
        self.change(how, Method::DELETE, &of(id, repository), &()).await
    }

    /// Reads a backup back, or every one.
    ///
    /// # Errors
    /// [`super::Failure`]
    pub async fn verify_backups(
        &self,
        how: How,
        id: Option<&BackupRef>,
        repository: Option<&RepositoryName>,
    ) -> Answer<Changed> {
        let asked = VerifyBackups {
            backup: id.map(ToString::to_string),
            repository: repository.map(ToString::to_string),
        };
        self.change(how, Method::POST, "/v1/backups/verify", &asked).await
    }

    /// The repositories of the daemon's configuration.
    ///
    /// # Errors
    /// [`super::Failure`]
    pub async fn repositories(&self) -> Answer<Vec<RepositoryView>> {
        self.get("/v1/repositories").await
    }

    /// Makes a repository.
    ///
    /// # Errors
    /// [`super::Failure`]
    pub async fn init_repository(&self, how: How, name: &RepositoryName) -> Answer<Changed> {
        self.change(how, Method::POST, &format!("/v1/repositories/{name}/init"), &()).await
    }

    /// Compares a repository's index with what is stored.
    ///
    /// # Errors
    /// [`super::Failure`]
    pub async fn check_repository(&self, how: How, name: &RepositoryName) -> Answer<Changed> {
        self.change(how, Method::POST, &format!("/v1/repositories/{name}/check"), &()).await
    }

    /// Gives back the room of what no backup needs.
    ///
    /// # Errors
    /// [`super::Failure`]
    pub async fn prune(&self, how: How, name: &RepositoryName, kind: Prune) -> Answer<Changed> {
        let asked = PruneRepository { how: Some(kind) };
        self.change(how, Method::POST, &format!("/v1/repositories/{name}/prune"), &asked).await
    }
}

fn of(id: &BackupRef, repository: Option<&RepositoryName>) -> String {
    match repository {
        Some(repository) => format!("/v1/backups/{id}?repository={repository}"),
        None => format!("/v1/backups/{id}"),
    }
}
