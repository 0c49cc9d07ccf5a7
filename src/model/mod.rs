//! What the catalog records: volumes, snapshots, mounts and operations, and what may follow what.

mod backup;
mod hook;
mod ledger;
mod operation;
mod outcome;
mod progress;
mod schedule;
mod snapshot;
mod subject;
mod volume;

pub use backup::Backup;
pub use hook::HookConfig;
pub use ledger::{Holder, MountEntry, MountLedger};
pub use operation::{Operation, OperationKind};
pub use outcome::Outcome;
pub use progress::Progress;
pub use schedule::{ActiveSchedule, RunKind, RunOutcome, RunResult, Runs, Schedule};
pub use snapshot::{Snapshot, SnapshotOrigin};
pub use subject::Subject;
pub use volume::{Content, Volume, VolumeState};
