//! When something is to be done again and again.

mod cron;

use std::fmt;
use std::str::FromStr;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use cron::Cron;

const MINUTE: i64 = 60;

/// Units of intervals, the largest first, in seconds.
const UNITS: [(char, i64); 4] =
    [('w', 7 * 24 * 60 * MINUTE), ('d', 24 * 60 * MINUTE), ('h', 60 * MINUTE), ('m', MINUTE)];

/// The longest interval, in seconds: a hundred years.
const LONGEST: i64 = 36_525 * 24 * 60 * MINUTE;

/// When something is to be done again: after an interval, or at the times of a cron line in UTC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Timing(Kind);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    /// At least a minute.
    Every(SignedDuration),
    Cron(Cron),
}

impl Timing {
    /// The first time that is due after `after`.
    pub fn next_run(&self, after: Timestamp) -> Timestamp {
        match &self.0 {
            Kind::Every(interval) => after.saturating_add(*interval).unwrap_or(Timestamp::MAX),
            Kind::Cron(cron) => cron.next(after).unwrap_or(Timestamp::MAX),
        }
    }

    /// Whether a run was due between `last_run` and `now`. However many were, one makes up for them all.
    pub fn missed(&self, last_run: Timestamp, now: Timestamp) -> bool {
        self.next_run(last_run) <= now
    }
}

impl FromStr for Timing {
    type Err = Error;

    /// Accepts an interval of whole minutes, hours, days or weeks (`15m`, `1h`, `1d`, `1w`), a cron line of
    /// five fields (`0 3 * * mon-fri`), and `@hourly`, `@daily`, `@weekly`, `@monthly`.
    fn from_str(text: &str) -> Result<Self> {
        let text = text.trim();
        if text.starts_with('@') || text.contains(char::is_whitespace) {
            return text.parse().map(|cron| Self(Kind::Cron(cron)));
        }
        let wrong = || {
            let shown: String = text.chars().take(40).collect();
            Error::invalid(format!("{shown:?} does not say when")).hint(
                "write an interval such as 15m, 1h, 1d or 1w, or a cron line such as \"0 3 * * *\"",
            )
        };
        let unit = text.chars().next_back().ok_or_else(wrong)?;
        let (_, seconds) = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(wrong)?;
        let number = &text[..text.len() - unit.len_utf8()];
        if !number.bytes().all(|b| b.is_ascii_digit()) {
            return Err(wrong());
        }
        let number: i64 = number.parse().map_err(|_| wrong())?;
        let interval = number.checked_mul(*seconds).filter(|all| *all <= LONGEST);
        match interval {
            None => Err(Error::invalid(format!("{text} is too long an interval"))),
            Some(0) => Err(Error::invalid("an interval is at least a minute")),
            Some(seconds) => Ok(Self(Kind::Every(SignedDuration::from_secs(seconds)))),
        }
    }
}

impl fmt::Display for Timing {
    /// Reads back.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Cron(cron) => cron.fmt(f),
            Kind::Every(interval) => {
                let all = interval.as_secs();
                let whole = UNITS.iter().find(|(_, seconds)| all % seconds == 0);
                // An interval is of whole minutes.
                let (name, seconds) = whole.unwrap_or(&('m', MINUTE));
                write!(f, "{}{name}", all / seconds)
            }
        }
    }
}

impl TryFrom<String> for Timing {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Timing> for String {
    fn from(timing: Timing) -> Self {
        timing.to_string()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn timing(text: &str) -> Timing {
        text.parse().unwrap()
    }

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn an_interval_is_counted_from_the_last_run() {
        let last = at("2026-03-01T10:07:30Z");
        for (text, next) in [
            ("1m", "2026-03-01T10:08:30Z"),
            ("15m", "2026-03-01T10:22:30Z"),
            ("1h", "2026-03-01T11:07:30Z"),
            ("2d", "2026-03-03T10:07:30Z"),
            ("1w", "2026-03-08T10:07:30Z"),
        ] {
            assert_eq!(timing(text).next_run(last), at(next), "{text}");
        }
        assert_eq!(timing("1w").next_run(Timestamp::MAX), Timestamp::MAX);
    }

    #[test]
    fn what_was_missed_is_due_once() {
        let hourly = timing("1h");
        let (last, now) = (at("2026-03-01T10:00:00Z"), at("2026-03-05T10:30:00Z"));
        assert!(hourly.missed(last, now));
        assert!(!hourly.missed(now, now), "the run that makes up for them is the last one then");
        assert!(!hourly.missed(now, last), "nor is any due for a clock that was set back");
    }

    #[test]
    fn timings_read_back_in_the_largest_unit() {
        for (text, shown) in [
            ("60m", "1h"),
            ("90m", "90m"),
            ("24h", "1d"),
            ("7d", "1w"),
            ("10d", "10d"),
            (" 0  3 * * * ", "0 3 * * *"),
            ("@daily", "@daily"),
        ] {
            assert_eq!(timing(text).to_string(), shown);
            assert_eq!(timing(shown), timing(text));
        }
    }

    #[test]
    fn nonsense_is_no_timing() {
        for text in [
            "",
            "m",
            "0m",
            "30s",
            "1",
            "-1h",
            "+1h",
            "1.5h",
            "1hh",
            "1é",
            "99999999w",
            "1y",
            "٣h",
            "99999999999999999999h",
            "@often",
            "* * * *",
        ] {
            let error = text.parse::<Timing>().unwrap_err();
            assert!(error.full_message().len() < 200, "{text}");
        }
    }

    proptest! {
        #[test]
        fn the_next_run_is_later_and_is_the_first(
            after in 0i64..4_000_000_000,
            text in prop::sample::select(vec![
                "1m", "7h", "3d", "*/7 * * * *", "0 3 * * *", "30 4 1,15 * fri", "59 23 31 12 *", "@weekly",
            ]),
            earlier in 0i64..500_000,
        ) {
            let (timing, after) = (timing(text), Timestamp::from_second(after).unwrap());
            let next = timing.next_run(after);
            prop_assert!(next > after);
            prop_assert!(timing.missed(after, next));
            let before = (next.as_second() - 1 - earlier).max(after.as_second());
            let before = Timestamp::from_second(before).unwrap();
            prop_assert!(!timing.missed(after, before));
            // Whoever asks later is not told of an earlier run.
            let later = timing.next_run(before);
            prop_assert!(later >= next);
        }
    }
}
