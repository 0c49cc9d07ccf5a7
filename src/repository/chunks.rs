//! Storing chunks and directories, each of them once, by several threads.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use rustic_core::repofile::{Node, Tree};
use rustic_core::{DataId, TreeId};

use super::cipher::{Cipher, Digest};
use super::pack::{Kind, Packer, Packing};
use super::reading::Indexed;
use super::session::Session;
use super::{COMPRESSION, lock};
use crate::error::{Error, Result};
use crate::linux::priority::let_others_go_first;

/// Threads for each core: while some read, others pack.
const THREADS: usize = 2;

/// What is stored of one backup.
pub(super) struct Chunks<'a> {
    session: &'a Session,
    indexed: &'a Indexed,
    packer: Packer<'a>,
    /// The chunks of a hole, by their length.
    zeros: Mutex<HashMap<u64, DataId>>,
}

/// What one thread works with.
pub(super) struct Worker {
    pub(super) packing: Packing,
    /// For what is read.
    pub(super) buffer: Vec<u8>,
}

impl Worker {
    pub(super) fn new() -> Result<Self> {
        Ok(Self { packing: Packing::new(COMPRESSION)?, buffer: Vec::new() })
    }
}

impl<'a> Chunks<'a> {
    pub(super) fn new(session: &'a Arc<Session>, indexed: &'a Indexed, cipher: &'a Cipher) -> Self {
        Self { session, indexed, packer: Packer::new(session, cipher), zeros: Mutex::default() }
    }

    /// Whether a chunk can be had: what was found damaged is out of the index, and is stored again.
    pub(super) fn has(&self, chunk: &DataId) -> bool {
        self.indexed.get_index_entry(chunk).is_ok()
    }

    /// The id of so many zeros, which are stored now.
    pub(super) fn zeros(&self, length: u64, packing: &mut Packing) -> Result<DataId> {
        let mut zeros = lock(&self.zeros);
        if let Some(known) = zeros.get(&length) {
            return Ok(*known);
        }
        let id = self.chunk(&vec![0; usize::try_from(length).unwrap_or_default()], packing)?;
        zeros.insert(length, id);
        Ok(id)
    }

    /// The id of these bytes, which are stored now.
    pub(super) fn chunk(&self, bytes: &[u8], packing: &mut Packing) -> Result<DataId> {
        let digest = Digest::of(bytes);
        let id = DataId::from(rustic_core::Id::try_from(digest)?);
        if !self.has(&id) && self.packer.claim(Kind::Data, digest) {
            self.add(Kind::Data, digest, bytes, packing)?;
        }
        Ok(id)
    }

    /// The id of a directory with these entries, which is stored now.
    pub(super) fn tree(&self, nodes: Vec<Node>, packing: &mut Packing) -> Result<TreeId> {
        let tree = Tree { nodes };
        let (bytes, id) =
            tree.serialize().map_err(|error| Error::internal("a directory").caused_by(error))?;
        let digest = Digest::of(&bytes);
        if self.indexed.get_index_entry(&id).is_err() && self.packer.claim(Kind::Tree, digest) {
            self.add(Kind::Tree, digest, &bytes, packing)?;
        }
        Ok(id)
    }

    /// What fails here is claimed already, so that nothing may come of the whole backup.
    fn add(&self, kind: Kind, id: Digest, plain: &[u8], packing: &mut Packing) -> Result<()> {
        self.packer.add(kind, id, plain, packing).inspect_err(|error| {
            self.session.fail(error.again());
        })
    }

    /// Stores what is left and then the index. Gives the bytes that all of it took.
    pub(super) fn finish(self) -> Result<u64> {
        self.packer.finish()
    }
}

/// Does `work` for each of the numbers, several at once. Gives what came of it in their order.
pub(super) fn in_parallel<T: Send>(
    numbers: Range<u64>,
    work: impl Fn(u64, &mut Worker) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    let next = AtomicU64::new(numbers.start);
    let thread = || -> Result<Vec<(u64, T)>> {
        let_others_go_first();
        let mut worker = Worker::new()?;
        let mut done = Vec::new();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= numbers.end {
                return Ok(done);
            }
            match work(number, &mut worker) {
                Ok(one) => done.push((number, one)),
                Err(error) => {
                    // What the others would do now is for nothing.
                    next.store(numbers.end, Ordering::Relaxed);
                    return Err(error);
                }
            }
        }
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut all = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..cores * THREADS).map(|_| scope.spawn(thread)).collect();
        let mut all = Vec::new();
        let mut failed = None;
        for thread in threads {
            let done = thread.join();
            match done.unwrap_or_else(|_| Err(Error::internal("a thread of the backup broke off")))
            {
                Ok(done) => all.extend(done),
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        failed.map_or(Ok(all), Err)
    })?;
    all.sort_unstable_by_key(|(number, _)| *number);
    Ok(all.into_iter().map(|(_, one)| one).collect())
}
