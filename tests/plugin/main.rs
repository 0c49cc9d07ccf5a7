//! The volume plugin protocol at the real socket, against the real kernel.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a failed helper is a failed test")]

#[path = "../common/mod.rs"]
mod common;

mod disk;
mod endpoints;
mod frozen;
mod hostile;
mod ledger;
mod names;
mod options;
mod rules;
mod storage;
