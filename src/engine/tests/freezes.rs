//! Filesystems that are frozen for a copy: they are thawed whatever happens.

use super::*;
use crate::backend::fault::{Call, Fault};
use crate::error::ErrorKind;

#[tokio::test]
async fn rule_14_a_snapshot_thaws_on_every_path() {
    let world = World::new();
    let engine = world.start().await;
    engine.make("db", &[]).await.unwrap();
    engine.hold("db", "c1").await.unwrap();
    let target = world.mounts().join("db");
    for fault in
        [Fault::FailBefore(ErrorKind::OutOfSpace), Fault::FailAfter(ErrorKind::Unavailable)]
    {
        world.backend().on(Call::Snapshot, 1, fault);
        let failed = engine.change(None).snapshot(reference("db@one")).await;
        assert!(failed.is_err());
        assert!(!world.disk.is_frozen(&target), "{fault:?}");
        assert!(world.disk.snapshots().is_empty(), "{fault:?}: nothing is left");
    }
    engine.change(None).snapshot(reference("db@one")).await.unwrap();
    assert!(!world.disk.is_frozen(&target));
}

#[tokio::test]
async fn rule_14_a_copy_that_would_freeze_for_long_is_refused() {
    let world = World::new();
    let engine = world.start().await;
    engine.make("db", &[]).await.unwrap();
    world.disk.set_copies_take(Some(Duration::from_secs(60)));
    engine.hold("db", "c1").await.unwrap();
    let error = engine.change(None).snapshot(reference("db@one")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy);
    let hint = error.hint_text().unwrap();
    assert!(hint.contains("xfs") && hint.contains("loop.freeze_limit"), "the ways out: {hint}");
    let error = engine.make("copy", &[("clone-of", "db")]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy);
}

#[tokio::test(start_paused = true)]
async fn rule_14_the_limit_counts_from_the_beginning_of_the_freeze() {
    let world = World::new();
    let engine = world.start().await;
    engine.make("db", &[]).await.unwrap();
    engine.hold("db", "c1").await.unwrap();
    let seconds = |seconds| Some(Duration::from_secs(seconds));
    for (freeze, copy, fits) in [(6, 6, false), (11, 1, false), (6, 3, true)] {
        world.disk.set_freezes_take(seconds(freeze));
        world.disk.set_copies_take(seconds(copy));
        for operation in ["snapshot", "clone"] {
            let case = format!("{operation}: {freeze} s and {copy} s of 10 s");
            match copy_frozen(&engine, operation).await {
                Ok(()) => assert!(fits, "{case}"),
                Err(error) => {
                    assert!(!fits && error.kind() == ErrorKind::Busy, "{case}: {error:?}");
                    assert_eq!(world.disk.snapshots().len() + world.disk.images().len(), 1);
                }
            }
            assert!(!world.disk.is_frozen(&world.mounts().join("db")), "{case}");
        }
    }
}

/// What freezes `db` and copies it.
async fn copy_frozen(engine: &Engine, operation: &str) -> Result<()> {
    match operation {
        "snapshot" => engine.change(None).snapshot(reference("db@one")).await.map(Outcome::ignore),
        _ => engine.make("copy", &[("clone-of", "db")]).await.map(Outcome::ignore),
    }
}

#[tokio::test]
async fn rule_14_a_thaw_that_fails_is_tried_until_it_does_not() {
    for operation in ["snapshot", "clone"] {
        let world = World::new();
        let engine = world.start().await;
        engine.make("db", &[]).await.unwrap();
        engine.hold("db", "c1").await.unwrap();
        let target = world.mounts().join("db");
        let warns = async |engine: &Engine| {
            engine.status().await.warnings.iter().any(|warning| warning.contains("frozen"))
        };
        for by in ["the next change", "the next round", "the next engine"] {
            world.disk.set_thaws_fail(u32::MAX);
            copy_frozen(&engine, operation).await.unwrap_err();
            assert!(world.disk.is_frozen(&target), "{operation}");
            assert!(warns(&engine).await, "{operation}");
            let stuck = engine.operations().iter().any(|o| o.state == view::OperationState::Stuck);
            assert!(stuck, "{operation}: it must not be forgotten");
            engine.hold("db", "c2").await.expect_err("nothing is done to a frozen volume");
            world.disk.set_thaws_fail(0);
            match by {
                "the next change" => drop(engine.hold("db", "c1").await.unwrap()),
                "the next round" => engine.retry_stuck().await,
                _ => break,
            }
            assert!(!world.disk.is_frozen(&target), "{operation}, {by}");
            assert!(!warns(&engine).await, "{operation}, {by}");
        }
        drop(engine);
        let engine = world.start().await;
        engine.settled().await;
        assert!(!world.disk.is_frozen(&target), "{operation}");
        assert!(world.disk.snapshots().is_empty() && world.disk.images().len() == 1);
        copy_frozen(&engine, operation).await.unwrap();
        assert!(!world.disk.is_frozen(&target), "{operation}");
    }
}

#[tokio::test]
async fn rule_14_a_defect_while_frozen_thaws() {
    for (operation, call) in [("snapshot", Call::Snapshot), ("clone", Call::CreateFrom)] {
        let world = World::new();
        let engine = world.start().await;
        engine.make("db", &[]).await.unwrap();
        engine.hold("db", "c1").await.unwrap();
        world.backend().on(call, 1, Fault::Panic);
        copy_frozen(&engine, operation).await.unwrap_err();
        while world.disk.is_frozen(&world.mounts().join("db")) {
            tokio::task::yield_now().await;
        }
        copy_frozen(&engine, operation).await.unwrap();
    }
}

#[tokio::test]
async fn rule_14_an_engine_that_ends_breaks_off_what_is_frozen() {
    for (operation, call) in [("snapshot", Call::Snapshot), ("clone", Call::CreateFrom)] {
        let world = World::new();
        let engine = world.start().await;
        engine.make("db", &[]).await.unwrap();
        engine.hold("db", "c1").await.unwrap();
        world.backend().on(call, 1, Fault::HangAfter);
        let target = world.mounts().join("db");
        let copying = tokio::spawn({
            let engine = engine.clone();
            async move { copy_frozen(&engine, operation).await }
        });
        while !world.disk.is_frozen(&target) {
            tokio::task::yield_now().await;
        }
        engine.end_freezes().await;
        assert!(!world.disk.is_frozen(&target), "{operation}");
        copying.await.unwrap().expect_err("what was copied while it was thawed is worth nothing");
        assert!(world.disk.snapshots().is_empty() && world.disk.images().len() == 1);
        copy_frozen(&engine, operation).await.expect_err("it ends");
        assert!(!world.disk.is_frozen(&target), "{operation}");
    }
}

#[test]
fn rule_14_what_was_frozen_is_thawed_without_a_catalog() {
    let world = World::new();
    let target = world.mounts().join("db");
    stopped_dead(async {
        let engine = world.start().await;
        engine.make("db", &[]).await.unwrap();
        engine.hold("db", "c1").await.unwrap();
        world.backend().on(Call::Snapshot, 1, Fault::HangBefore);
        let cut = tokio::time::timeout(
            Duration::from_millis(100),
            engine.change(None).snapshot(reference("db@one")),
        );
        assert!(cut.await.is_err() && world.disk.is_frozen(&target));
    });
    stopped_dead(async {
        let host: Arc<dyn crate::linux::Host> = Arc::new(SimHost::new(&world.disk));
        assert_eq!(thaw_all(&host, &world.mounts()).await, Vec::<String>::new());
        assert!(!world.disk.is_frozen(&target));
    });
}
