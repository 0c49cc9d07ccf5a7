use std::time::Duration;

use super::{Trial, progress};
use crate::backend::{ContentRef, CopyCost, Locator};
use crate::error::ErrorKind;
use crate::model::{Outcome, Volume};
use crate::units::ByteSize;

async fn cloned(trial: &Trial, source: ContentRef, name: &str) -> Volume {
    let clone = trial.volume(name);
    let made = trial.snapshots().create_from(source, &clone, &progress(), None).await.unwrap();
    assert_eq!(made, Outcome::Changed);
    trial.renewed(&clone).await;
    clone
}

/// A snapshot of a mounted volume holds what was there when it was frozen, and nothing later.
pub async fn a_snapshot_is_a_point_in_time(trial: &Trial) {
    let volume = trial.created("v").await;
    let mounted = trial.mounted(&volume).await;
    mounted.write("f", "before");
    let snapshot = trial.cut(&volume, Some(&mounted)).await;
    mounted.write("f", "after");
    mounted.write("g", "after");
    let source = ContentRef::Snapshot { volume: volume.uuid, snapshot };
    let clone = cloned(trial, source, "c").await;
    let old = trial.mounted(&clone).await;
    assert_eq!(old.read("f").as_deref(), Some("before"));
    assert_eq!(old.read("g"), None);
    assert_eq!(mounted.read("f").as_deref(), Some("after"));
    trial.unmounted(&clone).await;
    trial.unmounted(&volume).await;
    let usage = trial.backend.usage((&volume).into()).await.unwrap();
    assert!(usage.allocated > 0 && usage.snapshots > 0, "{usage:?}");
}

/// Cutting under the same id again changes nothing; deleting can be repeated and takes one only.
pub async fn a_snapshot_is_made_once(trial: &Trial) {
    let volume = trial.created("v").await;
    trial.mounted(&volume).await.write("f", "one");
    trial.unmounted(&volume).await;
    let (first, other) = (trial.cut(&volume, None).await, trial.cut(&volume, None).await);
    trial.mounted(&volume).await.write("f", "two");
    trial.unmounted(&volume).await;
    let snapshots = trial.snapshots();
    let again = snapshots.snapshot((&volume).into(), first, &progress(), None).await.unwrap();
    assert_eq!(again, Outcome::Unchanged);
    let deleted = snapshots.delete_snapshot(volume.uuid, other).await.unwrap();
    assert_eq!(deleted, Outcome::Changed);
    let deleted = snapshots.delete_snapshot(volume.uuid, other).await.unwrap();
    assert_eq!(deleted, Outcome::Unchanged);
    let gone = ContentRef::Snapshot { volume: volume.uuid, snapshot: other };
    let target = trial.volume("x");
    let error = snapshots.create_from(gone, &target, &progress(), None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(!trial.exists((&target).into()).await);
    let source = ContentRef::Snapshot { volume: volume.uuid, snapshot: first };
    let clone = cloned(trial, source, "c").await;
    assert_eq!(trial.mounted(&clone).await.read("f").as_deref(), Some("one"));
    trial.unmounted(&clone).await;
}

/// Neither sees what is written to the other, they mount side by side, and one outlives the other.
pub async fn a_clone_is_independent_and_mounts_beside_its_source(trial: &Trial) {
    let volume = trial.created("v").await;
    trial.mounted(&volume).await.write("f", "both");
    trial.unmounted(&volume).await;
    let live = ContentRef::Live((&volume).into());
    let clone = cloned(trial, live, "c").await;
    let repeated = trial.snapshots().create_from(live, &clone, &progress(), None).await.unwrap();
    assert_eq!(repeated, Outcome::Unchanged);
    let (one, two) = (trial.mounted(&volume).await, trial.mounted(&clone).await);
    assert_ne!(one.device, two.device);
    assert_eq!(two.read("f").as_deref(), Some("both"));
    one.write("one", "x");
    two.write("two", "x");
    trial.unmounted(&volume).await;
    assert_eq!(two.read("one"), None);
    trial.backend.delete(volume.uuid).await.unwrap().ignore();
    assert_eq!(two.read("f").as_deref(), Some("both"));
    trial.unmounted(&clone).await;
    // Its source is gone, and still a repeat succeeds.
    let repeated = trial.snapshots().create_from(live, &clone, &progress(), None).await.unwrap();
    assert_eq!(repeated, Outcome::Unchanged);
    assert_eq!(trial.mounted(&clone).await.read("two").as_deref(), Some("x"));
    trial.unmounted(&clone).await;
}

/// A larger target has zeros behind the content; a smaller one is refused.
pub async fn a_clone_can_be_larger(trial: &Trial) {
    let volume = trial.created("v").await;
    trial.mounted(&volume).await.write("f", "kept");
    trial.unmounted(&volume).await;
    let live = ContentRef::Live((&volume).into());
    let mut larger = trial.volume("large");
    larger.size = Some(ByteSize::new(trial.size.bytes() * 2));
    let made = trial.snapshots().create_from(live, &larger, &progress(), None).await.unwrap();
    assert_eq!(made, Outcome::Changed);
    trial.renewed(&larger).await;
    let mounted = trial.mounted(&larger).await;
    trial.grown(&larger, &mounted).await;
    let room = trial.host.filesystem_usage(&mounted.target).await.unwrap();
    assert!(room.total > trial.size.bytes() * 3 / 2, "{room:?}");
    assert_eq!(mounted.read("f").as_deref(), Some("kept"));
    trial.unmounted(&larger).await;
    let mut smaller = trial.volume("small");
    smaller.size = Some(ByteSize::new(trial.size.bytes() / 2));
    let refused = trial.snapshots().create_from(live, &smaller, &progress(), None).await;
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Invalid);
    assert!(!trial.exists((&smaller).into()).await);
}

