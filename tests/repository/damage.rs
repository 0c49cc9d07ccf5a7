//! Damage is found and named, and the next backup mends it where the volume still has the data.

use std::fs::File;
use std::path::{Path, PathBuf};

use holdfast::error::ErrorKind;
use holdfast::model::Backup;
use holdfast::repository::Prune;
use sha2::{Digest, Sha256};

use crate::faulty::{Failure, Faulty, Verb};
use crate::world::{CHUNK, Cut, Disk, Pack, World, flip, progress};

const MIB: usize = 1 << 20;

/// Two backups of a volume, the second of which shares most with the first, and one of another volume.
pub(crate) struct Three {
    pub(crate) disk: Disk,
    pub(crate) first: (Backup, Cut),
    pub(crate) second: (Backup, Cut),
    pub(crate) other: (Backup, Cut),
    /// The packs that the first one has made.
    pub(crate) packs: Vec<Pack>,
}

impl Three {
    pub(crate) fn new(world: &World) -> Self {
        let back_up = |cut: &Cut, base: Option<(&Backup, &Cut)>| {
            world.repository.back_up_image(&cut.job(base), &progress()).unwrap().backup
        };
        let mut other = Disk::new(2, 3 * MIB);
        other.fill(0..2 * MIB, 9);
        let other = other.cut();
        let other = (back_up(&other, None), other);
        let before: Vec<String> = world.packs().into_iter().map(|pack| pack.id).collect();
        let mut disk = Disk::new(1, 9 * MIB);
        disk.fill(0..4 * MIB, 1);
        let first = disk.cut();
        let first = (back_up(&first, None), first);
        let packs = world.packs().into_iter().filter(|pack| !before.contains(&pack.id)).collect();
        disk.fill(8 * MIB..9 * MIB, 2);
        let second = disk.cut();
        let second = (back_up(&second, Some((&first.0, &first.1))), second);
        Self { disk, first, second, other, packs }
    }

    /// The pack that has the chunk at this MiB of the first backup, and where in it.
    fn chunk(&self, mib: usize) -> (&Pack, u64) {
        let content = &self.first.1.content[mib * MIB..][..CHUNK];
        let id: String = Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect();
        let at = |pack: &Pack| Some(pack.blobs.iter().find(|blob| blob.id == id)?.offset);
        self.packs.iter().find_map(|pack| Some((pack, at(pack)?))).unwrap()
    }

    pub(crate) fn all(&self) -> [(&Backup, &Cut); 3] {
        [&self.first, &self.second, &self.other].map(|(backup, cut)| (backup, cut))
    }

    /// Backs up the volume as it is now, which is the second backup's content.
    pub(crate) fn back_up_again(&mut self, world: &World) -> (Backup, Cut) {
        let cut = self.disk.cut();
        let job = cut.job(Some((&self.second.0, &self.second.1)));
        (world.repository.back_up_image(&job, &progress()).unwrap().backup, cut)
    }
}

fn damage_of(world: &World, backup: &Backup) -> Vec<String> {
    world.repository.verify(backup.id, &progress()).unwrap().damage
}

#[derive(PartialEq, Eq)]
enum Manifest {
    Whole,
    /// No later backup has the first one's.
    Lost,
}

/// What is damaged is found in those that need it and in no others, and mended by the next backup.
fn assert_found_and_mended(manifest: &Manifest, damage: impl Fn(&Three) -> String) {
    let world = World::new();
    let mut three = Three::new(&world);
    let name = damage(&three);
    for (backup, _) in [&three.first, &three.second] {
        let error = world.restore_error(backup);
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error:?}");
        assert!(error.full_message().contains(&name), "{error:?}");
        assert!(error.hint_text().unwrap().contains("holdfast backup verify"), "{error:?}");
        let found = damage_of(&world, backup);
        assert!(!found.is_empty() && found.iter().all(|text| text.contains(&name)), "{found:?}");
    }
    assert_eq!(damage_of(&world, &three.other.0), [""; 0]);
    assert!(world.restored(&three.other.0) == three.other.1.content);

    let again = three.back_up_again(&world);
    let mut all = three.all().to_vec();
    all.push((&again.0, &again.1));
    if *manifest == Manifest::Lost {
        let (first, _) = all.remove(0);
        assert_ne!(damage_of(&world, first), [""; 0]);
        world.repository.remove(first.id).unwrap();
    }
    world.assert_has(&all);
    for (backup, _) in all {
        assert_eq!(damage_of(&world, backup), [""; 0]);
    }
}

