//! Who may use a repository at the same time, restic included.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use holdfast::error::ErrorKind;
use holdfast::failpoint;
use holdfast::model::Backup;
use holdfast::repository::Prune;

use crate::faulty::{Failure, Faulty, Verb};
use crate::gate::Waiting;
use crate::world::{Cut, Disk, PASSWORD, World, progress};

const MIB: usize = 1 << 20;

fn cut_of(number: u128) -> Cut {
    let mut disk = Disk::new(number, 6 * MIB);
    disk.fill(0..4 * MIB, u64::try_from(number).unwrap());
    disk.cut()
}

fn back_up(world: &World, cut: &Cut) -> Backup {
    world.repository.back_up_image(&cut.job(None), &progress()).unwrap().backup
}

fn locks(world: &World) -> Vec<PathBuf> {
    let directory = std::fs::read_dir(world.directory().join("locks"));
    directory.into_iter().flatten().map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn while_a_backup_runs_nobody_prunes_and_others_read_and_back_up() {
    let (world, store) = World::faulty();
    let (first, second, third) = (cut_of(1), cut_of(2), cut_of(3));
    let one = back_up(&world, &first);
    std::thread::scope(|scope| {
        let running = Waiting::before("data/", &store, &world.repository, second.job(None), scope);
        let refused = world.restic_command(&["prune"]);
        assert!(!refused.status.success());
        let said = String::from_utf8_lossy(&refused.stderr);
        assert!(said.contains("already locked") && said.contains("node-1"), "{said}");
        let other = world.other(|settings| settings.node = "node-2".to_owned());
        let error = other.prune(Prune::Now, &progress()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InUse, "{error:?}");
        assert!(error.full_message().contains("node-1"), "{error:?}");
        assert!(error.hint_text().unwrap().contains("restic unlock"), "{error:?}");

        assert!(world.restored(&one) == first.content);
        other.verify(one.id, &progress()).unwrap();
        let three = other.back_up_image(&third.job(None), &progress()).unwrap().backup;
        let two = running.finish().unwrap().backup;
        world.assert_has(&[(&one, &first), (&two, &second), (&three, &third)]);
    });
    assert!(locks(&world).is_empty());
    world.restic(&["prune"]);
}

#[test]
fn two_hosts_that_store_the_same_at_once_both_have_it() {
    let (world, store) = World::faulty();
    let elsewhere = Faulty::new(&world.directory());
    let other = world.over(&elsewhere, "node-2");
    let (first, mut disk) = (cut_of(1), Disk::new(2, 6 * MIB));
    disk.content.clone_from(&first.content);
    let second = disk.cut();
    std::thread::scope(|scope| {
        let here = Waiting::before("data/", &store, &world.repository, first.job(None), scope);
        let there = Waiting::before("data/", &elsewhere, &other, second.job(None), scope);
        let (one, two) = (here.finish().unwrap().backup, there.finish().unwrap().backup);
        world.assert_has(&[(&one, &first), (&two, &second)]);
    });
}

#[test]
fn a_backup_whose_lock_was_taken_away_does_not_count() {
    let (world, store) = World::faulty();
    let cut = cut_of(1);
    std::thread::scope(|scope| {
        let running = Waiting::before("data/", &store, &world.repository, cut.job(None), scope);
        world.restic(&["unlock", "--remove-all"]);
        world.restic(&["prune"]);
        let error = running.finish().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InUse, "{error:?}");
        assert!(error.full_message().contains("removed the lock"), "{error:?}");
    });
    world.assert_has(&[]);
    world.assert_has(&[(&back_up(&world, &cut), &cut)]);
}

/// restic with an exclusive lock, stopped.
struct Stopped(Child);

