//! How many points in time are kept of those that were made again and again.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use jiff::tz::Offset;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// How many points in time are kept, counted from the newest backwards. Of each hour, day, ISO week,
/// month and year in UTC the newest counts; those in which there is none do not count.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Keep {
    /// The last ones.
    pub last: u32,
    /// The newest of so many hours.
    pub hourly: u32,
    /// The newest of so many days.
    pub daily: u32,
    /// The newest of so many weeks.
    pub weekly: u32,
    /// The newest of so many months.
    pub monthly: u32,
    /// The newest of so many years.
    pub yearly: u32,
}

const HINT: &str = "write how many to keep, such as 24h,7d,4w,12m,2y (hours, days, weeks, months, \
                    years), or 3 for the last three";

impl Keep {
    /// Whether there is no rule: then everything is kept.
    pub fn is_empty(self) -> bool {
        self == Self::default()
    }

    /// The positions in `times` of those that are to be deleted; never that of the newest. Of equal
    /// times the later one in `times` is the newer. While a rule has room left, it keeps the oldest
    /// as well, as restic's `forget` does.
    pub fn choose(self, times: &[Timestamp]) -> Vec<usize> {
        if self.is_empty() {
            return Vec::new();
        }
        let mut order: Vec<usize> = (0..times.len()).collect();
        order.sort_by_key(|at| std::cmp::Reverse((times.get(*at), *at)));
        let mut rules =
            Bucket::ALL.map(|bucket| Rule { bucket, left: self.of(bucket), seen: None });
        let mut deleted = Vec::new();
        for (place, at) in order.iter().enumerate() {
            let Some(time) = times.get(*at) else { continue };
            let is_oldest = place + 1 == order.len();
            // Every rule counts, whether or not another one keeps it already.
            let kept = rules
                .iter_mut()
                .filter_map(|rule| rule.keeps(*time, place, is_oldest).then_some(()));
            if kept.count() == 0 {
                deleted.push(*at);
            }
        }
        deleted.sort_unstable();
        deleted
    }

    fn of(self, bucket: Bucket) -> u32 {
        match bucket {
            Bucket::Each => self.last,
            Bucket::Hour => self.hourly,
            Bucket::Day => self.daily,
            Bucket::Week => self.weekly,
            Bucket::Month => self.monthly,
            Bucket::Year => self.yearly,
        }
    }

    fn of_mut(&mut self, bucket: Bucket) -> &mut u32 {
        match bucket {
            Bucket::Each => &mut self.last,
            Bucket::Hour => &mut self.hourly,
            Bucket::Day => &mut self.daily,
            Bucket::Week => &mut self.weekly,
            Bucket::Month => &mut self.monthly,
            Bucket::Year => &mut self.yearly,
        }
    }
}

/// Of which only the newest counts.
#[derive(Debug, Clone, Copy)]
enum Bucket {
    Each,
    Hour,
    Day,
    Week,
    Month,
    Year,
}

impl Bucket {
    const ALL: [Self; 6] = [Self::Each, Self::Hour, Self::Day, Self::Week, Self::Month, Self::Year];

    fn unit(self) -> char {
        match self {
            Self::Each => 'l',
            Self::Hour => 'h',
            Self::Day => 'd',
            Self::Week => 'w',
            Self::Month => 'm',
            Self::Year => 'y',
        }
    }

    /// The same number for times in the same bucket, another one for times in different ones.
    fn number(self, time: Timestamp, place: usize) -> i64 {
        let date = Offset::UTC.to_datetime(time);
        let (year, month) = (i64::from(date.year()), i64::from(date.month()));
        match self {
            Self::Each => i64::try_from(place).unwrap_or(i64::MAX),
            Self::Hour => time.as_second().div_euclid(60 * 60),
            Self::Day => time.as_second().div_euclid(24 * 60 * 60),
            Self::Week => {
                let week = date.date().iso_week_date();
                i64::from(week.year()) * 100 + i64::from(week.week())
            }
            Self::Month => year * 100 + month,
            Self::Year => year,
        }
    }
}

/// One rule at work on times from the newest backwards.
struct Rule {
    bucket: Bucket,
    left: u32,
    seen: Option<i64>,
}

