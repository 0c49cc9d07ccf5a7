//! Disks: sparse files that outlive the hosts they are in.

use std::fs::File;
use std::path::{Path, PathBuf};

/// A disk that can be in one host at a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Disk {
    file: PathBuf,
}

impl Disk {
    pub(super) fn new(file: PathBuf, mebibytes: u64) -> Self {
        File::create_new(&file).and_then(|file| file.set_len(mebibytes << 20)).expect("disk");
        Self { file }
    }

    /// The file that holds what has reached the disk.
    pub(crate) fn file(&self) -> &Path {
        &self.file
    }
}

/// The disks of one host by their slot, from which the kernel makes the device's name.
#[derive(Debug, Clone, Default)]
pub(super) struct Slots(Vec<Option<Disk>>);

/// As many as the kernel knows.
const MOST: usize = 16;

impl Slots {
    /// Puts a disk in the first free slot and gives the device's name.
    #[track_caller]
    pub(super) fn put(&mut self, disk: &Disk) -> String {
        let free = self.0.iter().position(Option::is_none).unwrap_or(self.0.len());
        assert!(free < MOST, "a host has at most {MOST} disks");
        if free == self.0.len() {
            self.0.push(None);
        }
        self.0[free] = Some(disk.clone());
        name(free)
    }

    #[track_caller]
    pub(super) fn take(&mut self, disk: &Disk) {
        let slot = self.find(disk);
        self.0[slot] = None;
    }

    #[track_caller]
    pub(super) fn device(&self, disk: &Disk) -> PathBuf {
        Path::new("/dev").join(name(self.find(disk)))
    }

    #[track_caller]
    fn find(&self, disk: &Disk) -> usize {
        let slot = self.0.iter().position(|slot| slot.as_ref() == Some(disk));
        slot.unwrap_or_else(|| panic!("{disk:?} is not in this host"))
    }

    /// `ubda=FILE` for each disk.
    pub(super) fn arguments(&self) -> impl Iterator<Item = String> {
        self.0.iter().enumerate().filter_map(|(slot, disk)| {
            disk.as_ref().map(|disk| format!("{}={}", name(slot), disk.file.display()))
        })
    }
}

fn name(slot: usize) -> String {
    format!("ubd{}", char::from(b"abcdefghijklmnop"[slot]))
}
