//! A volume that a backend holds and the catalog does not know is made a volume again.

use std::sync::Arc;

use super::Engine;
use super::change::Work;
use super::create::put;
use super::snapshot::put_snapshot;
use crate::backend::{Backend, Description, Locator, Presence};
use crate::catalog;
use crate::error::{Error, Result};
use crate::id::VolumeUuid;
use crate::model::{Outcome, Volume, VolumeState};
use crate::name::VolumeName;

impl Engine {
    /// The name under which a volume that the catalog does not know was known last.
    ///
    /// # Errors
    /// `NotFound` if no backend holds it; `Corrupt` if its description cannot be read.
    pub async fn last_name(&self, uuid: VolumeUuid) -> Result<VolumeName> {
        Ok(self.held(uuid).await?.1.volume.name)
    }

    /// The backend that holds the volume, and how it describes it.
    async fn held(&self, uuid: VolumeUuid) -> Result<(&Arc<dyn Backend>, Description)> {
        for backend in self.inner.backends.values().filter(|backend| backend.storage().is_ok()) {
            let mut found = backend.survey().await?.into_iter();
            if let Some(found) = found.find(|found| found.volume == uuid) {
                let description = found.description?;
                return match description.volume.uuid == uuid {
                    true => Ok((backend, description)),
                    false => Err(Error::corrupt(format!("{uuid} is described as another volume"))),
                };
            }
        }
        Err(Error::not_found(format!("no backend on this node holds a volume {uuid}"))
            .hint("docs/loop.md says how to find what was retained"))
    }
}

impl Work {
    pub(super) async fn adopt(&self, uuid: VolumeUuid, name: VolumeName) -> Result<Outcome> {
        let catalog = &self.engine.inner.catalog;
        if let Some(known) = catalog.read(|state| state.volume(uuid).cloned()) {
            if known.is_ready() && known.name == name {
                return Ok(Outcome::Unchanged);
            }
            return Err(Error::conflict(format!(
                "{uuid} is the volume {} already, which is {}",
                known.name,
                known.state.as_str()
            )));
        }
        let (backend, Description { volume, snapshots, schedule, .. }) =
            self.engine.held(uuid).await?;
        let backend_name = backend.name().clone();
        let volume = Volume { name, state: VolumeState::Ready, backend: backend_name, ..volume };
        if backend.inspect(Locator::from(&volume)).await? == Presence::Absent {
            return Err(Error::corrupt(format!("there is a description of {uuid}, but no data")));
        }
        let snapshots = snapshots.iter().filter(|snapshot| snapshot.complete);
        let mut record: Vec<_> = snapshots.map(put_snapshot).collect();
        let schedule = schedule.map(Box::new);
        record.extend(schedule.map(|s| catalog::Change::PutSchedule(volume.uuid, s)));
        record.push(put(&volume));
        catalog
            .commit(record)
            .await
            .map_err(|error| error.hint("give another name: `holdfast volume adopt UUID NAME`"))?;
        // It is back whether or not its description says so yet.
        if let Err(error) = self.engine.describe(&volume, None, None).await {
            let name = &volume.name;
            self.engine.warn(format!("volume {name} was adopted, but: {}", error.full_message()));
        }
        Ok(Outcome::Changed)
    }
}
