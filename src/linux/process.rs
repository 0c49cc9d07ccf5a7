//! External programs: each is named here and nowhere else, run without a shell, with a limit, and
//! its own words end up in the error.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::AsyncReadExt;
use tokio::process::{Child, ChildStderr, Command};

use crate::error::{Error, Result};

macro_rules! programs {
    ($($variant:ident => $name:literal from $package:literal),* $(,)?) => {
        /// A program that we may run.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[allow(missing_docs, reason = "the programs' own names")]
        pub enum Program { $($variant),* }

        impl Program {
            /// Every one.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// Its file name.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),* }
            }

            /// The Debian package that has it.
            pub fn package(self) -> &'static str {
                match self { $(Self::$variant => $package),* }
            }
        }
    };
}

programs! {
    MkfsExt4 => "mkfs.ext4" from "e2fsprogs",
    E2fsck => "e2fsck" from "e2fsprogs",
    Resize2fs => "resize2fs" from "e2fsprogs",
    Tune2fs => "tune2fs" from "e2fsprogs",
    MkfsXfs => "mkfs.xfs" from "xfsprogs",
    XfsAdmin => "xfs_admin" from "xfsprogs",
    XfsGrowfs => "xfs_growfs" from "xfsprogs",
    Btrfs => "btrfs" from "btrfs-progs",
    Btrfstune => "btrfstune" from "btrfs-progs",
    MkfsBtrfs => "mkfs.btrfs" from "btrfs-progs",
    ThinCheck => "thin_check" from "thin-provisioning-tools",
    ThinRepair => "thin_repair" from "thin-provisioning-tools",
}

/// Where distributions keep them, whatever PATH the daemon was started with.
const USUAL_PLACES: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// How much is kept of what an administrator's program says, in bytes.
const BEGINNING: u64 = 16 << 10;

/// e2fsck's way to say that all is well now.
const E2FSCK_CORRECTED: i32 = 1;

/// The programs that this host has, looked up once.
#[derive(Debug, Clone)]
pub(super) struct Programs {
    found: HashMap<Program, PathBuf>,
    search: OsString,
}

impl Programs {
    /// Looks every program up in PATH and the usual places.
    pub(super) fn find() -> Self {
        let mut search = std::env::var_os("PATH").unwrap_or_default();
        if !search.is_empty() {
            search.push(":");
        }
        search.push(USUAL_PLACES);
        Self::find_in(search)
    }

    fn find_in(search: OsString) -> Self {
        let found = Program::ALL
            .iter()
            .filter_map(|program| {
                let path = std::env::split_paths(&search)
                    .filter(|directory| directory.is_absolute())
                    .map(|directory| directory.join(program.name()))
                    .find(|path| is_executable(path))?;
                Some((*program, path))
            })
            .collect();
        Self { found, search }
    }

    /// The programs that this host lacks.
    pub(super) fn missing(&self) -> Vec<Program> {
        Program::ALL.iter().copied().filter(|program| !self.found.contains_key(program)).collect()
    }

    /// Runs `program` and gives back what it wrote to its standard output.
    ///
    /// # Errors
    /// The program is not installed; it failed, with what it wrote to its standard error; or it was
    /// still running at the end of `limit` and was killed.
    pub(super) async fn run<A: AsRef<OsStr>>(
        &self,
        program: Program,
        arguments: &[A],
        limit: Duration,
    ) -> Result<String> {
        let name = program.name();
        let path = self.found.get(&program).ok_or_else(|| {
            Error::unsupported(format!("{name} is not installed on this host"))
                .hint(format!("install the package {}", program.package()))
        })?;
        let child = self
            .command(path)
            .args(arguments)
            .env("LANG", "C")
            .env("LC_ALL", "C")
            // No word of a user's can name a file here: there are only directories.
            .current_dir("/sys/block")
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| Error::io(format!("cannot start {name}"), error))?;
        let group = group_of(&child);
        let Ok(done) = tokio::time::timeout(limit, child.wait_with_output()).await else {
            return Err(killed(name, group, limit));
        };
        let output = done.map_err(|error| Error::io(format!("cannot wait for {name}"), error))?;
        let code = output.status.code();
        if code == Some(0) || program == Program::E2fsck && code == Some(E2FSCK_CORRECTED) {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        Err(Error::internal(format!("{name} failed: {}", said(&output.stderr, &output.stdout)))
            .caused_by(Exit(output.status)))
    }

