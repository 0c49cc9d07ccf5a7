//! `holdfast volume`

use clap::{Args, Subcommand};

use super::{Detach, Source, parsed};
use crate::id::{MountId, VolumeUuid};
use crate::name::{BackendName, VolumeName};
use crate::units::ByteSize;

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum Volume {
    /// Make a volume
    #[command(after_help = options_help("\
Examples:
  holdfast volume create pgdata
  holdfast volume create pgdata --size 20G -o fs=xfs -o uid=70 -o mode=0700
  holdfast volume create copy -o clone-of=pgdata

Making a volume that exists with the same options changes nothing; with other options it fails and
says which differ."))]
    Create {
        /// Its name
        #[arg(value_parser = parsed::<VolumeName>)]
        name: VolumeName,
        /// Where it lives [default: default_backend of the configuration]
        #[arg(long, value_parser = parsed::<BackendName>)]
        backend: Option<BackendName>,
        /// How large it is: bytes or 10G, 512M ... [default: the backend's]
        #[arg(long, value_parser = size_as_typed)]
        size: Option<String>,
        #[command(flatten)]
        words: Words,
        #[command(flatten)]
        detach: Detach,
    },
    /// List all volumes
    #[command(visible_alias = "list")]
    Ls,
    /// Show all about volumes
    Inspect {
        /// Their names
        #[arg(required = true, value_name = "NAME", value_parser = parsed::<VolumeName>)]
        names: Vec<VolumeName>,
    },
    /// Remove volumes, each as its option on-remove says
    ///
    /// With on-remove=delete, the default, a volume's data and all of its snapshots are gone for good. If
    /// there are snapshots that somebody made of it, it is only removed with --snapshots. (`docker volume
    /// rm` cannot be told, and deletes them.)
    #[command(visible_alias = "remove")]
    Rm {
        /// Their names
        #[arg(required = true, value_name = "NAME", value_parser = parsed::<VolumeName>)]
        names: Vec<VolumeName>,
        /// Delete their snapshots too
        #[arg(long)]
        snapshots: bool,
        #[command(flatten)]
        detach: Detach,
    },
    /// Take back a volume that was removed with on-remove=trash
    Undelete {
        /// The name that it had
        #[arg(value_parser = parsed::<VolumeName>)]
        name: VolumeName,
        #[command(flatten)]
        detach: Detach,
    },
    /// Take back a volume that was removed with on-remove=retain
    ///
    /// Or any other that a backend holds and the catalog does not know; `holdfast status` warns of those.
    #[command(after_help = "\
Examples:
  holdfast volume adopt 248ef1cf-e985-4763-ab0c-b4f4bcdd31f3
  holdfast volume adopt 248ef1cf-e985-4763-ab0c-b4f4bcdd31f3 pgdata-old")]
    Adopt {
        /// Its uuid, as `volume inspect` told it; the name of its directory on the backend loop
        #[arg(value_parser = parsed::<VolumeUuid>)]
        uuid: VolumeUuid,
        /// Its name from now on [default: the one that it had]
        #[arg(value_parser = parsed::<VolumeName>)]
        name: Option<VolumeName>,
        #[command(flatten)]
        detach: Detach,
    },
    /// Make a volume larger, in use or not
    #[command(after_help = "\
Examples:
  holdfast volume resize pgdata 40G")]
    Resize {
        /// Its name
        #[arg(value_parser = parsed::<VolumeName>)]
        name: VolumeName,
        /// How large it is to be
        #[arg(value_parser = parsed::<ByteSize>)]
        size: ByteSize,
        #[command(flatten)]
        detach: Detach,
    },
    /// Mount a volume on this host, as a container would, and print where
    #[command(after_help = "\
Examples:
  cd $(holdfast volume mount pgdata)
  holdfast volume unmount pgdata")]
    Mount {
        /// Its name
        #[arg(value_parser = parsed::<VolumeName>)]
        name: VolumeName,
        #[command(flatten)]
        by: By,
    },
    /// Give up a mount made with `volume mount`
    Unmount {
        /// Its name
        #[arg(value_parser = parsed::<VolumeName>)]
        name: VolumeName,
        #[command(flatten)]
        by: By,
    },
    /// Make a new volume with the content of another, or of a snapshot
    #[command(after_help = "\
Examples:
  holdfast volume clone pgdata pgdata-test
  holdfast volume clone pgdata@before-upgrade pgdata-old")]
    Clone {
        /// VOLUME or VOLUME@SNAPSHOT
        #[arg(value_parser = parsed::<Source>)]
        source: Source,
        /// The new volume's name
        #[arg(value_parser = parsed::<VolumeName>)]
        new: VolumeName,
        #[command(flatten)]
        words: Words,
        #[command(flatten)]
        detach: Detach,
    },
    /// Give a volume that is not in use another name
    Rename {
        /// Its name
        #[arg(value_parser = parsed::<VolumeName>)]
        name: VolumeName,
        /// Its name from now on
        #[arg(value_parser = parsed::<VolumeName>)]
        new: VolumeName,
        #[command(flatten)]
        detach: Detach,
    },
}

/// Options and labels of a new volume.
#[derive(Debug, Args)]
pub(in crate::cli) struct Words {
    /// An option of the volume; repeat it for more. `holdfast volume create --help` lists them
    #[arg(short = 'o', long = "option", value_name = "KEY=VALUE", value_parser = pair)]
    pub(in crate::cli) options: Vec<(String, String)>,
    /// A label; repeat it for more
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = pair)]
    pub(in crate::cli) labels: Vec<(String, String)>,
}

/// Who mounts.
#[derive(Debug, Args)]
pub(in crate::cli) struct By {
    /// The mount id that holds the mount
    #[arg(long, default_value = "cli", value_parser = parsed::<MountId>)]
    pub(in crate::cli) id: MountId,
}

/// The examples, and every option that a volume can have.
fn options_help(examples: &str) -> String {
    use std::fmt::Write as _;
    let mut help =
        format!("{examples}\n\nOptions of a volume, the same as for `docker volume create -o`:\n");
    for key in crate::options::KEYS {
        let _ = writeln!(help, "  {}={}\n          {}", key.name, key.form, key.help);
    }
    help.trim_end().to_owned()
}

/// Kept as it was typed, because it is shown again among the volume's options.
pub(super) fn size_as_typed(text: &str) -> Result<String, String> {
    parsed::<ByteSize>(text).map(|_| text.to_owned())
}

/// A key alone means that it is set, as for Docker.
fn pair(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').unwrap_or((text, ""));
    if key.is_empty() {
        return Err("write KEY=VALUE".to_owned());
    }
    Ok((key.to_owned(), value.to_owned()))
}
