//! Mending that breaks off, at any of its steps, is finished by the next try, and nothing whole is lost.

use std::path::Path;
use std::process::Command;
use std::sync::atomic::Ordering;

use crate::damage::Three;
use crate::faulty::{Failure, Faulty};
use crate::world::{CHUNK, World, flip, progress};

fn copy(from: &Path, to: &Path) {
    let _ = std::fs::remove_dir_all(to);
    assert!(Command::new("cp").arg("-a").args([from, to]).status().unwrap().success());
}

fn assert_finished_at_the_next_try(damage: impl Fn(&World, &Three)) {
    let mut world = World::new();
    let mut three = Three::new(&world);
    damage(&world, &three);
    for (backup, _) in [&three.first, &three.second] {
        assert_ne!(world.repository.verify(backup.id, &progress()).unwrap().damage, [""; 0]);
    }
    let damaged = world.path().join("damaged");
    copy(&world.directory(), &damaged);
    let store = Faulty::new(&world.directory());
    world.repository = world.over(&store, "node-1");
    let cut = three.disk.cut();
    for n in 1.. {
        let count = store.fail_from(n, Failure::Refused);
        let job = cut.job(Some((&three.second.0, &three.second.1)));
        let broken_off = world.repository.back_up_image(&job, &progress());
        store.obey_nothing();
        if broken_off.is_ok() {
            assert!(count.load(Ordering::SeqCst) > 6, "only {n} steps");
            break;
        }
        let again = three.back_up_again(&world);
        let mut all = three.all().to_vec();
        all.push((&again.0, &again.1));
        world.assert_has(&all);
        copy(&damaged, &world.directory());
    }
}

#[test]
fn of_a_pack() {
    assert_finished_at_the_next_try(|_, three| {
        let pack = three.packs.iter().find(|pack| !pack.tree).unwrap();
        flip(
            &pack.path,
            pack.blobs.iter().find(|blob| blob.plain == CHUNK as u64).unwrap().offset + 20,
        );
    });
}

#[test]
fn of_the_index() {
    assert_finished_at_the_next_try(|world, _| {
        for entry in std::fs::read_dir(world.directory().join("index")).unwrap() {
            flip(&entry.unwrap().path(), 50);
        }
    });
}
