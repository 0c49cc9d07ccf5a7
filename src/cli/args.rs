//! What can be typed.

mod schedule;

use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Parser, Subcommand, ValueEnum};

use super::flags::ConfigFlags;
use crate::error::Error;
use crate::id::{MountId, OperationId, VolumeUuid};
use crate::name::{BackendName, HookName, SnapshotRef, VolumeName};
use crate::units::ByteSize;
pub(super) use schedule::{Schedule, Settings};

/// Container volumes that outlive their containers and their host
///
/// One daemon for each host serves Docker (`docker run --volume-driver holdfast`, `docker volume create
/// --driver holdfast`) and this command line.
#[derive(Debug, Parser)]
#[command(
    name = "holdfast",
    version,
    max_term_width = 100,
    after_help = "\
Examples:
  holdfast status
  holdfast volume create pgdata --size 20G --label team=data
  docker run -v pgdata:/var/lib/postgresql/data --volume-driver holdfast postgres
  holdfast snapshot create pgdata@before-upgrade
  holdfast volume clone pgdata@before-upgrade pgdata-test

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 not found, 4 conflict or in use, 5 daemon not reachable."
)]
pub(super) struct Arguments {
    #[command(flatten)]
    pub(super) global: Global,
    #[command(subcommand)]
    pub(super) command: Command,
}