#[test]
fn a_flipped_bit_in_a_chunk() {
    assert_found_and_mended(&Manifest::Whole, |three| {
        let (pack, at) = three.chunk(2);
        flip(&pack.path, at + 1000);
        pack.id.clone()
    });
}

#[test]
fn a_pack_that_ends_early() {
    assert_found_and_mended(&Manifest::Lost, |three| {
        let (pack, _) = three.chunk(2);
        let file = File::options().write(true).open(&pack.path).unwrap();
        file.set_len((MIB + 5) as u64).unwrap();
        pack.id.clone()
    });
}

#[test]
fn a_pack_that_is_gone() {
    assert_found_and_mended(&Manifest::Lost, |three| {
        let (pack, _) = three.chunk(2);
        std::fs::remove_file(&pack.path).unwrap();
        pack.id.clone()
    });
}

#[test]
fn damaged_trees_are_lost_to_those_alone_that_need_them() {
    let world = World::new();
    let mut three = Three::new(&world);
    let tree = three.packs.iter().find(|pack| pack.tree).unwrap();
    for blob in &tree.blobs {
        flip(&tree.path, blob.offset + 20);
    }
    let (backup, _) = &three.first;
    let error = world.restore_error(backup);
    assert!(error.full_message().contains(&tree.id), "{error:?}");
    assert_eq!(world.repository.manifest(backup.id).unwrap_err().kind(), ErrorKind::Corrupt);
    assert!(damage_of(&world, backup).iter().any(|text| text.contains(&tree.id)));
    // The second one has trees of its own.
    assert_eq!(damage_of(&world, &three.second.0), [""; 0]);
    let again = three.back_up_again(&world);
    for (backup, cut) in [&three.second, &three.other, &again] {
        assert_eq!(damage_of(&world, backup), [""; 0]);
        assert!(world.restored(backup) == cut.content);
    }
    // No later backup has the trees of the first one.
    assert_ne!(damage_of(&world, &three.first.0), [""; 0]);
    world.repository.remove(three.first.0.id).unwrap();
    world.assert_has(&[
        (&three.second.0, &three.second.1),
        (&three.other.0, &three.other.1),
        (&again.0, &again.1),
    ]);
}

#[test]
fn a_pack_of_trees_that_ends_early_is_named_wherever_it_is_met() {
    for far in [false, true] {
        let mut world = World::new();
        let mut three = Three::new(&world);
        let tree = three.packs.iter().find(|pack| pack.tree).unwrap();
        File::options().write(true).open(&tree.path).unwrap().set_len(70).unwrap();
        let near = match far {
            true => {
                let far = world.far(&Faulty::new(&world.directory()));
                Some(std::mem::replace(&mut world.repository, far))
            }
            false => None,
        };
        let named = |text: &str| assert!(text.contains(&tree.id), "{text}");
        let error = world.repository.prune(Prune::Plan, &progress()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error:?}");
        named(&error.full_message());
        named(&world.repository.check(&progress()).unwrap().join("; "));
        named(&world.restore_error(&three.first.0).full_message());
        // As a base it is none.
        let cut = three.disk.cut();
        let job = cut.job(Some((&three.first.0, &three.first.1)));
        let stored = world.repository.back_up_image(&job, &progress()).unwrap();
        if let Some(near) = near {
            world.repository = near;
        }
        named(&damage_of(&world, &three.first.0).join("; "));
        assert_eq!(damage_of(&world, &stored.backup), [""; 0]);
        assert!(world.restored(&stored.backup) == cut.content);
    }
}

#[test]
fn a_damaged_manifest_alone_is_found_and_named() {
    let world = World::new();
    let three = Three::new(&world);
    let data = three.packs.iter().find(|pack| !pack.tree).unwrap();
    let manifest = data.blobs.iter().find(|blob| blob.plain < 4096).unwrap();
    flip(&data.path, manifest.offset + 20);
    let error = world.restore_error(&three.first.0);
    assert!(error.full_message().contains("volume.json in pack"), "{error:?}");
    let found = world.repository.verify(three.first.0.id, &progress()).unwrap();
    assert_eq!((found.damage.len(), found.bytes), (1, 9 * MIB as u64), "{found:?}");
    assert!(found.damage[0].starts_with("volume.json in pack"), "{found:?}");
    assert_eq!(damage_of(&world, &three.second.0), [""; 0]);
}

