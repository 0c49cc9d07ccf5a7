//! A prune takes what nobody needs and nothing else, whoever works beside it.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use holdfast::error::ErrorKind;
use holdfast::model::Backup;
use holdfast::repository::Prune;

use crate::faulty::{Failure, Faulty, Verb};
use crate::gate::Waiting;
use crate::world::{Cut, Disk, Mounted, World, progress};

const MIB: usize = 1 << 20;

/// Bytes of all files below a directory.
fn size(directory: &Path) -> u64 {
    let entries = std::fs::read_dir(directory).unwrap().map(Result::unwrap);
    let sizes = entries.map(|entry| match entry.file_type().unwrap().is_dir() {
        true => size(&entry.path()),
        false => entry.metadata().unwrap().len(),
    });
    sizes.sum()
}

fn packs(world: &World) -> u64 {
    size(&world.directory().join("data"))
}

fn back_up(world: &World, cut: &Cut, base: Option<(&Backup, &Cut)>) -> Backup {
    world.repository.back_up_image(&cut.job(base), &progress()).unwrap().backup
}

#[test]
fn what_nobody_needs_is_given_back() {
    let world = World::new();
    let mut disk = Disk::new(1, 16 * MIB);
    disk.fill(0..4 * MIB, 1);
    let first = disk.cut();
    disk.fill(4 * MIB..12 * MIB, 2);
    let second = disk.cut();
    let one = back_up(&world, &first, None);
    let two = back_up(&world, &second, Some((&one, &first)));
    let with_both = packs(&world);
    world.repository.remove(two.id).unwrap();

    let planned = world.repository.prune(Prune::Plan, &progress()).unwrap();
    assert!(planned.unused > 8 * MIB as u64 && planned.used < 5 * MIB as u64, "{planned:?}");
    assert_eq!(packs(&world), with_both);
    let marked = world.repository.prune(Prune::Mark, &progress()).unwrap();
    assert!(marked.marked > 8 * MIB as u64 && marked.removed == 0, "{marked:?}");
    assert!(packs(&world) >= with_both);
    world.assert_has(&[(&one, &first)]);
    world.repository.prune(Prune::Now, &progress()).unwrap();
    assert!(packs(&world) < 5 * MIB as u64, "{}", packs(&world));
    world.assert_has(&[(&one, &first)]);
}

#[test]
fn what_a_backup_needs_that_began_before_the_mark_is_taken_back() {
    let (world, store) = World::faulty();
    let elsewhere = world.other(|settings| settings.node = "node-2".to_owned());
    let mut disk = Disk::new(1, 16 * MIB);
    disk.fill(0..4 * MIB, 1);
    let first = disk.cut();
    disk.fill(8 * MIB..12 * MIB, 2);
    let second = disk.cut();
    disk.content.truncate(MIB);
    let small = disk.cut();
    for directory in ["data/", "index/", "snapshots/"] {
        let one = back_up(&world, &first, None);
        let two = back_up(&world, &small, None);
        world.repository.remove(one.id).unwrap();
        let three = std::thread::scope(|scope| {
            let job = second.job(None);
            let running = Waiting::before(directory, &store, &world.repository, job, scope);
            elsewhere.prune(Prune::Mark, &progress()).unwrap();
            running.finish().unwrap().backup
        });
        let all = [(&two, &small), (&three, &second)];
        world.assert_has(&all);
        elsewhere.prune(Prune::Mark, &progress()).unwrap();
        world.assert_has(&all);
        elsewhere.prune(Prune::Now, &progress()).unwrap();
        world.assert_has(&all);
        for backup in [two, three] {
            world.repository.remove(backup.id).unwrap();
        }
        elsewhere.prune(Prune::Now, &progress()).unwrap();
    }
}

#[test]
fn a_backup_that_cannot_take_back_what_it_needs_is_not_there() {
    let (world, store) = World::faulty();
    let elsewhere = world.other(|settings| settings.node = "node-2".to_owned());
    let mut disk = Disk::new(1, 6 * MIB);
    disk.fill(0..4 * MIB, 1);
    let (first, second) = (disk.cut(), disk.cut());
    let one = back_up(&world, &first, None);
    world.repository.remove(one.id).unwrap();
    std::thread::scope(|scope| {
        let job = second.job(None);
        let running = Waiting::before("snapshots/", &store, &world.repository, job, scope);
        elsewhere.prune(Prune::Mark, &progress()).unwrap();
        store.obey(|verb, path| {
            (verb == Verb::Put && path.starts_with("index/")).then_some(Failure::Refused)
        });
        assert_eq!(running.finish().unwrap_err().kind(), ErrorKind::Unsupported);
    });
    store.obey_nothing();
    world.assert_has(&[]);
    let two = back_up(&world, &second, None);
    world.assert_has(&[(&two, &second)]);
}

