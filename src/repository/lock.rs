//! Locks as restic has them: files in the repository that say who uses it. A backup holds one, so that a
//! `restic prune` of somebody else stays away, and stays away itself while such a one runs.
//!
//! Nothing here depends on a clock: a lock counts until its owner or a person (`restic unlock`) removes it.
//! What a killed daemon has left is removed by the next lock that is made on its host.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::cipher::{Cipher, Digest};
use super::lock;
use super::session::Session;
use super::store::Store;
use crate::error::{ErrorKind, Result};

const LOCKS: &str = "locks";

/// The user in the locks that daemons make.
const USER: &str = "holdfast";

/// The locks of this process. One that has its number and is not among them is of an earlier process,
/// which in a container has the same number.
static OWN: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// Whether others may use the repository meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// They may, if they share it too.
    Shared,
    /// They may not.
    Exclusive,
}

/// A lock file's content.
#[derive(Debug, Serialize, Deserialize)]
struct LockFile {
    time: String,
    exclusive: bool,
    hostname: String,
    #[serde(default)]
    username: String,
    pid: u32,
    #[serde(default)]
    uid: u32,
    #[serde(default)]
    gid: u32,
}

/// A lock that is held until this is dropped, and with it the work that it is for is over.
#[derive(Debug)]
pub(super) struct Lock {
    session: Arc<Session>,
    /// Goes after the work has ended.
    _file: Arc<Stored>,
}

/// A lock's file, which goes with this.
#[derive(Debug)]
struct Stored {
    store: Arc<Store>,
    cipher: Cipher,
    node: String,
    access: Access,
    name: Mutex<String>,
}

/// How often a lock is made anew: `restic unlock` takes those that are older than half an hour for dead.
const REFRESH: Duration = Duration::from_secs(300);

impl Lock {
    pub(super) fn acquire(
        session: &Arc<Session>,
        cipher: &Cipher,
        node: &str,
        access: Access,
    ) -> Result<Self> {
        let store = session.store();
        refuse_if_locked(store, cipher, node, access, None)?;
        let file = Stored {
            store: Arc::clone(store),
            cipher: cipher.clone(),
            node: node.to_owned(),
            access,
            name: Mutex::default(),
        };
        let name = file.store_anew()?;
        // Two who looked at the same time see each other now.
        refuse_if_locked(store, cipher, node, access, Some(&name))?;
        session.rely_on(&name);
        let file = Arc::new(file);
        let (kept, of) = (Arc::downgrade(&file), Arc::downgrade(session));
        store.runtime().spawn(async move {
            loop {
                tokio::time::sleep(REFRESH).await;
                let (kept, of) = (kept.clone(), of.clone());
                // Looked up where it may block, because whoever has it last removes the file.
                let refresh = move || Some(kept.upgrade()?.refresh(&*of.upgrade()?));
                match tokio::task::spawn_blocking(refresh).await {
                    Ok(Some(Ok(()))) => {}
                    Ok(Some(Err(error))) => {
                        tracing::warn!("a lock could not be made anew: {}", error.full_message());
                    }
                    Ok(None) | Err(_) => return,
                }
            }
        });
        Ok(Self { session: Arc::clone(session), _file: file })
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        self.session.end();
    }
}

impl Stored {
    /// Stores a file that is as old as now, and takes it for this lock's. Gives its name.
    fn store_anew(&self) -> Result<String> {
        let file = LockFile {
            time: jiff::Timestamp::now().to_string(),
            exclusive: self.access == Access::Exclusive,
            hostname: self.node.clone(),
            username: USER.to_owned(),
            pid: std::process::id(),
            uid: 0,
            gid: 0,
        };
        let json = serde_json::to_vec(&file)
            .map_err(|error| self.store.error(ErrorKind::Internal, "a lock").caused_by(error))?;
        let sealed = self.cipher.seal(&json)?;
        let name = format!("{LOCKS}/{}", Digest::of(&sealed));
        own().insert(name.clone());
        // From here on its end removes it, stored or not.
        self.name().clone_from(&name);
        self.store.put(&name, &[sealed.into()])?;
        Ok(name)
    }

