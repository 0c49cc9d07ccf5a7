//! Backups beside other changes.

use super::*;
use crate::backend::fault::{Call, Fault};
use crate::error::ErrorKind;
use crate::model::Backup;

const LONG: Duration = Duration::from_millis(500);

/// An engine whose repository is made, and the volume `db`.
async fn start(world: &World) -> Engine {
    let engine = world.start().await;
    engine.change(None).init_repository("main".parse().unwrap()).await.unwrap().ignore();
    engine.make("db", &[]).await.unwrap().ignore();
    engine
}

impl Engine {
    async fn back_up(&self, volume: &str) -> Result<Backup> {
        self.change(None).back_up(name(volume), None, None, None).await
    }

    /// Begins a backup that others do not wait for.
    fn begin_backup(&self, volume: &str) -> tokio::task::JoinHandle<Result<Backup>> {
        let (engine, volume) = (self.clone(), volume.to_owned());
        tokio::spawn(async move { engine.back_up(&volume).await })
    }

    fn snapshots_of(&self, volume: &str) -> Vec<String> {
        let all = self.snapshots(Some(&name(volume))).unwrap().into_iter();
        all.map(|snapshot| snapshot.name.to_string()).collect()
    }
}

async fn until(what: &str, is_so: impl Fn() -> bool) {
    for _ in 0..5_000 {
        if is_so() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("{what}: it never came to that");
}

#[tokio::test]
async fn a_volume_that_takes_the_name_of_one_whose_backup_waits_is_not_backed_up_for_it() {
    let world = World::new();
    let engine = start(&world).await;
    let meant = engine.details(&name("db")).await.unwrap().uuid;
    world.backend().always(Call::OpenSnapshot, Fault::Delay(LONG));
    let mut before = Vec::new();
    for volume in ["a", "b"] {
        engine.make(volume, &[]).await.unwrap().ignore();
        before.push(engine.begin_backup(volume));
    }
    until("two are on their way", || world.backend().calls(Call::OpenSnapshot) == 2).await;
    let (renamed, removed) = (engine.begin_backup("db"), engine.begin_backup("db"));
    let running = || engine.operations().iter().filter(|one| one.kind == "backup").count();
    until("two more wait", || running() == 4).await;
    engine.change(None).rename(name("db"), name("old")).await.unwrap().ignore();
    engine.make("db", &[]).await.unwrap().ignore();
    let first = renamed.await.unwrap().unwrap();
    assert_eq!((first.uuid, first.volume.as_str()), (meant, "old"));
    let second = removed.await.unwrap().unwrap();
    assert_eq!((second.uuid, second.volume.as_str()), (meant, "old"));
    for backup in before {
        backup.await.unwrap().unwrap();
    }
    assert_eq!(engine.snapshots_of("db"), Vec::<String>::new());
}

#[tokio::test]
async fn a_backup_whose_volume_is_removed_while_it_waits_fails_though_there_is_another_of_its_name()
{
    let world = World::new();
    let engine = start(&world).await;
    world.backend().always(Call::OpenSnapshot, Fault::Delay(LONG));
    let mut before = Vec::new();
    for volume in ["a", "b"] {
        engine.make(volume, &[]).await.unwrap().ignore();
        before.push(engine.begin_backup(volume));
    }
    until("two are on their way", || world.backend().calls(Call::OpenSnapshot) == 2).await;
    let waits = engine.begin_backup("db");
    let running = || engine.operations().iter().filter(|one| one.kind == "backup").count();
    until("one more waits", || running() == 3).await;
    engine.drop_volume("db").await.unwrap().ignore();
    engine.make("db", &[]).await.unwrap().ignore();
    let error = waits.await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{}", error.full_message());
    for backup in before {
        backup.await.unwrap().unwrap();
    }
    assert_eq!(engine.backups(None, None).await.unwrap().len(), 2);
}
