//! Time and randomness as arguments, so that one seed can replay one history.
//!
//! Only the wall clock and new ids come from here. Waiting uses tokio's timers, which a simulation
//! pauses and steps on its own.

use std::fmt::Debug;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
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

/// Whether `limit` has passed since `since`. A clock that was set back makes nothing old.
pub fn has_passed(limit: Duration, since: Timestamp, now: Timestamp) -> bool {
    SignedDuration::try_from(limit).is_ok_and(|limit| now.duration_since(since) >= limit)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_to_come_has_not_passed() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let hour = Duration::from_secs(3600);
        assert!(has_passed(hour, at(0), at(3600)));
        assert!(!has_passed(hour, at(0), at(3599)));
        assert!(!has_passed(hour, at(100_000), at(0)), "the clock was set back");
        assert!(!has_passed(Duration::MAX, at(0), at(100_000)));
    }
}
