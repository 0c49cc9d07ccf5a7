//! Restoring an image, in parallel and as the packs lie.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::Repository;
use super::contents::{Chunk, Contents};
use super::manifest::Manifest;
use super::session::Session;
use crate::error::{Error, Result};
use crate::id::BackupId;
use crate::model::Progress;

/// Chunks that are read at the same time, for each core.
const READERS: usize = 4;

/// What an image is restored to.
#[derive(Debug)]
pub struct Target {
    /// The device, at least as large as the image.
    pub file: File,
    /// Whether it reads as zeros everywhere, so that zeros need not be written.
    pub blank: bool,
}

impl Repository {
    /// What the backup is of.
    ///
    /// # Errors
    /// `NotFound` if there is no such backup; `Corrupt` if it is damaged; `Unsupported` if a newer version
    /// made it.
    pub fn manifest(&self, id: BackupId) -> Result<Manifest> {
        let session = self.session(&Arc::default())?;
        let contents = Contents::new(&session, self.open(&session)?)?;
        let file = contents.snapshot_file(id)?;
        contents.manifest(&file).map_err(|fault| fault.into_error(&session))
    }

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
        let session = self.session(progress)?;
        let opened = self.open(&session)?;
        let _lock = self.lock_to_read(&session, &opened)?;
        let contents = Contents::new(&session, opened)?;
        let file = contents.snapshot_file(id)?;
        let manifest = contents.manifest(&file).map_err(|fault| fault.into_error(&session))?;
        let size = manifest.image_size()?;
        let (chunks, faults) = contents.chunks(&file, size);
        if let Some(fault) = faults.into_iter().next() {
            return Err(fault.into_error(&session));
        }
        progress.add_total(size);
        let write = |chunk: &Chunk| {
            let data = contents.read(chunk).map_err(|fault| fault.into_error(&session))?;
            if !(target.blank && is_zero(&data)) {
                target.file.write_all_at(&data, chunk.offset).map_err(|error| {
                    Error::io(format!("cannot write the volume at byte {}", chunk.offset), error)
                })?;
            }
            progress.add(chunk.length);
            Ok(())
        };
        for_each_chunk(&session, &chunks, write)?;
        target.file.sync_all().map_err(|error| Error::io("cannot flush the volume", error))
    }
}

impl Manifest {
    pub(super) fn image_size(&self) -> Result<u64> {
        let size = self
            .snapshot
            .size
            .ok_or_else(|| Error::corrupt("the backup does not tell its size"))?;
        Ok(size.bytes())
    }
}

/// Gives each chunk to `use_it`, several at once, until one fails.
pub(super) fn for_each_chunk(
    session: &Arc<Session>,
    chunks: &[Chunk],
    use_it: impl Fn(&Chunk) -> Result<()> + Sync,
) -> Result<()> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let next = AtomicUsize::new(0);
    let work = || -> Result<()> {
        while let Some(chunk) = chunks.get(next.fetch_add(1, Ordering::Relaxed)) {
            session.go_on()?;
            if let Err(error) = use_it(chunk) {
                session.fail(error.again());
                return Err(error);
            }
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..cores * READERS).map(|_| scope.spawn(work)).collect();
        let ends = workers.into_iter().map(|worker| {
            worker.join().unwrap_or_else(|_| Err(Error::internal("a reader of chunks broke off")))
        });
        // All of them end before the first error is told.
        ends.collect::<Vec<_>>().into_iter().collect()
    })
}

/// Whether all bytes are zeros.
pub(super) fn is_zero(data: &[u8]) -> bool {
    data.chunks(4096).all(|part| part.iter().fold(0, |all, byte| all | byte) == 0)
}
