//! One task that sleeps until something is due, and starts each run as a task of its own: one that is
//! slow or hangs delays nobody else's.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::Notify;

use super::pace::Pace;
use crate::catalog::{Change as Record, State};
use crate::engine::Engine;
use crate::engine::change::{Change, LONG_PATIENCE};
use crate::error::{ErrorKind, Result};
use crate::id::VolumeUuid;
use crate::model::{ActiveSchedule, RunKind, RunOutcome, RunResult, SnapshotOrigin, Volume};
use crate::name::{SnapshotName, VolumeName};

/// How long it sleeps at most: the wall clock can be set while it does.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);

/// What is due when, and what runs.
#[derive(Debug, Default)]
pub(in crate::engine) struct Scheduler {
    changed: Notify,
    over: AtomicBool,
    places: Mutex<HashMap<(VolumeUuid, RunKind), Place>>,
    counts: Mutex<BTreeMap<(RunKind, bool), u64>>,
}

#[derive(Debug, Clone, Copy)]
struct Place {
    pace: Pace,
    running: bool,
}

/// A run that is to begin.
struct Run {
    volume: Arc<Volume>,
    kind: RunKind,
    active: Arc<ActiveSchedule>,
}

impl Scheduler {
    /// Schedules have changed.
    pub(in crate::engine) fn wake(&self) {
        self.changed.notify_one();
    }

    /// Nothing is begun any more.
    pub(in crate::engine) fn end(&self) {
        self.over.store(true, Ordering::Relaxed);
        self.wake();
    }

    /// Runs that are over since the start, and whether they failed.
    pub(in crate::engine) fn counts(&self) -> BTreeMap<(RunKind, bool), u64> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How many runs go on.
    #[cfg(test)]
    pub(in crate::engine) fn running(&self) -> usize {
        self.places().values().filter(|place| place.running).count()
    }

    fn places(&self) -> MutexGuard<'_, HashMap<(VolumeUuid, RunKind), Place>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Change {
    /// Cuts a snapshot as the volume's schedule wants it, and gives its name.
    pub(super) async fn scheduled_snapshot(self, volume: VolumeName) -> Result<SnapshotName> {
        self.run("snapshot", vec![volume.clone()], LONG_PATIENCE, |work| async move {
            let name = work.scheduled_snapshot(&volume).await?;
            let reference = format!("{volume}@{name}");
            let text = format!("snapshot {reference} was cut");
            work.engine.tell("snapshot.created", &reference, text);
            Ok(name)
        })
        .await
    }
}

impl Engine {
    /// Begins to start what is due, for as long as the engine is there.
    pub(in crate::engine) fn keep_schedules(&self) {
        let scheduler = Arc::clone(&self.inner.scheduler);
        // Weak, so that this alone does not keep a stopped engine and its catalog.
        let inner = Arc::downgrade(&self.inner);
        tokio::spawn(async move {
            while !scheduler.over.load(Ordering::Relaxed) {
                let Some(inner) = inner.upgrade() else { return };
                let sleep = Self { inner }.start_due();
                // Either way it looks again.
                let _ = tokio::time::timeout(sleep, scheduler.changed.notified()).await;
            }
        });
    }

    /// Starts what is due and does not run yet, and tells how long nothing else is.
    pub(in crate::engine) fn start_due(&self) -> Duration {
        let now = self.inner.environment.clock.now();
        let mut sleep = LONGEST_SLEEP;
        let mut due = Vec::new();
        self.inner.catalog.read(|state| {
            let mut places = self.inner.scheduler.places();
            let mut known = HashSet::new();
            for (volume, active) in state.schedules().filter(|(volume, _)| volume.is_ready()) {
                for kind in RunKind::ALL {
                    let Some(timing) = active.schedule.timing(kind) else { continue };
                    let key = (volume.uuid, kind);
                    known.insert(key);
                    let pace = known_pace(places.get(&key), state, volume, active, kind);
                    let running = places.get(&key).is_some_and(|place| place.running);
                    let place = places.entry(key).or_insert(Place { pace, running });
                    place.pace = pace;
                    if running {
                        continue;
                    }
                    let next = place.pace.due(timing, now);
                    match Duration::try_from(next.duration_since(now)) {
                        Ok(wait) if !wait.is_zero() => sleep = sleep.min(wait),
                        _ => {
                            place.running = true;
                            let (volume, active) = (Arc::clone(volume), Arc::clone(active));
                            due.push(Run { volume, kind, active });
                        }
                    }
                }
            }
            places.retain(|key, place| place.running || known.contains(key));
        });
        for run in due {
            let engine = self.clone();
            tokio::spawn(async move { engine.run_scheduled(run).await });
        }
        sleep
    }

