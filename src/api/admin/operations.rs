//! Operations.

use axum::Json;
use axum::extract::State;

use super::extract::Segments;
use super::{Answer, Gate, engine};
use crate::engine::view::OperationView;
use crate::id::OperationId;

pub(super) async fn operations(State(gate): State<Gate>) -> Answer<Vec<OperationView>> {
    Ok(Json(engine(&gate).await?.operations()))
}

pub(super) async fn operation(
    State(gate): State<Gate>,
    Segments(id): Segments<String>,
) -> Answer<OperationView> {
    let id: OperationId = id.parse()?;
    Ok(Json(engine(&gate).await?.operation(id)?))
}

pub(super) async fn cancel(
    State(gate): State<Gate>,
    Segments(id): Segments<String>,
) -> Answer<OperationView> {
    let id: OperationId = id.parse()?;
    Ok(Json(engine(&gate).await?.cancel(id)?))
}
