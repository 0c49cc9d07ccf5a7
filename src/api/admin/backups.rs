//! Backups.

use axum::Json;
use axum::extract::State;
use serde::Deserialize;

use super::extract::{Body, Params, Segments};
use super::wire::{CreateBackup, VerifyBackups};
use super::{Answer, Effect, Gate, How, Reply, change, engine};
use crate::engine::Verify;
use crate::engine::view::BackupDetails;
use crate::error::Result;
use crate::id::BackupRef;
use crate::model::Backup;
use crate::name::{HookName, RepositoryName, SnapshotName, SnapshotRef, VolumeName};

/// Which backups.
#[derive(Debug, Deserialize)]
pub(super) struct OfVolume {
    volume: Option<String>,
}

/// Where they are.
#[derive(Debug, Deserialize)]
pub(super) struct InRepository {
    repository: Option<String>,
}

fn named(repository: Option<String>) -> Result<Option<RepositoryName>> {
    repository.map(RepositoryName::try_from).transpose()
}

pub(super) async fn backups(
    State(gate): State<Gate>,
    Params(of): Params<OfVolume>,
    Params(place): Params<InRepository>,
) -> Answer<Vec<Backup>> {
    let volume = of.volume.map(VolumeName::try_from).transpose()?;
    let repository = named(place.repository)?;
    Ok(Json(engine(&gate).await?.backups(volume.as_ref(), repository.as_ref()).await?))
}

pub(super) async fn backup(
    State(gate): State<Gate>,
    Segments(id): Segments<String>,
    Params(place): Params<InRepository>,
) -> Answer<BackupDetails> {
    let id: BackupRef = id.parse()?;
    let repository = named(place.repository)?;
    Ok(Json(engine(&gate).await?.backup(&id, repository.as_ref()).await?))
}

pub(super) async fn create(
    State(gate): State<Gate>,
    Params(how): Params<How>,
    Body(asked): Body<CreateBackup>,
) -> Reply {
    let volume: VolumeName = asked.volume.try_into()?;
    let snapshot = asked.snapshot.map(SnapshotName::try_from).transpose()?;
    let repository = named(asked.repository)?;
    let hook = asked.hook.map(HookName::try_from).transpose()?;
    let name = match &snapshot {
        Some(snapshot) => {
            SnapshotRef { volume: volume.clone(), snapshot: snapshot.clone() }.to_string()
        }
        None => volume.to_string(),
    };
    change(&gate, &how, name, |change| async move {
        let backup = Some(change.back_up(volume, snapshot, repository, hook).await?);
        Ok(Effect { changed: true, backup, ..Effect::default() })
    })
    .await
}

pub(super) async fn remove(
    State(gate): State<Gate>,
    Segments(id): Segments<String>,
    Params(how): Params<How>,
    Params(place): Params<InRepository>,
) -> Reply {
    let id: BackupRef = id.parse()?;
    let repository = named(place.repository)?;
    change(&gate, &how, id.to_string(), |change| change.remove_backup(id, repository)).await
}

pub(super) async fn verify(
    State(gate): State<Gate>,
    Params(how): Params<How>,
    Body(asked): Body<VerifyBackups>,
) -> Reply {
    let repository = named(asked.repository)?;
    let which = match asked.backup {
        Some(id) => Verify::One(id.parse()?),
        None => Verify::All,
    };
    let name = match &which {
        Verify::One(id) => id.to_string(),
        Verify::All => "all".to_owned(),
    };
    change(&gate, &how, name, |change| async move {
        let verification = Some(change.verify_backups(which, repository).await?);
        Ok(Effect { verification, ..Effect::default() })
    })
    .await
}
