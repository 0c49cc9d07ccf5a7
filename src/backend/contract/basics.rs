use std::path::Path;

use super::{Trial, device_of, progress};
use crate::backend::{Description, Locator, MountSource, Presence};
use crate::error::{Error, ErrorKind};
use crate::id::VolumeUuid;
use crate::model::{Content, Outcome, Snapshot, SnapshotOrigin};
use crate::units::ByteSize;

fn kind<T>(result: Result<T, Error>) -> ErrorKind {
    result.err().expect("this has to fail").kind()
}

/// `create` of what exists changes nothing, its content included.
pub async fn creating_twice_makes_one(trial: &Trial) {
    let volume = trial.volume("v");
    assert_eq!(trial.backend.create(&volume).await.unwrap(), Outcome::Changed);
    trial.mounted(&volume).await.write("f", "kept");
    trial.unmounted(&volume).await;
    assert_eq!(trial.backend.create(&volume).await.unwrap(), Outcome::Unchanged);
    assert_eq!(trial.mounted(&volume).await.read("f").as_deref(), Some("kept"));
    trial.unmounted(&volume).await;
    let presence = trial.backend.inspect((&volume).into()).await.unwrap();
    assert_eq!(presence, Presence::Present { size: volume.size, attached: None });
}

/// What was never made is `Absent` and `NotFound`, and taking it away changes nothing.
pub async fn what_was_never_made_is_not_there(trial: &Trial) {
    let volume = trial.volume("v");
    let locator = Locator::from(&volume);
    let backend = &trial.backend;
    assert_eq!(backend.inspect(locator).await.unwrap(), Presence::Absent);
    assert_eq!(kind(backend.attach(locator).await), ErrorKind::NotFound);
    assert_eq!(kind(backend.usage(locator).await), ErrorKind::NotFound);
    assert_eq!(backend.detach(locator).await.unwrap(), Outcome::Unchanged);
    assert_eq!(backend.delete(volume.uuid).await.unwrap(), Outcome::Unchanged);
    assert_eq!(backend.delete_generation(locator).await.unwrap(), Outcome::Unchanged);
    let described = Description { volume, snapshots: Vec::new(), retained: false, schedule: None };
    assert_eq!(kind(backend.describe(&described).await), ErrorKind::NotFound);
    if let Some(grow) = backend.grow() {
        assert_eq!(kind(grow.grow(locator, ByteSize::GIB).await), ErrorKind::NotFound);
    }
    if let Some(snapshots) = backend.snapshots() {
        let id = trial.snapshot_id();
        let cut = snapshots.snapshot(locator, id, &progress(), None).await;
        assert_eq!(kind(cut), ErrorKind::NotFound);
        let deleted = snapshots.delete_snapshot(locator.volume, id).await.unwrap();
        assert_eq!(deleted, Outcome::Unchanged);
    }
    assert!(!trial.exists(locator).await);
    assert!(backend.survey().await.unwrap().is_empty(), "failed calls left something");
}

/// A new volume holds only zeros; one with a filesystem does not.
pub async fn rule_06_a_new_volume_is_blank_and_a_formatted_one_is_not(trial: &Trial) {
    let volume = trial.created("v").await;
    let attachment = trial.backend.attach((&volume).into()).await.unwrap();
    let device = device_of(&attachment);
    assert!(trial.host.is_blank(&device).await.unwrap());
    trial.mounted(&volume).await;
    assert!(!trial.host.is_blank(&device).await.unwrap());
    drop(attachment);
    trial.unmounted(&volume).await;
    assert!(trial.host.is_blank(Path::new("/dev/nonexistent")).await.is_err());
}

/// A volume is attached once, however often it is asked for, and shown by `inspect`.
pub async fn rule_07_attaching_twice_gives_one_device(trial: &Trial) {
    let volume = trial.created("v").await;
    let other = trial.created("w").await;
    let one = trial.backend.attach((&volume).into()).await.unwrap();
    let two = trial.backend.attach((&volume).into()).await.unwrap();
    let others = trial.backend.attach((&other).into()).await.unwrap();
    assert_eq!(one.source, two.source);
    assert_ne!(one.source, others.source);
    let attached = Some(MountSource::Device(device_of(&one)));
    let presence = trial.backend.inspect((&volume).into()).await.unwrap();
    assert_eq!(presence, Presence::Present { size: volume.size, attached });
    drop((one, two, others));
    trial.backend.detach((&volume).into()).await.unwrap().ignore();
    let presence = trial.backend.inspect((&volume).into()).await.unwrap();
    assert_eq!(presence, Presence::Present { size: volume.size, attached: None });
}

