//! Snapshots and backups that are made by themselves, and how many are kept of them.

mod pace;
mod retention;
mod runner;

use jiff::Timestamp;

use super::Engine;
use super::change::{Change, SHORT_PATIENCE, Work};
use super::view::{ScheduleView, VolumeSchedule};
use crate::backend::Backend;
use crate::catalog::{self, State};
use crate::error::{Error, Result};
use crate::failpoint::Step;
use crate::model::{
    ActiveSchedule, OperationKind, Outcome, RunKind, RunOutcome, RunResult, Schedule, Volume,
};
use crate::name::VolumeName;
use crate::options::VolumeOptions;
pub(super) use runner::Scheduler;

impl Change {
    /// Gives the volume a schedule in place of the one that it has. `Unchanged` if it is the same.
    ///
    /// # Errors
    /// `NotFound` if there is no such volume; `Invalid` for a schedule that makes nothing or names an
    /// unknown hook; `Unsupported` if its backend has no snapshots.
    pub async fn set_schedule(self, name: VolumeName, schedule: Schedule) -> Result<Outcome> {
        self.run("schedule", vec![name.clone()], SHORT_PATIENCE, |work| async move {
            let outcome = work.set_schedule(&name, schedule).await?;
            let text = format!("volume {name} has another schedule now");
            work.tell_change(outcome, "schedule.set", &name, text);
            Ok(outcome)
        })
        .await
    }

    /// Ends the volume's schedule. What it has made stays.
    ///
    /// # Errors
    /// `NotFound` if there is no such volume, or if it has no schedule.
    pub async fn remove_schedule(self, name: VolumeName) -> Result<Outcome> {
        self.run("schedule", vec![name.clone()], SHORT_PATIENCE, |work| async move {
            let outcome = work.remove_schedule(&name).await?;
            let text = format!("volume {name} has no schedule any more");
            work.tell_change(outcome, "schedule.removed", &name, text);
            Ok(outcome)
        })
        .await
    }
}

impl Work {
    async fn set_schedule(&self, name: &VolumeName, schedule: Schedule) -> Result<Outcome> {
        let schedule = schedule.checked()?;
        let volume = self.engine.ready(name)?;
        self.engine.check_schedule(&schedule, self.backend(&volume)?.as_ref())?;
        let before = self.engine.inner.catalog.read(|state| state.schedule(volume.uuid).cloned());
        if before.as_ref().is_some_and(|before| before.schedule == schedule) {
            return Ok(Outcome::Unchanged);
        }
        let now = self.engine.inner.environment.clock.now();
        let active = ActiveSchedule::begin(schedule, before.as_deref(), now);
        let record = catalog::Change::PutSchedule(volume.uuid, Box::new(active));
        self.record_schedule(&volume, record).await
    }

    async fn remove_schedule(&self, name: &VolumeName) -> Result<Outcome> {
        let volume = self.engine.ready(name)?;
        if self.engine.inner.catalog.read(|state| state.schedule(volume.uuid).is_none()) {
            return Err(Error::not_found(format!("volume {name} has no schedule"))
                .hint("see `holdfast schedule ls`"));
        }
        self.record_schedule(&volume, catalog::Change::RemoveSchedule(volume.uuid)).await
    }

    async fn record_schedule(&self, volume: &Volume, record: catalog::Change) -> Result<Outcome> {
        let kind = OperationKind::Schedule;
        let operation = self.intend(Step::ScheduleIntent, volume, kind, vec![record]).await?;
        self.engine.inner.scheduler.wake();
        let described = async {
            let describe = self.engine.describe(volume, None, None);
            self.step(Step::ScheduleDescribe, describe).await?;
            self.finish(Step::ScheduleFinish, vec![]).await
        };
        match described.await {
            Ok(()) => Ok(Outcome::Changed),
            Err(error) => Err(self.undo(&operation, error).await),
        }
    }
}

