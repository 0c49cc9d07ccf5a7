use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::Change;
use crate::id::{OperationId, SnapshotUuid, StorageId, VolumeUuid};
use crate::model::{
    ActiveSchedule, MountLedger, Operation, RunKind, RunOutcome, RunResult, Runs, Snapshot, Volume,
};
use crate::name::{BackendName, SnapshotName, VolumeName};

/// The records as they are on disk.
#[derive(Debug, Default)]
pub struct State {
    volumes: HashMap<VolumeUuid, Arc<Volume>>,
    names: BTreeMap<VolumeName, VolumeUuid>,
    snapshots: HashMap<VolumeUuid, Vec<Arc<Snapshot>>>,
    ledgers: HashMap<VolumeUuid, Arc<MountLedger>>,
    operations: BTreeMap<OperationId, Arc<Operation>>,
    storages: BTreeMap<BackendName, StorageId>,
    schedules: HashMap<VolumeUuid, Arc<ActiveSchedule>>,
    runs: HashMap<VolumeUuid, BTreeMap<RunKind, Runs>>,
}

impl State {
    /// The volume that holds `name`, in whatever state.
    pub fn named(&self, name: &VolumeName) -> Option<&Arc<Volume>> {
        self.volumes.get(self.names.get(name)?)
    }

    /// The volume with this uuid.
    pub fn volume(&self, uuid: VolumeUuid) -> Option<&Arc<Volume>> {
        self.volumes.get(&uuid)
    }

    /// All volumes that hold a name, in the order of their names.
    pub fn named_volumes(&self) -> impl Iterator<Item = &Arc<Volume>> {
        self.names.values().filter_map(|uuid| self.volumes.get(uuid))
    }

    /// All volumes, in no order.
    pub fn volumes(&self) -> impl Iterator<Item = &Arc<Volume>> {
        self.volumes.values()
    }

    /// The snapshots of a volume, oldest first.
    pub fn snapshots(&self, volume: VolumeUuid) -> &[Arc<Snapshot>] {
        self.snapshots.get(&volume).map_or(&[], Vec::as_slice)
    }

    /// A volume's snapshot of this name.
    pub fn snapshot(&self, volume: VolumeUuid, name: &SnapshotName) -> Option<&Arc<Snapshot>> {
        self.snapshots(volume).iter().find(|snapshot| snapshot.name == *name)
    }

    /// Who holds the volume mounted.
    pub fn ledger(&self, volume: VolumeUuid) -> Option<&Arc<MountLedger>> {
        self.ledgers.get(&volume)
    }

    /// All ledgers, in no order.
    pub fn ledgers(&self) -> impl Iterator<Item = (VolumeUuid, &Arc<MountLedger>)> {
        self.ledgers.iter().map(|(uuid, ledger)| (*uuid, ledger))
    }

    /// All unfinished operations.
    pub fn operations(&self) -> impl Iterator<Item = &Arc<Operation>> {
        self.operations.values()
    }

    /// The storage that the backend's volumes lie on, once it was recorded.
    pub fn storage(&self, backend: &BackendName) -> Option<StorageId> {
        self.storages.get(backend).copied()
    }

    /// The volume's schedule, if it has one.
    pub fn schedule(&self, volume: VolumeUuid) -> Option<&Arc<ActiveSchedule>> {
        self.schedules.get(&volume)
    }

    /// All schedules with their volumes, in no order.
    pub fn schedules(&self) -> impl Iterator<Item = (&Arc<Volume>, &Arc<ActiveSchedule>)> {
        self.schedules
            .iter()
            .filter_map(|(uuid, schedule)| Some((self.volumes.get(uuid)?, schedule)))
    }

    /// The last runs of this kind of the volume's schedule.
    pub fn runs(&self, volume: VolumeUuid, kind: RunKind) -> Option<&Runs> {
        self.runs.get(&volume)?.get(&kind)
    }

    pub(super) fn name_holder(&self, name: &VolumeName) -> Option<VolumeUuid> {
        self.names.get(name).copied()
    }

    pub(super) fn snapshot_volume(&self, snapshot: SnapshotUuid) -> Option<VolumeUuid> {
        self.snapshots
            .iter()
            .find(|(_, list)| list.iter().any(|one| one.uuid == snapshot))
            .map(|(volume, _)| *volume)
    }

    pub(super) fn apply(&mut self, change: Change) {
        match change {
            Change::PutVolume(volume) => {
                if let Some(before) = self.volumes.get(&volume.uuid)
                    && self.names.get(&before.name) == Some(&volume.uuid)
                {
                    self.names.remove(&before.name);
                }
                if volume.holds_name() {
                    self.names.insert(volume.name.clone(), volume.uuid);
                }
                self.volumes.insert(volume.uuid, Arc::new(*volume));
            }
            Change::RemoveVolume(uuid) => {
                if let Some(volume) = self.volumes.remove(&uuid)
                    && self.names.get(&volume.name) == Some(&uuid)
                {
                    self.names.remove(&volume.name);
                }
                self.snapshots.remove(&uuid);
                self.ledgers.remove(&uuid);
                self.schedules.remove(&uuid);
                self.runs.remove(&uuid);
            }
            Change::PutSnapshot(snapshot) => {
                let list = self.snapshots.entry(snapshot.volume).or_default();
                match list.iter_mut().find(|one| one.uuid == snapshot.uuid) {
                    Some(one) => *one = Arc::new(*snapshot),
                    None => {
                        list.push(Arc::new(*snapshot));
                        // Whole seconds tie; names settle it the same way at each start.
                        list.sort_by(|a, b| (a.created, &a.name).cmp(&(b.created, &b.name)));
                    }
                }
            }
            Change::RemoveSnapshot(uuid) => {
                if let Some(volume) = self.snapshot_volume(uuid)
                    && let Some(list) = self.snapshots.get_mut(&volume)
                {
                    list.retain(|one| one.uuid != uuid);
                    if list.is_empty() {
                        self.snapshots.remove(&volume);
                    }
                }
            }
            Change::PutLedger(uuid, ledger) => {
                if ledger.is_empty() {
                    self.ledgers.remove(&uuid);
                } else {
                    self.ledgers.insert(uuid, Arc::new(ledger));
                }
            }
            Change::PutOperation(operation) => {
                self.operations.insert(operation.id, Arc::new(*operation));
            }
            Change::RemoveOperation(id) => {
                self.operations.remove(&id);
            }
            Change::PutStorage(backend, storage) => {
                self.storages.insert(backend, storage);
            }
            Change::PutSchedule(uuid, schedule) => {
                self.schedules.insert(uuid, Arc::new(*schedule));
            }
            Change::RemoveSchedule(uuid) => {
                self.schedules.remove(&uuid);
            }
            Change::PutRun(uuid, result) => self.put_run(uuid, *result),
        }
    }

    fn put_run(&mut self, volume: VolumeUuid, result: RunResult) {
        let kinds = self.runs.entry(volume).or_default();
        let before = kinds.remove(&result.kind).and_then(|runs| runs.good);
        let good = match result.outcome {
            RunOutcome::Done(_) => Some(result.clone()),
            RunOutcome::Failed(_) => before,
        };
        kinds.insert(result.kind, Runs { last: result, good });
    }
}
