//! The thin backend, on real kernels: each test boots hosts of its own (`docs/lab.md`).

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a failed helper is a failed test")]

#[path = "../common/mod.rs"]
mod common;

mod contract;
mod convoy;
mod crash;
mod daemon;
mod discard;
mod docker;
#[path = "../crash/driver.rs"]
mod driver;
mod duplicates;
mod errors;
mod full;
mod helpers;
mod managers;
mod many;
#[path = "../crash/operations.rs"]
mod operations;
mod pool;
mod pools;
mod power;
mod reading;
mod repair;
mod survival;
mod udev;
mod writer;
