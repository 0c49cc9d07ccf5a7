//! Devices whose input and output waits.

use std::time::Duration;

use devicemapper::{DevId, DmFlags, DmOptions};

use super::driver::failed;
use super::{DeviceMapper, dm_uuid};
use crate::error::{ErrorKind, Result};
use crate::failpoint::{BackendStep, reached_blocking};

/// A suspended device. Whatever happens, it is resumed.
#[derive(Debug)]
pub(crate) struct Suspended<'a> {
    mapper: &'a DeviceMapper,
    uuid: &'a str,
    over: bool,
}

impl Suspended<'_> {
    /// Lets the device go on, and says whether it does.
    pub(crate) fn resume(mut self) -> Result<()> {
        self.over = true;
        resume_surely(self.mapper, self.uuid)
    }
}

impl Drop for Suspended<'_> {
    fn drop(&mut self) {
        if self.over {
            return;
        }
        if let Err(error) = resume_surely(self.mapper, self.uuid) {
            tracing::error!(device = self.uuid, "{}", error.full_message());
        }
    }
}

/// Everybody who writes to a suspended device hangs: one failure is no reason to give up.
fn resume_surely(mapper: &DeviceMapper, uuid: &str) -> Result<()> {
    const TRIES: u32 = 5;
    let mut tries = 0;
    loop {
        tries += 1;
        match mapper.resume(uuid) {
            Err(error) if tries < TRIES && error.kind() != ErrorKind::NotFound => {
                std::thread::sleep(Duration::from_millis(100));
            }
            done => return done,
        }
    }
}

impl DeviceMapper {
    /// Stops the device's input and output until the guard is resumed or dropped. The filesystem on it
    /// is not frozen: that is the caller's to do before.
    pub(crate) fn suspend<'a>(&'a self, uuid: &'a str) -> Result<Suspended<'a>> {
        // Made first: what failed may still have happened.
        let guard = Suspended { mapper: self, uuid, over: false };
        let options = DmOptions::default().set_flags(DmFlags::DM_SUSPEND | DmFlags::DM_SKIP_LOCKFS);
        self.dm()
            .device_suspend(&DevId::Uuid(dm_uuid(uuid)?), options)
            .map_err(|error| failed(format!("cannot suspend the device {uuid}"), &error))?;
        reached_blocking(BackendStep::DeviceSuspended)?;
        Ok(guard)
    }
}
