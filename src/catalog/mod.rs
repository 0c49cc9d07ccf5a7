//! The durable record of volumes, snapshots, mounts and operations of one host, and its view in
//! memory, from which every read is answered.
//!
//! One thread writes. Changes that arrive while it writes go into its next transaction together, so
//! that many clients at once pay for few flushes. A change is seen by readers when it is durable.

mod file;
mod state;

use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock, mpsc};

use tokio::sync::oneshot;

pub use state::State;

use crate::error::{Error, Result};
use crate::id::{OperationId, SnapshotUuid, StorageId, VolumeUuid};
use crate::model::{ActiveSchedule, MountLedger, Operation, RunResult, Snapshot, Volume};
use crate::name::BackendName;
use file::CatalogFile;

/// One change of the records.
#[derive(Debug, Clone)]
pub enum Change {
    /// A new or changed volume. Fails with `Conflict` if another volume holds its name.
    PutVolume(Box<Volume>),
    /// A volume is no more, nor are its snapshots, its ledger and its schedule.
    RemoveVolume(VolumeUuid),
    /// A new or changed snapshot.
    PutSnapshot(Box<Snapshot>),
    /// A snapshot is no more.
    RemoveSnapshot(SnapshotUuid),
    /// Who holds a volume mounted; an empty ledger is removed.
    PutLedger(VolumeUuid, MountLedger),
    /// A new operation.
    PutOperation(Box<Operation>),
    /// An operation is over.
    RemoveOperation(OperationId),
    /// The storage that a backend's volumes lie on.
    PutStorage(BackendName, StorageId),
    /// A new or changed schedule of a volume.
    PutSchedule(VolumeUuid, Box<ActiveSchedule>),
    /// A volume has no schedule any more.
    RemoveSchedule(VolumeUuid),
    /// What came of a run of a volume's schedule. Fails with `NotFound` if there is no such volume.
    PutRun(VolumeUuid, Box<RunResult>),
}

/// The catalog of this host.
#[derive(Debug)]
pub struct Catalog {
    state: Arc<RwLock<State>>,
    /// `None` only while it is dropped.
    writer: Option<mpsc::Sender<Commit>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

struct Commit {
    changes: Vec<Change>,
    done: oneshot::Sender<Result<()>>,
}

impl Catalog {
    /// Opens the catalog at `path`, or makes an empty one there.
    ///
    /// # Errors
    /// `Corrupt` if it is damaged, `Unsupported` if a newer version wrote it, `InUse` if another
    /// process has it open.
    pub fn open(path: &Path) -> Result<Self> {
        Self::serve(CatalogFile::open_or_make(path)?)
    }

    /// Opens the catalog at `path`, and makes none.
    ///
    /// # Errors
    /// `Unavailable` if there is none; else like [`Catalog::open`].
    pub fn open_existing(path: &Path) -> Result<Self> {
        Self::serve(CatalogFile::open(path)?)
    }

    fn serve(mut file: CatalogFile) -> Result<Self> {
        let state = Arc::new(RwLock::new(file.load()?));
        let (writer, commits) = mpsc::channel();
        let shared = Arc::clone(&state);
        let thread = std::thread::Builder::new()
            .name("catalog".to_owned())
            .spawn(move || write_commits(&mut file, &shared, &commits))
            .map_err(|error| Error::io("cannot start the catalog's thread", error))?;
        Ok(Self { state, writer: Some(writer), thread: Some(thread) })
    }

    /// Makes all of `changes` durable, or none.
    ///
    /// # Errors
    /// `Conflict` if a name is taken; any other error means that it may have happened, and that
    /// [`Catalog::read`] tells whether it has.
    pub async fn commit(&self, changes: Vec<Change>) -> Result<()> {
        let (done, answer) = oneshot::channel();
        let gone = || Error::internal("the catalog's thread is gone");
        let writer = self.writer.as_ref().ok_or_else(gone)?;
        writer.send(Commit { changes, done }).map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }

    /// Looks at the records. `look` must be short: changes wait for it.
    pub fn read<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&self.state.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Catalog {
    fn drop(&mut self) {
        drop(self.writer.take());
        if let Some(thread) = self.thread.take() {
            // Its end closes the file, so that the next open does not find it in use.
            let _ = thread.join();
        }
    }
}

/// The most commits that share one transaction: bounds how long the first waits for the last.
const BATCH: usize = 256;

fn write_commits(file: &mut CatalogFile, state: &RwLock<State>, commits: &mpsc::Receiver<Commit>) {
    while let Ok(first) = commits.recv() {
        let mut batch = vec![first];
        batch.extend(commits.try_iter().take(BATCH - 1));
        let groups: Vec<&[Change]> = batch.iter().map(|commit| &commit.changes[..]).collect();
        let written = {
            // Only this thread changes the state, so readers are not in its way.
            let state = state.read().unwrap_or_else(PoisonError::into_inner);
            file.write(&groups, &state)
        };
        let answers = match written {
            Ok(answers) => {
                let mut state = state.write().unwrap_or_else(PoisonError::into_inner);
                for (commit, answer) in batch.iter_mut().zip(&answers) {
                    if answer.is_ok() {
                        std::mem::take(&mut commit.changes)
                            .into_iter()
                            .for_each(|c| state.apply(c));
                    }
                }
                answers
            }
            Err(error) => {
                tracing::error!("cannot write the catalog: {}", error.full_message());
                // Whether it happened is told by the file alone.
                match file.reopen() {
                    Ok(fresh) => *state.write().unwrap_or_else(PoisonError::into_inner) = fresh,
                    Err(error) => {
                        tracing::error!("cannot reopen the catalog: {}", error.full_message());
                    }
                }
                // The same for each of those who shared the transaction.
                batch.iter().map(|_| Err(error.again())).collect()
            }
        };
        for (commit, answer) in batch.into_iter().zip(answers) {
            // A caller that is gone does not undo what it asked for.
            let _ = commit.done.send(answer);
        }
    }
}

#[cfg(test)]
mod power_cut;
#[cfg(test)]
mod tests;
