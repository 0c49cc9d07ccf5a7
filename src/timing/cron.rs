use std::fmt;
use std::str::FromStr;

use jiff::civil::{Date, DateTime};
use jiff::tz::Offset;
use jiff::{Timestamp, ToSpan};

use crate::error::{Error, Result};

/// How far ahead a time is looked for, in years: a 29 February can be eight years away, and one that is a
/// given weekday as well forty.
const HORIZON: i16 = 41;

const MONTHS: &[&str] =
    &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const WEEKDAYS: &[&str] = &["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

/// A cron line of five fields, in UTC.
#[derive(Debug, Clone)]
pub(super) struct Cron {
    /// As it was written, with single blanks.
    text: String,
    times: Times,
}

/// What a line means: in each field bit n stands for the value n.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Times {
    minutes: u64,
    hours: u64,
    days: u64,
    months: u64,
    /// Sunday is 0.
    weekdays: u64,
    /// Both day fields name days, and then either is enough.
    either_day: bool,
}

impl PartialEq for Cron {
    fn eq(&self, other: &Self) -> bool {
        self.times == other.times
    }
}

impl Eq for Cron {}

/// One field's values.
struct Field {
    name: &'static str,
    first: u32,
    last: u32,
    names: &'static [&'static str],
}

const MINUTE: Field = Field { name: "minute", first: 0, last: 59, names: &[] };
const HOUR: Field = Field { name: "hour", first: 0, last: 23, names: &[] };
const DAY: Field = Field { name: "day of the month", first: 1, last: 31, names: &[] };
const MONTH: Field = Field { name: "month", first: 1, last: 12, names: MONTHS };
/// 7 is Sunday as well.
const WEEKDAY: Field = Field { name: "day of the week", first: 0, last: 7, names: WEEKDAYS };

impl Cron {
    /// The first time after `after` that the line names; none within the horizon or before the end of time.
    pub(super) fn next(&self, after: Timestamp) -> Option<Timestamp> {
        let start = Offset::UTC.to_datetime(after);
        // The minute that has begun is not after `after`.
        let whole = start.with().second(0).subsec_nanosecond(0).build().ok()?;
        let mut at = whole.checked_add(1.minute()).ok()?;
        let end = start.year().saturating_add(HORIZON);
        while at.year() <= end {
            let later = self.times.step(at)?;
            if later == at {
                return Offset::UTC.to_timestamp(at).ok();
            }
            at = later;
        }
        None
    }
}

impl Times {
    /// `at` itself if it is named, else a later time before which none is.
    fn step(&self, at: DateTime) -> Option<DateTime> {
        let date = at.date();
        if !named(self.months, at.month()) {
            return Some(date.first_of_month().checked_add(1.month()).ok()?.at(0, 0, 0, 0));
        }
        if !self.names_day(date) {
            return Some(date.checked_add(1.day()).ok()?.at(0, 0, 0, 0));
        }
        if !named(self.hours, at.hour()) {
            return date.at(at.hour(), 0, 0, 0).checked_add(1.hour()).ok();
        }
        if !named(self.minutes, at.minute()) {
            return at.checked_add(1.minute()).ok();
        }
        Some(at)
    }

    fn names_day(&self, date: Date) -> bool {
        let day = named(self.days, date.day());
        let weekday = named(self.weekdays, date.weekday().to_sunday_zero_offset());
        if self.either_day { day || weekday } else { day && weekday }
    }
}

fn named(bits: u64, value: i8) -> bool {
    u32::try_from(value).is_ok_and(|value| bits >> value & 1 == 1)
}

