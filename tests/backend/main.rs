//! What every backend promises, of the backends that need a kernel and root.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod host;
mod loopback;
mod place;
