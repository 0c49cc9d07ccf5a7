//! Named points between the steps of every operation, at which a test can stop the daemon.
//!
//! `HOLDFAST_FAILPOINTS=create.format=kill,mount.attach=delay:500` arms them. Each side effect of an
//! operation runs as a [`Step`], and what a backend does within one of those as [`BackendStep`]s.
//! What has side effects takes its step, and has its failpoint just after it, so a step without one
//! cannot be written.

use std::collections::HashMap;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::error::{Error, Result};

/// The environment variable that arms failpoints.
pub const VARIABLE: &str = "HOLDFAST_FAILPOINTS";

macro_rules! steps {
    ($(#[$doc:meta])* $steps:ident: $($variant:ident => $name:literal),* $(,)?) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[allow(missing_docs, reason = "the name says it: operation, dot, what was just done")]
        pub enum $steps { $($variant),* }

        impl $steps {
            /// Every step there is.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// `<operation>.<what was just done>`.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),* }
            }
        }
    };
}

steps! {
    /// One step of an operation: what has happened when its failpoint is reached.
    Step:
    CreateIntent => "create.intent",
    CreateAllocate => "create.allocate",
    CreateAttach => "create.attach",
    CreateFormat => "create.format",
    CreateRecordFormat => "create.record-format",
    CreateDetach => "create.detach",
    CreateDescribe => "create.describe",
    CreateFinish => "create.finish",
    CloneIntent => "clone.intent",
    CloneFreeze => "clone.freeze",
    CloneCopy => "clone.copy",
    CloneThaw => "clone.thaw",
    CloneAttach => "clone.attach",
    CloneIdentity => "clone.identity",
    CloneDetach => "clone.detach",
    CloneDescribe => "clone.describe",
    CloneFinish => "clone.finish",
    DeleteIntent => "delete.intent",
    DeleteUnmount => "delete.unmount",
    DeleteDetach => "delete.detach",
    DeleteCommit => "delete.commit",
    DeleteData => "delete.data",
    DeleteFinish => "delete.finish",
    MountIntent => "mount.intent",
    MountAttach => "mount.attach",
    MountGrowUnmounted => "mount.grow-unmounted",
    MountFilesystem => "mount.filesystem",
    MountGrow => "mount.grow",
    MountPrepare => "mount.prepare",
    MountDescribe => "mount.describe",
    MountFinish => "mount.finish",
    MountWritableUnmount => "mount-read-only.unmount",
    MountReadOnly => "mount-read-only.filesystem",
    UnmountIntent => "unmount.intent",
    UnmountFilesystem => "unmount.filesystem",
    UnmountDetach => "unmount.detach",
    UnmountFinish => "unmount.finish",
    SnapshotIntent => "snapshot.intent",
    SnapshotHookBefore => "snapshot-hook.before",
    SnapshotFreeze => "snapshot.freeze",
    SnapshotCut => "snapshot.cut",
    SnapshotThaw => "snapshot.thaw",
    SnapshotHookAfter => "snapshot-hook.after",
    SnapshotHookOver => "snapshot-hook.over",
    SnapshotDescribe => "snapshot.describe",
    SnapshotFinish => "snapshot.finish",
    DeleteSnapshotIntent => "delete-snapshot.intent",
    DeleteSnapshotDescribe => "delete-snapshot.describe",
    DeleteSnapshotData => "delete-snapshot.data",
    DeleteSnapshotFinish => "delete-snapshot.finish",
    RestoreIntent => "restore.intent",
    RestoreClear => "restore.clear",
    RestoreUnmount => "restore.unmount",
    RestoreDetach => "restore.detach",
    RestoreSafety => "restore.safety",
    RestoreCopy => "restore.copy",
    RestoreSwitch => "restore.switch",
    RestoreDescribe => "restore.describe",
    RestoreDiscard => "restore.discard",
    RestoreFinish => "restore.finish",
    GrowIntent => "grow.intent",
    GrowDevice => "grow.device",
    GrowFilesystem => "grow.filesystem",
    GrowDescribe => "grow.describe",
    GrowFinish => "grow.finish",
    RenameIntent => "rename.intent",
    RenameUnmount => "rename.unmount",
    RenameDetach => "rename.detach",
    RenameCommit => "rename.commit",
    RenameDescribe => "rename.describe",
    RenameFinish => "rename.finish",
    BackupIntent => "backup.intent",
    BackupSnapshot => "backup.snapshot",
    BackupStore => "backup.store",
    BackupRetire => "backup.retire",
    BackupFinish => "backup.finish",
    RestoreBackupIntent => "restore-backup.intent",
    RestoreBackupAllocate => "restore-backup.allocate",
    RestoreBackupAttach => "restore-backup.attach",
    RestoreBackupData => "restore-backup.data",
    RestoreBackupIdentity => "restore-backup.identity",
    RestoreBackupDetach => "restore-backup.detach",
    RestoreBackupDescribe => "restore-backup.describe",
    RestoreBackupFinish => "restore-backup.finish",
    UndeleteIntent => "undelete.intent",
    UndeleteDescribe => "undelete.describe",
    UndeleteFinish => "undelete.finish",
    ScheduleIntent => "schedule.intent",
    ScheduleDescribe => "schedule.describe",
    ScheduleFinish => "schedule.finish",
}

