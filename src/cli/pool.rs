//! `holdfast pool`

use super::Session;
use super::args::Pool;
use super::exit::Failure;
use super::print::{self, or_dash, pairs, table};
use crate::api::admin::Changed;
use crate::backend::PoolLevel;
use crate::engine::view::PoolView;
use crate::error::Error;
use crate::name::BackendName;
use crate::units::ByteSize;

pub(super) async fn run(session: &Session, asked: &Pool) -> Result<(), Failure> {
    let client = &session.client;
    match asked {
        Pool::Ls => session.printer.show(&client.pools().await?, |all| list(all)),
        Pool::Inspect { name } => {
            let name = named(session, name.as_ref()).await?;
            session.printer.show(&client.pool(&name).await?, details)
        }
        Pool::Grow { size, pool, detach } => {
            let pool = named(session, pool.as_ref()).await?;
            let grow = |how| client.grow_pool(how, &pool, *size);
            session.change(*detach, grow, |changed| changed.name.clone()).await
        }
        Pool::Check { name, detach } => {
            let pool = named(session, name.as_ref()).await?;
            let checked = session.make(*detach, |how| client.check_pool(how, &pool), check).await?;
            match checked.check {
                Some(check) if !check.sound => Err(Failure::Told(1)),
                _ => Ok(()),
            }
        }
        Pool::Repair { name, detach } => {
            let pool = named(session, name.as_ref()).await?;
            let report = |changed: &Changed| changed.report.clone().unwrap_or_default().join("\n");
            session.change(*detach, |how| client.repair_pool(how, &pool), report).await
        }
    }
}

/// The pool that was named, or the only one that there is.
async fn named(session: &Session, name: Option<&BackendName>) -> Result<BackendName, Failure> {
    if let Some(name) = name {
        return Ok(name.clone());
    }
    let mut pools = session.client.pools().await?;
    match pools.len() {
        1 => Ok(pools.remove(0).name),
        0 => Err(Error::not_found("no backend of this node has a pool")
            .hint("set [thin] data or [thin] file in the configuration to have one")
            .into()),
        _ => {
            let names: Vec<&str> = pools.iter().map(|pool| pool.name.as_str()).collect();
            Err(Error::invalid("this node has several pools")
                .hint(format!("name one of them: {}", names.join(", ")))
                .into())
        }
    }
}

/// `12G of 100G (12%)`
pub(super) fn level(level: PoolLevel) -> String {
    let (used, total) = (ByteSize::new(level.used), ByteSize::new(level.total));
    match (u128::from(level.used) * 100).checked_div(u128::from(level.total)) {
        Some(percent) => format!("{used} of {total} ({percent}%)"),
        None => format!("{used} of {total}"),
    }
}

pub(super) fn list(pools: &[PoolView]) -> String {
    let rows = pools.iter().map(|pool| {
        [
            pool.name.to_string(),
            pool.state.clone(),
            or_dash(pool.data.map(level)),
            or_dash(pool.metadata.map(level)),
            pool.volumes.to_string(),
            or_dash(pool.location.as_ref()),
        ]
    });
    let mut text = table(["POOL", "STATE", "DATA", "METADATA", "VOLUMES", "PLACE"], rows);
    for pool in pools {
        for warning in &pool.warnings {
            text.push_str(&format!("\nwarning: pool {}: {warning}", pool.name));
        }
    }
    text
}

fn details(pool: &PoolView) -> String {
    let mut text = pairs(&[
        ("Name", pool.name.to_string()),
        ("UUID", or_dash(pool.uuid)),
        ("State", pool.state.clone()),
        ("Place", or_dash(pool.location.as_ref())),
        ("Chunk size", or_dash(pool.chunk_size)),
        ("Data", or_dash(pool.data.map(level))),
        ("Metadata", or_dash(pool.metadata.map(level))),
        ("Grows", if pool.grows { "by itself" } else { "when told to" }.to_owned()),
        ("Volumes", pool.volumes.to_string()),
        ("Devices", or_dash(pool.devices)),
    ]);
    for warning in &pool.warnings {
        text.push_str(&format!("warning: {warning}\n"));
    }
    text
}

fn check(changed: &Changed) -> String {
    match &changed.check {
        Some(check) => print::check(&format!("pool {}", changed.name), check),
        None => changed.name.clone(),
    }
}
