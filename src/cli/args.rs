//! What can be typed.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use super::flags::ConfigFlags;

/// Container volumes that outlive their containers and their host.
#[derive(Debug, Parser)]
#[command(name = "holdfast", version, propagate_version = false, max_term_width = 100)]
pub(super) struct Arguments {
    #[command(flatten)]
    pub(super) global: Global,
    #[command(subcommand)]
    pub(super) command: Command,
}

/// Flags of every command.
#[derive(Debug, Args)]
pub(super) struct Global {
    /// Print tables for people or JSON for programs
    #[arg(long, global = true, value_enum, default_value_t = Output::Table, value_name = "FORM", help_heading = "Everywhere")]
    pub(super) output: Output,
    /// Read this configuration file [default: /etc/holdfast/config.toml] [env: HOLDFAST_CONFIG]
    #[arg(long, global = true, value_name = "FILE", help_heading = "Everywhere")]
    pub(super) config: Option<PathBuf>,
    /// Reach the daemon at this socket [default: /run/holdfast/holdfast.sock] [env: HOLDFAST_ADMIN_SOCKET]
    #[arg(
        long,
        global = true,
        visible_alias = "socket",
        value_name = "PATH",
        help_heading = "Everywhere"
    )]
    pub(super) admin_socket: Option<String>,
}

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Output {
    /// For people.
    Table,
    /// For programs: stable keys, sizes in bytes, times in RFC 3339.
    Json,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Serve Docker and the command line on this host
    Daemon(Daemon),
}

/// `daemon`
#[derive(Debug, Args)]
pub(super) struct Daemon {
    /// Move the catalog aside and make a new one from what the backends hold
    #[arg(long)]
    pub(super) rebuild_catalog: bool,
    /// Print the points at which tests can stop the daemon
    #[arg(long, hide = true)]
    pub(super) list_failpoints: bool,
    #[command(flatten)]
    pub(super) flags: ConfigFlags,
}
