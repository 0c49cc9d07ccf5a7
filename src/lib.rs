//! Volumes for containers that outlive them and their host.
//!
//! `docs/architecture.md` is the page to read first. A module uses only modules on lower floors;
//! `tests/floors.rs` holds that.

// Floor 0: words.
pub mod clock;
pub mod error;
pub mod failpoint;
pub mod id;
pub mod keep;
pub mod name;
pub mod options;
pub mod timing;
pub mod units;

// Floor 1: model.
pub mod model;

// Floor 2: boundaries.
pub mod linux;
pub mod thin_metadata;

// Floor 3: agreement.
pub mod catalog;

// Floor 4: backends.
pub mod backend;

// Floor 5: data movement.
pub mod repository;

// Floor 6: engine.
pub mod engine;

// Floor 7: faces.
pub mod api;
pub mod cli;
pub mod client;
pub mod config;
pub mod daemon;
pub mod telemetry;
