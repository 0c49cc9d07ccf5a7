//! The lab itself: what tests that boot hosts of their own rely on.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a failed helper is a failed test")]

#[path = "../common/mod.rs"]
mod common;

mod boots;
mod commands;
mod disks;
mod docker;
mod endings;
mod nfs;
mod tests_inside;
