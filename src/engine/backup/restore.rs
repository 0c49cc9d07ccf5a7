//! New volumes with the content of a backup.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::path::PathBuf;
use std::sync::Arc;

use super::repositories::blocking;
use crate::backend::{BackendKind, Locator};
use crate::engine::change::Work;
use crate::engine::create::{Source, put, put_new};
use crate::error::{Error, Result};
use crate::failpoint::Step;
use crate::id::{BackupId, BackupRef};
use crate::model::{ActiveSchedule, OperationKind, Outcome, Volume, VolumeState};
use crate::name::VolumeName;
use crate::options::VolumeOptions;
use crate::repository::{Layout, Manifest, Repository, Target};

impl Work {
    /// Makes a volume of a backup. Nobody can see it before all of it is there; broken off, it is removed.
    pub(in crate::engine) async fn create_from_backup(
        &self,
        name: VolumeName,
        options: VolumeOptions,
        labels: BTreeMap<String, String>,
        backup: &BackupRef,
    ) -> Result<Outcome> {
        let (repository, backup) = self.engine.find_backup(backup, None).await?;
        let (id, asked) = (backup.id, Arc::clone(&repository));
        let manifest = blocking(move || asked.manifest(id)).await?;
        let Layout::Image { .. } = manifest.layout else {
            return Err(Error::unsupported("a backup of files cannot be restored by this version"));
        };
        let labels = match labels.is_empty() {
            true => manifest.volume.labels.clone(),
            false => labels,
        };
        let source = self.source_of_backup(manifest, &options)?;
        let asked = options.clone();
        let volume = self.plan(name, options, labels, Some(&source))?;
        let schedule = self.engine.schedule_of(&asked, self.backend(&volume)?.as_ref())?;
        self.restore_backup(volume, schedule, repository, id).await
    }

    /// What a backup gives to a volume on the backend that it is to be on: the one that was asked for, or the
    /// backup's if it is here, or the usual one.
    fn source_of_backup(&self, manifest: Manifest, options: &VolumeOptions) -> Result<Source> {
        let usual = || match self.engine.backend(&manifest.volume.backend) {
            Ok(_) => manifest.volume.backend.clone(),
            Err(_) => self.engine.inner.config.default_backend.clone(),
        };
        let backend = options.backend.clone().unwrap_or_else(usual);
        if self.engine.backend(&backend)?.kind() != BackendKind::Block {
            return Err(Error::unsupported(format!(
                "the backup is of a block device, and the backend {backend} has none"
            ))
            .hint("restore it on another backend"));
        }
        let volume = Volume { backend, ..manifest.volume };
        Ok(Source { volume: Arc::new(volume), snapshot: Some(Arc::new(manifest.snapshot)) })
    }

    async fn restore_backup(
        &self,
        mut volume: Volume,
        schedule: Option<ActiveSchedule>,
        repository: Arc<Repository>,
        id: BackupId,
    ) -> Result<Outcome> {
        let kind = OperationKind::Create { frozen: None };
        let record = put_new(&volume, schedule);
        let operation = self.intend(Step::RestoreBackupIntent, &volume, kind, record).await?;
        let made = async {
            let backend = self.backend(&volume)?;
            let locator = Locator::from(&volume);
            self.step(Step::RestoreBackupAllocate, backend.create(&volume)).await?.ignore();
            let attachment = self.step(Step::RestoreBackupAttach, backend.attach(locator)).await?;
            let device = attachment.device()?.to_owned();
            let restored = self.restore_image(device.clone(), repository, id);
            self.step(Step::RestoreBackupData, restored).await?;
            if let Some(filesystem) = volume.filesystem {
                let host = &self.engine.inner.environment.host;
                // No volume's name begins with a dot.
                let scratch = self.engine.inner.config.mount_dir.join(format!(".{}", volume.uuid));
                let renew = host.renew_identity(&device, filesystem, volume.uuid.uuid(), &scratch);
                self.step(Step::RestoreBackupIdentity, async {
                    renew.await?;
                    self.try_options(&volume, &attachment).await
                })
                .await?;
            }
            drop(attachment);
            self.step(Step::RestoreBackupDetach, backend.detach(locator)).await?.ignore();
            self.progress.go_on()?;
            volume.state = VolumeState::Ready;
            let describe = self.engine.describe(&volume, None, None);
            self.step(Step::RestoreBackupDescribe, describe).await?;
            self.finish(Step::RestoreBackupFinish, vec![put(&volume)]).await
        };
        match made.await {
            Ok(()) => Ok(Outcome::Changed),
            Err(error) => Err(self.undo(&operation, error).await),
        }
    }

    async fn restore_image(
        &self,
        device: PathBuf,
        repository: Arc<Repository>,
        id: BackupId,
    ) -> Result<()> {
        let progress = Arc::clone(&self.progress);
        blocking(move || {
            let file = OpenOptions::new().write(true).open(&device).map_err(|error| {
                Error::io(format!("cannot open {} to restore to it", device.display()), error)
            })?;
            // A backend's new volume reads as zeros.
            repository.restore_image(id, &Target { file, blank: true }, &progress)
        })
        .await
    }
}
