//! Reading everything back.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use super::Repository;
use super::reading::{Fault, Reading};
use crate::error::Result;
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
    packs: BTreeSet<String>,
}

impl Found {
    /// Notes damage, and gives back what is none.
    fn note(&mut self, fault: Fault) -> Result<()> {
        match fault {
            Fault::Unknown(error) => Err(error),
            Fault::Damage { pack, text } => {
                self.packs.extend(pack);
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
        let reading = Reading::new(self, id, progress)?;
        let found = Mutex::new(Found::default());
        let lock = || found.lock().unwrap_or_else(PoisonError::into_inner);
        let content = reading.manifest().and_then(|manifest| reading.content(&manifest));
        if let Ok(content) = &content {
            progress.add_total(content.size);
        }
        match content {
            Ok(content) => reading.each(&content, |chunk, data| {
                match data {
                    Ok(data) => {
                        progress.add(chunk.bytes(data));
                        lock().verified.bytes += chunk.bytes(data);
                    }
                    Err(fault) => lock().note(fault)?,
                }
                Ok(())
            })?,
            Err(fault) => lock().note(fault)?,
        }
        let Found { mut verified, packs } =
            found.into_inner().unwrap_or_else(PoisonError::into_inner);
        verified.damage.sort();
        for pack in packs {
            if let Err(error) = self.note_damage(&reading.session, &pack) {
                tracing::warn!("the next backup cannot mend this: {}", error.full_message());
            }
        }
        Ok(verified)
    }
}
