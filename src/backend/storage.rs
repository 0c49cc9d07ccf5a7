//! Which storage a backend's volumes lie on. A disk that is not mounted leaves an empty directory,
//! which must never pass for it: volumes would be made in the wrong place, and what is missing
//! would be taken for deleted.

use super::Locator;
use crate::error::{Error, Result};
use crate::id::StorageId;

/// What is known, before a backend is opened, of the storage that it should find.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expected {
    /// No volume lies on it: whatever is there may be used, and where nothing is, it may be made.
    Anything,
    /// Volumes lie on this storage.
    Storage(StorageId),
    /// These volumes lie on it, and nobody recorded which it is: it is where all of them are.
    Volumes(Vec<Locator>),
}

impl Expected {
    /// Whether storage may be made where there is none.
    pub fn may_be_made(&self) -> bool {
        *self == Self::Anything
    }

    /// Whether the storage at `place` is the one, by its id, if it has one, and by whether it
    /// `holds` a volume.
    ///
    /// # Errors
    /// `Unavailable` if it is not.
    pub fn admit(
        &self,
        place: &str,
        found: Option<StorageId>,
        mut holds: impl FnMut(&Locator) -> Result<bool>,
    ) -> Result<()> {
        let wrong = match (self, found) {
            (Self::Anything, _) => return Ok(()),
            (Self::Storage(expected), Some(found)) if *expected == found => return Ok(()),
            (Self::Storage(expected), Some(found)) => {
                format!("{place} is the storage {found}, but the volumes lie on {expected}")
            }
            (Self::Storage(expected), None) => {
                format!("the storage {expected}, on which the volumes lie, is not at {place}")
            }
            (Self::Volumes(volumes), _) => {
                let mut missing = Vec::new();
                for volume in volumes {
                    if !holds(volume)? {
                        missing.push(volume.volume);
                    }
                }
                match missing.first() {
                    None => return Ok(()),
                    Some(first) => format!(
                        "{} of the {} volumes that should lie at {place} are not there, {first} for one",
                        missing.len(),
                        volumes.len(),
                    ),
                }
            }
        };
        Err(Error::unavailable(wrong).hint(format!(
            "mount the right disk at {place} and restart the daemon; if it is lost for good, \
             `holdfast daemon --rebuild-catalog` goes on without its volumes"
        )))
    }
}
