//! A backup is there only if all of it was read and stored.

use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use holdfast::error::ErrorKind;
use holdfast::model::{Outcome, Progress};
use holdfast::repository::Prune;

use crate::faulty::{Failure, Faulty, Verb};
use crate::world::{Cut, Disk, Mounted, World, progress};

const MIB: usize = 1 << 20;

/// Two cuts of a disk, the second of which needs a few packs of its own.
fn two_cuts() -> (Cut, Cut) {
    let mut disk = Disk::new(1, 40 * MIB);
    disk.fill(0..3 * MIB, 1);
    let first = disk.cut();
    disk.fill(8 * MIB..26 * MIB, 2);
    (first, disk.cut())
}

#[test]
fn a_store_that_fails_at_any_write_gets_no_backup_and_the_next_one_works() {
    let (world, store) = World::faulty();
    let (first, second) = two_cuts();
    let backup = world.repository.back_up_image(&first.job(None), &progress()).unwrap().backup;
    let mut failed = 0;
    let next = loop {
        let count = store.fail_from(failed + 1, Failure::Refused);
        let result =
            world.repository.back_up_image(&second.job(Some((&backup, &first))), &progress());
        store.obey_nothing();
        match result {
            Ok(stored) => break stored.backup,
            Err(error) => assert_eq!(error.kind(), ErrorKind::Unsupported, "{error:?}"),
        }
        assert!(count.load(Ordering::SeqCst) > failed);
        assert_eq!(world.repository.backups().unwrap().len(), 1);
        world.assert_sound();
        failed += 1;
    };
    assert!(failed >= 4, "only {failed} writes");
    world.assert_has(&[(&backup, &first), (&next, &second)]);
}

#[test]
fn one_write_that_fails_among_others_that_do_not_leaves_no_index_that_names_it() {
    let (world, store) = World::faulty();
    let (first, second) = two_cuts();
    let backup = world.repository.back_up_image(&first.job(None), &progress()).unwrap().backup;
    for n in 0.. {
        let seen = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&seen);
        store.obey(move |verb, path| {
            let counts = verb == Verb::Put && !path.starts_with("locks");
            (counts && count.fetch_add(1, Ordering::SeqCst) == n).then_some(Failure::Refused)
        });
        let result = world.repository.back_up_image(&second.job(None), &progress());
        let reached = seen.load(Ordering::SeqCst) > n;
        assert_eq!(result.is_err(), reached, "write {n}: {result:?}");
        world.assert_sound();
        if let Ok(stored) = result {
            return world.assert_has(&[(&backup, &first), (&stored.backup, &second)]);
        }
    }
}

#[test]
fn what_a_store_refuses_for_a_while_is_stored_at_another_try() {
    let (world, store) = World::faulty();
    let (_, cut) = two_cuts();
    let writes = AtomicUsize::new(0);
    store.obey(move |verb, _| {
        let fails = verb.writes() && writes.fetch_add(1, Ordering::SeqCst).is_multiple_of(3);
        fails.then_some(Failure::Unreachable)
    });
    let backup = world.repository.back_up_image(&cut.job(None), &progress()).unwrap().backup;
    store.obey_nothing();
    world.assert_has(&[(&backup, &cut)]);
}