#[test]
fn an_index_that_is_removed_while_it_is_read_is_a_reason_to_try_again() {
    let (world, store) = World::faulty();
    let mut disk = Disk::new(1, 6 * MIB);
    disk.fill(0..4 * MIB, 1);
    let cut = disk.cut();
    let one = back_up(&world, &cut, None);
    let (index, aside) = (world.directory().join("index"), world.path().join("aside"));
    let from = index.clone();
    store.obey(move |verb, path| {
        if verb == Verb::Read && path.starts_with("index/") {
            let _ = std::fs::rename(&from, &aside);
        }
        None
    });
    let error = world.repository.back_up_image(&cut.job(None), &progress()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    assert!(error.hint_text().unwrap().contains("try again"), "{error:?}");
    store.obey_nothing();
    std::fs::rename(world.path().join("aside"), index).unwrap();
    world.assert_has(&[(&one, &cut)]);
}

#[test]
fn a_prune_that_breaks_off_at_any_write_loses_nothing() {
    for how in [Prune::Mark, Prune::Now] {
        let mut world = World::new();
        let mut disk = Disk::new(1, 16 * MIB);
        disk.fill(0..6 * MIB, 1);
        let first = disk.cut();
        disk.fill(3 * MIB..8 * MIB, 2);
        let second = disk.cut();
        let one = back_up(&world, &first, None);
        let two = back_up(&world, &second, Some((&one, &first)));
        world.repository.remove(one.id).unwrap();
        let store = Faulty::new(&world.directory());
        world.repository = world.over(&store, "node-1");
        let mut failed = 0;
        loop {
            store.fail_from(failed + 1, Failure::Refused);
            let result = world.repository.prune(how, &progress());
            store.obey_nothing();
            world.assert_has(&[(&two, &second)]);
            match result {
                Ok(_) => break,
                Err(error) => assert_eq!(error.kind(), ErrorKind::Unsupported, "{error:?}"),
            }
            failed += 1;
        }
        assert!(failed >= 3, "only {failed} writes");
    }
}

#[test]
fn the_first_backup_of_all_is_not_pruned_before_it_counts() {
    let (world, store) = World::faulty();
    let elsewhere = world.other(|settings| settings.node = "node-2".to_owned());
    let mut disk = Disk::new(1, 4 * MIB);
    disk.fill(0..4 * MIB, 1);
    let cut = disk.cut();
    let one = std::thread::scope(|scope| {
        let job = cut.job(None);
        let running = Waiting::before("snapshots/", &store, &world.repository, job, scope);
        elsewhere.prune(Prune::Mark, &progress()).unwrap();
        running.finish().unwrap().backup
    });
    world.assert_has(&[(&one, &cut)]);
    elsewhere.prune(Prune::Now, &progress()).unwrap();
    world.assert_has(&[(&one, &cut)]);
}

#[test]
fn a_full_disk_is_pruned() {
    let world = World::without_repository();
    let disk = Mounted::ext4(&world.directory(), 64 << 20);
    world.repository.init().unwrap();
    let [one, two] = [(1, 11), (2, 12)].map(|(number, seed)| {
        let mut disk = Disk::new(number, 6 * MIB);
        disk.fill(0..6 * MIB, seed);
        disk.cut()
    });
    let (first, second) = (back_up(&world, &one, None), back_up(&world, &two, None));
    let both = packs(&world);
    disk.fill();
    let error = world.repository.back_up_image(&one.job(None), &progress()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OutOfSpace, "{error:?}");
    assert!(error.hint_text().unwrap().contains("prune --now"), "{error:?}");
    world.repository.remove(first.id).unwrap();
    let error = world.repository.prune(Prune::Mark, &progress()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OutOfSpace, "{error:?}");
    assert!(error.hint_text().unwrap().contains("prune --now"), "{error:?}");
    let done = world.repository.prune(Prune::Now, &progress()).unwrap();
    assert!(done.removed > 6 * MIB as u64, "{done:?}");
    assert!(packs(&world) <= both - 6 * MIB as u64);
    world.assert_has(&[(&second, &two)]);
    // And there is room for what needs some.
    let third = back_up(&world, &two, None);
    world.assert_has(&[(&second, &two), (&third, &two)]);
    drop(disk);
}

#[test]
fn a_disk_that_a_backup_has_filled_is_pruned() {
    let world = World::without_repository();
    let disk = Mounted::ext4(&world.directory(), 64 << 20);
    world.repository.init().unwrap();
    let mut large = Disk::new(1, 96 * MIB);
    large.fill(0..6 * MIB, 1);
    let small = large.cut();
    let kept = back_up(&world, &small, None);
    large.fill(8 * MIB..90 * MIB, 2);
    let large = large.cut();
    let error = world.repository.back_up_image(&large.job(None), &progress()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OutOfSpace, "{error:?}");
    world.repository.prune(Prune::Now, &progress()).unwrap();
    assert!(packs(&world) < 8 * MIB as u64, "{}", packs(&world));
    world.assert_has(&[(&kept, &small)]);
    drop(disk);
}

#[test]
fn a_prune_of_a_full_disk_that_breaks_off_without_an_index_loses_nothing() {
    for noted in [true, false] {
        let (world, store) = World::faulty();
        let [one, two] = [(1, 11), (2, 12)].map(|(number, seed)| {
            let mut disk = Disk::new(number, 2 * MIB);
            disk.fill(0..2 * MIB, seed);
            disk.cut()
        });
        let (first, second) = (back_up(&world, &one, None), back_up(&world, &two, None));
        world.repository.remove(first.id).unwrap();
        let tries = AtomicUsize::new(0);
        store.obey(move |verb, path| match (verb, path.split('/').next()) {
            (Verb::Put, Some("holdfast")) if !noted => Some(Failure::Full),
            (Verb::Put, Some("index")) if tries.fetch_add(1, Ordering::SeqCst) == 0 => {
                Some(Failure::Full)
            }
            (Verb::Put, Some("index")) => Some(Failure::Refused),
            _ => None,
        });
        let error = world.repository.prune(Prune::Now, &progress()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error:?}");
        store.obey_nothing();
        if !noted {
            let error = world.repository.prune(Prune::Now, &progress()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{error:?}");
            assert_ne!(world.repository.verify(second.id, &progress()).unwrap().damage, [""; 0]);
        }
        world.repository.prune(Prune::Now, &progress()).unwrap();
        world.assert_has(&[(&second, &two)]);
        assert!(packs(&world) < 3 * MIB as u64);
    }
}
