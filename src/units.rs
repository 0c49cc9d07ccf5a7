//! Sizes in bytes.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// A number of bytes.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct ByteSize(u64);

impl ByteSize {
    /// One binary megabyte.
    pub const MIB: Self = Self(1 << 20);
    /// One binary gigabyte.
    pub const GIB: Self = Self(1 << 30);

    /// A size of so many bytes.
    pub const fn new(bytes: u64) -> Self {
        Self(bytes)
    }

    /// The number of bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }

    /// The smallest multiple of `unit` that is not smaller; `None` past the largest size.
    pub fn round_up(self, unit: u64) -> Option<Self> {
        self.0.checked_next_multiple_of(unit).map(Self)
    }
}

impl FromStr for ByteSize {
    type Err = Error;

    /// Accepts bytes (`1073741824`) and binary multiples, whole or with a decimal fraction
    /// (`10G`, `10GiB`, `1.5g`, `512 MB`): as in Docker, `K`, `KB` and `KiB` are all 1024.
    fn from_str(text: &str) -> Result<Self> {
        let wrong = || {
            Error::invalid(format!("{text:?} is not a size"))
                .hint("write bytes or a binary multiple, such as 10G, 512M or 1073741824")
        };
        let text_trimmed = text.trim();
        let split = text_trimmed
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(text_trimmed.len());
        let (number, unit) = text_trimmed.split_at(split);
        let shift = match unit.trim().to_ascii_lowercase().as_str() {
            "" | "b" => 0,
            "k" | "kb" | "kib" => 10,
            "m" | "mb" | "mib" => 20,
            "g" | "gb" | "gib" => 30,
            "t" | "tb" | "tib" => 40,
            "p" | "pb" | "pib" => 50,
            _ => return Err(wrong()),
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() || (number.contains('.') && fraction.is_empty()) || fraction.len() > 9 {
            return Err(wrong());
        }
        let unit_bytes = 1u128 << shift;
        let mut bytes = whole.parse::<u128>().map_err(|_| wrong())?.checked_mul(unit_bytes);
        if !fraction.is_empty() {
            let digits = fraction.parse::<u128>().map_err(|_| wrong())?;
            let scale = 10u128.pow(u32::try_from(fraction.len()).map_err(|_| wrong())?);
            if shift == 0 && !(digits * unit_bytes).is_multiple_of(scale) {
                return Err(wrong());
            }
            bytes = bytes.and_then(|b| b.checked_add(digits * unit_bytes / scale));
        }
        bytes.and_then(|b| u64::try_from(b).ok()).map(Self).ok_or_else(wrong)
    }
}

impl fmt::Display for ByteSize {
    /// The shortest binary multiple with at most one decimal: `10G`, `1.5G`, `512M`, `7B`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [(u32, &str); 5] = [(50, "P"), (40, "T"), (30, "G"), (20, "M"), (10, "K")];
        for (shift, unit) in UNITS {
            let one = 1u64 << shift;
            if self.0 < one {
                continue;
            }
            let (whole, tenths) = (self.0 / one, (self.0 % one) / (one / 10));
            return match tenths.min(9) {
                0 => write!(f, "{whole}{unit}"),
                tenths => write!(f, "{whole}.{tenths}{unit}"),
            };
        }
        write!(f, "{}B", self.0)
    }
}

/// A share of a whole, from 0 to 100 hundredths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Percent(u8);

impl Percent {
    /// This share of `whole`, rounded down.
    pub fn of(self, whole: u64) -> u64 {
        // At most `whole`, which fits.
        u64::try_from(u128::from(whole) * u128::from(self.0) / 100).unwrap_or(whole)
    }
}

impl FromStr for Percent {
    type Err = Error;

    /// Accepts `10%` and `10`.
    fn from_str(text: &str) -> Result<Self> {
        let number = text.trim().trim_end_matches('%').trim_end();
        number
            .parse()
            .ok()
            .filter(|share| *share <= 100 && !number.starts_with('+'))
            .map(Self)
            .ok_or_else(|| Error::invalid(format!("{text:?} is not a share such as 10%")))
    }
}

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_binary_multiples() {
        for (text, bytes) in [
            ("0", 0),
            ("1073741824", 1 << 30),
            ("10G", 10 << 30),
            ("10GiB", 10 << 30),
            ("10gb", 10 << 30),
            ("1.5G", 3 << 29),
            ("512 M", 512 << 20),
            ("2T", 2 << 40),
        ] {
            assert_eq!(text.parse::<ByteSize>().unwrap().bytes(), bytes, "{text}");
        }
    }

    #[test]
    fn nonsense_is_not_a_size() {
        for text in
            ["", "G", "-1", "1..2G", "1.G", ".5G", "10X", "1e9", "99999999999P", "1.5", "0x10", "٣"]
        {
            assert!(text.parse::<ByteSize>().is_err(), "{text}");
        }
    }

    #[test]
    fn display_reads_back() {
        for (bytes, text) in
            [(10 << 30, "10G"), (3 << 29, "1.5G"), (7, "7B"), (1023, "1023B"), (1 << 20, "1M")]
        {
            assert_eq!(ByteSize::new(bytes).to_string(), text);
        }
    }

    #[test]
    fn a_share_is_between_nothing_and_all() {
        assert_eq!("10%".parse::<Percent>().unwrap().of(1000), 100);
        assert_eq!("100".parse::<Percent>().unwrap().of(u64::MAX), u64::MAX);
        assert_eq!("0 %".parse::<Percent>().unwrap().of(5), 0);
        for text in ["", "%", "101%", "-1", "+1", "1.5%", "x"] {
            assert!(text.parse::<Percent>().is_err(), "{text}");
        }
    }
}
