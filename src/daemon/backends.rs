//! The one place where backends are registered.

use std::sync::Arc;

use crate::backend::loopback::{LoopBackend, LoopConfig};
use crate::backend::thin::{self, ThinBackend, ThinConfig, ThinStorage};
use crate::backend::{About, Backend, BackendKind, Expected, Scope};
use crate::catalog::Catalog;
use crate::config::Config;
use crate::engine;
use crate::error::{Error, ErrorKind, Result};
use crate::name::BackendName;
use crate::units::ByteSize;

/// Every backend that the configuration turns on. One that cannot be used is there all the same, and
/// says why.
///
/// # Errors
/// Wrong configuration, and storage that another daemon uses.
pub(super) async fn open(
    config: &Config,
    catalog: Option<&Catalog>,
) -> Result<Vec<Arc<dyn Backend>>> {
    let expected = |name: &BackendName| match catalog {
        Some(catalog) => engine::expected_storage(catalog, name),
        None => Expected::Anything,
    };
    let mut backends: Vec<Arc<dyn Backend>> = Vec::new();
    if config.loop_enabled {
        let (name, dir): (BackendName, _) = ("loop".parse()?, config.loop_dir.clone());
        let about = local_blocks(&name, config.loop_default_size, dir.display().to_string());
        let expected = expected(&name);
        let config = LoopConfig { name, dir, default_size: config.loop_default_size };
        let opened = LoopBackend::open(config, expected).await;
        backends.push(engine::opened(opened.map(in_order), about)?);
    }
    if let Some(storage) = thin_storage(config)? {
        let name: BackendName = "thin".parse()?;
        let about = local_blocks(&name, config.thin_default_size, storage.to_string());
        let expected = expected(&name);
        let config = ThinConfig {
            name,
            storage,
            chunk_size: config.thin_chunk_size,
            default_size: config.thin_default_size,
            low_water: config.thin_low_water,
            min_free: config.thin_min_free,
            copies: config.state_dir.join("thin-metadata"),
        };
        let opened = ThinBackend::open(config, expected).await;
        backends.push(engine::opened(opened.map(|backend| Arc::new(backend) as _), about)?);
    }
    Ok(backends)
}

/// Lets the devices go on that an earlier run has left suspended: nothing can be thawed on them
/// before.
pub(super) async fn resume_interrupted(config: &Config) {
    let Ok(Some(storage)) = thin_storage(config) else { return };
    match thin::resume_interrupted(storage).await {
        Ok(_) => {}
        // Another daemon's, which will do so itself.
        Err(error) if error.kind() == ErrorKind::InUse => {}
        Err(error) => tracing::error!("{}", error.full_message()),
    }
}

/// A backend of block devices of this host alone.
fn local_blocks(name: &BackendName, default_size: ByteSize, place: String) -> About {
    About {
        name: name.clone(),
        kind: BackendKind::Block,
        scope: Scope::Local,
        default_size: Some(default_size),
        place,
    }
}

/// What the pool of `thin` lies on; nothing if that backend is off.
fn thin_storage(config: &Config) -> Result<Option<ThinStorage>> {
    match (&config.thin_data, &config.thin_metadata, &config.thin_file) {
        (None, None, None) => Ok(None),
        (Some(data), metadata, None) => {
            Ok(Some(ThinStorage::Devices { data: data.clone(), metadata: metadata.clone() }))
        }
        (None, None, Some(directory)) => {
            Ok(Some(ThinStorage::Files { directory: directory.clone(), size: config.thin_size }))
        }
        (None, Some(_), None) => Err(Error::invalid("thin.metadata is given without thin.data")),
        (_, _, Some(_)) => {
            Err(Error::invalid("thin.file is given beside thin.data or thin.metadata")
                .hint("a pool lies on devices or on files"))
        }
    }
}

/// The backend, which is rid of what earlier runs left while it is used.
fn in_order(backend: LoopBackend) -> Arc<dyn Backend> {
    let backend = Arc::new(backend);
    let cleaned = Arc::clone(&backend);
    tokio::spawn(async move {
        if let Err(error) = cleaned.remove_leftovers().await {
            tracing::warn!("{}", error.full_message());
        }
    });
    backend
}
