//! What runs before and after a snapshot.

use super::*;
use crate::backend::fault::{Call, Fault};
use crate::backend::sim::SimProgram;
use crate::error::ErrorKind;

/// The hooks of every engine here, by what they do.
pub(super) fn configured() -> BTreeMap<HookName, HookConfig> {
    let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let hour = Duration::from_secs(3600);
    let soon = Duration::from_millis(20);
    [
        ("works", "flush --all", "resume", hour),
        ("another", "other-flush", "other-resume", hour),
        ("refuses", "fails", "resume", hour),
        ("is-slow", "hangs", "resume", soon),
        ("never-ends", "hangs", "resume", hour),
        ("resumes-not", "flush", "fails", hour),
        ("only-after", "", "resume", hour),
    ]
    .into_iter()
    .map(|(name, before, after, timeout)| {
        let config = HookConfig { before: words(before), after: words(after), timeout };
        (name.parse().unwrap(), config)
    })
    .collect()
}

fn named(hook: &str) -> Option<HookName> {
    Some(hook.parse().unwrap())
}

/// The programs that were run since this was last asked, without their arguments.
fn ran(world: &World) -> Vec<String> {
    let first = |program: SimProgram| program.command[0].clone();
    world.disk.take_programs().into_iter().map(first).collect()
}

fn snapshots(engine: &Engine) -> usize {
    engine.snapshots(Some(&name("db"))).unwrap().len()
}

async fn cut(engine: &Engine, hook: &str) -> Result<Outcome> {
    engine.change(None).snapshot(reference("db@one"), named(hook)).await
}

fn told(engine: &Engine, kind: &str) -> Vec<String> {
    let events = engine.events().after(0).into_iter();
    events.filter(|event| event.kind == kind).map(|event| event.message).collect()
}

#[tokio::test]
async fn a_hook_runs_around_a_snapshot_and_not_while_it_is_frozen() {
    let world = World::new();
    let engine = world.start().await;
    engine.make("db", &[]).await.unwrap();
    let path = engine.hold("db", "c1").await.unwrap();
    cut(&engine, "works").await.unwrap();
    let ran = world.disk.take_programs();
    let commands: Vec<_> = ran.iter().map(|program| program.command.join(" ")).collect();
    assert_eq!(commands, ["flush --all", "resume"]);
    for program in &ran {
        assert!(!program.frozen, "{program:?}");
        assert_eq!(program.variables["HOLDFAST_VOLUME"], "db");
        assert_eq!(program.variables["HOLDFAST_SNAPSHOT"], "one");
        assert_eq!(program.variables["HOLDFAST_MOUNTPOINT"], path.to_str().unwrap());
    }
    engine.let_go("db", "c1").await.unwrap();
    engine.change(None).snapshot(reference("db@two"), named("only-after")).await.unwrap();
    let ran = world.disk.take_programs();
    assert_eq!(ran.len(), 1, "an empty program is none: {ran:?}");
    assert!(!ran[0].variables.contains_key("HOLDFAST_MOUNTPOINT"), "it is not mounted");
}

#[tokio::test]
async fn no_snapshot_is_cut_when_the_program_before_it_fails_and_the_one_after_runs() {
    for (hook, word) in [("refuses", "as it was told to"), ("is-slow", "was killed")] {
        let world = World::new();
        let engine = world.start().await;
        engine.make("db", &[]).await.unwrap();
        let error = cut(&engine, hook).await.unwrap_err().full_message();
        assert!(error.contains(word) && error.contains(hook), "{error}");
        assert_eq!(ran(&world).last().unwrap(), "resume");
        assert_eq!((snapshots(&engine), world.disk.snapshots().len()), (0, 0));
        assert_eq!(world.backend().calls(Call::Snapshot), 0);
        cut(&engine, "works").await.unwrap();
    }
}

