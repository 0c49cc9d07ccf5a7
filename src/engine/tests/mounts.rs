//! Mounts and who holds them.

use super::*;
use crate::backend::fault::{Call, Fault};
use crate::error::ErrorKind;

#[tokio::test]
async fn rule_04_ids_are_a_ledger_held_against_the_kernel() {
    let world = World::new();
    let engine = world.start().await;
    engine.make("db", &[]).await.unwrap();
    let path = engine.hold("db", "c1").await.unwrap();
    assert_eq!(path, world.data("db"));
    // docker cp
    world.disk.set_users(&world.mounts().join("db"), 1);
    engine.hold("db", "c1").await.unwrap();
    engine.let_go("db", "c1").await.unwrap();
    assert!(path.is_dir(), "the container keeps its volume");
    assert_eq!(engine.let_go("db", "nobody").await.unwrap(), Outcome::Unchanged);
    assert_eq!(engine.let_go("unknown", "c1").await.unwrap(), Outcome::Unchanged);
    assert!(path.is_dir());

    // A killed engine never unmounts, and mounts again with the same id.
    world.clock.forward(Duration::from_secs(130));
    world.disk.set_users(&world.mounts().join("db"), 0);
    engine.hold("db", "c1").await.unwrap();
    engine.let_go("db", "c1").await.unwrap();
    assert!(world.disk.mounts().is_empty() && world.disk.devices().is_empty());

    // A container that is gone for good does not keep the volume from being removed.
    engine.hold("db", "c2").await.unwrap();
    let error = engine.drop_volume("db").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InUse);
    assert!(error.full_message().contains("c2"), "{}", error.full_message());
    world.clock.forward(Duration::from_secs(130));
    engine.drop_volume("db").await.unwrap();
    assert!(world.disk.images().is_empty());
}

#[tokio::test]
async fn rule_04_a_container_that_takes_its_time_to_start_keeps_its_volume() {
    let world = World::new();
    let engine = world.start().await;
    engine.make("db", &[]).await.unwrap();
    engine.hold("db", "c1").await.unwrap();
    // Docker waits two minutes for the mount of the container's next volume.
    world.clock.forward(Duration::from_secs(120));
    engine.drop_volume("db").await.expect_err("the container is on its way");
    world.clock.back(Duration::from_secs(7200));
    engine.drop_volume("db").await.expect_err("a clock that was set back says nothing");
    assert_eq!(world.disk.mounts(), [world.mounts().join("db")]);
    world.clock.forward(Duration::from_secs(7210));
    engine.drop_volume("db").await.unwrap();
}

#[tokio::test]
async fn rule_05_a_mount_that_its_caller_gave_up_on_is_undone() {
    let world = World::new();
    let engine = world.start().await;
    engine.make("db", &[]).await.unwrap();
    world.backend().on(Call::Attach, 1, Fault::Delay(Duration::from_millis(100)));
    let asked = tokio::time::timeout(Duration::from_millis(10), engine.hold("db", "c1")).await;
    assert!(asked.is_err(), "given up");
    for _ in 0..2_000 {
        let over = engine.operations();
        if over.iter().any(|view| view.kind == "unmount") && engine.inner.registry.is_idle() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(world.disk.mounts().is_empty(), "{:?}", engine.operations());
    engine.drop_volume("db").await.unwrap();
}

#[tokio::test]
async fn rule_09_an_empty_volume_is_empty_and_prepared_once() {
    let world = World::new();
    let engine = world.start().await;
    engine.make("db", &[("mode", "0750")]).await.unwrap();
    let path = engine.hold("db", "c1").await.unwrap();
    assert_eq!(std::fs::read_dir(&path).unwrap().count(), 0);
    use std::os::unix::fs::PermissionsExt as _;
    let mode = |path: &PathBuf| std::fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(&path), 0o750);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).unwrap();
    engine.let_go("db", "c1").await.unwrap();
    engine.hold("db", "c1").await.unwrap();
    assert_eq!(mode(&path), 0o700, "set once, at creation");
    engine.let_go("db", "c1").await.unwrap();
    drop(engine);
    let catalog = world.directory.path().join("catalog.redb");
    std::fs::remove_file(&catalog).unwrap();
    rebuild_catalog(&catalog, &[world.backend()], Unreadable::Refuse).await.unwrap();
    let engine = world.start().await;
    engine.hold("db", "c1").await.unwrap();
    assert_eq!(mode(&path), 0o700, "nor does a rebuilt catalog set it again");
}