impl Rule {
    fn keeps(&mut self, time: Timestamp, place: usize, is_oldest: bool) -> bool {
        let number = self.bucket.number(time, place);
        if self.left == 0 || self.seen == Some(number) && !is_oldest {
            return false;
        }
        self.left -= 1;
        self.seen = Some(number);
        true
    }
}

impl FromStr for Keep {
    type Err = Error;

    /// Accepts numbers with units, with commas between them: `24h,7d,4w,12m,2y`; `3` and `3l` are the
    /// last three. No text is no rule.
    fn from_str(text: &str) -> Result<Self> {
        let mut keep = Self::default();
        let items = text.split(',').map(str::trim);
        for item in items.filter(|_| !text.trim().is_empty()) {
            let shown: String = item.chars().take(20).collect();
            let wrong =
                || Error::invalid(format!("{shown:?} does not say how many to keep")).hint(HINT);
            let unit = item.chars().next_back().ok_or_else(wrong)?;
            let (number, unit) = match unit.is_ascii_digit() {
                true => (item, 'l'),
                false => (&item[..item.len() - unit.len_utf8()], unit),
            };
            let bucket = Bucket::ALL.into_iter().find(|bucket| bucket.unit() == unit);
            let place = keep.of_mut(bucket.ok_or_else(wrong)?);
            let digits = number.bytes().all(|b| b.is_ascii_digit());
            let number = number.parse().ok().filter(|number: &u32| digits && *number > 0);
            let number = number.ok_or_else(wrong)?;
            if std::mem::replace(place, number) != 0 {
                return Err(Error::invalid(format!("{unit:?} is given twice")).hint(HINT));
            }
        }
        Ok(keep)
    }
}

impl fmt::Display for Keep {
    /// Reads back: `3l,24h,7d`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rules = Bucket::ALL.into_iter().filter(|bucket| self.of(*bucket) > 0);
        let rules: Vec<String> =
            rules.map(|bucket| format!("{}{}", self.of(bucket), bucket.unit())).collect();
        f.write_str(&rules.join(","))
    }
}

