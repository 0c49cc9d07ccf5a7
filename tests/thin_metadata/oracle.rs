//! What the reader finds is what the pool's model, `thin_dump`, `thin_delta` and `thin_ls` say.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use holdfast::error::ErrorKind;
use holdfast::id::ThinId;
use holdfast::thin_metadata::{ChangeKind, Mapping, Metadata};
use proptest::prelude::*;

use crate::nodes::Nodes;
use crate::pool::{DATA_BLOCKS, Device, Pool, Step, history};
use crate::tools;

fn id(number: u32) -> ThinId {
    ThinId::try_from(number).unwrap()
}

/// The mappings of a device, which have to be in order and as long as possible.
fn mapped(metadata: &Metadata, device: u32) -> BTreeMap<u64, u64> {
    let runs: Vec<Mapping> = metadata.mappings(id(device)).unwrap().map(Result::unwrap).collect();
    for pair in runs.windows(2) {
        let end = pair[0].begin.number() + pair[0].length;
        let follows = pair[0].data.number() + pair[0].length == pair[1].data.number();
        assert!(end < pair[1].begin.number() || end == pair[1].begin.number() && !follows);
    }
    let blocks = |run: &Mapping| {
        let begins = (run.begin.number(), run.data.number());
        (0..run.length).map(move |i| (begins.0 + i, begins.1 + i))
    };
    runs.iter().flat_map(blocks).collect()
}

fn changed(metadata: &Metadata, base: u32, other: u32) -> BTreeMap<u64, ChangeKind> {
    let mut changed = BTreeMap::new();
    let mut last: Option<(u64, ChangeKind)> = None;
    for run in metadata.changes(id(base), id(other)).unwrap().map(Result::unwrap) {
        let begin = run.begin.number();
        assert!(last.is_none_or(|(end, kind)| end < begin || end == begin && kind != run.kind));
        last = Some((begin + run.length, run.kind));
        changed.extend((begin..begin + run.length).map(|block| (block, run.kind)));
    }
    changed
}

/// All but the differences between the devices.
fn compare_devices(pool: &Pool, metadata: &Metadata, path: &Path) {
    let superblock = metadata.superblock();
    assert_eq!(superblock.time.number(), pool.time);
    assert_eq!(superblock.transaction.number(), 77);
    assert_eq!(superblock.data_blocks, DATA_BLOCKS);
    assert_eq!(superblock.metadata_blocks * 4096, std::fs::metadata(path).unwrap().len());
    assert_eq!(superblock.block_size.bytes(), 65536);
    assert_eq!((superblock.needs_check, superblock.held_root), (false, None));
    assert_eq!(Metadata::open_snapshot(path).unwrap_err().kind(), ErrorKind::NotFound);

    let devices = metadata.devices().unwrap();
    assert!(devices.iter().map(|device| device.id.number()).eq(pool.devices.keys().copied()));
    for (found, device) in devices.iter().zip(pool.devices.values()) {
        assert_eq!(found.mapped_blocks, device.mapped.len() as u64);
        assert_eq!(found.transaction.number(), device.transaction);
        assert_eq!(found.created.number(), device.created);
        assert_eq!(found.snapshotted.number(), device.snapshotted);
    }

    let (dump, listed) = (tools::dump(path), tools::usage(path));
    let usage = metadata.usage().unwrap();
    assert_eq!(dump.len(), devices.len());
    assert_eq!((listed.len(), usage.len()), (devices.len(), devices.len()));
    for (number, device) in &pool.devices {
        let model: BTreeMap<u64, u64> =
            device.mapped.iter().map(|(block, (data, _))| (*block, *data)).collect();
        let found = mapped(metadata, *number);
        assert_eq!(found, model, "device {number}");
        assert_eq!(found, dump[number], "device {number}");
        let of = usage[&id(*number)];
        assert_eq!([of.exclusive + of.shared, of.exclusive, of.shared], listed[number]);
    }
}

fn compare(pool: &Pool, path: &Path) {
    let metadata = Metadata::open(path).unwrap();
    compare_devices(pool, &metadata, path);
    for (i, (base, old)) in pool.devices.iter().enumerate() {
        for (j, (other, new)) in pool.devices.iter().enumerate() {
            let found = changed(&metadata, *base, *other);
            assert_eq!(found, difference(old, new), "from {base} to {other}");
            // A process for each pair takes long.
            if j == i + 1 {
                assert_eq!(found, tools::delta(path, *base, *other), "from {base} to {other}");
            }
        }
    }
}

/// What differs, by the model.
fn difference(base: &Device, other: &Device) -> BTreeMap<u64, ChangeKind> {
    let place = |device: &Device, block: &u64| device.mapped.get(block).map(|(data, _)| *data);
    let blocks: BTreeSet<u64> = base.mapped.keys().chain(other.mapped.keys()).copied().collect();
    let kind = |block: &u64| match (place(base, block), place(other, block)) {
        (Some(_), None) => Some(ChangeKind::Removed),
        (None, Some(_)) => Some(ChangeKind::Added),
        (one, two) => (one != two).then_some(ChangeKind::Replaced),
    };
    blocks.into_iter().filter_map(|block| kind(&block).map(|kind| (block, kind))).collect()
}

proptest! {
    #![proptest_config(crate::cases(6))]

    #[test]
    fn the_tools_see_the_same_pool(history in history()) {
        let pool = Pool::after(&history);
        let directory = tempfile::tempdir().unwrap();
        let path = tools::restore(&pool, directory.path());
        tools::check(&path);
        compare(&pool, &path);
        let mut bytes = std::fs::read(&path).unwrap();
        Nodes { bytes: &mut bytes }.share();
        std::fs::write(&path, bytes).unwrap();
        compare(&pool, &path);
    }
}

#[test]
fn more_devices_than_a_node_holds_are_all_found() {
    let steps = (0..700).flat_map(|id| {
        let length = u64::from(id % 3);
        let write = Step::Write { device: usize::MAX, begin: 5, length, stride: 1 };
        [if id % 5 == 0 { Step::Create { id } } else { Step::Snapshot { device: 0, id } }, write]
    });
    let pool = Pool::after(&(3, steps.collect()));
    let directory = tempfile::tempdir().unwrap();
    let path = tools::restore(&pool, directory.path());
    assert_eq!(pool.devices.len(), 700);
    compare_devices(&pool, &Metadata::open(&path).unwrap(), &path);
}
