//! What cannot be used says so in its own words, and no word of the password.

use std::path::Path;
use std::sync::Arc;

use aes256ctr_poly1305aes::aead::Aead;
use aes256ctr_poly1305aes::{Aes256CtrPoly1305Aes, Key, Nonce};
use holdfast::error::{Error, ErrorKind};
use holdfast::repository::{Location, Prune, Repository, Secret, SecretSource};
use rustic_core::repofile::MasterKey;

use crate::world::{Disk, Mounted, PASSWORD, World, progress};

const MIB: usize = 1 << 20;

/// Every way to use a repository fails with an error of this kind, these words and this hint.
fn assert_unusable(repository: &Repository, kind: ErrorKind, says: &str, hint: &str) {
    let cut = Disk::new(1, MIB).cut();
    let errors: [Error; 4] = [
        repository.back_up_image(&cut.job(None), &progress()).unwrap_err(),
        repository.backups().unwrap_err(),
        repository.prune(Prune::Plan, &progress()).unwrap_err(),
        repository.check(&progress()).unwrap_err(),
    ];
    for error in errors {
        assert_eq!(error.kind(), kind, "{error:?}");
        let message = error.full_message();
        assert!(message.contains(says) && message.contains("repository main at "), "{message}");
        assert!(!message.contains('\n') && message.len() < 500, "{message}");
        let given = error.hint_text().unwrap_or_default();
        assert!(given.contains(hint), "{given:?}");
        assert!(!format!("{error:?}").contains(PASSWORD));
    }
}

#[test]
fn a_wrong_password() {
    let world = World::new();
    let other = world.other(|settings| {
        settings.password = SecretSource::Given(Secret::new("wrong"));
    });
    assert_unusable(&other, ErrorKind::Unsupported, "the password is wrong", "password_file");
    assert_eq!(other.init().unwrap_err().kind(), ErrorKind::Unsupported);
    world.assert_has(&[]);
}

#[test]
fn no_repository_and_no_directory() {
    let world = World::without_repository();
    let (kind, says) = (ErrorKind::NotFound, "there is no directory");
    assert_unusable(&world.repository, kind, says, "mount what belongs there");
    std::fs::create_dir(world.directory()).unwrap();
    let says = "there is no repository there";
    assert_unusable(&world.repository, kind, says, "`holdfast repository init main`");
    let file = world.path().join("file");
    std::fs::write(&file, "").unwrap();
    let other = world.other(|settings| settings.location = Location::Directory(file));
    assert_unusable(&other, ErrorKind::Unsupported, "cannot", "");
}

#[test]
fn a_repository_that_has_lost_its_config_is_not_made_anew() {
    let world = World::new();
    let cut = Disk::new(1, MIB).cut();
    world.repository.back_up_image(&cut.job(None), &progress()).unwrap();
    std::fs::remove_file(world.directory().join("config")).unwrap();
    let error = world.other(|_| {}).init().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error:?}");
    assert!(error.full_message().contains("has lost its file `config`"), "{error:?}");
    assert_eq!(std::fs::read_dir(world.directory().join("keys")).unwrap().count(), 1);
}

#[test]
fn a_store_that_may_only_be_read() {
    let world = World::without_repository();
    let disk = Mounted::tmpfs(&world.directory(), "size=64m");
    world.repository.init().unwrap();
    let mut volume = Disk::new(1, 3 * MIB);
    volume.fill(0..MIB, 1);
    let cut = volume.cut();
    let backup = world.repository.back_up_image(&cut.job(None), &progress()).unwrap().backup;
    disk.remount("ro");
    assert!(world.restored(&backup) == cut.content);
    let verified = world.repository.verify(backup.id, &progress()).unwrap();
    assert_eq!((verified.bytes, verified.damage), (3 * MIB as u64, vec![]));
    assert_eq!(world.repository.check(&progress()).unwrap(), [""; 0]);
    assert_eq!(world.repository.backups().unwrap().len(), 1);
    for error in [
        world.repository.back_up_image(&cut.job(None), &progress()).unwrap_err(),
        world.repository.prune(Prune::Now, &progress()).unwrap_err(),
        world.repository.remove(backup.id).unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error:?}");
        assert!(error.full_message().contains("Read-only file system"), "{error:?}");
        assert!(error.hint_text().unwrap().contains("it may only be read"), "{error:?}");
    }
}

