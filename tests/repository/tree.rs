//! Trees of file volumes.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use holdfast::error::ErrorKind;
use holdfast::id::BackupId;
use holdfast::model::Backup;
use holdfast::repository::{Layout, TreeJob};
use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags};

use crate::world::{Disk, Pack, World, flip, progress};

const MIB: usize = 1 << 20;

/// A file volume.
struct Volume {
    disk: Disk,
    root: PathBuf,
}

impl Volume {
    fn new(world: &World) -> Self {
        let root = world.path().join("volume");
        fs::create_dir(&root).unwrap();
        Self { disk: Disk::new(7, 0), root }
    }

    fn at(&self, path: impl AsRef<Path>) -> PathBuf {
        self.root.join(path)
    }

    fn write(&self, path: impl AsRef<Path>, content: impl AsRef<[u8]>) {
        fs::write(self.at(path), content).unwrap();
    }

    /// A job whose snapshot is taken when all that was written before has settled.
    fn job(&mut self, base: Option<BackupId>) -> TreeJob {
        let mut manifest = self.disk.cut().job(None).manifest;
        let later = jiff::Timestamp::now().as_second() + 60;
        manifest.snapshot.created = jiff::Timestamp::from_second(later).unwrap();
        manifest.snapshot.size = None;
        manifest.volume.size = None;
        manifest.volume.filesystem = None;
        TreeJob { manifest, directory: self.root.clone(), base, scheduled: false }
    }

    fn back_up(&mut self, world: &World, base: Option<BackupId>) -> (Backup, u64) {
        let stored = world.repository.back_up_tree(&self.job(base), &progress()).unwrap();
        (stored.backup, stored.read)
    }
}

/// Bytes that nothing compresses.
fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut disk = Disk::new(1, length);
    disk.fill(0..length, seed);
    disk.content
}

fn set_attribute(path: &Path, name: &str, value: &[u8]) {
    rustix::fs::lsetxattr(path, name, value, XattrFlags::empty()).unwrap();
}

/// Everything of a tree that a user can see, by path.
fn seen(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut all = BTreeMap::new();
    let mut left = vec![PathBuf::new()];
    while let Some(path) = left.pop() {
        let real = root.join(&path);
        let meta = fs::symlink_metadata(&real).unwrap();
        let kind = meta.file_type();
        let mut told = format!(
            "{:o} {}:{} {}.{:09} {:?}",
            meta.mode(),
            meta.uid(),
            meta.gid(),
            meta.mtime(),
            meta.mtime_nsec(),
            attributes(&real),
        );
        if kind.is_dir() {
            left.extend(
                fs::read_dir(&real).unwrap().map(|one| path.join(one.unwrap().file_name())),
            );
        } else if kind.is_file() {
            told += &format!(" {} {:?}", meta.nlink(), uuid_of(&fs::read(&real).unwrap()));
        } else if kind.is_symlink() {
            told += &format!(" {:?}", fs::read_link(&real).unwrap());
        } else {
            told += &format!(" {:x}", meta.rdev());
        }
        all.insert(path, told);
    }
    all
}

/// Stands for a content, so that a difference is short to print.
fn uuid_of(content: &[u8]) -> (usize, u64) {
    use std::hash::{DefaultHasher, Hasher};
    let mut hasher = DefaultHasher::new();
    hasher.write(content);
    (content.len(), hasher.finish())
}

fn attributes(path: &Path) -> BTreeMap<OsString, Vec<u8>> {
    let mut names = vec![0; 4096];
    let length = rustix::fs::llistxattr(path, &mut names[..]).unwrap();
    let names = names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    names
        .map(|name| {
            let name = OsStr::from_bytes(name);
            let mut value = vec![0; 65536];
            let length = rustix::fs::lgetxattr(path, name, &mut value[..]).unwrap();
            value.truncate(length);
            (name.to_owned(), value)
        })
        .collect()
}

fn restored(world: &World, backup: &Backup) -> PathBuf {
    let target = world.path().join(format!("ours-{}", backup.id.short()));
    fs::create_dir(&target).unwrap();
    world.repository.restore_tree(backup.id, &target, &progress()).unwrap();
    target
}

