//! `holdfast repository`

use clap::Subcommand;

use super::{Detach, parsed};
use crate::name::RepositoryName;

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum Repository {
    /// Make a repository in the place that the configuration names
    ///
    /// It is encrypted with the password of the configuration: keep a copy of that in another place, for without it no
    /// backup can be restored. If the repository is there already, nothing is changed.
    #[command(after_help = "\
Examples:
  cat /etc/holdfast/config.toml
    [repository.main]
    url = \"s3:https://s3.eu-west-1.amazonaws.com/bucket/prefix\"
    password_file = \"/etc/holdfast/repository.key\"
  holdfast repository init main
  holdfast backup create pgdata

It is an ordinary restic repository: `restic -r URL snapshots` reads it too.")]
    Init {
        /// Its name in the configuration
        #[arg(value_parser = parsed::<RepositoryName>)]
        name: RepositoryName,
        #[command(flatten)]
        detach: Detach,
    },
    /// List the repositories of the configuration, and whether they can be used
    #[command(visible_alias = "list")]
    Ls,
    /// Compare what a repository says it holds with what is there
    ///
    /// Nothing is changed, and backups can go on. The exit code is 1 if something is wrong. `backup verify` reads the
    /// backups themselves.
    #[command(after_help = "\
Examples:
  holdfast repository check main")]
    Check {
        /// Its name in the configuration
        #[arg(value_parser = parsed::<RepositoryName>)]
        name: RepositoryName,
        #[command(flatten)]
        detach: Detach,
    },
}
