use jiff::{SignedDuration, Timestamp};

use crate::timing::Timing;

/// The first pause after a failure; each one more doubles it.
const FIRST_PAUSE: SignedDuration = SignedDuration::from_mins(1);
/// Doublings after which no pause is shorter than any timing.
const MOST_DOUBLINGS: u32 = 25;

/// From when the next run of one kind of one volume is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pace {
    /// Since when the timing is in force.
    since: Timestamp,
    /// The beginning of the last run, or `since`.
    counted_from: Timestamp,
    failures: u32,
    /// The end of the last run that failed.
    failed: Timestamp,
}

impl Pace {
    /// The pace of a timing that is in force since `since`, with the last run so far.
    pub(super) fn new(since: Timestamp, last_run: Option<Timestamp>) -> Self {
        let counted_from = last_run.map_or(since, |last| last.max(since));
        Self { since, counted_from, failures: 0, failed: since }
    }

    /// Whether it is the pace of a timing that is in force since then.
    pub(super) fn is_since(&self, since: Timestamp) -> bool {
        self.since == since
    }

    /// Whether the next run is counted from then.
    pub(super) fn is_counted_from(&self, started: Timestamp) -> bool {
        self.counted_from == started
    }

    /// When the next run is due. What lies in the future was told by a clock that has been set back since, and
    /// counts from `now`: else nothing would be due until the clock is there again.
    pub(super) fn due(&mut self, timing: &Timing, now: Timestamp) -> Timestamp {
        self.counted_from = self.counted_from.min(now);
        self.failed = self.failed.min(now);
        let next = timing.next_run(self.counted_from);
        if self.failures == 0 {
            return next;
        }
        let doublings = (self.failures - 1).min(MOST_DOUBLINGS);
        let pause = FIRST_PAUSE.saturating_mul(1 << doublings);
        self.failed.saturating_add(pause).map_or(next, |again| again.min(next))
    }

    /// A run that began at `started` has made something.
    pub(super) fn succeeded(&mut self, started: Timestamp) {
        self.counted_from = started;
        self.failures = 0;
    }

    /// A run that began at `started` has made nothing.
    pub(super) fn failed(&mut self, started: Timestamp, finished: Timestamp) {
        self.counted_from = started;
        self.failures = self.failures.saturating_add(1);
        self.failed = finished;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    fn timing(text: &str) -> Timing {
        text.parse().unwrap()
    }

    #[test]
    fn a_failed_run_is_tried_again_with_growing_pauses_up_to_the_next_time() {
        let hourly = timing("1h");
        let mut pace = Pace::new(at(0), None);
        let mut now = at(0);
        let mut pauses = Vec::new();
        for _ in 0..9 {
            let due = pace.due(&hourly, now);
            pauses.push(due.duration_since(now).as_secs() / 60);
            now = due;
            pace.failed(now, now);
        }
        assert_eq!(pauses, [60, 1, 2, 4, 8, 16, 32, 60, 60]);
        pace.succeeded(now);
        assert_eq!(pace.due(&hourly, now), now + SignedDuration::from_hours(1));
        pace.failed(now, now);
        assert_eq!(pace.due(&hourly, now), now + FIRST_PAUSE, "a success ends the pauses");
    }

    #[test]
    fn a_first_run_is_counted_from_when_its_timing_was_set() {
        let hourly = timing("1h");
        assert_eq!(Pace::new(at(0), None).due(&hourly, at(10)), at(3600));
        assert_eq!(Pace::new(at(0), Some(at(600))).due(&hourly, at(700)), at(4200));
        assert_eq!(Pace::new(at(900), Some(at(600))).due(&hourly, at(900)), at(4500));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        /// The clock goes on minute by minute, and jumps now and then.
        #[test]
        fn a_clock_that_jumps_neither_stops_nor_repeats_runs(
            jumps in prop::collection::vec((1u32..3000, -40_000_000i64..40_000_000), 0..6),
            text in prop::sample::select(vec!["1h", "30m", "0 * * * *", "@hourly"]),
        ) {
            const MINUTES: u32 = 3000;
            let timing = timing(text);
            let (mut offset, mut last_run) = (0, 0);
            let mut runs = 0;
            let mut pace = Pace::new(at(0), None);
            for minute in 0..MINUTES {
                offset += jumps.iter().filter(|(when, _)| *when == minute).map(|(_, by)| by).sum::<i64>();
                let now = at(i64::from(minute) * 60 + offset);
                if pace.due(&timing, now) <= now {
                    runs += 1;
                    last_run = minute;
                    pace.succeeded(now);
                    prop_assert!(pace.due(&timing, now) > now, "one run makes up for all");
                }
                // Each jump may put it off, but by no more than an interval.
                let waited = minute - last_run;
                let jumped = u32::try_from(jumps.len()).unwrap();
                prop_assert!(waited <= 60 * (jumped + 1));
            }
            let regular = MINUTES / if text == "30m" { 30 } else { 60 };
            prop_assert!(runs <= regular + u32::try_from(jumps.len()).unwrap() + 1);
        }
    }
}
