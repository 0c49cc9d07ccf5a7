//! Reading everything back.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use super::Repository;
use super::restore::{Fault, chunks, for_each_chunk, manifest, read_chunk};
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
        let session = self.session(progress)?;
        let opened = self.open(&session)?;
        let _lock = self.lock_to_read(&session, &opened)?;
        let indexed = opened.to_indexed().map_err(|error| session.explain(&error))?;
        let file = self.snapshot_file(&session, &indexed, id)?;
        let found = Mutex::new(Found::default());
        let lock = || found.lock().unwrap_or_else(PoisonError::into_inner);
        let read = manifest(&session, &indexed, &file).and_then(|manifest| {
            let size = manifest.image_size()?;
            progress.add_total(size);
            chunks(&session, &indexed, &file, size)
        });
        let all = match read {
            Ok(all) => all,
            Err(fault) => {
                lock().note(fault)?;
                Vec::new()
            }
        };
        for_each_chunk(&session, &all, |chunk| {
            let read = read_chunk(&session, &indexed, chunk);
            progress.add(chunk.length);
            match read {
                Ok(_) => lock().verified.bytes += chunk.length,
                Err(fault) => lock().note(fault)?,
            }
            Ok(())
        })?;
        let Found { mut verified, packs } =
            found.into_inner().unwrap_or_else(PoisonError::into_inner);
        verified.damage.sort();
        for pack in packs {
            if let Err(error) = self.note_damage(&session, &pack) {
                tracing::warn!("the next backup cannot mend this: {}", error.full_message());
            }
        }
        Ok(verified)
    }
}
