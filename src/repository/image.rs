//! A block volume in a repository: its image cut into segments, one file each, in directories that keep
//! trees small. Concatenated in the lexical order of their paths they are the image.

use crate::backend::SnapshotImage;
use crate::error::{Error, Result};
use std::ops::Range;
use std::os::unix::fs::FileExt;

/// Bytes of an image in one file, the same in every repository for ever: other segments would have nothing
/// in common with those of earlier backups.
pub(super) const SEGMENT: u64 = 4 << 20;

/// Bytes of a chunk, the unit that is read, compared and stored: the same in every repository that we make,
/// because chunks of other sizes are never equal. Measured (`docs/benchmarks.md`).
pub(super) const CHUNK: u64 = STEP as u64;

const STEP: usize = 256 << 10;

/// Segments in one directory.
pub(super) const FANOUT: u64 = 256;

/// The directory of all segments.
pub(super) const IMAGE: &str = "image";

/// The name of a directory of segments by its number.
pub(super) fn directory_name(directory: u64) -> String {
    format!("{directory:08x}")
}

/// The name of a segment within its directory.
pub(super) fn segment_name(segment: u64) -> String {
    format!("{:02x}", segment % FANOUT)
}

/// Which segment a directory and a name stand for.
pub(super) fn segment_number(directory: &str, name: &str) -> Option<u64> {
    let (directory, segment) = (parse_hex(directory, 8)?, parse_hex(name, 2)?);
    directory.checked_mul(FANOUT)?.checked_add(segment)
}

fn parse_hex(text: &str, digits: usize) -> Option<u64> {
    let hex = text.len() == digits && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    hex.then(|| u64::from_str_radix(text, 16).ok()).flatten()
}

/// How many segments an image of this size has.
pub(super) fn segments(size: u64) -> u64 {
    size.div_ceil(SEGMENT)
}

/// The bytes of the segment at this number.
pub(super) fn segment_range(segment: u64, size: u64) -> Range<u64> {
    let start = segment * SEGMENT;
    start..(start + SEGMENT).min(size)
}

/// The chunks of a segment.
pub(super) fn chunk_ranges(segment: &Range<u64>) -> impl Iterator<Item = Range<u64>> + use<> {
    let Range { start, end } = *segment;
    (start..end).step_by(STEP).map(move |start| start..(start + CHUNK).min(end))
}

/// An image to back up.
#[derive(Debug)]
pub struct Image {
    /// Its bytes.
    pub content: SnapshotImage,
    /// The ranges that may hold anything but zeros, ascending and disjoint. No others are read.
    pub allocated: Vec<Range<u64>>,
}

impl Image {
    /// Its size in bytes.
    pub(super) fn size(&self) -> u64 {
        self.content.size
    }

    /// Reads those bytes of `part` that may be no zeros into `buffer`, which is all zeros, and tells how
    /// many those are.
    pub(super) fn read(&self, part: &Range<u64>, buffer: &mut [u8]) -> Result<u64> {
        let mut read = 0;
        let first = self.allocated.partition_point(|range| range.end <= part.start);
        for range in self.allocated[first..].iter().take_while(|range| range.start < part.end) {
            let (start, end) = (range.start.max(part.start), range.end.min(part.end));
            let within = |at: u64| usize::try_from(at - part.start).unwrap_or(usize::MAX);
            self.content
                .file
                .read_exact_at(&mut buffer[within(start)..within(end)], start)
                .map_err(|error| {
                    Error::io(format!("cannot read the snapshot at byte {start}"), error)
                })?;
            read += end - start;
        }
        Ok(read)
    }
}

/// Whether any of `ranges`, ascending and disjoint, has a byte of `part`.
pub(super) fn touches(ranges: &[Range<u64>], part: &Range<u64>) -> bool {
    let first = ranges.partition_point(|range| range.end <= part.start);
    ranges.get(first).is_some_and(|range| range.start < part.end)
}

/// Whether all bytes are zeros.
pub(super) fn is_zero(bytes: &[u8]) -> bool {
    bytes.chunks(4096).all(|part| part.iter().fold(0, |all, byte| all | byte) == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_paths_is_the_order_of_segments() {
        let numbers = [0, 1, 9, 10, 255, 256, 257, 65_535, 65_536, 1 << 24, (1 << 32) + 5];
        let path = |n: &u64| format!("{}/{}", directory_name(n / FANOUT), segment_name(*n));
        let paths: Vec<String> = numbers.iter().map(path).collect();
        assert!(paths.is_sorted(), "{paths:?}");
        for (number, path) in numbers.iter().zip(&paths) {
            let (directory, name) = path.split_once('/').unwrap();
            assert_eq!(segment_number(directory, name), Some(*number));
        }
        assert_eq!(segment_number("0000000", "00"), None);
        assert_eq!(segment_number("00000000", "xy"), None);
        assert_eq!(segment_number("+0000000", "00"), None);
        assert_eq!(
            (segments(0), segments(1), segments(SEGMENT), segments(SEGMENT + 1)),
            (0, 1, 1, 2)
        );
    }

    #[test]
    fn chunks_cover_their_segment() {
        let size = SEGMENT + CHUNK + 5;
        let chunks: Vec<_> =
            (0..segments(size)).flat_map(|n| chunk_ranges(&segment_range(n, size))).collect();
        assert_eq!((chunks[0].start, chunks.last().unwrap().end), (0, size));
        assert!(chunks.windows(2).all(|pair| pair[0].end == pair[1].start));
        assert_eq!(chunks.last().unwrap().clone().count(), 5);
    }

    #[test]
    fn what_a_range_touches_is_found() {
        let ranges = [5..10, 20..30, 30..31];
        let touched: Vec<bool> =
            (0..5).map(|i| touches(&ranges, &(i * 10..(i + 1) * 10))).collect();
        assert_eq!(touched, [true, false, true, true, false]);
    }
}
