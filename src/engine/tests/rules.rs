use super::*;
use crate::backend::ContentRef;
use crate::backend::fault::{Call, Fault};
use crate::error::ErrorKind;

#[tokio::test]
async fn rule_01_a_volume_is_told_of_while_its_backend_hangs() {
    let world = World::new();
    let engine = world.start().await;
    engine.make("db", &[]).await.unwrap();
    for call in [Call::Usage, Call::Inspect, Call::Status] {
        world.backend().always(call, Fault::HangBefore);
    }
    let details = engine.details(&name("db")).await.unwrap();
    assert_eq!(
        (details.used, details.health.as_str()),
        (None, "the backend sim does not answer for it")
    );
    assert!(engine.status().await.warnings.iter().any(|w| w.contains("sim")));
}

#[tokio::test]
async fn rule_02_the_same_options_are_a_success_and_others_are_named() {
    let world = World::new();
    let engine = world.start().await;
    assert_eq!(engine.make("db", &[("size", "1G")]).await.unwrap(), Outcome::Changed);
    assert_eq!(engine.make("db", &[("size", "1024M")]).await.unwrap(), Outcome::Unchanged);
    let same = [("size", "1G"), ("fs", "ext4"), ("backend", "sim"), ("read-only", "false")];
    assert_eq!(engine.make("db", &same).await.unwrap(), Outcome::Unchanged);
    for (other, word) in [
        (&[("size", "2G")][..], "size"),
        (&[("size", "1G"), ("fs", "xfs")], "fs"),
        (&[("size", "1G"), ("uid", "5")], "uid"),
        (&[("size", "1G"), ("backend", "other")], "backend"),
    ] {
        let error = engine.make("db", other).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Conflict);
        assert!(error.full_message().contains(&format!("{word} is")), "{}", error.full_message());
    }
    assert_eq!(world.disk.images().len(), 1);
    engine.change(None).resize(name("db"), "3G".parse().unwrap()).await.unwrap();
    for size in ["1G", "3G"] {
        let again = engine.make("db", &[("size", size)]).await;
        assert_eq!(again.unwrap(), Outcome::Unchanged, "created with 1G, grown to 3G");
    }
}

#[tokio::test]
async fn rule_04_ids_are_a_ledger_held_against_the_kernel() {
    let world = World::new();
    let engine = world.start().await;
    engine.make("db", &[]).await.unwrap();
    let path = engine.hold("db", "c1").await.unwrap();
    assert_eq!(path, world.data("db"));
    // docker cp
    world.disk.set_users(&world.mounts().join("db"), 1);
    engine.hold("db", "c1").await.unwrap();
    engine.let_go("db", "c1").await.unwrap();
    assert!(path.is_dir(), "the container keeps its volume");
    assert_eq!(engine.let_go("db", "nobody").await.unwrap(), Outcome::Unchanged);
    assert_eq!(engine.let_go("unknown", "c1").await.unwrap(), Outcome::Unchanged);
    assert!(path.is_dir());

    // A killed engine never unmounts, and mounts again with the same id.
    world.clock.forward(Duration::from_secs(130));
    world.disk.set_users(&world.mounts().join("db"), 0);
    engine.hold("db", "c1").await.unwrap();
    engine.let_go("db", "c1").await.unwrap();
    assert!(world.disk.mounts().is_empty() && world.disk.devices().is_empty());

    // A container that is gone for good does not keep the volume from being removed.
    engine.hold("db", "c2").await.unwrap();
    let error = engine.drop_volume("db").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InUse);
    assert!(error.full_message().contains("c2"), "{}", error.full_message());
    world.clock.forward(Duration::from_secs(130));
    engine.drop_volume("db").await.unwrap();
    assert!(world.disk.images().is_empty());
}

