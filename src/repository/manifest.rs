use serde::{Deserialize, Serialize};

use super::image::SEGMENT;
use crate::error::{Error, Result};
use crate::model::{Snapshot, Volume};

/// The file of a backup that tells what was backed up, as JSON.
pub(super) const MANIFEST: &str = "volume.json";

/// What a backup is of: all that is needed to make the volume again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The volume as it was recorded.
    #[serde(flatten)]
    pub volume: Volume,
    /// The snapshot that was backed up.
    pub snapshot: Snapshot,
    /// How its content is stored.
    #[serde(flatten)]
    pub layout: Layout,
}

/// How a backup stores a volume's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "layout", rename_all = "lowercase")]
pub enum Layout {
    /// The image of its device in segments below `image/`.
    Image {
        /// Bytes of a segment.
        segment_size: u64,
    },
    /// Its files below `data/`.
    Files,
}

impl Layout {
    /// The layout of every image that is stored now.
    pub const IMAGE: Self = Self::Image { segment_size: SEGMENT };
}

impl Manifest {
    pub(super) fn to_json(&self) -> Result<Vec<u8>> {
        serde_json::to_vec_pretty(self)
            .map_err(|error| Error::internal("cannot describe the volume").caused_by(error))
    }

    pub(super) fn from_json(text: &[u8]) -> Result<Self> {
        let read: Self = serde_json::from_slice(text).map_err(|error| {
            Error::unsupported(format!("{MANIFEST} cannot be understood"))
                .caused_by(error)
                .hint("a newer version may have made this backup")
        })?;
        match read.layout {
            Layout::Image { segment_size } if segment_size != SEGMENT => {
                Err(Error::unsupported(format!(
                    "its segments are {segment_size} bytes long, and this version knows only those of {SEGMENT}"
                )))
            }
            _ => Ok(read),
        }
    }
}
