//! The driver's control device, the errors of its calls, and udev, for which some of them wait.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use devicemapper::{DM, DmError};
use nix::errno::Errno;

use super::DeviceMapper;
use crate::error::{Error, ErrorKind, Result};
use crate::linux::device_node::{self, NodeKind};

/// Where udev listens, if it runs.
const UDEV_CONTROL: &str = "/run/udev/control";

pub(super) struct Driver(pub(super) DM);

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
        Ok(Self { driver: Arc::new(Driver(dm)), udev_is_stuck: Arc::default() })
    }

    /// Makes a call that tells udev and waits for it, and goes on without udev once `is_done` says that
    /// the kernel has done its part. The thread that still waits ends when udev answers.
    pub(super) fn without_waiting_long(
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
}

/// The errno of the ioctl that failed, if one did.
pub(super) fn errno(error: &DmError) -> Option<Errno> {
    match error {
        DmError::Core(devicemapper::errors::Error::Ioctl(_, _, _, errno)) => Some(**errno),
        _ => None,
    }
}

pub(super) fn failed(what: impl Into<String>, error: &DmError) -> Error {
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
