//! The command line: reads what was typed, asks the daemon through [`crate::client`], prints.
//!
//! Data goes to standard output, all else to standard error.

mod args;
mod flags;
mod local;

use std::process::ExitCode;

use clap::Parser;

use crate::error::Error;
use args::{Arguments, Command};

/// Runs the program.
pub fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    let result = match &arguments.command {
        Command::Daemon(daemon) => local::daemon(&arguments.global, daemon),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => tell(&error),
    }
}

fn tell(error: &Error) -> ExitCode {
    eprintln!("holdfast: {}", error.full_message());
    if let Some(hint) = error.hint_text() {
        eprintln!("hint: {hint}");
    }
    ExitCode::FAILURE
}
