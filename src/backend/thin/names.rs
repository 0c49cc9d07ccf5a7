//! Every device-mapper name and uuid that we give, made here and nowhere else.
//!
//! The uuid proves what a device is. The name is for people, and for the kernel's limit of 127 bytes:
//! the longest, of a volume, has 83.

use crate::backend::Locator;
use crate::id::{PoolUuid, SnapshotUuid, StorageId};
use crate::linux::device_mapper::Identity;

/// What no volume's name begins with.
const SNAPSHOT: &str = "snapshot-";

/// The names of one pool's devices.
#[derive(Debug, Clone, Copy)]
pub(super) struct Names(PoolUuid);

impl Names {
    pub(super) fn new(pool: PoolUuid) -> Self {
        Self(pool)
    }

    pub(super) fn pool_uuid(self) -> PoolUuid {
        self.0
    }

    pub(super) fn storage(self) -> StorageId {
        StorageId::from_uuid(self.0.uuid())
    }

    /// What the uuids of all of the pool's devices begin with.
    pub(super) fn prefix(self) -> String {
        format!("{OURS}{}-", self.0.uuid().simple())
    }

    fn identity(self, what: &str) -> Identity {
        let pool = self.0.uuid().simple().to_string();
        let short: String = pool.chars().take(12).collect();
        Identity { name: format!("holdfast-{short}-{what}"), uuid: format!("{OURS}{pool}-{what}") }
    }

    /// The part of the storage that holds the pool's metadata.
    pub(super) fn metadata(self) -> Identity {
        self.identity("metadata")
    }

    /// The part of the storage that holds the pool's data.
    pub(super) fn data(self) -> Identity {
        self.identity("data")
    }

    /// The pool.
    pub(super) fn pool(self) -> Identity {
        self.identity("pool")
    }

    /// The thin device with our own records.
    pub(super) fn records(self) -> Identity {
        self.identity("records")
    }

    /// The pool's own devices, each before those that it lies on.
    pub(super) fn own(self) -> [Identity; 4] {
        [self.records(), self.pool(), self.data(), self.metadata()]
    }

    /// A volume's generation.
    pub(super) fn volume(self, locator: Locator) -> Identity {
        self.identity(&format!("{}.{}", locator.volume, locator.generation))
    }

    /// A snapshot while it is read.
    pub(super) fn snapshot(self, snapshot: SnapshotUuid) -> Identity {
        self.identity(&format!("{SNAPSHOT}{snapshot}"))
    }

    /// What the uuids of all snapshots that are read begin with.
    pub(super) fn snapshots(self) -> String {
        format!("{}{SNAPSHOT}", self.prefix())
    }
}

/// What the uuid of every device of ours begins with, whatever its pool.
pub(super) const OURS: &str = "HOLDFAST-";

/// Whether a device of ours is this volume's generation, of whatever pool: volumes of all pools have
/// uuids of their own.
pub(super) fn is_volume(device: &Identity, locator: Locator) -> bool {
    device.uuid.ends_with(&format!("-{}.{}", locator.volume, locator.generation))
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::id::{Generation, VolumeUuid};

    #[test]
    fn rule_07_names_differ_and_fit_the_kernels_limits() {
        let names = Names::new(PoolUuid::from_uuid(Uuid::from_u128(7)));
        let volume = VolumeUuid::from_uuid(Uuid::max());
        let locator = |generation| Locator { volume, generation };
        let all = [
            names.metadata(),
            names.data(),
            names.pool(),
            names.records(),
            names.volume(locator(Generation::FIRST)),
            names.volume(locator(Generation::from_number(u64::MAX))),
            names.snapshot(SnapshotUuid::from_uuid(volume.uuid())),
        ];
        for (at, identity) in all.iter().enumerate() {
            assert!(identity.name.len() <= 127 && identity.uuid.len() <= 128, "{identity:?}");
            assert!(identity.uuid.starts_with(&names.prefix()));
            assert!(all[..at].iter().all(|other| other.uuid != identity.uuid));
            assert!(all[..at].iter().all(|other| other.name != identity.name));
        }
        assert!(is_volume(&all[4], locator(Generation::FIRST)));
        assert!(!is_volume(&all[5], locator(Generation::FIRST)));
        assert!(!is_volume(&all[2], locator(Generation::FIRST)));
        assert!(!is_volume(&all[6], locator(Generation::FIRST)));
        let snapshots = all.iter().filter(|one| one.uuid.starts_with(&names.snapshots()));
        assert!(snapshots.eq([&all[6]]));
        let other = Names::new(PoolUuid::from_uuid(Uuid::from_u128(8)));
        assert!(!other.pool().uuid.starts_with(&names.prefix()));
    }
}