    fn refresh(&self, session: &Session) -> Result<()> {
        let old = self.name().clone();
        if self.store.size(&old)?.is_none() {
            // Whoever took it away may have removed what the work has stored: a new lock would hide that.
            let gone = self.store.error(ErrorKind::InUse, "somebody has removed this work's lock");
            session.fail(gone.again());
            return Err(gone);
        }
        let stored = self.store_anew().map(|name| session.rely_on(&name));
        match &stored {
            Ok(()) => self.remove(&old),
            Err(_) => {
                let failed = std::mem::replace(&mut *self.name(), old);
                self.remove(&failed);
            }
        }
        stored
    }

    fn remove(&self, name: &str) {
        // Where nothing answers, the next lock removes it.
        if !self.store.is_silent()
            && let Err(error) = self.store.remove(name)
        {
            tracing::warn!("{}", error.full_message());
        }
        own().remove(name);
    }

    fn name(&self) -> MutexGuard<'_, String> {
        lock(&self.name)
    }
}

impl Drop for Stored {
    fn drop(&mut self) {
        let name = self.name().clone();
        self.remove(&name);
    }
}

fn refuse_if_locked(
    store: &Store,
    cipher: &Cipher,
    node: &str,
    access: Access,
    own: Option<&str>,
) -> Result<()> {
    for (digest, _) in store.list(LOCKS)? {
        // What is being written by restic has another name until it is whole.
        let name = format!("{LOCKS}/{digest}");
        if Some(name.as_str()) == own || digest.parse::<Digest>().is_err() {
            continue;
        }
        // It may have gone since it was listed.
        let Some(sealed) = store.get(&name)? else { continue };
        let Some(other) = cipher.open(&sealed).ok().and_then(|plain| read(&plain)) else {
            return Err(store
                .error(ErrorKind::Corrupt, format_args!("{name} cannot be read"))
                .hint("when nobody uses the repository, `restic unlock --remove-all` removes it"));
        };
        if other.username == USER && other.hostname == node && !is_alive(&name, other.pid) {
            store.remove(&name)?;
            continue;
        }
        if other.exclusive || access == Access::Exclusive {
            let what = format!(
                "it is locked by process {} of {} on {} since {}",
                other.pid, other.username, other.hostname, other.time
            );
            return Err(store.error(ErrorKind::InUse, what).hint(
                "try again when that has ended; if it is dead, `restic unlock` removes its lock",
            ));
        }
    }
    Ok(())
}

/// restic compresses its locks, and marks that with a 2; ours are plain.
fn read(plain: &[u8]) -> Option<LockFile> {
    match plain.split_first()? {
        (2, compressed) => serde_json::from_slice(&zstd::decode_all(compressed).ok()?).ok(),
        _ => serde_json::from_slice(plain).ok(),
    }
}

fn is_alive(name: &str, pid: u32) -> bool {
    match pid == std::process::id() {
        true => own().contains(name),
        false => Path::new(&format!("/proc/{pid}")).exists(),
    }
}

fn own() -> MutexGuard<'static, BTreeSet<String>> {
    lock(&OWN)
}

#[cfg(test)]
mod tests {
    use rustic_core::repofile::MasterKey;

    use super::super::store::Limits;
    use super::*;

    #[test]
    fn a_lock_that_is_made_anew_is_one_lock_and_counts_all_the_time() {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let objects = (Arc::new(object_store::memory::InMemory::new()) as _, Default::default());
        let limits = Limits { upload: None, download: None, connections: 1 };
        let name = "main".parse().unwrap();
        let store =
            Store::new(name, "memory".to_owned(), objects, runtime.handle().clone(), limits, None);
        let session = Session::new(Arc::new(store), Arc::default());
        let cipher = Cipher::new(&MasterKey::new()).unwrap();
        let lock = Lock::acquire(&session, &cipher, "node-1", Access::Exclusive).unwrap();
        let first = session.store().list(LOCKS).unwrap();
        lock._file.refresh(&session).unwrap();
        let second = session.store().list(LOCKS).unwrap();
        assert_eq!((first.len(), second.len()), (1, 1));
        assert_ne!(first, second);
        session.put_snapshot(&cipher, b"{}").unwrap();
        let other = Session::new(Arc::clone(session.store()), Arc::default());
        let refused = Lock::acquire(&other, &cipher, "node-2", Access::Shared).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::InUse);
        drop(lock);
        assert_eq!(session.store().list(LOCKS).unwrap(), []);
    }
}
