use std::collections::BTreeMap;

use jiff::Timestamp;
use uuid::Uuid;

use super::file::CatalogFile;
use super::*;
use crate::error::ErrorKind;
use crate::id::Generation;
use crate::model::{Content, RunKind, RunOutcome, Runs, Schedule, VolumeState};
use crate::options::{OnRemove, Ownership};

pub(super) fn volume(number: u128, name: &str) -> Volume {
    Volume {
        uuid: VolumeUuid::from_uuid(Uuid::from_u128(number)),
        name: name.parse().unwrap(),
        backend: "sim".parse().unwrap(),
        generation: Generation::FIRST,
        state: VolumeState::Ready,
        content: Content::Blank,
        size: None,
        grow_pending: false,
        filesystem: None,
        mkfs_options: vec![],
        mount_options: vec![],
        ownership: Ownership::default(),
        read_only: false,
        on_remove: OnRemove::Delete,
        options: BTreeMap::new(),
        labels: BTreeMap::new(),
        created: Timestamp::UNIX_EPOCH,
    }
}

pub(super) fn put(volume: &Volume) -> Change {
    Change::PutVolume(Box::new(volume.clone()))
}

fn names(catalog: &Catalog) -> Vec<String> {
    catalog.read(|state| state.named_volumes().map(|v| v.name.to_string()).collect())
}

#[tokio::test]
async fn what_was_committed_is_there_after_reopening() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("catalog.redb");
    let catalog = Catalog::open(&path).unwrap();
    let (a, b) = (volume(1, "a"), volume(2, "b"));
    catalog.commit(vec![put(&a), put(&b)]).await.unwrap();
    catalog.commit(vec![Change::RemoveVolume(a.uuid)]).await.unwrap();
    drop(catalog);
    assert_eq!(names(&Catalog::open(&path).unwrap()), ["b"]);
}

#[tokio::test]
async fn a_name_has_one_holder() {
    let directory = tempfile::tempdir().unwrap();
    let catalog = Catalog::open(&directory.path().join("catalog.redb")).unwrap();
    catalog.commit(vec![put(&volume(1, "a"))]).await.unwrap();
    let other = volume(3, "other");
    let error = catalog.commit(vec![put(&other), put(&volume(2, "a"))]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert_eq!(names(&catalog), ["a"], "all of a commit or none");

    catalog.commit(vec![put(&volume(1, "renamed"))]).await.unwrap();
    catalog.commit(vec![put(&volume(2, "a"))]).await.unwrap();
    assert_eq!(names(&catalog), ["a", "renamed"]);

    let trashed =
        Volume { state: VolumeState::Trashed { since: Timestamp::UNIX_EPOCH }, ..volume(2, "a") };
    catalog.commit(vec![put(&trashed)]).await.unwrap();
    catalog.commit(vec![put(&volume(4, "a"))]).await.unwrap();
    assert_eq!(names(&catalog), ["a", "renamed"], "what is in the trash frees its name");
    let purging = Volume { state: VolumeState::Purging, ..trashed };
    catalog.commit(vec![put(&purging)]).await.unwrap();
    catalog.commit(vec![Change::RemoveVolume(purging.uuid)]).await.unwrap();
    assert_eq!(names(&catalog), ["a", "renamed"], "and does not take it back on its way out");
}

#[tokio::test]
async fn many_commits_at_once_all_land_and_one_of_two_rivals_wins() {
    let directory = tempfile::tempdir().unwrap();
    let catalog = Arc::new(Catalog::open(&directory.path().join("catalog.redb")).unwrap());
    let commits: Vec<_> = (0..100u128)
        .map(|number| {
            let catalog = Arc::clone(&catalog);
            tokio::spawn(async move {
                let name = format!("v{}", number / 2);
                catalog.commit(vec![put(&volume(number, &name))]).await.is_ok()
            })
        })
        .collect();
    let mut won = 0;
    for commit in commits {
        won += usize::from(commit.await.unwrap());
    }
    assert_eq!(won, 50);
    assert_eq!(names(&catalog).len(), 50);
}

#[test]
fn a_second_opening_a_damaged_and_a_newer_catalog_are_clear_errors() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("catalog.redb");
    let catalog = Catalog::open(&path).unwrap();
    assert_eq!(Catalog::open(&path).unwrap_err().kind(), ErrorKind::InUse);
    drop(catalog);

    fn nothing(_: &redb::WriteTransaction) -> Result<()> {
        Ok(())
    }
    let newer = CatalogFile::open_or_make_with(&path, &[nothing, nothing, nothing]).unwrap();
    drop(newer);
    assert!(directory.path().join("catalog.format-3.redb").exists(), "a migration keeps a copy");
    let error = Catalog::open(&path).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.full_message().contains("format 4"), "{}", error.full_message());

    for damage in [&b"not a catalog at all"[..], b"", &[0; 8192]] {
        std::fs::write(&path, damage).unwrap();
        match Catalog::open(&path) {
            // redb makes a new database of an empty file.
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Corrupt, "{}", error.full_message());
                assert!(error.hint_text().unwrap().contains("--rebuild-catalog"));
            }
            Ok(_) => panic!("{} bytes of nonsense passed for a catalog", damage.len()),
        }
    }
}

