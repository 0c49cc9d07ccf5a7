//! A repository's objects as rustic_core reads and writes them, for one piece of work.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use rustic_core::{
    BytesList, ErrorKind as RusticKind, FileType, Id, ReadBackend, RusticError, RusticResult,
    WriteBackend,
};
use tokio::task::JoinSet;

use super::cipher::{Cipher, Digest};
use super::errors::explain;
use super::lock;
use super::store::Store;
use crate::error::{Error, ErrorKind, Result};
use crate::failpoint::{self, BackendStep};
use crate::model::Progress;

/// Packs on their way to the store at the same time: bounds the memory that they take.
const PACKS_AT_ONCE: usize = 4;

/// One piece of work on a repository. What goes wrong is kept with its kind, which rustic_core's errors do
/// not carry.
#[derive(Debug)]
pub(super) struct Session {
    store: Arc<Store>,
    progress: Arc<Progress>,
    failure: Mutex<Option<Error>>,
    packs: Mutex<JoinSet<Result<()>>>,
    lock: Mutex<Option<String>>,
    stored: Mutex<Vec<String>>,
}

impl Session {
    pub(super) fn new(store: Arc<Store>, progress: Arc<Progress>) -> Arc<Self> {
        Arc::new(Self {
            store,
            progress,
            failure: Mutex::new(None),
            packs: Mutex::new(JoinSet::new()),
            lock: Mutex::new(None),
            stored: Mutex::default(),
        })
    }

    pub(super) fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// Counts bytes of the volume that are done.
    pub(super) fn count(&self, bytes: u64) {
        self.progress.add(bytes);
    }

    /// Keeps the first failure: what comes after it is its consequence. From now on nothing can be stored
    /// that others would take for whole.
    pub(super) fn fail(&self, error: Error) -> Box<RusticError> {
        let text = error.full_message();
        lock(&self.failure).get_or_insert(error);
        RusticError::new(RusticKind::Backend, text)
    }

    fn kept<T>(&self, result: Result<T>) -> RusticResult<T> {
        result.map_err(|error| self.fail(error))
    }

    /// The error of the work that gave `error`.
    pub(super) fn explain(&self, error: &RusticError) -> Error {
        let kept = lock(&self.failure).as_ref().map(Error::again);
        kept.unwrap_or_else(|| explain(&self.store, error))
    }

    /// Goes on unless something failed or the work was cancelled.
    pub(super) fn go_on(&self) -> Result<()> {
        self.failed()?;
        self.progress.go_on()
    }

    fn failed(&self) -> Result<()> {
        let failed = lock(&self.failure);
        failed.as_ref().map_or(Ok(()), |error| Err(error.again()))
    }

    /// Waits until at most `left` packs are on their way, all that came before being stored.
    pub(super) fn wait_for_packs(&self, left: usize) -> Result<()> {
        let mut packs = lock(&self.packs);
        self.store.runtime().block_on(async {
            while packs.len() > left {
                let result = match packs.join_next().await {
                    Some(Ok(result)) => result,
                    Some(Err(join)) => {
                        Err(Error::internal("a pack's upload broke off").caused_by(join))
                    }
                    None => break,
                };
                // Kept before anybody else can find that no pack is on its way: they would store an index
                // that names this one.
                if let Err(error) = result {
                    self.fail(error);
                }
            }
        });
        drop(packs);
        self.failed()
    }

    /// Ends it: nothing is on its way any more when this returns, and nothing is stored later. The threads of
    /// rustic_core may outlive what they worked for.
    pub(super) fn end(&self) {
        self.fail(Error::internal("this work on the repository is over"));
        // Whoever it belonged to has the error already.
        let _ = self.wait_for_packs(0);
    }

    /// From now on no backup counts without the lock of this name.
    pub(super) fn rely_on(&self, lock: &str) {
        *super::lock(&self.lock) = Some(lock.to_owned());
    }

    /// Somebody who took the lock away may have removed what the backup needs.
    fn assert_locked(&self) -> Result<()> {
        // Held meanwhile: an old one goes only when a new one is known here.
        let lock = lock(&self.lock);
        match &*lock {
            Some(lock) if self.store.size(lock)?.is_none() => Err(self
                .store
                .error(ErrorKind::InUse, "somebody has removed the lock of this backup")
                .hint("try again; `restic unlock` is not for locks whose owner is alive")),
            _ => Ok(()),
        }
    }

    /// Sends a pack on its way to the store. [`Session::wait_for_packs`] tells whether it got there.
    pub(super) fn store_pack(
        &self,
        id: &impl std::fmt::Display,
        content: Vec<Bytes>,
    ) -> Result<()> {
        self.go_on()?;
        self.wait_for_packs(PACKS_AT_ONCE - 1)?;
        let (name, store) = (pack_name(id), Arc::clone(&self.store));
        lock(&self.stored).push(name.clone());
        let mut packs = lock(&self.packs);
        self.failed()?;
        packs.spawn_blocking_on(
            move || {
                store.put(&name, &content)?;
                failpoint::reached_blocking(BackendStep::RepositoryPack)
            },
            self.store.runtime(),
        );
        Ok(())
    }

    /// The names of packs, index and snapshot files that this has stored.
    pub(super) fn stored(&self) -> Vec<String> {
        lock(&self.stored).clone()
    }

