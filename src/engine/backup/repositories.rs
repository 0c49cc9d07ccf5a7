//! The repositories of the configuration, and what is asked of them while nothing is changed.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::Semaphore;

use super::super::Engine;
use super::super::view::{BackupDetails, ErrorView, RepositoryState, RepositoryView};
use crate::error::{Error, ErrorKind, Result};
use crate::id::{BackupRef, SnapshotUuid, VolumeUuid};
use crate::model::{Backup, Volume};
use crate::name::{RepositoryName, VolumeName};
use crate::repository::{Layout, Repository};

/// How long a repository may take to tell what is in it.
const ANSWER: Duration = Duration::from_secs(30);

/// The repositories, and how many backups may be on their way to them at once.
#[derive(Debug)]
pub struct Repositories {
    all: BTreeMap<RepositoryName, Arc<Repository>>,
    default: Option<RepositoryName>,
    /// For each its own: a slow one holds up no other.
    turns: BTreeMap<RepositoryName, Arc<Semaphore>>,
    /// Snapshots that are being read, and by how many.
    read: Arc<Mutex<HashMap<SnapshotUuid, usize>>>,
}

/// A snapshot is being read while this lives, and must stay.
#[derive(Debug)]
pub(in super::super) struct ReadHold {
    read: Arc<Mutex<HashMap<SnapshotUuid, usize>>>,
    snapshot: SnapshotUuid,
}

impl Drop for ReadHold {
    fn drop(&mut self) {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(readers) = read.get_mut(&self.snapshot) {
            *readers -= 1;
            if *readers == 0 {
                read.remove(&self.snapshot);
            }
        }
    }
}

impl Repositories {
    /// These repositories, of which `default` is used where none is named; `concurrency` backups at once into each.
    pub fn new(all: Vec<Repository>, default: Option<RepositoryName>, concurrency: usize) -> Self {
        let named = |repository: Repository| (repository.name().clone(), Arc::new(repository));
        let all: BTreeMap<_, _> = all.into_iter().map(named).collect();
        let turns =
            |name: &RepositoryName| (name.clone(), Arc::new(Semaphore::new(concurrency.max(1))));
        Self { turns: all.keys().map(turns).collect(), all, default, read: Arc::default() }
    }

    /// Those who want to back up into a repository line up here.
    pub(super) fn turns(&self, repository: &RepositoryName) -> Result<Arc<Semaphore>> {
        let turns = self.turns.get(repository).cloned();
        turns.ok_or_else(|| Error::internal("a repository without turns"))
    }

    /// The repository of this name, or the default one.
    pub(in super::super) fn get(&self, name: Option<&RepositoryName>) -> Result<Arc<Repository>> {
        let known = || {
            let names: Vec<&str> = self.all.keys().map(RepositoryName::as_str).collect();
            match names.is_empty() {
                true => {
                    "write a section [repository.NAME] into the configuration; see docs/backups.md"
                        .to_owned()
                }
                false => format!("the configuration has: {}", names.join(", ")),
            }
        };
        let name = match (name, &self.default) {
            (Some(name), _) | (None, Some(name)) => name,
            (None, None) if self.all.is_empty() => {
                return Err(Error::not_found("there is no repository for backups").hint(known()));
            }
            (None, None) => {
                return Err(Error::invalid("it must be said which repository is meant").hint(
                    format!("name it with --repository, or set default_repository; {}", known()),
                ));
            }
        };
        self.all
            .get(name)
            .cloned()
            .ok_or_else(|| Error::not_found(format!("there is no repository {name}")).hint(known()))
    }

    /// The one of this name, or all.
    fn asked(&self, name: Option<&RepositoryName>) -> Result<Vec<Arc<Repository>>> {
        match name {
            Some(name) => Ok(vec![self.get(Some(name))?]),
            None => Ok(self.all.values().cloned().collect()),
        }
    }

    /// All backups, as far as that is known without asking.
    pub(super) fn known(&self) -> Vec<Arc<Backup>> {
        self.all.values().flat_map(|repository| repository.known()).collect()
    }