fn index_files(world: &World) -> Vec<PathBuf> {
    let directory = std::fs::read_dir(world.directory().join("index")).unwrap();
    directory.map(|entry| entry.unwrap().path()).collect()
}

/// Nothing can be read before the index is made anew, which the next backup does.
fn assert_index_is_made_anew(damage: impl Fn(&Path)) {
    let world = World::new();
    let mut three = Three::new(&world);
    for file in index_files(&world) {
        damage(&file);
    }
    let error = world.restore_error(&three.first.0);
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error:?}");
    assert_ne!(damage_of(&world, &three.first.0), [""; 0]);
    let error = world.repository.prune(Prune::Plan, &progress()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error:?}");
    let again = three.back_up_again(&world);
    let mut all = three.all().to_vec();
    all.push((&again.0, &again.1));
    world.assert_has(&all);
    assert!(again.0.added < MIB as u64, "{again:?}", again = again.0);
}

#[test]
fn a_flipped_bit_in_the_index() {
    assert_index_is_made_anew(|file| flip(file, 50));
}

#[test]
fn an_index_that_is_gone() {
    assert_index_is_made_anew(|file| std::fs::remove_file(file).unwrap());
}

/// A prune that is killed leaves an index file that names what another one marks, and a backup takes it for
/// stored. Whichever of the two is damaged, and if neither is: the pack stays.
#[test]
fn a_pack_that_is_marked_to_be_deleted_and_named_as_well_is_not_lost() {
    for damaged in ["the one that names it", "the one that marks it", "another"] {
        let world = World::new();
        let mut three = Three::new(&world);
        let mut disk = Disk::new(3, 3 * MIB);
        disk.fill(0..2 * MIB, 5);
        let (cut, before) = (disk.cut(), index_files(&world));
        let back_up =
            |cut: &Cut| world.repository.back_up_image(&cut.job(None), &progress()).unwrap().backup;
        let removed = back_up(&cut);
        let is_new = |file: &PathBuf| !before.contains(file);
        let names = index_files(&world).into_iter().find(is_new).unwrap();
        let content = std::fs::read(&names).unwrap();
        world.repository.remove(removed.id).unwrap();
        world.repository.prune(Prune::Mark, &progress()).unwrap();
        let marks = index_files(&world).into_iter().find(is_new).unwrap();
        std::fs::write(&names, content).unwrap();
        let (cut, before) = (disk.cut(), index_files(&world));
        let again = back_up(&cut);
        assert!(again.added < MIB as u64, "{again:?}");
        let another = index_files(&world).into_iter().find(|file| !before.contains(file)).unwrap();
        let file = match damaged {
            "the one that names it" => names,
            "the one that marks it" => marks,
            _ => another,
        };
        flip(&file, 50);
        assert_ne!(damage_of(&world, &again), [""; 0], "{damaged}");
        let healed = three.back_up_again(&world);
        let mut all = three.all().to_vec();
        all.extend([(&again, &cut), (&healed.0, &healed.1)]);
        world.assert_has(&all);
        world.repository.prune(Prune::Now, &progress()).unwrap();
        world.assert_has(&all);
    }
}

#[test]
fn marks_of_packs_to_be_deleted_outlive_the_mending_of_another_pack() {
    let world = World::new();
    let mut three = Three::new(&world);
    let mut disk = Disk::new(3, 3 * MIB);
    disk.fill(0..2 * MIB, 5);
    let cut = disk.cut();
    let job = cut.job(None);
    let again = world.repository.back_up_image(&job, &progress()).unwrap().backup;
    let snapshot = world.directory().join("snapshots").join(again.id.to_string());
    let content = std::fs::read(&snapshot).unwrap();
    world.repository.remove(again.id).unwrap();
    world.repository.prune(Prune::Mark, &progress()).unwrap();
    // It was made beside the prune, by a daemon that was killed before it could look again.
    std::fs::write(&snapshot, content).unwrap();
    let (pack, at) = three.chunk(2);
    flip(&pack.path, at + 1000);
    assert_ne!(damage_of(&world, &three.first.0), [""; 0]);
    let healed = three.back_up_again(&world);
    world.repository.prune(Prune::Now, &progress()).unwrap();
    let mut all = three.all().to_vec();
    all.extend([(&again, &cut), (&healed.0, &healed.1)]);
    world.assert_has(&all);
}

