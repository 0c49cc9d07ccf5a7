//! `holdfast schedule`

use super::Session;
use super::args::{Schedule, Settings};
use super::exit::Failure;
use super::print::{or_dash, table};
use crate::api::admin::{Changed, SetSchedule};
use crate::engine::view::VolumeSchedule;
use crate::model::{RunOutcome, RunResult};

pub(super) async fn run(session: &Session, asked: &Schedule) -> Result<(), Failure> {
    let client = &session.client;
    let name_of = |changed: &Changed| changed.name.clone();
    match asked {
        Schedule::Set { volume, settings, detach } => {
            let schedule = schedule(settings);
            let set = |how| client.set_schedule(how, volume, &schedule);
            session.change(*detach, set, name_of).await
        }
        Schedule::Rm { volume, detach } => {
            session.change(*detach, |how| client.remove_schedule(how, volume), name_of).await
        }
        Schedule::Ls => session.printer.show(&client.schedules().await?, |all| list(all)),
    }
}

fn schedule(settings: &Settings) -> SetSchedule {
    SetSchedule {
        snapshot_every: settings.snapshot_every.as_ref().map(ToString::to_string),
        backup_every: settings.backup_every.as_ref().map(ToString::to_string),
        keep: settings.keep.as_ref().map(ToString::to_string),
        repository: settings.repository.as_ref().map(ToString::to_string),
        hook: settings.hook.as_ref().map(ToString::to_string),
    }
}

fn list(schedules: &[VolumeSchedule]) -> String {
    let rows = schedules.iter().map(|one| {
        let schedule = &one.schedule;
        let keep = Some(schedule.keep).filter(|keep| !keep.is_empty());
        [
            one.volume.to_string(),
            or_dash(schedule.snapshot_every.as_ref()),
            or_dash(schedule.next_snapshot),
            or_dash(one.last_snapshot_run.as_ref().map(last)),
            or_dash(schedule.backup_every.as_ref()),
            or_dash(schedule.next_backup),
            or_dash(one.last_backup_run.as_ref().map(last)),
            or_dash(keep),
        ]
    });
    table(["VOLUME", "SNAPSHOT", "NEXT", "LAST", "BACKUP", "NEXT", "LAST", "KEEP"], rows)
}

/// `done 2026-11-21T11:55:43Z`
pub(super) fn last(run: &RunResult) -> String {
    let word = match run.outcome {
        RunOutcome::Done(_) => "done",
        RunOutcome::Failed(_) => "failed",
    };
    format!("{word} {}", run.finished)
}
