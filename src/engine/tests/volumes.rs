//! Volumes: made, told of, grown, restored and found again.

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
async fn a_create_that_failed_leaves_nothing() {
    let world = World::new();
    let engine = world.start().await;
    world.backend().on(Call::Create, 1, Fault::FailBefore(ErrorKind::Unavailable));
    assert!(engine.make("db", &[]).await.is_err());
    engine.make("db", &[]).await.unwrap();
    assert_eq!(world.disk.images().len(), 1, "a create that failed leaves nothing");
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
