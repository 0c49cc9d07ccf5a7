//! Backups in repositories, with restic as the judge of what was written.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a failed helper is a failed test")]

mod image;
mod tree;
mod world;
