//! A bridge in a network namespace that ends with the test process.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use crate::common::host::checked;

/// `cat` ends with the test process, however that dies, and the namespace with `cat`.
const SET_UP: &str = "
    ip link set lo up
    ip link add bridge type bridge
    ip link set bridge up
    echo ready
    exec cat";

#[derive(Debug)]
pub(super) struct Network {
    holder: Child,
}

impl Network {
    pub(super) fn new() -> Self {
        let mut holder = Command::new("unshare")
            .args(["--net", "sh", "-euc", SET_UP])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare (util-linux)");
        let mut line = String::new();
        BufReader::new(holder.stdout.take().expect("piped")).read_line(&mut line).expect("read");
        assert_eq!(line, "ready\n", "no network namespace with a bridge");
        Self { holder }
    }

    /// A command that will run in the namespace.
    pub(super) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/proc/{}/ns/net", self.holder.id())).arg(program);
        command
    }

    /// Adds the outer end of a host's network device. It stays while the host is off.
    pub(super) fn add_port(&self, number: u8) {
        let port = port(number);
        checked(&mut self.command("ip"), &["tuntap", "add", &port, "mode", "tap"]);
        checked(&mut self.command("ip"), &["link", "set", &port, "master", "bridge", "up"]);
    }
}

/// The name of the outer end of a host's network device.
pub(super) fn port(number: u8) -> String {
    format!("tap{number}")
}

impl Drop for Network {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}
