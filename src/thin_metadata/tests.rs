//! Trees of shapes that no tool makes, and metadata that lies.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use super::block::BlockKind;
use super::image::{DATA_BLOCKS, Image, METADATA_BLOCKS, Shape};
use super::*;
use crate::error::ErrorKind;

/// Random pools in a short run.
const POOLS: u32 = 60;

type Mapped = BTreeMap<u64, u64>;

fn id(number: u64) -> ThinId {
    ThinId::try_from(u32::try_from(number).unwrap()).unwrap()
}

fn with<T>(image: &Image, read: impl FnOnce(&Path) -> T) -> T {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("metadata");
    image.write(&path);
    read(&path)
}

fn mapped(metadata: &Metadata, device: u64) -> Result<Mapped> {
    let mut mapped = Mapped::new();
    for run in metadata.mappings(id(device))? {
        let run = run?;
        let pairs = (0..run.length).map(|i| (run.begin.number() + i, run.data.number() + i));
        mapped.extend(pairs);
    }
    Ok(mapped)
}

fn changed(metadata: &Metadata, base: u64, other: u64) -> Result<BTreeMap<u64, ChangeKind>> {
    let mut changed = BTreeMap::new();
    for run in metadata.changes(id(base), id(other))? {
        let run = run?;
        changed.extend((0..run.length).map(|i| (run.begin.number() + i, run.kind)));
    }
    Ok(changed)
}

fn difference(base: &Mapped, other: &Mapped) -> BTreeMap<u64, ChangeKind> {
    let keys: BTreeSet<&u64> = base.keys().chain(other.keys()).collect();
    let kind = |key: &u64| match (base.get(key), other.get(key)) {
        (Some(_), None) => Some(ChangeKind::Removed),
        (None, Some(_)) => Some(ChangeKind::Added),
        (one, two) => (one != two).then_some(ChangeKind::Replaced),
    };
    keys.into_iter().filter_map(|key| kind(key).map(|kind| (*key, kind))).collect()
}

/// Asks everything that there is to ask.
fn read_all(path: &Path) -> Result<()> {
    let metadata = Metadata::open(path)?;
    let devices = metadata.devices()?;
    for device in &devices {
        for run in metadata.mappings(device.id)? {
            run?;
        }
        for other in &devices {
            for change in metadata.changes(device.id, other.id)? {
                change?;
            }
        }
    }
    metadata.usage()?;
    Ok(())
}

fn shape() -> impl Strategy<Value = Shape> {
    (prop::sample::select(vec![1, 4, 16, 16, 16]), 2..9usize, any::<bool>())
        .prop_map(|(leaf, fan_out, loose)| Shape { leaf, fan_out, loose })
}

/// A device, and what is made of it by edits of ranges, three times.
fn history() -> impl Strategy<Value = Vec<Mapped>> {
    let edit = (0..300u64, 1..40u64, prop::option::of(0..2000u64));
    prop::collection::vec(prop::collection::vec(edit, 0..6), 3).prop_map(|edits| {
        let mut now: Mapped = (50..250).map(|key| (key, 5000 + key)).collect();
        let mut devices = vec![now.clone()];
        for edits in edits {
            for (begin, length, data) in edits {
                for i in 0..length {
                    match data {
                        Some(data) => drop(now.insert(begin + i, data + i)),
                        None => drop(now.remove(&(begin + i))),
                    }
                }
            }
            devices.push(now.clone());
        }
        devices
    })
}

