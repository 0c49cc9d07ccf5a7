//! Metadata with flipped bytes or a missing end gives an answer or an error, and gives it soon.

use std::path::Path;

use holdfast::error::{ErrorKind, Result};
use holdfast::thin_metadata::Metadata;
use proptest::prelude::*;
use proptest::sample::Index;

use crate::nodes::{BLOCK, Nodes};
use crate::pool::{Pool, history};
use crate::tools;

/// Asks everything that there is to ask, and no more of each answer than a sound pool can have.
fn read_all(path: &Path, most: usize) -> Result<()> {
    let metadata = Metadata::open(path)?;
    let devices = metadata.devices()?;
    for pair in devices.windows(2) {
        let mappings = metadata.mappings(pair[0].id)?.take(most + 1);
        let changes = metadata.changes(pair[0].id, pair[1].id)?.take(most + 1);
        assert!(mappings.map(|run| run.map(|_| 1)).sum::<Result<usize>>()? <= most);
        assert!(changes.map(|run| run.map(|_| 1)).sum::<Result<usize>>()? <= most);
    }
    metadata.usage()?;
    Ok(())
}

#[derive(Debug, Clone)]
struct Flip {
    node: Index,
    /// Where in the node: mostly in its header and its first entries.
    at: usize,
    value: u8,
    seal: bool,
}

fn flip() -> impl Strategy<Value = Flip> {
    let at = prop_oneof![3 => 4..32usize, 2 => 32..120usize, 2 => 2064..2200usize, 1 => 0..BLOCK];
    let value = prop_oneof![Just(0), Just(1), Just(2), Just(0xff), any::<u8>()];
    (any::<Index>(), at, value, prop::bool::weighted(0.9))
        .prop_map(|(node, at, value, seal)| Flip { node, at, value, seal })
}

/// Many cases on one pool: to make one takes longer than to read it.
fn campaign(pool: &Pool, flips: &[(Vec<Flip>, Option<Index>)]) {
    let directory = tempfile::tempdir().unwrap();
    let path = tools::restore(pool, directory.path());
    let mut good = std::fs::read(&path).unwrap();
    let mut nodes = Nodes { bytes: &mut good };
    nodes.share();
    let [mapping_root, details_root] = nodes.roots();
    let mut used = vec![0, details_root];
    used.extend(nodes.all(mapping_root, 2));
    used.sort_unstable();
    used.dedup();
    let most = used.len() * (BLOCK / 16);
    std::fs::write(&path, &good).unwrap();
    read_all(&path, most).unwrap();
    for (flips, cut) in flips {
        let mut bytes = good.clone();
        for flip in flips {
            let node = used[flip.node.index(used.len())];
            let mut nodes = Nodes { bytes: &mut bytes };
            nodes.block(node)[flip.at] = flip.value;
            if flip.seal {
                nodes.seal(node);
            }
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        std::fs::write(&path, &bytes).unwrap();
        if let Err(error) = read_all(&path, most) {
            let kind = error.kind();
            // A device whose id was changed is not found.
            let fitting =
                matches!(kind, ErrorKind::Corrupt | ErrorKind::Unsupported | ErrorKind::NotFound);
            assert!(fitting, "{}", error.full_message());
        }
    }
}

proptest! {
    #![proptest_config(crate::cases(2))]

    #[test]
    fn damaged_metadata_is_refused_or_read_but_never_believed_for_long(
        history in history(),
        flips in prop::collection::vec(
            (prop::collection::vec(flip(), 1..4), prop::option::weighted(0.1, any::<Index>())),
            100,
        ),
    ) {
        campaign(&Pool::after(&history), &flips);
    }
}