#[tokio::test]
async fn the_snapshot_stays_when_the_program_after_it_fails() {
    let world = World::new();
    let engine = world.start().await;
    engine.make("db", &[]).await.unwrap();
    cut(&engine, "resumes-not").await.unwrap();
    assert_eq!((snapshots(&engine), ran(&world)), (1, vec!["flush".into(), "fails".into()]));
    let told = told(&engine, "hook.failed");
    assert!(told.len() == 1 && told[0].contains("resumes-not"), "{told:?}");
    engine.retry_stuck().await;
    assert_eq!(ran(&world), Vec::<String>::new(), "nor is it tried again");
}

#[tokio::test]
async fn the_program_after_runs_once_whatever_fails() {
    for call in [Call::Snapshot, Call::Describe] {
        for fault in [ErrorKind::Internal, ErrorKind::OutOfSpace] {
            let world = World::new();
            let engine = world.start().await;
            engine.make("db", &[]).await.unwrap();
            engine.hold("db", "c1").await.unwrap();
            world.backend().always(call, Fault::FailBefore(fault));
            cut(&engine, "works").await.unwrap_err();
            engine.retry_stuck().await;
            world.backend().mend();
            engine.retry_stuck().await;
            engine.settled().await;
            assert_eq!(ran(&world), ["flush", "resume"], "{call:?}");
            assert_eq!(snapshots(&engine), 0);
        }
    }
}

#[test]
fn the_program_after_runs_after_a_crash() {
    for (hook, call) in [
        ("never-ends", None),
        ("works", Some((Call::Snapshot, Fault::HangBefore))),
        ("works", Some((Call::Snapshot, Fault::HangAfter))),
        ("works", Some((Call::Describe, Fault::HangBefore))),
    ] {
        let world = World::new();
        let in_runtime = |work: &mut dyn FnMut(&tokio::runtime::Runtime)| {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            // What waits is dropped with it, as in a process that is killed.
            work(&runtime);
        };
        in_runtime(&mut |runtime| {
            runtime.block_on(async {
                let engine = world.start().await;
                engine.make("db", &[]).await.unwrap();
                engine.hold("db", "c1").await.unwrap();
                if let Some((call, fault)) = call {
                    world.backend().on(call, 1, fault);
                }
                let hung = tokio::time::timeout(Duration::from_millis(40), cut(&engine, hook));
                hung.await.expect_err("it hangs");
            });
        });
        let over = matches!(call, Some((Call::Describe, _)));
        let before = ran(&world);
        assert_eq!(before.contains(&"resume".to_owned()), over, "{before:?}");
        in_runtime(&mut |runtime| {
            runtime.block_on(async {
                let engine = world.start().await;
                engine.settled().await;
                let after = if over { vec![] } else { vec!["resume".to_owned()] };
                assert_eq!(ran(&world), after, "{hook} {call:?}");
                assert_eq!((snapshots(&engine), world.disk.snapshots().len()), (0, 0));
                assert!(!world.disk.is_frozen(&world.mounts().join("db")));
            });
        });
    }
}

#[tokio::test]
async fn the_hook_is_the_one_asked_for_or_the_schedules_or_the_volumes() {
    let world = World::new();
    let engine = world.start().await;
    engine.make("db", &[("hook", "works")]).await.unwrap();
    engine.change(None).snapshot(reference("db@one"), None).await.unwrap();
    assert_eq!(ran(&world), ["flush", "resume"]);
    let schedule = crate::model::Schedule {
        snapshot: Some("1h".parse().unwrap()),
        hook: named("another"),
        ..Default::default()
    };
    engine.change(None).set_schedule(name("db"), schedule).await.unwrap();
    engine.change(None).snapshot(reference("db@two"), None).await.unwrap();
    assert_eq!(ran(&world), ["other-flush", "other-resume"]);
    engine.change(None).snapshot(reference("db@three"), named("works")).await.unwrap();
    assert_eq!(ran(&world), ["flush", "resume"]);

    let unknown = engine.change(None).snapshot(reference("db@four"), named("unknown")).await;
    let error = unknown.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.hint_text().unwrap().contains("another, "), "{:?}", error.hint_text());
    let error = engine.make("other", &[("hook", "unknown")]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
}
