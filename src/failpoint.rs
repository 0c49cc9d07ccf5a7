//! Named points between the steps of every operation, at which a test can stop the daemon.
//!
//! `HOLDFAST_FAILPOINTS=create.format=kill,mount.attach=delay:500` arms them. Each side effect of an
//! operation runs as a [`Step`], and each step has its failpoint just after it, so a step without
//! one cannot be written.

use std::collections::HashMap;
use std::sync::OnceLock;
use std::time::Duration;

use crate::error::{Error, Result};

/// The environment variable that arms failpoints.
pub const VARIABLE: &str = "HOLDFAST_FAILPOINTS";

macro_rules! steps {
    ($($variant:ident => $name:literal),* $(,)?) => {
        /// One step of an operation: what has happened when its failpoint is reached.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[allow(missing_docs, reason = "the name says it: operation, dot, what was just done")]
        pub enum Step { $($variant),* }

        impl Step {
            /// Every step of every operation.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// `<operation>.<what was just done>`.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),* }
            }
        }
    };
}

steps! {
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
    SnapshotFreeze => "snapshot.freeze",
    SnapshotCut => "snapshot.cut",
    SnapshotThaw => "snapshot.thaw",
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
    UndeleteIntent => "undelete.intent",
    UndeleteDescribe => "undelete.describe",
    UndeleteFinish => "undelete.finish",
}

#[derive(Debug, Clone, Copy)]
enum Action {
    Kill,
    Fail,
    Delay(Duration),
}

static ARMED: OnceLock<HashMap<&'static str, Action>> = OnceLock::new();

/// Arms the failpoints that `text` names. Called once, at start.
///
/// # Errors
/// A name that is not a step, or an action that is not `kill`, `error` or `delay:MILLISECONDS`.
pub fn arm(text: &str) -> Result<()> {
    let mut armed = HashMap::new();
    for item in text.split(',').map(str::trim).filter(|item| !item.is_empty()) {
        let wrong = |what: &str| Error::invalid(format!("{VARIABLE}: {item:?}: {what}"));
        let (name, action) = item.split_once('=').ok_or_else(|| wrong("write STEP=ACTION"))?;
        let step = Step::ALL
            .iter()
            .find(|step| step.name() == name)
            .ok_or_else(|| wrong("there is no such step"))?;
        let action = match action.split_once(':') {
            None if action == "kill" => Action::Kill,
            None if action == "error" => Action::Fail,
            Some(("delay", ms)) => {
                Action::Delay(Duration::from_millis(ms.parse().map_err(|_| wrong("delay:MS"))?))
            }
            _ => return Err(wrong("the action is kill, error or delay:MILLISECONDS")),
        };
        armed.insert(step.name(), action);
    }
    ARMED.set(armed).map_err(|_| Error::internal("failpoints were armed twice"))
}

/// Reached just after `step`.
///
/// # Errors
/// Only where a test asked for one.
pub async fn reached(step: Step) -> Result<()> {
    match ARMED.get().and_then(|armed| armed.get(step.name())) {
        None => Ok(()),
        Some(Action::Kill) => {
            tracing::error!(step = step.name(), "failpoint: killing this process");
            let _ = nix::sys::signal::kill(nix::unistd::getpid(), nix::sys::signal::SIGKILL);
            std::future::pending().await
        }
        Some(Action::Fail) => Err(Error::internal(format!("failpoint {}", step.name()))),
        Some(Action::Delay(duration)) => {
            tokio::time::sleep(*duration).await;
            Ok(())
        }
    }
}