#[tokio::test]
async fn rule_05_a_mount_that_its_caller_gave_up_on_is_undone() {
    let world = World::new();
    let engine = world.start().await;
    engine.make("db", &[]).await.unwrap();
    world.backend().on(Call::Attach, 1, Fault::Delay(Duration::from_millis(100)));
    let asked = tokio::time::timeout(Duration::from_millis(10), engine.hold("db", "c1")).await;
    assert!(asked.is_err(), "given up");
    for _ in 0..2_000 {
        let over = engine.operations();
        if over.iter().any(|view| view.kind == "unmount") && engine.inner.registry.is_idle() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(world.disk.mounts().is_empty(), "{:?}", engine.operations());
    engine.drop_volume("db").await.unwrap();
}

#[tokio::test]
async fn a_create_that_failed_leaves_nothing() {
    let world = World::new();
    let engine = world.start().await;
    world.backend().on(Call::Create, 1, Fault::FailBefore(ErrorKind::Unavailable));
    assert!(engine.make("db", &[]).await.is_err());
    engine.make("db", &[]).await.unwrap();
    assert_eq!(world.disk.images().len(), 1, "a create that failed leaves nothing");
}

#[tokio::test]
async fn rule_09_an_empty_volume_is_empty_and_prepared_once() {
    let world = World::new();
    let engine = world.start().await;
    engine.make("db", &[("mode", "0750")]).await.unwrap();
    let path = engine.hold("db", "c1").await.unwrap();
    assert_eq!(std::fs::read_dir(&path).unwrap().count(), 0);
    use std::os::unix::fs::PermissionsExt as _;
    let mode = |path: &PathBuf| std::fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(&path), 0o750);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).unwrap();
    engine.let_go("db", "c1").await.unwrap();
    engine.hold("db", "c1").await.unwrap();
    assert_eq!(mode(&path), 0o700, "set once, at creation");
    engine.let_go("db", "c1").await.unwrap();
    drop(engine);
    let catalog = world.directory.path().join("catalog.redb");
    std::fs::remove_file(&catalog).unwrap();
    rebuild_catalog(&catalog, &[world.backend()], Unreadable::Refuse).await.unwrap();
    let engine = world.start().await;
    engine.hold("db", "c1").await.unwrap();
    assert_eq!(mode(&path), 0o700, "nor does a rebuilt catalog set it again");
}

#[tokio::test]
async fn a_volume_that_cannot_be_described_can_be_mounted() {
    let world = World::new();
    let engine = world.start().await;
    engine.make("db", &[]).await.unwrap();
    world.backend().always(Call::Describe, Fault::FailBefore(ErrorKind::OutOfSpace));
    engine.hold("db", "c1").await.unwrap();
    let warnings = engine.status().await.warnings;
    assert!(warnings.iter().any(|warning| warning.contains("description of volume db")));
}

#[tokio::test]
async fn rule_11_a_volume_that_hangs_delays_no_other() {
    let world = World::new();
    let engine = world.start().await;
    engine.make("stuck", &[]).await.unwrap();
    engine.make("other", &[]).await.unwrap();
    world.backend().on(Call::Attach, 1, Fault::HangBefore);
    let hanging = tokio::spawn({
        let engine = engine.clone();
        async move { engine.hold("stuck", "c1").await }
    });
    while engine.operations().iter().all(|view| view.kind != "mount") {
        tokio::task::yield_now().await;
    }
    engine.hold("other", "c2").await.unwrap();
    assert_eq!(engine.volumes().len(), 2);
    assert!(engine.details(&name("stuck")).await.is_ok());
    hanging.abort();
}

#[tokio::test]
async fn a_mounted_volume_is_told_of_without_asking_its_backend() {
    let world = World::new();
    let engine = world.start().await;
    engine.make("db", &[]).await.unwrap();
    engine.hold("db", "c1").await.unwrap();
    let source = engine.details(&name("db")).await.unwrap().source;
    assert!(source.as_ref().is_some_and(|source| source.starts_with("/dev/sim/")), "{source:?}");
    let (inspected, measured) =
        (world.backend().calls(Call::Inspect), world.backend().calls(Call::Usage));
    for _ in 0..10 {
        assert_eq!(engine.details(&name("db")).await.unwrap().source, source);
    }
    assert_eq!(world.backend().calls(Call::Inspect), inspected);
    assert_eq!(world.backend().calls(Call::Usage), measured);

    // What was mounted before the start is asked for once.
    drop(engine);
    let engine = world.start().await;
    for _ in 0..10 {
        assert_eq!(engine.details(&name("db")).await.unwrap().source, source);
    }
    assert_eq!(world.backend().calls(Call::Inspect), 1);
    engine.let_go("db", "c1").await.unwrap();
    assert_eq!(engine.details(&name("db")).await.unwrap().source, None);
}