impl TryFrom<String> for Keep {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Keep> for String {
    fn from(keep: Keep) -> Self {
        keep.to_string()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use jiff::SignedDuration;
    use proptest::prelude::*;

    use super::*;

    fn keep(text: &str) -> Keep {
        text.parse().unwrap()
    }

    fn times(texts: &[&str]) -> Vec<Timestamp> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn rules_read_back() {
        for (text, shown) in [
            ("24h,7d,4w,12m,2y", "24h,7d,4w,12m,2y"),
            ("3", "3l"),
            ("3l", "3l"),
            (" 7d , 3 ", "3l,7d"),
            ("", ""),
        ] {
            assert_eq!(keep(text).to_string(), shown);
            assert_eq!(keep(shown), keep(text));
        }
        assert!(keep("").is_empty());
    }

    #[test]
    fn nonsense_is_no_rule() {
        for text in [
            "h",
            "0h",
            "-1d",
            "+1d",
            "24h,",
            "7d,7d",
            "3,3l",
            "1x",
            "1.5d",
            "99999999999d",
            "7 d",
            "é",
            "٣d",
        ] {
            assert!(text.parse::<Keep>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_newest_of_each_bucket_is_kept() {
        let all = times(&[
            "2026-02-28T12:00:00Z", // oldest: the monthly rule has room for it
            "2026-03-01T09:00:00Z",
            "2026-03-01T23:00:00Z",
            "2026-03-02T10:00:00Z",
            "2026-03-02T10:30:00Z",
            "2026-03-02T11:00:00Z",
        ]);
        assert_eq!(keep("2").choose(&all), [0, 1, 2, 3]);
        assert_eq!(keep("2h").choose(&all), [0, 1, 2, 3], "10:30 and 11:00");
        assert_eq!(keep("2d").choose(&all), [0, 1, 3, 4]);
        assert_eq!(keep("2h,2d").choose(&all), [0, 1, 3]);
        assert_eq!(keep("5m").choose(&all), [1, 2, 3, 4], "the newest of March and of February");
        assert_eq!(
            keep("2y").choose(&all),
            [1, 2, 3, 4],
            "there was no other year: the oldest stays"
        );
        assert_eq!(keep("").choose(&all), Vec::<usize>::new());
    }

    #[test]
    fn a_gap_costs_nothing() {
        // The host was down for a year, or its clock was.
        let all = times(&["2025-03-01T10:00:00Z", "2025-03-01T11:00:00Z", "2026-03-01T11:00:00Z"]);
        assert_eq!(keep("3h").choose(&all), Vec::<usize>::new());
    }

    #[test]
    fn weeks_are_those_of_iso_8601() {
        // Sunday, Monday, and a Friday whose ISO year is the year before.
        let all = times(&["2026-12-27T00:00:00Z", "2026-12-28T00:00:00Z", "2027-01-01T00:00:00Z"]);
        assert_eq!(keep("2w").choose(&all), [1]);
    }

    fn some_times() -> impl Strategy<Value = Vec<Timestamp>> {
        // Dense and sparse, with ties, in any order.
        let seconds =
            prop_oneof![0i64..200_000, 0i64..200_000_000, (0i64..50).prop_map(|h| h * 3600)];
        prop::collection::vec(seconds, 0..60).prop_map(|all| {
            all.into_iter().map(|s| Timestamp::from_second(1_700_000_000 + s).unwrap()).collect()
        })
    }

    fn some_keep() -> impl Strategy<Value = Keep> {
        let [last, hourly, daily, weekly, monthly, yearly] =
            [0u32..6, 0..9, 0..6, 0..4, 0..4, 0..3];
        (last, hourly, daily, weekly, monthly, yearly).prop_map(
            |(last, hourly, daily, weekly, monthly, yearly)| Keep {
                last,
                hourly,
                daily,
                weekly,
                monthly,
                yearly,
            },
        )
    }

    proptest! {
        #[test]
        fn what_is_deleted_is_no_more_than_the_rules_say(times in some_times(), keep in some_keep()) {
            let deleted: BTreeSet<usize> = keep.choose(&times).into_iter().collect();
            let kept: Vec<Timestamp> =
                (0..times.len()).filter(|at| !deleted.contains(at)).map(|at| times[at]).collect();
            if let Some(newest) = times.iter().max() {
                prop_assert!(kept.contains(newest));
            }
            if keep.is_empty() {
                prop_assert_eq!(kept.len(), times.len());
                return Ok(());
            }
            // Of each rule as many buckets are kept as it says, if there are as many.
            for bucket in Bucket::ALL {
                let buckets = |of: &[Timestamp]| match bucket {
                    Bucket::Each => of.len(),
                    _ => of.iter().map(|t| bucket.number(*t, 0)).collect::<BTreeSet<_>>().len(),
                };
                let wanted = usize::try_from(keep.of(bucket)).unwrap().min(buckets(&times));
                prop_assert!(buckets(&kept) >= wanted, "{bucket:?} of {keep}");
            }
            // And no more than all rules together say.
            let most: u32 = Bucket::ALL.into_iter().map(|bucket| keep.of(bucket)).sum();
            prop_assert!(kept.len() <= usize::try_from(most).unwrap());
            // What was chosen once is enough.
            prop_assert!(keep.choose(&kept).is_empty());
        }

        #[test]
        fn one_more_each_hour_leaves_what_one_choice_would_have_left(hours in 1i64..400) {
            let keep = keep("5h,4d,3w");
            let start = Timestamp::from_second(1_700_000_000).unwrap();
            let mut left: Vec<Timestamp> = Vec::new();
            for hour in 0..hours {
                left.push(start + SignedDuration::from_hours(hour));
                let deleted = keep.choose(&left);
                let mut at = 0;
                left.retain(|_| {
                    at += 1;
                    !deleted.contains(&(at - 1))
                });
            }
            let buckets = |bucket: Bucket| {
                left.iter().map(|t| bucket.number(*t, 0)).collect::<BTreeSet<_>>().len()
            };
            let hours = usize::try_from(hours).unwrap();
            prop_assert!(buckets(Bucket::Hour) >= hours.min(5));
            prop_assert!(buckets(Bucket::Day) >= (hours / 24).min(4));
            prop_assert!(left.len() <= 12);
        }
    }
}