#[test]
fn a_catalog_that_has_gone_is_an_error_and_not_an_empty_one() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("catalog.redb");
    assert_eq!(Catalog::open_existing(&path).unwrap_err().kind(), ErrorKind::Unavailable);
    let mut file = CatalogFile::open_or_make(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    assert_eq!(file.reopen().map(drop).unwrap_err().kind(), ErrorKind::Unavailable);
    let written = file.write(&[], &State::default()).map(drop);
    assert_eq!(written.unwrap_err().kind(), ErrorKind::Unavailable, "nor by the next write");
    assert!(!path.exists());

    // What cannot be looked at may be there.
    let behind_a_file = directory.path().join("file/catalog.redb");
    std::fs::write(directory.path().join("file"), "").unwrap();
    assert!(Catalog::open(&behind_a_file).is_err());
    std::os::unix::fs::symlink("loop", directory.path().join("loop")).unwrap();
    let error = Catalog::open(&directory.path().join("loop/catalog.redb")).unwrap_err();
    assert!(error.full_message().contains("cannot look at"), "{}", error.full_message());
}

#[tokio::test]
async fn a_catalog_of_the_first_format_is_migrated_with_all_that_is_in_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("catalog.redb");
    let (backend, storage) = ("sim".parse().unwrap(), StorageId::from_uuid(Uuid::from_u128(7)));
    let mut first = CatalogFile::open_or_make_with(&path, &[]).unwrap();
    first.write(&[&[put(&volume(1, "a"))]], &State::default()).unwrap();
    drop(first);
    let catalog = Catalog::open(&path).unwrap();
    assert_eq!((names(&catalog), catalog.read(|s| s.storage(&backend))), (vec!["a".into()], None));
    catalog.commit(vec![Change::PutStorage(backend.clone(), storage)]).await.unwrap();
    drop(catalog);
    let catalog = Catalog::open(&path).unwrap();
    assert_eq!(catalog.read(|state| state.storage(&backend)), Some(storage));
}

fn schedule(every: &str) -> ActiveSchedule {
    let schedule = Schedule { snapshot: Some(every.parse().unwrap()), ..Schedule::default() };
    ActiveSchedule::begin(schedule, None, Timestamp::UNIX_EPOCH)
}

fn run(kind: RunKind, second: i64, outcome: RunOutcome) -> RunResult {
    let at = Timestamp::from_second(second).unwrap();
    RunResult { kind, started: at, finished: at, outcome }
}

#[tokio::test]
async fn schedules_and_their_last_runs_are_kept_and_go_with_their_volume() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("catalog.redb");
    let catalog = Catalog::open(&path).unwrap();
    let (a, b) = (volume(1, "a"), volume(2, "b"));
    let good = run(RunKind::Snapshot, 5, RunOutcome::Done("auto".to_owned()));
    let bad = run(RunKind::Snapshot, 9, RunOutcome::Failed("no room".to_owned()));
    let never = run(RunKind::Backup, 7, RunOutcome::Failed("no network".to_owned()));
    for one in [&a, &b] {
        catalog
            .commit(vec![put(one), Change::PutSchedule(one.uuid, Box::new(schedule("1h")))])
            .await
            .unwrap();
        for result in [&good, &bad, &never] {
            catalog.commit(vec![Change::PutRun(one.uuid, Box::new(result.clone()))]).await.unwrap();
        }
    }
    catalog.commit(vec![Change::PutSchedule(a.uuid, Box::new(schedule("2h")))]).await.unwrap();
    catalog.commit(vec![Change::RemoveVolume(b.uuid)]).await.unwrap();
    // A run that ends when its volume is gone leaves nothing.
    let late = catalog.commit(vec![Change::PutRun(b.uuid, Box::new(good.clone()))]).await;
    assert_eq!(late.unwrap_err().kind(), ErrorKind::NotFound);
    let mut catalog = Some(catalog);
    for _ in 0..2 {
        catalog.take().unwrap().read(|state| {
            assert_eq!(state.schedules().count(), 1);
            assert_eq!(**state.schedule(a.uuid).unwrap(), schedule("2h"));
            let snapshots = Runs { last: bad.clone(), good: Some(good.clone()) };
            assert_eq!(state.runs(a.uuid, RunKind::Snapshot), Some(&snapshots));
            let backups = Runs { last: never.clone(), good: None };
            assert_eq!(state.runs(a.uuid, RunKind::Backup), Some(&backups));
            assert_eq!(state.runs(b.uuid, RunKind::Snapshot), None);
        });
        catalog = Some(Catalog::open(&path).unwrap());
    }
    let catalog = catalog.unwrap();
    catalog.commit(vec![Change::RemoveSchedule(a.uuid)]).await.unwrap();
    drop(catalog);
    assert_eq!(Catalog::open(&path).unwrap().read(|state| state.schedules().count()), 0);
}

#[tokio::test]
async fn a_catalog_of_the_second_format_gets_room_for_schedules() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("catalog.redb");
    let mut second = CatalogFile::open_or_make_with(&path, &super::file::MIGRATIONS[..1]).unwrap();
    second.write(&[&[put(&volume(1, "a"))]], &State::default()).unwrap();
    drop(second);
    let catalog = Catalog::open(&path).unwrap();
    assert_eq!(names(&catalog), ["a"]);
    let put = Change::PutSchedule(volume(1, "a").uuid, Box::new(schedule("1h")));
    catalog.commit(vec![put]).await.unwrap();
    assert_eq!(catalog.read(|state| state.schedules().count()), 1);
}