#[tokio::test]
async fn a_volume_that_cannot_be_described_can_be_mounted() {
    let world = World::new();
    let engine = world.start().await;
    engine.make("db", &[]).await.unwrap();
    world.backend().always(Call::Describe, Fault::FailBefore(ErrorKind::OutOfSpace));
    engine.hold("db", "c1").await.unwrap();
    let warnings = engine.status().await.warnings;
    assert!(warnings.iter().any(|warning| warning.contains("description of volume db")));
}

#[tokio::test]
async fn rule_11_a_volume_that_hangs_delays_no_other() {
    let world = World::new();
    let engine = world.start().await;
    engine.make("stuck", &[]).await.unwrap();
    engine.make("other", &[]).await.unwrap();
    world.backend().on(Call::Attach, 1, Fault::HangBefore);
    let hanging = tokio::spawn({
        let engine = engine.clone();
        async move { engine.hold("stuck", "c1").await }
    });
    while engine.operations().iter().all(|view| view.kind != "mount") {
        tokio::task::yield_now().await;
    }
    engine.hold("other", "c2").await.unwrap();
    assert_eq!(engine.volumes().len(), 2);
    assert!(engine.details(&name("stuck")).await.is_ok());
    hanging.abort();
}

#[tokio::test]
async fn a_mounted_volume_is_told_of_without_asking_its_backend() {
    let world = World::new();
    let engine = world.start().await;
    engine.make("db", &[]).await.unwrap();
    engine.hold("db", "c1").await.unwrap();
    let source = engine.details(&name("db")).await.unwrap().source;
    assert!(source.as_ref().is_some_and(|source| source.starts_with("/dev/sim/")), "{source:?}");
    let (inspected, measured) =
        (world.backend().calls(Call::Inspect), world.backend().calls(Call::Usage));
    for _ in 0..10 {
        assert_eq!(engine.details(&name("db")).await.unwrap().source, source);
    }
    assert_eq!(world.backend().calls(Call::Inspect), inspected);
    assert_eq!(world.backend().calls(Call::Usage), measured);

    // What was mounted before the start is asked for once.
    drop(engine);
    let engine = world.start().await;
    for _ in 0..10 {
        assert_eq!(engine.details(&name("db")).await.unwrap().source, source);
    }
    assert_eq!(world.backend().calls(Call::Inspect), 1);
    engine.let_go("db", "c1").await.unwrap();
    assert_eq!(engine.details(&name("db")).await.unwrap().source, None);
}

#[tokio::test]
async fn after_a_reboot_mount_ids_are_forgotten_and_mounts_are_made_again() {
    let world = World::new();
    let engine = world.start().await;
    engine.make("db", &[]).await.unwrap();
    let path = engine.hold("db", "c1").await.unwrap();
    std::fs::write(path.join("file"), "kept").unwrap();
    drop(engine);
    world.disk.reboot().unwrap();
    let engine = world.start().await;
    assert_eq!(engine.volume(&name("db")).unwrap().mounts, 0);
    let path = engine.hold("db", "c1").await.unwrap();
    assert_eq!(std::fs::read_to_string(path.join("file")).unwrap(), "kept");
    engine.let_go("db", "c1").await.unwrap();
    engine.drop_volume("db").await.unwrap();
}

/// A mount that was broken off before it was read-only, while somebody looked around in it.
#[tokio::test]
async fn a_read_only_volume_that_was_left_writable_is_mounted_read_only() {
    use crate::linux::{Host as _, MountRequest};
    let world = World::new();
    let engine = world.start().await;
    engine.make("db", &[("read-only", "true")]).await.unwrap();
    engine.hold("db", "c1").await.unwrap();
    engine.let_go("db", "c1").await.unwrap();
    let volume = engine.find(&name("db")).unwrap();
    let attached = world.backend().attach(crate::backend::Locator::from(&*volume)).await.unwrap();
    let crate::backend::MountSource::Device(device) = &attached.source else { panic!() };
    let host = SimHost::new(&world.disk);
    let request = MountRequest {
        source: device.display().to_string(),
        filesystem: "ext4".to_owned(),
        target: world.mounts().join("db"),
        options: vec![],
        read_only: false,
    };
    host.mount(&request).await.unwrap().ignore();
    drop(attached);
    engine.hold("db", "c1").await.unwrap();
    let mounts = host.mounts_below(&world.mounts()).await.unwrap();
    assert!(mounts.len() == 1 && mounts[0].read_only, "{mounts:?}");
}