#[tokio::test]
async fn rule_12_what_may_have_happened_has_a_recorded_name_and_is_never_deleted_for_that() {
    let world = World::new();
    let engine = world.start().await;
    world.backend().on(Call::Create, 1, Fault::HangAfter);
    let hanging = tokio::spawn({
        let engine = engine.clone();
        async move { engine.make("db", &[]).await }
    });
    while world.disk.images().is_empty() {
        tokio::task::yield_now().await;
    }
    let recorded = engine.find(&name("db")).map(|volume| crate::backend::Locator::from(&*volume));
    assert_eq!(recorded.as_slice(), world.disk.images(), "made under a name known before");
    hanging.abort();

    engine.make("kept", &[]).await.unwrap();
    let path = engine.hold("kept", "c1").await.unwrap();
    std::fs::write(path.join("file"), "content").unwrap();
    engine.let_go("kept", "c1").await.unwrap();
    world.backend().mend();
    for call in [Call::Attach, Call::Detach] {
        world.backend().always(call, Fault::FailAfter(ErrorKind::Unavailable));
        let mounted = engine.hold("kept", "c2").await;
        let released = engine.let_go("kept", "c2").await;
        assert!(mounted.is_err() || released.is_err(), "{call:?} timed out");
        world.backend().mend();
    }
    let path = engine.hold("kept", "c3").await.unwrap();
    assert_eq!(std::fs::read_to_string(path.join("file")).unwrap(), "content");
}

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
async fn rule_16_removing_follows_on_remove() {
    let world = World::new();
    let engine = world.start().await;
    for on_remove in ["delete", "retain", "trash"] {
        engine.make(on_remove, &[("on-remove", on_remove)]).await.unwrap();
        engine.drop_volume(on_remove).await.unwrap();
        assert!(engine.volume(&name(on_remove)).is_none());
    }
    assert_eq!(world.disk.images().len(), 2, "one retained, one in the trash");

    engine.make("trash", &[]).await.unwrap();
    let error = engine.change(None).undelete(name("trash")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict, "the name is in use again");
    engine.drop_volume("trash").await.unwrap();
    engine.change(None).undelete(name("trash")).await.unwrap();
    engine.hold("trash", "c1").await.unwrap();
    engine.let_go("trash", "c1").await.unwrap();
    engine.drop_volume("trash").await.unwrap();

    world.clock.forward(Duration::from_secs(3601));
    engine.empty_trash().await;
    assert_eq!(world.disk.images().len(), 1, "only what is retained is left");
    assert!(engine.volumes().is_empty());
}

#[tokio::test]
async fn rule_17_an_error_names_the_volume_the_backend_the_node_and_what_to_do() {
    let world = World::new();
    let engine = world.start().await;
    let error = engine.hold("nothing", "c1").await.unwrap_err();
    let text = error.full_message();
    assert!(text.contains("nothing") && text.contains("node-1"), "{text}");
    assert!(error.hint_text().is_some());
    let error = engine.make("db", &[("backend", "ebs")]).await.unwrap_err();
    assert!(error.full_message().contains("ebs"));
    assert!(error.hint_text().unwrap().contains("other, sim"), "the backends there are");
}

#[tokio::test]
async fn after_a_reboot_mount_ids_are_forgotten_and_mounts_are_made_again() {
    let world = World::new();
    let engine = world.start().await;
    engine.make("db", &[]).await.unwrap();
    let path = engine.hold("db", "c1").await.unwrap();
    std::fs::write(path.join("file"), "kept").unwrap();
    drop(engine);
    world.disk.reboot().unwrap();
    let engine = world.start().await;
    assert_eq!(engine.volume(&name("db")).unwrap().mounts, 0);
    let path = engine.hold("db", "c1").await.unwrap();
    assert_eq!(std::fs::read_to_string(path.join("file")).unwrap(), "kept");
    engine.let_go("db", "c1").await.unwrap();
    engine.drop_volume("db").await.unwrap();
}

#[tokio::test]
async fn a_lost_catalog_is_rebuilt_from_the_descriptions() {
    let world = World::new();
    let engine = world.start().await;
    engine.make("db", &[("size", "2G"), ("uid", "7")]).await.unwrap();
    engine.make("gone", &[("on-remove", "retain")]).await.unwrap();
    engine.drop_volume("gone").await.unwrap();
    let path = engine.hold("db", "c1").await.unwrap();
    std::fs::write(path.join("file"), "kept").unwrap();
    engine.let_go("db", "c1").await.unwrap();
    engine.change(None).snapshot(reference("db@one")).await.unwrap();
    let before = engine.details(&name("db")).await.unwrap();
    drop(engine);
    let catalog = world.directory.path().join("catalog.redb");
    std::fs::remove_file(&catalog).unwrap();
    let backend: Arc<dyn Backend> = world.backend();
    let report = rebuild_catalog(&catalog, &[backend], Unreadable::Refuse).await.unwrap();
    assert_eq!(report.volumes, [name("db")]);
    assert_eq!(report.left, [""; 0], "what is retained is where its user left it");
    let engine = world.start().await;
    assert_eq!(engine.details(&name("db")).await.unwrap().snapshots, before.snapshots);
    assert_eq!(
        engine.make("db", &[("size", "2G"), ("uid", "7")]).await.unwrap(),
        Outcome::Unchanged
    );
    let path = engine.hold("db", "c1").await.unwrap();
    assert_eq!(std::fs::read_to_string(path.join("file")).unwrap(), "kept");
}

