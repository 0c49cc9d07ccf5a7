use std::path::Path;
use std::sync::Arc;

use crate::backend::{Backend, Description};
use crate::catalog::{Catalog, Change};
use crate::error::{Error, ErrorKind, Result};
use crate::model::{Volume, VolumeState};
use crate::name::VolumeName;

/// What a lost catalog was rebuilt from.
#[derive(Debug, Default)]
pub struct RebuildReport {
    /// Volumes that are known again.
    pub volumes: Vec<VolumeName>,
    /// What was found and not taken up, and why, as sentences.
    pub left: Vec<String>,
}

/// Makes a new catalog at `path`, where there is none, of what the backends hold: without it Docker
/// would be told that the volumes do not exist, and would make empty ones in their place.
///
/// # Errors
/// `InUse` if there is a catalog; a backend that cannot be read, because a partial catalog would be
/// taken for a whole one.
pub async fn rebuild_catalog(path: &Path, backends: &[Arc<dyn Backend>]) -> Result<RebuildReport> {
    let there = path.try_exists().map_err(|error| {
        Error::io(format!("cannot tell whether there is a catalog at {}", path.display()), error)
    })?;
    if there {
        return Err(Error::in_use(format!("there is a catalog at {}", path.display())));
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
    let mut report = RebuildReport::default();
    for backend in backends {
        let mut found = backend.survey().await?;
        found.sort_by_key(|found| found.volume);
        for found in found {
            let uuid = found.volume;
            let skip = |why: &str| format!("volume {uuid} in {}: {why}", backend.name());
            match found.description {
                Err(error) => report.left.push(skip(&error.full_message())),
                Ok(Description { retained: true, volume, .. }) => {
                    report.left.push(skip(&format!("{} was removed and retained", volume.name)));
                }
                Ok(description) if description.volume.uuid != uuid => {
                    report.left.push(skip("its description is of another volume"));
                }
                Ok(description) => take_up(&catalog, backend, description, &mut report).await?,
            }
        }
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

async fn take_up(
    catalog: &Catalog,
    backend: &Arc<dyn Backend>,
    description: Description,
    report: &mut RebuildReport,
) -> Result<()> {
    let Description { volume, snapshots, .. } = description;
    let state = match volume.state {
        VolumeState::Trashed { since } => VolumeState::Trashed { since },
        _ => VolumeState::Ready,
    };
    let mut volume = Volume { state, backend: backend.name().clone(), ..volume };
    let wanted = volume.name.clone();
    let snapshots = snapshots.into_iter().filter(|snapshot| snapshot.complete);
    let mut changes: Vec<Change> =
        snapshots.map(|snapshot| Change::PutSnapshot(Box::new(snapshot))).collect();
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
