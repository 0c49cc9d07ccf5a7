//! `holdfast backup`

use clap::{ArgGroup, Args, Subcommand};

use super::volume::{Words, size_as_typed};
use super::{Detach, Source, parsed};
use crate::id::BackupRef;
use crate::name::{BackendName, HookName, RepositoryName, VolumeName};

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum Backup {
    /// Store a volume's content in a repository, in use or not
    ///
    /// A snapshot is cut for it, so what a container writes meanwhile is not in it. If a snapshot is named, its
    /// content is stored. What the repository holds already is not sent again.
    #[command(after_help = "\
Examples:
  holdfast backup create pgdata
  holdfast backup create pgdata@before-upgrade --repository offsite

It is there when the command is done, and not before. `holdfast operation cancel` ends it.")]
    Create {
        /// VOLUME or VOLUME@SNAPSHOT
        #[arg(value_name = "VOLUME[@SNAPSHOT]", value_parser = parsed::<Source>)]
        source: Source,
        #[command(flatten)]
        place: Place,
        /// What runs before and after the snapshot, by its name in the configuration [default: the volume's]
        #[arg(long, value_name = "NAME", value_parser = parsed::<HookName>)]
        hook: Option<HookName>,
        #[command(flatten)]
        detach: Detach,
    },
    /// List the backups of a volume, or of all; the newest comes last
    #[command(
        visible_alias = "list",
        after_help = "\
Examples:
  holdfast backup ls
  holdfast backup ls pgdata --repository offsite

Volumes are told as they were named when they were backed up, and need not exist any more."
    )]
    Ls {
        /// The volume
        #[arg(value_parser = parsed::<VolumeName>)]
        volume: Option<VolumeName>,
        #[command(flatten)]
        place: Place,
    },
    /// Show all about a backup
    #[command(after_help = "\
Examples:
  holdfast backup inspect 3f9c2a41")]
    Inspect {
        /// Its id; the first digits are enough
        #[arg(value_parser = parsed::<BackupRef>)]
        id: BackupRef,
        #[command(flatten)]
        place: Place,
    },
    /// Make a new volume with the content of a backup
    ///
    /// No volume is overwritten: look at the new one, then use it in place of the old one. The same as
    /// `volume create NEW -o from-backup=ID`.
    #[command(after_help = "\
Examples:
  holdfast backup ls pgdata
  holdfast backup restore 3f9c2a41 pgdata-restored
  docker run --rm -v pgdata-restored:/data --volume-driver holdfast busybox ls /data

  docker stop db
  holdfast volume rename pgdata pgdata-broken
  holdfast volume rename pgdata-restored pgdata
  docker start db")]
    Restore {
        /// The backup; the first digits of its id are enough
        #[arg(value_parser = parsed::<BackupRef>)]
        id: BackupRef,
        /// The new volume's name
        #[arg(value_parser = parsed::<VolumeName>)]
        new: VolumeName,
        /// Where it is to live [default: as for a new volume]
        #[arg(long, value_parser = parsed::<BackendName>)]
        backend: Option<BackendName>,
        /// How large it is to be [default: as large as it was]
        #[arg(long, value_parser = size_as_typed)]
        size: Option<String>,
        #[command(flatten)]
        words: Words,
        #[command(flatten)]
        detach: Detach,
    },
    /// Remove backups
    ///
    /// Others need nothing of them. Their room in the repository is given back by `backup prune`.
    #[command(
        visible_alias = "remove",
        after_help = "\
Examples:
  holdfast backup rm 3f9c2a41 77e0b1d2
  holdfast backup prune"
    )]
    Rm {
        /// Their ids; the first digits are enough
        #[arg(required = true, value_name = "ID", value_parser = parsed::<BackupRef>)]
        ids: Vec<BackupRef>,
        #[command(flatten)]
        place: Place,
        #[command(flatten)]
        detach: Detach,
    },
    /// Read backups back, and say whether all of them can be restored
    ///
    /// All that a backup needs is fetched and compared with what was stored. The exit code is 1 if something is
    /// damaged. What is damaged is stored again by the next backup of the volume, if that still has it.
    #[command(
        group = ArgGroup::new("which").required(true),
        after_help = "\
Examples:
  holdfast backup verify 3f9c2a41
  holdfast backup verify --all --repository offsite"
    )]
    Verify {
        /// The backup; the first digits of its id are enough
        #[arg(group = "which", value_parser = parsed::<BackupRef>)]
        id: Option<BackupRef>,
        /// Every backup in the repository
        #[arg(long, group = "which")]
        all: bool,
        #[command(flatten)]
        place: Place,
        #[command(flatten)]
        detach: Detach,
    },
    /// Give back the room in a repository that no backup needs
    ///
    /// Says first how much that is. What no backup needs is marked, and removed by a prune a day or more later, so
    /// that backups of this and other hosts can go on meanwhile.
    #[command(after_help = "\
Examples:
  holdfast backup prune --dry-run
  holdfast backup prune
  holdfast backup prune --now")]
    Prune {
        #[command(flatten)]
        place: Place,
        /// Only say what would be given back
        #[arg(long, conflicts_with_all = ["now", "detach"])]
        dry_run: bool,
        /// Remove it at once; nobody else may use the repository meanwhile
        #[arg(long)]
        now: bool,
        #[command(flatten)]
        detach: Detach,
    },
}

/// Which repository.
#[derive(Debug, Args)]
pub(in crate::cli) struct Place {
    /// The repository [default: default_repository of the configuration]
    #[arg(long, value_name = "NAME", value_parser = parsed::<RepositoryName>)]
    pub(in crate::cli) repository: Option<RepositoryName>,
}
