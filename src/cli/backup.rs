//! `holdfast backup`

use std::collections::BTreeMap;

use super::Session;
use super::args::{Backup, Output, Source};
use super::exit::{self, Failure};
use super::print::{or_dash, pairs, table};
use super::repository::named;
use super::volume::{self, WAIT, add, name_of, words_of};
use crate::api::admin::Changed;
use crate::engine::view::{BackupDetails, PruneReport, Verification};
use crate::error::Error;
use crate::id::BackupRef;
use crate::model;
use crate::name::{RepositoryName, VolumeName};
use crate::repository::Prune;
use crate::units::ByteSize;

pub(super) async fn run(session: &Session, asked: &Backup) -> Result<(), Failure> {
    let client = &session.client;
    match asked {
        Backup::Create { source, place, hook, detach } => {
            let (volume, snapshot) = match source {
                Source::Volume(volume) => (volume, None),
                Source::Snapshot(reference) => (&reference.volume, Some(&reference.snapshot)),
            };
            let repository = place.repository.as_ref();
            let id = |changed: &Changed| match &changed.backup {
                Some(backup) => backup.id.to_string(),
                None => changed.name.clone(),
            };
            let make = |how| client.back_up(how, volume, snapshot, repository, hook.as_ref());
            session.change(*detach, make, id).await
        }
        Backup::Ls { volume, place } => {
            let repository = place.repository.as_ref();
            let found = client.backups(volume.as_ref(), repository).await?;
            if let (Some(volume), true) = (volume, found.is_empty()) {
                return Err(none_of(volume, repository).into());
            }
            session.printer.show(&found, |all| list(all))
        }
        Backup::Inspect { id, place } => {
            let found = client.backup(id, place.repository.as_ref()).await?;
            session.printer.show(&found, details)
        }
        Backup::Restore { id, new, backend, size, words, detach } => {
            let mut options = words_of("option", &words.options)?;
            add(&mut options, "from-backup", Some(id))?;
            add(&mut options, "backend", backend.as_ref())?;
            add(&mut options, "size", size.as_ref())?;
            volume::create(session, new, options, words, *detach).await
        }
        Backup::Rm { ids, place, detach } => {
            let repository = place.repository.as_ref();
            exit::each(ids, session.printer.0, |id: BackupRef| async move {
                let remove = |how| client.remove_backup(how, &id, repository);
                session.change(*detach, remove, name_of).await
            })
            .await
        }
        Backup::Verify { id, all: _, place, detach } => {
            let verify = |how| client.verify_backups(how, id.as_ref(), place.repository.as_ref());
            let told = |changed: &Changed| match &changed.verification {
                Some(verification) => verified(verification),
                None => changed.name.clone(),
            };
            let done = session.make(*detach, verify, told).await?;
            match done.verification {
                Some(found) if found.backups.iter().any(|one| !one.sound) => Err(Failure::Told(1)),
                _ => Ok(()),
            }
        }
        Backup::Prune { place, dry_run, now, detach } => {
            let repository = named(session, place.repository.as_ref()).await?;
            let prune = async |kind, detach| {
                session.change(detach, |how| client.prune(how, &repository, kind), pruned).await
            };
            // For programs there is one answer, which says the same.
            let is_shown_first = !detach.detach && session.printer.0 == Output::Table;
            if *dry_run || is_shown_first {
                prune(Prune::Plan, WAIT).await?;
            }
            match (dry_run, now) {
                (true, _) => Ok(()),
                (false, true) => prune(Prune::Now, *detach).await,
                (false, false) => prune(Prune::Mark, *detach).await,
            }
        }
    }
}

fn none_of(volume: &VolumeName, repository: Option<&RepositoryName>) -> Error {
    let place = repository.map(|name| format!(" in repository {name}")).unwrap_or_default();
    Error::not_found(format!("there is no backup of a volume {volume}{place}")).hint(format!(
        "`holdfast backup create {volume}` makes one; `holdfast backup ls` lists those of all volumes"
    ))
}

