use std::sync::Arc;

use super::Engine;
use super::change::Work;
use super::create::put;
use crate::backend::Description;
use crate::catalog;
use crate::clock::has_passed;
use crate::error::{Error, ErrorKind, Result};
use crate::failpoint::Step;
use crate::model::{OperationKind, Outcome, SnapshotOrigin, Volume, VolumeState};
use crate::name::VolumeName;
use crate::options::OnRemove;

/// What becomes of the snapshots of a volume that is removed for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SnapshotsToo {
    /// They are deleted with it.
    Delete,
    /// The volume is not removed if a user made any.
    Refuse,
}

impl Work {
    pub(super) async fn remove(
        &self,
        name: &VolumeName,
        snapshots: SnapshotsToo,
    ) -> Result<Outcome> {
        let volume = self.engine.ready(name)?;
        self.engine.refuse_if_read(&volume, None)?;
        if snapshots == SnapshotsToo::Refuse && volume.on_remove == OnRemove::Delete {
            self.refuse_snapshots(&volume)?;
        }
        self.dispose(&volume, volume.on_remove).await
    }

    fn refuse_snapshots(&self, volume: &Volume) -> Result<()> {
        let names: Vec<String> = self.engine.inner.catalog.read(|state| {
            let snapshots = state.snapshots(volume.uuid).iter();
            let users = snapshots.filter(|s| s.complete && s.origin == SnapshotOrigin::User);
            users.map(|snapshot| snapshot.name.to_string()).collect()
        });
        if names.is_empty() {
            return Ok(());
        }
        Err(Error::conflict(format!(
            "volume {} has snapshots, which would be deleted with it: {}",
            volume.name,
            names.join(", ")
        ))
        .hint(
            "say --snapshots (in the API ?snapshots=true) to delete them too; `holdfast volume clone \
             VOLUME@SNAPSHOT NEW` keeps what one holds",
        ))
    }

    /// Ends a volume: one rule for every backend (rule 16).
    async fn dispose(&self, volume: &Volume, disposal: OnRemove) -> Result<Outcome> {
        self.require_unused(volume).await?;
        let kind = OperationKind::Delete { disposal };
        let operation = self.intend(Step::DeleteIntent, volume, kind, vec![]).await?;
        let deleted = async {
            self.release(volume, Step::DeleteUnmount, Step::DeleteDetach).await?;
            self.end(volume, VolumeState::Deleting, disposal).await
        };
        match deleted.await {
            Ok(()) => Ok(Outcome::Changed),
            Err(error) => Err(self.undo(&operation, error).await),
        }
    }

    /// From the last look at who uses the volume to its end, which nothing stops once `state` is
    /// recorded.
    async fn end(&self, volume: &Volume, state: VolumeState, disposal: OnRemove) -> Result<()> {
        self.engine.refuse_foreign_users(volume).await?;
        let ending = Volume { state, ..volume.clone() };
        let commit = self.engine.inner.catalog.commit(vec![put(&ending)]);
        self.step(Step::DeleteCommit, commit).await?;
        let end = self.engine.end_of_data(volume, disposal);
        let last = self.step(Step::DeleteData, end).await?;
        self.finish(Step::DeleteFinish, vec![last]).await
    }

    pub(super) async fn undelete(&self, name: &VolumeName) -> Result<Outcome> {
        let trashed = self.engine.inner.catalog.read(|state| {
            let of_name = state.volumes().filter(|volume| volume.name == *name);
            let trashed = of_name.filter_map(|volume| match volume.state {
                VolumeState::Trashed { since } => Some((since, volume)),
                _ => None,
            });
            trashed.max_by_key(|(since, volume)| (*since, volume.uuid)).map(|(_, v)| Arc::clone(v))
        });
        let trashed = trashed.ok_or_else(|| {
            Error::not_found(format!("no volume {name} is in the trash"))
                .hint("see `holdfast volume ls`; only volumes with on-remove=trash go there")
        })?;
        let volume = Volume { state: VolumeState::Ready, ..(*trashed).clone() };
        let record = vec![put(&volume)];
        let intent = self.intend(Step::UndeleteIntent, &volume, OperationKind::Undelete, record);
        let operation = intent.await.map_err(|error| match error.kind() {
            ErrorKind::Conflict => {
                error.hint("rename or remove the volume that has the name now, then try again")
            }
            _ => error,
        })?;
        let described = async {
            // By a description that says otherwise, a rebuilt catalog would put it back into the
            // trash, and its time there may be over.
            self.step(Step::UndeleteDescribe, self.engine.describe(&volume, None, None)).await?;
            self.finish(Step::UndeleteFinish, vec![]).await
        };
        match described.await {
            Ok(()) => Ok(Outcome::Changed),
            Err(error) => Err(self.undo(&operation, error).await),
        }
    }

    /// Deletes a volume whose time in the trash is over. Its name, with all that is mounted under it,
    /// may be another volume's by now.
    pub(super) async fn purge(&self, volume: &Volume) -> Result<Outcome> {
        let now = self.engine.inner.catalog.read(|state| state.volume(volume.uuid).cloned());
        if now.is_none_or(|now| now.state != volume.state) {
            return Ok(Outcome::Unchanged);
        }
        let disposal = OnRemove::Delete;
        let kind = OperationKind::Delete { disposal };
        let operation = self.intend(Step::DeleteIntent, volume, kind, vec![]).await?;
        match self.end(volume, VolumeState::Purging, disposal).await {
            Ok(()) => Ok(Outcome::Changed),
            Err(error) => Err(self.undo(&operation, error).await),
        }
    }
}

impl Engine {
    /// Does to the data what `disposal` says, and gives the record that ends the volume.
    pub(super) async fn end_of_data(
        &self,
        volume: &Volume,
        disposal: OnRemove,
    ) -> Result<catalog::Change> {
        let backend = self.backend(&volume.backend)?;
        match disposal {
            OnRemove::Delete => {
                backend.delete(volume.uuid).await?;
                Ok(catalog::Change::RemoveVolume(volume.uuid))
            }
            OnRemove::Retain => {
                let kept = Volume { state: VolumeState::Ready, ..volume.clone() };
                let description = Description { retained: true, ..self.description(&kept) };
                backend.describe(&description).await?;
                Ok(catalog::Change::RemoveVolume(volume.uuid))
            }
            OnRemove::Trash => {
                let since = self.inner.environment.clock.now();
                let trashed = Volume { state: VolumeState::Trashed { since }, ..volume.clone() };
                self.describe(&trashed, None, None).await?;
                Ok(put(&trashed))
            }
        }
    }

    /// Deletes what has been in the trash for long enough.
    pub(super) async fn empty_trash(&self) {
        let now = self.inner.environment.clock.now();
        let over: Vec<Arc<Volume>> = self.inner.catalog.read(|state| {
            let trashed = state.volumes().filter(|volume| match volume.state {
                VolumeState::Trashed { since } => {
                    has_passed(self.inner.config.trash_after, since, now)
                }
                _ => false,
            });
            trashed.cloned().collect()
        });
        for volume in over {
            let names = vec![volume.name.clone()];
            let change = self.change(None);
            let purged = change
                .run("purge", names, std::time::Duration::from_secs(60), |work| async move {
                    let outcome = work.purge(&volume).await?;
                    let text = format!("volume {} was deleted from the trash", volume.name);
                    work.tell_change(outcome, "volume.removed", &volume.name, text);
                    Ok(outcome)
                })
                .await;
            // Logged where it failed; the next round tries again.
            let _ = purged;
        }
    }
}
