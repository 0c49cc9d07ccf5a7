//! Random histories in which the engine is stopped dead before or after any call to the backend, and
//! another one goes on with the same disk and catalog. A model tells what must be there.

use proptest::prelude::Rng as _;
use proptest::test_runner::{RngAlgorithm, TestRng};

use super::*;
use crate::backend::fault::{Call, Fault};
use crate::error::ErrorKind;

/// Steps in `scripts/test`; `scripts/soak` sets more.
const STEPS: u32 = 200;

/// What a user would expect: the content of each volume and of its snapshots.
type Model = BTreeMap<String, Expected>;

#[derive(Debug, Clone, Default, PartialEq)]
struct Expected {
    content: String,
    snapshots: BTreeMap<String, String>,
}

#[derive(Debug, Clone)]
enum Step {
    Create(String),
    Remove(String),
    Write(String, String),
    Snapshot(String, String),
    RemoveSnapshot(String, String),
    Restore(String, String),
    Clone(String, String),
    Resize(String, u32),
    Rename(String, String),
}

struct Random(TestRng);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0.next_u32() as usize % bound
    }

    fn of<T: Clone>(&mut self, list: &[T]) -> T {
        list[self.below(list.len())].clone()
    }

    fn step(&mut self, number: u32) -> Step {
        let volume = |random: &mut Self| random.of(&["a", "b", "c", "d"]).to_owned();
        let snapshot = |random: &mut Self| random.of(&["s1", "s2", "s3"]).to_owned();
        let name = volume(self);
        match self.below(12) {
            0..=1 => Step::Create(name),
            2 => Step::Remove(name),
            3..=5 => Step::Write(name, format!("written by step {number}")),
            6 => Step::Snapshot(name, snapshot(self)),
            7 => Step::RemoveSnapshot(name, snapshot(self)),
            8 => Step::Restore(name, snapshot(self)),
            9 => Step::Clone(name, volume(self)),
            10 => Step::Resize(name, 1 + number / 10),
            _ => Step::Rename(name, volume(self)),
        }
    }
}

/// The model after the step, if the step is possible.
fn expect(model: &Model, step: &Step) -> Option<Model> {
    let mut after = model.clone();
    match step {
        Step::Create(name) => {
            after.entry(name.clone()).or_default();
        }
        Step::Remove(name) => drop(after.remove(name)?),
        Step::Write(name, text) => after.get_mut(name)?.content.clone_from(text),
        Step::Snapshot(name, snapshot) => {
            let volume = after.get_mut(name)?;
            let content = volume.content.clone();
            if volume.snapshots.insert(snapshot.clone(), content).is_some() {
                return None;
            }
        }
        Step::RemoveSnapshot(name, snapshot) => {
            drop(after.get_mut(name)?.snapshots.remove(snapshot)?);
        }
        Step::Restore(name, snapshot) => {
            let volume = after.get_mut(name)?;
            volume.content = volume.snapshots.get(snapshot)?.clone();
        }
        Step::Clone(name, new) => {
            let content = after.get(name)?.content.clone();
            if after.contains_key(new) {
                return None;
            }
            after.insert(new.clone(), Expected { content, ..Expected::default() });
        }
        Step::Resize(name, _) => drop(after.get(name)?),
        Step::Rename(name, new) => {
            if name == new || after.contains_key(new) {
                return None;
            }
            let volume = after.remove(name)?;
            after.insert(new.clone(), volume);
        }
    }
    Some(after)
}

/// The calls that the step makes, each a place to be stopped at.
fn calls_of(step: &Step) -> &'static [Call] {
    match step {
        Step::Create(_) => &[Call::Create, Call::Attach, Call::Detach, Call::Describe],
        Step::Remove(_) => &[Call::Detach, Call::Inspect, Call::Delete],
        Step::Write(..) => &[Call::Attach, Call::Detach],
        Step::Snapshot(..) => &[Call::Snapshot, Call::Describe],
        Step::RemoveSnapshot(..) => &[Call::DeleteSnapshot, Call::Describe],
        Step::Restore(..) => {
            &[Call::Snapshot, Call::CreateFrom, Call::Describe, Call::DeleteGeneration]
        }
        Step::Clone(..) => &[Call::CreateFrom, Call::Attach, Call::Detach, Call::Describe],
        Step::Resize(..) => &[Call::Grow, Call::Describe],
        Step::Rename(..) => &[Call::Describe],
    }
}

async fn perform(engine: &Engine, step: &Step) -> Result<()> {
    let change = engine.change(None);
    let at = |volume: &str, snapshot: &str| reference(&format!("{volume}@{snapshot}"));
    match step {
        Step::Create(volume) => engine.make(volume, &[]).await.map(Outcome::ignore),
        Step::Remove(volume) => engine.drop_volume(volume).await.map(Outcome::ignore),
        Step::Write(volume, text) => {
            let path = engine.hold(volume, "writer").await?;
            std::fs::write(path.join("draft"), text).unwrap();
            std::fs::rename(path.join("draft"), path.join("file")).unwrap();
            engine.let_go(volume, "writer").await.map(Outcome::ignore)
        }
        Step::Snapshot(volume, s) => {
            change.snapshot(at(volume, s), None).await.map(Outcome::ignore)
        }
        Step::RemoveSnapshot(volume, s) => {
            change.remove_snapshot(at(volume, s)).await.map(Outcome::ignore)
        }
        Step::Restore(volume, s) => change.restore(at(volume, s)).await.map(drop),
        Step::Clone(volume, new) => {
            engine.make(new, &[("clone-of", volume)]).await.map(Outcome::ignore)
        }
        Step::Resize(volume, gigabytes) => {
            let size = format!("{}G", gigabytes + 10).parse().unwrap();
            match change.resize(name(volume), size).await {
                Err(error) if error.kind() == ErrorKind::Invalid => Ok(()),
                other => other.map(Outcome::ignore),
            }
        }
        Step::Rename(volume, new) => {
            change.rename(name(volume), name(new)).await.map(Outcome::ignore)
        }
    }
}