/// A restore makes the next generation beside the present one, which can then be taken away.
pub async fn a_restore_is_a_generation_of_its_own(trial: &Trial) {
    let volume = trial.created("v").await;
    trial.mounted(&volume).await.write("f", "old");
    trial.unmounted(&volume).await;
    let snapshot = trial.cut(&volume, None).await;
    trial.mounted(&volume).await.write("f", "new");
    trial.unmounted(&volume).await;
    let mut restored = volume.clone();
    restored.generation = volume.generation.next();
    let source = ContentRef::Snapshot { volume: volume.uuid, snapshot };
    for expected in [Outcome::Changed, Outcome::Unchanged] {
        let made = trial.snapshots().create_from(source, &restored, &progress(), None).await;
        assert_eq!(made.unwrap(), expected);
    }
    assert!(trial.exists((&volume).into()).await && trial.exists((&restored).into()).await);
    for expected in [Outcome::Changed, Outcome::Unchanged] {
        let deleted = trial.backend.delete_generation((&volume).into()).await.unwrap();
        assert_eq!(deleted, expected);
    }
    assert!(!trial.exists((&volume).into()).await);
    assert_eq!(trial.mounted(&restored).await.read("f").as_deref(), Some("old"));
    trial.unmounted(&restored).await;
    let again = cloned(trial, source, "c").await;
    assert_eq!(trial.mounted(&again).await.read("f").as_deref(), Some("old"));
    trial.unmounted(&again).await;
}

/// A copy that takes longer than its limit is `Busy` and leaves nothing; without a limit it is done.
pub async fn a_copy_gives_up_at_its_limit_and_leaves_nothing(trial: &Trial) {
    let volume = trial.created("v").await;
    let mounted = trial.mounted(&volume).await;
    mounted.write("f", &"x".repeat(10_000));
    trial.unmounted(&volume).await;
    let live = ContentRef::Live((&volume).into());
    let cost = trial.snapshots().copy_cost(live).await.unwrap();
    if let CopyCost::Full { bytes, estimate } = cost {
        assert!(bytes > 0 && estimate > Duration::ZERO);
        let (id, now) = (trial.snapshot_id(), Some(Duration::ZERO));
        let snapshots = trial.snapshots();
        let cut = snapshots.snapshot((&volume).into(), id, &progress(), now).await;
        assert_eq!(cut.unwrap_err().kind(), ErrorKind::Busy);
        let clone = trial.volume("c");
        let made = snapshots.create_from(live, &clone, &progress(), now).await;
        assert_eq!(made.unwrap_err().kind(), ErrorKind::Busy);
        assert!(!trial.exists((&clone).into()).await);
        assert_eq!(trial.backend.usage((&volume).into()).await.unwrap().snapshots, 0);
        let watched = progress();
        let cut = snapshots.snapshot((&volume).into(), id, &watched, None).await.unwrap();
        assert_eq!(cut, Outcome::Changed);
        assert!(watched.done() > 0 && watched.done() == watched.total());
    }
    let status = trial.backend.status().await.unwrap();
    assert!(status.warnings.is_empty(), "{status:?}");
}

/// A call whose caller went away has happened or not; either way it can be repeated.
pub async fn an_abandoned_call_can_be_repeated(trial: &Trial) {
    for polls in 0..4 {
        let volume = trial.volume("v");
        let locator = Locator::from(&volume);
        abandon(trial.backend.create(&volume), polls).await;
        trial.backend.create(&volume).await.unwrap().ignore();
        abandon(trial.backend.attach(locator), polls).await;
        trial.mounted(&volume).await.write("f", "kept");
        trial.unmounted(&volume).await;
        let (id, watched) = (trial.snapshot_id(), progress());
        abandon(trial.snapshots().snapshot(locator, id, &watched, None), polls).await;
        trial.snapshots().snapshot(locator, id, &watched, None).await.unwrap().ignore();
        let source = ContentRef::Snapshot { volume: volume.uuid, snapshot: id };
        let clone = trial.volume("c");
        abandon(trial.snapshots().create_from(source, &clone, &watched, None), polls).await;
        let copy = trial.snapshots().create_from(source, &clone, &watched, None);
        copy.await.unwrap().ignore();
        trial.renewed(&clone).await;
        assert_eq!(trial.mounted(&clone).await.read("f").as_deref(), Some("kept"));
        trial.unmounted(&clone).await;
        abandon(trial.backend.delete(volume.uuid), polls).await;
        trial.backend.delete(volume.uuid).await.unwrap().ignore();
        assert!(!trial.exists(locator).await);
    }
}

/// Polls a call so many times at most, then drops it.
async fn abandon<T>(call: impl Future<Output = T>, polls: u32) {
    let mut call = std::pin::pin!(call);
    for _ in 0..polls {
        let done = std::future::poll_fn(|context| {
            std::task::Poll::Ready(call.as_mut().poll(context).is_ready())
        });
        if done.await {
            return;
        }
        tokio::task::yield_now().await;
    }
}
