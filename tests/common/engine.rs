//! A Docker Engine of a host's own, and two images made without a registry.

use std::fs::{self, File};
use std::os::unix::fs::{chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use nix::sys::signal::{Signal, kill};

use super::host::{Host, checked, child_of, end};
use super::wait;

/// The applets that the tests use.
const APPLETS: &[&str] = &[
    "cat", "chmod", "chown", "cp", "date", "dd", "df", "echo", "false", "grep", "id", "ls",
    "mkdir", "mount", "mv", "rm", "sed", "seq", "sh", "sleep", "stat", "sync", "tail", "test",
    "touch", "true", "wc",
];

#[derive(Debug)]
pub(crate) struct Engine<'h> {
    host: &'h Host,
    args: Vec<String>,
    dockerd: Child,
}

impl<'h> Engine<'h> {
    /// Starts an engine with two images: `busybox`, and `seeded`, which has content at `/seed`.
    #[track_caller]
    pub(crate) fn start(host: &'h Host) -> Self {
        Self::start_with(host, &[])
    }

    #[track_caller]
    pub(crate) fn start_with(host: &'h Host, args: &[&str]) -> Self {
        let args: Vec<_> = args.iter().map(|&arg| arg.to_owned()).collect();
        let dockerd = spawn(host, &args);
        let mut engine = Self { host, args, dockerd };
        engine.wait_ready();
        engine.import_images();
        engine
    }

    fn dir(&self) -> PathBuf {
        engine_dir(self.host)
    }

    /// The docker client, not started yet.
    pub(crate) fn client(&self, args: &[&str]) -> Command {
        let mut command = self.for_client("docker");
        command.args(args);
        command
    }

    /// A program whose docker client is to talk to this engine, not started yet.
    pub(crate) fn for_client(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("DOCKER_HOST", format!("unix://{}/docker.sock", self.dir().display()));
        command.env("DOCKER_CONFIG", self.dir()).stdin(Stdio::null());
        command
    }

    /// Runs `docker ARGS`, which must succeed, and gives what it printed, trimmed.
    #[track_caller]
    pub(crate) fn docker(&self, args: &[&str]) -> String {
        checked(&mut self.client(args), &[]).trim_end().to_owned()
    }

    /// Runs `docker ARGS`, which must fail, and gives the error that the user sees.
    #[track_caller]
    pub(crate) fn docker_fails(&self, args: &[&str]) -> String {
        let Output { status, stdout, stderr } = self.client(args).output().expect("docker");
        let text = String::from_utf8_lossy(&stdout) + String::from_utf8_lossy(&stderr);
        assert!(!status.success(), "docker {args:?} succeeded: {text}");
        text.into_owned()
    }

    /// Runs a shell line in a new container that has `volume` at /data.
    #[track_caller]
    pub(crate) fn in_volume(&self, volume: &str, line: &str) -> String {
        let volume = format!("{volume}:/data");
        self.docker(&[
            "run",
            "--rm",
            "-v",
            &volume,
            "--volume-driver",
            "holdfast",
            "busybox",
            "sh",
            "-c",
            line,
        ])
    }

    /// SIGKILL. The containers stay, as they belong to their shims.
    #[track_caller]
    pub(crate) fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
    }

    /// SIGTERM, which without live-restore stops the containers too.
    #[track_caller]
    pub(crate) fn terminate(&mut self) {
        self.signal(Signal::SIGTERM);
    }

    fn signal(&mut self, signal: Signal) {
        kill(child_of(&self.dockerd).expect("dockerd runs"), signal).expect("kill");
        wait::until("dockerd ends", || self.dockerd.try_wait().expect("wait"));
    }

    #[track_caller]
    pub(crate) fn start_again(&mut self) {
        self.dockerd = spawn(self.host, &self.args);
        self.wait_ready();
    }

    #[track_caller]
    fn wait_ready(&mut self) {
        wait::until_true("dockerd answers", || {
            if let Some(status) = self.dockerd.try_wait().expect("wait") {
                panic!("dockerd ended at its start: {status}\n{}", self.log());
            }
            self.client(&["version"]).output().is_ok_and(|output| output.status.success())
        });
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.dir().join("log")).unwrap_or_default()
    }

    fn import_images(&self) {
        for (name, archive) in write_images(&self.dir()) {
            let archive = archive.to_str().expect("UTF-8");
            self.docker(&["import", "--change", "CMD [\"sh\"]", archive, name]);
        }
    }
}

/// Writes the images' archives below `dir` and gives each with its name.
pub(crate) fn write_images(dir: &Path) -> [(&'static str, PathBuf); 2] {
    let root = dir.join("rootfs");
    let bin = root.join("bin");
    fs::create_dir_all(&bin).expect("rootfs");
    fs::create_dir(root.join("tmp")).expect("rootfs");
    fs::copy("/bin/busybox", bin.join("busybox")).expect("busybox-static");
    for applet in APPLETS {
        symlink("busybox", bin.join(applet)).expect("applet");
    }
    let busybox = archive(dir, "busybox");
    fs::create_dir_all(root.join("seed/below")).expect("seed");
    fs::write(root.join("seed/file"), "seeded").expect("seed");
    fs::write(root.join("seed/below/owned"), "by 1000").expect("seed");
    chown(root.join("seed/below/owned"), Some(1000), Some(1000)).expect("seed");
    [busybox, archive(dir, "seeded")]
}

/// Packs what is in the root filesystem now.
fn archive<'n>(dir: &Path, name: &'n str) -> (&'n str, PathBuf) {
    let archive = dir.join(format!("{name}.tar"));
    let root = dir.join("rootfs");
    checked(Command::new("tar").arg("-C").arg(root).arg("-cf").arg(&archive), &["."]);
    (name, archive)
}

fn engine_dir(host: &Host) -> PathBuf {
    host.dir().join("engine")
}

fn spawn(host: &Host, args: &[String]) -> Child {
    let dir = engine_dir(host);
    fs::create_dir_all(&dir).expect("engine dir");
    let log = File::options().append(true).create(true).open(dir.join("log")).expect("log");
    host.command("dockerd")
        .args(dockerd_args(&dir))
        .args(args)
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("log"))
        .stderr(log)
        .spawn()
        .expect("nsenter (util-linux)")
}

/// Keeps all that the engine has below `dir`, `docker.sock` included.
pub(crate) fn dockerd_args(dir: &Path) -> Vec<String> {
    let option = |name: &str, file: &str| format!("--{name}={}", dir.join(file).display());
    let mut args = vec![option("data-root", "data"), option("exec-root", "exec")];
    args.push(option("pidfile", "pid"));
    args.push(format!("--host=unix://{}", dir.join("docker.sock").display()));
    args.extend(["--bridge=none", "--iptables=false", "--ip6tables=false"].map(str::to_owned));
    args
}

impl Drop for Engine<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let tail: Vec<_> = log.lines().rev().take(40).collect();
            eprintln!("--- the engine's log");
            for line in tail.iter().rev() {
                eprintln!("{line}");
            }
        }
        // A clean end takes the containers' control groups with it; their mounts go with the host.
        let ids = self.client(&["ps", "-q"]).output().map(|output| output.stdout);
        let ids = String::from_utf8(ids.unwrap_or_default()).unwrap_or_default();
        let mut remove = vec!["rm", "-f"];
        remove.extend(ids.split_whitespace());
        if remove.len() > 2 {
            let _ = self.client(&remove).output();
        }
        end(&mut self.dockerd);
    }
}