/// Flags of every command.
#[derive(Debug, Args)]
#[command(next_help_heading = "Everywhere")]
pub(super) struct Global {
    /// Print tables for people or JSON for programs
    #[arg(long, global = true, value_enum, default_value_t = Output::Table, value_name = "FORM")]
    pub(super) output: Output,
    /// Read this configuration [default: /etc/holdfast/config.toml] [env: HOLDFAST_CONFIG]
    #[arg(long, global = true, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    /// The daemon's socket [default: /run/holdfast/holdfast.sock] [env: HOLDFAST_ADMIN_SOCKET]
    #[arg(long, global = true, visible_alias = "socket", value_name = "PATH")]
    pub(super) admin_socket: Option<String>,
}

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Output {
    /// For people
    Table,
    /// For programs: stable keys, sizes in bytes, times in RFC 3339
    Json,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Serve Docker and the command line on this host
    #[command(after_help = "\
Examples:
  holdfast daemon
  holdfast daemon --loop-dir /srv/holdfast --log-level debug")]
    Daemon(Daemon),
    /// Show this node on one screen: backends, pools, volumes, mounts, operations, warnings
    Status,
    /// Make, show, change and remove volumes
    #[command(subcommand)]
    Volume(Volume),
    /// Make, show, restore and remove snapshots
    #[command(subcommand)]
    Snapshot(Snapshot),
    /// Have snapshots and backups made again and again
    #[command(subcommand)]
    Schedule(Schedule),
    /// Show, grow, check and mend the pools that volumes share
    #[command(subcommand)]
    Pool(Pool),
    /// Show and follow changes in progress
    #[command(subcommand)]
    Operation(Operation),
    /// Show what has happened lately, or as it happens
    ///
    /// The daemon remembers the last 1000 events until it stops. With --output json each line is one event.
    #[command(after_help = "\
Examples:
  holdfast events
  holdfast events --follow --output json | jq --unbuffered 'select(.kind == \"pool.low\")'")]
    Events(Events),
    /// Show and check the configuration
    #[command(subcommand)]
    Config(Config),
    /// Print a completion script for a shell
    #[command(after_help = "\
Examples:
  holdfast completions bash > /etc/bash_completion.d/holdfast")]
    Completions {
        /// The shell
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
}

/// `events`
#[derive(Debug, Args)]
pub(super) struct Events {
    /// Go on with new events as they come, until interrupted
    #[arg(long)]
    pub(super) follow: bool,
    /// Only those after the event with this number [default: all; with --follow, only new ones]
    #[arg(long, value_name = "SEQUENCE")]
    pub(super) after: Option<u64>,
}

/// `daemon`
#[derive(Debug, Args)]
pub(super) struct Daemon {
    /// Move the catalog aside and make a new one from what the backends hold; what cannot be read is left out and told of
    #[arg(long)]
    pub(super) rebuild_catalog: bool,
    /// Print the points at which tests can stop the daemon
    #[arg(long, hide = true)]
    pub(super) list_failpoints: bool,
    #[command(flatten)]
    pub(super) flags: ConfigFlags,
}

#[derive(Debug, Subcommand)]
pub(super) enum Volume {
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

#[derive(Debug, Subcommand)]
pub(super) enum Snapshot {
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

#[derive(Debug, Subcommand)]
pub(super) enum Pool {
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

#[derive(Debug, Subcommand)]
pub(super) enum Operation {
    /// List what runs, what is stuck, and the last that are over
    #[command(visible_alias = "list")]
    Ls,
    /// Follow an operation to its end; the exit code is the operation's
    Watch {
        /// Its id
        #[arg(value_parser = parsed::<OperationId>)]
        id: OperationId,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum Config {
    /// Print every value in force and where it came from
    ///
    /// That is for a daemon that is started with the same file, environment and flags.
    Show(Box<ConfigFlags>),
    /// Check a configuration file without using it
    Check {
        /// The file
        file: PathBuf,
    },
}

/// Options and labels of a new volume.
#[derive(Debug, Args)]
pub(super) struct Words {
    /// An option of the volume; repeat it for more. `holdfast volume create --help` lists them
    #[arg(short = 'o', long = "option", value_name = "KEY=VALUE", value_parser = pair)]
    pub(super) options: Vec<(String, String)>,
    /// A label; repeat it for more
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = pair)]
    pub(super) labels: Vec<(String, String)>,
}

/// Whether to wait.
#[derive(Debug, Clone, Copy, Args)]
pub(super) struct Detach {
    /// Do not wait: print the operation's id, for `holdfast operation watch`
    #[arg(long)]
    pub(super) detach: bool,
}

/// Who mounts.
#[derive(Debug, Args)]
pub(super) struct By {
    /// The mount id that holds the mount
    #[arg(long, default_value = "cli", value_parser = parsed::<MountId>)]
    pub(super) id: MountId,
}

/// A snapshot.
#[derive(Debug, Args)]
pub(super) struct Which {
    /// The snapshot
    #[arg(value_name = "VOLUME@SNAPSHOT", value_parser = parsed::<SnapshotRef>)]
    pub(super) snapshot: SnapshotRef,
}

/// What a clone is made of.
#[derive(Debug, Clone)]
pub(super) enum Source {
    Volume(VolumeName),
    Snapshot(SnapshotRef),
}

impl FromStr for Source {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        if text.contains('@') {
            text.parse().map(Self::Snapshot)
        } else {
            text.parse().map(Self::Volume)
        }
    }
}

/// Reads a checked word; its error says all in one line.
fn parsed<T: FromStr<Err = Error>>(text: &str) -> Result<T, String> {
    text.parse().map_err(|error: Error| match error.hint_text() {
        Some(hint) => format!("{}; {hint}", error.full_message()),
        None => error.full_message(),
    })
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
fn size_as_typed(text: &str) -> Result<String, String> {
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

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;
    use std::path::Path;

    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_commands_are_well_formed() {
        Arguments::command().debug_assert();
    }

    /// What a command's help says, without the flags that every command has.
    fn manual(command: &mut clap::Command, name: &str, into: &mut String) {
        let visible: Vec<String> = command
            .get_subcommands()
            .filter(|sub| !sub.is_hide_set() && sub.get_name() != "help")
            .map(|sub| sub.get_name().to_owned())
            .collect();
        for sub in &visible {
            let full = format!("{name} {sub}");
            manual(command.find_subcommand_mut(sub).unwrap(), &full, into);
        }
        if visible.is_empty() {
            let help = command.clone().bin_name(name).render_long_help().to_string();
            let (own, rest) = help.split_once("Everywhere:").unwrap();
            let examples = rest.find("Examples:").map_or("", |at| &rest[at..]);
            let lines = format!("{own}{examples}");
            let lines: Vec<&str> = lines.lines().map(str::trim_end).collect();
            let _ = writeln!(into, "### {name}\n\n```text\n{}\n```\n", lines.join("\n").trim());
        }
    }

    /// The reference in the manual is the help. `HOLDFAST_WRITE_DOCS=1 cargo test` writes it.
    #[test]
    fn the_manual_says_what_the_help_says() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/commands.md");
        let found = std::fs::read_to_string(&path).unwrap();
        let (head, rest) = found.split_once("<!-- commands -->\n").unwrap();
        let (_, tail) = rest.split_once("<!-- /commands -->\n").unwrap();
        let mut reference = String::new();
        let mut command = Arguments::command();
        command.build();
        manual(&mut command, "holdfast", &mut reference);
        let right = format!("{head}<!-- commands -->\n{reference}<!-- /commands -->\n{tail}");
        if std::env::var_os("HOLDFAST_WRITE_DOCS").is_some() {
            std::fs::write(&path, &right).unwrap();
        }
        assert_eq!(std::fs::read_to_string(&path).unwrap(), right);
    }
}
