//! The log: to standard error, for a person or for a program.

use std::io::IsTerminal;

use tracing::level_filters::LevelFilter;

use crate::error::{Error, Result};

/// How the log is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Lines for a person, in colour on a terminal.
    Text,
    /// One JSON object a line.
    Json,
}

/// Starts the log. Called once.
///
/// # Errors
/// If it was started before.
pub fn start(level: LevelFilter, format: Format) -> Result<()> {
    let builder = tracing_subscriber::fmt().with_max_level(level).with_writer(std::io::stderr);
    match format {
        Format::Text => builder.with_ansi(std::io::stderr().is_terminal()).try_init(),
        Format::Json => builder.json().flatten_event(true).try_init(),
    }
    .map_err(|error| Error::internal("the log was started twice").caused_by(error))
}
