//! Restoring an image.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::image::is_zero;
use super::manifest::Layout;
use super::reading::{Chunk, Fault, Reading};
use super::{Cache, Repository};
use crate::error::{Error, Result};
use crate::id::BackupId;
use crate::model::Progress;

/// How often what was written is flushed while more is written, so that the end need not wait for all of it.
const FLUSHED: u64 = 64 << 20;

/// What an image is restored to.
#[derive(Debug)]
pub struct Target {
    /// The device, at least as large as the image.
    pub file: File,
    /// Whether it reads as zeros everywhere, so that zeros need not be written.
    pub blank: bool,
}

impl Repository {
    /// Restores the image of a backup. Until this returns `Ok` the target holds nothing that may be used.
    ///
    /// # Errors
    /// `NotFound` if there is no such backup; `Corrupt`, naming what is damaged, if any of it cannot be read
    /// back as it was stored; `Cancelled`.
    pub fn restore_image(
        &self,
        id: BackupId,
        target: &Target,
        progress: &Arc<Progress>,
    ) -> Result<()> {
        let reading = Reading::new(self, id, Cache::Used, progress)?;
        let whole = |fault: Fault| fault.into_error(&reading.session);
        let manifest = reading.manifest().map_err(whole)?;
        if manifest.layout == Layout::Files {
            return Err(Error::invalid("the backup is of files, and not of an image"));
        }
        let content = reading.content().whole().map_err(whole)?;
        progress.add_total(content.size);
        let write = |chunk: &Chunk, data: &[u8]| {
            let write = !(target.blank && is_zero(data));
            for place in &chunk.places {
                if write {
                    target.file.write_all_at(data, *place).map_err(|error| {
                        Error::io(format!("cannot write the volume at byte {place}"), error)
                    })?;
                }
                progress.add(data.len() as u64);
            }
            Ok(())
        };
        let flush =
            || target.file.sync_data().map_err(|error| Error::io("cannot flush the volume", error));
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut flushed = 0;
                while !over.load(Ordering::Relaxed) {
                    std::thread::park_timeout(std::time::Duration::from_millis(20));
                    if progress.done() >= flushed + FLUSHED {
                        flushed = progress.done();
                        // Its error is told by the last one, which flushes all the same.
                        let _ = flush();
                    }
                }
            });
            let done = reading.each(&content, |chunk, data| match data {
                Ok(data) => write(chunk, data),
                Err(fault) => Err(fault.into_error(&reading.session)),
            });
            over.store(true, Ordering::Relaxed);
            done
        })?;
        flush()
    }
}
