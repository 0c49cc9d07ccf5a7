//! The pool's metadata, read through its metadata snapshot: what changes while it is read cannot be
//! believed.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use super::pool::Pool;
use crate::error::Result;
use crate::failpoint::BackendStep;
use crate::id::ThinId;
use crate::thin_metadata::{Metadata, Usage};

/// What each thin device of the pool takes.
pub(super) type UsageOfAll = BTreeMap<ThinId, Usage>;

impl Pool {
    /// Reserves the metadata snapshot, reads it, and releases it on every path.
    pub(super) fn read_metadata<T>(&self, read: impl FnOnce(&Metadata) -> Result<T>) -> Result<T> {
        let _one = self.metadata_snapshot.lock().unwrap_or_else(PoisonError::into_inner);
        if self.status()?.holds_metadata_snapshot {
            // Of a read that was cut off; nobody else reads this pool.
            self.message("release_metadata_snap", BackendStep::ThinReadRelease)?;
        }
        self.message("reserve_metadata_snap", BackendStep::ThinReadReserve)?;
        let release = Release(self);
        let value =
            Metadata::open_snapshot(&self.metadata_path()?).and_then(|metadata| read(&metadata));
        drop(release);
        value
    }

    /// What each thin device takes now, in chunks: all metadata is read for it.
    pub(super) fn usage(&self) -> Result<UsageOfAll> {
        self.read_metadata(|metadata| metadata.usage())
    }

    /// The same as it was not long ago, `id` included: whoever asks for one volume after another has all
    /// metadata read once.
    pub(super) fn recent_usage(&self, id: ThinId) -> Result<Arc<UsageOfAll>> {
        const AGE: Duration = Duration::from_secs(2);
        let mut recent = self.recent_usage.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((read, usage)) = &*recent
            && read.elapsed() < AGE
            && usage.contains_key(&id)
        {
            return Ok(Arc::clone(usage));
        }
        let usage = Arc::new(self.usage()?);
        *recent = Some((Instant::now(), Arc::clone(&usage)));
        Ok(usage)
    }

    /// Thin devices were made or deleted: a number may stand for another one now.
    pub(super) fn forget_usage(&self) {
        *self.recent_usage.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Ranges of a thin device that hold anything, in bytes.
    pub(super) fn allocated(&self, id: ThinId, size: u64) -> Result<Vec<Range<u64>>> {
        let chunk = self.chunk_size().bytes();
        self.read_metadata(|metadata| {
            let mut ranges = Ranges { size, found: Vec::new() };
            for run in metadata.mappings(id)? {
                let run = run?;
                ranges.add(run.begin.number(), run.length, chunk);
            }
            Ok(ranges.found)
        })
    }

    /// Ranges in which two snapshots differ, in bytes.
    pub(super) fn changed(
        &self,
        base: ThinId,
        other: ThinId,
        size: u64,
    ) -> Result<Vec<Range<u64>>> {
        let chunk = self.chunk_size().bytes();
        self.read_metadata(|metadata| {
            let mut ranges = Ranges { size, found: Vec::new() };
            for change in metadata.changes(base, other)? {
                let change = change?;
                ranges.add(change.begin.number(), change.length, chunk);
            }
            Ok(ranges.found)
        })
    }
}

/// Lets the metadata snapshot go: while it is held, no other can be reserved, and what it shows takes
/// room.
struct Release<'a>(&'a Pool);

impl Drop for Release<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.0.message("release_metadata_snap", BackendStep::ThinReadRelease) {
            tracing::warn!("{}", error.full_message());
        }
    }
}

/// Ranges in bytes, joined where they touch and cut at the end of the device.
struct Ranges {
    size: u64,
    found: Vec<Range<u64>>,
}

impl Ranges {
    fn add(&mut self, begin: u64, length: u64, chunk: u64) {
        let start = begin.saturating_mul(chunk).min(self.size);
        let end = begin.saturating_add(length).saturating_mul(chunk).min(self.size);
        match self.found.last_mut() {
            Some(last) if last.end == start => last.end = end,
            _ if start < end => self.found.push(start..end),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_joined_and_end_with_the_device() {
        let mut ranges = Ranges { size: 1000, found: Vec::new() };
        for (begin, length) in [(0, 2), (2, 1), (5, 1), (9, 5), (20, 1)] {
            ranges.add(begin, length, 100);
        }
        assert_eq!(ranges.found, [0..300, 500..600, 900..1000]);
    }
}
