//! Pools: the room that the volumes of a backend share. A pool has the name of its backend.

use std::sync::Arc;

use super::Engine;
use super::change::Work;
use super::read::BACKEND_PATIENCE;
use super::view::PoolView;
use crate::backend::{Backend, PoolCheck, PoolInfo, Pooled};
use crate::error::{Error, Result};
use crate::model::Outcome;
use crate::name::BackendName;
use crate::units::ByteSize;

impl Engine {
    /// All pools, by name. One that does not answer hides no other.
    pub async fn pools(&self) -> Vec<PoolView> {
        let asked: Vec<_> = self
            .inner
            .backends
            .values()
            .filter(|backend| backend.pool().is_some())
            .map(|backend| (backend.name().clone(), tokio::spawn(inspect(Arc::clone(backend)))))
            .collect();
        let mut views = Vec::with_capacity(asked.len());
        for (name, answer) in asked {
            let answer = answer.await.unwrap_or_else(|error| {
                Err(Error::internal("looking at the pool broke off").caused_by(error))
            });
            views.push(self.pool_view(name, answer));
        }
        views
    }

    /// One pool.
    ///
    /// # Errors
    /// `NotFound` if there is no such pool.
    pub async fn pool(&self, name: &BackendName) -> Result<PoolView> {
        let backend = self.pool_backend(name)?;
        Ok(self.pool_view(name.clone(), inspect(Arc::clone(backend)).await))
    }

    fn pool_backend(&self, name: &BackendName) -> Result<&Arc<dyn Backend>> {
        let backends = &self.inner.backends;
        let backend = backends.get(name);
        if let Some(backend) = backend
            && backend.pool().is_some()
        {
            return Ok(backend);
        }
        let node = &self.inner.config.node;
        let why = match backend {
            Some(_) => format!("the backend {name} keeps its volumes without a pool"),
            None => format!("there is no pool {name} on node {node}"),
        };
        let pools = backends.values().filter(|backend| backend.pool().is_some());
        let pools: Vec<&str> = pools.map(|backend| backend.name().as_str()).collect();
        Err(Error::not_found(why).hint(match pools[..] {
            [] => "no backend of this node has a pool".to_owned(),
            _ => format!("the pools of this node are: {}", pools.join(", ")),
        }))
    }

    fn pool_view(&self, name: BackendName, answer: Result<PoolInfo>) -> PoolView {
        let volumes = self
            .inner
            .catalog
            .read(|state| state.volumes().filter(|volume| volume.backend == name).count());
        match answer {
            Ok(info) => PoolView {
                name,
                uuid: info.uuid,
                state: info.state.as_str().to_owned(),
                location: Some(info.location),
                chunk_size: info.chunk_size,
                data: info.data,
                metadata: info.metadata,
                grows: info.grows,
                volumes,
                devices: info.devices,
                warnings: info.warnings,
            },
            Err(error) => PoolView {
                name,
                uuid: None,
                state: "unknown".to_owned(),
                location: None,
                chunk_size: None,
                data: None,
                metadata: None,
                grows: false,
                volumes,
                devices: None,
                warnings: vec![error.full_message()],
            },
        }
    }
}

async fn inspect(backend: Arc<dyn Backend>) -> Result<PoolInfo> {
    let asked = async { pool_of(&*backend)?.inspect_pool().await };
    tokio::time::timeout(BACKEND_PATIENCE, asked)
        .await
        .unwrap_or_else(|_| Err(Error::unavailable("the backend does not answer")))
}

fn pool_of(backend: &dyn Backend) -> Result<&dyn Pooled> {
    backend.pool().ok_or_else(|| Error::internal(format!("{} has no pool", backend.name())))
}

impl Work {
    pub(super) async fn grow_pool(
        &self,
        name: &BackendName,
        size: Option<ByteSize>,
    ) -> Result<Outcome> {
        let pool = pool_of(&**self.engine.pool_backend(name)?)?;
        if let Some(size) = size
            && let Some(now) = pool.inspect_pool().await?.data
            && size.bytes() < now.total
        {
            return Err(Error::invalid(format!(
                "the pool has {} and cannot shrink to {size}",
                ByteSize::new(now.total)
            ))
            .hint("name a larger size, or none to take all that its devices have"));
        }
        pool.grow_pool(size).await
    }

    pub(super) async fn check_pool(&self, name: &BackendName) -> Result<PoolCheck> {
        let check = pool_of(&**self.engine.pool_backend(name)?)?.check_pool().await?;
        let sentences = check.findings.iter().chain(&check.advice).cloned().collect();
        self.engine.inner.registry.report(self.id, sentences);
        Ok(check)
    }

    pub(super) async fn repair_pool(&self, name: &BackendName) -> Result<Vec<String>> {
        let done = pool_of(&**self.engine.pool_backend(name)?)?.repair_pool().await?;
        self.engine.inner.registry.report(self.id, done.clone());
        Ok(done)
    }
}
