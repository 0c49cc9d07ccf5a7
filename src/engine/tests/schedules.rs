//! Snapshots and backups that are made by themselves.

use super::view::SnapshotView;
use super::*;
use crate::backend::fault::{Call, Fault};
use crate::error::ErrorKind;
use crate::model::{RunKind, RunOutcome, Schedule, SnapshotOrigin};

const HOUR: Duration = Duration::from_secs(3600);
const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

fn every(snapshot: &str, keep: &str) -> Schedule {
    Schedule {
        snapshot: Some(snapshot.parse().unwrap()),
        keep: keep.parse().unwrap(),
        ..Schedule::default()
    }
}

impl Engine {
    async fn schedule(&self, volume: &str, schedule: Schedule) -> Result<Outcome> {
        self.change(None).set_schedule(name(volume), schedule).await
    }

    /// Starts what is due, and waits until no more runs than these go on.
    async fn runs_are_over_but(&self, hanging: usize) {
        for _ in 0..4_000 {
            self.start_due();
            if self.inner.scheduler.running() == hanging {
                return;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        panic!("runs go on: {:#?}", self.operations());
    }

    async fn runs_are_over(&self) {
        self.runs_are_over_but(0).await;
    }

    fn cut_by(&self, volume: &str, origin: SnapshotOrigin) -> Vec<SnapshotView> {
        let all = self.snapshots(Some(&name(volume))).unwrap().into_iter();
        all.filter(|snapshot| snapshot.origin == origin).collect()
    }

    fn scheduled(&self, volume: &str) -> usize {
        self.cut_by(volume, SnapshotOrigin::Schedule).len()
    }

    fn told(&self, kind: &str) -> usize {
        self.events().after(0).iter().filter(|event| event.kind == kind).count()
    }
}

#[tokio::test]
async fn a_snapshot_is_cut_whenever_one_is_due() {
    let world = World::new();
    let engine = world.start().await;
    engine.make("db", &[]).await.unwrap();
    engine.schedule("db", every("1h", "")).await.unwrap();
    engine.runs_are_over().await;
    assert_eq!(engine.scheduled("db"), 0, "the first is counted from when it was set");
    for count in 1..=3 {
        world.clock.forward(HOUR);
        engine.runs_are_over().await;
        assert_eq!(engine.scheduled("db"), count);
    }
    let newest = engine.cut_by("db", SnapshotOrigin::Schedule).pop().unwrap();
    assert_eq!(newest.name.as_str(), "auto-20270115T110000Z");
    let details = engine.details(&name("db")).await.unwrap();
    let run = details.last_snapshot_run.unwrap();
    assert_eq!(run.outcome, RunOutcome::Done(newest.name.to_string()));
    let next = details.schedule.unwrap().next_snapshot.unwrap();
    assert_eq!(next.to_string(), "2027-01-15T12:00:00Z");
    assert_eq!(details.last_backup_run, None);
    assert_eq!(engine.told("schedule.done"), 3);
    assert_eq!(engine.figures().await.scheduled[&(RunKind::Snapshot, false)], 3);
    assert_eq!(world.disk.snapshots().len(), 3);

    engine.change(None).remove_schedule(name("db")).await.unwrap();
    world.clock.forward(HOUR);
    engine.runs_are_over().await;
    assert_eq!(engine.scheduled("db"), 3, "what it has made stays");
    let again = engine.change(None).remove_schedule(name("db")).await.unwrap_err();
    assert_eq!(again.kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn what_was_missed_while_the_daemon_was_down_is_made_up_once() {
    let world = World::new();
    let engine = world.start().await;
    engine.make("db", &[]).await.unwrap();
    engine.make("new", &[]).await.unwrap();
    engine.schedule("db", every("0 * * * *", "")).await.unwrap();
    engine.schedule("new", every("1d", "")).await.unwrap();
    world.clock.forward(HOUR);
    engine.runs_are_over().await;
    drop(engine);
    world.clock.forward(HOUR * 100);
    let engine = world.start().await;
    engine.runs_are_over().await;
    assert_eq!((engine.scheduled("db"), engine.scheduled("new")), (2, 1));
    // Nor does a start that follows at once repeat it.
    drop(engine);
    let engine = world.start().await;
    engine.runs_are_over().await;
    assert_eq!((engine.scheduled("db"), engine.scheduled("new")), (2, 1));
}

#[tokio::test]
async fn retention_deletes_what_schedules_have_made_and_nothing_else() {
    let world = World::new();
    let engine = world.start().await;
    engine.make("db", &[]).await.unwrap();
    engine.make("other", &[]).await.unwrap();
    for user in ["db@auto-20200101T000000Z", "db@mine", "other@mine"] {
        engine.change(None).snapshot(reference(user), None).await.unwrap();
    }
    engine.change(None).restore(reference("db@mine")).await.unwrap();
    engine.schedule("db", every("1h", "2h,1d")).await.unwrap();
    engine.schedule("other", every("1h", "")).await.unwrap();
    for _ in 0..30 {
        world.clock.forward(HOUR);
        engine.runs_are_over().await;
    }
    // The last two hours; of days there is one, of which the newest counts.
    assert_eq!(engine.scheduled("db"), 2);
    assert_eq!(engine.scheduled("other"), 30, "without a rule everything is kept");
    assert_eq!(engine.cut_by("db", SnapshotOrigin::User).len(), 2);
    assert_eq!(engine.cut_by("db", SnapshotOrigin::Safety).len(), 1);
    assert_eq!(engine.cut_by("other", SnapshotOrigin::User).len(), 1);
    assert_eq!(world.disk.snapshots().len(), 5 + 31);
}

#[tokio::test]
async fn a_run_that_hangs_delays_no_other_volume_and_is_not_started_again() {
    let world = World::new();
    let engine = world.start().await;
    for volume in ["a", "b", "c"] {
        engine.make(volume, &[]).await.unwrap();
        engine.schedule(volume, every("1h", "")).await.unwrap();
    }
    world.backend().on(Call::Snapshot, 1, Fault::HangBefore);
    let mut made = 0;
    for _ in 0..3 {
        world.clock.forward(HOUR);
        engine.runs_are_over_but(1).await;
        made += 2;
        let all: usize = ["a", "b", "c"].into_iter().map(|volume| engine.scheduled(volume)).sum();
        assert_eq!(all, made);
    }
    assert_eq!(world.backend().calls(Call::Snapshot), 7);
}

#[tokio::test]
async fn a_run_that_fails_is_told_of_and_tried_again_with_growing_pauses() {
    let world = World::new();
    let engine = world.start().await;
    engine.make("db", &[]).await.unwrap();
    engine.schedule("db", every("1h", "")).await.unwrap();
    world.backend().always(Call::Snapshot, Fault::FailBefore(ErrorKind::OutOfSpace));
    let warned = async |engine: &Engine| {
        let warnings = engine.status().await.warnings;
        warnings.iter().any(|warning| warning.contains("schedule of volume db failed"))
    };
    let tries = || world.backend().calls(Call::Snapshot);
    world.clock.forward(HOUR);
    engine.runs_are_over().await;
    assert_eq!((tries(), engine.told("schedule.failed")), (1, 1));
    assert!(warned(&engine).await);
    for minutes in [1, 2, 4] {
        world.clock.forward(Duration::from_secs(minutes * 60 - 1));
        engine.runs_are_over().await;
        let before = tries();
        world.clock.forward(Duration::from_secs(1));
        engine.runs_are_over().await;
        assert_eq!(tries(), before + 1, "{minutes}");
    }
    // A start knows that it has failed, and begins with short pauses again.
    drop(engine);
    let engine = world.start().await;
    engine.runs_are_over().await;
    assert_eq!(tries(), 0);
    world.clock.forward(Duration::from_secs(60));
    engine.runs_are_over().await;
    assert_eq!((engine.scheduled("db"), tries()), (1, 1));
    assert!(!warned(&engine).await);
    assert_eq!(engine.figures().await.scheduled[&(RunKind::Snapshot, false)], 1);
}

#[tokio::test]
async fn a_backup_that_fails_delays_no_snapshot() {
    let world = World::new();
    let engine = world.start().await;
    engine.make("db", &[]).await.unwrap();
    let schedule = Schedule {
        backup: Some("1h".parse().unwrap()),
        repository: Some("main".parse().unwrap()),
        ..every("1h", "3")
    };
    engine.schedule("db", schedule).await.unwrap();
    world.clock.forward(HOUR);
    engine.runs_are_over().await;
    assert_eq!(engine.scheduled("db"), 1);
    let details = engine.details(&name("db")).await.unwrap();
    assert!(matches!(details.last_snapshot_run.unwrap().outcome, RunOutcome::Done(_)));
    assert!(matches!(details.last_backup_run.unwrap().outcome, RunOutcome::Failed(_)));
    let warnings = engine.status().await.warnings;
    let about = "the last backup by the schedule of volume db failed";
    assert_eq!(warnings.iter().filter(|warning| warning.contains(about)).count(), 1);
    let figures = engine.figures().await;
    assert_eq!(figures.scheduled[&(RunKind::Backup, true)], 1);
    assert!(figures.backup_ages.is_empty(), "there was no good one");
}

#[tokio::test]
async fn a_clock_that_jumps_neither_repeats_nor_stops_runs_nor_deletes_more() {
    let world = World::new();
    let engine = world.start().await;
    engine.make("db", &[]).await.unwrap();
    engine.schedule("db", every("1h", "4h")).await.unwrap();
    let after = async |engine: &Engine, hours: u32| {
        for _ in 0..hours {
            world.clock.forward(HOUR);
            engine.runs_are_over().await;
        }
        engine.scheduled("db")
    };
    assert_eq!(after(&engine, 6).await, 4);
    // A year ahead: one run, which is one more hour.
    world.clock.forward(YEAR);
    engine.runs_are_over().await;
    assert_eq!((engine.scheduled("db"), engine.told("schedule.done")), (4, 7));
    // And back: the one from the future stays where it is and takes nobody's place.
    world.clock.back(YEAR);
    engine.runs_are_over().await;
    assert_eq!((engine.scheduled("db"), engine.told("schedule.done")), (4, 7));
    assert_eq!(after(&engine, 1).await, 5, "nothing waits for a year");
    assert_eq!(after(&engine, 10).await, 5);
    assert_eq!(engine.told("schedule.done"), 18);
    // Summer time done wrong.
    world.clock.back(HOUR);
    engine.runs_are_over().await;
    assert_eq!(engine.told("schedule.done"), 18);
    assert_eq!(after(&engine, 5).await, 5);
    assert_eq!(engine.told("schedule.done"), 23);
    drop(engine);
    world.clock.back(YEAR);
    let engine = world.start().await;
    engine.runs_are_over().await;
    assert_eq!(after(&engine, 1).await, 6, "a start does not wait either");
}

#[tokio::test]
async fn a_volume_has_its_schedule_from_the_start_and_after_a_lost_catalog() {
    let world = World::new();
    let engine = world.start().await;
    let options = [("snapshot-every", "1h"), ("keep", "2")];
    engine.make("db", &options).await.unwrap();
    let same = [("snapshot-every", "60m"), ("keep", "2l")];
    assert_eq!(engine.make("db", &same).await.unwrap(), Outcome::Unchanged);
    let error = engine.make("db", &[("snapshot-every", "2h"), ("keep", "2")]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    for wrong in [&[("keep", "2")][..], &[("snapshot-every", "1h"), ("repository", "main")]] {
        let error = engine.make("wrong", wrong).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
    }
    world.clock.forward(HOUR);
    engine.runs_are_over().await;
    assert_eq!(engine.scheduled("db"), 1);
    engine.schedule("db", every("2h", "5")).await.unwrap();
    let before = engine.schedules();
    drop(engine);

    let catalog = world.directory.path().join("catalog.redb");
    std::fs::remove_file(&catalog).unwrap();
    rebuild_catalog(&catalog, &[world.backend()], Unreadable::Refuse).await.unwrap();
    let engine = world.start().await;
    assert_eq!(engine.schedules()[0].schedule, before[0].schedule);
    engine.runs_are_over().await;
    assert_eq!(engine.scheduled("db"), 1, "the last one is known by its snapshot");
}

#[tokio::test]
async fn the_same_schedule_changes_nothing_and_a_wrong_one_is_refused() {
    let world = World::new();
    let engine = world.start().await;
    engine.make("db", &[]).await.unwrap();
    assert_eq!(engine.schedule("db", every("1h", "3")).await.unwrap(), Outcome::Changed);
    assert_eq!(engine.schedule("db", every("60m", "3l")).await.unwrap(), Outcome::Unchanged);
    world.clock.forward(HOUR / 2);
    assert_eq!(engine.schedule("db", every("1h", "4")).await.unwrap(), Outcome::Changed);
    world.clock.forward(HOUR / 2);
    engine.runs_are_over().await;
    assert_eq!(engine.scheduled("db"), 1, "another rule does not put the next run off");
    let unknown = Schedule { hook: Some("unknown".parse().unwrap()), ..every("1h", "") };
    for (wrong, kind) in [(Schedule::default(), ErrorKind::Invalid), (unknown, ErrorKind::Invalid)]
    {
        assert_eq!(engine.schedule("db", wrong).await.unwrap_err().kind(), kind);
    }
    let nobody = engine.schedule("nobody", every("1h", "")).await.unwrap_err();
    assert_eq!(nobody.kind(), ErrorKind::NotFound);
    assert_eq!(engine.schedules()[0].schedule.keep, "4".parse().unwrap());
}

#[tokio::test]
async fn a_volume_that_is_removed_or_in_the_trash_has_no_runs() {
    let world = World::new();
    let engine = world.start().await;
    engine.make("gone", &[("snapshot-every", "1h")]).await.unwrap();
    engine.make("trash", &[("snapshot-every", "1h"), ("on-remove", "trash")]).await.unwrap();
    engine.drop_volume("gone").await.unwrap();
    engine.drop_volume("trash").await.unwrap();
    world.clock.forward(HOUR / 2);
    world.clock.forward(HOUR / 2);
    engine.runs_are_over().await;
    assert_eq!((engine.schedules(), world.disk.snapshots()), (vec![], vec![]));
    engine.change(None).undelete(name("trash")).await.unwrap();
    engine.runs_are_over().await;
    assert_eq!(engine.scheduled("trash"), 1);
}