fn restored_by_restic(world: &World, backup: &Backup) -> PathBuf {
    let target = world.path().join(format!("restic-{}", backup.id.short()));
    world.restic(&["restore", &backup.id.to_string(), "--target", target.to_str().unwrap()]);
    target.join("data")
}

fn assert_same(one: &Path, other: &Path) {
    let (one, other) = (seen(one), seen(other));
    for (path, told) in &one {
        assert_eq!(Some(told), other.get(path), "{}", path.display());
    }
    assert_eq!(one.len(), other.len());
}

/// One of everything that a filesystem can hold and restic keeps.
fn fill(volume: &Volume) {
    volume.write("plain", "content");
    volume.write("empty", "");
    volume.write("large", noise(11 * MIB + 77, 1));
    volume.write("one chunk", noise(512 << 10, 2));
    fs::create_dir_all(volume.at("a/b/c/empty")).unwrap();
    for i in 0..40 {
        volume.write(format!("a/b/{i}"), format!("file {i}"));
    }
    fs::hard_link(volume.at("large"), volume.at("a/linked")).unwrap();
    symlink("../plain", volume.at("a/link")).unwrap();
    symlink("/nowhere", volume.at("dangling")).unwrap();
    volume.write(OsStr::from_bytes(b"not \xff utf-8 \\ \" \n"), "named");
    volume.write("set-user-id", "x");
    fs::set_permissions(volume.at("set-user-id"), PermissionsExt::from_mode(0o6755)).unwrap();
    fs::set_permissions(volume.at("a/b"), PermissionsExt::from_mode(0o1777)).unwrap();
    volume.write("unreadable by all", "x");
    fs::set_permissions(volume.at("unreadable by all"), PermissionsExt::from_mode(0o000)).unwrap();
    std::os::unix::fs::lchown(volume.at("dangling"), Some(12), Some(34)).unwrap();
    std::os::unix::fs::lchown(volume.at("a"), Some(4_000_000_000), Some(5)).unwrap();
    let special = |name, kind, device| {
        let mode = Mode::from_raw_mode(0o640);
        rustix::fs::mknodat(CWD, volume.at(name), kind, mode, device).unwrap();
    };
    special("fifo", FileType::Fifo, 0);
    special("null", FileType::CharacterDevice, rustix::fs::makedev(1, 3));
    special("disk", FileType::BlockDevice, rustix::fs::makedev(7, 200));
    set_attribute(&volume.at("plain"), "user.colour", b"red\0\xff");
    set_attribute(&volume.at("plain"), "user.nothing", b"");
    set_attribute(&volume.at("plain"), "user.long", &[b'x'; 3000]);
    set_attribute(&volume.at("a/b"), "trusted.level", b"3");
    // An access list: a version, and the entries of owner, user 1000, group, mask and others.
    let list = [
        &2_u32.to_le_bytes()[..],
        &[1, 0, 6, 0, 255, 255, 255, 255],
        &[2, 0, 4, 0, 232, 3, 0, 0],
        &[4, 0, 4, 0, 255, 255, 255, 255],
        &[16, 0, 4, 0, 255, 255, 255, 255],
        &[32, 0, 4, 0, 255, 255, 255, 255],
    ]
    .concat();
    set_attribute(&volume.at("empty"), "system.posix_acl_access", &list);
    let sparse = File::create(volume.at("sparse")).unwrap();
    sparse.set_len(64 << 20).unwrap();
    sparse.write_all_at(b"here", 40 << 20).unwrap();
    sparse.write_all_at(b"end", (64 << 20) - 3).unwrap();
    let old = Timespec { tv_sec: -86_401, tv_nsec: 123_456_789 };
    let times = Timestamps { last_access: old, last_modification: old };
    for name in ["plain", "dangling", "a/b/c"] {
        rustix::fs::utimensat(CWD, volume.at(name), &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    }
    fs::set_permissions(&volume.root, PermissionsExt::from_mode(0o2750)).unwrap();
    std::os::unix::fs::chown(&volume.root, Some(999), Some(998)).unwrap();
}

#[test]
fn all_that_a_filesystem_holds_comes_back_by_us_and_by_plain_restic() {
    let world = World::new();
    let mut volume = Volume::new(&world);
    fill(&volume);
    let (backup, _) = volume.back_up(&world, None);
    assert_eq!(world.repository.backups().unwrap(), [backup.clone().into()]);
    world.assert_sound();
    assert_eq!(world.repository.manifest(backup.id).unwrap().layout, Layout::Files);
    let ours = restored(&world, &backup);
    assert_same(&volume.root, &ours);
    assert_same(&volume.root, &restored_by_restic(&world, &backup));
    let inode = |path: &str| fs::metadata(ours.join(path)).unwrap().ino();
    assert_eq!(inode("large"), inode("a/linked"));
    let blocks = fs::metadata(ours.join("sparse")).unwrap().blocks();
    assert!(blocks < 64, "holes are holes again, not {blocks} blocks");
    let files: u64 = [7, 11 * MIB + 77, 512 << 10, 64 * MIB, 5 + 2].iter().map(|n| *n as u64).sum();
    let small: u64 = (0..40).map(|i| format!("file {i}").len() as u64).sum();
    let verified = world.repository.verify(backup.id, &progress()).unwrap();
    assert_eq!((verified.bytes, verified.damage), (files + small, vec![]));
}

#[test]
fn what_restic_does_not_keep_comes_back_by_us() {
    let world = World::new();
    let mut volume = Volume::new(&world);
    let _listener = std::os::unix::net::UnixListener::bind(volume.at("socket")).unwrap();
    symlink(OsStr::from_bytes(b"to \xff"), volume.at("link")).unwrap();
    let (backup, _) = volume.back_up(&world, None);
    world.assert_sound();
    let ours = restored(&world, &backup);
    assert_same(&volume.root, &ours);
    assert!(fs::symlink_metadata(ours.join("socket")).unwrap().file_type().is_socket());
}

#[test]
fn only_what_has_changed_is_read_again() {
    let world = World::new();
    let mut volume = Volume::new(&world);
    fs::create_dir(volume.at("d")).unwrap();
    volume.write("d/kept", noise(3 * MIB, 1));
    volume.write("changed", noise(2 * MIB, 2));
    volume.write("removed", noise(MIB, 3));
    let (first, read) = volume.back_up(&world, None);
    assert_eq!(read, 6 * MIB as u64);
    let before = seen(&volume.root);

    // As large as it was, and its time of modification set back.
    let modified = fs::metadata(volume.at("changed")).unwrap().modified().unwrap();
    volume.write("changed", noise(2 * MIB, 4));
    File::options().write(true).open(volume.at("changed")).unwrap().set_modified(modified).unwrap();
    fs::remove_file(volume.at("removed")).unwrap();
    volume.write("d/new", noise(MIB, 5));
    fs::rename(volume.at("d/kept"), volume.at("d/renamed")).unwrap();
    fs::hard_link(volume.at("d/renamed"), volume.at("d/kept")).unwrap();
    let (second, _) = volume.back_up(&world, Some(first.id));
    assert_eq!(second.parent, Some(first.id));
    let (third, read) = volume.back_up(&world, Some(second.id));
    assert_eq!(read, 0, "nothing has changed");
    volume.write("d/new", noise(MIB, 6));
    let (fourth, read) = volume.back_up(&world, Some(third.id));
    assert_eq!(read, MIB as u64, "one file has");
    world.assert_sound();
    assert_same(&volume.root, &restored(&world, &fourth));
    let ours = seen(&restored(&world, &first));
    assert!(ours == before);
}

#[test]
fn a_file_that_changed_about_when_the_base_was_cut_is_read_again() {
    let world = World::new();
    let mut volume = Volume::new(&world);
    volume.write("file", noise(MIB, 1));
    let mut job = volume.job(None);
    job.manifest.snapshot.created = jiff::Timestamp::now();
    let first = world.repository.back_up_tree(&job, &progress()).unwrap().backup;
    let (_, read) = volume.back_up(&world, Some(first.id));
    assert_eq!(read, MIB as u64);
}

#[test]
fn a_file_that_cannot_be_read_leaves_no_backup() {
    let world = World::new();
    let mut volume = Volume::new(&world);
    // The files there tell a size that they do not have.
    volume.root = PathBuf::from("/sys/devices/system/cpu");
    let error = world.repository.back_up_tree(&volume.job(None), &progress()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict, "{}", error.full_message());
    assert!(error.full_message().contains("became shorter"), "{}", error.full_message());
    assert_eq!(world.repository.backups().unwrap(), []);
    world.assert_sound();
}

#[test]
fn an_attribute_that_cannot_be_stored_leaves_no_backup() {
    let world = World::new();
    let mut volume = Volume::new(&world);
    volume.write("file", "x");
    let name = OsStr::from_bytes(b"user.\xff");
    rustix::fs::setxattr(volume.at("file"), name, b"x", XattrFlags::empty()).unwrap();
    let error = world.repository.back_up_tree(&volume.job(None), &progress()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{}", error.full_message());
    assert_eq!(world.repository.backups().unwrap(), []);
}

#[test]
fn a_cancelled_backup_is_none_and_a_cancelled_restore_fails() {
    let world = World::new();
    let mut volume = Volume::new(&world);
    volume.write("file", noise(MIB, 1));
    let cancelled = progress();
    cancelled.cancel();
    let error = world.repository.back_up_tree(&volume.job(None), &cancelled).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
    assert_eq!(world.repository.backups().unwrap(), []);
    let (backup, _) = volume.back_up(&world, None);
    let target = world.path().join("target");
    fs::create_dir(&target).unwrap();
    let error = world.repository.restore_tree(backup.id, &target, &cancelled).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
}

#[test]
fn a_restore_goes_only_into_an_empty_directory_and_only_for_files() {
    let world = World::new();
    let mut volume = Volume::new(&world);
    volume.write("file", "x");
    let (backup, _) = volume.back_up(&world, None);
    let error = world.repository.restore_tree(backup.id, &volume.root, &progress()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    let mut disk = Disk::new(9, 4096);
    let image = world.repository.back_up_image(&disk.cut().job(None), &progress()).unwrap().backup;
    let target = world.path().join("target");
    fs::create_dir(&target).unwrap();
    let error = world.repository.restore_tree(image.id, &target, &progress()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
}

/// The packs of the repository, with their sizes.
fn packs(world: &World) -> Vec<(PathBuf, u64)> {
    let directories = fs::read_dir(world.directory().join("data")).unwrap();
    let files = directories.flat_map(|one| fs::read_dir(one.unwrap().path()).unwrap());
    let mut packs: Vec<_> = files
        .map(|file| file.unwrap())
        .map(|file| (file.path(), file.metadata().unwrap().len()))
        .collect();
    packs.sort_by_key(|(_, size)| *size);
    packs
}

#[test]
fn all_directories_that_are_damaged_are_told() {
    let world = World::new();
    let mut volume = Volume::new(&world);
    for (directory, size) in [("a", 1000), ("b/deep", 2000), ("c", 4000)] {
        fs::create_dir_all(volume.at(directory)).unwrap();
        volume.write(format!("{directory}/file"), noise(size, size as u64));
    }
    let (backup, _) = volume.back_up(&world, None);
    let cat = |kind: &str, id: &str| -> serde_json::Value {
        serde_json::from_str(&world.restic(&["cat", kind, id])).unwrap()
    };
    let root = cat("snapshot", &backup.id.to_string())["tree"].as_str().unwrap().to_owned();
    let tree_of = |path: &str| {
        path.split('/').fold(root.clone(), |tree, name| {
            let tree = cat("blob", &tree);
            let mut nodes = tree["nodes"].as_array().unwrap().iter();
            let node = nodes.find(|node| node["name"] == name).unwrap();
            node["subtree"].as_str().unwrap().to_owned()
        })
    };
    let packs = world.packs();
    for id in ["data/a", "data/b/deep"].map(tree_of) {
        let at = |pack: &Pack| pack.blobs.iter().find(|blob| blob.id == id).map(|blob| blob.offset);
        let (pack, offset) = packs.iter().find_map(|pack| Some((pack, at(pack)?))).unwrap();
        flip(&pack.path, offset + 20);
    }
    let found = world.repository.verify(backup.id, &progress()).unwrap();
    assert_eq!(found.damage.len(), 2, "{found:?}");
    assert!(found.damage[0].starts_with("the directory /a in pack"), "{found:?}");
    assert!(found.damage[1].starts_with("the directory /b/deep in pack"), "{found:?}");
    assert_eq!(found.bytes, 4000, "what is beside them was read");
    let target = world.path().join("target");
    fs::create_dir(&target).unwrap();
    let error = world.repository.restore_tree(backup.id, &target, &progress()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error:?}");
    assert_eq!(fs::read_dir(&target).unwrap().count(), 0, "nothing is made of a part");
}

#[test]
fn damage_is_told_by_name_and_mended_by_the_next_backup() {
    let world = World::new();
    let mut volume = Volume::new(&world);
    fs::create_dir(volume.at("d")).unwrap();
    volume.write("d/file", noise(3 * MIB, 1));
    let (backup, _) = volume.back_up(&world, None);
    for (number, (pack, size)) in packs(&world).into_iter().enumerate() {
        let whole = fs::read(&pack).unwrap();
        let mut damaged = whole.clone();
        // Where a chunk or a tree begins, behind its nonce.
        damaged[20] ^= 1;
        fs::set_permissions(&pack, PermissionsExt::from_mode(0o600)).unwrap();
        fs::write(&pack, &damaged).unwrap();
        let verified = world.repository.verify(backup.id, &progress()).unwrap();
        assert_eq!(verified.damage.len(), 1, "{verified:?}");
        let told = pack.file_name().unwrap().to_str().unwrap();
        assert!(verified.damage[0].contains(told), "{verified:?}");
        let target = world.path().join(format!("target-{number}"));
        fs::create_dir(&target).unwrap();
        let error = world.repository.restore_tree(backup.id, &target, &progress()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{}", error.full_message());
        assert!(error.full_message().contains(told), "{}", error.full_message());
        match size > MIB as u64 {
            true => assert!(verified.damage[0].contains("of /d/file"), "{verified:?}"),
            false => fs::write(&pack, &whole).unwrap(),
        }
    }
    let (next, _) = volume.back_up(&world, Some(backup.id));
    assert_same(&volume.root, &restored(&world, &next));
    let verified = world.repository.verify(next.id, &progress()).unwrap();
    assert_eq!(verified.damage, Vec::<String>::new());
}

#[test]
fn a_tree_deeper_than_a_stack_is_stored_and_one_deeper_than_a_path_is_refused() {
    let world = World::new();
    let mut volume = Volume::new(&world);
    let mut at = File::open(&volume.root).unwrap();
    let mut deepen = |levels: usize| {
        for _ in 0..levels {
            rustix::fs::mkdirat(&at, "d", Mode::from_raw_mode(0o755)).unwrap();
            let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY;
            at = rustix::fs::openat(&at, "d", flags, Mode::empty()).unwrap().into();
        }
    };
    deepen(1500);
    let (backup, _) = volume.back_up(&world, None);
    let verified = world.repository.verify(backup.id, &progress()).unwrap();
    assert_eq!(verified.damage, Vec::<String>::new());
    deepen(1000);
    let error = world.repository.back_up_tree(&volume.job(None), &progress()).unwrap_err();
    assert!(error.full_message().contains("name too long"), "{}", error.full_message());
    assert_eq!(world.repository.backups().unwrap().len(), 1);
}

#[test]
fn removed_backups_of_files_are_pruned() {
    let world = World::new();
    let mut volume = Volume::new(&world);
    volume.write("old", noise(4 * MIB, 1));
    volume.write("kept", noise(MIB, 2));
    let (first, _) = volume.back_up(&world, None);
    fs::remove_file(volume.at("old")).unwrap();
    let (second, _) = volume.back_up(&world, Some(first.id));
    world.repository.remove(first.id).unwrap();
    let pruned = world.repository.prune(holdfast::repository::Prune::Now, &progress()).unwrap();
    assert!(pruned.removed > 4 * MIB as u64, "{pruned:?}");
    world.assert_sound();
    assert_same(&volume.root, &restored(&world, &second));
}
