//! Backups in restic's repository format (version 2: encrypted, compressed, deduplicated), written with
//! rustic_core, so that restic reads them without us.
//!
//! Everything here blocks, and is called on threads that may. A backup is there when its snapshot file is:
//! that is stored last, when all that it needs is durable, and only if everything was read.

mod archive;
mod backup;
mod chunks;
mod cipher;
mod directory;
mod errors;
mod files;
mod image;
mod location;
mod lock;
mod manifest;
mod mend;
mod node;
mod objects;
mod pack;
mod reading;
mod restore;
mod secret;
mod session;
mod store;
mod tree;
mod upkeep;
mod verify;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use object_store::ObjectStore;
use object_store::path::Path;
use rustic_core::repofile::{MasterKey, SnapshotFile, SnapshotId};
use rustic_core::{
    ConfigOptions, Credentials, KeyOptions, OpenStatus, RepositoryBackends, RepositoryOptions,
};
use tokio::runtime::Handle;

pub use backup::{Base, ImageJob, Stored};
pub use image::Image;
pub use location::Location;
pub use manifest::{Layout, Manifest};
pub use objects::S3Settings;
pub use restore::Target;
pub use secret::{Secret, SecretSource};
pub use store::Limits;
pub use tree::TreeJob;
pub use upkeep::{Prune, Pruned};
pub use verify::Verified;

use crate::error::{Error, ErrorKind, Result};
use crate::id::BackupId;
use crate::linux::{blocking, nfs};
use crate::model::{Backup, Outcome, Progress};
use crate::name::RepositoryName;
use cipher::Cipher;
use lock::{Access, Lock};
use session::{Objects, Session};
use store::{Store, Within};

/// The compression level of zstd: the fastest of the usual ones (`docs/benchmarks.md`).
const COMPRESSION: i32 = 1;

/// How long a directory may take to answer. The kernel gives up a server of NFS in half of that.
const ANSWER: Duration = Duration::from_secs(2 * nfs::ANSWER_WITHIN.as_secs());

/// How long a disk may take to store a pack, and those before it.
const WRITE: Duration = Duration::from_secs(300);

/// What an administrator decides about a repository.
#[derive(Debug, Clone)]
pub struct RepositorySettings {
    /// Its name here.
    pub name: RepositoryName,
    /// The node that uses it.
    pub node: String,
    /// Where it is.
    pub location: Location,
    /// Its password.
    pub password: SecretSource,
    /// Where to keep what is read of it again and again, if it is far away.
    pub cache: PathBuf,
    /// The directory to mount it at, if it is on NFS.
    pub mountpoint: PathBuf,
    /// How fast and how many at once.
    pub limits: Limits,
    /// For S3.
    pub s3: S3Settings,
}

/// A repository in use.
#[derive(Debug)]
pub struct Repository {
    settings: RepositorySettings,
    runtime: Handle,
    store: Mutex<Option<Arc<Store>>>,
    /// Whether a look at its directory has not come back.
    hanging: Arc<AtomicBool>,
    /// Deriving it from the password takes as long as a small backup, on purpose.
    key: Mutex<Option<MasterKey>>,
    /// Backups never change.
    known: Mutex<HashMap<BackupId, Option<Arc<Backup>>>>,
}

/// Whether what is kept here of a repository that is far away may stand for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cache {
    Used,
    Unused,
}

type Opened = rustic_core::Repository<OpenStatus>;

impl Repository {
    /// A repository that is opened when it is first used, on `runtime`.
    pub fn new(settings: RepositorySettings, runtime: Handle) -> Self {
        Self {
            settings,
            runtime,
            store: Mutex::default(),
            hanging: Arc::default(),
            key: Mutex::default(),
            known: Mutex::default(),
        }
    }

    /// The same over `objects`, in place of what the location names.
    pub fn over(
        settings: RepositorySettings,
        runtime: Handle,
        objects: Arc<dyn ObjectStore>,
    ) -> Self {
        let repository = Self::new(settings, runtime);
        *lock(&repository.store) = Some(repository.store_of((objects, Path::default()), None));
        repository
    }

    /// Its name here.
    pub fn name(&self) -> &RepositoryName {
        &self.settings.name
    }

    /// Where it is, without secrets.
    pub fn location(&self) -> &Location {
        &self.settings.location
    }

    fn store(&self) -> Result<Arc<Store>> {
        // Held while it is mounted: twice, one mount would lie upon the other.
        let mut store = lock(&self.store);
        // Whatever has unmounted it since, nothing may be written into the empty directory.
        if let Location::Nfs { server, path } = &self.settings.location {
            let mount = nfs::mount(server, path, &self.settings.mountpoint);
            self.runtime.block_on(mount).map_err(|error| self.context(error))?;
        }
        if let Some(store) = &*store {
            return Ok(Arc::clone(store));
        }
        let settings = &self.settings;
        let mut within = None;
        let objects = match &settings.location {
            Location::Directory(path) => {
                within = Some(Within { read: ANSWER, write: WRITE });
                self.open_directory(path)
            }
            Location::Nfs { .. } => {
                within = Some(Within { read: ANSWER, write: ANSWER });
                self.open_directory(&settings.mountpoint)
            }
            Location::S3 { endpoint, bucket, prefix } => {
                objects::s3(endpoint.as_deref(), bucket, prefix, &settings.s3)
            }
            Location::Gcs { bucket, prefix } => objects::gcs(bucket, prefix),
            Location::Azure { container, prefix } => objects::azure(container, prefix),
        };
        let opened = self.store_of(objects.map_err(|error| self.context(error))?, within);
        *store = Some(Arc::clone(&opened));
        Ok(opened)
    }

