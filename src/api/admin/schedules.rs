//! Schedules.

use axum::Json;
use axum::extract::State;

use super::extract::{Body, Params, Segments};
use super::wire::SetSchedule;
use super::{Answer, Gate, How, Reply, change, engine};
use crate::engine::view::VolumeSchedule;
use crate::model::Schedule;
use crate::name::VolumeName;

pub(super) async fn schedules(State(gate): State<Gate>) -> Answer<Vec<VolumeSchedule>> {
    Ok(Json(engine(&gate).await?.schedules()))
}

pub(super) async fn set(
    State(gate): State<Gate>,
    Segments(volume): Segments<String>,
    Params(how): Params<How>,
    Body(asked): Body<SetSchedule>,
) -> Reply {
    let volume: VolumeName = volume.try_into()?;
    let schedule: Schedule = asked.try_into()?;
    change(&gate, &how, volume.to_string(), |change| change.set_schedule(volume, schedule)).await
}

pub(super) async fn remove(
    State(gate): State<Gate>,
    Segments(volume): Segments<String>,
    Params(how): Params<How>,
) -> Reply {
    let volume: VolumeName = volume.try_into()?;
    change(&gate, &how, volume.to_string(), |change| change.remove_schedule(volume)).await
}
