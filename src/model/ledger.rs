use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::id::{BootId, MountId};

/// Who holds one volume mounted on this host, and how many times each: Docker mounts and unmounts
/// with the id of a running container while that container still uses the volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountLedger {
    /// The run of the kernel that the mount belongs to; in another run there is no mount.
    pub boot: BootId,
    /// The holders.
    pub entries: BTreeMap<MountId, MountEntry>,
}

/// One holder of a mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountEntry {
    /// Mounts less unmounts; never 0.
    pub count: u32,
    /// Through which face it came.
    pub holder: Holder,
    /// When it mounted last.
    pub last_mounted: Timestamp,
}

/// Through which face a mount came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Holder {
    /// A container: while it runs, the kernel shows its bind mount.
    Container,
    /// A person or program on the host: uses the path itself, which leaves no trace in the kernel.
    Host,
}

impl MountLedger {
    /// A ledger with no holder.
    pub fn new(boot: BootId) -> Self {
        Self { boot, entries: BTreeMap::new() }
    }

    /// Whether nobody holds the mount.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Counts one more mount of `id`.
    pub fn add(&mut self, id: MountId, holder: Holder, now: Timestamp) {
        let entry =
            self.entries.entry(id).or_insert(MountEntry { count: 0, holder, last_mounted: now });
        entry.count = entry.count.saturating_add(1);
        entry.last_mounted = now;
    }

    /// Counts one mount of `id` less; false if `id` holds none.
    pub fn remove(&mut self, id: &MountId) -> bool {
        let Some(entry) = self.entries.get_mut(id) else { return false };
        entry.count -= 1;
        if entry.count == 0 {
            self.entries.remove(id);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rule_04_mount_ids_are_counted_one_by_one() {
        let now = Timestamp::UNIX_EPOCH;
        let (a, b): (MountId, MountId) = ("a".parse().unwrap(), "b".parse().unwrap());
        let mut ledger = MountLedger::new(BootId::from_uuid(uuid::Uuid::nil()));
        ledger.add(a.clone(), Holder::Container, now);
        ledger.add(a.clone(), Holder::Container, now);
        assert!(!ledger.remove(&b), "an unknown id takes nobody else's");
        assert!(ledger.remove(&a));
        assert!(!ledger.is_empty(), "docker cp's unmount leaves the container's mount");
        assert!(ledger.remove(&a));
        assert!(ledger.is_empty());
    }
}
