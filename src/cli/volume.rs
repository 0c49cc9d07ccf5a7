//! `holdfast volume`

use std::collections::BTreeMap;

use super::Session;
use super::args::{Detach, Source, Volume, Words};
use super::exit::{self, Failure};
use super::print::{or_dash, pairs, table};
use super::schedule::last;
use crate::api::admin::{Changed, CreateVolume};
use crate::client::Answer;
use crate::engine::view::{ScheduleView, VolumeDetails, VolumeSummary};
use crate::error::{Error, Result};
use crate::name::VolumeName;
use crate::units::ByteSize;

pub(super) const WAIT: Detach = Detach { detach: false };

pub(super) async fn run(session: &Session, asked: &Volume) -> Result<(), Failure> {
    let client = &session.client;
    match asked {
        Volume::Create { name, backend, size, words, detach } => {
            let mut options = words_of("option", &words.options)?;
            add(&mut options, "backend", backend.as_ref())?;
            add(&mut options, "size", size.as_ref())?;
            create(session, name, options, words, *detach).await
        }
        Volume::Clone { source, new, words, detach } => {
            let mut options = words_of("option", &words.options)?;
            match source {
                Source::Volume(volume) => add(&mut options, "clone-of", Some(volume))?,
                Source::Snapshot(snapshot) => add(&mut options, "from-snapshot", Some(snapshot))?,
            }
            create(session, new, options, words, *detach).await
        }
        Volume::Ls => session.printer.show(&client.volumes().await?, |all| list(all)),
        Volume::Inspect { names } => inspect(session, names).await,
        Volume::Rm { names, snapshots, detach } => {
            exit::each(names, session.printer.0, |name: VolumeName| async move {
                session.change(*detach, |how| client.remove(how, &name, *snapshots), name_of).await
            })
            .await
        }
        Volume::Undelete { name, detach } => {
            session.change(*detach, |how| client.undelete(how, name), name_of).await
        }
        Volume::Adopt { uuid, name, detach } => {
            let adopt = |how| client.adopt(how, *uuid, name.as_ref());
            session.change(*detach, adopt, name_of).await
        }
        Volume::Resize { name, size, detach } => {
            session.change(*detach, |how| client.resize(how, name, *size), name_of).await
        }
        Volume::Rename { name, new, detach } => {
            session.change(*detach, |how| client.rename(how, name, new), name_of).await
        }
        Volume::Mount { name, by } => {
            let mount = |how| client.mount(how, name, by.id.clone());
            let place = |changed: &Changed| {
                changed.mountpoint.as_ref().map(|p| p.display().to_string()).unwrap_or_default()
            };
            session.change(WAIT, mount, place).await
        }
        Volume::Unmount { name, by } => {
            session.change(WAIT, |how| client.unmount(how, name, by.id.clone()), name_of).await
        }
    }
}

pub(super) fn name_of(changed: &Changed) -> String {
    changed.name.clone()
}

pub(super) async fn create(
    session: &Session,
    name: &VolumeName,
    options: BTreeMap<String, String>,
    words: &Words,
    detach: Detach,
) -> Result<(), Failure> {
    let labels = words_of("label", &words.labels)?;
    let volume = CreateVolume { name: name.to_string(), options, labels };
    session.change(detach, |how| session.client.create(how, &volume), name_of).await
}

pub(super) fn words_of(what: &str, given: &[(String, String)]) -> Result<BTreeMap<String, String>> {
    let mut words = BTreeMap::new();
    for (key, value) in given {
        if words.insert(key.clone(), value.clone()).is_some_and(|before| before != *value) {
            return Err(Error::invalid(format!("{what} {key} is given twice")));
        }
    }
    Ok(words)
}

/// A flag or an argument that is an option under another name.
pub(super) fn add(
    options: &mut BTreeMap<String, String>,
    key: &str,
    value: Option<impl ToString>,
) -> Result<()> {
    let Some(value) = value else { return Ok(()) };
    match options.insert(key.to_owned(), value.to_string()) {
        Some(_) => {
            Err(Error::invalid(format!("option {key} is given twice"))
                .hint("leave out one of the two"))
        }
        None => Ok(()),
    }
}

