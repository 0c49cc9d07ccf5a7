use std::path::Path;
use std::sync::Arc;

use crate::backend::{Backend, Description, Found};
use crate::catalog::{Catalog, Change};
use crate::error::{Error, ErrorKind, Result};
use crate::model::{Volume, VolumeState};
use crate::name::VolumeName;

/// What a lost catalog was rebuilt from.
#[derive(Debug, Default)]
pub struct RebuildReport {
    /// Volumes that are known again.
    pub volumes: Vec<VolumeName>,
    /// What was found and not taken up as it was, and why, as sentences. What its user removed and
    /// retained is not among it.
    pub left: Vec<String>,
}

/// What to do about a volume whose description does not tell what it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unreadable {
    /// Make no catalog: Docker would be told that the volume does not exist, and would make an empty
    /// one in its place.
    Refuse,
    /// Leave it where it is.
    Leave,
}

/// Makes a new catalog at `path`, where there is none, of what the backends hold: without it Docker
/// would be told that the volumes do not exist, and would make empty ones in their place.
///
/// # Errors
/// `InUse` if there is a catalog; a backend that cannot be read, because a partial catalog would be
/// taken for a whole one; `Corrupt` for unreadable volumes that are not to be left.
pub async fn rebuild_catalog(
    path: &Path,
    backends: &[Arc<dyn Backend>],
    unreadable: Unreadable,
) -> Result<RebuildReport> {
    let there = path.try_exists().map_err(|error| {
        Error::io(format!("cannot tell whether there is a catalog at {}", path.display()), error)
    })?;
    if there {
        return Err(Error::in_use(format!("there is a catalog at {}", path.display())));
    }
    let mut report = RebuildReport::default();
    let mut found = Vec::new();
    for backend in backends {
        let mut volumes = backend.survey().await?;
        volumes.sort_by_key(|found| found.volume);
        for volume in volumes {
            match volume.description {
                Ok(Description { retained: true, .. }) => {}
                Ok(description) if description.volume.uuid == volume.volume => {
                    found.push((backend, description));
                }
                _ => report.left.push(unknown(&**backend, &volume)),
            }
        }
    }
    if unreadable == Unreadable::Refuse && !report.left.is_empty() {
        return Err(Error::corrupt(format!(
            "there is no catalog at {}, and not every volume can be taken into a new one: {}",
            path.display(),
            report.left.join("; ")
        ))
        .hint(
            "put the catalog or the descriptions back, or start once with --rebuild-catalog, which \
             goes on without these volumes and leaves their data where it is",
        ));
    }
    // Under another name until it is whole: a half rebuilt catalog must not pass for a catalog.
    let draft = path.with_extension("rebuilding");
    match std::fs::remove_file(&draft) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(Error::io(format!("cannot remove {}", draft.display()), error));
        }
        _ => {}
    }
    let catalog = Catalog::open(&draft)?;
    for backend in backends {
        let storage = Change::PutStorage(backend.name().clone(), backend.storage()?);
        catalog.commit(vec![storage]).await?;
    }
    for (backend, description) in found {
        take_up(&catalog, backend, description, &mut report).await?;
    }
    drop(catalog);
    std::fs::rename(&draft, path)
        .and_then(|()| match path.parent() {
            Some(directory) => std::fs::File::open(directory)?.sync_all(),
            None => Ok(()),
        })
        .map_err(|error| Error::io(format!("cannot put {} in place", path.display()), error))?;
    Ok(report)
}

/// Says that the catalog does not know a volume that the backend holds.
pub(super) fn unknown(backend: &dyn Backend, found: &Found) -> String {
    let Found { volume, description } = found;
    let why = match description {
        Err(error) => error.full_message(),
        Ok(description) if description.volume.uuid != *volume => {
            "its description is of another volume".to_owned()
        }
        Ok(description) => format!(
            "it was the volume {}, and `holdfast volume adopt {volume}` takes it up",
            description.volume.name
        ),
    };
    format!("{volume} in the backend {} is no volume of the catalog: {why}", backend.name())
}

async fn take_up(
    catalog: &Catalog,
    backend: &Arc<dyn Backend>,
    description: Description,
    report: &mut RebuildReport,
) -> Result<()> {
    let Description { volume, snapshots, schedule, .. } = description;
    let state = match volume.state {
        VolumeState::Trashed { since } => VolumeState::Trashed { since },
        _ => VolumeState::Ready,
    };
    let mut volume = Volume { state, backend: backend.name().clone(), ..volume };
    let wanted = volume.name.clone();
    let snapshots = snapshots.into_iter().filter(|snapshot| snapshot.complete);
    let mut changes: Vec<Change> =
        snapshots.map(|snapshot| Change::PutSnapshot(Box::new(snapshot))).collect();
    let schedule = schedule.map(|schedule| Change::PutSchedule(volume.uuid, Box::new(schedule)));
    changes.extend(schedule);
    changes.push(Change::PutVolume(Box::new(volume.clone())));
    match catalog.commit(changes.clone()).await {
        Err(error) if error.kind() == ErrorKind::Conflict => {
            // Two volumes of one name: neither may shadow the other.
            let uuid = volume.uuid.to_string();
            let short: String = wanted.as_str().chars().take(90).collect();
            volume.name = format!("{short}-{uuid}").parse()?;
            report.left.push(format!("there are two volumes {wanted}; one is {} now", volume.name));
            changes.pop();
            changes.push(Change::PutVolume(Box::new(volume.clone())));
            catalog.commit(changes).await?;
        }
        other => other?,
    }
    report.volumes.push(volume.name);
    Ok(())
}
