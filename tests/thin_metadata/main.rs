//! The reader of dm-thin's metadata against thin-provisioning-tools, which need no kernel for it.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod damage;
mod device;
mod nodes;
mod oracle;
mod pool;
mod tools;

use proptest::test_runner::{Config, RngSeed};

/// A campaign of this many cases, or of as many as the soak wants.
fn cases(short: u32) -> Config {
    let cases = std::env::var("HOLDFAST_SOAK_POOLS").map_or(short, |text| text.parse().unwrap());
    let seed = std::env::var("HOLDFAST_SOAK_SEED").map_or(7, |text| text.parse::<u8>().unwrap());
    Config {
        cases,
        rng_seed: RngSeed::Fixed(seed.into()),
        failure_persistence: None,
        ..Config::default()
    }
}