/// What is really there. Gives up what a writer that was interrupted still holds.
async fn observe(world: &World, engine: &Engine) -> Model {
    engine.settled().await;
    let mut model = Model::new();
    for volume in engine.volumes() {
        let text = volume.name.to_string();
        while engine.let_go(&text, "writer").await.unwrap() == Outcome::Changed {}
        let path = engine.hold(&text, "observer").await.unwrap();
        let content = std::fs::read_to_string(path.join("file")).unwrap_or_default();
        engine.let_go(&text, "observer").await.unwrap();
        let mut snapshots = BTreeMap::new();
        for snapshot in engine.snapshots(Some(&volume.name)).unwrap() {
            if snapshot.name.as_str().starts_with("before-restore") {
                let made = engine.change(None).remove_snapshot(SnapshotRef {
                    volume: volume.name.clone(),
                    snapshot: snapshot.name,
                });
                made.await.unwrap();
                continue;
            }
            let copy = format!("look-{text}-{}", snapshot.name);
            let source = format!("{text}@{}", snapshot.name);
            engine.make(&copy, &[("from-snapshot", &source)]).await.unwrap();
            let path = engine.hold(&copy, "observer").await.unwrap();
            let content = std::fs::read_to_string(path.join("file")).unwrap_or_default();
            engine.let_go(&copy, "observer").await.unwrap();
            engine.drop_volume(&copy).await.unwrap();
            snapshots.insert(snapshot.name.to_string(), content);
        }
        model.insert(text, Expected { content, snapshots });
    }
    assert_eq!(world.disk.images().len(), model.len(), "images leaked or lost");
    let snapshots: usize = model.values().map(|volume| volume.snapshots.len()).sum();
    assert_eq!(world.disk.snapshots().len(), snapshots, "snapshots leaked or lost");
    assert!(world.disk.mounts().is_empty(), "{:?}", world.disk.mounts());
    assert!(world.disk.devices().is_empty(), "{:?}", world.disk.devices());
    model
}

/// How long an engine that hangs is waited for before it is stopped dead.
const DEAD: Duration = Duration::from_millis(40);

/// The engine never gets past this call.
#[derive(Debug, Clone, Copy)]
struct Crash {
    call: Call,
    nth: u64,
    fault: Fault,
}

/// Runs the step on an engine that is stopped dead where `crash` says, if it gets there.
fn run_step(world: &World, crash: Option<Crash>, step: &Step) -> Option<Result<()>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let result = runtime.block_on(async {
        let engine = world.start().await;
        let Some(Crash { call, nth, fault }) = crash else {
            return Some(perform(&engine, step).await);
        };
        world.backend().on(call, nth, fault);
        tokio::time::timeout(DEAD, perform(&engine, step)).await.ok()
    });
    // Tasks are dropped where they wait.
    drop(runtime);
    result
}

#[test]
fn random_histories_with_crashes_lose_and_mix_up_nothing() {
    let steps = std::env::var("HOLDFAST_SOAK_STEPS").map_or(STEPS, |text| text.parse().unwrap());
    let seed = std::env::var("HOLDFAST_SOAK_SEED").map_or(7, |text| text.parse::<u8>().unwrap());
    let mut random = Random(TestRng::from_seed(RngAlgorithm::ChaCha, &[seed; 32]));
    let world = World::new();
    let mut model = Model::new();
    let (mut crashes, mut done) = (0, 0);
    for number in 0..steps {
        let step = random.step(number);
        let crash = (random.below(4) > 0).then(|| Crash {
            call: calls_of(&step)[random.below(calls_of(&step).len())],
            nth: 1 + random.below(2) as u64,
            fault: random.of(&[Fault::HangBefore, Fault::HangAfter]),
        });
        let after = expect(&model, &step);
        let result = run_step(&world, crash, &step);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let found = runtime.block_on(async {
            let engine = world.start().await;
            observe(&world, &engine).await
        });
        drop(runtime);
        match (&result, &after) {
            (Some(Ok(())), Some(after)) => assert_eq!(&found, after, "step {number}: {step:?}"),
            (Some(Ok(())), None) => {
                assert_eq!(found, model, "step {number} has no effect: {step:?}")
            }
            (Some(Err(error)), None) => {
                assert_eq!(found, model, "{step:?} failed: {}", error.full_message());
            }
            (Some(Err(error)), Some(_)) if error.kind() == ErrorKind::Conflict => {
                // It exists, made with other options: as a clone.
                assert!(matches!(&step, Step::Create(name) if model.contains_key(name)));
                assert_eq!(found, model);
            }
            (Some(Err(error)), Some(_)) => panic!("{step:?} failed: {}", error.full_message()),
            (None, after) => {
                let either = found == model || after.as_ref() == Some(&found);
                assert!(either, "step {number}: {step:?}\nbefore {model:#?}\nfound {found:#?}");
            }
        }
        crashes += u32::from(result.is_none());
        done += u32::from(matches!(result, Some(Ok(()))));
        model = found;
    }
    assert!(crashes > steps / 10 && done > steps / 20, "{crashes} crashes, {done} steps done");
}