    /// Runs a program that an administrator has named, with these variables.
    ///
    /// # Errors
    /// It cannot be started; it failed, with what it wrote to its standard error; or it was still running
    /// at the end of `limit` and was killed with all that it had started.
    pub(super) async fn run_command(
        &self,
        command: &[String],
        variables: &[(&'static str, String)],
        limit: Duration,
    ) -> Result<()> {
        let (name, arguments) =
            command.split_first().ok_or_else(|| Error::internal("no program is named"))?;
        let mut child = self
            .command(name)
            .args(arguments)
            .envs(variables.iter().map(|(name, value)| (name, value)))
            .current_dir("/")
            .stdout(Stdio::null())
            .spawn()
            .map_err(|error| Error::io(format!("cannot start {name}"), error))?;
        let (group, stderr) = (group_of(&child), child.stderr.take());
        let ended = async { tokio::join!(child.wait(), beginning_of(stderr)) };
        let Ok((status, stderr)) = tokio::time::timeout(limit, ended).await else {
            return Err(killed(name, group, limit));
        };
        let status = status.map_err(|error| Error::io(format!("cannot wait for {name}"), error))?;
        if status.success() {
            return Ok(());
        }
        Err(Error::internal(format!("{name} failed: {}", said(&stderr, &[])))
            .caused_by(Exit(status)))
    }

    fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command
            .env_clear()
            .env("PATH", &self.search)
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            // Some of them are scripts: their children have to go with them.
            .process_group(0)
            .kill_on_drop(true);
        command
    }
}

fn group_of(child: &Child) -> Option<Pid> {
    child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw)
}

fn killed(name: &str, group: Option<Pid>, limit: Duration) -> Error {
    if let Some(group) = group {
        let _ = killpg(group, Signal::SIGKILL);
    }
    Error::unavailable(format!(
        "{name} was still running after {} s and was killed",
        limit.as_secs()
    ))
}

/// What came first; the rest is read, so that the program can go on, and not kept.
async fn beginning_of(pipe: Option<ChildStderr>) -> Vec<u8> {
    let mut kept = Vec::new();
    let Some(mut pipe) = pipe else { return kept };
    if (&mut pipe).take(BEGINNING).read_to_end(&mut kept).await.is_ok() {
        let _ = tokio::io::copy(&mut pipe, &mut tokio::io::sink()).await;
    }
    kept
}

fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// The first lines of what a program said, on one line: help follows the reason.
fn said(stderr: &[u8], stdout: &[u8]) -> String {
    const LONGEST: usize = 600;
    let text = if stderr.trim_ascii().is_empty() { stdout } else { stderr };
    let text = String::from_utf8_lossy(text);
    let lines: Vec<_> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let line = lines.join("; ").replace(|c: char| c.is_control(), " ");
    if line.is_empty() {
        "it said nothing".to_owned()
    } else {
        line.chars().take(LONGEST).collect()
    }
}

/// How a program ended.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Exit(std::process::ExitStatus);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    /// A directory with one program that is this shell script.
    fn with_script(program: Program, script: &str) -> (tempfile::TempDir, Programs) {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(program.name());
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let mut search = directory.path().as_os_str().to_owned();
        search.push(":/usr/bin:/bin");
        (directory, Programs::find_in(search))
    }

    #[tokio::test]
    async fn what_the_program_said_is_in_the_error() {
        let (_directory, programs) =
            with_script(Program::MkfsXfs, "echo \"$1 is too small\" >&2; exit 3");
        let error = programs
            .run(Program::MkfsXfs, &["a b; echo $HOME"], Duration::from_secs(60))
            .await
            .unwrap_err();
        let text = error.full_message();
        assert!(text.contains("a b; echo $HOME is too small"), "no shell touched it: {text}");
        assert!(text.contains("exit status: 3"), "{text}");
    }

    #[tokio::test]
    async fn a_program_that_hangs_is_killed() {
        let (_directory, programs) = with_script(Program::Btrfs, "exec sleep 1000");
        let error = programs
            .run(Program::Btrfs, &[] as &[&str], Duration::from_millis(50))
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
    }

    #[tokio::test]
    async fn an_administrators_program_gets_its_words_and_variables_as_they_are() {
        let programs = Programs::find();
        let run = async |script: &str, limit| {
            let command = ["sh", "-c", script, "name", "a b; $HOME"].map(str::to_owned);
            let variables = [("HOLDFAST_VOLUME", "db".to_owned())];
            programs.run_command(&command, &variables, limit).await
        };
        let long = Duration::from_secs(60);
        run("test \"$HOLDFAST_VOLUME $1\" = 'db a b; $HOME' && test $# = 1", long).await.unwrap();
        run("yes | head -c 300000 >&2", long).await.unwrap();
        let error = run("echo no such table >&2; exit 3", long).await.unwrap_err();
        let text = error.full_message();
        assert!(text.contains("sh failed: no such table"), "{text}");
        let error = run("sleep 1000 & wait", Duration::from_millis(50)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        let absent = programs.run_command(&["/nonexistent/program".to_owned()], &[], long).await;
        assert!(absent.unwrap_err().full_message().contains("cannot start /nonexistent/program"));
    }

    #[tokio::test]
    async fn a_missing_program_names_its_package() {
        let programs = Programs::find_in("/nonexistent".into());
        assert_eq!(programs.missing(), Program::ALL);
        let error = programs
            .run(Program::MkfsExt4, &[] as &[&str], Duration::from_secs(1))
            .await
            .unwrap_err();
        assert!(error.hint_text().unwrap().contains("e2fsprogs"));
    }
}
