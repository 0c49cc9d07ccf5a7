//! Backups beside other changes, and what is left of those that were broken off.

use super::*;
use crate::backend::fault::{Call, Fault};
use crate::error::ErrorKind;
use crate::model::Backup;
use crate::name::HookName;

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

#[test]
fn what_a_kill_leaves_of_a_cut_for_a_backup_is_undone_by_the_cut_itself() {
    let world = World::new();
    stopped_dead(async {
        let engine = start(&world).await;
        world.backend().on(Call::Snapshot, 1, Fault::HangBefore);
        let hook: HookName = "works".parse().unwrap();
        let backup = engine.change(None).back_up(name("db"), None, None, Some(hook));
        tokio::spawn(backup);
        until("the snapshot is cut", || world.backend().calls(Call::Snapshot) == 1).await;
        assert_eq!(world.disk.take_programs().len(), 1, "the one before it");
    });
    stopped_dead(async {
        let engine = world.start().await;
        engine.settled().await;
        let programs = world.disk.take_programs();
        assert_eq!(programs.len(), 1, "{programs:?}");
        assert_eq!(programs[0].command, ["resume"]);
        let told = programs[0].variables.get("HOLDFAST_SNAPSHOT");
        assert!(told.is_some_and(|name| name.starts_with("backup-")), "{programs:?}");
        assert_eq!((engine.snapshots_of("db").len(), world.disk.snapshots().len()), (0, 0));
    });
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

#[test]
fn a_kill_after_a_backup_was_stored_leaves_the_base_of_the_next() {
    let world = World::new();
    stopped_dead(async {
        let engine = start(&world).await;
        engine.back_up("db").await.unwrap();
        // That of the first goes when the second is stored.
        world.backend().on(Call::DeleteSnapshot, 1, Fault::HangBefore);
        engine.begin_backup("db");
        until("it is stored", || world.backend().calls(Call::DeleteSnapshot) == 1).await;
    });
    stopped_dead(async {
        let engine = world.start().await;
        engine.settled().await;
        assert_eq!(engine.snapshots_of("db").len(), 1);
        let stored = engine.backups(None, None).await.unwrap();
        assert_eq!(stored.len(), 2);
        let third = engine.back_up("db").await.unwrap();
        assert_eq!(third.parent, Some(stored[1].id));
        assert_eq!(engine.snapshots_of("db"), [third.snapshot.to_string()], "the others are gone");
        assert_eq!(world.disk.snapshots().len(), 1);
    });
}

#[tokio::test]
async fn a_backup_after_which_nothing_could_be_put_in_order_leaves_the_base_of_the_next() {
    let world = World::new();
    let engine = start(&world).await;
    engine.back_up("db").await.unwrap();
    world.backend().on(Call::DeleteSnapshot, 1, Fault::FailBefore(ErrorKind::Unavailable));
    world.backend().on(Call::DeleteSnapshot, 2, Fault::FailBefore(ErrorKind::Unavailable));
    let second = engine.back_up("db").await.unwrap();
    engine.retry_stuck().await;
    engine.settled().await;
    assert_eq!(engine.snapshots_of("db"), [second.snapshot.to_string()]);
    assert_eq!(engine.back_up("db").await.unwrap().parent, Some(second.id));
}

#[test]
fn what_was_cut_for_a_backup_that_was_never_stored_goes_with_the_next() {
    let world = World::new();
    stopped_dead(async {
        let engine = start(&world).await;
        world.backend().on(Call::OpenSnapshot, 1, Fault::HangBefore);
        engine.begin_backup("db");
        until("it is cut", || world.backend().calls(Call::OpenSnapshot) == 1).await;
    });
    stopped_dead(async {
        let engine = world.start().await;
        engine.settled().await;
        let made = engine.back_up("db").await.unwrap();
        assert_eq!(engine.snapshots_of("db"), [made.snapshot.to_string()]);
        assert_eq!(world.disk.snapshots().len(), 1);
    });
}

#[tokio::test]
async fn a_full_copy_that_another_backup_reads_is_removed_once_that_is_over() {
    let world = World::new();
    world.disk.set_copies_take(Some(Duration::ZERO));
    let engine = start(&world).await;
    world.backend().on(Call::OpenSnapshot, 1, Fault::Delay(LONG));
    world.backend().on(Call::OpenSnapshot, 2, Fault::Delay(LONG * 4));
    let first = engine.begin_backup("db");
    until("it is cut", || world.backend().calls(Call::OpenSnapshot) == 1).await;
    let cut = engine.snapshots_of("db").remove(0);
    let (other, of) = (engine.clone(), cut.parse().unwrap());
    let second =
        tokio::spawn(
            async move { other.change(None).back_up(name("db"), Some(of), None, None).await },
        );
    first.await.unwrap().unwrap();
    assert_eq!(engine.snapshots_of("db"), [cut], "it is read");
    engine.hold("db", "c1").await.unwrap();
    engine.let_go("db", "c1").await.unwrap().ignore();
    second.await.unwrap().unwrap();
    engine.retry_stuck().await;
    engine.settled().await;
    assert_eq!((engine.snapshots_of("db").len(), world.disk.snapshots().len()), (0, 0));
}

#[tokio::test]
async fn a_full_copy_that_nobody_remembers_goes_with_the_next_backup() {
    let world = World::new();
    let engine = start(&world).await;
    engine.back_up("db").await.unwrap();
    assert_eq!(engine.snapshots_of("db").len(), 1);
    world.disk.set_copies_take(Some(Duration::ZERO));
    engine.back_up("db").await.unwrap();
    assert_eq!((engine.snapshots_of("db").len(), world.disk.snapshots().len()), (0, 0));
}
