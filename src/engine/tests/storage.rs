//! Storage that is away, or another one, is not used.

use super::*;
use crate::backend::Locator;
use crate::backend::fault::{Call, Fault};
use crate::catalog::Change;
use crate::error::ErrorKind;
use crate::id::StorageId;
use crate::model::Subject;

/// A world with the volume `db`, in which is something, and an interrupted deletion of `doomed`.
async fn with_volumes() -> World {
    let world = World::new();
    let engine = world.start().await;
    engine.make("db", &[]).await.unwrap();
    engine.make("doomed", &[]).await.unwrap();
    let path = engine.hold("db", "c1").await.unwrap();
    std::fs::write(path.join("file"), "kept").unwrap();
    engine.let_go("db", "c1").await.unwrap();
    world.backend().always(Call::Delete, Fault::FailBefore(ErrorKind::Unavailable));
    engine.drop_volume("doomed").await.unwrap_err();
    world
}

async fn assert_unavailable(engine: &Engine) {
    let details = engine.details(&name("db")).await.unwrap();
    assert!(details.health.contains("cannot be used"), "{}", details.health);
    let status = engine.status().await;
    let told = |warning: &String| warning.contains("sim") && warning.contains("restart");
    assert!(status.warnings.iter().any(told), "{:?}", status.warnings);
    assert_eq!(engine.make("db", &[]).await.unwrap(), Outcome::Unchanged, "it is known");
    let snapshot = engine.change(None).snapshot(reference("db@one"), None);
    for error in [
        engine.hold("db", "c1").await.unwrap_err(),
        engine.make("new", &[]).await.unwrap_err(),
        engine.drop_volume("db").await.unwrap_err(),
        snapshot.await.unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{}", error.full_message());
        assert!(error.full_message().contains("sim"), "{}", error.full_message());
        assert!(error.hint_text().unwrap().contains("restart"));
    }
}

#[tokio::test]
async fn another_disk_is_not_used_and_nothing_is_closed_against_it() {
    let mut world = with_volumes().await;
    let disk = std::mem::replace(&mut world.disk, SimWorld::with_disk(1));
    for _ in 0..2 {
        let engine = world.start().await;
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert_unavailable(&engine).await;
        let open: Vec<_> = engine
            .operations()
            .into_iter()
            .filter(|o| o.subject == Subject::Volume(name("doomed")))
            .collect();
        assert_eq!(open.len(), 1, "the deletion stays recorded: {open:?}");
        assert_eq!(engine.inner.catalog.read(|state| state.operations().count()), 1);
    }
    assert!(world.disk.images().is_empty());
    world.disk = disk;
    let engine = world.start().await;
    engine.settled().await;
    let path = engine.hold("db", "c1").await.unwrap();
    assert_eq!(std::fs::read_to_string(path.join("file")).unwrap(), "kept");
    assert_eq!(world.disk.images().len(), 1, "the deletion was finished");
}

#[tokio::test]
async fn a_disk_without_volumes_can_be_exchanged() {
    let mut world = World::new();
    drop(world.start().await);
    world.disk = SimWorld::with_disk(1);
    let engine = world.start().await;
    engine.make("db", &[]).await.unwrap();
    drop(engine);
    let engine = world.start().await;
    engine.hold("db", "c1").await.unwrap();
}

/// A catalog that was written before storage was recorded.
#[tokio::test]
async fn storage_that_was_never_recorded_is_where_all_the_volumes_are() {
    let world = World::new();
    let engine = world.start().await;
    engine.make("db", &[]).await.unwrap();
    let volume = engine.find(&name("db")).unwrap();
    drop(engine);
    let path = world.directory.path().join("catalog.redb");
    let recorded = async |volumes: Vec<Change>| -> Option<StorageId> {
        std::fs::remove_file(&path).unwrap();
        let catalog = Catalog::open(&path).unwrap();
        catalog.commit(volumes).await.unwrap();
        drop(catalog);
        let engine = world.start().await;
        engine.inner.catalog.read(|state| state.storage(&"sim".parse().unwrap()))
    };
    let put = |volume: &Volume| Change::PutVolume(Box::new(volume.clone()));
    assert!(recorded(vec![put(&volume)]).await.is_some());
    let uuid = VolumeUuid::from_uuid(Uuid::from_u128(99));
    let missing = Volume { uuid, name: name("missing"), ..(*volume).clone() };
    assert_eq!(recorded(vec![put(&volume), put(&missing)]).await, None);
    let engine = world.start().await;
    assert_eq!(engine.hold("db", "c1").await.unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(world.disk.images(), [Locator::from(&*volume)]);
}
