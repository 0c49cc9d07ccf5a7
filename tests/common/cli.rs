//! The command line, run as a user runs it.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::Value;

#[derive(Debug, Clone)]
pub(crate) struct Cli {
    pub(crate) socket: PathBuf,
}

#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Run {
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|_| panic!("not JSON: {self:?}"))
    }
}

impl Cli {
    /// Runs `holdfast --output json ARGS` to its end.
    pub(crate) fn run(&self, args: &[&str]) -> Run {
        let output = Command::new(super::HOLDFAST)
            .arg("--socket")
            .arg(&self.socket)
            .args(["--output", "json"])
            .args(args)
            .stdin(Stdio::null())
            .output()
            .expect("holdfast");
        Run {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8(output.stdout).expect("UTF-8"),
            stderr: String::from_utf8(output.stderr).expect("UTF-8"),
        }
    }

    /// Runs a command that must succeed.
    #[track_caller]
    pub(crate) fn ok(&self, args: &[&str]) -> Run {
        let run = self.run(args);
        assert_eq!(run.code, 0, "holdfast {args:?}: {run:?}");
        run
    }

    /// `volume inspect NAME`: the one volume.
    #[track_caller]
    pub(crate) fn inspect(&self, name: &str) -> Value {
        match self.ok(&["volume", "inspect", name]).json() {
            Value::Array(mut volumes) if volumes.len() == 1 => volumes.remove(0),
            volume => volume,
        }
    }
}
