//! Each volume lies on the storage that the catalog says, or its backend is not used.

use std::collections::HashSet;
use std::sync::Arc;

use super::Engine;
use crate::backend::{About, Backend, Expected, Locator, UnavailableBackend};
use crate::catalog::{Catalog, Change};
use crate::error::{ErrorKind, Result};
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

    /// Says in the log what `status` will say.
    pub(super) fn tell_of_unavailable(&self) {
        let why = |backend: &Arc<dyn Backend>| backend.storage().err();
        for error in self.inner.backends.values().filter_map(why) {
            let hint = error.hint_text().unwrap_or_default();
            tracing::error!("{}; {hint}", error.full_message());
        }
    }
}
