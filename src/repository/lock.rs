//! Locks as restic has them: files in the repository that say who uses it. A backup holds one, so that a
//! `restic prune` of somebody else stays away, and stays away itself while such a one runs.
//!
//! Nothing here depends on a clock: a lock counts until its owner or a person (`restic unlock`) removes it.
//! What a killed daemon has left is removed by the next lock that is made on its host.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use super::cipher::{Cipher, Digest};
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

/// A lock that is held until this is dropped.
#[derive(Debug)]
pub(super) struct Lock {
    store: Arc<Store>,
    name: String,
}

impl Lock {
    pub(super) fn acquire(
        store: &Arc<Store>,
        cipher: &Cipher,
        node: &str,
        access: Access,
    ) -> Result<Self> {
        refuse_if_locked(store, cipher, node, access, None)?;
        let file = LockFile {
            time: jiff::Timestamp::now().to_string(),
            exclusive: access == Access::Exclusive,
            hostname: node.to_owned(),
            username: USER.to_owned(),
            pid: std::process::id(),
            uid: 0,
            gid: 0,
        };
        let json = serde_json::to_vec(&file)
            .map_err(|error| store.error(ErrorKind::Internal, "a lock").caused_by(error))?;
        let sealed = cipher.seal(&json)?;
        let digest = Digest::of(&sealed).to_string();
        let name = format!("{LOCKS}/{digest}");
        own().insert(name.clone());
        // From here on its end removes it, stored or not.
        let lock = Self { store: Arc::clone(store), name };
        store.put(&lock.name, &[sealed.into()])?;
        // Two who looked at the same time see each other now.
        refuse_if_locked(store, cipher, node, access, Some(&digest))?;
        Ok(lock)
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Where nothing answers, the next lock removes it.
        if !self.store.is_silent()
            && let Err(error) = self.store.remove(&self.name)
        {
            tracing::warn!("{}", error.full_message());
        }
        own().remove(&self.name);
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
        if Some(digest.as_str()) == own {
            continue;
        }
        let name = format!("{LOCKS}/{digest}");
        // It may have gone since it was listed.
        let Some(sealed) = store.get(&name)? else { continue };
        let plain = cipher.open(&sealed)?;
        let Some(other) = read(&plain) else { continue };
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

fn own() -> std::sync::MutexGuard<'static, BTreeSet<String>> {
    OWN.lock().unwrap_or_else(PoisonError::into_inner)
}
