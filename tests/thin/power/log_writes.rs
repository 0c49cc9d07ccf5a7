//! The log of dm-log-writes (`Documentation/admin-guide/device-mapper/log-writes.rst`), and what a disk may
//! hold when the power goes at a mark in it.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use nix::fcntl::{FallocateFlags, fallocate};

const SECTOR: u64 = 512;
/// What a disk writes whole or not at all. With 512 bytes ext4's own superblock, of 1 KiB, could be torn.
const PHYSICAL: u64 = 4096;

const FLUSH: u64 = 1;
const FUA: u64 = 2;
const DISCARD: u64 = 4;
const MARK: u64 = 8;

/// `struct log_write_entry`, and where the data is that follows it.
#[derive(Debug, Clone, Copy)]
struct Entry {
    sector: u64,
    sectors: u64,
    flags: u64,
    data: u64,
}

/// The log as far as it has been read.
#[derive(Debug)]
pub(super) struct Log {
    file: File,
    entries: Vec<Entry>,
    /// Where the next entry will be.
    end: u64,
}

/// Makes the log as if it had never been written.
pub(super) fn clear(log: &Path) {
    let file = File::options().write(true).open(log).expect("the log");
    let length = file.metadata().expect("the log").len();
    file.set_len(0).and_then(|()| file.set_len(length)).expect("the log");
}

impl Log {
    pub(super) fn open(log: &Path) -> Self {
        let file = File::open(log).expect("the log");
        // The first sector is the super block.
        Self { file, entries: Vec::new(), end: SECTOR }
    }

    fn read_on(&mut self) {
        loop {
            let mut head = [0; 32];
            self.file.read_exact_at(&mut head, self.end).expect("the log");
            let mut numbers = head
                .chunks(8)
                .map(|bytes| u64::from_le_bytes(bytes.try_into().expect("eight bytes")));
            let mut number = || numbers.next().expect("four numbers");
            let (sector, sectors, flags) = (number(), number(), number());
            if sectors == 0 && flags == 0 {
                return;
            }
            let data = self.end + SECTOR;
            self.entries.push(Entry { sector, sectors, flags, data });
            let stored = if flags & DISCARD == 0 { sectors } else { 0 };
            self.end = data + stored * SECTOR;
        }
    }

    /// Where the mark is, and the first flush after it.
    fn cut(&self) -> Option<(usize, usize)> {
        let mark = self.entries.iter().position(|entry| entry.flags & MARK != 0)?;
        let flush = self.entries[mark..].iter().position(|entry| entry.flags & FLUSH != 0)?;
        Some((mark, mark + flush))
    }

    /// Whether the mark and a flush after it are in the log.
    pub(super) fn has_cut(&mut self) -> bool {
        self.read_on();
        self.cut().is_some()
    }

    /// Makes the disk with the content at the boot what it is when the power goes just before the flush:
    /// `lucky` says of each physical sector of a write that nothing had made durable whether it was
    /// written.
    pub(super) fn apply(&self, disk: &Path, mut lucky: impl FnMut() -> bool) {
        let disk = File::options().write(true).open(disk).expect("the disk");
        let (mark, flush) = self.cut().expect("a mark and a flush");
        for (at, entry) in self.entries[..flush].iter().enumerate() {
            // Who asks for it at once writes other things when he has it, without a flush between.
            match at < mark || entry.flags & FUA != 0 {
                true => self.write(entry, &disk, || true),
                false => self.write(entry, &disk, &mut lucky),
            }
        }
    }

    fn write(&self, entry: &Entry, disk: &File, mut lucky: impl FnMut() -> bool) {
        let (start, length) = (entry.sector * SECTOR, entry.sectors * SECTOR);
        if entry.flags & DISCARD != 0 {
            // A discard promises nothing, so all of it or none.
            if lucky() {
                let signed = |number: u64| i64::try_from(number).expect("a place on the disk");
                let hole =
                    FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
                fallocate(disk, hole, signed(start), signed(length)).expect("a hole");
            }
            return;
        }
        let mut data = vec![0; usize::try_from(length).expect("a write fits into memory")];
        self.file.read_exact_at(&mut data, entry.data).expect("the log");
        let mut rest = &data[..];
        let mut at = start;
        while !rest.is_empty() {
            let boundary = (PHYSICAL - at % PHYSICAL).min(rest.len() as u64);
            let (part, after) = rest.split_at(usize::try_from(boundary).expect("small"));
            if lucky() {
                disk.write_all_at(part, at).expect("the disk");
            }
            (rest, at) = (after, at + boundary);
        }
    }
}
