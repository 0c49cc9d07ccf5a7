//! What becomes of removed volumes, and the trash.

use super::*;
use crate::backend::fault::{Call, Fault};
use crate::error::ErrorKind;

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