fn list(volumes: &[VolumeSummary]) -> String {
    let rows = volumes.iter().map(|volume| {
        [
            volume.name.to_string(),
            volume.backend.to_string(),
            or_dash(volume.size),
            or_dash(volume.filesystem),
            volume.state.clone(),
            volume.mounts.to_string(),
            volume.snapshots.to_string(),
            volume.created.to_string(),
        ]
    });
    table(["NAME", "BACKEND", "SIZE", "FS", "STATE", "MOUNTS", "SNAPSHOTS", "CREATED"], rows)
}

/// What is found is printed, even if some of it is not.
async fn inspect(session: &Session, names: &[VolumeName]) -> Result<(), Failure> {
    let mut found: Vec<VolumeDetails> = Vec::new();
    let mut code = None;
    for name in names {
        let answer: Answer<VolumeDetails> = session.client.volume(name).await;
        match answer.map_err(Failure::from) {
            Ok(details) => found.push(details),
            Err(failure) => {
                failure.tell(session.printer.0);
                code.get_or_insert(failure.code());
            }
        }
    }
    if code.is_none() || !found.is_empty() {
        session
            .printer
            .show(&found, |found| found.iter().map(details).collect::<Vec<_>>().join("\n"))?;
    }
    code.map_or(Ok(()), |code| Err(Failure::Told(code)))
}

fn details(volume: &VolumeDetails) -> String {
    let words = |words: &BTreeMap<String, String>| match words.is_empty() {
        true => "-".to_owned(),
        false => {
            words.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(" ")
        }
    };
    let list = |items: Vec<String>| match items.is_empty() {
        true => "-".to_owned(),
        false => items.join(", "),
    };
    let mounts = volume.mounts.iter().map(|mount| format!("{} ({})", mount.id, mount.count));
    let snapshots = volume.snapshots.iter().map(|snapshot| snapshot.name.to_string());
    let runs = volume.last_snapshot_run.iter().chain(&volume.last_backup_run);
    pairs(&[
        ("Name", volume.name.to_string()),
        ("UUID", volume.uuid.to_string()),
        ("Backend", volume.backend.to_string()),
        ("Size", or_dash(volume.size)),
        ("Used", or_dash(volume.used.map(ByteSize::new))),
        ("Exclusive", or_dash(volume.exclusive.map(ByteSize::new))),
        ("State", volume.state.clone()),
        ("Health", volume.health.clone()),
        ("Filesystem", or_dash(volume.filesystem)),
        ("Mountpoint", or_dash(volume.mountpoint.as_ref().map(|path| path.display()))),
        ("Source", or_dash(volume.source.as_ref())),
        ("Mounts", list(mounts.collect())),
        ("Node", volume.node.clone()),
        ("Snapshots", list(snapshots.collect())),
        ("Options", words(&volume.options)),
        ("Labels", words(&volume.labels)),
        ("Created", volume.created.to_string()),
        ("Last backup", or_dash(volume.last_backup)),
        ("Schedule", or_dash(volume.schedule.as_ref().map(schedule))),
        ("Last runs", list(runs.map(|run| format!("{} {}", run.kind, last(run))).collect())),
    ])
}

/// `snapshot 1h, backup 0 3 * * * to main, keep 24h,7d`
fn schedule(schedule: &ScheduleView) -> String {
    let to = schedule.repository.as_ref().map(|name| format!(" to {name}")).unwrap_or_default();
    let keep = Some(schedule.keep).filter(|keep| !keep.is_empty());
    let parts = [
        schedule.snapshot_every.as_ref().map(|timing| format!("snapshot {timing}")),
        schedule.backup_every.as_ref().map(|timing| format!("backup {timing}{to}")),
        keep.map(|keep| format!("keep {keep}")),
        schedule.hook.as_ref().map(|hook| format!("hook {hook}")),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
}