impl Stopped {
    fn new(world: &World) -> Self {
        let mut child = Command::new("restic")
            .args(["check", "--read-data", "--no-cache"])
            .env("RESTIC_REPOSITORY", world.directory())
            .env("RESTIC_PASSWORD", PASSWORD)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let limit = Instant::now() + Duration::from_secs(60);
        // What is being written has a longer name.
        while !locks(world).iter().any(|lock| lock.file_name().unwrap().len() == 64) {
            assert!(child.try_wait().unwrap().is_none() && Instant::now() < limit);
            std::thread::yield_now();
        }
        let stopped = Self(child);
        stopped.signal("-STOP");
        stopped
    }

    fn signal(&self, signal: &str) {
        let pid = self.0.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn an_exclusive_lock_of_restic_keeps_us_away_until_it_is_gone() {
    let world = World::new();
    let cut = cut_of(1);
    let backup = back_up(&world, &cut);
    let mut restic = Stopped::new(&world);
    let job = || world.repository.back_up_image(&cut.job(None), &progress());
    for error in [
        job().unwrap_err(),
        world.repository.prune(Prune::Now, &progress()).unwrap_err(),
        world.repository.verify(backup.id, &progress()).unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::InUse, "{error:?}");
        let process = format!("process {}", restic.0.id());
        assert!(error.full_message().contains(&process), "{error:?}");
    }
    restic.signal("-CONT");
    assert!(restic.0.wait().unwrap().success());
    assert_eq!(job().unwrap().backup.size, backup.size);

    // What a killed restic leaves is restic's to remove.
    let restic = Stopped::new(&world);
    drop(restic);
    let error = job().unwrap_err();
    assert!(error.hint_text().unwrap().contains("restic unlock"), "{error:?}");
    world.restic(&["unlock"]);
    job().unwrap();
    world.assert_sound();
}

#[test]
fn a_lock_that_cannot_be_removed_is_removed_by_the_next_work_here() {
    let (world, store) = World::faulty();
    let (first, second) = (cut_of(1), cut_of(2));
    store.obey(|verb, path| {
        (verb == Verb::Remove && path.starts_with("locks/")).then_some(Failure::Refused)
    });
    let one = back_up(&world, &first);
    store.obey_nothing();
    assert_eq!(locks(&world).len(), 1);
    let other = world.other(|settings| settings.node = "node-2".to_owned());
    let error = other.prune(Prune::Now, &progress()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InUse, "{error:?}");
    let two = back_up(&world, &second);
    assert!(locks(&world).is_empty());
    other.prune(Prune::Now, &progress()).unwrap();
    world.assert_has(&[(&one, &first), (&two, &second)]);
}

#[test]
#[ignore = "run by the test below"]
fn dies_in_a_backup() {
    let world = World::in_child();
    failpoint::arm("repository.pack=kill").unwrap();
    let _ = world.repository.back_up_image(&cut_of(2).job(None), &progress());
}

#[test]
fn a_process_that_was_killed_leaves_no_lock_that_matters() {
    let world = World::new();
    let (first, second) = (cut_of(1), cut_of(2));
    let one = back_up(&world, &first);
    let status = world.child("locks::dies_in_a_backup").status().unwrap();
    assert!(!status.success());
    assert_eq!(locks(&world).len(), 1);
    world.repository.prune(Prune::Now, &progress()).unwrap();
    assert!(locks(&world).is_empty());
    world.assert_has(&[(&one, &first)]);
    let two = back_up(&world, &second);
    world.assert_has(&[(&one, &first), (&two, &second)]);
}

#[test]
fn a_lock_that_cannot_be_read_is_named_and_one_that_is_being_written_is_none() {
    let world = World::new();
    let cut = cut_of(1);
    let directory = world.directory().join("locks");
    std::fs::create_dir_all(&directory).unwrap();
    let name = "ab".repeat(32);
    std::fs::write(directory.join(format!("{name}-tmp-17")), "").unwrap();
    back_up(&world, &cut);
    std::fs::write(directory.join(&name), "x").unwrap();
    let error = world.repository.back_up_image(&cut.job(None), &progress()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error:?}");
    assert!(error.full_message().contains(&name), "{error:?}");
    assert!(error.hint_text().unwrap().contains("restic unlock --remove-all"), "{error:?}");
}
