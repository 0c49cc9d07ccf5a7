//! Commands that need no daemon.

use std::io::Write;

use super::args::{Daemon, Global};
use super::flags::{ConfigFlags, GLOBAL};
use crate::config::{self, FileChoice, Inputs, Loaded};
use crate::daemon::{self, CatalogChoice};
use crate::error::{Error, Result};
use crate::failpoint::Step;

/// The configuration as the flags, the environment and the file say it.
pub(super) fn load(global: &Global, flags: &ConfigFlags) -> Result<Loaded> {
    let environment = config::environment();
    let mut flags = flags.0.clone();
    if let Some(socket) = &global.admin_socket {
        flags.insert(GLOBAL.to_owned(), socket.clone());
    }
    let file = FileChoice::find(global.config.as_deref(), &environment);
    config::load(&Inputs { file, flags, environment })
}

pub(super) fn daemon(global: &Global, asked: &Daemon) -> Result<()> {
    if asked.list_failpoints {
        let mut out = std::io::stdout().lock();
        for step in Step::ALL {
            writeln!(out, "{}", step.name()).map_err(|error| Error::io("cannot print", error))?;
        }
        return Ok(());
    }
    let choice = match asked.rebuild_catalog {
        true => CatalogChoice::Rebuild,
        false => CatalogChoice::Keep,
    };
    let loaded = load(global, &asked.flags)?;
    daemon::run(&loaded.config, choice)
}