impl FromStr for Cron {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let shown: String = text.chars().take(40).collect();
        let line = match text {
            "@hourly" => "0 * * * *",
            "@daily" => "0 0 * * *",
            "@weekly" => "0 0 * * 0",
            "@monthly" => "0 0 1 * *",
            other if other.starts_with('@') => {
                return Err(Error::invalid(format!("{shown:?} does not say when"))
                    .hint("use @hourly, @daily, @weekly or @monthly"));
            }
            other => other,
        };
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [minute, hour, day, month, weekday] = fields[..] else {
            return Err(Error::invalid(format!("the cron line {shown:?} has not five fields"))
                .hint("write minute, hour, day of the month, month and day of the week, such as \"0 3 * * *\""));
        };
        let weekdays = WEEKDAY.parse(weekday)?;
        let times = Times {
            minutes: MINUTE.parse(minute)?,
            hours: HOUR.parse(hour)?,
            days: DAY.parse(day)?,
            months: MONTH.parse(month)?,
            weekdays: weekdays & 0x7f | weekdays >> 7 & 1,
            // As cron has it: a field that begins with a star names no days.
            either_day: !day.starts_with('*') && !weekday.starts_with('*'),
        };
        let text = if text.starts_with('@') { text.to_owned() } else { fields.join(" ") };
        let cron = Self { text, times };
        if cron.next(Timestamp::UNIX_EPOCH).is_none() {
            return Err(Error::invalid(format!("there is no day such as in {shown:?}")));
        }
        Ok(cron)
    }
}

impl fmt::Display for Cron {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Field {
    fn parse(&self, text: &str) -> Result<u64> {
        text.split(',').try_fold(0, |bits, item| Ok(bits | self.item(item)?))
    }

    /// `*`, a value or a range, the first and the last with a step.
    fn item(&self, item: &str) -> Result<u64> {
        let (range, step) = match item.split_once('/') {
            None => (item, 1),
            Some((range, step)) => {
                let step = number(step).filter(|step| *step > 0);
                (range, step.ok_or_else(|| self.wrong(item))?)
            }
        };
        let (first, last) = match (range, range.split_once('-')) {
            ("*", _) => (self.first, self.last.min(self.first + self.count() - 1)),
            (_, Some((first, last))) => {
                let first = self.value(first).ok_or_else(|| self.wrong(item))?;
                let last = self.value(last).ok_or_else(|| self.wrong(item))?;
                // fri-sun
                (first, if last == 0 && self.last == WEEKDAY.last { WEEKDAY.last } else { last })
            }
            (one, None) => {
                let one = self.value(one).ok_or_else(|| self.wrong(item))?;
                if item.contains('/') {
                    return Err(self.wrong(item));
                }
                (one, one)
            }
        };
        if first > last {
            return Err(self.wrong(item));
        }
        let step = usize::try_from(step).map_err(|_| self.wrong(item))?;
        Ok((first..=last).step_by(step).fold(0, |bits, value| bits | 1 << value))
    }

    /// How many different values there are.
    fn count(&self) -> u32 {
        match self.names.len() {
            0 => self.last - self.first + 1,
            // At most 12.
            names => u32::try_from(names).unwrap_or(self.last),
        }
    }

    fn value(&self, text: &str) -> Option<u32> {
        let named = self.names.iter().position(|name| name.eq_ignore_ascii_case(text));
        let value = match named {
            Some(position) => self.first + u32::try_from(position).ok()?,
            None => number(text)?,
        };
        (self.first..=self.last).contains(&value).then_some(value)
    }

    fn wrong(&self, item: &str) -> Error {
        let shown: String = item.chars().take(20).collect();
        let names = match (self.names.first(), self.names.last()) {
            (Some(first), Some(last)) => format!(" or {first} to {last}"),
            _ => String::new(),
        };
        Error::invalid(format!("{shown:?} is no {} of a cron line", self.name)).hint(format!(
            "use {} to {}{names}, lists such as 1,3, ranges such as 1-5, * for all, and steps such as */2",
            self.first, self.last
        ))
    }
}

fn number(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|_| digits)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[track_caller]
    fn assert_times(line: &str, after: &str, expected: &[&str]) {
        let cron: Cron = line.parse().unwrap();
        let mut now = at(after);
        for expected in expected {
            now = cron.next(now).unwrap();
            assert_eq!(now, at(expected), "{line}");
        }
    }

