//! Random pools: devices that were written, discarded and snapshotted, as the kernel would do it.

use std::collections::BTreeMap;
use std::fmt::Write;

use proptest::prelude::*;

pub(crate) const DATA_BLOCKS: u64 = 1 << 18;

#[derive(Debug, Clone, Default)]
pub(crate) struct Device {
    /// Thin blocks: where they lie, and the pool's time when they were written.
    pub mapped: BTreeMap<u64, (u64, u32)>,
    pub transaction: u64,
    pub created: u32,
    pub snapshotted: u32,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Pool {
    pub devices: BTreeMap<u32, Device>,
    pub time: u32,
    next_data_block: u64,
}

#[derive(Debug, Clone)]
pub(crate) enum Step {
    /// Write every `stride`th block of a range.
    Write {
        device: usize,
        begin: u64,
        length: u64,
        stride: u64,
    },
    Discard {
        device: usize,
        begin: u64,
        length: u64,
    },
    Snapshot {
        device: usize,
        id: u32,
    },
    Create {
        id: u32,
    },
    Delete {
        device: usize,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let place = || prop_oneof![8 => 0..6000u64, 1 => (1u64 << 44)..(1 << 44) + 100];
    let id = || prop_oneof![4 => 0..9u32, 1 => (1u32 << 24) - 3..1 << 24];
    let length = || prop_oneof![1..10u64, 1..1500u64];
    prop_oneof![
        6 => (0..8usize, place(), length(), prop_oneof![4 => Just(1u64), 1 => 2..4u64])
            .prop_map(|(device, begin, length, stride)| Step::Write { device, begin, length, stride }),
        2 => (0..8usize, place(), length())
            .prop_map(|(device, begin, length)| Step::Discard { device, begin, length }),
        4 => (0..8usize, id()).prop_map(|(device, id)| Step::Snapshot { device, id }),
        1 => id().prop_map(|id| Step::Create { id }),
        1 => (0..8usize).prop_map(|device| Step::Delete { device }),
    ]
}

/// What happens to a pool: the size of its first device, and what follows.
pub(crate) type History = (u64, Vec<Step>);

pub(crate) fn history() -> impl Strategy<Value = History> {
    (1..4000u64, prop::collection::vec(step(), 0..14))
}

impl Pool {
    pub(crate) fn after((length, steps): &History) -> Self {
        let mut pool = Self::default();
        pool.apply(&Step::Create { id: 1 });
        pool.apply(&Step::Write { device: 0, begin: 0, length: *length, stride: 1 });
        steps.iter().for_each(|step| pool.apply(step));
        pool
    }

    fn nth(&self, n: usize) -> Option<u32> {
        self.devices.keys().nth(n % self.devices.len().max(1)).copied()
    }

    fn apply(&mut self, step: &Step) {
        match *step {
            Step::Write { device, begin, length, stride } => {
                let Some(id) = self.nth(device) else { return };
                let device = self.devices.get_mut(&id).unwrap();
                for block in (begin..begin + length).step_by(usize::try_from(stride).unwrap()) {
                    // What was written since the last snapshot is overwritten in place.
                    let own = device.mapped.get(&block).filter(|old| old.1 >= device.snapshotted);
                    if own.is_none() && self.next_data_block < DATA_BLOCKS {
                        device.mapped.insert(block, (self.next_data_block, self.time));
                        self.next_data_block += 1;
                    }
                }
            }
            Step::Discard { device, begin, length } => {
                let Some(id) = self.nth(device) else { return };
                let device = self.devices.get_mut(&id).unwrap();
                device.mapped.retain(|block, _| !(begin..begin + length).contains(block));
            }
            Step::Snapshot { device, id } => {
                let Some(origin) = self.nth(device) else { return };
                if self.devices.contains_key(&id) {
                    return;
                }
                self.time += 1;
                self.devices.get_mut(&origin).unwrap().snapshotted = self.time;
                let copy = self.devices[&origin].clone();
                let transaction = u64::from(self.time) * 10;
                self.devices.insert(id, Device { transaction, created: self.time, ..copy });
            }
            Step::Create { id } => {
                let fresh =
                    Device { created: self.time, snapshotted: self.time, ..Device::default() };
                self.devices.entry(id).or_insert(fresh);
            }
            Step::Delete { device } => {
                let Some(id) = self.nth(device).filter(|_| self.devices.len() > 1) else { return };
                self.devices.remove(&id);
            }
        }
    }

    /// What `thin_restore` makes this pool from.
    pub(crate) fn xml(&self) -> String {
        let mut xml = format!(
            "<superblock uuid=\"\" time=\"{}\" transaction=\"77\" flags=\"0\" version=\"2\" \
             data_block_size=\"128\" nr_data_blocks=\"{DATA_BLOCKS}\">\n",
            self.time
        );
        for (id, device) in &self.devices {
            let Device { mapped, transaction, created, snapshotted } = device;
            writeln!(
                xml,
                "<device dev_id=\"{id}\" mapped_blocks=\"{}\" transaction=\"{transaction}\" \
                 creation_time=\"{created}\" snap_time=\"{snapshotted}\">",
                mapped.len()
            )
            .unwrap();
            for (block, (data, time)) in mapped {
                writeln!(
                    xml,
                    "<single_mapping origin_block=\"{block}\" data_block=\"{data}\" time=\"{time}\"/>"
                )
                .unwrap();
            }
            xml.push_str("</device>\n");
        }
        xml + "</superblock>\n"
    }
}
