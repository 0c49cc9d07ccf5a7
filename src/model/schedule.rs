use std::collections::BTreeMap;
use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::keep::Keep;
use crate::name::{HookName, RepositoryName};
use crate::timing::Timing;

/// When snapshots and backups of a volume are made by themselves, and how many are kept.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Schedule {
    /// When snapshots are cut.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<Timing>,
    /// When backups are made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup: Option<Timing>,
    /// How many are kept, of the snapshots and of the backups each.
    #[serde(default)]
    pub keep: Keep,
    /// Where backups go; else to the one that the configuration says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repository: Option<RepositoryName>,
    /// What runs before and after each snapshot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hook: Option<HookName>,
}

impl Schedule {
    /// The schedule, if it makes anything.
    ///
    /// # Errors
    /// `Invalid` if nothing is made, or if it has a repository and no backups.
    pub fn checked(self) -> Result<Self> {
        if self.snapshot.is_none() && self.backup.is_none() {
            return Err(Error::invalid("the schedule does not say when anything is made")
                .hint("give snapshot-every, backup-every or both"));
        }
        if self.repository.is_some() && self.backup.is_none() {
            return Err(Error::invalid("the schedule has a repository, but makes no backups")
                .hint("give backup-every, or leave out the repository"));
        }
        Ok(self)
    }

    /// When runs of this kind are due.
    pub fn timing(&self, kind: RunKind) -> Option<&Timing> {
        match kind {
            RunKind::Snapshot => self.snapshot.as_ref(),
            RunKind::Backup => self.backup.as_ref(),
        }
    }
}

/// A schedule in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActiveSchedule {
    /// The schedule.
    #[serde(flatten)]
    pub schedule: Schedule,
    /// Since when each of its timings is in force: the first run is counted from then.
    pub since: BTreeMap<RunKind, Timestamp>,
}

impl ActiveSchedule {
    /// The schedule in force from `now` on. A timing that `before` had as well goes on.
    pub fn begin(schedule: Schedule, before: Option<&Self>, now: Timestamp) -> Self {
        let since = RunKind::ALL.into_iter().filter_map(|kind| {
            let timing = schedule.timing(kind)?;
            let same = before.filter(|before| before.schedule.timing(kind) == Some(timing));
            let since = same.and_then(|before| before.since.get(&kind).copied());
            Some((kind, since.unwrap_or(now)))
        });
        let since = since.collect();
        Self { schedule, since }
    }
}

/// What a schedule makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RunKind {
    /// A snapshot.
    Snapshot,
    /// A backup.
    Backup,
}

impl RunKind {
    /// Every one.
    pub const ALL: [Self; 2] = [Self::Snapshot, Self::Backup];

    /// One word for people and programs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Snapshot => "snapshot",
            Self::Backup => "backup",
        }
    }
}

impl fmt::Display for RunKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What came of one run of a schedule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunResult {
    /// What it was to make.
    pub kind: RunKind,
    /// When it began.
    pub started: Timestamp,
    /// When it ended.
    pub finished: Timestamp,
    /// How.
    pub outcome: RunOutcome,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RunOutcome {
    /// With a snapshot of this name or a backup of this id.
    Done(String),
    /// With an error.
    Failed(String),
}

/// The last runs of one kind of one volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Runs {
    /// The last.
    pub last: RunResult,
    /// The last that made something.
    pub good: Option<RunResult>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn a_schedule_makes_something() {
        let nothing = Schedule { keep: "3".parse().unwrap(), ..Schedule::default() };
        assert!(nothing.checked().is_err());
        let snapshot = Some("1h".parse().unwrap());
        let only = Schedule { snapshot, ..Schedule::default() };
        assert!(only.clone().checked().is_ok());
        let repository = Some("main".parse().unwrap());
        assert!(Schedule { repository, ..only }.checked().is_err());
    }

    #[test]
    fn a_timing_that_stays_goes_on() {
        let of = |snapshot: &str, backup: &str| Schedule {
            snapshot: Some(snapshot.parse().unwrap()),
            backup: Some(backup.parse().unwrap()),
            ..Schedule::default()
        };
        let first = ActiveSchedule::begin(of("1h", "1d"), None, at(100));
        let second = ActiveSchedule::begin(of("60m", "2d"), Some(&first), at(200));
        assert_eq!(second.since[&RunKind::Snapshot], at(100));
        assert_eq!(second.since[&RunKind::Backup], at(200));
    }
}
