//! Every call to the backend fails in every operation, before and after its effect.

use super::*;
use crate::backend::fault::{Call, Fault};
use crate::error::ErrorKind;

const CALLS: &[Call] = &[
    Call::Status,
    Call::Create,
    Call::Delete,
    Call::DeleteGeneration,
    Call::Attach,
    Call::Detach,
    Call::Inspect,
    Call::Describe,
    Call::CopyCost,
    Call::Snapshot,
    Call::DeleteSnapshot,
    Call::CreateFrom,
    Call::Grow,
];

/// The volume `db` exists, holds `content` in a file and has a snapshot `one`.
async fn prepare(engine: &Engine, operation: &str) {
    engine.make("db", &[("size", "1G")]).await.unwrap();
    let path = engine.hold("db", "c0").await.unwrap();
    std::fs::write(path.join("file"), "content").unwrap();
    engine.let_go("db", "c0").await.unwrap();
    engine.change(None).snapshot(reference("db@one"), None).await.unwrap();
    if ["unmount", "snapshot", "hook", "resize", "clone"].contains(&operation) {
        engine.hold("db", "c1").await.unwrap();
    }
}

async fn run(engine: &Engine, operation: &str) -> Result<()> {
    let db = || name("db");
    let change = engine.change(None);
    match operation {
        "create" => engine.make("new", &[]).await.map(Outcome::ignore),
        "clone" => engine.make("copy", &[("clone-of", "db")]).await.map(Outcome::ignore),
        "mount" => engine.hold("db", "c1").await.map(drop),
        "unmount" => engine.let_go("db", "c1").await.map(Outcome::ignore),
        "remove" => match engine.drop_volume("db").await {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            other => other.map(Outcome::ignore),
        },
        "snapshot" => change.snapshot(reference("db@two"), None).await.map(Outcome::ignore),
        "remove-snapshot" => match change.remove_snapshot(reference("db@one")).await {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            other => other.map(Outcome::ignore),
        },
        "restore" => change.restore(reference("db@one")).await.map(drop),
        "resize" => change.resize(db(), "2G".parse().unwrap()).await.map(Outcome::ignore),
        "rename" => match change.rename(db(), name("other")).await {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            other => other.map(Outcome::ignore),
        },
        "schedule" => {
            let snapshot = Some("1h".parse().unwrap());
            let schedule = crate::model::Schedule { snapshot, ..Default::default() };
            change.set_schedule(db(), schedule).await.map(Outcome::ignore)
        }
        "hook" => {
            let hook = Some("works".parse().unwrap());
            change.snapshot(reference("db@two"), hook).await.map(Outcome::ignore)
        }
        other => panic!("{other}"),
    }
}

/// What is on the disk is what the engine tells of, and every volume that should has its content.
async fn check(world: &World, engine: &Engine, case: &str) {
    engine.settled().await;
    let volumes = engine.volumes();
    assert_eq!(world.disk.images().len(), volumes.len(), "{case}: {:?}", world.disk.images());
    let snapshots: usize = volumes.iter().map(|volume| volume.snapshots).sum();
    assert_eq!(world.disk.snapshots().len(), snapshots, "{case}");
    let held = volumes.iter().filter(|volume| volume.mounts > 0).count();
    assert_eq!(world.disk.mounts().len(), held, "{case}: {:?}", world.disk.mounts());
    assert_eq!(world.disk.devices().len(), held, "{case}");
    for volume in volumes {
        let path = engine.hold(volume.name.as_str(), "check").await.unwrap();
        assert!(!world.disk.is_frozen(path.parent().unwrap()), "{case}");
        let content = std::fs::read_to_string(path.join("file")).unwrap_or_default();
        let expected = if volume.name.as_str() == "new" { "" } else { "content" };
        assert_eq!(content, expected, "{case}: {}", volume.name);
        engine.let_go(volume.name.as_str(), "check").await.unwrap();
    }
}

macro_rules! a_failed_call_leaves_nothing_and_the_retry_succeeds {
    ($($test:ident => $operation:literal),* $(,)?) => {$(
        #[tokio::test]
        async fn $test() {
            every_fault_in($operation).await;
        }
    )*};
}

a_failed_call_leaves_nothing_and_the_retry_succeeds! {
    create => "create",
    clone => "clone",
    mount => "mount",
    unmount => "unmount",
    remove => "remove",
    snapshot => "snapshot",
    remove_snapshot => "remove-snapshot",
    restore => "restore",
    resize => "resize",
    rename => "rename",
    schedule => "schedule",
    snapshot_with_a_hook => "hook",
}

async fn every_fault_in(operation: &str) {
    let mut met = 0;
    for call in CALLS {
        for nth in 1..=3 {
            let kinds = [ErrorKind::Unavailable, ErrorKind::OutOfSpace, ErrorKind::InUse];
            for fault in
                kinds.iter().flat_map(|kind| [Fault::FailBefore(*kind), Fault::FailAfter(*kind)])
            {
                let case = format!("{operation} with {call:?} number {nth}: {fault:?}");
                let world = World::new();
                let engine = world.start().await;
                prepare(&engine, operation).await;
                let before = world.backend().calls(*call);
                world.backend().on(*call, nth, fault);
                let first = run(&engine, operation).await;
                if world.backend().calls(*call) < before + nth {
                    break;
                }
                met += 1;
                world.backend().mend();
                if first.is_err() {
                    run(&engine, operation).await.unwrap_or_else(|error| {
                        panic!("{case}: the retry failed: {}", error.full_message())
                    });
                }
                check(&world, &engine, &case).await;
            }
        }
    }
    assert!(met > 2, "only {met} faults were met");
}