/// An image of the next generation stays behind if the backend could not be seen while the restore
/// that made it was undone.
#[tokio::test]
async fn a_restore_gives_its_own_snapshot_whatever_an_earlier_one_left() {
    let world = World::new();
    let engine = world.start().await;
    engine.make("db", &[]).await.unwrap();
    for text in ["a", "b", "later"] {
        let path = engine.hold("db", "c1").await.unwrap();
        std::fs::write(path.join("file"), text).unwrap();
        engine.let_go("db", "c1").await.unwrap();
        if text != "later" {
            engine.change(None).snapshot(reference(&format!("db@{text}"))).await.unwrap();
        }
    }
    let volume = engine.find(&name("db")).unwrap();
    let left = Volume { generation: volume.generation.next(), ..(*volume).clone() };
    let other = engine.snapshot(&reference("db@a")).unwrap().uuid;
    let from = ContentRef::Snapshot { volume: volume.uuid, snapshot: other };
    let backend = world.backend();
    let snapshots = backend.snapshots().unwrap();
    snapshots.create_from(from, &left, &Arc::default(), None).await.unwrap();

    engine.change(None).restore(reference("db@b")).await.unwrap();
    let path = engine.hold("db", "c1").await.unwrap();
    assert_eq!(std::fs::read_to_string(path.join("file")).unwrap(), "b");
}

/// `db` in the trash for long enough, and another `db` that a container holds.
async fn trashed_and_live(world: &World, engine: &Engine) {
    engine.make("db", &[("on-remove", "trash")]).await.unwrap();
    engine.drop_volume("db").await.unwrap();
    engine.make("db", &[]).await.unwrap();
    let path = engine.hold("db", "c1").await.unwrap();
    std::fs::write(path.join("file"), "live").unwrap();
    world.clock.forward(Duration::from_secs(3601));
}

fn assert_live(world: &World, engine: &Engine) {
    assert_eq!(world.disk.images().len(), 1, "what was in the trash is gone");
    assert_eq!(world.disk.mounts(), [world.mounts().join("db")]);
    assert_eq!(engine.volume(&name("db")).unwrap().mounts, 1);
    assert_eq!(std::fs::read_to_string(world.data("db").join("file")).unwrap(), "live");
}

#[tokio::test]
async fn rule_16_emptying_the_trash_leaves_a_new_volume_of_the_same_name_alone() {
    let world = World::new();
    let engine = world.start().await;
    trashed_and_live(&world, &engine).await;
    engine.empty_trash().await;
    assert_live(&world, &engine);
    engine.let_go("db", "c1").await.unwrap();
    engine.drop_volume("db").await.unwrap();
    assert!(world.disk.images().is_empty() && engine.volumes().is_empty());
}

#[test]
fn rule_16_emptying_the_trash_that_was_broken_off_is_finished_by_the_next_engine() {
    for fault in [Fault::HangBefore, Fault::HangAfter] {
        let world = World::new();
        stopped_dead(async {
            let engine = world.start().await;
            trashed_and_live(&world, &engine).await;
            world.backend().on(Call::Delete, 1, fault);
            let emptying = tokio::time::timeout(Duration::from_millis(100), engine.empty_trash());
            assert!(emptying.await.is_err(), "it hangs");
        });
        stopped_dead(async {
            let engine = world.start().await;
            engine.settled().await;
            assert_live(&world, &engine);
        });
    }
}

