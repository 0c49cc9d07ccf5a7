//! Time and randomness as arguments, so that one seed can replay one history.
//!
//! Only the wall clock and new ids come from here. Waiting uses tokio's timers, which a simulation
//! pauses and steps on its own.

use std::fmt::Debug;

use jiff::Timestamp;
use uuid::Uuid;

/// The wall clock. Never used to order events or to decide who owns what.
pub trait Clock: Debug + Send + Sync {
    /// The time now.
    fn now(&self) -> Timestamp;
}

/// Where new ids come from.
pub trait Entropy: Debug + Send + Sync {
    /// A UUID that nobody else has.
    fn uuid(&self) -> Uuid;
}

/// The host's clock and random numbers.
#[derive(Debug, Clone, Copy, Default)]
pub struct System;

impl Clock for System {
    fn now(&self) -> Timestamp {
        // Whole seconds, as Docker's clients and our JSON show them.
        let now = Timestamp::now();
        Timestamp::from_second(now.as_second()).unwrap_or(now)
    }
}

impl Entropy for System {
    fn uuid(&self) -> Uuid {
        Uuid::new_v4()
    }
}
