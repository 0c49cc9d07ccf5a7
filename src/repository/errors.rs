//! What rustic_core's errors mean to us. They tell no kind but in their text, which has pages of advice.

use rustic_core::RusticError;

use super::store::Store;
use crate::error::{Error, ErrorKind};

/// Words of errors that tell of what is damaged.
const DAMAGED: [&str; 9] = [
    "related to `cryptographic operations`",
    "deserialize",
    "not found in index",
    "is missing in index files",
    "does not exist.",
    "does not match the expected size",
    // Ours, of packs.
    "is missing",
    "is not what was stored",
    "is shorter than it should be",
];

pub(super) fn explain(store: &Store, error: &RusticError) -> Error {
    if error.is_incorrect_password() {
        return store
            .error(ErrorKind::Unsupported, "the password is wrong")
            .hint("look at the repository's password or password_file in the configuration");
    }
    if let Some((_, rest)) = message(error).split_once("Config version `")
        && let Some((version, _)) = rest.split_once('`')
    {
        return other_version(store, version);
    }
    let all: String = chain(error).map(|error| error.to_string()).collect();
    let kind = if all.contains("related to `unsupported operations`") {
        ErrorKind::Unsupported
    } else if DAMAGED.iter().any(|words| all.contains(words)) {
        ErrorKind::Corrupt
    } else {
        ErrorKind::Internal
    };
    store.error(kind, message(error))
}

/// Of a repository whose format is not the one that is known here.
pub(super) fn other_version(store: &Store, version: &str) -> Error {
    let what = format!("it has version {version} of the format, and only 2 is known here");
    store.error(ErrorKind::Unsupported, what).hint(match version {
        "1" => "`restic migrate upgrade_repo_v2` brings it to version 2",
        _ => "something newer made it: use a newer version of Holdfast, or another repository",
    })
}

/// The messages of an error and its causes in one line.
pub(super) fn message(error: &RusticError) -> String {
    let messages = chain(error).map(|error| {
        let shown = error.to_string();
        let message = shown.split_once("Message:\n").map_or(&*shown, |(_, message)| message);
        let lines = message.lines().map(str::trim).take_while(|line| !line.is_empty());
        lines.collect::<Vec<_>>().join(" ").trim_end_matches('.').to_owned()
    });
    messages.collect::<Vec<_>>().join(": ")
}

fn chain<'a>(
    error: &'a (dyn std::error::Error + 'static),
) -> impl Iterator<Item = &'a (dyn std::error::Error + 'static)> {
    std::iter::successors(Some(error), |error| error.source())
}
