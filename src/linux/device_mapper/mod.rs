//! Device-mapper devices. A device is known by its uuid, never by a name or a number alone.
//!
//! Every call may hang: a suspend waits for what is being written. They belong on threads that can be
//! abandoned. A resume and a removal wait for udev too, but not for long: it may be stuck, and we need
//! nothing that it does.

mod driver;
mod suspended;
mod table;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use devicemapper::{DM, DevId, DeviceInfo, DmFlags, DmName, DmOptions, DmUuid};
use nix::errno::Errno;

use self::driver::{Driver, errno, failed};
use self::table::same_table;
pub(crate) use self::table::{Line, SECTOR, Target};
use super::device_node::{self, NodeKind};
use super::{LET_GO_WITHIN, when_idle};
use crate::error::{Error, Result};
use crate::failpoint::{BackendStep, reached_blocking};
use crate::model::Outcome;

/// The name and the uuid of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    /// For people: what `dmsetup ls` shows. Up to 127 bytes.
    pub name: String,
    /// What proves it. Up to 128 bytes.
    pub uuid: String,
}

/// A device that the kernel has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mapped {
    /// Its name and uuid.
    pub identity: Identity,
    /// Major and minor number.
    pub number: (u32, u32),
    /// How many have it mounted, open or mapped into another device.
    pub open_count: u32,
    /// Whether its input and output waits.
    pub suspended: bool,
    /// Whether it has a table at all.
    pub has_table: bool,
    /// Whether nobody can write to it.
    pub read_only: bool,
}

impl Mapped {
    /// The path of its node.
    pub(crate) fn path(&self) -> PathBuf {
        PathBuf::from(format!("/dev/dm-{}", self.number.1))
    }
}

/// What a device is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Access {
    Write,
    Read,
}

impl Access {
    fn flags(self) -> DmFlags {
        match self {
            Self::Write => DmFlags::empty(),
            Self::Read => DmFlags::DM_READONLY,
        }
    }

    /// A device that is only read may show a copy of a filesystem that is mounted: nobody is to find it
    /// by its label or its uuid, nor btrfs to take it for another device of the same filesystem.
    fn announced(self) -> DmOptions {
        match self {
            Self::Write => DmOptions::default(),
            Self::Read => DmOptions::private(),
        }
    }
}

/// The way to the driver. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct DeviceMapper {
    driver: Arc<Driver>,
    /// It did not answer the last time.
    udev_is_stuck: Arc<AtomicBool>,
}

impl DeviceMapper {
    fn dm(&self) -> &DM {
        &self.driver.0
    }

    /// The device with this uuid, if the kernel has it.
    pub(crate) fn find(&self, uuid: &str) -> Result<Option<Mapped>> {
        match self.dm().device_info(&DevId::Uuid(dm_uuid(uuid)?)) {
            Ok(info) => mapped(&info).map(Some),
            Err(error) if errno(&error) == Some(Errno::ENXIO) => Ok(None),
            Err(error) => Err(failed(format!("cannot look for the device {uuid}"), &error)),
        }
    }

    /// All devices whose uuid begins with `prefix`.
    pub(crate) fn list(&self, prefix: &str) -> Result<Vec<Mapped>> {
        let what = "cannot list device-mapper's devices";
        let mut found = Vec::new();
        for (name, ..) in self.dm().list_devices().map_err(|error| failed(what, &error))? {
            match self.dm().device_info(&DevId::Name(&name)) {
                Ok(info) => {
                    let device = mapped(&info)?;
                    if device.identity.uuid.starts_with(prefix) {
                        found.push(device);
                    }
                }
                // It may go while we look.
                Err(error) if errno(&error) == Some(Errno::ENXIO) => {}
                Err(error) => return Err(failed(what, &error)),
            }
        }
        Ok(found)
    }

    /// Makes the device, or finds it with this very table, and sees that it works. Leaves nothing
    /// if it fails.
    ///
    /// # Errors
    /// `Corrupt` if the device exists with another table.
    pub(crate) fn activate(&self, identity: &Identity, table: &[Target]) -> Result<Mapped> {
        self.activate_for(Access::Write, identity, table)
    }

