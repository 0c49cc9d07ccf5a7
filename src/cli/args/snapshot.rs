//! `holdfast snapshot`

use clap::{Args, Subcommand};

use super::{Detach, parsed};
use crate::name::{HookName, SnapshotRef, VolumeName};

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum Snapshot {
    /// Cut a snapshot of a volume, in use or not
    #[command(after_help = "\
Examples:
  holdfast snapshot create pgdata@before-upgrade
  holdfast snapshot create pgdata@before-upgrade --hook postgres")]
    Create {
        #[command(flatten)]
        which: Which,
        /// What runs before and after it, by its name in the configuration [default: the volume's]
        #[arg(long, value_name = "NAME", value_parser = parsed::<HookName>)]
        hook: Option<HookName>,
        #[command(flatten)]
        detach: Detach,
    },
    /// List the snapshots of a volume, or of all
    #[command(visible_alias = "list")]
    Ls {
        /// The volume
        #[arg(value_parser = parsed::<VolumeName>)]
        volume: Option<VolumeName>,
    },
    /// Show all about a snapshot
    Inspect {
        #[command(flatten)]
        which: Which,
    },
    /// Remove a snapshot
    #[command(visible_alias = "remove")]
    Rm {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        detach: Detach,
    },
    /// Put a snapshot's content in place of its volume's, which must not be in use
    ///
    /// What it replaces is kept as a snapshot, whose name is printed.
    #[command(after_help = "\
Examples:
  docker stop db
  holdfast snapshot restore pgdata@before-upgrade
  docker start db")]
    Restore {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        detach: Detach,
    },
}

/// A snapshot.
#[derive(Debug, Args)]
pub(in crate::cli) struct Which {
    /// The snapshot
    #[arg(value_name = "VOLUME@SNAPSHOT", value_parser = parsed::<SnapshotRef>)]
    pub(in crate::cli) snapshot: SnapshotRef,
}
