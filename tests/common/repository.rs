//! A repository for backups, and Debian's restic as the judge of it.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::cli::Cli;
use super::daemon::Launch;
use super::host::{Host, checked};

/// Nothing that any log or argument list holds by chance.
pub(crate) const PASSWORD: &str = "correct-horse-battery-staple";

/// The repository `main` of a host: a directory, and the file of its password.
#[derive(Debug, Clone)]
pub(crate) struct Repository {
    pub(crate) directory: PathBuf,
    pub(crate) key: PathBuf,
}

impl Repository {
    /// Not made yet: `holdfast repository init main` does that.
    pub(crate) fn of(host: &Host) -> Self {
        Self::at(host.dir())
    }

    /// The same below another directory.
    pub(crate) fn at(directory: &Path) -> Self {
        let key = directory.join("repository.key");
        fs::write(&key, PASSWORD).expect("password");
        fs::set_permissions(&key, Permissions::from_mode(0o600)).expect("mode");
        Self { directory: directory.join("repository"), key }
    }

    /// A daemon that has it.
    pub(crate) fn known_to(&self, launch: Launch) -> Launch {
        launch
            .env("HOLDFAST_REPOSITORY_MAIN_URL", self.directory.to_str().expect("UTF-8"))
            .env("HOLDFAST_REPOSITORY_MAIN_PASSWORD_FILE", self.key.to_str().expect("UTF-8"))
    }

    /// Runs `restic ARGS`, which must succeed.
    #[track_caller]
    pub(crate) fn restic(&self, args: &[&str]) -> String {
        let mut restic = Command::new("restic");
        restic.arg("--no-cache").arg("--repo").arg(&self.directory);
        restic.arg("--password-file").arg(&self.key);
        checked(&mut restic, args)
    }

    /// restic reads all of it and finds nothing wrong; nobody's lock is in its way.
    #[track_caller]
    pub(crate) fn assert_sound(&self) {
        self.restic(&["check", "--read-data"]);
    }
}

/// The ids of all backups, oldest first.
#[track_caller]
pub(crate) fn backups(cli: &Cli) -> Vec<String> {
    let backups = cli.ok(&["backup", "ls"]).json();
    let ids = backups.as_array().expect("backups").iter();
    ids.map(|backup| backup["id"].as_str().expect("id").to_owned()).collect()
}
