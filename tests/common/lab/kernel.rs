//! The processes of a running host.

use std::fs::{self, File};
use std::process::{Child, Command, Stdio};

use super::builder::HostBuilder;
use super::control::{Answer, Control};
use super::disk::Slots;
use super::{network, source};

/// Runs a kernel as long as both it and the test process live: `cat` ends with the latter, however that
/// dies. This shell is the first process of a namespace, so that its end is that of all the others. The
/// kernel has its pipe open for writing too and never sees its end, on which `init` would act.
const LAUNCH: &str = r#"
    control=$1 console=$2
    shift 2
    rm -f "$control"
    mkfifo "$control"
    cat <&0 >"$control" &
    "$@" 3<>"$control" 4>&1 </dev/null >>"$console" 2>&1 &
    wait -n"#;

/// The first console is for messages, the second for [`Control`].
const FIXED: &[&str] = &[
    "rootfstype=hostfs",
    "rootflags=/",
    "ro",
    "quiet",
    "con=null",
    "con0=null,fd:1",
    "con1=fd:3,fd:4",
];

#[derive(Debug)]
pub(super) struct Kernel {
    process: Child,
    control: Control,
}

impl Kernel {
    /// Starts a host. The answer is that it is up.
    pub(super) fn start(host: &HostBuilder<'_>, disks: &Slots) -> (Self, Answer) {
        // What a killed kernel left there looks like that of a living one.
        let _ = fs::remove_dir_all(host.sockets().join(&host.name));
        let console = host.console();
        let log = File::options().append(true).create(true).open(&console).expect("console");
        let launcher = "unshare";
        let mut command = match &host.lab.network {
            Some(network) => network.command(launcher),
            None => Command::new(launcher),
        };
        let mut process = command
            .args(["--pid", "--fork", "--kill-child", "bash", "-euc", LAUNCH, "launch"])
            .arg(host.lab.dir().join(format!("{}.control", host.name)))
            .arg(console)
            .args(["env", &format!("LD_PRELOAD={}", host.lab.xstate().display()), "linux.uml"])
            .args(FIXED)
            .args(arguments(host))
            .args(disks.arguments())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .expect("unshare (util-linux)");
        let pipes = (process.stdin.take().expect("piped"), process.stdout.take().expect("piped"));
        let (control, up) = Control::new(pipes.0, pipes.1);
        (Self { process, control }, up)
    }

    pub(super) fn ask(&self, verb: &str, number: u32, argument: &str) -> Answer {
        self.control.ask(verb, number, argument)
    }

    /// Kills what still runs of it, and waits until none of its processes is left.
    pub(super) fn end(mut self) {
        let reader = self.control.close();
        let _ = self.process.wait();
        let _ = reader.join();
    }
}

/// What is the host's own on the command line. The names in capitals are for `init`.
fn arguments(host: &HostBuilder<'_>) -> Vec<String> {
    let mut arguments = vec![
        format!("umid={}", host.name),
        format!("uml_dir={}/", host.sockets().display()),
        format!("mem={}M", host.memory_mib),
        format!("init={}", source("init").display()),
        format!("NAME={}", host.name),
        format!("SHARE={}", host.lab.dir().display()),
    ];
    if host.lab.network.is_some() {
        arguments.push(format!("ADDRESS={}/24", host.address()));
        let port = network::port(host.number);
        // Without gro large frames are dropped.
        arguments.push(format!("vec0:transport=tap,ifname={port},depth=128,gro=1"));
    }
    if !host.modules.is_empty() {
        arguments.push(format!("MODULES={}", host.modules.join(",")));
    }
    if host.containers {
        arguments.push("CONTAINERS=1".to_owned());
    }
    arguments
}
