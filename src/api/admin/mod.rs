//! The admin API: HTTP and JSON under `/v1`, for the command line and for programs
//! (`docs/admin-api.md`).

mod backups;
mod events;
mod extract;
mod operations;
mod pools;
mod repositories;
mod schedules;
mod wire;

pub use wire::{
    Adopt, Changed, Check, CreateBackup, CreateVolume, Cut, ErrorBody, GrowPool, MountBy, Named,
    PruneRepository, Resize, SetSchedule, Size, VerifyBackups,
};

use std::path::PathBuf;
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use axum::{Extension, Json, Router};
use hyper_util::service::TowerToHyperService;
use serde::Deserialize;
use tokio::net::UnixListener;
use tokio::sync::watch;

use super::Gate;
use super::metrics::{self, Metrics};
use super::server::{self, Limits};
use crate::engine::view::{
    PruneReport, SnapshotView, StatusView, Verification, VolumeDetails, VolumeSummary,
};
use crate::engine::{Change, Engine, SnapshotsToo};
use crate::error::{Error, Result};
use crate::id::{MountId, OperationId, VolumeUuid};
use crate::model::{Backup, Holder, Outcome};
use crate::name::{HookName, SnapshotName, SnapshotRef, VolumeName};
use crate::options::VolumeOptions;
use events::Ending;
use extract::{Body, Failure, Params, Segments};

/// How long a detached change may take to fail before it counts as on its way.
const FIRST_LOOK: Duration = Duration::from_millis(250);

/// Serves the API until `stop` is done.
pub async fn serve(
    listener: UnixListener,
    gate: Gate,
    metrics: Metrics,
    limits: Limits,
    stop: impl Future<Output = ()>,
) {
    let (closing, ending) = watch::channel(());
    let stop = async move {
        stop.await;
        drop(closing);
    };
    let router = router(gate).layer(Extension(Ending(ending))).layer(Extension(metrics));
    let service = TowerToHyperService::new(router);
    server::serve(listener, limits, service, stop).await;
}

fn router(gate: Gate) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/volumes", get(volumes).post(create))
        .route("/v1/volumes/{volume}", get(volume).delete(remove))
        .route("/v1/volumes/{volume}/undelete", post(undelete))
        .route("/v1/volumes/{volume}/mount", post(mount))
        .route("/v1/volumes/{volume}/unmount", post(unmount))
        .route("/v1/volumes/{volume}/resize", post(resize))
        .route("/v1/volumes/{volume}/rename", post(rename))
        .route("/v1/adopt", post(adopt))
        .route("/v1/snapshots", get(snapshots))
        .route("/v1/volumes/{volume}/snapshots", get(volume_snapshots).post(cut))
        .route("/v1/volumes/{volume}/snapshots/{snapshot}", get(snapshot).delete(remove_snapshot))
        .route("/v1/volumes/{volume}/snapshots/{snapshot}/restore", post(restore))
        .route("/v1/schedules", get(schedules::schedules))
        .route("/v1/volumes/{volume}/schedule", put(schedules::set).delete(schedules::remove))
        .route("/v1/pools", get(pools::pools))
        .route("/v1/pools/{pool}", get(pools::pool))
        .route("/v1/pools/{pool}/grow", post(pools::grow))
        .route("/v1/pools/{pool}/check", post(pools::check))
        .route("/v1/pools/{pool}/repair", post(pools::repair))
        .route("/v1/backups", get(backups::backups).post(backups::create))
        .route("/v1/backups/verify", post(backups::verify))
        .route("/v1/backups/{backup}", get(backups::backup).delete(backups::remove))
        .route("/v1/repositories", get(repositories::repositories))
        .route("/v1/repositories/{repository}/init", post(repositories::init))
        .route("/v1/repositories/{repository}/check", post(repositories::check))
        .route("/v1/repositories/{repository}/prune", post(repositories::prune))
        .route("/v1/operations", get(operations::operations))
        .route("/v1/operations/{operation}", get(operations::operation))
        .route("/v1/operations/{operation}/cancel", post(operations::cancel))
        .route("/v1/events", get(events::events))
        .route("/metrics", get(numbers))
        .fallback(no_route)
        .method_not_allowed_fallback(no_method)
        .with_state(gate)
}

type Answer<T> = Result<Json<T>, Failure>;

async fn no_route(uri: axum::http::Uri) -> Failure {
    Error::not_found(format!("there is no {}", uri.path()))
        .hint("docs/admin-api.md lists what there is")
        .into()
}

