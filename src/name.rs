//! Checked names. Docker checks none of them, so a name that got past these types is safe in a path,
//! an argument and a log line.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// The longest name, in bytes.
pub const MAX_NAME_LENGTH: usize = 128;

fn check(what: &str, text: &str) -> Result<()> {
    let first_ok = text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
    let rest_ok = text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b));
    if first_ok && rest_ok && text.len() <= MAX_NAME_LENGTH {
        return Ok(());
    }
    let shown: String = text.chars().take(40).collect();
    let dots = if shown.len() < text.len() { "..." } else { "" };
    Err(Error::invalid(format!("{shown:?}{dots} is not a {what} name")).hint(format!(
        "use 1 to {MAX_NAME_LENGTH} letters, digits, '_', '.' and '-', beginning with a letter or digit"
    )))
}

macro_rules! checked_name {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = Error;

            fn try_from(text: String) -> Result<Self> {
                check($what, &text)?;
                Ok(Self(text))
            }
        }

        impl FromStr for $name {
            type Err = Error;

            fn from_str(text: &str) -> Result<Self> {
                text.to_owned().try_into()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

checked_name! {
    /// A volume's name: `[A-Za-z0-9][A-Za-z0-9_.-]{0,127}`.
    VolumeName, "volume"
}
checked_name! {
    /// A snapshot's name, unique within its volume.
    SnapshotName, "snapshot"
}
checked_name! {
    /// A backend's name, such as `loop`.
    BackendName, "backend"
}
checked_name! {
    /// A repository's name in the configuration, such as `main`.
    RepositoryName, "repository"
}
checked_name! {
    /// A hook's name in the configuration, such as `postgres`.
    HookName, "hook"
}

/// A snapshot of a volume, written `volume@snapshot`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SnapshotRef {
    /// The volume.
    pub volume: VolumeName,
    /// The snapshot's name within the volume.
    pub snapshot: SnapshotName,
}

impl FromStr for SnapshotRef {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (volume, snapshot) = text.split_once('@').ok_or_else(|| {
            let shown: String = text.chars().take(40).collect();
            Error::invalid(format!("{shown:?} does not name a snapshot"))
                .hint("write VOLUME@SNAPSHOT, such as pgdata@before-upgrade")
        })?;
        Ok(Self { volume: volume.parse()?, snapshot: snapshot.parse()? })
    }
}

impl TryFrom<String> for SnapshotRef {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<SnapshotRef> for String {
    fn from(reference: SnapshotRef) -> Self {
        reference.to_string()
    }
}

impl fmt::Display for SnapshotRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.volume, self.snapshot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rule_10_names_are_checked_by_us() {
        for good in ["a", "0", "vol.1_1-0", "A-b", &"x".repeat(128)] {
            assert!(good.parse::<VolumeName>().is_ok(), "{good}");
        }
        for bad in [
            "",
            ".",
            "..",
            "../x",
            "a/b",
            "-a",
            "_a",
            ".a",
            "a b",
            "a\0b",
            "a\n",
            "ä",
            "a@b",
            "a;rm -rf",
            "$(x)",
            &"x".repeat(129),
            &"y".repeat(10_000),
        ] {
            let error = bad.parse::<VolumeName>().unwrap_err();
            assert!(error.full_message().len() < 300, "a hostile name must not flood the log");
        }
    }

    #[test]
    fn a_snapshot_is_named_with_its_volume() {
        let reference: SnapshotRef = "pgdata@before-upgrade".parse().unwrap();
        assert_eq!(reference.to_string(), "pgdata@before-upgrade");
        for bad in ["pgdata", "@x", "pgdata@", "a@b@c", "../a@b"] {
            assert!(bad.parse::<SnapshotRef>().is_err(), "{bad}");
        }
    }
}