    /// The same of a device that nobody can write to, and that udev does not look into.
    ///
    /// # Errors
    /// `Corrupt` if the device exists with another table, or can be written to.
    pub(crate) fn activate_to_read(&self, identity: &Identity, table: &[Target]) -> Result<Mapped> {
        self.activate_for(Access::Read, identity, table)
    }

    fn activate_for(
        &self,
        access: Access,
        identity: &Identity,
        table: &[Target],
    ) -> Result<Mapped> {
        let what = || format!("cannot make the device {}", identity.name);
        if let Some(device) = self.find(&identity.uuid)? {
            // Without a table it is what a kill left between the first and the last step.
            if device.has_table {
                if !self.has_table(&identity.uuid, table)? {
                    return Err(Error::corrupt(format!(
                        "the device {} exists with another table",
                        identity.name
                    ))
                    .hint(format!("see: dmsetup table {}", identity.name)));
                }
                if access == Access::Read && !device.read_only {
                    return Err(Error::corrupt(format!(
                        "the device {} can be written to",
                        identity.name
                    ))
                    .hint(format!("see: dmsetup info {}", identity.name)));
                }
                if device.suspended {
                    self.resume_for(access, &identity.uuid)?;
                }
                return self.ready(&identity.uuid);
            }
        } else {
            let name = DmName::new(&identity.name).map_err(|error| failed(what(), &error))?;
            let uuid = Some(dm_uuid(&identity.uuid)?);
            self.dm()
                .device_create(name, uuid, DmOptions::default())
                .map_err(|error| failed(what(), &error))?;
        }
        let made = reached_blocking(BackendStep::DeviceMade)
            .and_then(|()| self.load(access, &identity.uuid, table))
            .and_then(|()| self.resume_for(access, &identity.uuid))
            .and_then(|()| self.ready(&identity.uuid));
        made.map_err(|error| {
            let _ = self.remove(&identity.uuid);
            error.context(what())
        })
    }

    fn ready(&self, uuid: &str) -> Result<Mapped> {
        let device = self.find(uuid)?.ok_or_else(|| {
            Error::not_found(format!("the device {uuid} has gone while it was made"))
        })?;
        device_node::ensure(&device.path(), NodeKind::Block, device.number)?;
        Ok(device)
    }

    /// Puts another table in place of the present one. What is written meanwhile waits.
    pub(crate) fn reload(&self, uuid: &str, table: &[Target]) -> Result<()> {
        self.load(Access::Write, uuid, table)?;
        let suspended = self.suspend(uuid)?;
        suspended.resume()
    }

    fn load(&self, access: Access, uuid: &str, table: &[Target]) -> Result<()> {
        let lines: Vec<_> = table
            .iter()
            .map(|t| (t.start, t.length, t.kind.to_owned(), t.parameters.clone()))
            .collect();
        let id = DevId::Uuid(dm_uuid(uuid)?);
        let options = DmOptions::default().set_flags(access.flags());
        // A child process on its way has what we had open exclusively a moment ago.
        let loaded = when_idle(
            || self.dm().table_load(&id, &lines, options),
            |error| errno(error) == Some(Errno::EBUSY),
        );
        loaded.map_err(|error| {
            let kinds: Vec<_> = table.iter().map(|target| target.kind).collect();
            let error = failed(format!("cannot load a table of {}", kinds.join(", ")), &error);
            error.hint(format!("dmesg may say more; modprobe dm-{}", kinds.join(" dm-")))
        })?;
        reached_blocking(BackendStep::DeviceLoaded)
    }

    /// Lets a device's input and output go on, with the table that was loaded last.
    pub(crate) fn resume(&self, uuid: &str) -> Result<()> {
        self.resume_for(Access::Write, uuid)
    }

    fn resume_for(&self, access: Access, uuid: &str) -> Result<()> {
        let id = dm_uuid(uuid)?.to_owned();
        let options = access.announced();
        let call = move |dm: &DM| dm.device_suspend(&DevId::Uuid(&id), options).map(drop);
        let is_done = || Ok(self.find(uuid)?.is_some_and(|now| now.has_table && !now.suspended));
        self.without_waiting_long(call, is_done)?
            .map_err(|error| failed(format!("cannot resume the device {uuid}"), &error))?;
        reached_blocking(BackendStep::DeviceResumed)
    }

