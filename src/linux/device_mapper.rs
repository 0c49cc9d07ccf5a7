//! Device-mapper devices. A device is known by its uuid, never by a name or a number alone.
//!
//! Every call may hang: a suspend waits for what is being written. They belong on threads that can be
//! abandoned. A resume and a removal wait for udev too, but not for long: it may be stuck, and we need
//! nothing that it does.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use devicemapper::{DM, DevId, DeviceInfo, DmError, DmFlags, DmName, DmOptions, DmUuid};
use nix::errno::Errno;

use super::device_node::{self, NodeKind};
use super::{LET_GO_WITHIN, when_idle};
use crate::error::{Error, ErrorKind, Result};
use crate::failpoint::{BackendStep, reached_blocking};
use crate::model::Outcome;

/// Where udev listens, if it runs.
const UDEV_CONTROL: &str = "/run/udev/control";

/// Bytes in a sector, the unit of every table.
pub(crate) const SECTOR: u64 = 512;

/// One line of a table or of a status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    /// First sector.
    pub start: u64,
    /// Sectors.
    pub length: u64,
    /// Such as `linear`, `thin-pool` or `thin`.
    pub kind: &'static str,
    /// What follows in the line.
    pub parameters: String,
}

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
}

impl Mapped {
    /// The path of its node.
    pub(crate) fn path(&self) -> PathBuf {
        PathBuf::from(format!("/dev/dm-{}", self.number.1))
    }
}

/// The way to the driver.
#[derive(Debug)]
pub(crate) struct DeviceMapper {
    driver: Arc<Driver>,
    /// It did not answer the last time.
    udev_is_stuck: AtomicBool,
}

struct Driver(DM);

impl std::fmt::Debug for Driver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DM")
    }
}

impl DeviceMapper {
    /// Opens the driver's control device.
    ///
    /// # Errors
    /// `Unsupported` if the kernel has no device-mapper.
    pub(crate) fn open() -> Result<Self> {
        let unsupported = |why: &str| {
            Error::unsupported(format!("this kernel has no device-mapper: {why}"))
                .hint("try: modprobe dm-mod dm-thin-pool")
        };
        make_control_node()?;
        let dm = DM::new().map_err(|error| unsupported(&error.to_string()))?;
        dm.version().map_err(|error| unsupported(&error.to_string()))?;
        Ok(Self { driver: Arc::new(Driver(dm)), udev_is_stuck: AtomicBool::new(false) })
    }

    fn dm(&self) -> &DM {
        &self.driver.0
    }