    #[test]
    fn the_times_that_a_line_names_follow_each_other() {
        // A Sunday.
        let after = "2026-03-01T10:00:30Z";
        assert_times("0 3 * * *", after, &["2026-03-02T03:00:00Z", "2026-03-03T03:00:00Z"]);
        assert_times("0 10 * * *", after, &["2026-03-02T10:00:00Z"]);
        assert_times(
            "*/20 * * * *",
            after,
            &["2026-03-01T10:20:00Z", "2026-03-01T10:40:00Z", "2026-03-01T11:00:00Z"],
        );
        assert_times(
            "5,10-12/2 23 * * *",
            after,
            &[
                "2026-03-01T23:05:00Z",
                "2026-03-01T23:10:00Z",
                "2026-03-01T23:12:00Z",
                "2026-03-02T23:05:00Z",
            ],
        );
        assert_times("0 0 1 JAN,jul *", after, &["2026-07-01T00:00:00Z", "2027-01-01T00:00:00Z"]);
        assert_times("0 12 * * mon-FRI", after, &["2026-03-02T12:00:00Z", "2026-03-03T12:00:00Z"]);
        assert_times("@hourly", after, &["2026-03-01T11:00:00Z"]);
        assert_times("@daily", after, &["2026-03-02T00:00:00Z"]);
        assert_times("@weekly", after, &["2026-03-08T00:00:00Z"]);
        assert_times("@monthly", after, &["2026-04-01T00:00:00Z"]);
    }

    #[test]
    fn a_time_that_is_now_is_not_next() {
        assert_times("0 3 * * *", "2026-03-01T03:00:00Z", &["2026-03-02T03:00:00Z"]);
        assert_times("0 3 * * *", "2026-03-01T02:59:59Z", &["2026-03-01T03:00:00Z"]);
    }

    #[test]
    fn either_day_is_enough_when_both_are_given() {
        let after = "2026-03-01T10:00:00Z";
        let either = ["2026-03-06T00:00:00Z", "2026-03-13T00:00:00Z", "2026-03-15T00:00:00Z"];
        assert_times("0 0 15 * fri", after, &either);
        // As in cron, a star with a step names no days: both have to hold.
        assert_times("0 0 */2 * fri", after, &["2026-03-13T00:00:00Z", "2026-03-27T00:00:00Z"]);
    }

    #[test]
    fn sunday_has_two_numbers_and_ends_a_week() {
        let weekdays = |line: &str| line.parse::<Cron>().unwrap().times.weekdays;
        for line in ["0 0 * * 0", "0 0 * * 7", "0 0 * * sun", "0 0 * * 7,0"] {
            assert_eq!(weekdays(line), 1, "{line}");
        }
        assert_eq!(weekdays("0 0 * * Sun-sun"), 0x7f);
        assert_eq!(weekdays("0 0 * * */2"), 0b101_0101, "7 is no day of its own");
        assert_times(
            "0 0 * * fri-sun",
            "2026-03-02T00:00:00Z",
            &[
                "2026-03-06T00:00:00Z",
                "2026-03-07T00:00:00Z",
                "2026-03-08T00:00:00Z",
                "2026-03-13T00:00:00Z",
            ],
        );
    }

    #[test]
    fn a_leap_day_is_found_across_a_century_without_one() {
        assert_times("0 0 29 2 *", "2096-03-01T00:00:00Z", &["2104-02-29T00:00:00Z"]);
    }

    #[test]
    fn lines_that_mean_the_same_are_equal() {
        let cron = |line: &str| line.parse::<Cron>().unwrap();
        assert_eq!(cron("@daily"), cron("00 0 * * *"));
        assert_ne!(cron("@daily"), cron("@hourly"));
    }

    #[test]
    fn what_is_wrong_names_its_field() {
        for (line, word) in [
            ("60 * * * *", "minute"),
            ("* 24 * * *", "hour"),
            ("* * 0 * *", "day of the month"),
            ("* * * 13 *", "month"),
            ("* * * * 8", "day of the week"),
            ("* * * * mo", "day of the week"),
            ("*/0 * * * *", "minute"),
            ("5/15 * * * *", "minute"),
            ("30-10 * * * *", "minute"),
            ("1,,2 * * * *", "minute"),
            ("-1 * * * *", "minute"),
            ("+1 * * * *", "minute"),
            ("* * * * * *", "five fields"),
            ("0 0 30 2 *", "no day"),
            ("*/99999999999 * * * *", "minute"),
        ] {
            let error = line.parse::<Cron>().unwrap_err();
            assert!(error.full_message().contains(word), "{line}: {}", error.full_message());
        }
    }
}
