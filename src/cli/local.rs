//! Commands that need no daemon.

use std::io::ErrorKind as Io;
use std::path::{Path, PathBuf};

use clap::CommandFactory;
use serde::Serialize;

use super::args::{Arguments, Config, Daemon, Global};
use super::exit::Failure;
use super::flags::{ConfigFlags, GLOBAL};
use super::print::{self, Printer};
use crate::config::{self, DEFAULT_FILE, FileChoice, Inputs, Loaded, Value};
use crate::daemon::{self, CatalogChoice};
use crate::error::Result;
use crate::failpoint::{BackendStep, Step};

/// The configuration as the flags, the environment and the file say it.
fn load(global: &Global, flags: &ConfigFlags) -> Result<Loaded> {
    let environment = config::environment()?;
    let mut flags = flags.0.clone();
    if let Some(socket) = &global.admin_socket {
        flags.insert(GLOBAL.to_owned(), socket.clone());
    }
    let file = FileChoice::find(global.config.as_deref(), &environment);
    config::load(&Inputs { file, flags, environment })
}

/// Where the daemon is. A file that is not needed for that is not read: it may be root's alone.
pub(super) fn socket(global: &Global) -> Result<PathBuf> {
    let environment = config::environment()?;
    let variable = format!("{}ADMIN_SOCKET", config::PREFIX);
    let told = environment.iter().find(|(name, value)| *name == variable && !value.is_empty());
    if let Some(path) = global.admin_socket.as_ref().or(told.map(|(_, value)| value)) {
        return PathBuf::parse(
            &std::path::absolute(path)
                .map_or_else(|_| path.clone(), |path| path.to_string_lossy().into_owned()),
        );
    }
    let mut file = FileChoice::find(global.config.as_deref(), &environment);
    let closed =
        std::fs::File::open(DEFAULT_FILE).is_err_and(|error| error.kind() == Io::PermissionDenied);
    if file == FileChoice::Usual && closed {
        file = FileChoice::Nothing;
    }
    let flags = Default::default();
    Ok(config::load(&Inputs { file, flags, environment })?.config.admin_socket)
}

pub(super) fn daemon(global: &Global, asked: &Daemon) -> Result<(), Failure> {
    if asked.list_failpoints {
        let steps = Step::ALL.iter().map(|step| step.name());
        let all = steps.chain(BackendStep::ALL.iter().map(|step| step.name()));
        let names: String = all.map(|name| format!("{name}\n")).collect();
        return print::raw(names.as_bytes());
    }
    let choice = match asked.rebuild_catalog {
        true => CatalogChoice::Rebuild,
        false => CatalogChoice::Keep,
    };
    let loaded = load(global, &asked.flags)?;
    Ok(daemon::run(&loaded.config, choice)?)
}

/// One value in force.
#[derive(Debug, Serialize)]
struct Shown<'a> {
    key: &'a str,
    value: serde_json::Value,
    /// `flag`, `environment`, `file` or `default`.
    source: &'static str,
    /// The flag, the variable, or the file and line.
    place: String,
    #[serde(skip)]
    text: String,
}

pub(super) fn config(global: &Global, asked: &Config, printer: Printer) -> Result<(), Failure> {
    match asked {
        Config::Show(flags) => show(&load(global, flags)?, printer),
        Config::Check { file } => check(file, printer),
    }
}

fn show(loaded: &Loaded, printer: Printer) -> Result<(), Failure> {
    let shown = loaded.settings.iter().map(|setting| {
        Ok(Shown {
            key: &setting.name,
            value: setting.json()?,
            source: setting.source.as_str(),
            place: setting.place(),
            text: setting.shown(),
        })
    });
    let shown: Vec<Shown<'_>> = shown.collect::<Result<_>>()?;
    printer.show(&shown, |shown| {
        let row = |one: &Shown<'_>| [one.key.to_owned(), one.text.clone(), one.place.clone()];
        print::table(["KEY", "VALUE", "FROM"], shown.iter().map(row))
    })
}

#[derive(Debug, Serialize)]
struct Checked<'a> {
    file: &'a Path,
    ok: bool,
    /// What should be mended all the same, as sentences.
    warnings: Vec<String>,
}

fn check(file: &Path, printer: Printer) -> Result<(), Failure> {
    let file = FileChoice::Named(file.to_owned());
    let inputs = Inputs { file, flags: Default::default(), environment: Vec::new() };
    let warnings = config::load(&inputs).map_err(Failure::Found)?.config.warnings();
    let FileChoice::Named(file) = &inputs.file else { return Ok(()) };
    printer.show(&Checked { file, ok: true, warnings }, |checked| {
        let warnings = checked.warnings.iter().map(|warning| format!("\nwarning: {warning}"));
        format!("{}: ok{}", checked.file.display(), warnings.collect::<String>())
    })
}

pub(super) fn completions(shell: clap_complete::Shell) -> Result<(), Failure> {
    // Into memory first: clap_complete panics when nobody reads any more.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "holdfast", &mut script);
    print::raw(&script)
}
