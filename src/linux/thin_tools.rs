//! Debian's tools for the metadata of thin pools. They work on devices that no pool is using, and on
//! files.

use std::ffi::OsStr;
use std::path::Path;
use std::time::Duration;

use super::process::{Program, Programs};
use crate::error::{ErrorKind, Result};

/// A pool's metadata can be 16 GiB large.
const LIMIT: Duration = Duration::from_secs(1800);

/// Reads all of a pool's metadata and compares it with itself.
///
/// # Errors
/// `Corrupt`, with the tool's words, if it is not sound.
pub(crate) async fn check_thin_metadata(device: &Path) -> Result<()> {
    run(Program::ThinCheck, &[device.as_os_str()]).await
}

/// The same, and if the metadata is sound, takes away the mark that it has to be checked.
pub(crate) async fn clear_needs_check(device: &Path) -> Result<()> {
    run(Program::ThinCheck, &["--clear-needs-check-flag".as_ref(), device.as_os_str()]).await
}

/// Writes what can be saved of the metadata `from` to `to`, which is as large.
pub(crate) async fn repair_thin_metadata(from: &Path, to: &Path) -> Result<()> {
    let words = ["-i".as_ref(), from.as_os_str(), "-o".as_ref(), to.as_os_str()];
    run(Program::ThinRepair, &words).await
}

async fn run(program: Program, words: &[&OsStr]) -> Result<()> {
    let ran = Programs::find().run(program, words, LIMIT).await;
    ran.map(drop).map_err(|error| match error.kind() {
        ErrorKind::Internal => error.with_kind(ErrorKind::Corrupt),
        _ => error,
    })
}