    /// The present table.
    pub(crate) fn table(&self, uuid: &str) -> Result<Vec<Line>> {
        self.lines(uuid, DmFlags::DM_STATUS_TABLE)
    }

    /// Whether the device has this very table.
    pub(crate) fn has_table(&self, uuid: &str, table: &[Target]) -> Result<bool> {
        Ok(same_table(&self.table(uuid)?, table))
    }

    /// What each target says of itself, without making it write.
    pub(crate) fn status(&self, uuid: &str) -> Result<Vec<Line>> {
        self.lines(uuid, DmFlags::DM_NOFLUSH)
    }

    fn lines(&self, uuid: &str, flags: DmFlags) -> Result<Vec<Line>> {
        let options = DmOptions::default().set_flags(flags);
        let (_, lines) = self
            .dm()
            .table_status(&DevId::Uuid(dm_uuid(uuid)?), options)
            .map_err(|error| failed(format!("cannot ask the device {uuid}"), &error))?;
        Ok(lines
            .into_iter()
            .map(|(start, length, kind, parameters)| Line { start, length, kind, parameters })
            .collect())
    }

    /// Sends a message to the device's first target, which is `step`.
    pub(crate) fn message(&self, uuid: &str, text: &str, step: BackendStep) -> Result<()> {
        self.dm()
            .target_msg(&DevId::Uuid(dm_uuid(uuid)?), None, text)
            .map_err(|error| failed(format!("the device refused the message {text:?}"), &error))?;
        reached_blocking(step)
    }

    /// Removes the device; `InUse` while anybody has it mounted, open or mapped.
    pub(crate) fn remove(&self, uuid: &str) -> Result<Outcome> {
        const LONGEST_PAUSE: Duration = Duration::from_millis(100);
        let began = Instant::now();
        let mut pause = Duration::from_millis(1);
        loop {
            let Some(device) = self.find(uuid)? else { return Ok(Outcome::Unchanged) };
            if device.open_count == 0 {
                let id = dm_uuid(uuid)?.to_owned();
                let call = move |dm: &DM| {
                    dm.device_remove(&DevId::Uuid(&id), DmOptions::default()).map(drop)
                };
                match self.without_waiting_long(call, || Ok(self.find(uuid)?.is_none()))? {
                    Ok(()) => {
                        reached_blocking(BackendStep::DeviceRemoved)?;
                        return Ok(Outcome::Changed);
                    }
                    Err(error) if errno(&error) == Some(Errno::ENXIO) => {
                        return Ok(Outcome::Changed);
                    }
                    Err(error) if errno(&error) == Some(Errno::EBUSY) => {}
                    Err(error) => {
                        let what = format!("cannot remove the device {}", device.identity.name);
                        return Err(failed(what, &error));
                    }
                }
            }
            device_node::ensure(&device.path(), NodeKind::Block, device.number)?;
            // Who looks at new devices, udev for example, is soon done.
            if began.elapsed() >= LET_GO_WITHIN || super::is_mounted(&device.path())? {
                let path = device.path();
                return Err(Error::in_use(format!(
                    "{} ({}) is mounted or open",
                    device.identity.name,
                    path.display()
                ))
                .hint(format!("see who uses it: findmnt {0}; fuser -v {0}", path.display())));
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}

fn mapped(info: &DeviceInfo) -> Result<Mapped> {
    let name = info.name().map(ToString::to_string).unwrap_or_default();
    let uuid = info.uuid().map(ToString::to_string).unwrap_or_default();
    let device = info.device();
    Ok(Mapped {
        identity: Identity { name, uuid },
        number: (device.major, device.minor),
        open_count: u32::try_from(info.open_count()).unwrap_or(u32::MAX),
        suspended: info.flags().contains(DmFlags::DM_SUSPEND),
        has_table: info.flags().contains(DmFlags::DM_ACTIVE_PRESENT),
        read_only: info.flags().contains(DmFlags::DM_READONLY),
    })
}

fn dm_uuid(uuid: &str) -> Result<&DmUuid> {
    DmUuid::new(uuid).map_err(|error| Error::internal("a wrong device uuid").caused_by(error))
}
