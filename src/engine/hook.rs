//! Programs that run before and after a snapshot. Which one has begun stands in the recorded operation,
//! so that its end comes on every path.

use super::Engine;
use crate::catalog;
use crate::error::{Error, Result};
use crate::model::{HookConfig, Operation, OperationKind, Volume};
use crate::name::{HookName, SnapshotName};

impl Engine {
    /// The hook of this name.
    ///
    /// # Errors
    /// `Invalid` if the configuration has none.
    pub(super) fn hook(&self, name: &HookName) -> Result<&HookConfig> {
        let hooks = &self.inner.config.hooks;
        hooks.get(name).ok_or_else(|| {
            let known: Vec<&str> = hooks.keys().map(HookName::as_str).collect();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            Error::invalid(format!("there is no hook {name} on node {}", self.inner.config.node))
                .hint(format!("the hooks in its configuration are: {known}"))
        })
    }

    /// The hook for a snapshot of the volume: the one that was asked for, or that of its schedule, or
    /// that of its options.
    pub(super) fn hook_of(
        &self,
        volume: &Volume,
        asked: Option<HookName>,
    ) -> Result<Option<HookName>> {
        let of_schedule =
            || self.inner.catalog.read(|state| state.schedule(volume.uuid)?.schedule.hook.clone());
        let name = match asked.or_else(of_schedule) {
            Some(name) => Some(name),
            None => volume.options.get("hook").map(|text| text.parse()).transpose()?,
        };
        if let Some(name) = &name {
            self.hook(name)?;
        }
        Ok(name)
    }

    /// Runs the program before a snapshot.
    pub(super) async fn run_before(
        &self,
        name: &HookName,
        volume: &Volume,
        snapshot: &SnapshotName,
    ) -> Result<()> {
        let hook = self.hook(name)?;
        let run = self.run_hook(hook, &hook.before, volume, Some(snapshot)).await;
        run.map_err(|error| {
            error.context(format!("the program of hook {name} before the snapshot failed"))
        })
    }

    /// Runs the program that has to follow the one before. The snapshot stays if it fails.
    pub(super) async fn run_after(&self, operation: &Operation, volume: &Volume) {
        let OperationKind::Snapshot { snapshot, hook: Some(name) } = &operation.kind else {
            return;
        };
        let snapshot = self.inner.catalog.read(|state| {
            let mut all = state.snapshots(volume.uuid).iter();
            all.find(|one| one.uuid == *snapshot).map(|one| one.name.clone())
        });
        let run = async {
            let hook = self.hook(name)?;
            self.run_hook(hook, &hook.after, volume, snapshot.as_ref()).await
        };
        if let Err(error) = run.await {
            let text = format!(
                "the program of hook {name} after a snapshot of volume {} failed: {}",
                volume.name,
                error.full_message()
            );
            tracing::warn!("{text}");
            self.tell("hook.failed", &volume.name, text);
        }
    }

    /// Records that nothing of the operation's hook is still to come.
    pub(super) async fn end_hook(&self, operation: &Operation) -> Result<()> {
        let OperationKind::Snapshot { snapshot, .. } = operation.kind else { return Ok(()) };
        let kind = OperationKind::Snapshot { snapshot, hook: None };
        let over = Operation { kind, ..operation.clone() };
        self.inner.catalog.commit(vec![catalog::Change::PutOperation(Box::new(over))]).await
    }

    async fn run_hook(
        &self,
        hook: &HookConfig,
        command: &[String],
        volume: &Volume,
        snapshot: Option<&SnapshotName>,
    ) -> Result<()> {
        if command.is_empty() {
            return Ok(());
        }
        let mut variables = vec![("HOLDFAST_VOLUME", volume.name.to_string())];
        variables.extend(snapshot.map(|name| ("HOLDFAST_SNAPSHOT", name.to_string())));
        // What runs after must run also where this cannot be told.
        if self.mounted(volume).await.is_ok_and(|mounted| mounted.is_some()) {
            let directory = self.data_directory(&volume.name);
            variables.push(("HOLDFAST_MOUNTPOINT", directory.display().to_string()));
        }
        self.inner.environment.host.run_command(command, &variables, hook.timeout).await
    }
}
