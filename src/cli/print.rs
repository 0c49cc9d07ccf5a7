//! Results to standard output.

use std::io::{self, Write};

use comfy_table::{Table, presets};
use serde::Serialize;

use super::args::Output;
use super::exit::Failure;
use crate::api::admin::Check;
use crate::error::Error;

/// Prints in the form that was asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Printer(pub(super) Output);

impl Printer {
    /// JSON, or what `human` makes of the same value.
    pub(super) fn show<T: Serialize + ?Sized>(
        self,
        value: &T,
        human: impl FnOnce(&T) -> String,
    ) -> Result<(), Failure> {
        let mut text = match self.0 {
            Output::Json => serde_json::to_string_pretty(value).map_err(|error| {
                Failure::Failed(Error::internal("the result cannot be written").caused_by(error))
            })?,
            Output::Table => human(value),
        };
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        raw(text.as_bytes())
    }
}

/// Bytes as they are.
pub(super) fn raw(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        // Whoever reads has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Err(error) => Err(Failure::Failed(Error::io("cannot print", error))),
        Ok(()) => Ok(()),
    }
}

/// Whether anybody reads what is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reader {
    There,
    Gone,
}

/// One line at once, for output that goes on.
pub(super) fn line(text: &str) -> Result<Reader, Failure> {
    let mut out = io::stdout().lock();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Reader::Gone),
        Err(error) => Err(Failure::Failed(Error::io("cannot print", error))),
        Ok(()) => Ok(Reader::There),
    }
}

/// A note beside the data. Nothing can be done where it cannot be written.
pub(super) fn note(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Columns under a heading.
pub(super) fn table<const N: usize>(
    header: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header);
    table.add_rows(rows);
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    // Two blanks end every column, the last one too.
    table.trim_fmt()
}

/// Names and values, one pair a line.
pub(super) fn pairs(pairs: &[(&str, String)]) -> String {
    let width = pairs.iter().map(|(name, _)| name.len()).max().unwrap_or(0) + 1;
    let mut text = String::new();
    for (name, value) in pairs {
        let label = format!("{name}:");
        text.push_str(format!("{label:width$} {value}").trim_end());
        text.push('\n');
    }
    text
}

/// What stands where there is nothing.
pub(super) fn or_dash(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

/// What a check of `what` has found.
pub(super) fn check(what: &str, check: &Check) -> String {
    let mut text = format!("{what}: {}\n", if check.sound { "sound" } else { "not sound" });
    for finding in &check.findings {
        text.push_str(&format!("  {finding}\n"));
    }
    for (index, step) in check.advice.iter().enumerate() {
        let lead = if index == 0 { "what to do:\n" } else { "" };
        text.push_str(&format!("{lead}  {}. {step}\n", index + 1));
    }
    text
}