fn list(backups: &[model::Backup]) -> String {
    let rows = backups.iter().map(|backup| {
        [
            backup.id.short(),
            format!("{}@{}", backup.volume, backup.snapshot),
            backup.repository.to_string(),
            backup.node.clone(),
            or_dash(backup.size),
            ByteSize::new(backup.added).to_string(),
            backup.created.to_string(),
        ]
    });
    table(["ID", "SNAPSHOT", "REPOSITORY", "NODE", "SIZE", "ADDED", "CREATED"], rows)
}

fn details(found: &BackupDetails) -> String {
    let backup = &found.backup;
    let words = |words: &BTreeMap<String, String>| {
        let words: Vec<_> = words.iter().map(|(key, value)| format!("{key}={value}")).collect();
        or_dash((!words.is_empty()).then(|| words.join(" ")))
    };
    pairs(&[
        ("ID", backup.id.to_string()),
        ("Repository", backup.repository.to_string()),
        ("Volume", backup.volume.to_string()),
        ("UUID", backup.uuid.to_string()),
        ("Snapshot", backup.snapshot.to_string()),
        ("Node", backup.node.clone()),
        ("Backend", backup.backend.to_string()),
        ("Size", or_dash(backup.size)),
        ("Added", ByteSize::new(backup.added).to_string()),
        ("Parent", or_dash(backup.parent)),
        ("Layout", found.layout.clone()),
        ("Filesystem", or_dash(found.filesystem)),
        ("Options", words(&found.options)),
        ("Labels", words(&found.labels)),
        ("Created", backup.created.to_string()),
        ("Finished", backup.finished.to_string()),
    ])
}

fn verified(found: &Verification) -> String {
    let rows = found.backups.iter().map(|backup| {
        [
            backup.id.short(),
            backup.volume.to_string(),
            if backup.sound { "sound" } else { "damaged" }.to_owned(),
            ByteSize::new(backup.bytes).to_string(),
        ]
    });
    let mut text = table(["ID", "VOLUME", "STATE", "READ"], rows);
    for backup in &found.backups {
        for damage in &backup.damage {
            text.push_str(&format!("\n{}: {damage}", backup.id.short()));
        }
    }
    text
}

fn pruned(changed: &Changed) -> String {
    let Some(report) = &changed.prune else { return changed.name.clone() };
    let PruneReport { planned_only, used, unused, removed, marked, repacked } = *report;
    let [used, unused, removed, marked, repacked] =
        [used, unused, removed, marked, repacked].map(ByteSize::new);
    match planned_only {
        true => {
            format!("repository {}: backups need {used}; {unused} can be given back", changed.name)
        }
        false => format!(
            "repository {}: {removed} given back now, {marked} by a prune a day or more from now; \
             {repacked} written again for it",
            changed.name
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::view::VerifiedBackup;
    use crate::id::{BackupId, OperationId};

    #[test]
    fn damage_is_told_below_the_backups() {
        let backup = |first: u8, damage: &[&str]| VerifiedBackup {
            id: BackupId::from_bytes([first; 32]),
            volume: "pgdata".parse().unwrap(),
            sound: damage.is_empty(),
            bytes: 3 << 20,
            damage: damage.iter().map(|&line| line.to_owned()).collect(),
        };
        let found =
            Verification { backups: vec![backup(0x11, &[]), backup(0x22, &["a pack is missing"])] };
        let text = verified(&found);
        let lines: Vec<String> = text
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect();
        assert_eq!(
            lines,
            [
                "ID VOLUME STATE READ",
                "11111111 pgdata sound 3M",
                "22222222 pgdata damaged 3M",
                "22222222: a pack is missing"
            ]
        );
    }

    #[test]
    fn a_prune_says_what_it_would_do_and_what_it_did() {
        let text = |planned_only| {
            let report = PruneReport {
                planned_only,
                used: 5 << 30,
                unused: 3 << 30,
                removed: 1 << 30,
                marked: 2 << 30,
                repacked: 0,
            };
            let changed = serde_json::json!({
                "name": "main",
                "operation": OperationId::from_uuid(uuid::Uuid::nil()),
                "prune": report,
            });
            pruned(&serde_json::from_value(changed).unwrap())
        };
        assert_eq!(text(true), "repository main: backups need 5G; 3G can be given back");
        let done = text(false);
        assert!(done.contains("1G given back now, 2G by a prune a day or more"), "{done}");
    }
}
