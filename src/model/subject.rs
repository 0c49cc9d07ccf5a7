use std::fmt;

use serde::{Deserialize, Serialize};

use crate::name::{BackendName, RepositoryName, VolumeName};

/// What a change is made to. In JSON it is a key of its own beside others: `"volume": "data"`,
/// `"pool": "thin"` or `"repository": "main"`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Subject {
    /// A volume.
    Volume(VolumeName),
    /// A pool, by the name of its backend.
    Pool(BackendName),
    /// A repository.
    Repository(RepositoryName),
}

impl Subject {
    /// As people are told of it where volumes are what is usually changed: their bare names.
    pub fn short(&self) -> String {
        match self {
            Self::Volume(name) => name.to_string(),
            Self::Pool(_) | Self::Repository(_) => self.to_string(),
        }
    }

    /// What it is, in a word.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Volume(_) => "volume",
            Self::Pool(_) => "pool",
            Self::Repository(_) => "repository",
        }
    }

    /// The volume, if it is one.
    pub fn volume(&self) -> Option<&VolumeName> {
        match self {
            Self::Volume(name) => Some(name),
            Self::Pool(_) | Self::Repository(_) => None,
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Volume(name) => write!(f, "volume {name}"),
            Self::Pool(name) => write!(f, "pool {name}"),
            Self::Repository(name) => write!(f, "repository {name}"),
        }
    }
}
