//! Repositories in a bucket of S3, over a network that is not always kind.

use std::time::Duration;

use holdfast::error::ErrorKind;
use holdfast::repository::Prune;

use crate::moto::{Answer, BUCKET, Moto, every, proxy};
use crate::world::{Cut, Disk, World, progress};

const MIB: usize = 1 << 20;

fn two_cuts() -> (Cut, Cut) {
    let mut disk = Disk::new(1, 12 * MIB);
    disk.fill(0..3 * MIB, 1);
    let first = disk.cut();
    disk.fill(6 * MIB..8 * MIB, 2);
    (first, disk.cut())
}

/// Makes a repository, two backups and a prune, and reads everything.
fn assert_works(world: &World) {
    world.repository.init().unwrap();
    let (first, second) = two_cuts();
    let back_up = |job| world.repository.back_up_image(&job, &progress()).unwrap().backup;
    let one = back_up(first.job(None));
    let two = back_up(second.job(Some((&one, &first))));
    assert!(two.added < 3 * MIB as u64, "{two:?}");
    assert_eq!(world.repository.verify(two.id, &progress()).unwrap().damage, [""; 0]);
    world.repository.remove(one.id).unwrap();
    world.repository.prune(Prune::Now, &progress()).unwrap();
    world.assert_has(&[(&two, &second)]);
    assert!(world.restored_by_restic(two.id) == second.content);
}

#[test]
fn a_bucket_is_as_good_as_a_directory() {
    let moto = Moto::new();
    assert_works(&Moto::world(moto.address, BUCKET));
}

#[test]
fn more_objects_than_one_list_has() {
    let moto = Moto::new();
    let world = Moto::world(moto.address, BUCKET);
    world.repository.init().unwrap();
    let (first, _) = two_cuts();
    let one = world.repository.back_up_image(&first.job(None), &progress()).unwrap().backup;
    for i in 0..1010 {
        let id = format!("{i:064x}");
        moto.put(&format!("some/prefix/data/{}/{id}", &id[..2]), b"nobody needs this");
    }
    let pruned = world.repository.prune(Prune::Now, &progress()).unwrap();
    assert_eq!(pruned.removed, 1010 * 17, "{pruned:?}");
    world.assert_has(&[(&one, &first)]);
    assert!(world.restic(&["list", "packs"]).lines().count() < 10);
}

#[test]
fn a_server_that_is_now_and_then_too_busy() {
    const BUSY: &str = "HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    let moto = Moto::new();
    let address = proxy(moto.address, every(5, Answer::Instead(BUSY), |_, _| true));
    assert_works(&Moto::world(address, BUCKET));
}

#[test]
fn answers_that_come_late() {
    let moto = Moto::new();
    let late = Answer::Late(Duration::from_millis(300));
    assert_works(&Moto::world(proxy(moto.address, every(3, late, |_, _| true)), BUCKET));
}

#[test]
fn answers_that_never_come_or_end_in_the_middle() {
    let moto = Moto::new();
    let stored = every(4, Answer::None, |method, _| method == "PUT");
    let read = every(4, Answer::Half, |method, _| method == "GET");
    let address = proxy(moto.address, move |method, path| match stored(method, path) {
        Answer::Whole => read(method, path),
        other => other,
    });
    assert_works(&Moto::world(address, BUCKET));
}

#[test]
fn a_bucket_that_is_missing() {
    let moto = Moto::new();
    let world = Moto::world(moto.address, "another");
    for error in [world.repository.backups().unwrap_err(), world.repository.init().unwrap_err()] {
        assert_eq!(error.kind(), ErrorKind::NotFound, "{error:?}");
        assert!(error.hint_text().unwrap().contains("there is no such bucket"), "{error:?}");
        assert!(!error.full_message().contains('\n'), "{error:?}");
    }
}

#[test]
fn a_key_that_opens_nothing() {
    const BODY: &str = "<?xml version=\"1.0\"?><Error><Code>SignatureDoesNotMatch</Code></Error>";
    let moto = Moto::new();
    let answer = format!(
        "HTTP/1.1 403 Forbidden\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{BODY}",
        BODY.len()
    );
    let answer: &'static str = answer.leak();
    let all = proxy(moto.address, move |_, _| Answer::Instead(answer));
    let lists = proxy(moto.address, move |_, path| match path.contains("list-type") {
        true => Answer::Instead(answer),
        false => Answer::Whole,
    });
    for address in [all, lists] {
        let error = Moto::world(address, BUCKET).repository.backups().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error:?}");
        assert!(error.hint_text().unwrap().contains("credentials"), "{error:?}");
        assert!(!format!("{error:?}").contains("secret"), "{error:?}");
    }
}

#[test]
fn damage_in_the_bucket_is_found_though_a_whole_copy_is_kept_here() {
    let moto = Moto::new();
    let world = Moto::world(moto.address, BUCKET);
    world.repository.init().unwrap();
    let (first, second) = two_cuts();
    let one = world.repository.back_up_image(&first.job(None), &progress()).unwrap().backup;
    assert!(world.restored(&one) == first.content);
    let packs = world.packs();
    let tree = packs.iter().find(|pack| pack.tree).unwrap();
    moto.put(&format!("some/prefix/data/{}/{}", &tree.id[..2], tree.id), b"damaged");
    let damage = world.repository.verify(one.id, &progress()).unwrap().damage;
    assert!(!damage.is_empty() && damage[0].contains(&tree.id), "{damage:?}");
    let job = second.job(Some((&one, &first)));
    let two = world.repository.back_up_image(&job, &progress()).unwrap().backup;
    world.repository.remove(one.id).unwrap();
    world.assert_has(&[(&two, &second)]);
}