/// What was written is there after the volume was detached and attached again.
pub async fn content_survives_detaching(trial: &Trial) {
    let volume = trial.created("v").await;
    for round in 0..3 {
        let mounted = trial.mounted(&volume).await;
        for earlier in 0..round {
            assert_eq!(mounted.read(&format!("f{earlier}")), Some(format!("round {earlier}")));
        }
        mounted.write(&format!("f{round}"), &format!("round {round}"));
        trial.unmounted(&volume).await;
        assert!(!mounted.target.exists(), "the mount directory goes with the mount");
    }
}

/// Nothing that is attached is deleted.
pub async fn rule_08_what_is_attached_is_not_deleted(trial: &Trial) {
    let volume = trial.created("v").await;
    let attachment = trial.backend.attach((&volume).into()).await.unwrap();
    assert_eq!(kind(trial.backend.delete(volume.uuid).await), ErrorKind::InUse);
    let deleted = trial.backend.delete_generation((&volume).into()).await;
    assert_eq!(kind(deleted), ErrorKind::InUse);
    assert!(trial.exists((&volume).into()).await);
    drop(attachment);
    trial.backend.detach((&volume).into()).await.unwrap().ignore();
    assert_eq!(trial.backend.delete(volume.uuid).await.unwrap(), Outcome::Changed);
}

/// Nothing that is mounted is detached or deleted, although nobody holds the attachment any more.
pub async fn rule_08_what_is_mounted_is_neither_detached_nor_deleted(trial: &Trial) {
    let volume = trial.created("v").await;
    let mounted = trial.mounted(&volume).await;
    mounted.write("f", "kept");
    assert_eq!(kind(trial.backend.detach((&volume).into()).await), ErrorKind::InUse);
    assert_eq!(kind(trial.backend.delete(volume.uuid).await), ErrorKind::InUse);
    let deleted = trial.backend.delete_generation((&volume).into()).await;
    assert_eq!(kind(deleted), ErrorKind::InUse);
    assert_eq!(mounted.read("f").as_deref(), Some("kept"));
    trial.unmounted(&volume).await;
}

/// Deleting takes everything of the volume and nothing of another.
pub async fn deleting_leaves_nothing_and_can_be_repeated(trial: &Trial) {
    let (volume, other) = (trial.created("v").await, trial.created("w").await);
    trial.mounted(&other).await.write("f", "other");
    trial.unmounted(&other).await;
    trial.cut(&volume, None).await;
    assert_eq!(trial.backend.delete(volume.uuid).await.unwrap(), Outcome::Changed);
    assert_eq!(trial.backend.delete(volume.uuid).await.unwrap(), Outcome::Unchanged);
    assert!(!trial.exists((&volume).into()).await);
    let left: Vec<VolumeUuid> =
        trial.backend.survey().await.unwrap().iter().map(|found| found.volume).collect();
    assert_eq!(left, [other.uuid]);
    assert_eq!(trial.mounted(&other).await.read("f").as_deref(), Some("other"));
    trial.unmounted(&other).await;
    let status = trial.backend.status().await.unwrap();
    assert!(status.free.is_some() && status.warnings.is_empty(), "{status:?}");
}

/// A mounted volume grows; a smaller size changes nothing.
pub async fn growing_keeps_the_content_and_never_shrinks(trial: &Trial) {
    let volume = trial.created("v").await;
    let locator = Locator::from(&volume);
    let mounted = trial.mounted(&volume).await;
    mounted.write("f", "kept");
    let grow = trial.backend.grow().expect("this suite is for backends that grow");
    let before = trial.host.filesystem_usage(&mounted.target).await.unwrap();
    let larger = ByteSize::new(trial.size.bytes() * 2);
    assert_eq!(grow.grow(locator, larger).await.unwrap(), Outcome::Changed);
    assert_eq!(grow.grow(locator, larger).await.unwrap(), Outcome::Unchanged);
    assert_eq!(grow.grow(locator, trial.size).await.unwrap(), Outcome::Unchanged);
    for _ in 0..2 {
        trial.grown(&volume, &mounted).await;
    }
    let after = trial.host.filesystem_usage(&mounted.target).await.unwrap();
    assert!(after.total > before.total * 3 / 2, "{before:?} {after:?}");
    assert_eq!(mounted.read("f").as_deref(), Some("kept"));
    trial.unmounted(&volume).await;
    let mounted = trial.mounted(&volume).await;
    assert_eq!(mounted.read("f").as_deref(), Some("kept"));
    let presence = trial.backend.inspect(locator).await.unwrap();
    assert!(matches!(presence, Presence::Present { size, .. } if size == Some(larger)));
    trial.unmounted(&volume).await;
}