async fn no_method(method: axum::http::Method, uri: axum::http::Uri) -> Response {
    let error = Error::invalid(format!("{} has no {method}", uri.path()))
        .hint("docs/admin-api.md lists what there is");
    (StatusCode::METHOD_NOT_ALLOWED, Json(ErrorBody::from(&error))).into_response()
}

async fn engine(gate: &Gate) -> Result<Engine> {
    gate.engine().await.ok_or_else(|| Error::unavailable("the daemon is stopping"))
}

async fn status(State(gate): State<Gate>) -> Answer<StatusView> {
    Ok(Json(engine(&gate).await?.status().await))
}

async fn numbers(
    State(gate): State<Gate>,
    Extension(metrics): Extension<Metrics>,
) -> Result<Response, Failure> {
    let text = metrics.render(&engine(&gate).await?).await?;
    Ok(([(CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response())
}

async fn volumes(State(gate): State<Gate>) -> Answer<Vec<VolumeSummary>> {
    Ok(Json(engine(&gate).await?.volumes()))
}

async fn volume(
    State(gate): State<Gate>,
    Segments(name): Segments<String>,
) -> Answer<VolumeDetails> {
    let name: VolumeName = name.try_into()?;
    Ok(Json(engine(&gate).await?.details(&name).await?))
}

/// Which snapshots.
#[derive(Debug, Deserialize)]
struct OfVolume {
    volume: Option<String>,
}

async fn snapshots(
    State(gate): State<Gate>,
    Params(of): Params<OfVolume>,
) -> Answer<Vec<SnapshotView>> {
    let volume = of.volume.map(VolumeName::try_from).transpose()?;
    Ok(Json(engine(&gate).await?.snapshots(volume.as_ref())?))
}

async fn volume_snapshots(
    State(gate): State<Gate>,
    Segments(volume): Segments<String>,
) -> Answer<Vec<SnapshotView>> {
    let volume: VolumeName = volume.try_into()?;
    Ok(Json(engine(&gate).await?.snapshots(Some(&volume))?))
}

async fn snapshot(
    State(gate): State<Gate>,
    Segments((volume, name)): Segments<(String, String)>,
) -> Answer<SnapshotView> {
    let reference = reference(volume, name)?;
    Ok(Json(engine(&gate).await?.snapshot(&reference)?))
}

fn reference(volume: String, snapshot: String) -> Result<SnapshotRef> {
    Ok(SnapshotRef { volume: volume.try_into()?, snapshot: snapshot.try_into()? })
}

/// How a change is to be made.
#[derive(Debug, Deserialize)]
struct How {
    /// Answer once it is on its way.
    #[serde(default)]
    detach: bool,
    /// The id to watch it by.
    operation: Option<OperationId>,
}

/// What a change gives.
#[derive(Debug, Default)]
struct Effect {
    changed: bool,
    mountpoint: Option<PathBuf>,
    safety: Option<SnapshotName>,
    check: Option<Check>,
    report: Option<Vec<String>>,
    backup: Option<Backup>,
    verification: Option<Verification>,
    prune: Option<PruneReport>,
}

impl From<Outcome> for Effect {
    fn from(outcome: Outcome) -> Self {
        Self { changed: outcome == Outcome::Changed, ..Self::default() }
    }
}

/// Makes a change and tells how it went, or only that it is on its way.
async fn change<F, R, E>(gate: &Gate, how: &How, name: String, work: F) -> Result<Response, Failure>
where
    F: FnOnce(Change) -> R,
    R: Future<Output = Result<E>> + Send + 'static,
    E: Into<Effect> + Send + 'static,
{
    let change = engine(gate).await?.change(how.operation);
    let operation = change.id();
    let work = work(change);
    let mut answer = Changed::begun(name, operation);
    if how.detach {
        let mut work = tokio::spawn(work);
        // What is wrong from the start is told now, because nobody may look later.
        if let Ok(Ok(Err(error))) = tokio::time::timeout(FIRST_LOOK, &mut work).await {
            return Err(error.into());
        }
        return Ok((StatusCode::ACCEPTED, Json(answer)).into_response());
    }
    let effect: Effect = work.await?.into();
    answer.changed = Some(effect.changed);
    answer.mountpoint = effect.mountpoint;
    answer.safety = effect.safety;
    answer.check = effect.check;
    answer.report = effect.report;
    answer.backup = effect.backup;
    answer.verification = effect.verification;
    answer.prune = effect.prune;
    Ok(Json(answer).into_response())
}

type Reply = Result<Response, Failure>;

async fn create(
    State(gate): State<Gate>,
    Params(how): Params<How>,
    Body(asked): Body<CreateVolume>,
) -> Reply {
    let CreateVolume { name, options, labels } = asked;
    let name: VolumeName = name.try_into()?;
    let options = VolumeOptions::parse(&options)
        .map_err(|error| error.context(format!("cannot create {name}")))?;
    change(&gate, &how, name.to_string(), |change| change.create(name, options, labels)).await
}

/// How a volume is to be removed.
#[derive(Debug, Deserialize)]
struct Removal {
    /// With the snapshots that users made of it.
    #[serde(default)]
    snapshots: bool,
}

async fn remove(
    State(gate): State<Gate>,
    Segments(name): Segments<String>,
    Params(how): Params<How>,
    Params(removal): Params<Removal>,
) -> Reply {
    let name: VolumeName = name.try_into()?;
    let snapshots = if removal.snapshots { SnapshotsToo::Delete } else { SnapshotsToo::Refuse };
    change(&gate, &how, name.to_string(), |change| change.remove(name, snapshots)).await
}

async fn undelete(
    State(gate): State<Gate>,
    Segments(name): Segments<String>,
    Params(how): Params<How>,
) -> Reply {
    let name: VolumeName = name.try_into()?;
    change(&gate, &how, name.to_string(), |change| change.undelete(name)).await
}

async fn adopt(
    State(gate): State<Gate>,
    Params(how): Params<How>,
    Body(asked): Body<Adopt>,
) -> Reply {
    let uuid: VolumeUuid = asked.uuid.parse()?;
    let name = match asked.name {
        Some(name) => name.try_into()?,
        None => engine(&gate).await?.last_name(uuid).await?,
    };
    change(&gate, &how, name.to_string(), |change| change.adopt(uuid, name)).await
}

async fn mount(
    State(gate): State<Gate>,
    Segments(name): Segments<String>,
    Params(how): Params<How>,
    Body(by): Body<MountBy>,
) -> Reply {
    let name: VolumeName = name.try_into()?;
    let id: MountId = by.id.try_into()?;
    change(&gate, &how, name.to_string(), |change| async move {
        let mountpoint = Some(change.mount(name, id, Holder::Host).await?);
        Ok(Effect { changed: true, mountpoint, ..Effect::default() })
    })
    .await
}

async fn unmount(
    State(gate): State<Gate>,
    Segments(name): Segments<String>,
    Params(how): Params<How>,
    Body(by): Body<MountBy>,
) -> Reply {
    let name: VolumeName = name.try_into()?;
    let id: MountId = by.id.try_into()?;
    change(&gate, &how, name.to_string(), |change| change.unmount(name, id)).await
}

async fn resize(
    State(gate): State<Gate>,
    Segments(name): Segments<String>,
    Params(how): Params<How>,
    Body(to): Body<Resize>,
) -> Reply {
    let name: VolumeName = name.try_into()?;
    let size = to.size.try_into()?;
    change(&gate, &how, name.to_string(), |change| change.resize(name, size)).await
}

async fn rename(
    State(gate): State<Gate>,
    Segments(name): Segments<String>,
    Params(how): Params<How>,
    Body(new): Body<Named>,
) -> Reply {
    let name: VolumeName = name.try_into()?;
    let new: VolumeName = new.name.try_into()?;
    change(&gate, &how, new.to_string(), |change| change.rename(name, new)).await
}

async fn cut(
    State(gate): State<Gate>,
    Segments(volume): Segments<String>,
    Params(how): Params<How>,
    Body(asked): Body<Cut>,
) -> Reply {
    let reference = reference(volume, asked.name)?;
    let hook = asked.hook.map(HookName::try_from).transpose()?;
    change(&gate, &how, reference.to_string(), |change| change.snapshot(reference, hook)).await
}

async fn remove_snapshot(
    State(gate): State<Gate>,
    Segments((volume, name)): Segments<(String, String)>,
    Params(how): Params<How>,
) -> Reply {
    let reference = reference(volume, name)?;
    change(&gate, &how, reference.to_string(), |change| change.remove_snapshot(reference)).await
}

async fn restore(
    State(gate): State<Gate>,
    Segments((volume, name)): Segments<(String, String)>,
    Params(how): Params<How>,
) -> Reply {
    let reference = reference(volume, name)?;
    change(&gate, &how, reference.to_string(), |change| async move {
        let safety = Some(change.restore(reference).await?);
        Ok(Effect { changed: true, safety, ..Effect::default() })
    })
    .await
}
