//! Repositories.

use axum::Json;
use axum::extract::State;

use super::extract::{Body, Params, Segments};
use super::wire::PruneRepository;
use super::{Answer, Effect, Gate, How, Reply, change, engine};
use crate::engine::view::RepositoryView;
use crate::name::RepositoryName;
use crate::repository::Prune;

pub(super) async fn repositories(State(gate): State<Gate>) -> Answer<Vec<RepositoryView>> {
    Ok(Json(engine(&gate).await?.repositories().await))
}

pub(super) async fn init(
    State(gate): State<Gate>,
    Segments(name): Segments<String>,
    Params(how): Params<How>,
) -> Reply {
    let name: RepositoryName = name.try_into()?;
    change(&gate, &how, name.to_string(), |change| change.init_repository(name)).await
}

pub(super) async fn check(
    State(gate): State<Gate>,
    Segments(name): Segments<String>,
    Params(how): Params<How>,
) -> Reply {
    let name: RepositoryName = name.try_into()?;
    change(&gate, &how, name.to_string(), |change| async move {
        let check = Some(change.check_repository(name).await?.into());
        Ok(Effect { check, ..Effect::default() })
    })
    .await
}

pub(super) async fn prune(
    State(gate): State<Gate>,
    Segments(name): Segments<String>,
    Params(how): Params<How>,
    Body(asked): Body<PruneRepository>,
) -> Reply {
    let name: RepositoryName = name.try_into()?;
    let kind = asked.how.unwrap_or(Prune::Mark);
    change(&gate, &how, name.to_string(), |change| async move {
        let report = change.prune(Some(name), kind).await?;
        let changed = !report.planned_only && report.removed + report.marked + report.repacked > 0;
        Ok(Effect { changed, prune: Some(report), ..Effect::default() })
    })
    .await
}
