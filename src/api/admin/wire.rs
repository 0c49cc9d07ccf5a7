//! What goes over the admin socket besides the engine's views.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::engine::view::ErrorView;
use crate::error::Error;
use crate::id::OperationId;
use crate::name::SnapshotName;

/// A volume to be made.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateVolume {
    /// Its name.
    pub name: String,
    /// Its options, as for `docker volume create -o`.
    #[serde(default)]
    pub options: BTreeMap<String, String>,
    /// Its labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// A snapshot to be cut, or the new name of a volume.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Named {
    /// The name.
    pub name: String,
}

/// A volume that a backend holds and nobody knows, to be taken up.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Adopt {
    /// Its uuid.
    pub uuid: String,
    /// Its name from now on; else the one that it had last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// Who mounts or unmounts.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MountBy {
    /// The mount id.
    pub id: String,
}

/// How large a volume is to be.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resize {
    /// A size as users write it, or bytes.
    pub size: Size,
}

/// A size in either form.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Size {
    /// Bytes.
    Bytes(u64),
    /// Text such as `10G`.
    Text(String),
}

/// The answer to a change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changed {
    /// The volume, or the snapshot as `volume@snapshot`.
    pub name: String,
    /// What the change could be watched by.
    pub operation: OperationId,
    /// Whether anything had to be done; not told of a change that goes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changed: Option<bool>,
    /// Where the volume is mounted now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mountpoint: Option<PathBuf>,
    /// The snapshot that keeps what a restore replaced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub safety: Option<SnapshotName>,
}

/// An error as the body of an answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ErrorBody {
    /// The error.
    pub error: ErrorView,
}

impl From<&Error> for ErrorBody {
    fn from(error: &Error) -> Self {
        Self {
            error: ErrorView {
                code: error.kind().code().to_owned(),
                message: error.full_message(),
                hint: error.hint_text().map(str::to_owned),
            },
        }
    }
}