    /// Makes a call that tells udev and waits for it, and goes on without udev once `is_done` says that
    /// the kernel has done its part. The thread that still waits ends when udev answers.
    fn without_waiting_long(
        &self,
        call: impl FnOnce(&DM) -> Result<(), DmError> + Send + 'static,
        is_done: impl Fn() -> Result<bool>,
    ) -> Result<Result<(), DmError>> {
        const PATIENCE: Duration = Duration::from_secs(5);
        const LITTLE_PATIENCE: Duration = Duration::from_millis(100);
        const PAUSE: Duration = Duration::from_millis(50);
        if !Path::new(UDEV_CONTROL).exists() {
            return Ok(call(self.dm()));
        }
        let (sender, receiver) = mpsc::channel();
        let driver = Arc::clone(&self.driver);
        std::thread::Builder::new()
            .name("udev".to_owned())
            .spawn(move || {
                // Nobody may be there to hear it.
                let _ = sender.send(call(&driver.0));
            })
            .map_err(|error| Error::io("cannot start a thread", error))?;
        let was_stuck = self.udev_is_stuck.load(Ordering::Relaxed);
        let began = Instant::now();
        let patience = if was_stuck { LITTLE_PATIENCE } else { PATIENCE };
        loop {
            match receiver.recv_timeout(PAUSE) {
                Ok(done) => {
                    self.udev_is_stuck.store(false, Ordering::Relaxed);
                    return Ok(done);
                }
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(Error::internal("a call of device-mapper broke off"));
                }
                Err(RecvTimeoutError::Timeout) if began.elapsed() < patience => {}
                Err(RecvTimeoutError::Timeout) if is_done()? => {
                    if !was_stuck {
                        tracing::warn!(
                            "udev does not answer; devices are used without it: see systemctl \
                             status systemd-udevd, dmsetup udevcookies"
                        );
                    }
                    self.udev_is_stuck.store(true, Ordering::Relaxed);
                    return Ok(Ok(()));
                }
                // The kernel itself is at work.
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
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
                if device.suspended {
                    self.resume(&identity.uuid)?;
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
            .and_then(|()| self.load(&identity.uuid, table))
            .and_then(|()| self.resume(&identity.uuid))
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
        self.load(uuid, table)?;
        let suspended = self.suspend(uuid)?;
        suspended.resume()
    }

    fn load(&self, uuid: &str, table: &[Target]) -> Result<()> {
        let lines: Vec<_> = table
            .iter()
            .map(|t| (t.start, t.length, t.kind.to_owned(), t.parameters.clone()))
            .collect();
        let id = DevId::Uuid(dm_uuid(uuid)?);
        // A child process on its way has what we had open exclusively a moment ago.
        let loaded = when_idle(
            || self.dm().table_load(&id, &lines, DmOptions::default()),
            |error| errno(error) == Some(Errno::EBUSY),
        );
        loaded.map_err(|error| {
            let kinds: Vec<_> = table.iter().map(|target| target.kind).collect();
            let error = failed(format!("cannot load a table of {}", kinds.join(", ")), &error);
            error.hint(format!("dmesg may say more; modprobe dm-{}", kinds.join(" dm-")))
        })?;
        reached_blocking(BackendStep::DeviceLoaded)
    }

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

    /// Lets a device's input and output go on, with the table that was loaded last.
    pub(crate) fn resume(&self, uuid: &str) -> Result<()> {
        let id = dm_uuid(uuid)?.to_owned();
        let call =
            move |dm: &DM| dm.device_suspend(&DevId::Uuid(&id), DmOptions::default()).map(drop);
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

/// A line that the kernel tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Line {
    /// First sector.
    pub start: u64,
    /// Sectors.
    pub length: u64,
    /// The target's kind.
    pub kind: String,
    /// What follows.
    pub parameters: String,
}

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

/// Whether the kernel's lines are this table; how they are spaced does not matter.
fn same_table(lines: &[Line], table: &[Target]) -> bool {
    let same = |(line, target): (&Line, &Target)| {
        let place = (line.start, line.length, line.kind.as_str());
        place == (target.start, target.length, target.kind)
            && line.parameters.split_whitespace().eq(target.parameters.split_whitespace())
    };
    lines.len() == table.len() && lines.iter().zip(table).all(same)
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
    })
}

fn dm_uuid(uuid: &str) -> Result<&DmUuid> {
    DmUuid::new(uuid).map_err(|error| Error::internal("a wrong device uuid").caused_by(error))
}

/// The errno of the ioctl that failed, if one did.
fn errno(error: &DmError) -> Option<Errno> {
    match error {
        DmError::Core(devicemapper::errors::Error::Ioctl(_, _, _, errno)) => Some(**errno),
        _ => None,
    }
}

fn failed(what: impl Into<String>, error: &DmError) -> Error {
    let Some(errno) = errno(error) else {
        return Error::internal(what).caused_by(error.clone());
    };
    let told = Error::io(what, errno.into());
    match errno {
        Errno::ENXIO | Errno::ENODATA => told.with_kind(ErrorKind::NotFound),
        Errno::EEXIST => told.with_kind(ErrorKind::Conflict),
        Errno::EBUSY => told.with_kind(ErrorKind::InUse),
        Errno::ENOSPC => told.with_kind(ErrorKind::OutOfSpace),
        _ => told,
    }
}

/// Makes `/dev/mapper/control` where udev does not.
fn make_control_node() -> Result<()> {
    let control = Path::new("/dev/mapper/control");
    if control.exists() {
        return Ok(());
    }
    const MISC_MAJOR: u32 = 10;
    let misc = std::fs::read_to_string("/proc/misc").unwrap_or_default();
    let minor = misc.lines().find_map(|line| {
        let (number, name) = line.trim().split_once(' ')?;
        if name == "device-mapper" { number.parse().ok() } else { None }
    });
    match minor {
        Some(minor) => device_node::ensure(control, NodeKind::Character, (MISC_MAJOR, minor)),
        // The open that follows says that there is none.
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(parameters: &str) -> Line {
        Line { start: 0, length: 8, kind: "thin".to_owned(), parameters: parameters.to_owned() }
    }

    #[test]
    fn rule_07_a_device_with_another_table_is_another_device() {
        let table =
            [Target { start: 0, length: 8, kind: "thin", parameters: "253:2 7".to_owned() }];
        assert!(same_table(&[line("253:2 7")], &table));
        for other in ["253:2 8", "253:3 7", "253:2", "253:2 7 253:9"] {
            assert!(!same_table(&[line(other)], &table), "{other}");
        }
        assert!(!same_table(&[], &table));
        assert!(!same_table(&[Line { length: 16, ..line("253:2 7") }], &table));
    }

    #[test]
    fn errors_keep_what_they_mean() {
        let ioctl = |errno| {
            DmError::Core(devicemapper::errors::Error::Ioctl(0, None, None, Box::new(errno)))
        };
        for (errno, kind) in [
            (Errno::ENXIO, ErrorKind::NotFound),
            (Errno::ENODATA, ErrorKind::NotFound),
            (Errno::EEXIST, ErrorKind::Conflict),
            (Errno::EBUSY, ErrorKind::InUse),
            (Errno::ENOSPC, ErrorKind::OutOfSpace),
            (Errno::EIO, ErrorKind::Internal),
        ] {
            assert_eq!(failed("x", &ioctl(errno)).kind(), kind, "{errno}");
        }
    }
}
