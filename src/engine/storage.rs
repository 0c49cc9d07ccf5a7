//! Each volume lies on the storage that the catalog says, or its backend is not used.

use std::collections::HashSet;
use std::sync::{Arc, Weak};

use super::{Engine, Inner, rebuild};
use crate::backend::{About, Backend, Expected, Found, Locator, UnavailableBackend};
use crate::catalog::{Catalog, Change};
use crate::error::{ErrorKind, Result};
use crate::id::VolumeUuid;
use crate::model::VolumeState;
use crate::name::BackendName;

/// Which storage the backend should find, as the catalog knows it.
pub fn expected_storage(catalog: &Catalog, backend: &BackendName) -> Expected {
    catalog.read(|state| {
        let mut volumes = state.volumes().filter(|volume| volume.backend == *backend).peekable();
        match state.storage(backend) {
            _ if volumes.peek().is_none() => Expected::Anything,
            Some(storage) => Expected::Storage(storage),
            None => {
                // Of a volume that is being made or deleted there may be nothing.
                let whole = volumes.filter(|volume| {
                    !matches!(volume.state, VolumeState::Creating | VolumeState::Deleting)
                });
                let whole: Vec<_> = whole.map(|volume| Locator::from(&**volume)).collect();
                if whole.is_empty() { Expected::Anything } else { Expected::Volumes(whole) }
            }
        }
    })
}

/// The backend that was opened, or what stands for it if it could not be.
///
/// # Errors
/// Configuration that is wrong and storage that another daemon uses: to go on without the backend
/// would hide a mistake that is easily mended.
pub fn opened(result: Result<Arc<dyn Backend>>, about: About) -> Result<Arc<dyn Backend>> {
    match result {
        Err(error) if matches!(error.kind(), ErrorKind::Invalid | ErrorKind::InUse) => Err(error),
        Err(error) => Ok(Arc::new(UnavailableBackend::new(about, &error))),
        Ok(backend) => Ok(backend),
    }
}

/// The backend, its storage recorded, or what stands for it if its storage is not the right one.
pub(super) async fn admitted(
    catalog: &Catalog,
    backend: Arc<dyn Backend>,
) -> Result<Arc<dyn Backend>> {
    let Ok(storage) = backend.storage() else { return Ok(backend) };
    let expected = expected_storage(catalog, backend.name());
    let held: Result<HashSet<_>> = match &expected {
        Expected::Volumes(_) => backend
            .survey()
            .await
            .map(|found| found.into_iter().map(|found| found.volume).collect()),
        _ => Ok(HashSet::new()),
    };
    let right = held.and_then(|held| {
        let place = backend.name().as_str();
        expected.admit(place, Some(storage), |locator| Ok(held.contains(&locator.volume)))
    });
    if let Err(error) = right {
        let about = About {
            name: backend.name().clone(),
            kind: backend.kind(),
            scope: backend.scope(),
            default_size: backend.default_size(),
            place: backend.status().await.map(|status| status.location).unwrap_or_default(),
        };
        return Ok(Arc::new(UnavailableBackend::new(about, &error)));
    }
    if catalog.read(|state| state.storage(backend.name())) != Some(storage) {
        catalog.commit(vec![Change::PutStorage(backend.name().clone(), storage)]).await?;
    }
    Ok(backend)
}

/// What the backend holds and the catalog knows neither before nor after looking; `None` if the
/// engine is gone or the backend does not tell.
async fn unknown_volumes(inner: &Weak<Inner>, backend: &dyn Backend) -> Option<Vec<Found>> {
    // Weak, so that this alone does not keep a stopped engine and its catalog.
    let known = || -> Option<HashSet<VolumeUuid>> {
        Some(inner.upgrade()?.catalog.read(|state| state.volumes().map(|v| v.uuid).collect()))
    };
    let before = known()?;
    let found = match backend.survey().await {
        Ok(found) => found,
        Err(error) => {
            tracing::warn!("cannot look for unknown volumes: {}", error.full_message());
            return None;
        }
    };
    let after = known()?;
    let unknown = |found: &Found| {
        let retained = found.description.as_ref().is_ok_and(|description| description.retained);
        !retained && !before.contains(&found.volume) && !after.contains(&found.volume)
    };
    Some(found.into_iter().filter(unknown).collect())
}

impl Engine {
    /// The backend of this name, whether it can be used or not.
    pub(super) fn known_backend(&self, name: &BackendName) -> Result<&Arc<dyn Backend>> {
        let backends = &self.inner.backends;
        backends.get(name).ok_or_else(|| super::unknown_backend(name, backends))
    }

    /// The backend of this name, if it can be used.
    pub(super) fn backend(&self, name: &BackendName) -> Result<&Arc<dyn Backend>> {
        let backend = self.known_backend(name)?;
        backend.storage().map(|_| backend)
    }

    /// Warns of volumes that the backends hold and the catalog does not know: they take room, and
    /// somebody may miss them. Beside everything else, because there may be many.
    pub(super) fn look_for_unknown(&self) {
        for backend in self.inner.backends.values().filter(|backend| backend.storage().is_ok()) {
            let (backend, inner) = (Arc::clone(backend), Arc::downgrade(&self.inner));
            tokio::spawn(async move {
                let mut unknown = unknown_volumes(&inner, &*backend).await?;
                if !unknown.is_empty() {
                    // What was made and removed meanwhile is not there any more.
                    let again = unknown_volumes(&inner, &*backend).await?;
                    unknown.retain(|one| again.iter().any(|other| other.volume == one.volume));
                }
                let engine = Self { inner: inner.upgrade()? };
                for found in unknown {
                    engine.warn(rebuild::unknown(&*backend, &found));
                }
                Some(())
            });
        }
    }

    /// Says in the log what `status` will say.
    pub(super) fn tell_of_unavailable(&self) {
        let why = |backend: &Arc<dyn Backend>| backend.storage().err();
        for error in self.inner.backends.values().filter_map(why) {
            let hint = error.hint_text().unwrap_or_default();
            tracing::error!("{}; {hint}", error.full_message());
        }
    }
}
