//! Copies of image files: shared blocks where the filesystem below can share them, else a copy of
//! what is allocated.

use std::fs::File;
use std::io::ErrorKind as Io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use rustix::fs::SeekFrom;
use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::model::Progress;

/// Bytes copied between two looks at the clock.
const CHUNK: usize = 4 << 20;

/// Bytes copied between two flushes. A flush of another file on the same filesystem, the catalog's
/// above all, may have to wait for what the copy has not flushed yet.
const FLUSH: u64 = 32 << 20;

/// When a copy has to stop before its end, and who watches it.
#[derive(Debug)]
pub(crate) struct CopyControl {
    /// Counts the bytes, and may say that the whole work is to end.
    pub progress: Arc<Progress>,
    /// Past this the copy gives up with `Busy`.
    pub deadline: Option<Instant>,
    /// Nobody waits for the copy any more.
    pub cancelled: Arc<AtomicBool>,
}

impl CopyControl {
    fn check(&self) -> Result<()> {
        self.progress.go_on()?;
        if self.cancelled.load(Ordering::Relaxed) {
            return Err(Error::unavailable("the copy was called off"));
        }
        if self.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            return Err(Error::busy(format!(
                "the copy was not done in time, after {} of {} bytes",
                self.progress.done(),
                self.progress.total()
            )));
        }
        Ok(())
    }
}

/// Makes `to` share all blocks of `from`. False if the filesystem cannot.
pub(crate) fn share(from: &File, to: &File) -> Result<bool> {
    match rustix::fs::ioctl_ficlone(to, from) {
        Ok(()) => Ok(true),
        Err(Errno::OPNOTSUPP | Errno::NOTTY | Errno::INVAL | Errno::XDEV | Errno::NOSYS) => {
            Ok(false)
        }
        Err(errno) => Err(Error::io("cannot share blocks", errno.into())),
    }
}

/// Copies the allocated ranges of `from` to the empty file `to` and leaves the rest a hole. The last
/// flush is the caller's. Gives back the number of bytes copied.
pub(crate) fn sparse(from: &File, to: &File, control: &CopyControl) -> Result<u64> {
    let size = size(from)?;
    to.set_len(size).map_err(|error| Error::io("cannot size the copy", error))?;
    let ranges = data_ranges(from, size)?;
    control.progress.add_total(ranges.iter().map(|range| range.end - range.start).sum());
    let mut buffer = Vec::new();
    let (mut copied, mut flushed) = (0, 0);
    for range in ranges {
        let mut at = range.start;
        while at < range.end {
            control.check()?;
            let want = usize::try_from(range.end - at).unwrap_or(CHUNK).min(CHUNK);
            let done = copy_chunk(from, to, at, want, &mut buffer)
                .map_err(|error| Error::io("cannot copy the image", error))?;
            if done == 0 {
                return Err(Error::corrupt("the image became shorter while it was copied"));
            }
            at += done;
            copied += done;
            control.progress.add(done);
            if copied - flushed >= FLUSH {
                to.sync_data().map_err(|error| Error::io("cannot flush the copy", error))?;
                flushed = copied;
            }
        }
    }
    control.check()?;
    Ok(copied)
}

/// Lets the kernel copy; where it cannot, goes through `buffer`.
fn copy_chunk(
    from: &File,
    to: &File,
    at: u64,
    want: usize,
    buffer: &mut Vec<u8>,
) -> std::io::Result<u64> {
    if buffer.is_empty() {
        let (mut source, mut target) = (at, at);
        match rustix::fs::copy_file_range(from, Some(&mut source), to, Some(&mut target), want) {
            Ok(done) => return Ok(done as u64),
            Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                buffer.resize(CHUNK, 0);
            }
            Err(Errno::INTR) => return copy_chunk(from, to, at, want, buffer),
            Err(errno) => return Err(errno.into()),
        }
    }
    loop {
        match from.read_at(&mut buffer[..want], at) {
            Ok(done) => {
                to.write_all_at(&buffer[..done], at)?;
                return Ok(done as u64);
            }
            Err(error) if error.kind() == Io::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// The ranges of a file that may hold anything but zeros, ascending and disjoint.
pub(crate) fn data_ranges(file: &File, size: u64) -> Result<Vec<Range<u64>>> {
    let failed = |errno: Errno| Error::io("cannot find the allocated ranges", errno.into());
    let mut ranges = Vec::new();
    let mut at = 0;
    while at < size {
        let start = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(start) => start,
            // No data from here on.
            Err(Errno::NXIO) => break,
            Err(errno) => return Err(failed(errno)),
        };
        let end = rustix::fs::seek(file, SeekFrom::Hole(start)).map_err(failed)?.min(size);
        if start >= end {
            break;
        }
        ranges.push(start..end);
        at = end;
    }
    Ok(ranges)
}

/// Bytes that a file occupies on disk.
pub(crate) fn allocated(file: &File) -> Result<u64> {
    file.metadata()
        .map(|meta| meta.blocks() * 512)
        .map_err(|error| Error::io("cannot tell the size of a file", error))
}

fn size(file: &File) -> Result<u64> {
    file.metadata()
        .map(|meta| meta.len())
        .map_err(|error| Error::io("cannot tell the size of a file", error))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::error::ErrorKind;

    fn control(deadline: Option<Instant>) -> CopyControl {
        CopyControl { progress: Arc::default(), deadline, cancelled: Arc::default() }
    }

    fn image() -> File {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[7; 5000], 1 << 20).unwrap();
        file.write_all_at(&[9; 100], 10 << 20).unwrap();
        file.set_len(64 << 20).unwrap();
        file
    }

    #[test]
    fn a_sparse_copy_is_equal_and_stays_sparse() {
        let (from, to) = (image(), tempfile::tempfile().unwrap());
        let control = control(None);
        let copied = sparse(&from, &to, &control).unwrap();
        assert_eq!(control.progress.done(), copied);
        assert_eq!(control.progress.total(), copied);
        assert!(allocated(&to).unwrap() < 1 << 20, "{}", allocated(&to).unwrap());
        let (mut a, mut b) = (vec![0; 64 << 20], vec![1; 64 << 20]);
        from.read_exact_at(&mut a, 0).unwrap();
        to.read_exact_at(&mut b, 0).unwrap();
        assert!(a == b);
    }

    #[test]
    fn a_copy_gives_up_at_its_deadline_and_when_nobody_waits() {
        let late = control(Some(Instant::now() - Duration::from_millis(1)));
        let error = sparse(&image(), &tempfile::tempfile().unwrap(), &late).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Busy);
        let alone = control(None);
        alone.cancelled.store(true, Ordering::Relaxed);
        assert!(sparse(&image(), &tempfile::tempfile().unwrap(), &alone).is_err());
        let ended = control(None);
        ended.progress.cancel();
        let error = sparse(&image(), &tempfile::tempfile().unwrap(), &ended).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Cancelled);
    }
}
