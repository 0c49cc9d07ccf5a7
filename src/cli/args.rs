//! What can be typed.

mod backup;
mod pool;
mod repository;
mod schedule;
mod snapshot;
mod volume;

use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Parser, Subcommand, ValueEnum};

use super::flags::ConfigFlags;
use crate::error::Error;
use crate::id::OperationId;
use crate::name::{SnapshotRef, VolumeName};

pub(super) use backup::Backup;
pub(super) use pool::Pool;
pub(super) use repository::Repository;
pub(super) use schedule::{Schedule, Settings};
pub(super) use snapshot::Snapshot;
pub(super) use volume::{Volume, Words};

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
  holdfast backup create pgdata

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
    /// Store volumes in repositories, and make volumes of what is stored
    #[command(subcommand)]
    Backup(Backup),
    /// Make, show and check the repositories that hold backups
    #[command(subcommand)]
    Repository(Repository),
    /// Show, grow, check and mend the pools that volumes share
    #[command(subcommand)]
    Pool(Pool),
    /// Show, follow and end changes in progress
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
    /// End an operation before it is done, and undo what it has begun
    ///
    /// Backups, restores, verifications, prunes and the making of a volume can be cancelled. Waits until the
    /// operation has ended.
    #[command(after_help = "\
Examples:
  holdfast operation ls
  holdfast operation cancel b5541c8c-c9b3-40a2-a2a1-3d7a9e0dd7de")]
    Cancel {
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

/// Whether to wait.
#[derive(Debug, Clone, Copy, Args)]
pub(super) struct Detach {
    /// Do not wait: print the operation's id, for `holdfast operation watch`
    #[arg(long)]
    pub(super) detach: bool,
}

/// A volume or a snapshot, to be copied or stored.
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
