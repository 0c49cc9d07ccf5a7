//! `holdfast pool`

use clap::Subcommand;

use super::{Detach, parsed};
use crate::name::BackendName;
use crate::units::ByteSize;

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum Pool {
    /// List all pools: how full they are, and what is wrong with them
    #[command(visible_alias = "list")]
    Ls,
    /// Show all about a pool
    Inspect {
        /// Its name, which is its backend's; not needed where there is one pool
        #[arg(value_parser = parsed::<BackendName>)]
        name: Option<BackendName>,
    },
    /// Make a pool larger, in use or not
    ///
    /// A pool on files gets the size that is named. A pool on devices takes all of its devices: make
    /// those larger first (lvextend, a larger cloud disk), then run this.
    #[command(after_help = "\
Examples:
  holdfast pool grow 200G
  lvextend --size +100G vg/holdfast && holdfast pool grow")]
    Grow {
        /// How large its data is to be [default: as large as its devices have become]
        #[arg(value_parser = parsed::<ByteSize>)]
        size: Option<ByteSize>,
        /// Which pool; not needed where there is one
        #[arg(long, value_name = "NAME", value_parser = parsed::<BackendName>)]
        pool: Option<BackendName>,
        #[command(flatten)]
        detach: Detach,
    },
    /// Read all of a pool's metadata, and say what is wrong and what to do
    ///
    /// Nothing is changed, and volumes stay in use. The exit code is 1 if something is wrong.
    Check {
        /// Its name; not needed where there is one pool
        #[arg(value_parser = parsed::<BackendName>)]
        name: Option<BackendName>,
        #[command(flatten)]
        detach: Detach,
    },
    /// Mend a pool's metadata, while no volume of it is in use
    ///
    /// A copy of the metadata is kept in the state directory first. The metadata is overwritten only by what
    /// thin_repair has made of it and thin_check has found sound.
    #[command(after_help = "\
Examples:
  holdfast pool check
  docker stop db
  holdfast pool repair
  docker start db")]
    Repair {
        /// Its name; not needed where there is one pool
        #[arg(value_parser = parsed::<BackendName>)]
        name: Option<BackendName>,
        #[command(flatten)]
        detach: Detach,
    },
}
