//! One change of a volume at a time, within a backend.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::OwnedMutexGuard;

use crate::error::{Error, Result};
use crate::id::VolumeUuid;

/// Locks by volume. Held by the thread that works, not by the call that may have gone away.
#[derive(Debug, Default)]
pub(super) struct VolumeLocks(Mutex<HashMap<VolumeUuid, Weak<tokio::sync::Mutex<()>>>>);

impl VolumeLocks {
    /// Waits for earlier changes of `volume`, no longer than `patience`.
    ///
    /// # Errors
    /// `Busy` past that.
    pub(super) async fn lock(
        &self,
        volume: VolumeUuid,
        patience: Duration,
    ) -> Result<OwnedMutexGuard<()>> {
        let lock = {
            let mut locks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            match locks.get(&volume).and_then(Weak::upgrade) {
                Some(lock) => lock,
                None => {
                    locks.retain(|_, lock| lock.strong_count() > 0);
                    let lock = Arc::new(tokio::sync::Mutex::default());
                    locks.insert(volume, Arc::downgrade(&lock));
                    lock
                }
            }
        };
        tokio::time::timeout(patience, lock.lock_owned())
            .await
            .map_err(|_| Error::busy(format!("an earlier change of volume {volume} still runs")))
    }
}
