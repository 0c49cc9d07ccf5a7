//! How the pool is: its levels, what is wrong with it, and looking through all of its metadata.

use async_trait::async_trait;

use super::pool::{Opened, Pool};
use super::records::ThinState;
use super::status::{Level, METADATA_BLOCK, Mode, PoolStatus};
use super::{QUICK, SLOW, State, ThinBackend, ThinConfig, repair, told};
use crate::backend::{BackendStatus, Expected, PoolCheck, PoolInfo, PoolLevel, PoolState, Pooled};
use crate::error::{Error, ErrorKind, Result};
use crate::linux::blocking;
use crate::model::Outcome;
use crate::units::ByteSize;

impl Pool {
    /// Room, and what an administrator should know.
    pub(super) fn backend_status(&self) -> Result<BackendStatus> {
        let status = self.status()?;
        let data = self.data_level(&status)?;
        let chunk = self.chunk_size().bytes();
        Ok(BackendStatus {
            total: Some(data.total.saturating_mul(chunk)),
            free: Some(data.free().saturating_mul(chunk)),
            location: self.config.storage.to_string(),
            warnings: self.warnings(&status),
        })
    }

    fn info(&self) -> Result<PoolInfo> {
        let status = match self.status() {
            Ok(status) => status,
            Err(error) if error.kind() == ErrorKind::Corrupt => {
                let uuid = Some(self.names.pool_uuid());
                return Ok(PoolInfo { uuid, ..damaged_info(&self.config, &error) });
            }
            Err(error) => return Err(error),
        };
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
            chunk_size: Some(self.chunk_size()),
            data: Some(level(status.data, self.chunk_size().bytes())),
            metadata: Some(level(status.metadata, METADATA_BLOCK)),
            grows: self.can_grow()?,
            devices: Some(self.index().thins().count()),
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
        let data = self.data_level(status).unwrap_or(status.data);
        for (what, level) in [("data", data), ("metadata", status.metadata)] {
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
        let status = match self.status() {
            Ok(status) => status,
            Err(error) if error.kind() == ErrorKind::Corrupt => {
                return Ok(unsound(vec![error.full_message()]));
            }
            Err(error) => return Err(error),
        };
        let mut findings = self.warnings(&status);
        // A metadata snapshot cannot be reserved then.
        if status.mode == Mode::ReadOnly {
            return Ok(unsound(findings));
        }
        let devices = match self.usage() {
            Ok(devices) => devices,
            Err(error) if error.kind() == ErrorKind::Corrupt => {
                findings.insert(0, error.full_message());
                return Ok(unsound(findings));
            }
            Err(error) => return Err(error),
        };
        let lost: Vec<String> = self
            .index()
            .thins()
            .filter(|(id, thin)| thin.state == ThinState::Ready && !devices.contains_key(id))
            .map(|(_, thin)| format!("the pool has lost {}", thin.owner))
            .collect();
        if status.needs_check || !lost.is_empty() {
            findings.extend(lost);
            return Ok(unsound(findings));
        }
        findings.insert(0, format!("the metadata of all {} thin devices is sound", devices.len()));
        Ok(PoolCheck { sound: true, findings, advice: Vec::new() })
    }
}

fn damaged_info(config: &ThinConfig, why: &Error) -> PoolInfo {
    PoolInfo {
        uuid: None,
        state: PoolState::Damaged,
        location: config.storage.to_string(),
        chunk_size: None,
        data: None,
        metadata: None,
        grows: false,
        devices: None,
        warnings: vec![told(why)],
    }
}

fn unsound(findings: Vec<String>) -> PoolCheck {
    PoolCheck { sound: false, findings, advice: repair::advice() }
}

/// Reads all metadata of a pool that was found damaged, again: somebody may have mended it.
async fn check_damaged(config: ThinConfig, expected: Expected, why: Error) -> Result<PoolCheck> {
    let open = move || Opened::new(config, &expected);
    let opened = match blocking::run("opening the pool", QUICK, open).await {
        Ok(opened) => opened,
        Err(error) if error.kind() == ErrorKind::Corrupt => {
            return Ok(unsound(vec![error.full_message()]));
        }
        Err(error) => return Err(error),
    };
    // What volumes are attached to cannot be read safely.
    let checked = match opened.is_active {
        true => Err(why),
        false => opened.check().await,
    };
    blocking::run("closing the pool", QUICK, move || opened.close()).await?.ignore();
    match checked {
        Ok(()) => Ok(PoolCheck {
            sound: true,
            findings: vec!["the metadata is sound now".to_owned()],
            advice: vec!["run `holdfast pool repair`: it takes the pool into use again".to_owned()],
        }),
        Err(error) if error.kind() == ErrorKind::Corrupt => Ok(unsound(vec![error.full_message()])),
        Err(error) => Err(error),
    }
}

#[async_trait]
impl Pooled for ThinBackend {
    async fn inspect_pool(&self) -> Result<PoolInfo> {
        if let State::Damaged(error) = &*self.state() {
            return Ok(damaged_info(&self.config, error));
        }
        self.run("looking at the pool", QUICK, Pool::info).await
    }

    async fn grow_pool(&self, size: Option<ByteSize>) -> Result<Outcome> {
        self.run("growing the pool", QUICK, move |pool| pool.grow(size)).await
    }

    async fn check_pool(&self) -> Result<PoolCheck> {
        let damaged = match &*self.state() {
            State::Damaged(error) => Some(error.again()),
            _ => None,
        };
        match damaged {
            Some(why) => check_damaged(self.config.clone(), self.expected.clone(), why).await,
            None => self.run("checking the pool", SLOW, Pool::check).await,
        }
    }

    async fn repair_pool(&self) -> Result<Vec<String>> {
        repair::repair(self).await
    }
}
