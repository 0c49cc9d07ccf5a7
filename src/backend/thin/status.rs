//! What the kernel says of a pool (`thin-provisioning.rst`, "Status").

use crate::error::{Error, Result};

/// Bytes in a block of a pool's metadata.
pub(super) const METADATA_BLOCK: u64 = 4096;

/// How full something is, in blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Level {
    pub used: u64,
    pub total: u64,
}

impl Level {
    pub(super) fn free(self) -> u64 {
        self.total.saturating_sub(self.used)
    }
}

/// What a pool lets its users do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// Everything.
    Writable,
    /// No new chunk can be written until it grows or something is deleted.
    OutOfDataSpace,
    /// Nothing new can be written, and nothing be made or deleted.
    ReadOnly,
}

/// A pool that works, more or less.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PoolStatus {
    /// What its manager set last.
    pub transaction: u64,
    pub metadata: Level,
    /// In chunks.
    pub data: Level,
    /// A metadata snapshot is reserved.
    pub holds_metadata_snapshot: bool,
    pub mode: Mode,
    /// Writes that find no room fail at once; else they wait for it.
    pub fails_when_full: bool,
    /// A failed change of the metadata: `thin_check` has to say that it is sound.
    pub needs_check: bool,
}

impl PoolStatus {
    /// Reads the status of a `thin-pool` target.
    ///
    /// # Errors
    /// `Corrupt` for a pool that the kernel has given up.
    pub(super) fn parse(parameters: &str) -> Result<Self> {
        let parameters = parameters.trim();
        if matches!(parameters, "Fail" | "Error") {
            return Err(Error::corrupt(
                "the kernel has given the pool up after an error of its metadata",
            )
            .hint("dmesg says more; stop the containers, then: holdfast pool check"));
        }
        let words: Vec<&str> = parameters.split_whitespace().collect();
        let parsed = || {
            let level = |word: &str| {
                let (used, total) = word.split_once('/')?;
                Some(Level { used: used.parse().ok()?, total: total.parse().ok()? })
            };
            let [transaction, metadata, data, held, mode, rest @ ..] = &words[..] else {
                return None;
            };
            Some(Self {
                transaction: transaction.parse().ok()?,
                metadata: level(metadata)?,
                data: level(data)?,
                holds_metadata_snapshot: *held != "-",
                mode: match *mode {
                    "rw" => Mode::Writable,
                    "out_of_data_space" => Mode::OutOfDataSpace,
                    "ro" => Mode::ReadOnly,
                    _ => return None,
                },
                fails_when_full: rest.contains(&"error_if_no_space"),
                needs_check: rest.contains(&"needs_check"),
            })
        };
        parsed().ok_or_else(|| {
            Error::internal(format!("the kernel tells a pool's status as {parameters:?}"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn a_status_is_read() {
        let text = "7 141/16384 12/32768 - rw discard_passdown queue_if_no_space - 1024 ";
        let status = PoolStatus::parse(text).unwrap();
        let expected = PoolStatus {
            transaction: 7,
            metadata: Level { used: 141, total: 16384 },
            data: Level { used: 12, total: 32768 },
            holds_metadata_snapshot: false,
            mode: Mode::Writable,
            fails_when_full: false,
            needs_check: false,
        };
        assert_eq!(status, expected);
        let text = "7 141/16384 9/9 55 out_of_data_space no_discard_passdown error_if_no_space needs_check 1024";
        let status = PoolStatus::parse(text).unwrap();
        assert!(status.holds_metadata_snapshot && status.fails_when_full && status.needs_check);
        assert_eq!((status.mode, status.data.free()), (Mode::OutOfDataSpace, 0));
        let older = "0 1/2 0/8 - ro ignore_discard error_if_no_space";
        assert_eq!(PoolStatus::parse(older).unwrap().mode, Mode::ReadOnly);
    }

    #[test]
    fn a_pool_that_was_given_up_is_corrupt_and_nonsense_is_no_status() {
        assert_eq!(PoolStatus::parse("Fail").unwrap_err().kind(), ErrorKind::Corrupt);
        for text in ["", "x", "1 2 3 - rw", "1 2/3 4/5 - maybe x y", "1 2/x 4/5 - rw"] {
            assert!(PoolStatus::parse(text).is_err(), "{text:?}");
        }
    }
}
