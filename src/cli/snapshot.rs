//! `holdfast snapshot`

use super::Session;
use super::args::Snapshot;
use super::exit::Failure;
use super::print::{or_dash, pairs, table};
use crate::api::admin::Changed;
use crate::engine::view::SnapshotView;

pub(super) async fn run(session: &Session, asked: &Snapshot) -> Result<(), Failure> {
    let client = &session.client;
    let name_of = |changed: &Changed| changed.name.clone();
    match asked {
        Snapshot::Create { which, hook, detach } => {
            let cut = |how| client.cut(how, &which.snapshot, hook.as_ref());
            session.change(*detach, cut, name_of).await
        }
        Snapshot::Rm { which, detach } => {
            session
                .change(*detach, |how| client.remove_snapshot(how, &which.snapshot), name_of)
                .await
        }
        Snapshot::Restore { which, detach } => {
            let volume = &which.snapshot.volume;
            let safety = |changed: &Changed| match &changed.safety {
                Some(safety) => format!("{volume}@{safety}"),
                None => changed.name.clone(),
            };
            session.change(*detach, |how| client.restore(how, &which.snapshot), safety).await
        }
        Snapshot::Ls { volume } => {
            session.printer.show(&client.snapshots(volume.as_ref()).await?, |all| list(all))
        }
        Snapshot::Inspect { which } => {
            session.printer.show(&client.snapshot(&which.snapshot).await?, details)
        }
    }
}

fn list(snapshots: &[SnapshotView]) -> String {
    let rows = snapshots.iter().map(|snapshot| {
        [
            format!("{}@{}", snapshot.volume, snapshot.name),
            or_dash(snapshot.size),
            snapshot.origin.as_str().to_owned(),
            snapshot.created.to_string(),
        ]
    });
    table(["SNAPSHOT", "SIZE", "ORIGIN", "CREATED"], rows)
}

fn details(snapshot: &SnapshotView) -> String {
    pairs(&[
        ("Volume", snapshot.volume.to_string()),
        ("Name", snapshot.name.to_string()),
        ("UUID", snapshot.uuid.to_string()),
        ("Size", or_dash(snapshot.size)),
        ("Origin", snapshot.origin.as_str().to_owned()),
        ("Created", snapshot.created.to_string()),
    ])
}