/// A description is kept whole, in place of the one before, and found without the catalog.
pub async fn descriptions_come_back(trial: &Trial) {
    let (volume, mute) = (trial.created("v").await, trial.created("w").await);
    let mut description = Description {
        volume: volume.clone(),
        snapshots: Vec::new(),
        retained: false,
        schedule: None,
    };
    trial.backend.describe(&description).await.unwrap();
    description.retained = true;
    description.volume.name = "renamed".parse().unwrap();
    description.snapshots.push(Snapshot {
        uuid: trial.snapshot_id(),
        volume: volume.uuid,
        name: "s".parse().unwrap(),
        generation: volume.generation,
        size: volume.size,
        content: Content::Prepared,
        origin: SnapshotOrigin::User,
        complete: true,
        created: jiff::Timestamp::UNIX_EPOCH,
    });
    trial.backend.describe(&description).await.unwrap();
    let found = trial.backend.survey().await.unwrap();
    assert_eq!(found.len(), 2);
    for found in found {
        match found.description {
            Ok(read) => assert_eq!((found.volume, read), (volume.uuid, description.clone())),
            Err(error) => {
                assert_eq!((found.volume, error.kind()), (mute.uuid, ErrorKind::NotFound));
            }
        }
    }
}

/// The host's part: mounting again changes nothing, another device at the same place is refused.
pub async fn mounting_is_idempotent(trial: &Trial) {
    let (volume, other) = (trial.created("v").await, trial.created("w").await);
    let mounted = trial.mounted(&volume).await;
    let beside = trial.mounted(&other).await;
    let again = trial.request(&mounted.device, &mounted.target);
    assert_eq!(trial.host.mount(&again).await.unwrap(), Outcome::Unchanged);
    let wrong = trial.request(&beside.device, &mounted.target);
    assert_eq!(kind(trial.host.mount(&wrong).await), ErrorKind::InUse);
    let mut below = trial.host.mounts_below(&trial.scratch).await.unwrap();
    below.sort_by(|one, other| one.target.cmp(&other.target));
    let mut expected = [mounted.target.clone(), beside.target.clone()];
    expected.sort();
    assert_eq!(below.iter().map(|m| m.target.clone()).collect::<Vec<_>>(), expected);
    assert_eq!(trial.host.bind_mounts_of(&mounted.target).await.unwrap(), 0);
    trial.unmounted(&volume).await;
    trial.unmounted(&other).await;
    assert_eq!(trial.host.unmount(&mounted.target).await.unwrap(), Outcome::Unchanged);
    let mut bogus = trial.request(Path::new("/dev/nonexistent"), &mounted.target);
    assert!(trial.host.mount(&bogus).await.is_err());
    let attachment = trial.backend.attach((&volume).into()).await.unwrap();
    bogus.source = device_of(&attachment).display().to_string();
    bogus.options = vec!["bogus-option".to_owned()];
    trial.host.try_mount(&trial.request(&device_of(&attachment), &mounted.target)).await.unwrap();
    assert_eq!(kind(trial.host.try_mount(&bogus).await), ErrorKind::Invalid);
    let error = trial.host.mount(&bogus).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.full_message().contains("bogus-option"), "{}", error.full_message());
    assert!(trial.host.mounts_below(&trial.scratch).await.unwrap().is_empty());
}

/// The host's part: what is frozen can be frozen again, and thawing is never an error.
pub async fn rule_14_freezing_and_thawing_are_idempotent(trial: &Trial) {
    let volume = trial.created("v").await;
    let mounted = trial.mounted(&volume).await;
    let target = &mounted.target;
    assert_eq!(trial.host.thaw(target).await.unwrap(), Outcome::Unchanged);
    assert_eq!(trial.host.freeze(target).await.unwrap(), Outcome::Changed);
    assert_eq!(trial.host.freeze(target).await.unwrap(), Outcome::Unchanged);
    assert_eq!(trial.host.thaw(target).await.unwrap(), Outcome::Changed);
    assert_eq!(trial.host.thaw(target).await.unwrap(), Outcome::Unchanged);
    mounted.write("f", "after");
    trial.unmounted(&volume).await;
    assert_eq!(kind(trial.host.freeze(&trial.scratch).await), ErrorKind::NotFound);
}
