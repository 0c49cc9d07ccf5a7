//! Reading everything back.

use std::sync::{Arc, Mutex, PoisonError};

use super::Repository;
use super::restore::{chunks, for_each_chunk, manifest, read_chunk};
use crate::error::{ErrorKind, Result};
use crate::id::BackupId;
use crate::model::Progress;

/// What reading a backup back has found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// Bytes of the volume that were read back and are what was stored.
    pub bytes: u64,
    /// What is damaged, as sentences; empty if nothing is.
    pub damage: Vec<String>,
}

impl Repository {
    /// Reads all of a backup back, and compares it with what was stored.
    ///
    /// # Errors
    /// `NotFound` if there is no such backup; the repository cannot be reached; `Cancelled`. Damage is no
    /// error, but what is told.
    pub fn verify(&self, id: BackupId, progress: &Arc<Progress>) -> Result<Verified> {
        let session = self.session(progress)?;
        let indexed = self.indexed(&session)?;
        let found = Mutex::new(Verified { bytes: 0, damage: Vec::new() });
        let note =
            |text: String| found.lock().unwrap_or_else(PoisonError::into_inner).damage.push(text);
        let read = || -> Result<_> {
            let file = self.snapshot_file(&session, &indexed, id)?;
            let size = manifest(&session, &indexed, &file)?.image_size()?;
            let all = chunks(&session, &indexed, &file, size)?;
            progress.add_total(size);
            Ok(all)
        };
        let all = match read() {
            Ok(all) => all,
            Err(error) if error.kind() == ErrorKind::Corrupt => {
                note(error.full_message());
                Vec::new()
            }
            Err(error) => return Err(error),
        };
        for_each_chunk(&session, &all, |chunk| {
            match read_chunk(&indexed, chunk) {
                Ok(_) => found.lock().unwrap_or_else(PoisonError::into_inner).bytes += chunk.length,
                Err(error) => note(error.full_message()),
            }
            progress.add(chunk.length);
            Ok(())
        })?;
        let mut found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
        found.damage.sort();
        Ok(found)
    }
}