    fn open_directory(&self, path: &std::path::Path) -> Result<(Arc<dyn ObjectStore>, Path)> {
        let path = path.to_owned();
        self.unless_it_hangs(move || directory::open(&path))
    }

    /// Does what may hang in the kernel, and gives it up when it takes too long. Only one such call hangs at a
    /// time: whoever comes later is told at once.
    fn unless_it_hangs<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let hanging = Arc::clone(&self.hanging);
        if hanging.swap(true, Ordering::SeqCst) {
            return Err(Error::unavailable("the directory does not answer")
                .hint("look at the disk or the server that it is on"));
        }
        let done = move || {
            let done = work();
            hanging.store(false, Ordering::SeqCst);
            done
        };
        let answer = blocking::run("looking at the directory", ANSWER, done);
        self.runtime.block_on(answer)
    }

    /// A request that is not answered `within` so long is given up.
    fn store_of(
        &self,
        objects: (Arc<dyn ObjectStore>, Path),
        within: Option<Within>,
    ) -> Arc<Store> {
        let settings = &self.settings;
        let (name, place) = (settings.name.clone(), settings.location.to_string());
        Arc::new(Store::new(name, place, objects, self.runtime.clone(), settings.limits, within))
    }

    /// Unmounts it, if it is mounted; it is mounted again when it is used again.
    ///
    /// # Errors
    /// `InUse` while it is used; `Unavailable` if its server does not answer.
    pub async fn release(&self) -> Result<Outcome> {
        match &self.settings.location {
            Location::Nfs { .. } => {
                let done = nfs::unmount(&self.settings.mountpoint).await;
                done.map_err(|error| self.context(error))
            }
            _ => Ok(Outcome::Unchanged),
        }
    }

    fn context(&self, error: Error) -> Error {
        error.context(format!("repository {} at {}", self.settings.name, self.settings.location))
    }

    fn session(&self, progress: &Arc<Progress>) -> Result<Arc<Session>> {
        Ok(Session::new(self.store()?, Arc::clone(progress)))
    }

    fn closed(&self, session: &Arc<Session>, cache: Cache) -> Result<rustic_core::Repository<()>> {
        let mut options = RepositoryOptions::default();
        match cache == Cache::Used && self.settings.location.is_remote() {
            true => options.cache_dir = Some(self.settings.cache.clone()),
            false => options.no_cache = true,
        }
        let backends = RepositoryBackends::new(Arc::new(Objects(Arc::clone(session))), None);
        rustic_core::Repository::new(&options, &backends).map_err(|error| session.explain(&error))
    }

    fn open(&self, session: &Arc<Session>) -> Result<Opened> {
        self.open_with(session, Cache::Used)
    }

    fn open_with(&self, session: &Arc<Session>, cache: Cache) -> Result<Opened> {
        let closed = self.closed(session, cache)?;
        let config = closed.config_id().map_err(|error| session.explain(&error))?;
        if config.is_none() {
            // Of one object a service does not tell whether it or the bucket is missing.
            session.store().list("keys")?;
            return Err(session
                .store()
                .error(ErrorKind::NotFound, "there is no repository there")
                .hint(format!("`holdfast repository init {}` makes one", self.settings.name)));
        }
        let known = lock(&self.key).clone();
        if let Some(key) = known
            && let Ok(opened) = closed.clone().open(&Credentials::Masterkey(key))
        {
            return Ok(opened);
        }
        let password = self.settings.password.read().map_err(|error| self.context(error))?;
        let credentials = Credentials::Password(password.reveal().to_owned());
        let opened = closed.open(&credentials).map_err(|error| session.explain(&error))?;
        let version = opened.config().version;
        if version != 2 {
            return Err(errors::other_version(session.store(), &version.to_string()));
        }
        *lock(&self.key) = Some(opened.key());
        Ok(opened)
    }

    fn cipher(&self, opened: &Opened) -> Result<Cipher> {
        Cipher::new(&opened.key()).map_err(|error| self.context(error))
    }

    fn lock(&self, session: &Arc<Session>, opened: &Opened, access: Access) -> Result<Lock> {
        Lock::acquire(session, &self.cipher(opened)?, &self.settings.node, access)
    }

    /// A lock for reading, without which a store that may only be read is read all the same.
    fn lock_to_read(&self, session: &Arc<Session>, opened: &Opened) -> Result<Option<Lock>> {
        match self.lock(session, opened, Access::Shared) {
            Ok(lock) => Ok(Some(lock)),
            Err(error)
                if matches!(error.kind(), ErrorKind::Unsupported | ErrorKind::OutOfSpace) =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Makes the repository. `Unchanged` if it is there and the password opens it.
    ///
    /// # Errors
    /// It cannot be reached or written; another password opens the one that is there.
    pub fn init(&self) -> Result<Outcome> {
        if let Location::Directory(path) = &self.settings.location {
            let _alone = lock(&self.store);
            let path = path.clone();
            let make = move || {
                std::fs::create_dir_all(&path)
                    .map_err(|error| Error::io(format!("cannot make {}", path.display()), error))
            };
            self.unless_it_hangs(make).map_err(|error| self.context(error))?;
        }
        let session = self.session(&Arc::default())?;
        match self.open(&session) {
            Ok(_) => return Ok(Outcome::Unchanged),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let password = self.settings.password.read().map_err(|error| self.context(error))?;
        let session = self.session(&Arc::default())?;
        clear_half_made(session.store())?;
        let config = ConfigOptions::default()
            .set_version(2_u32)
            .set_chunker(rustic_core::repofile::Chunker::FixedSize)
            .set_chunk_size(bytesize::ByteSize(image::CHUNK))
            .set_compression(COMPRESSION);
        self.closed(&session, Cache::Unused)?
            .init(
                &Credentials::Password(password.reveal().to_owned()),
                &KeyOptions::default(),
                &config,
            )
            .map_err(|error| session.explain(&error))?;
        self.open(&session)?;
        Ok(Outcome::Changed)
    }

    /// All backups that we made, oldest first.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn backups(&self) -> Result<Vec<Arc<Backup>>> {
        let session = self.session(&Arc::default())?;
        let opened = self.open(&session)?;
        let ids: Vec<SnapshotId> =
            opened.list().map_err(|error| session.explain(&error))?.collect();
        let ids: Vec<(SnapshotId, BackupId)> =
            ids.into_iter().map(|id| Ok((id, backup::id(id)?))).collect::<Result<_>>()?;
        let unknown: Vec<SnapshotId> = {
            let mut known = lock(&self.known);
            known.retain(|id, _| ids.iter().any(|(_, there)| there == id));
            ids.iter().filter(|(_, id)| !known.contains_key(id)).map(|(id, _)| *id).collect()
        };
        for item in opened
            .stream_files_list::<SnapshotFile>(unknown)
            .map_err(|error| session.explain(&error))?
        {
            let (id, mut file) = item.map_err(|error| session.explain(&error))?;
            file.id = id;
            let read = backup::read(&self.settings.name, &file)?.map(Arc::new);
            lock(&self.known).insert(backup::id(id)?, read);
        }
        let known = lock(&self.known);
        let mut backups: Vec<Arc<Backup>> =
            ids.iter().filter_map(|(_, id)| known.get(id).cloned().flatten()).collect();
        backups.sort_by_key(|backup| (backup.created, backup.finished));
        Ok(backups)
    }

    /// The backups that were there when it was last asked, in no order. Asks nothing.
    pub fn known(&self) -> Vec<Arc<Backup>> {
        lock(&self.known).values().flatten().cloned().collect()
    }

    fn learn(&self, backup: &Backup) {
        lock(&self.known).insert(backup.id, Some(Arc::new(backup.clone())));
    }

    /// Bytes that its packs take.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn size(&self) -> Result<u64> {
        Ok(self.store()?.list("data")?.iter().map(|(_, size)| size).sum())
    }

    /// Removes a backup. What only it needs is removed by a later prune.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn remove(&self, id: BackupId) -> Result<Outcome> {
        let session = self.session(&Arc::default())?;
        let opened = self.open(&session)?;
        let there = opened.list().map_err(|error| session.explain(&error))?;
        let found =
            there.into_iter().find(|one: &SnapshotId| backup::id(*one).is_ok_and(|one| one == id));
        let Some(found) = found else { return Ok(Outcome::Unchanged) };
        opened.delete_snapshots(&[found]).map_err(|error| session.explain(&error))?;
        lock(&self.known).remove(&id);
        Ok(Outcome::Changed)
    }
}

/// How long after its key an `init` may take to store the config.
const HALF_MADE: Duration = Duration::from_secs(3);

/// Removes the keys that an `init` which broke off has left. The password opens them too, but they are not
/// the key of what is written later, and whoever takes one of them for it can read nothing.
fn clear_half_made(store: &Store) -> Result<()> {
    for directory in ["snapshots", "index"] {
        if !store.list(directory)?.is_empty() {
            return Err(store
                .error(ErrorKind::Corrupt, "the repository has lost its file `config`")
                .hint("put it back from a copy: without it nothing there can be read"));
        }
    }
    let keys = store.list("keys")?;
    if !keys.is_empty() {
        // Another host may be at it now: its key is there, and a moment later its config.
        std::thread::sleep(HALF_MADE);
        if store.size("config")?.is_some() {
            return Err(store
                .error(ErrorKind::Busy, "another host has just made the repository")
                .hint("it can be used now"));
        }
    }
    for (key, _) in keys {
        store.remove(&format!("keys/{key}"))?;
    }
    Ok(())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
