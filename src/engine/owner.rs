//! One owner per volume or pool: at any time at most one operation changes what a name stands for.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::OwnedMutexGuard;

use crate::error::{Error, Result};
use crate::model::Subject;

/// Who owns which name now.
#[derive(Debug, Default)]
pub(super) struct Owners {
    slots: Mutex<HashMap<Subject, Slot>>,
}

#[derive(Debug, Default)]
struct Slot {
    lock: Arc<tokio::sync::Mutex<()>>,
    /// Those who own it or wait for it.
    users: usize,
    /// What its owner does.
    work: &'static str,
}

/// The right to change what some names stand for, until it is dropped.
#[derive(Debug)]
pub(super) struct Ownership {
    // Fields drop in this order: the next in line gets the lock before the slot may go.
    _guards: Vec<OwnedMutexGuard<()>>,
    _places: Vec<Place>,
}

/// A place in the line for a name.
#[derive(Debug)]
struct Place {
    owners: Arc<Owners>,
    name: Subject,
}

impl Owners {
    /// Waits in line for all of `names`, for no longer than `patience`.
    pub(super) async fn acquire(
        self: &Arc<Self>,
        names: &[Subject],
        work: &'static str,
        patience: Duration,
    ) -> Result<Ownership> {
        let mut sorted = names.to_vec();
        // The same order for everybody, so that two who want two names cannot wait for each other.
        sorted.sort();
        sorted.dedup();
        let deadline = tokio::time::Instant::now() + patience;
        let mut guards = Vec::with_capacity(sorted.len());
        let mut places = Vec::with_capacity(sorted.len());
        for name in &sorted {
            let (lock, place) = self.line_up(name);
            places.push(place);
            let guard = tokio::time::timeout_at(deadline, lock.lock_owned()).await;
            guards.push(guard.map_err(|_| self.too_long(name, patience))?);
            self.lock_slots().entry(name.clone()).or_default().work = work;
        }
        Ok(Ownership { _guards: guards, _places: places })
    }

    fn line_up(self: &Arc<Self>, name: &Subject) -> (Arc<tokio::sync::Mutex<()>>, Place) {
        let mut slots = self.lock_slots();
        let slot = slots.entry(name.clone()).or_default();
        slot.users += 1;
        (Arc::clone(&slot.lock), Place { owners: Arc::clone(self), name: name.clone() })
    }

    fn too_long(&self, name: &Subject, patience: Duration) -> Error {
        let work = self.lock_slots().get(name).map_or("another operation", |slot| slot.work);
        Error::busy(format!("{name} is still busy with {work} after {} s", patience.as_secs()))
            .hint("see `holdfast operation ls`, and try again when it is done")
    }

    fn lock_slots(&self) -> MutexGuard<'_, HashMap<Subject, Slot>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut slots = self.owners.lock_slots();
        if let Some(slot) = slots.get_mut(&self.name) {
            slot.users -= 1;
            if slot.users == 0 {
                slots.remove(&self.name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[tokio::test(start_paused = true)]
    async fn a_name_has_one_owner_and_other_names_do_not_wait() {
        let owners = Arc::new(Owners::default());
        let [a, b, c] = ["a", "b", "c"].map(|name| Subject::Volume(name.parse().unwrap()));
        let patience = Duration::from_secs(1);
        let first = owners.acquire(&[b.clone(), a.clone()], "clone", patience).await.unwrap();
        let error = owners.acquire(std::slice::from_ref(&a), "mount", patience).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Busy);
        assert!(error.full_message().contains("clone"), "{}", error.full_message());
        let other = owners.acquire(&[c], "mount", Duration::ZERO).await.unwrap();
        drop(first);
        drop(other);
        owners.acquire(&[a, b], "mount", Duration::ZERO).await.unwrap();
        assert!(owners.lock_slots().is_empty(), "nobody's slot stays");
    }
}
