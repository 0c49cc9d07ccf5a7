//! What every black-box test stands on: a private host, the daemon and the engine running in it, and
//! the kernel's own word on what is mounted and attached.

#![allow(
    dead_code,
    unused_imports,
    unused_macros,
    reason = "each test binary uses its own part of this"
)]
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a failed helper is a failed test")]

pub(crate) mod cli;
pub(crate) mod daemon;
pub(crate) mod engine;
pub(crate) mod host;
pub(crate) mod kernel;
pub(crate) mod lab;
pub(crate) mod plugin;
pub(crate) mod repository;
pub(crate) mod wait;

/// The binary under test.
pub(crate) const HOLDFAST: &str = env!("CARGO_BIN_EXE_holdfast");
