//! Images of block volumes.

use holdfast::backend::SnapshotImage;
use holdfast::repository::{Base, Image, ImageJob};
use holdfast::units::ByteSize;

use crate::world::{Disk, World, progress};

const MIB: usize = 1 << 20;

#[test]
fn what_is_backed_up_comes_back_by_us_and_by_plain_restic() {
    let world = World::new();
    let mut disk = Disk::new(1, 21 * MIB + 4096);
    disk.fill(0..3 * MIB, 1);
    disk.fill(9 * MIB..10 * MIB + 5000, 2);
    let first = disk.cut();
    let backup = world.repository.back_up_image(&first.job(None), &progress()).unwrap().backup;
    assert_eq!(world.repository.backups().unwrap(), [backup.clone().into()]);
    world.assert_sound();
    assert!(world.restored(&backup) == first.content);
    assert!(world.restored_by_restic(backup.id) == first.content);

    disk.fill(9 * MIB + 100..9 * MIB + 200, 3);
    disk.content[..MIB].fill(0);
    let second = disk.cut();
    let difference = second.job(Some((&backup, &first)));
    let next = world.repository.back_up_image(&difference, &progress()).unwrap();
    assert!(next.read < 5 * MIB as u64, "{next:?}");
    let next = next.backup;
    assert_eq!(next.parent, Some(backup.id));
    assert!(next.added < 2 * MIB as u64, "{next:?}");
    world.assert_sound();
    for (backup, cut) in [(&backup, &first), (&next, &second)] {
        assert!(world.restored(backup) == cut.content);
        assert!(world.restored_by_restic(backup.id) == cut.content);
        let verified = world.repository.verify(backup.id, &progress()).unwrap();
        assert_eq!((verified.bytes, verified.damage), (cut.content.len() as u64, vec![]));
    }
}

#[test]
fn backups_of_one_second_are_told_in_the_order_in_which_they_were_made() {
    let world = World::new();
    let mut disk = Disk::new(1, MIB);
    let made: Vec<_> = (0..5)
        .map(|seed| {
            disk.fill(0..4096, seed);
            let job = disk.cut().job(None);
            world.repository.back_up_image(&job, &progress()).unwrap().backup.id
        })
        .collect();
    let other = world.other(|_| {});
    let told: Vec<_> = other.backups().unwrap().iter().map(|backup| backup.id).collect();
    assert_eq!(told, made);
}

/// A snapshot of a volume of this size in which nothing was ever written.
fn hole(disk: &mut Disk, size: usize, base: Option<Base>) -> ImageJob {
    let mut job = disk.cut().job(None);
    let file = tempfile::tempfile().unwrap();
    file.set_len(size as u64).unwrap();
    job.manifest.snapshot.size = Some(ByteSize::new(size as u64));
    let content = SnapshotImage::lasting(file, size as u64);
    job.image = Image { content, allocated: vec![] };
    job.base = base;
    job
}

#[test]
fn a_last_directory_that_is_nearly_whole_is_not_taken_for_another_hole() {
    let world = World::new();
    let mut disk = Disk::new(1, MIB);
    let job = hole(&mut disk, 2 * 1024 * MIB - MIB, None);
    let backup = world.repository.back_up_image(&job, &progress()).unwrap().backup;
    let verified = world.repository.verify(backup.id, &progress()).unwrap();
    assert_eq!(verified.damage, [""; 0]);
    assert_eq!(verified.bytes, backup.size.unwrap().bytes());
}

#[test]
fn a_snapshot_of_a_smaller_volume_has_nothing_of_the_larger_one_behind_it() {
    let world = World::new();
    let mut disk = Disk::new(1, MIB);
    let large = hole(&mut disk, 64 * MIB, None);
    let large = world.repository.back_up_image(&large, &progress()).unwrap().backup;
    let base = Base { backup: large.id, changed: vec![] };
    let small = hole(&mut disk, 32 * MIB, Some(base));
    let small = world.repository.back_up_image(&small, &progress()).unwrap().backup;
    assert_eq!(world.restored_by_restic(small.id).len(), 32 * MIB);
    assert!(world.restored(&small) == vec![0; 32 * MIB]);
}
