use clap::{Args, Subcommand};

use super::{Detach, parsed};
use crate::keep::Keep;
use crate::name::{HookName, RepositoryName, VolumeName};
use crate::timing::Timing;

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum Schedule {
    /// Say when snapshots and backups of a volume are made, and how many are kept
    ///
    /// This takes the place of the schedule that the volume has. TIME is an interval (15m, 1h, 1d, 1w) or a
    /// cron line in UTC ("0 3 * * *", @daily). What was missed while the host was down is made up once.
    #[command(after_help = "\
Examples:
  holdfast schedule set pgdata --snapshot-every 1h --keep 24h,7d,4w
  holdfast schedule set pgdata --snapshot-every 15m --backup-every '0 3 * * *' --repository main --keep 7d,4w,12m

Snapshots that somebody made by hand are kept whatever the schedule says.")]
    Set {
        /// The volume
        #[arg(value_parser = parsed::<VolumeName>)]
        volume: VolumeName,
        #[command(flatten)]
        settings: Box<Settings>,
        #[command(flatten)]
        detach: Detach,
    },
    /// List the schedules of all volumes, with their next and last runs
    #[command(visible_alias = "list")]
    Ls,
    /// End a volume's schedule; what it has made stays
    #[command(visible_alias = "remove")]
    Rm {
        /// The volume
        #[arg(value_parser = parsed::<VolumeName>)]
        volume: VolumeName,
        #[command(flatten)]
        detach: Detach,
    },
}

/// When, and how many.
#[derive(Debug, Args)]
pub(in crate::cli) struct Settings {
    /// When snapshots are cut
    #[arg(long, value_name = "TIME", value_parser = parsed::<Timing>)]
    pub(in crate::cli) snapshot_every: Option<Timing>,
    /// When backups are made
    #[arg(long, value_name = "TIME", value_parser = parsed::<Timing>)]
    pub(in crate::cli) backup_every: Option<Timing>,
    /// How many are kept, of snapshots and backups each: 24h,7d,4w,12m,2y is the newest of so many hours,
    /// days, weeks, months and years; 3 is the last three [default: all]
    #[arg(long, value_name = "RULES", value_parser = parsed::<Keep>)]
    pub(in crate::cli) keep: Option<Keep>,
    /// Where backups go [default: as for `backup create`]
    #[arg(long, value_name = "NAME", value_parser = parsed::<RepositoryName>)]
    pub(in crate::cli) repository: Option<RepositoryName>,
    /// What runs before and after each snapshot, by its name in the configuration
    #[arg(long, value_name = "NAME", value_parser = parsed::<HookName>)]
    pub(in crate::cli) hook: Option<HookName>,
}
