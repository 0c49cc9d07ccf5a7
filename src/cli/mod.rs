//! The command line: reads what was typed, asks the daemon through [`crate::client`], prints.
//!
//! Data goes to standard output, all else to standard error.

mod args;
mod exit;
mod flags;
mod local;
mod operation;
mod print;
mod progress;
mod snapshot;
mod status;
mod volume;

use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind as Usage;

use crate::api::admin::Changed;
use crate::client::{Answer, Client, How, Wait};
use crate::error::Error;
use crate::id::OperationId;
use args::{Arguments, Command, Detach, Output};
use exit::Failure;
use print::Printer;

/// Runs the program.
pub fn main() -> ExitCode {
    match Arguments::try_parse() {
        Ok(arguments) => exit::end(run(&arguments), arguments.global.output),
        Err(error) => usage(&error),
    }
}

/// Help and version are answers; all else is an error in its usual form.
fn usage(error: &clap::Error) -> ExitCode {
    match error.kind() {
        Usage::DisplayHelp | Usage::DisplayVersion => {
            return exit::end(print::raw(error.to_string().as_bytes()), Output::Table);
        }
        Usage::DisplayHelpOnMissingArgumentOrSubcommand => {
            print::note(&error.to_string());
            return ExitCode::from(2);
        }
        _ => {}
    }
    let text = error.to_string();
    let text = text.strip_prefix("error: ").unwrap_or(&text);
    if wants_json() {
        let first = text.lines().map(str::trim).take_while(|line| !line.is_empty());
        let message = first.collect::<Vec<_>>().join(" ");
        exit::tell(&Error::invalid(message).hint("see `holdfast --help`"), Output::Json);
    } else {
        print::note(format!("holdfast: {text}").trim_end());
    }
    ExitCode::from(2)
}

/// Whether the command line, which could not be understood as a whole, asks for JSON.
fn wants_json() -> bool {
    let words: Vec<_> = std::env::args_os().skip(1).collect();
    words.iter().any(|word| word == "--output=json")
        || words.windows(2).any(|two| two[0] == "--output" && two[1] == "json")
}

fn run(arguments: &Arguments) -> Result<(), Failure> {
    let global = &arguments.global;
    let printer = Printer(global.output);
    match &arguments.command {
        Command::Daemon(daemon) => return local::daemon(global, daemon),
        Command::Config(config) => return local::config(global, config, printer),
        Command::Completions { shell } => return local::completions(*shell),
        _ => {}
    }
    let session = Session { client: Client::new(&local::socket(global)?), printer };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Error::io("cannot start the runtime", error))?;
    runtime.block_on(async {
        match &arguments.command {
            Command::Volume(asked) => volume::run(&session, asked).await,
            Command::Snapshot(asked) => snapshot::run(&session, asked).await,
            Command::Operation(asked) => operation::run(&session, asked).await,
            _ => status::run(&session).await,
        }
    })
}

/// What the commands that ask the daemon share.
#[derive(Debug)]
struct Session {
    client: Client,
    printer: Printer,
}

impl Session {
    /// Makes a change, shows how it goes, and prints what came of it: `human` for people.
    async fn change<R>(
        &self,
        detach: Detach,
        make: impl FnOnce(How) -> R,
        human: impl FnOnce(&Changed) -> String,
    ) -> Result<(), Failure>
    where
        R: Future<Output = Answer<Changed>>,
    {
        let operation = OperationId::from_uuid(uuid::Uuid::new_v4());
        let wait = if detach.detach { Wait::Begun } else { Wait::Done };
        let work = make(How { operation, wait });
        let changed = progress::watch(&self.client, operation, work).await?;
        self.printer.show(&changed, |changed| match wait {
            Wait::Begun => changed.operation.to_string(),
            Wait::Done => human(changed),
        })
    }
}
