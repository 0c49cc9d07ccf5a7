//! The thin backend, on real kernels: each test boots hosts of its own (`docs/lab.md`).

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a failed helper is a failed test")]

#[path = "../common/mod.rs"]
mod common;

mod contract;
mod crash;
mod daemon;
#[path = "../crash/driver.rs"]
mod driver;
mod errors;
mod full;
mod helpers;
mod managers;
#[path = "../crash/operations.rs"]
mod operations;
mod pool;
mod pools;
mod power;
mod repair;
mod udev;
