//! The command line: reads what was typed, asks the daemon through [`crate::client`], prints.
//!
//! Data goes to standard output, all else to standard error.

mod args;
mod backup;
mod events;
mod exit;
mod flags;
mod local;
mod operation;
mod pool;
mod print;
mod progress;
mod repository;
mod schedule;
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
    let form = if wants_json() { Output::Json } else { Output::Table };
    exit::tell(&one_line(&error.to_string()), form);
    ExitCode::from(2)
}

/// clap's paragraphs as one error: what is wrong, and how it should be.
fn one_line(text: &str) -> Error {
    let text = text.strip_prefix("error: ").unwrap_or(text);
    let paragraphs: Vec<String> = text
        .split("\n\n")
        .map(|paragraph| paragraph.split_whitespace().collect::<Vec<_>>().join(" "))
        .map(|line| line.replacen("Usage:", "usage:", 1))
        .map(|line| line.replace("For more information, try '--help'.", "see --help"))
        .filter(|paragraph| !paragraph.is_empty())
        .collect();
    match paragraphs.split_first() {
        Some((wrong, [])) => Error::invalid(wrong),
        Some((wrong, right)) => Error::invalid(wrong).hint(right.join("; ")),
        None => Error::invalid("the command line cannot be understood"),
    }
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
            Command::Backup(asked) => backup::run(&session, asked).await,
            Command::Repository(asked) => repository::run(&session, asked).await,
            Command::Schedule(asked) => schedule::run(&session, asked).await,
            Command::Pool(asked) => pool::run(&session, asked).await,
            Command::Events(asked) => events::run(&session, asked).await,
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
        self.make(detach, make, human).await.map(drop)
    }

    /// The same for those who want to know more of what came of it.
    async fn make<R>(
        &self,
        detach: Detach,
        make: impl FnOnce(How) -> R,
        human: impl FnOnce(&Changed) -> String,
    ) -> Result<Changed, Failure>
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
        })?;
        Ok(changed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_usage_is_one_error() {
        let text = "error: not provided:\n  <NAME>\n\nUsage: holdfast x <NAME>\n\nFor more information, try '--help'.\n";
        let error = one_line(text);
        assert_eq!(error.full_message(), "not provided: <NAME>");
        assert_eq!(error.hint_text(), Some("usage: holdfast x <NAME>; see --help"));
    }
}
