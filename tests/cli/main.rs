//! The command line and the admin API, as people and programs see them.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a failed helper is a failed test")]

#[path = "../common/mod.rs"]
mod common;

mod admin;
mod backup;
mod commands;
mod config;
mod daemon;
mod events;
mod metrics;
mod schedules;

use std::process::{Command, Stdio};

use common::cli::Run;

/// Runs `holdfast ARGS` with nothing of ours in the environment but `env`.
fn holdfast(env: &[(&str, &str)], args: &[&str]) -> Run {
    let mut command = Command::new(common::HOLDFAST);
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("HOLDFAST_")) {
        command.env_remove(name);
    }
    let output = command
        .envs(env.iter().copied())
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

/// The error in the form that programs see.
#[track_caller]
fn json_error(run: &Run) -> serde_json::Value {
    assert_eq!(run.stdout, "", "an error is no data");
    let error: serde_json::Value = serde_json::from_str(run.stderr.trim()).expect("JSON");
    for key in ["code", "message"] {
        assert!(error["error"][key].as_str().is_some_and(|text| !text.is_empty()), "{error}");
    }
    error["error"].clone()
}
