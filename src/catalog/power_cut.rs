//! The catalog on a disk that loses power: what was not synced is lost, kept or torn at any sector.

use std::collections::BTreeMap;
use std::io::{Error as IoError, Result as IoResult};
use std::sync::{Arc, Mutex};

use proptest::test_runner::{RngAlgorithm, TestRng};
use redb::StorageBackend;

use super::file::CatalogFile;
use super::tests::{put, volume};
use super::{Change, State};
use crate::id::VolumeUuid;
use proptest::prelude::Rng as _;

const SECTOR: usize = 512;

/// Cuts in `scripts/test`; `scripts/soak` sets more.
const CUTS: u32 = 150;

#[derive(Debug, Default)]
struct Disk {
    durable: Vec<u8>,
    pending: Vec<Pending>,
    /// Writes, syncs and changes of length until the power goes.
    calls_left: Option<u32>,
}

#[derive(Debug, Clone)]
enum Pending {
    Write(usize, Vec<u8>),
    Length(usize),
}

impl Disk {
    fn spend(&mut self) -> IoResult<()> {
        match &mut self.calls_left {
            Some(0) => Err(IoError::other("the power is gone")),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// What reads see: everything, synced or not.
    fn seen(&self) -> Vec<u8> {
        let mut bytes = self.durable.clone();
        self.pending.iter().for_each(|pending| apply(&mut bytes, pending));
        bytes
    }

    /// What is on the disk after the power was cut: of what was not synced, any sectors.
    fn cut(&self, random: &mut TestRng) -> Vec<u8> {
        let mut bytes = self.durable.clone();
        for pending in &self.pending {
            match pending {
                Pending::Length(_) if random.next_u32().is_multiple_of(2) => {}
                Pending::Length(_) => apply(&mut bytes, pending),
                Pending::Write(offset, data) => {
                    for (index, sector) in data.chunks(SECTOR).enumerate() {
                        let at = offset + index * SECTOR;
                        if random.next_u32().is_multiple_of(2) && at + sector.len() <= bytes.len() {
                            bytes[at..at + sector.len()].copy_from_slice(sector);
                        }
                    }
                }
            }
        }
        bytes
    }
}

fn apply(bytes: &mut Vec<u8>, pending: &Pending) {
    match pending {
        Pending::Length(length) => bytes.resize(*length, 0),
        Pending::Write(offset, data) => {
            if bytes.len() < offset + data.len() {
                bytes.resize(offset + data.len(), 0);
            }
            bytes[*offset..offset + data.len()].copy_from_slice(data);
        }
    }
}

#[derive(Debug, Clone, Default)]
struct SharedDisk(Arc<Mutex<Disk>>);

impl SharedDisk {
    fn lock(&self) -> std::sync::MutexGuard<'_, Disk> {
        self.0.lock().unwrap()
    }
}

fn index(number: u64) -> usize {
    usize::try_from(number).unwrap()
}

impl StorageBackend for SharedDisk {
    fn len(&self) -> IoResult<u64> {
        Ok(self.lock().seen().len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> IoResult<()> {
        let seen = self.lock().seen();
        let from = index(offset);
        let bytes =
            seen.get(from..from + out.len()).ok_or_else(|| IoError::other("past the end"))?;
        out.copy_from_slice(bytes);
        Ok(())
    }

    fn set_len(&self, len: u64) -> IoResult<()> {
        let mut disk = self.lock();
        disk.spend()?;
        disk.pending.push(Pending::Length(index(len)));
        Ok(())
    }

    fn sync_data(&self) -> IoResult<()> {
        let mut disk = self.lock();
        disk.spend()?;
        disk.durable = disk.seen();
        disk.pending.clear();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> IoResult<()> {
        let mut disk = self.lock();
        disk.spend()?;
        disk.pending.push(Pending::Write(index(offset), data.to_vec()));
        Ok(())
    }
}

fn open(disk: &SharedDisk, empty: bool) -> CatalogFile {
    // A small cache and region keep the simulated disk small.
    let mut builder = redb::Database::builder();
    builder.set_cache_size(64 << 10);
    CatalogFile::on(builder.create_with_backend(disk.clone()).unwrap(), empty).unwrap()
}

fn names(state: &State) -> BTreeMap<VolumeUuid, String> {
    state.volumes().map(|volume| (volume.uuid, volume.name.to_string())).collect()
}

/// One more volume, one less, or another name for one: each group is whole or absent.
fn random_group(
    random: &mut TestRng,
    known: &BTreeMap<VolumeUuid, String>,
    n: u128,
) -> Vec<Change> {
    let pick = |random: &mut TestRng| {
        let at = random.next_u32() as usize % known.len().max(1);
        known.keys().nth(at).copied()
    };
    match (random.next_u32() % 3, pick(random)) {
        (0, Some(uuid)) => vec![Change::RemoveVolume(uuid)],
        (1, Some(uuid)) => vec![put(&volume(uuid.uuid().as_u128(), &format!("renamed-{n}")))],
        _ => vec![
            put(&volume(n * 2 + 1, &format!("v{n}"))),
            put(&volume(n * 2 + 2, &format!("w{n}"))),
        ],
    }
}

#[test]
fn a_power_cut_loses_nothing_that_was_committed() {
    let cuts = std::env::var("HOLDFAST_SOAK_CUTS").map_or(CUTS, |text| text.parse().unwrap());
    let seed = std::env::var("HOLDFAST_SOAK_SEED").map_or(7, |text| text.parse::<u8>().unwrap());
    let mut random = TestRng::from_seed(RngAlgorithm::ChaCha, &[seed; 32]);
    let disk = SharedDisk::default();
    let mut file = open(&disk, true);
    let mut state = file.load().unwrap();
    let mut number = 0;
    for cut in 0..cuts {
        disk.lock().calls_left = Some(random.next_u32() % 60);
        let (before, after) = loop {
            number += 1;
            let before = names(&state);
            let group = random_group(&mut random, &before, number);
            let mut wanted = before.clone();
            for change in &group {
                match change {
                    Change::PutVolume(v) => drop(wanted.insert(v.uuid, v.name.to_string())),
                    Change::RemoveVolume(uuid) => drop(wanted.remove(uuid)),
                    _ => unreachable!("not made here"),
                }
            }
            match file.write(&[&group[..]], &state) {
                Ok(_) => group.into_iter().for_each(|change| state.apply(change)),
                Err(_) => break (before, wanted),
            }
        };
        drop(file);
        let left = disk.lock().cut(&mut random);
        *disk.lock() = Disk { durable: left, ..Disk::default() };
        file = open(&disk, false);
        state = file.load().unwrap();
        let found = names(&state);
        assert!(
            found == before || found == after,
            "cut {cut}: the commit that was under way is whole or absent, and no other is touched"
        );
    }
}