/// Runs engines whose tasks end where they wait, as those of a process that is killed.
fn stopped_dead(work: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(work);
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

#[tokio::test]
async fn rule_04_a_container_that_takes_its_time_to_start_keeps_its_volume() {
    let world = World::new();
    let engine = world.start().await;
    engine.make("db", &[]).await.unwrap();
    engine.hold("db", "c1").await.unwrap();
    // Docker waits two minutes for the mount of the container's next volume.
    world.clock.forward(Duration::from_secs(120));
    engine.drop_volume("db").await.expect_err("the container is on its way");
    world.clock.back(Duration::from_secs(7200));
    engine.drop_volume("db").await.expect_err("a clock that was set back says nothing");
    assert_eq!(world.disk.mounts(), [world.mounts().join("db")]);
    world.clock.forward(Duration::from_secs(7210));
    engine.drop_volume("db").await.unwrap();
}

#[tokio::test]
async fn rule_16_a_clock_that_was_set_back_does_not_empty_the_trash() {
    let world = World::new();
    let engine = world.start().await;
    engine.make("db", &[("on-remove", "trash")]).await.unwrap();
    engine.drop_volume("db").await.unwrap();
    world.clock.back(Duration::from_secs(30 * 24 * 3600));
    engine.empty_trash().await;
    engine.change(None).undelete(name("db")).await.expect("it is still there");
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

#[tokio::test]
async fn a_resize_is_not_done_before_the_filesystem_has_grown() {
    let world = World::new();
    let engine = world.start().await;
    engine.make("db", &[("size", "1G")]).await.unwrap();
    let resize = async || engine.change(None).resize(name("db"), "2G".parse().unwrap()).await;
    let host = SimHost::new(&world.disk);
    let target = world.mounts().join("db");
    let total = async || {
        use crate::linux::Host as _;
        host.filesystem_usage(&target).await.unwrap().total >> 30
    };
    engine.hold("db", "c1").await.unwrap();
    world.disk.set_stays_small(true);
    for _ in 0..3 {
        resize().await.expect_err("the filesystem has not grown");
        assert_eq!(total().await, 1);
    }
    world.disk.set_stays_small(false);
    assert_eq!(resize().await.unwrap(), Outcome::Changed);
    assert_eq!(total().await, 2);
    assert_eq!(resize().await.unwrap(), Outcome::Unchanged);
}

#[test]
fn rule_16_what_was_undeleted_is_not_in_the_trash_of_a_rebuilt_catalog() {
    let world = World::new();
    stopped_dead(async {
        let engine = world.start().await;
        engine.make("db", &[("on-remove", "trash")]).await.unwrap();
        engine.drop_volume("db").await.unwrap();
        world.backend().on(Call::Describe, 1, Fault::HangBefore);
        let back = engine.change(None).undelete(name("db"));
        assert!(tokio::time::timeout(Duration::from_millis(100), back).await.is_err());
    });
    stopped_dead(async { world.start().await.settled().await });
    let catalog = world.directory.path().join("catalog.redb");
    std::fs::remove_file(&catalog).unwrap();
    stopped_dead(async {
        let backend: Arc<dyn Backend> = world.backend();
        rebuild_catalog(&catalog, &[backend], Unreadable::Leave).await.unwrap();
        let engine = world.start().await;
        world.clock.forward(Duration::from_secs(3601));
        engine.empty_trash().await;
        engine.hold("db", "c1").await.expect("it is a volume like any other");
    });
}

/// A mount that was broken off before it was read-only, while somebody looked around in it.
#[tokio::test]
async fn a_read_only_volume_that_was_left_writable_is_mounted_read_only() {
    use crate::linux::{Host as _, MountRequest};
    let world = World::new();
    let engine = world.start().await;
    engine.make("db", &[("read-only", "true")]).await.unwrap();
    engine.hold("db", "c1").await.unwrap();
    engine.let_go("db", "c1").await.unwrap();
    let volume = engine.find(&name("db")).unwrap();
    let attached = world.backend().attach(crate::backend::Locator::from(&*volume)).await.unwrap();
    let crate::backend::MountSource::Device(device) = &attached.source else { panic!() };
    let host = SimHost::new(&world.disk);
    let request = MountRequest {
        source: device.display().to_string(),
        filesystem: "ext4".to_owned(),
        target: world.mounts().join("db"),
        options: vec![],
        read_only: false,
    };
    host.mount(&request).await.unwrap().ignore();
    drop(attached);
    engine.hold("db", "c1").await.unwrap();
    let mounts = host.mounts_below(&world.mounts()).await.unwrap();
    assert!(mounts.len() == 1 && mounts[0].read_only, "{mounts:?}");
}

#[tokio::test(start_paused = true)]
async fn rule_11_what_hangs_while_it_is_cleaned_up_does_not_hold_up_the_trash() {
    let world = World::new();
    let engine = world.start().await;
    engine.make("old", &[("on-remove", "trash")]).await.unwrap();
    engine.drop_volume("old").await.unwrap();
    engine.make("stuck", &[]).await.unwrap();
    world.backend().always(Call::Describe, Fault::FailBefore(ErrorKind::Unavailable));
    engine.change(None).rename(name("stuck"), name("new")).await.unwrap_err();
    let before = world.backend().calls(Call::Describe);
    world.backend().always(Call::Describe, Fault::HangBefore);
    while world.backend().calls(Call::Describe) == before {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    world.clock.forward(Duration::from_secs(3601));
    while engine.volumes().len() > 1 {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert_eq!(world.disk.images().len(), 1, "what is stuck is not lost");
}