    /// Stores a snapshot file, once all that it needs is stored. Gives its name.
    pub(super) fn put_snapshot(&self, cipher: &Cipher, json: &[u8]) -> Result<Digest> {
        self.wait_for_packs(0)?;
        self.assert_locked()?;
        self.put_sealed(FileType::Snapshot.dirname(), cipher, json)
    }

    /// Stores a file that names packs, once those are stored. Gives its name.
    pub(super) fn put_sealed(
        &self,
        directory: &str,
        cipher: &Cipher,
        json: &[u8],
    ) -> Result<Digest> {
        self.wait_for_packs(0)?;
        self.go_on()?;
        let sealed = cipher.seal(json)?;
        let digest = Digest::of(&sealed);
        let name = format!("{directory}/{digest}");
        self.store.put(&name, &[sealed.into()])?;
        lock(&self.stored).push(name);
        Ok(digest)
    }

    fn write(&self, tpe: FileType, id: &Id, content: BytesList) -> Result<()> {
        if tpe == FileType::Pack {
            return self.store_pack(&id.to_hex().as_str(), content.into_vec());
        }
        // What names packs is stored when they are.
        self.wait_for_packs(0)?;
        self.go_on()?;
        if tpe == FileType::Snapshot {
            self.assert_locked()?;
        }
        self.store.put(&object(tpe, id), content.slice())
    }
}

/// The name of a pack.
pub(super) fn pack_name(id: &impl std::fmt::Display) -> String {
    let id = id.to_string();
    format!("data/{}/{id}", id.get(..2).unwrap_or_default())
}

/// The name of a file of a repository.
pub(super) fn object(tpe: FileType, id: &Id) -> String {
    let hex = id.to_hex();
    match tpe {
        FileType::Config => "config".to_owned(),
        FileType::Pack => pack_name(&hex.as_str()),
        other => format!("{}/{}", other.dirname(), hex.as_str()),
    }
}

/// [`Session`] as rustic_core holds it.
#[derive(Debug, Clone)]
pub(super) struct Objects(pub(super) Arc<Session>);

impl ReadBackend for Objects {
    fn location(&self) -> String {
        self.0.store.place().to_owned()
    }

    fn list_with_size(&self, tpe: FileType) -> RusticResult<Vec<(Id, u32)>> {
        let size = |size: u64| u32::try_from(size).unwrap_or(u32::MAX);
        if tpe == FileType::Config {
            let found = self.0.kept(self.0.store.size("config"))?;
            return Ok(found.map(|bytes| (Id::default(), size(bytes))).into_iter().collect());
        }
        let listed = self.0.kept(self.0.store.list(tpe.dirname()))?;
        let ids = listed.into_iter().filter_map(|(name, bytes)| {
            // Whatever else lies there, such as what a write that broke off has left, is not ours to read.
            Some((name.parse::<Id>().ok().filter(|_| name.len() == 64)?, size(bytes)))
        });
        Ok(ids.collect())
    }

    fn read_full(&self, tpe: FileType, id: &Id) -> RusticResult<Bytes> {
        let name = object(tpe, id);
        if tpe == FileType::Pack {
            // One that cannot be read is the caller's to tell of, as a part of it is.
            let read = self.0.store.get(&name);
            let damaged =
                |what: &str| RusticError::new(RusticKind::Backend, format!("{name} {what}"));
            let read =
                read.map_err(|error| RusticError::new(RusticKind::Backend, error.full_message()))?;
            let read = read.ok_or_else(|| damaged("is missing"))?;
            // rustic_core keeps it, and takes parts of it without a look at where it ends.
            let whole = Digest::try_from(*id).is_ok_and(|id| Digest::of(&read) == id);
            return whole.then_some(read).ok_or_else(|| damaged("is not what was stored"));
        }
        let found = self.0.kept(self.0.store.get(&name))?;
        let missing = || match tpe {
            // It was in a list a moment ago.
            FileType::Index | FileType::Snapshot => self
                .0
                .store
                .error(ErrorKind::Unavailable, format_args!("{name} was removed meanwhile"))
                .hint("another host is at work there: try again"),
            _ => self.0.store.error(ErrorKind::Corrupt, format_args!("{name} is missing")),
        };
        self.0.kept(found.ok_or_else(missing))
    }

    fn read_partial(
        &self,
        tpe: FileType,
        id: &Id,
        _cacheable: bool,
        offset: u32,
        length: u32,
    ) -> RusticResult<Bytes> {
        let name = object(tpe, id);
        let read = self.0.store.get_range(&name, offset.into(), length.into());
        let read = read.map_err(|error| match error.kind() {
            ErrorKind::NotFound => Error::corrupt(format!("{name} is missing")).caused_by(error),
            _ => error,
        });
        // A pack that cannot be read is the caller's to tell of: others may still be read.
        read.map_err(|error| RusticError::new(RusticKind::Backend, error.full_message()))
    }

    fn warmup_path(&self, tpe: FileType, id: &Id) -> String {
        object(tpe, id)
    }
}

impl WriteBackend for Objects {
    fn write_bytes(
        &self,
        tpe: FileType,
        id: &Id,
        _cacheable: bool,
        content: BytesList,
    ) -> RusticResult<()> {
        self.0.kept(self.0.write(tpe, id, content))
    }

    fn remove(&self, tpe: FileType, id: &Id, _cacheable: bool) -> RusticResult<()> {
        // Nothing goes before what takes its place is stored.
        let stored = self.0.wait_for_packs(0);
        self.0.kept(stored.and_then(|()| self.0.store.remove(&object(tpe, id))))
    }
}
