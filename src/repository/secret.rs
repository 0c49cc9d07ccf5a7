use std::fmt;
use std::path::PathBuf;

use crate::error::{Error, Result};

/// A text that is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Keeps `text` to itself.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text, for whom it is meant.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// Where a secret comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretSource {
    /// The configuration itself.
    Given(Secret),
    /// The first line of a file, read each time that it is needed.
    File(PathBuf),
}

const HINT: &str = "write the password into its first line, and keep a copy elsewhere: without it nothing \
                    that is backed up can be read";

impl SecretSource {
    /// The secret.
    ///
    /// # Errors
    /// The file cannot be read or is empty.
    pub fn read(&self) -> Result<Secret> {
        match self {
            Self::Given(secret) => Ok(secret.clone()),
            Self::File(path) => {
                let shown = path.display();
                let text = std::fs::read_to_string(path).map_err(|error| {
                    Error::io(format!("cannot read the password file {shown}"), error).hint(HINT)
                })?;
                match text.lines().next() {
                    Some(line) if !line.is_empty() => Ok(Secret::new(line)),
                    _ => {
                        Err(Error::invalid(format!("the password file {shown} is empty"))
                            .hint(HINT))
                    }
                }
            }
        }
    }
}
