//! A private host: namespaces of its own for mounts, processes and network, and a directory.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use super::{kernel, wait};

/// Fresh /run and /etc/docker, so that each host has its own plugin sockets; / is shared, as under
/// systemd. `cat` ends with the test process, however that dies, and takes all the others along.
const SET_UP: &str = "
    mount -t tmpfs tmpfs /run
    mkdir -p /etc/docker && mount -t tmpfs tmpfs /etc/docker
    mount --make-rshared /
    busybox ip link set lo up
    echo ready
    exec tini -- cat";

/// Everything in it ends when it is dropped: processes, then mounts, then loop devices and files.
#[derive(Debug)]
pub(crate) struct Host {
    unshare: Child,
    init: Pid,
    dir: TempDir,
}

impl Host {
    pub(crate) fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("holdfast-").tempdir().expect("temp dir");
        let log = dir.path().join("host.log");
        let mut unshare = Command::new("unshare")
            .args(["--mount", "--net", "--pid", "--fork", "--mount-proc"])
            .args(["--propagation", "private", "sh", "-euc", SET_UP])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(File::create(&log).expect("log"))
            .spawn()
            .expect("unshare (util-linux)");
        let mut line = String::new();
        BufReader::new(unshare.stdout.take().expect("piped")).read_line(&mut line).expect("read");
        assert_eq!(line, "ready\n", "no private host: {:?}", fs::read_to_string(&log));
        let init = child_of(&unshare).expect("unshare --fork has a child");
        Self { unshare, init, dir }
    }

    /// The directory of this host; the same path inside and outside.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// How `path` inside is reached from the test process.
    pub(crate) fn inside(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        Path::new(&format!("/proc/{}/root", self.init))
            .join(path.strip_prefix("/").expect("an absolute path"))
    }

    /// A command that will run inside.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--target={}", self.init));
        command.args(["--mount", "--net", "--pid", "--", program]);
        command
    }

    /// Runs a command inside and expects it to succeed.
    #[track_caller]
    pub(crate) fn run(&self, program: &str, args: &[&str]) -> String {
        checked(&mut self.command(program), args)
    }

    pub(crate) fn loops(&self) -> Vec<kernel::Loop> {
        kernel::loops_under(self.dir())
    }

    /// The mounts below this host's directory, the engine's own left out.
    pub(crate) fn mounts(&self) -> Vec<kernel::Mount> {
        let engine = self.dir().join("engine");
        let mut mounts = kernel::mounts_under(self.init.as_raw(), self.dir());
        mounts.retain(|mount| !mount.target.starts_with(&engine));
        mounts
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = kill(self.init, Signal::SIGKILL);
        let _ = self.unshare.wait();
        // A mount that goes with its namespace lets go of its device a little later.
        let free = wait::try_until(|| {
            for device in self.loops() {
                let _ = Command::new("losetup").arg("--detach").arg(&device.device).output();
            }
            self.loops().is_empty().then_some(())
        });
        if free.is_none() {
            eprintln!("loop devices stay behind: {:?}", self.loops());
        }
    }
}

/// Runs a command to its end and expects success.
#[track_caller]
pub(crate) fn checked(command: &mut Command, args: &[&str]) -> String {
    let Output { status, stdout, stderr } = command.args(args).output().expect("start");
    let (stdout, stderr) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    assert!(status.success(), "{command:?}: {status}\n{stdout}{stderr}");
    stdout.into_owned()
}

/// The child of a process that forks once and waits, as `unshare --fork` and `nsenter --pid` do.
pub(crate) fn child_of(parent: &Child) -> Option<Pid> {
    let parent = parent.id().to_string();
    fs::read_dir("/proc").expect("/proc").flatten().find_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        // The name, in parentheses, may hold anything; after it come the state and the parent.
        let parent_of_it = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?;
        (parent_of_it == parent).then(|| Pid::from_raw(pid))
    })
}

/// Kills what `nsenter` runs. `nsenter` itself then ends by itself and, being the parent, reaps it;
/// otherwise it would be left to the machine's init, and the host's end would wait for that.
pub(crate) fn end(nsenter: &mut Child) {
    if let Ok(None) = nsenter.try_wait() {
        match child_of(nsenter) {
            Some(pid) => kill(pid, Signal::SIGKILL).unwrap_or_default(),
            None => nsenter.kill().unwrap_or_default(),
        }
        let _ = nsenter.wait();
    }
}