impl Engine {
    /// The schedule that a new volume is asked to have.
    pub(super) fn schedule_of(
        &self,
        options: &VolumeOptions,
        backend: &dyn Backend,
    ) -> Result<Option<ActiveSchedule>> {
        let schedule = Schedule {
            snapshot: options.snapshot_every.clone(),
            backup: options.backup_every.clone(),
            keep: options.keep,
            repository: options.repository.clone(),
            // By itself it is the volume's and no schedule.
            hook: None,
        };
        if let Some(hook) = &options.hook {
            self.hook(hook)?;
        }
        if schedule == Schedule::default() {
            return Ok(None);
        }
        let schedule = schedule.checked()?;
        self.check_schedule(&schedule, backend)?;
        let now = self.inner.environment.clock.now();
        Ok(Some(ActiveSchedule::begin(schedule, None, now)))
    }

    fn check_schedule(&self, schedule: &Schedule, backend: &dyn Backend) -> Result<()> {
        if schedule.snapshot.is_some() && backend.snapshots().is_none() {
            let name = backend.name();
            return Err(Error::unsupported(format!("the backend {name} has no snapshots")));
        }
        if schedule.backup.is_some() {
            self.inner.config.repositories.get(schedule.repository.as_ref())?;
        }
        match &schedule.hook {
            Some(hook) => self.hook(hook).map(drop),
            None => Ok(()),
        }
    }

    /// The schedules of all volumes that users may see, by name.
    pub fn schedules(&self) -> Vec<VolumeSchedule> {
        let now = self.inner.environment.clock.now();
        let mut all: Vec<VolumeSchedule> = self.inner.catalog.read(|state| {
            let ready = state.schedules().filter(|(volume, _)| volume.is_ready());
            ready
                .map(|(volume, active)| VolumeSchedule {
                    volume: volume.name.clone(),
                    schedule: self.schedule_view(state, volume, active, now),
                    last_snapshot_run: last_run(state, volume, RunKind::Snapshot),
                    last_backup_run: last_run(state, volume, RunKind::Backup),
                })
                .collect()
        });
        all.sort_by(|a, b| a.volume.cmp(&b.volume));
        all
    }

    pub(super) fn schedule_view(
        &self,
        state: &State,
        volume: &Volume,
        active: &ActiveSchedule,
        now: Timestamp,
    ) -> ScheduleView {
        let next = |kind| self.next_run(state, volume, active, kind, now);
        let Schedule { snapshot, backup, keep, repository, hook } = active.schedule.clone();
        ScheduleView {
            snapshot_every: snapshot,
            backup_every: backup,
            keep,
            repository,
            hook,
            next_snapshot: next(RunKind::Snapshot),
            next_backup: next(RunKind::Backup),
        }
    }

    /// What went wrong last, as sentences.
    pub(super) fn schedule_warnings(&self) -> Vec<String> {
        let mut warnings: Vec<String> = self.inner.catalog.read(|state| {
            let ready = state.schedules().filter(|(volume, _)| volume.is_ready());
            let kinds = ready.flat_map(|(volume, active)| {
                let due = move |kind: &RunKind| active.schedule.timing(*kind).is_some();
                RunKind::ALL.into_iter().filter(due).map(move |kind| (volume, kind))
            });
            let failed = kinds.filter_map(|(volume, kind)| {
                let last = last_run(state, volume, kind)?;
                let RunOutcome::Failed(why) = last.outcome else { return None };
                let (name, when) = (&volume.name, last.finished);
                Some(format!(
                    "the last {kind} by the schedule of volume {name} failed at {when}: {why}"
                ))
            });
            failed.collect()
        });
        warnings.sort();
        warnings
    }
}

pub(super) fn last_run(state: &State, volume: &Volume, kind: RunKind) -> Option<RunResult> {
    state.runs(volume.uuid, kind).map(|runs| runs.last.clone())
}