#[test]
fn other_versions_of_the_format() {
    let world = World::without_repository();
    world.restic(&["init", "--repository-version", "1"]);
    let says = "it has version 1 of the format";
    assert_unusable(&world.repository, ErrorKind::Unsupported, says, "restic migrate");

    let world = World::new();
    let key = master_key(&world);
    let mut config: serde_json::Value =
        serde_json::from_str(&world.restic(&["cat", "config"])).unwrap();
    config["version"] = 3.into();
    let sealed = seal(&key, &serde_json::to_vec(&config).unwrap());
    std::fs::write(world.directory().join("config"), sealed).unwrap();
    let other = world.other(|_| {});
    let says = "it has version 3 of the format";
    assert_unusable(&other, ErrorKind::Unsupported, says, "newer version of Holdfast");
}

fn master_key(world: &World) -> MasterKey {
    serde_json::from_str(&world.restic(&["cat", "masterkey"])).unwrap()
}

fn seal(key: &MasterKey, plain: &[u8]) -> Vec<u8> {
    let bytes: [u8; 64] = [&key.encrypt[..], &key.mac.k, &key.mac.r].concat().try_into().unwrap();
    let nonce = [7; 16];
    let cipher = Aes256CtrPoly1305Aes::new(&Key::from(bytes));
    let sealed = cipher.encrypt(&Nonce::from(nonce), plain).unwrap();
    [&nonce[..], &sealed].concat()
}

#[test]
fn a_password_file_that_is_missing_or_empty() {
    let world = World::new();
    let file = world.path().join("password");
    let other = |file: &Path| {
        let source = SecretSource::File(file.to_owned());
        world.other(move |settings| settings.password = source)
    };
    let says = format!("cannot read the password file {}", file.display());
    assert_unusable(&other(&file), ErrorKind::NotFound, &says, "first line");
    for empty in ["", "\n", "\nsecond line\n"] {
        std::fs::write(&file, empty).unwrap();
        let says = format!("the password file {} is empty", file.display());
        assert_unusable(&other(&file), ErrorKind::Invalid, &says, "first line");
    }
    std::fs::write(&file, format!("{PASSWORD}\nanother line\n")).unwrap();
    assert!(other(&file).backups().unwrap().is_empty());
}

#[test]
#[ignore = "run by the test below"]
fn uses_and_logs_everything() {
    tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).init();
    let world = World::in_child();
    let mut disk = Disk::new(1, 2 * MIB);
    disk.fill(0..MIB, 1);
    println!("{:?} {:?}", world.repository, world.repository.init());
    let cut = disk.cut();
    let backup = world.repository.back_up_image(&cut.job(None), &Arc::default()).unwrap().backup;
    println!("{:?}", world.repository.verify(backup.id, &progress()));
    println!("{:?}", world.repository.prune(Prune::Mark, &progress()));
    let keys = world.repository.location().to_string() + "/keys";
    for key in std::fs::read_dir(keys).unwrap() {
        std::fs::write(key.unwrap().path(), "x").unwrap();
    }
    println!("{:?}", world.other(|_| {}).backups());
    for process in std::fs::read_dir("/proc").unwrap().flatten() {
        let words = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
        println!("{}", String::from_utf8_lossy(&words));
    }
    println!("done");
}

#[test]
fn the_password_is_in_no_log_and_no_argument() {
    let world = World::new();
    let output = world.child("errors::uses_and_logs_everything").output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("done"), "{said}");
    assert!(!said.contains(PASSWORD), "{said}");
}
