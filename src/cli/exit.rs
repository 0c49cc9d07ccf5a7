//! How a command ends.

use std::process::ExitCode;

use super::args::Output;
use super::print::note;
use crate::api::admin::ErrorBody;
use crate::client;
use crate::error::{Error, ErrorKind};

/// Why a command did not do what it was asked.
#[derive(Debug)]
pub(super) enum Failure {
    /// An error; its kind chooses the exit code.
    Failed(Error),
    /// The daemon is not there.
    Unreachable(Error),
    /// What was checked is wrong, while the command itself was right.
    Found(Error),
    /// One of several things that were asked for failed, and was told of at once.
    Told(u8),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl From<client::Failure> for Failure {
    fn from(failure: client::Failure) -> Self {
        match failure {
            client::Failure::Unreachable(error) => Self::Unreachable(error),
            client::Failure::Refused(error) => Self::Failed(error),
        }
    }
}

impl Failure {
    /// The exit code (`holdfast --help` lists them).
    pub(super) fn code(&self) -> u8 {
        match self {
            Self::Unreachable(_) => 5,
            Self::Found(_) => 1,
            Self::Told(code) => *code,
            Self::Failed(error) => match error.kind() {
                ErrorKind::Invalid => 2,
                ErrorKind::NotFound => 3,
                ErrorKind::Conflict | ErrorKind::InUse => 4,
                _ => 1,
            },
        }
    }

    /// Tells the user, on standard error.
    pub(super) fn tell(&self, output: Output) {
        match self {
            Self::Told(_) => {}
            Self::Unreachable(error) | Self::Found(error) | Self::Failed(error) => {
                tell(error, output);
            }
        }
    }
}

/// Tells of an error in the form that was asked for.
pub(super) fn tell(error: &Error, output: Output) {
    if output == Output::Json {
        if let Ok(text) = serde_json::to_string(&ErrorBody::from(error)) {
            note(&text);
        }
        return;
    }
    let hint = error.hint_text().map(|hint| format!("; {hint}")).unwrap_or_default();
    note(&format!("holdfast: {}{hint}", error.full_message()).replace('\n', " "));
}

/// Does `work` for each of several things, tells of each that fails, and goes on with the rest.
pub(super) async fn each<T, R>(
    things: &[T],
    output: Output,
    mut work: impl FnMut(T) -> R,
) -> Result<(), Failure>
where
    T: Clone,
    R: Future<Output = Result<(), Failure>>,
{
    let mut code = None;
    for thing in things {
        if let Err(failure) = work(thing.clone()).await {
            failure.tell(output);
            code.get_or_insert(failure.code());
        }
    }
    code.map_or(Ok(()), |code| Err(Failure::Told(code)))
}

/// The end of the program.
pub(super) fn end(result: Result<(), Failure>, output: Output) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            failure.tell(output);
            ExitCode::from(failure.code())
        }
    }
}
