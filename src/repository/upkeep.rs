//! Checking a repository as a whole, and giving back the room of what no backup needs.

use std::collections::BTreeSet;
use std::sync::Arc;

use rustic_core::jiff::Span;
use rustic_core::{CheckOptions, FileType, LimitOption, Open, PruneOptions};
use serde::{Deserialize, Serialize};

use super::Repository;
use super::lock::Access;
use super::mend::INDEX;
use super::session::Session;
use crate::error::{Error, ErrorKind, Result};
use crate::model::Progress;

/// What to do about that which no backup needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Prune {
    /// Only tell.
    Plan,
    /// Take it out of the index and mark it, and remove what was marked a day ago. Backups of this and of
    /// other hosts may go on: what one of them needs again within the day is kept.
    Mark,
    /// Remove it now. Nothing else may use the repository meanwhile.
    Now,
}

/// Whether there is room for a new index beside the old one, and for what is written again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Room {
    Left,
    None,
}

/// What a prune has done or would do, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pruned {
    /// Needed by backups.
    pub used: u64,
    /// Needed by none, before the prune.
    pub unused: u64,
    /// Given back now.
    pub removed: u64,
    /// Given back by a prune a day or more from now.
    pub marked: u64,
    /// Written again to get it apart from what is not needed.
    pub repacked: u64,
}

impl Repository {
    /// Gives back the room of what no backup needs. [`Prune::Now`] works on a full disk too.
    ///
    /// # Errors
    /// `InUse` while others use the repository, for [`Prune::Now`]; it cannot be read or written.
    pub fn prune(&self, how: Prune, progress: &Arc<Progress>) -> Result<Pruned> {
        match self.try_to_prune(how, Room::Left, progress) {
            Err(error) if error.kind() == ErrorKind::OutOfSpace && how == Prune::Now => {
                self.prune_without_room(progress)
            }
            Err(error) if error.kind() == ErrorKind::OutOfSpace => Err(error.hint(
                "to mark what is not needed takes room: `holdfast backup prune --now` gives room back without",
            )),
            other => other,
        }
    }

    /// Removes first what needs no room, and then what was in the way of the rest.
    fn prune_without_room(&self, progress: &Arc<Progress>) -> Result<Pruned> {
        let is_full = |error: &Error| error.kind() == ErrorKind::OutOfSpace;
        let prune = |room| self.try_to_prune(Prune::Now, room, progress);
        let first = prune(Room::None).map_err(|error| match is_full(&error) {
            true => error.hint(
                "not even a lock has room: remove a backup with `holdfast backup rm`, or give it more space",
            ),
            false => error,
        })?;
        let rest = match prune(Room::Left) {
            // What it has begun to write is in the way of others.
            Err(error) if is_full(&error) => prune(Room::None),
            other => other,
        }?;
        Ok(Pruned { removed: first.removed + rest.removed, unused: first.unused, ..rest })
    }

    fn try_to_prune(&self, how: Prune, room: Room, progress: &Arc<Progress>) -> Result<Pruned> {
        if how != Prune::Plan {
            self.mend()?;
        }
        let session = self.session(progress)?;
        let opened = self.open(&session)?;
        let _lock = match how {
            Prune::Plan => None,
            Prune::Mark => Some(self.lock(&session, &opened, Access::Shared)?),
            Prune::Now => Some(self.lock(&session, &opened, Access::Exclusive)?),
        };
        let mut options = PruneOptions::default();
        options.instant_delete = how == Prune::Now;
        if how == Prune::Now {
            options.keep_delete = Span::new();
        }
        options.max_repack = match room {
            Room::Left => LimitOption::Unlimited,
            Room::None => LimitOption::Size(bytesize::ByteSize(0)),
        };
        if room == Room::None {
            // Nobody else is there. Whoever comes after a break between the two makes it anew, at once if the note
            // had room, and else when it was missed: nothing is pruned before.
            let _ = self.note_damage(&session, INDEX);
            options.early_delete_index = true;
        }
        let before = names(&session, FileType::Snapshot)?;
        let plan = opened.prune_plan(&options).map_err(|error| session.explain(&error))?;
        let (size, marked) = (plan.stats.size_sum(), plan.stats.size_to_delete);
        let unneeded = size.remove + size.repackrm + plan.stats.size_unref;
        let done = Pruned {
            used: size.used,
            unused: size.unused + plan.stats.size_unref + marked.remove + marked.keep,
            removed: marked.remove + if how == Prune::Mark { 0 } else { unneeded },
            marked: marked.keep + if how == Prune::Mark { unneeded } else { 0 },
            repacked: size.repack - size.repackrm,
        };
        if how != Prune::Plan {
            session.go_on()?;
            opened.prune(&options, plan).map_err(|error| session.explain(&error))?;
        }
        if room == Room::None {
            self.forget_damage(&session, INDEX)?;
        }
        let now = names(&session, FileType::Snapshot)?;
        if how == Prune::Mark && !now.is_subset(&before) {
            recover(&session, &opened)?;
        }
        Ok(done)
    }

    /// Compares what the index says with what is stored, and follows the trees of all backups. Gives what is
    /// wrong, as sentences. [`Repository::verify`] reads the data too.
    ///
    /// # Errors
    /// The repository cannot be read at all.
    pub fn check(&self, progress: &Arc<Progress>) -> Result<Vec<String>> {
        let session = self.session(progress)?;
        let opened = self.open(&session)?;
        let found = opened.check(CheckOptions::default());
        match found {
            Ok(found) => Ok(found
                .0
                .iter()
                // The level's type has no public name.
                .filter(|(level, _)| format!("{level:?}") == "Error")
                .map(|(_, error)| error.to_string())
                .collect()),
            Err(error) => match session.explain(&error) {
                damaged if damaged.kind() == ErrorKind::Corrupt => Ok(vec![damaged.full_message()]),
                other => Err(other),
            },
        }
    }
}

/// The names of all files of a type.
pub(super) fn names(session: &Session, tpe: FileType) -> Result<BTreeSet<String>> {
    let listed = session.store().list(tpe.dirname())?;
    Ok(listed.into_iter().map(|(name, _)| name).collect())
}

/// Takes back into the index what a prune took out of it and a backup needs that was made meanwhile. Of the
/// two, whichever is done last sees the other and does this.
pub(super) fn recover<S: Open>(
    session: &Session,
    repository: &rustic_core::Repository<S>,
) -> Result<()> {
    let mut options = PruneOptions::default();
    options.max_repack = LimitOption::Size(bytesize::ByteSize(0));
    options.keep_pack = Span::new().years(100);
    options.keep_delete = Span::new().years(100);
    loop {
        let before = names(session, FileType::Snapshot)?;
        let plan = repository.prune_plan(&options).map_err(|error| session.explain(&error))?;
        repository.prune(&options, plan).map_err(|error| session.explain(&error))?;
        // This is a prune itself, which knows nothing of a backup that was made meanwhile.
        if names(session, FileType::Snapshot)?.is_subset(&before) {
            return Ok(());
        }
    }
}