#[test]
fn a_prune_of_a_damaged_index_makes_it_anew_and_takes_nothing() {
    for how in [Prune::Mark, Prune::Now] {
        let world = World::new();
        let three = Three::new(&world);
        for file in index_files(&world) {
            flip(&file, 50);
        }
        assert_ne!(damage_of(&world, &three.first.0), [""; 0]);
        world.repository.prune(how, &progress()).unwrap();
        world.assert_has(&three.all());
    }
}

#[test]
fn data_that_the_volume_has_no_more_is_lost_to_those_alone_that_need_it() {
    let world = World::new();
    let mut three = Three::new(&world);
    // The third has what is whole in the damaged pack, and not what is damaged.
    three.disk.fill(2 * MIB..3 * MIB, 7);
    let third = three.disk.cut();
    let job = third.job(Some((&three.second.0, &three.second.1)));
    let third = (world.repository.back_up_image(&job, &progress()).unwrap().backup, third);
    let (pack, at) = three.chunk(2);
    flip(&pack.path, at + 1000);
    assert_eq!(damage_of(&world, &third.0), [""; 0]);
    assert_eq!(damage_of(&world, &three.first.0).len(), 1);

    let fourth = three.disk.cut();
    let job = fourth.job(Some((&third.0, &third.1)));
    let stored = world.repository.back_up_image(&job, &progress()).unwrap();
    assert!(stored.read == 0, "what is whole need not be read again: {stored:?}");
    let fourth = (stored.backup, fourth);
    for (backup, cut) in [&three.other, &third, &fourth] {
        assert_eq!(damage_of(&world, backup), [""; 0]);
        assert!(world.restored(backup) == cut.content);
    }
    for (backup, _) in [&three.first, &three.second] {
        assert_eq!(damage_of(&world, backup).len(), 1);
        assert_eq!(world.restore_error(backup).kind(), ErrorKind::Corrupt);
    }
    // Nothing can be pruned as long as it is not known what those need.
    let error = world.repository.prune(Prune::Now, &progress()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error:?}");
    for (backup, _) in [&three.first, &three.second] {
        world.repository.remove(backup.id).unwrap();
    }
    world.repository.prune(Prune::Now, &progress()).unwrap();
    world.assert_has(&[
        (&three.other.0, &three.other.1),
        (&third.0, &third.1),
        (&fourth.0, &fourth.1),
    ]);
}

#[test]
fn a_store_that_cannot_be_read_is_not_taken_for_damage() {
    let (world, store) = World::faulty();
    let three = Three::new(&world);
    let pack = three.chunk(2).0.id.clone();
    for failure in [Failure::Refused, Failure::Unreachable] {
        let name = pack.clone();
        store.obey(move |verb, path| {
            (verb == Verb::Read && path.ends_with(&name)).then_some(failure)
        });
        let error = world.repository.verify(three.first.0.id, &progress()).unwrap_err();
        let kind = match failure {
            Failure::Refused => ErrorKind::Unsupported,
            Failure::Unreachable => ErrorKind::Unavailable,
            Failure::Full => ErrorKind::OutOfSpace,
        };
        assert_eq!(error.kind(), kind, "{error:?}");
    }
    // It fails once.
    let name = pack.clone();
    let asked = std::sync::atomic::AtomicUsize::new(0);
    store.obey(move |verb, path| {
        let asks = verb == Verb::Read && path.ends_with(&name);
        let fails = asks && asked.fetch_add(1, std::sync::atomic::Ordering::SeqCst) < 1;
        fails.then_some(Failure::Refused)
    });
    match world.repository.verify(three.first.0.id, &progress()) {
        Ok(verified) => assert_eq!(verified.damage, [""; 0]),
        Err(error) => assert_eq!(error.kind(), ErrorKind::Unsupported, "{error:?}"),
    }
    store.obey_nothing();
    assert!(!world.directory().join("holdfast").exists(), "something was noted as damaged");
}