#[test]
fn a_store_that_cannot_be_reached_gives_an_error_that_may_pass() {
    let (world, store) = World::faulty();
    let (_, cut) = two_cuts();
    store.obey(|verb, path| {
        (verb == Verb::Put && path.starts_with("data")).then_some(Failure::Unreachable)
    });
    let error = world.repository.back_up_image(&cut.job(None), &progress()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    assert!(error.kind().is_temporary() && error.hint_text().is_some());
    world.assert_has(&[]);
}

#[test]
fn an_image_that_ends_before_its_size_gives_no_backup() {
    let world = World::new();
    let (first, second) = two_cuts();
    let backup = world.repository.back_up_image(&first.job(None), &progress()).unwrap().backup;
    for (based, length) in [(false, 9 * MIB + 5), (true, 9 * MIB + 5), (true, 8 * MIB)] {
        let mut job = second.job(based.then_some((&backup, &first)));
        let short = tempfile::tempfile().unwrap();
        short.write_all_at(&second.content[..length], 0).unwrap();
        job.image.content.file = short;
        let error = world.repository.back_up_image(&job, &progress()).unwrap_err();
        assert!(error.full_message().contains("cannot read the snapshot at byte"), "{error:?}");
    }
    world.assert_has(&[(&backup, &first)]);
    let next = world.repository.back_up_image(&second.job(Some((&backup, &first))), &progress());
    world.assert_has(&[(&backup, &first), (&next.unwrap().backup, &second)]);
}

/// Calls `now` when the store is asked for the `n`th time, locks aside.
fn at_request(store: &Faulty, n: usize, now: impl Fn() + Send + Sync + 'static) {
    let seen = AtomicUsize::new(0);
    store.obey(move |_, path| {
        if !path.starts_with("locks") && seen.fetch_add(1, Ordering::SeqCst) + 1 == n {
            now();
        }
        None
    });
}

#[test]
fn a_backup_that_is_cancelled_at_any_request_is_not_there() {
    let (world, store) = World::faulty();
    let (first, second) = two_cuts();
    let backup = world.repository.back_up_image(&first.job(None), &progress()).unwrap().backup;
    let mut cancelled = 0;
    for n in 1.. {
        let progress: Arc<Progress> = Arc::default();
        let word = Arc::clone(&progress);
        at_request(&store, n, move || word.cancel());
        let result =
            world.repository.back_up_image(&second.job(Some((&backup, &first))), &progress);
        store.obey_nothing();
        match result {
            // There are no more requests, or the word came with the last of them.
            Ok(stored) => {
                world.assert_has(&[(&backup, &first), (&stored.backup, &second)]);
                break;
            }
            Err(error) => assert_eq!(error.kind(), ErrorKind::Cancelled, "{error:?}"),
        }
        cancelled += 1;
        assert_eq!(world.repository.backups().unwrap().len(), 1);
    }
    assert!(cancelled > 6, "only {cancelled} requests");
}

#[test]
fn a_full_disk_gets_no_backup_and_the_next_one_works_when_there_is_room() {
    let world = World::without_repository();
    let disk = Mounted::tmpfs(&world.directory(), "size=12m");
    world.repository.init().unwrap();
    let (first, second) = two_cuts();
    let backup = world.repository.back_up_image(&first.job(None), &progress()).unwrap().backup;
    let again =
        || world.repository.back_up_image(&second.job(Some((&backup, &first))), &progress());
    let error = again().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OutOfSpace, "{error:?}");
    assert!(error.hint_text().unwrap().contains("backup prune"), "{error:?}");
    world.assert_has(&[(&backup, &first)]);
    // A prune makes room on a full disk.
    world.repository.prune(Prune::Now, &progress()).unwrap();
    world.assert_has(&[(&backup, &first)]);
    disk.remount("size=64m");
    world.assert_has(&[(&backup, &first), (&again().unwrap().backup, &second)]);
}

#[test]
fn a_repository_that_was_half_made_is_made_by_the_next_try() {
    let world = World::without_repository();
    let store = Faulty::new(&world.directory());
    let mut failed = 0;
    loop {
        store.fail_from(failed + 1, Failure::Refused);
        let repository = world.over(&store, "node-1");
        if repository.init().is_ok() {
            break;
        }
        failed += 1;
        store.obey_nothing();
        assert_eq!(world.over(&store, "node-2").init().unwrap(), Outcome::Changed);
        let (_, cut) = two_cuts();
        let backup = world.repository.back_up_image(&cut.job(None), &progress()).unwrap().backup;
        world.assert_has(&[(&backup, &cut)]);
        std::fs::remove_dir_all(world.directory()).unwrap();
        std::fs::create_dir(world.directory()).unwrap();
    }
    assert!(failed >= 2, "only {failed} writes");
}