    /// When the newest backups of volumes were made, as far as that is known without asking.
    pub(in super::super) fn last_backups(&self) -> HashMap<VolumeUuid, Timestamp> {
        let mut last = HashMap::new();
        for backup in self.known() {
            let newest = last.entry(backup.uuid).or_insert(backup.created);
            *newest = backup.created.max(*newest);
        }
        last
    }

    /// Unmounts what is mounted of them. What does not let go within `limit` stays, and is used again by the
    /// next start.
    pub(in super::super) async fn release(&self, limit: Duration) {
        for (name, repository) in &self.all {
            match tokio::time::timeout(limit, repository.release()).await {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => tracing::warn!("{}", error.full_message()),
                Err(_) => {
                    tracing::warn!(repository = %name, "it stays mounted: its server does not answer")
                }
            }
        }
    }

    /// Keeps a snapshot from being deleted.
    pub(super) fn hold(&self, snapshot: SnapshotUuid) -> ReadHold {
        *self.read.lock().unwrap_or_else(PoisonError::into_inner).entry(snapshot).or_default() += 1;
        ReadHold { read: Arc::clone(&self.read), snapshot }
    }

    fn is_read(&self, snapshot: SnapshotUuid) -> bool {
        self.read.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&snapshot)
    }
}

/// Runs work on a repository where it may block for long.
pub(in super::super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|join| Error::internal("work on a repository broke off").caused_by(join))?
}

/// Asks all of these at once, so that none waits for another.
async fn answers<T: Send + 'static>(
    repositories: Vec<Arc<Repository>>,
    work: impl Fn(&Repository) -> Result<T> + Clone + Send + 'static,
) -> Vec<(Arc<Repository>, Result<T>)> {
    let asked = repositories.into_iter().map(|repository| {
        let work = work.clone();
        async move {
            let told = answer(&repository, work).await;
            (repository, told)
        }
    });
    futures_util::future::join_all(asked).await
}

/// The same for what a person waits for.
async fn answer<T: Send + 'static>(
    repository: &Arc<Repository>,
    work: impl FnOnce(&Repository) -> Result<T> + Send + 'static,
) -> Result<T> {
    let asked = Arc::clone(repository);
    match tokio::time::timeout(ANSWER, blocking(move || work(&asked))).await {
        Ok(answer) => answer,
        Err(_) => Err(Error::unavailable(format!(
            "repository {} at {} does not answer",
            repository.name(),
            repository.location()
        ))
        .hint("try again when it can be reached")),
    }
}

impl Engine {
    /// Finds out in the background what is in the repositories, so that the newest backups can be told.
    pub(in super::super) fn look_into_repositories(&self) {
        for repository in self.inner.config.repositories.all.values() {
            let repository = Arc::clone(repository);
            tokio::spawn(async move {
                if let Err(error) = answer(&repository, Repository::backups).await {
                    tracing::debug!("{}", error.full_message());
                }
            });
        }
    }

    /// A snapshot of the volume that a backup reads now keeps it from being deleted.
    pub(in super::super) fn refuse_if_read(
        &self,
        volume: &Volume,
        snapshot: Option<SnapshotUuid>,
    ) -> Result<()> {
        let repositories = &self.inner.config.repositories;
        let reading = match snapshot {
            Some(snapshot) => repositories.is_read(snapshot),
            None => self.inner.catalog.read(|state| {
                state
                    .snapshots(volume.uuid)
                    .iter()
                    .any(|snapshot| repositories.is_read(snapshot.uuid))
            }),
        };
        match reading {
            false => Ok(()),
            true => Err(Error::in_use(format!("a backup of volume {} is being made", volume.name))
                .hint("wait for it, or end it: see `holdfast operation ls` and `holdfast operation cancel`")),
        }
    }

