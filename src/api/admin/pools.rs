//! Pools.

use axum::Json;
use axum::extract::State;

use super::extract::{Body, Params, Segments};
use super::wire::GrowPool;
use super::{Answer, Effect, Gate, How, Reply, change, engine};
use crate::engine::view::PoolView;
use crate::name::BackendName;

pub(super) async fn pools(State(gate): State<Gate>) -> Answer<Vec<PoolView>> {
    Ok(Json(engine(&gate).await?.pools().await))
}

pub(super) async fn pool(
    State(gate): State<Gate>,
    Segments(name): Segments<String>,
) -> Answer<PoolView> {
    let name: BackendName = name.try_into()?;
    Ok(Json(engine(&gate).await?.pool(&name).await?))
}

pub(super) async fn grow(
    State(gate): State<Gate>,
    Segments(name): Segments<String>,
    Params(how): Params<How>,
    Body(to): Body<GrowPool>,
) -> Reply {
    let name: BackendName = name.try_into()?;
    let size = to.size.map(TryInto::try_into).transpose()?;
    change(&gate, &how, name.to_string(), |change| change.grow_pool(name, size)).await
}

pub(super) async fn check(
    State(gate): State<Gate>,
    Segments(name): Segments<String>,
    Params(how): Params<How>,
) -> Reply {
    let name: BackendName = name.try_into()?;
    change(&gate, &how, name.to_string(), |change| async move {
        let check = Some(change.check_pool(name).await?.into());
        Ok(Effect { check, ..Effect::default() })
    })
    .await
}

pub(super) async fn repair(
    State(gate): State<Gate>,
    Segments(name): Segments<String>,
    Params(how): Params<How>,
) -> Reply {
    let name: BackendName = name.try_into()?;
    change(&gate, &how, name.to_string(), |change| async move {
        let report = Some(change.repair_pool(name).await?);
        Ok(Effect { changed: true, report, ..Effect::default() })
    })
    .await
}