    /// When the next run is due; of one that runs now, the one after it.
    pub(super) fn next_run(
        &self,
        state: &State,
        volume: &Volume,
        active: &ActiveSchedule,
        kind: RunKind,
        now: Timestamp,
    ) -> Option<Timestamp> {
        let timing = active.schedule.timing(kind)?;
        let place = self.inner.scheduler.places().get(&(volume.uuid, kind)).copied();
        if place.is_some_and(|place| place.running) {
            return Some(timing.next_run(now));
        }
        let mut pace = known_pace(place.as_ref(), state, volume, active, kind);
        Some(pace.due(timing, now))
    }

    async fn run_scheduled(&self, run: Run) {
        let Run { volume, kind, active } = run;
        let clock = &self.inner.environment.clock;
        let (name, started) = (volume.name.clone(), clock.now());
        let change = self.change(None).scheduled();
        let made = match kind {
            RunKind::Snapshot => change.scheduled_snapshot(name).await.map(|name| name.to_string()),
            RunKind::Backup => {
                let repository = active.schedule.repository.clone();
                let backup = change.back_up(name, None, repository, None).await;
                backup.map(|backup| backup.id.to_string())
            }
        };
        let finished = clock.now();
        let outcome = match &made {
            Ok(made) => RunOutcome::Done(made.clone()),
            Err(error) => RunOutcome::Failed(error.full_message()),
        };
        self.tell_of_run(&volume, kind, &outcome);
        self.record_run(&volume, RunResult { kind, started, finished, outcome }).await;
        if let Ok(made) = &made
            && let Err(error) = self.apply_retention(&volume, kind, made).await
        {
            let text = format!(
                "a {kind} of volume {} whose time is over cannot be deleted: {}",
                volume.name,
                error.full_message()
            );
            tracing::warn!("{text}");
            self.tell("schedule.failed", &volume.name, text);
        }
        if let Some(place) = self.inner.scheduler.places().get_mut(&(volume.uuid, kind)) {
            place.running = false;
            match made {
                Ok(_) => place.pace.succeeded(started),
                Err(_) => place.pace.failed(started, finished),
            }
        }
        self.inner.scheduler.wake();
    }

    fn tell_of_run(&self, volume: &Volume, kind: RunKind, outcome: &RunOutcome) {
        let name = &volume.name;
        let (event, text) = match outcome {
            RunOutcome::Done(made) => {
                ("schedule.done", format!("the schedule of volume {name} made the {kind} {made}"))
            }
            RunOutcome::Failed(why) => (
                "schedule.failed",
                format!("a {kind} by the schedule of volume {name} failed: {why}"),
            ),
        };
        self.tell(event, name, text);
        let failed = matches!(outcome, RunOutcome::Failed(_));
        let scheduler = &self.inner.scheduler;
        let mut counts = scheduler.counts.lock().unwrap_or_else(PoisonError::into_inner);
        *counts.entry((kind, failed)).or_default() += 1;
    }

    async fn record_run(&self, volume: &Volume, result: RunResult) {
        let record = Record::PutRun(volume.uuid, Box::new(result));
        match self.inner.catalog.commit(vec![record]).await {
            // Removed meanwhile.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => tracing::warn!("a run is not recorded: {}", error.full_message()),
            Ok(()) => {}
        }
    }
}

/// The pace so far, or a new one if the timing is.
fn known_pace(
    place: Option<&Place>,
    state: &State,
    volume: &Volume,
    active: &ActiveSchedule,
    kind: RunKind,
) -> Pace {
    // A timing without it would be a defect: counted from the beginning, it is due once.
    let since = active.since.get(&kind).copied().unwrap_or(Timestamp::UNIX_EPOCH);
    match place {
        Some(place) if place.pace.is_since(since) => place.pace,
        _ => {
            let last = state.runs(volume.uuid, kind).map(|runs| &runs.last);
            // One that a crash kept from being recorded has left its snapshot.
            let cut = state.snapshots(volume.uuid).iter().rev().find(|snapshot| {
                kind == RunKind::Snapshot
                    && snapshot.complete
                    && snapshot.origin == SnapshotOrigin::Schedule
            });
            let recorded = last.map(|last| last.started);
            let mut pace = Pace::new(since, recorded.max(cut.map(|snapshot| snapshot.created)));
            if let Some(last) = last
                && matches!(last.outcome, RunOutcome::Failed(_))
                && pace.is_counted_from(last.started)
            {
                pace.failed(last.started, last.finished);
            }
            pace
        }
    }
}