steps! {
    /// One step of a backend within a step of an operation, or at the start.
    BackendStep:
    DeviceMade => "device.made",
    DeviceLoaded => "device.loaded",
    DeviceSuspended => "device.suspended",
    DeviceResumed => "device.resumed",
    DeviceRemoved => "device.removed",
    PoolHeaders => "thin.pool.headers",
    PoolWipe => "thin.pool.wipe",
    PoolRecordsDevice => "thin.pool.records-device",
    PoolRecords => "thin.pool.records",
    PoolFinish => "thin.pool.finish",
    PoolCount => "thin.pool.count",
    PoolGrowFiles => "thin.pool.grow-files",
    ThinCreateIntent => "thin.create.intent",
    ThinCreateMessage => "thin.create.message",
    ThinCreateRefused => "thin.create.refused",
    ThinCreateRecord => "thin.create.record",
    ThinCreateCount => "thin.create.count",
    ThinDeleteIntent => "thin.delete.intent",
    ThinDeleteMessage => "thin.delete.message",
    ThinDeleteRecord => "thin.delete.record",
    ThinDeleteCount => "thin.delete.count",
    ThinDeleteDescription => "thin.delete.description",
    ThinDescribe => "thin.describe.record",
    ThinGrowRecord => "thin.grow.record",
    ThinReadReserve => "thin.read.reserve",
    ThinReadRelease => "thin.read.release",
    RepositoryPack => "repository.pack",
    RepositoryIndex => "repository.index",
    RepositorySnapshot => "repository.snapshot",
}

#[derive(Debug, Clone, Copy)]
enum Action {
    Kill,
    Fail,
    Delay(Duration),
}

#[derive(Debug)]
struct Failpoint {
    action: Action,
    /// At which time that it is reached it acts; at each if none is given.
    time: Option<u32>,
    reached: AtomicU32,
}

static ARMED: OnceLock<HashMap<&'static str, Failpoint>> = OnceLock::new();

/// Arms the failpoints that `text` names. Called once, at start.
///
/// # Errors
/// A name that is not a step, or an action that is not `kill`, `error` or `delay:MILLISECONDS`, each
/// perhaps with `@N`: then it acts only when it is reached for the `N`th time.
pub fn arm(text: &str) -> Result<()> {
    let mut armed = HashMap::new();
    let steps = Step::ALL.iter().map(|step| step.name());
    let steps: Vec<_> = steps.chain(BackendStep::ALL.iter().map(|step| step.name())).collect();
    for item in text.split(',').map(str::trim).filter(|item| !item.is_empty()) {
        let wrong = |what: &str| Error::invalid(format!("{VARIABLE}: {item:?}: {what}"));
        let (name, action) = item.split_once('=').ok_or_else(|| wrong("write STEP=ACTION"))?;
        let step = steps
            .iter()
            .find(|step| **step == name)
            .ok_or_else(|| wrong("there is no such step"))?;
        let (action, time) = match action.split_once('@') {
            None => (action, None),
            Some((action, time)) => {
                (action, Some(time.parse().map_err(|_| wrong("a number follows @"))?))
            }
        };
        let action = match action.split_once(':') {
            None if action == "kill" => Action::Kill,
            None if action == "error" => Action::Fail,
            Some(("delay", ms)) => {
                Action::Delay(Duration::from_millis(ms.parse().map_err(|_| wrong("delay:MS"))?))
            }
            _ => return Err(wrong("the action is kill, error or delay:MILLISECONDS")),
        };
        armed.insert(*step, Failpoint { action, time, reached: AtomicU32::new(0) });
    }
    ARMED.set(armed).map_err(|_| Error::internal("failpoints were armed twice"))
}

/// What is to happen at `step` now, if anything is.
fn due(step: &str) -> Option<Action> {
    let failpoint = ARMED.get()?.get(step)?;
    let now = failpoint.reached.fetch_add(1, Ordering::Relaxed).saturating_add(1);
    failpoint.time.is_none_or(|time| time == now).then_some(failpoint.action)
}

fn kill_this_process(step: &str) {
    tracing::error!(step, "failpoint: killing this process");
    let _ = nix::sys::signal::kill(nix::unistd::getpid(), nix::sys::signal::SIGKILL);
}

fn failure(step: &str) -> Error {
    Error::internal(format!("failpoint {step}"))
}

/// Reached just after `step`.
///
/// # Errors
/// Only where a test asked for one.
pub async fn reached(step: Step) -> Result<()> {
    match due(step.name()) {
        None => Ok(()),
        Some(Action::Kill) => {
            kill_this_process(step.name());
            std::future::pending().await
        }
        Some(Action::Fail) => Err(failure(step.name())),
        Some(Action::Delay(duration)) => {
            tokio::time::sleep(duration).await;
            Ok(())
        }
    }
}

/// The same for a step on a thread that may block.
///
/// # Errors
/// Only where a test asked for one.
pub fn reached_blocking(step: BackendStep) -> Result<()> {
    match due(step.name()) {
        None => Ok(()),
        Some(Action::Kill) => {
            kill_this_process(step.name());
            loop {
                std::thread::park();
            }
        }
        Some(Action::Fail) => Err(failure(step.name())),
        Some(Action::Delay(duration)) => {
            std::thread::sleep(duration);
            Ok(())
        }
    }
}
