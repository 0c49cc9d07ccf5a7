use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use uuid::Uuid;

use super::process::{Program, Programs};
use super::{
    FilesystemSpec, FilesystemUsage, Host, MountRequest, Mounted, blocking, filesystem, freeze,
    mount, users,
};
use crate::error::{Error, Result};
use crate::id::BootId;
use crate::model::Outcome;
use crate::options::{FilesystemKind, Ownership};

/// For what only asks the kernel.
const QUICK: Duration = Duration::from_secs(30);
/// For what may have to write or read a lot first: a mount replays a journal, an unmount and a
/// freeze flush.
const SLOW: Duration = Duration::from_secs(100);

/// The host that we run on.
#[derive(Debug)]
pub struct LinuxHost {
    boot: BootId,
    programs: Programs,
}

impl LinuxHost {
    /// Looks at the host once: which run of the kernel it is and which programs it has.
    ///
    /// # Errors
    /// `/proc` is not there or not as it should be.
    pub fn new() -> Result<Self> {
        let path = "/proc/sys/kernel/random/boot_id";
        let boot = std::fs::read_to_string(path)
            .map_err(|error| Error::io(format!("cannot read {path}"), error))?;
        Ok(Self { boot: boot.trim().parse()?, programs: Programs::find() })
    }

    /// The external programs that this host lacks. What needs one of them will say so.
    pub fn missing_programs(&self) -> Vec<Program> {
        self.programs.missing()
    }
}

/// Runs a call about one path on a blocking thread.
async fn at<T: Send + 'static>(
    what: &str,
    limit: Duration,
    path: &Path,
    work: impl FnOnce(&Path) -> Result<T> + Send + 'static,
) -> Result<T> {
    let path: PathBuf = path.to_owned();
    blocking::run(&format!("{what} {}", path.display()), limit, move || work(&path)).await
}

#[async_trait]
impl Host for LinuxHost {
    fn boot_id(&self) -> BootId {
        self.boot
    }

    async fn is_blank(&self, device: &Path) -> Result<bool> {
        at("reading", QUICK, device, filesystem::is_blank).await
    }

    async fn make_filesystem(&self, device: &Path, spec: &FilesystemSpec) -> Result<()> {
        filesystem::make(&self.programs, device, spec).await
    }

    async fn renew_identity(
        &self,
        device: &Path,
        kind: FilesystemKind,
        uuid: Uuid,
        _scratch: &Path,
    ) -> Result<()> {
        filesystem::renew_identity(&self.programs, device, kind, uuid).await
    }

    async fn mount(&self, request: &MountRequest) -> Result<Outcome> {
        let request = request.clone();
        let what = format!("mounting {}", request.target.display());
        blocking::run(&what, SLOW, move || mount::mount(&request)).await
    }

    async fn try_mount(&self, request: &MountRequest) -> Result<()> {
        let request = request.clone();
        let what = format!("opening {}", request.source);
        blocking::run(&what, SLOW, move || mount::open_and_close(&request)).await
    }

    async fn unmount(&self, target: &Path) -> Result<Outcome> {
        at("unmounting", SLOW, target, mount::unmount).await
    }

    async fn mounts_below(&self, directory: &Path) -> Result<Vec<Mounted>> {
        at("listing the mounts below", QUICK, directory, mount::below).await
    }

    async fn bind_mounts_of(&self, target: &Path) -> Result<usize> {
        at("looking for users of", QUICK, target, users::bind_mounts_of).await
    }

    async fn flush(&self, target: &Path) -> Result<()> {
        at("flushing", SLOW, target, freeze::flush).await
    }

    async fn freeze(&self, target: &Path) -> Result<Outcome> {
        let (path, late) = (target.to_owned(), target.to_owned());
        let what = format!("freezing {}", target.display());
        // A freeze that comes after we gave up would stop the volume's users for ever.
        let undo = move |outcome| {
            if outcome == Outcome::Changed
                && let Err(error) = freeze::thaw(&late)
            {
                tracing::error!(target = %late.display(), error = error.full_message(), "cannot thaw");
            }
        };
        blocking::run_or_undo(&what, SLOW, move || freeze::freeze(&path), undo).await
    }

    async fn thaw(&self, target: &Path) -> Result<Outcome> {
        at("thawing", SLOW, target, freeze::thaw).await
    }

    async fn grow_filesystem(
        &self,
        device: &Path,
        kind: FilesystemKind,
        target: &Path,
    ) -> Result<()> {
        filesystem::grow(&self.programs, device, kind, target).await
    }

    async fn grow_unmounted(&self, device: &Path, kind: FilesystemKind) -> Result<Outcome> {
        filesystem::grow_unmounted(&self.programs, device, kind).await
    }

    async fn prepare_directory(&self, directory: &Path, ownership: Ownership) -> Result<()> {
        at("preparing", QUICK, directory, move |path| {
            filesystem::prepare_directory(path, ownership)
        })
        .await
    }

    async fn run_command(
        &self,
        command: &[String],
        variables: &[(&'static str, String)],
        limit: Duration,
    ) -> Result<()> {
        self.programs.run_command(command, variables, limit).await
    }

    async fn filesystem_usage(&self, target: &Path) -> Result<FilesystemUsage> {
        at("measuring", QUICK, target, filesystem::usage).await
    }
}
