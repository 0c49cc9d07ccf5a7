//! Waiting for conditions. No test sleeps for a time that should be enough.

use std::time::{Duration, Instant};

/// After this a condition is taken to never come true; far above what a loaded machine needs.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// Asks `probe` until it has an answer, or gives up.
pub(crate) fn try_until<T>(mut probe: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + LIMIT;
    loop {
        let answer = probe();
        if answer.is_some() || Instant::now() > deadline {
            return answer;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Asks `probe` until it has an answer.
#[track_caller]
pub(crate) fn until<T>(what: &str, probe: impl FnMut() -> Option<T>) -> T {
    match try_until(probe) {
        Some(answer) => answer,
        None => panic!("waited {LIMIT:?} in vain for: {what}"),
    }
}

/// Waits until `condition` holds.
#[track_caller]
pub(crate) fn until_true(what: &str, mut condition: impl FnMut() -> bool) {
    until(what, || condition().then_some(()));
}
