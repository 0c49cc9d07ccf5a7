use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::error::{Error, Result};

/// How far a long work has come, in bytes, and the word to give it up. Shared between the work and
/// those who watch it.
#[derive(Debug, Default)]
pub struct Progress {
    done: AtomicU64,
    total: AtomicU64,
    cancelled: AtomicBool,
}

impl Progress {
    /// Says that there are so many more bytes to do: work may come in several parts.
    pub fn add_total(&self, bytes: u64) {
        self.total.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Counts bytes as done.
    pub fn add(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes done.
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// Bytes to do in all; 0 while it is not known.
    pub fn total(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }

    /// Asks the work to end at the next place where it can be undone.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// Goes on unless somebody has asked the work to end.
    ///
    /// # Errors
    /// `Cancelled` if somebody has.
    pub fn go_on(&self) -> Result<()> {
        match self.cancelled.load(Ordering::Relaxed) {
            false => Ok(()),
            true => Err(Error::cancelled("it was cancelled")),
        }
    }
}
