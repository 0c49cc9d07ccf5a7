use tokio::task::JoinSet;

use super::{Trial, device_of};
use crate::backend::{ContentRef, Locator};
use crate::model::Outcome;

/// Sixteen volumes made, used, copied and deleted at once.
pub async fn sixteen_volumes_do_not_disturb_each_other(trial: &Trial) {
    // Ends the others when one panics.
    let mut lives = JoinSet::new();
    for number in 0..16 {
        let trial = trial.clone();
        lives.spawn(async move { one_life(&trial, number).await });
    }
    while let Some(life) = lives.join_next().await {
        life.unwrap();
    }
    assert!(trial.backend.survey().await.unwrap().is_empty());
    assert!(trial.host.mounts_below(&trial.scratch).await.unwrap().is_empty());
}

async fn one_life(trial: &Trial, number: u32) {
    let text = format!("volume {number}");
    let volume = trial.created(&format!("v{number}")).await;
    let mounted = trial.mounted(&volume).await;
    mounted.write("f", &text);
    let snapshot = trial.cut(&volume, Some(&mounted)).await;
    mounted.write("f", "later");
    let clone = trial.volume(&format!("c{number}"));
    let source = ContentRef::Snapshot { volume: volume.uuid, snapshot };
    let watched = super::progress();
    let copy = trial.snapshots().create_from(source, &clone, &watched, None);
    assert_eq!(copy.await.unwrap(), Outcome::Changed);
    trial.renewed(&clone).await;
    let copy = trial.mounted(&clone).await;
    assert_eq!(copy.read("f").as_deref(), Some(&text[..]));
    assert_eq!(mounted.read("f").as_deref(), Some("later"));
    for volume in [&volume, &clone] {
        trial.unmounted(volume).await;
        assert_eq!(trial.backend.delete(volume.uuid).await.unwrap(), Outcome::Changed);
    }
}

/// The same call many times at once has one effect, and all see it.
pub async fn the_same_call_eight_times_at_once_is_one(trial: &Trial) {
    let volume = trial.volume("v");
    let locator = Locator::from(&volume);
    let tasks: Vec<_> = (0..8)
        .map(|_| {
            let (trial, volume) = (trial.clone(), volume.clone());
            tokio::spawn(async move {
                let outcome = trial.backend.create(&volume).await.unwrap();
                (outcome, trial.backend.attach(locator).await.unwrap())
            })
        })
        .collect();
    let mut attachments = Vec::new();
    let mut made = 0;
    for task in tasks {
        let (outcome, attachment) = task.await.unwrap();
        made += u32::from(outcome == Outcome::Changed);
        attachments.push(attachment);
    }
    assert_eq!(made, 1);
    let device = device_of(&attachments[0]);
    assert!(attachments.iter().all(|attachment| device_of(attachment) == device));
    drop(attachments);
    trial.backend.detach(locator).await.unwrap().ignore();
    let id = trial.snapshot_id();
    let tasks: Vec<_> = (0..8)
        .map(|_| {
            let trial = trial.clone();
            tokio::spawn(async move {
                trial.snapshots().snapshot(locator, id, &super::progress(), None).await.unwrap()
            })
        })
        .collect();
    let mut cut = 0;
    for task in tasks {
        cut += u32::from(task.await.unwrap() == Outcome::Changed);
    }
    assert_eq!(cut, 1);
}
