//! Reading everything back.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use super::mend::INDEX;
use super::reading::{Fault, Reading};
use super::session::Session;
use super::{Cache, Repository};
use crate::error::{ErrorKind, Result};
use crate::id::BackupId;
use crate::model::Progress;

/// What reading a backup back has found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verified {
    /// Bytes of the volume that were read back and are what was stored.
    pub bytes: u64,
    /// What is damaged, as sentences; empty if nothing is.
    pub damage: Vec<String>,
}

#[derive(Debug, Default)]
struct Found {
    verified: Verified,
    notes: BTreeSet<String>,
}

impl Found {
    /// Notes damage, and gives back what is none.
    fn note(&mut self, fault: Fault) -> Result<()> {
        match fault {
            Fault::Unknown(error) => Err(error),
            Fault::Damage { note, text } => {
                self.notes.extend(note);
                self.verified.damage.push(text);
                Ok(())
            }
        }
    }
}

impl Repository {
    /// Reads all of a backup back, and compares it with what was stored. The next backup sets aside the
    /// packs in which damage was found.
    ///
    /// # Errors
    /// `NotFound` if there is no such backup; the repository cannot be reached; `Cancelled`. Damage is no
    /// error, but what is told.
    pub fn verify(&self, id: BackupId, progress: &Arc<Progress>) -> Result<Verified> {
        // What is kept here is not what the repository has.
        let reading = match Reading::new(self, id, Cache::Unused, progress) {
            Ok(reading) => reading,
            Err(error) if error.kind() == ErrorKind::Corrupt => {
                self.note(&*self.session(progress)?, INDEX);
                return Ok(Verified { bytes: 0, damage: vec![error.full_message()] });
            }
            Err(error) => return Err(error),
        };
        let mut content = reading.content();
        progress.add_total(content.size);
        let found = Mutex::new(Found::default());
        let lock = || found.lock().unwrap_or_else(PoisonError::into_inner);
        let faults = std::mem::take(&mut content.faults);
        for fault in reading.manifest().err().into_iter().chain(faults) {
            lock().note(fault)?;
        }
        reading.each(&content, |chunk, data| {
            match data {
                Ok(data) => {
                    progress.add(chunk.bytes(data));
                    lock().verified.bytes += chunk.bytes(data);
                }
                Err(fault) => lock().note(fault)?,
            }
            Ok(())
        })?;
        let Found { mut verified, notes } =
            found.into_inner().unwrap_or_else(PoisonError::into_inner);
        verified.damage.sort();
        for damaged in notes {
            self.note(&reading.session, &damaged);
        }
        Ok(verified)
    }

    fn note(&self, session: &Session, damaged: &str) {
        if let Err(error) = self.note_damage(session, damaged) {
            tracing::warn!("the next backup cannot mend this: {}", error.full_message());
        }
    }
}
