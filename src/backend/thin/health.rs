//! How the pool is: its levels, what is wrong with it, and looking through all of its metadata.

use async_trait::async_trait;

use super::pool::Pool;
use super::status::{Level, METADATA_BLOCK, Mode, PoolStatus};
use super::{QUICK, SLOW, State, ThinBackend, repair};
use crate::backend::{BackendStatus, PoolCheck, PoolInfo, PoolLevel, PoolState, Pooled};
use crate::error::{Error, Result};
use crate::model::Outcome;
use crate::units::ByteSize;

impl Pool {
    /// Room, and what an administrator should know.
    pub(super) fn backend_status(&self) -> Result<BackendStatus> {
        let status = self.status()?;
        let chunk = self.chunk_size().bytes();
        Ok(BackendStatus {
            total: Some(status.data.total.saturating_mul(chunk)),
            free: Some(status.data.free().saturating_mul(chunk)),
            location: self.config.storage.to_string(),
            warnings: self.warnings(&status),
        })
    }

    fn info(&self) -> Result<PoolInfo> {
        let status = self.status()?;
        let level = |level: Level, unit: u64| PoolLevel {
            used: level.used.saturating_mul(unit),
            total: level.total.saturating_mul(unit),
        };
        Ok(PoolInfo {
            uuid: Some(self.names.pool_uuid()),
            state: match status.mode {
                Mode::Writable => PoolState::Active,
                Mode::OutOfDataSpace => PoolState::Full,
                Mode::ReadOnly => PoolState::ReadOnly,
            },
            location: self.config.storage.to_string(),
            chunk_size: self.chunk_size(),
            data: Some(level(status.data, self.chunk_size().bytes())),
            metadata: Some(level(status.metadata, METADATA_BLOCK)),
            grows: self.can_grow()?,
            devices: self.index().thins().count(),
            warnings: self.warnings(&status),
        })
    }

    /// What is wrong, as sentences that say what to do.
    fn warnings(&self, status: &PoolStatus) -> Vec<String> {
        let mut warnings = Vec::new();
        match status.mode {
            Mode::Writable => {}
            Mode::OutOfDataSpace => warnings.push(
                "the pool is full, and what its volumes write waits or fails: grow it with \
                 `holdfast pool grow SIZE`, or remove snapshots"
                    .to_owned(),
            ),
            Mode::ReadOnly => warnings.push(
                "the pool is read-only after an error of its metadata: see `holdfast pool check`"
                    .to_owned(),
            ),
        }
        if status.needs_check {
            warnings.push(
                "the pool's metadata has to be checked before it can be changed again: see \
                 `holdfast pool check`"
                    .to_owned(),
            );
        }
        let share = self.config.min_free;
        for (what, level) in [("data", status.data), ("metadata", status.metadata)] {
            if status.mode == Mode::Writable && level.free() < share.of(level.total) {
                warnings.push(format!(
                    "less than {share} of the pool's {what} is free, and no volume or snapshot is \
                     made: grow it with `holdfast pool grow SIZE`, or remove some"
                ));
            }
        }
        let unknown = self.index().unknown().len();
        if unknown > 0 {
            warnings.push(format!(
                "the pool has {unknown} thin devices that Holdfast has no record of; they are left alone"
            ));
        }
        warnings
    }

    /// Reads all metadata of the active pool.
    fn check(&self) -> Result<PoolCheck> {
        let status = self.status()?;
        let mut findings = self.warnings(&status);
        let mut advice = Vec::new();
        let read = match status.mode {
            // A metadata snapshot cannot be reserved then.
            Mode::ReadOnly => Err(Error::corrupt("the pool is read-only")),
            _ => self.usage(),
        };
        let sound = match read {
            Ok(devices) => {
                findings
                    .insert(0, format!("all metadata of {} thin devices is sound", devices.len()));
                for (id, thin) in self.index().thins() {
                    if !devices.contains_key(&id) {
                        findings.push(format!("the pool has lost {:?}", thin.owner));
                    }
                }
                !status.needs_check
            }
            Err(error) => {
                findings.push(error.full_message());
                false
            }
        };
        if !sound {
            advice.extend(repair::advice());
        }
        Ok(PoolCheck { sound, findings, advice })
    }
}

#[async_trait]
impl Pooled for ThinBackend {
    async fn inspect_pool(&self) -> Result<PoolInfo> {
        let damaged = match &*self.state() {
            State::Damaged(error) => Some(PoolInfo {
                uuid: None,
                state: PoolState::Damaged,
                location: self.config.storage.to_string(),
                chunk_size: self.config.chunk_size,
                data: None,
                metadata: None,
                grows: false,
                devices: 0,
                warnings: vec![error.full_message()],
            }),
            _ => None,
        };
        match damaged {
            Some(info) => Ok(info),
            None => self.run("looking at the pool", QUICK, Pool::info).await,
        }
    }

    async fn grow_pool(&self, size: Option<ByteSize>) -> Result<Outcome> {
        self.run("growing the pool", QUICK, move |pool| pool.grow(size)).await
    }

    async fn check_pool(&self) -> Result<PoolCheck> {
        let damaged = match &*self.state() {
            State::Damaged(error) => Some(error.full_message()),
            _ => None,
        };
        match damaged {
            Some(why) => {
                Ok(PoolCheck { sound: false, findings: vec![why], advice: repair::advice() })
            }
            None => self.run("checking the pool", SLOW, Pool::check).await,
        }
    }

    async fn repair_pool(&self) -> Result<Vec<String>> {
        repair::repair(self).await
    }
}