fn config() -> ProptestConfig {
    let pools = std::env::var("HOLDFAST_SOAK_POOLS").map_or(POOLS, |text| text.parse().unwrap());
    let seed = std::env::var("HOLDFAST_SOAK_SEED").map_or(7, |text| text.parse::<u8>().unwrap());
    ProptestConfig {
        cases: pools,
        rng_seed: RngSeed::Fixed(seed.into()),
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn trees_of_any_shape_give_what_was_put_in(
        devices in history(),
        shapes in prop::collection::vec(shape(), 4),
        alike in any::<bool>(),
    ) {
        let mut image = Image::new();
        let mut roots = BTreeMap::new();
        for (i, (device, shape)) in devices.iter().zip(&shapes).enumerate() {
            let shape = if alike { shapes[0] } else { *shape };
            let root = image.device(device, shape);
            roots.insert(i as u64, (root, device.len() as u64));
        }
        image.finish(&roots);
        with(&image, |path| {
            let metadata = Metadata::open(path).unwrap();
            let usage = metadata.usage().unwrap();
            let mut references: BTreeMap<u64, u32> = BTreeMap::new();
            devices.iter().flat_map(BTreeMap::values).for_each(|data| {
                *references.entry(*data).or_default() += 1;
            });
            for (i, device) in devices.iter().enumerate() {
                prop_assert_eq!(&mapped(&metadata, i as u64).unwrap(), device);
                let exclusive = device.values().filter(|data| references[data] == 1).count() as u64;
                let shared = device.len() as u64 - exclusive;
                prop_assert_eq!(usage[&id(i as u64)], Usage { exclusive, shared });
                for (j, other) in devices.iter().enumerate() {
                    let found = changed(&metadata, i as u64, j as u64).unwrap();
                    prop_assert_eq!(found, difference(device, other), "from {} to {}", i, j);
                }
            }
            Ok(())
        })?;
    }
}

const LEAVES: u64 = 300;

/// Two devices of 300 leaves, which differ in one in the middle, and the leaves that they share.
fn one_leaf_changed(fan_out: [usize; 2]) -> (Image, Vec<u64>) {
    let base: Mapped = (0..LEAVES * 100).map(|key| (key, key)).collect();
    let mut other = base.clone();
    other.insert(15_050, 900_000);
    let mut image = Image::new();
    let one = image.device(&base, Shape { leaf: 100, fan_out: fan_out[0], loose: false });
    let shared = (1..=LEAVES).filter(|leaf| *leaf != 151).collect();
    let two = image.device(&other, Shape { leaf: 100, fan_out: fan_out[1], loose: false });
    let length = LEAVES * 100;
    image.finish(&BTreeMap::from([(1, (one, length)), (2, (two, length))]));
    (image, shared)
}

#[test]
fn what_devices_share_is_not_read_whatever_the_heights_of_their_trees() {
    for fan_out in [[7, 7], [250, 7], [7, 250], [3, 17]] {
        let (mut image, shared) = one_leaf_changed(fan_out);
        // The first leaf tells how high the trees are.
        for leaf in shared.into_iter().skip(1) {
            image.put(leaf, 0, &[0xff; 4096]);
        }
        with(&image, |path| {
            let metadata = Metadata::open(path).unwrap();
            let expected = BTreeMap::from([(15_050, ChangeKind::Replaced)]);
            assert_eq!(changed(&metadata, 1, 2).unwrap(), expected, "{fan_out:?}");
            assert_eq!(metadata.usage().unwrap_err().kind(), ErrorKind::Corrupt);
        });
    }
}

#[test]
fn a_metadata_snapshot_shows_the_pool_as_it_was() {
    let mut image = Image::new();
    let shape = Shape { leaf: 16, fan_out: 4, loose: false };
    let old = image.device(&Mapped::from([(1, 1)]), shape);
    image.finish(&BTreeMap::from([(3, (old, 1))]));
    // As the kernel does it: a copy of the superblock without the roots of the space maps.
    let held = image.blocks.len() as u64;
    image.blocks.push(image.blocks[0].clone());
    image.put(held, 64, &[0; 256]);
    image.seal(held, BlockKind::Superblock);
    let new = image.device(&Mapped::from([(1, 1), (2, 2)]), shape);
    image.finish(&BTreeMap::from([(3, (new, 2)), (4, (old, 1))]));
    with(&image, |path| {
        let error = Metadata::open_snapshot(path).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
    });

    image.put(0, 48, &12u64.to_le_bytes());
    image.put(0, 56, &held.to_le_bytes());
    image.put(0, 4, &[1]);
    image.seal(0, BlockKind::Superblock);
    with(&image, |path| {
        let (live, snapshot) =
            (Metadata::open(path).unwrap(), Metadata::open_snapshot(path).unwrap());
        assert_eq!(snapshot.superblock().transaction.number(), 11);
        assert_eq!(live.superblock().transaction.number(), 12);
        for metadata in [&live, &snapshot] {
            let superblock = metadata.superblock();
            assert_eq!(superblock.held_root, Some(held));
            assert!(superblock.needs_check);
            assert_eq!(superblock.time.number(), 9);
            assert_eq!(superblock.block_size.bytes(), 65536);
            assert_eq!(superblock.data_blocks, DATA_BLOCKS);
            assert_eq!(superblock.metadata_blocks, METADATA_BLOCKS);
        }
        assert_eq!(mapped(&live, 3).unwrap().len(), 2);
        assert_eq!(mapped(&snapshot, 3).unwrap().len(), 1);
        assert_eq!(live.devices().unwrap().len(), 2);
        let device = snapshot.devices().unwrap()[0];
        assert_eq!((device.transaction.number(), device.mapped_blocks), (7, 1));
        assert_eq!((device.created.number(), device.snapshotted.number()), (1, 2));
        assert_eq!(snapshot.mappings(id(4)).unwrap_err().kind(), ErrorKind::NotFound);
    });

    image.put(held, 336, &256u32.to_le_bytes());
    image.seal(held, BlockKind::Superblock);
    with(&image, |path| {
        assert_eq!(Metadata::open_snapshot(path).unwrap_err().kind(), ErrorKind::Corrupt);
    });
}

/// Blocks of the small pool that is spoilt: a leaf, an internal node, and what is above them.
const LEAF: u64 = 1;
const INTERNAL: u64 = 5;

#[test]
fn a_lie_with_a_good_checksum_is_found() {
    let word = u32::to_le_bytes;
    let long = u64::to_le_bytes;
    let values = 32 + 8 * 254;
    // Keys 0 to 3, 4 to 7, 8 to 11 and 12 to 15 in blocks 1 to 4, under blocks 5 and 6, under 7.
    let lies: &[(&str, u64, usize, &[u8])] = &[
        ("no node", LEAF, 4, &word(0)),
        ("both kinds of node", LEAF, 4, &word(3)),
        ("a leaf that says it is internal", LEAF, 4, &word(1)),
        ("an internal node that says it is a leaf", INTERNAL, 4, &word(2)),
        ("more entries than the capacity", LEAF, 16, &word(255)),
        ("most entries", LEAF, 16, &word(u32::MAX)),
        ("more capacity than a block", LEAF, 20, &word(255)),
        ("most capacity", LEAF, 20, &word(u32::MAX)),
        ("no values", LEAF, 24, &word(0)),
        ("large values", LEAF, 24, &word(u32::MAX)),
        ("an empty leaf that is not the root", LEAF, 16, &word(0)),
        ("an internal node without children", INTERNAL, 16, &word(0)),
        ("keys out of order", LEAF, 32, &long(2)),
        ("equal keys", LEAF, 32, &long(1)),
        ("a key below the parent's", 2, 32, &long(3)),
        ("a key of the neighbour", LEAF, 32 + 24, &long(4)),
        ("a thin block beyond the largest device", 4, 32 + 24, &long(u64::MAX >> 16)),
        ("a data block beyond the pool", LEAF, values, &long(DATA_BLOCKS << 24)),
        ("a child beyond the pool", INTERNAL, values, &long(METADATA_BLOCKS)),
        ("a child beyond everything", INTERNAL, values, &long(u64::MAX)),
        ("a child that is the superblock", INTERNAL, values, &long(0)),
        ("a child that is itself", INTERNAL, values, &long(INTERNAL)),
        ("a later child that is itself", INTERNAL, values + 8, &long(INTERNAL)),
        ("a child that is the parent", INTERNAL, values, &long(7)),
        ("one child twice", INTERNAL, values + 8, &long(LEAF)),
        ("another magic number", 0, 32, &[1]),
        ("more metadata than the device", 0, 192, &long(METADATA_BLOCKS + 1)),
        ("more metadata than any pool", 0, 192, &long(u64::MAX)),
        ("less metadata than is used", 0, 192, &long(3)),
        ("more data blocks than can be counted", 0, 64, &long(u64::MAX)),
        ("less data than is used", 0, 64, &long(3)),
        ("roots beyond the device", 0, 320, &[0xff; 16]),
        ("no block size", 0, 336, &word(0)),
        ("a strange block size", 0, 336, &word(129)),
        ("a huge block size", 0, 336, &word(u32::MAX)),
    ];
    let mut good = Image::new();
    let device = (0..16).map(|key| (key, key)).collect();
    let root = good.device(&device, Shape { leaf: 4, fan_out: 2, loose: false });
    assert_eq!(root, 7);
    good.finish(&BTreeMap::from([(1, (root, 16)), (2, (root, 16))]));
    with(&good, |path| read_all(path).unwrap());
    for (name, block, at, bytes) in lies {
        let mut image = good.clone();
        image.put(*block, *at, bytes);
        let kind = if *block == 0 { BlockKind::Superblock } else { BlockKind::BtreeNode };
        image.seal(*block, kind);
        let error = with(&image, read_all).expect_err(name);
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{name}: {}", error.full_message());
    }
    for (name, at, bytes) in
        [("version", 40, word(1)), ("features", 360, word(2)), ("metadata blocks", 340, word(16))]
    {
        let mut image = good.clone();
        image.put(0, at, &bytes);
        image.seal(0, BlockKind::Superblock);
        assert_eq!(with(&image, read_all).unwrap_err().kind(), ErrorKind::Unsupported, "{name}");
    }
}

#[test]
fn devices_that_contradict_each_other_are_found() {
    let shape = Shape { leaf: 4, fan_out: 2, loose: false };
    let device = (0..16).map(|key| (key, key)).collect();
    let devices: [(u64, u64); 3] = [(1, 15), (1 << 24, 16), (u64::MAX, 16)];
    for (number, count) in devices {
        let mut image = Image::new();
        let root = image.device(&device, shape);
        image.finish(&BTreeMap::from([(number, (root, count))]));
        assert_eq!(with(&image, read_all).unwrap_err().kind(), ErrorKind::Corrupt, "{number}");
    }
}

#[test]
fn a_chain_of_nodes_with_one_child_each_ends() {
    let mut image = Image::new();
    let mut root =
        image.device(&Mapped::from([(0, 0)]), Shape { leaf: 4, fan_out: 2, loose: false });
    for _ in 0..1000 {
        root = image.node(false, &[(0, root.to_le_bytes().to_vec())], 8);
    }
    image.finish(&BTreeMap::from([(1, (root, 1))]));
    assert_eq!(with(&image, read_all).unwrap_err().kind(), ErrorKind::Corrupt);

    let own = image.blocks.len() as u64;
    assert_eq!(image.node(false, &[(0, own.to_le_bytes().to_vec())], 8), own);
    image.finish(&BTreeMap::from([(1, (own, 1))]));
    assert_eq!(with(&image, read_all).unwrap_err().kind(), ErrorKind::Corrupt);
}
