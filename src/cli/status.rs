//! `holdfast status`

use std::fmt::Write as _;

use super::exit::Failure;
use super::pool::level;
use super::print::{or_dash, pairs, table};
use super::{Session, operation};
use crate::backend::Scope;
use crate::engine::view::StatusView;
use crate::units::ByteSize;

pub(super) async fn run(session: &Session) -> Result<(), Failure> {
    session.printer.show(&session.client.status().await?, screen)
}

fn screen(status: &StatusView) -> String {
    let scope = match status.scope {
        Scope::Local => "local",
        Scope::Global => "global",
    };
    let volumes = match status.volumes.is_empty() {
        true => "none".to_owned(),
        false => {
            let counts = status.volumes.iter().map(|(state, count)| format!("{count} {state}"));
            counts.collect::<Vec<_>>().join(", ")
        }
    };
    let mut text = pairs(&[
        ("Node", status.node.clone()),
        ("Version", status.version.clone()),
        ("Scope", scope.to_owned()),
        ("Volumes", volumes),
        ("Mounted", status.mounted.to_string()),
    ]);
    let rows = status.backends.iter().map(|backend| {
        let told = backend.status.as_ref();
        let bytes = |bytes: Option<u64>| or_dash(bytes.map(ByteSize::new));
        [
            format!("{}{}", backend.name, if backend.default { " (default)" } else { "" }),
            backend.volumes.to_string(),
            bytes(told.and_then(|told| told.total)),
            bytes(told.and_then(|told| told.free)),
            told.map_or_else(|| "does not answer".to_owned(), |told| told.location.clone()),
        ]
    });
    let backends = table(["BACKEND", "VOLUMES", "ROOM", "FREE", "PLACE"], rows);
    let _ = writeln!(text, "\n{backends}");
    if !status.pools.is_empty() {
        let rows = status.pools.iter().map(|pool| {
            [
                pool.name.to_string(),
                pool.state.clone(),
                or_dash(pool.data.map(level)),
                or_dash(pool.metadata.map(level)),
            ]
        });
        let pools = table(["POOL", "STATE", "DATA", "METADATA"], rows);
        let _ = writeln!(text, "\n{pools}");
    }
    if !status.operations.is_empty() {
        let _ = writeln!(text, "\n{}", operation::list(&status.operations));
    }
    for (index, warning) in status.warnings.iter().enumerate() {
        let lead = if index == 0 { "\n" } else { "" };
        let _ = writeln!(text, "{lead}warning: {warning}");
    }
    text
}
