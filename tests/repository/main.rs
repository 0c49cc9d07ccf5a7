//! Backups in repositories, with restic as the judge of what was written.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a failed helper is a failed test")]

mod damage;
mod errors;
mod faulty;
mod gate;
mod histories;
mod image;
mod limits;
mod locks;
mod mending;
mod moto;
mod prune;
mod s3;
mod store_faults;
mod tree;
mod world;