    /// The backups of one volume or of all, newest last. Those of a volume that was removed are found by
    /// its name.
    ///
    /// # Errors
    /// `NotFound` if there is no such repository, or no backup of the volume; one cannot be read.
    pub async fn backups(
        &self,
        volume: Option<&VolumeName>,
        repository: Option<&RepositoryName>,
    ) -> Result<Vec<Backup>> {
        let mut all = Vec::new();
        let asked = self.inner.config.repositories.asked(repository)?;
        for (_, told) in answers(asked, Repository::backups).await {
            all.extend(told?);
        }
        if let Some(name) = volume {
            let uuid = self.find(name).map(|volume| volume.uuid);
            all.retain(|backup| backup.volume == *name || Some(backup.uuid) == uuid);
            if all.is_empty() {
                return Err(Error::not_found(format!("there is no backup of a volume {name}"))
                    .hint("see `holdfast backup ls`"));
            }
        }
        all.sort_by_key(|backup| (backup.created, backup.finished));
        Ok(all.into_iter().map(|backup| (*backup).clone()).collect())
    }

    /// All about one backup.
    ///
    /// # Errors
    /// `NotFound` if there is none; `Invalid` if several begin so.
    pub async fn backup(
        &self,
        backup: &BackupRef,
        repository: Option<&RepositoryName>,
    ) -> Result<BackupDetails> {
        let (repository, backup) = self.find_backup(backup, repository).await?;
        let id = backup.id;
        let manifest = answer(&repository, move |repository| repository.manifest(id)).await?;
        Ok(BackupDetails {
            backup,
            filesystem: manifest.volume.filesystem,
            options: manifest.volume.options,
            labels: manifest.volume.labels,
            layout: match manifest.layout {
                Layout::Image { .. } => "image",
                Layout::Files => "files",
            }
            .to_owned(),
        })
    }

    /// The one backup that begins so, and where it is.
    pub(in super::super) async fn find_backup(
        &self,
        wanted: &BackupRef,
        repository: Option<&RepositoryName>,
    ) -> Result<(Arc<Repository>, Backup)> {
        let mut found: Vec<(Arc<Repository>, Arc<Backup>)> = Vec::new();
        let mut unread = None;
        let asked = self.inner.config.repositories.asked(repository)?;
        for (repository, told) in answers(asked, Repository::backups).await {
            match told {
                Ok(backups) => {
                    let named = backups.into_iter().filter(|backup| wanted.names(backup.id));
                    found.extend(named.map(|backup| (Arc::clone(&repository), backup)));
                }
                Err(error) => unread = Some(error),
            }
        }
        match (&found[..], unread) {
            ([(repository, backup)], None) => Ok((Arc::clone(repository), (**backup).clone())),
            ([(repository, backup)], Some(_)) if wanted.to_string() == backup.id.to_string() => {
                Ok((Arc::clone(repository), (**backup).clone()))
            }
            // It may be in the one that cannot be read.
            ([] | [_], Some(error)) => Err(error),
            ([], None) => Err(Error::not_found(format!("there is no backup {wanted}"))
                .hint("see `holdfast backup ls`")),
            _ => Err(Error::invalid(format!("the ids of several backups begin with {wanted}"))
                .hint("give more of its digits")),
        }
    }

    /// The repositories of the configuration, by name. One that cannot be reached hides no other.
    pub async fn repositories(&self) -> Vec<RepositoryView> {
        let mut views = Vec::new();
        let all = self.inner.config.repositories.all.values().cloned().collect();
        let look = |repository: &Repository| Ok((repository.backups()?.len(), repository.size()?));
        for (repository, told) in answers(all, look).await {
            let (state, told, error) = match told {
                Ok(told) => (RepositoryState::Ready, Some(told), None),
                Err(error) => {
                    let state = match error.kind() {
                        ErrorKind::NotFound => RepositoryState::Missing,
                        ErrorKind::Unsupported | ErrorKind::Invalid => RepositoryState::Refused,
                        _ => RepositoryState::Unreachable,
                    };
                    (state, None, Some(ErrorView::from(&error)))
                }
            };
            views.push(RepositoryView {
                name: repository.name().clone(),
                default: Some(repository.name()) == self.inner.config.repositories.default.as_ref(),
                url: repository.location().to_string(),
                state,
                backups: told.map(|(backups, _)| backups),
                size: told.map(|(_, size)| size),
                error,
            });
        }
        views
    }
}
