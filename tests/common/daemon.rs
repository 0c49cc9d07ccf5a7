//! The daemon under test.

use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::cli::Cli;
use super::host::{Host, child_of, end};
use super::plugin::PluginClient;
use super::{kernel, wait};

/// Where the engine looks for a plugin called `holdfast`.
pub(crate) const ENGINE_SOCKET: &str = "/run/docker/plugins/holdfast.sock";

/// How to start a daemon; each host has one state directory.
#[derive(Debug, Clone)]
pub(crate) struct Launch {
    pub(crate) plugin_socket: PathBuf,
    pub(crate) args: Vec<String>,
    pub(crate) env: Vec<(String, String)>,
}

impl Launch {
    /// On a plugin socket that no engine finds.
    pub(crate) fn new(host: &Host) -> Self {
        let plugin_socket = host.dir().join("plugin.sock");
        Self { plugin_socket, args: Vec::new(), env: Vec::new() }
    }

    /// On the socket where the engine of this host looks.
    pub(crate) fn for_engine() -> Self {
        Self { plugin_socket: ENGINE_SOCKET.into(), args: Vec::new(), env: Vec::new() }
    }

    pub(crate) fn args(mut self, args: &[&str]) -> Self {
        self.args.extend(args.iter().map(|&arg| arg.to_owned()));
        self
    }

    pub(crate) fn env(mut self, key: &str, value: &str) -> Self {
        self.env.push((key.to_owned(), value.to_owned()));
        self
    }

    /// A container whose Unmount is lost is found to be gone while a test can wait for it.
    pub(crate) fn short_grace(self) -> Self {
        self.args(&["--mount-grace", "20s"])
    }

    pub(crate) fn failpoint(self, failpoint: &str) -> Self {
        self.env("HOLDFAST_FAILPOINTS", failpoint)
    }

    /// Starts the daemon and waits until it answers.
    #[track_caller]
    pub(crate) fn start(self, host: &Host) -> Daemon<'_> {
        let mut daemon = self.spawn(host);
        daemon.wait_ready();
        daemon
    }

    /// Starts the daemon without waiting for anything.
    pub(crate) fn spawn(self, host: &Host) -> Daemon<'_> {
        let log = host.dir().join("holdfast.log");
        let file = File::options().append(true).create(true).open(&log).expect("log");
        let child = host
            .command(super::HOLDFAST)
            .arg("daemon")
            .arg("--state-dir")
            .arg(state_dir(host))
            .arg("--runtime-dir")
            .arg(runtime_dir(host))
            .arg("--plugin-socket")
            .arg(&self.plugin_socket)
            .args(&self.args)
            .env("RUST_LOG", "debug")
            .envs(self.env.iter().map(|(key, value)| (key, value)))
            .stdin(Stdio::null())
            .stdout(file.try_clone().expect("log"))
            .stderr(file)
            .spawn()
            .expect("nsenter (util-linux)");
        Daemon { host, launch: self, child, log }
    }
}

fn state_dir(host: &Host) -> PathBuf {
    host.dir().join("state")
}

fn runtime_dir(host: &Host) -> PathBuf {
    host.dir().join("run")
}

#[derive(Debug)]
pub(crate) struct Daemon<'h> {
    host: &'h Host,
    launch: Launch,
    /// `nsenter`, which waits for the daemon and ends as it does.
    child: Child,
    log: PathBuf,
}

impl<'h> Daemon<'h> {
    #[track_caller]
    pub(crate) fn start(host: &'h Host) -> Self {
        Launch::new(host).start(host)
    }

    pub(crate) fn plugin(&self) -> PluginClient {
        PluginClient { socket: self.host.inside(&self.launch.plugin_socket) }
    }

    pub(crate) fn cli(&self) -> Cli {
        Cli { socket: runtime_dir(self.host).join("holdfast.sock") }
    }

    pub(crate) fn state_dir(&self) -> PathBuf {
        state_dir(self.host)
    }

    /// Where the loop backend keeps its images, as a path inside the host.
    pub(crate) fn loop_dir(&self) -> PathBuf {
        state_dir(self.host).join("loop")
    }

    /// The files of all volumes on disk: images, descriptions, snapshots.
    pub(crate) fn volume_files(&self) -> Vec<PathBuf> {
        let dir = self.host.inside(self.loop_dir());
        let volumes = kernel::names_in(&dir).into_iter().filter(|name| !name.starts_with('.'));
        volumes.flat_map(|name| kernel::files_under(&dir.join(name))).collect()
    }

    /// Waits until nothing of any volume is on disk; deleted things may go a little later.
    #[track_caller]
    pub(crate) fn wait_no_volume_files(&self) {
        let dir = self.host.inside(self.loop_dir());
        let left = || {
            let entries = kernel::names_in(&dir).into_iter().map(|name| dir.join(name));
            let ours = [".id", ".lock", ".work"];
            let kept = |path: &PathBuf| ours.iter().any(|name| path.ends_with(name));
            let mut left: Vec<_> = entries.filter(|path| !kept(path)).collect();
            left.extend(kernel::names_in(&dir.join(".work")).into_iter().map(PathBuf::from));
            left
        };
        let empty = wait::try_until(|| left().is_empty().then_some(()));
        assert!(empty.is_some(), "left in {}: {:?}", dir.display(), left());
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The content of a file in a mounted volume, read past Holdfast.
    pub(crate) fn read(&self, path: impl AsRef<Path>) -> String {
        let path = self.host.inside(path);
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    pub(crate) fn write(&self, path: impl AsRef<Path>, text: &str) {
        let path = self.host.inside(path);
        fs::write(&path, text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        File::open(&path).and_then(|file| file.sync_all()).expect("fsync");
    }

    #[track_caller]
    fn wait_ready(&mut self) {
        let plugin = self.plugin();
        wait::until_true("the daemon answers Activate", || {
            if let Some(status) = self.child.try_wait().expect("wait") {
                panic!("the daemon ended at its start: {status}\n{}", self.log());
            }
            plugin.post("Plugin.Activate", b"").is_ok_and(|answer| answer.status == 200)
        });
    }

    pub(crate) fn pid(&self) -> Pid {
        wait::until("nsenter has started the daemon", || child_of(&self.child))
    }

    /// Its process id as the host knows it.
    pub(crate) fn pid_inside(&self) -> u32 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("status");
        let ids = status.lines().find_map(|line| line.strip_prefix("NSpid:")).expect("NSpid");
        ids.split_whitespace().last().and_then(|id| id.parse().ok()).expect("a process id")
    }

    pub(crate) fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("wait").is_some()
    }

    /// Waits for an end that something else brings about.
    #[track_caller]
    pub(crate) fn wait_end(&mut self) -> ExitStatus {
        wait::until("the daemon ends", || self.child.try_wait().expect("wait"))
    }

    /// SIGKILL, as the kernel's out-of-memory killer sends it.
    #[track_caller]
    pub(crate) fn kill(&mut self) {
        kill(self.pid(), Signal::SIGKILL).expect("kill");
        let status = self.wait_end();
        assert_eq!(status.signal(), Some(9), "{status}");
    }

    /// SIGTERM, as systemd sends it, without waiting for anything.
    pub(crate) fn ask_to_end(&self) {
        kill(self.pid(), Signal::SIGTERM).expect("kill");
    }

    #[track_caller]
    pub(crate) fn terminate(&mut self) {
        self.ask_to_end();
        let status = self.wait_end();
        assert!(status.success(), "the daemon did not end cleanly: {status}\n{}", self.log());
    }

    /// Starts an ended daemon again, without failpoints.
    #[track_caller]
    pub(crate) fn start_again(&mut self) {
        assert!(self.has_ended(), "the daemon still runs");
        let mut launch = self.launch.clone();
        launch.env.retain(|(key, _)| key != "HOLDFAST_FAILPOINTS");
        *self = launch.start(self.host);
    }

    #[track_caller]
    pub(crate) fn kill_and_start_again(&mut self) {
        self.kill();
        self.start_again();
    }
}

impl Drop for Daemon<'_> {
    fn drop(&mut self) {
        end(&mut self.child);
        if std::thread::panicking() {
            eprintln!("--- the daemon's log\n{}---", self.log());
        }
    }
}
