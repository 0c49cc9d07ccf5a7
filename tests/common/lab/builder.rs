//! What a host is to be like.

use std::fs;
use std::path::PathBuf;

use super::Lab;
use super::disk::{Disk, Slots};
use super::host::Host;

/// What a host has if nothing else is asked for.
const MEMORY_MIB: u32 = 512;

/// A host that is yet to be booted.
#[derive(Debug, Clone)]
pub(crate) struct HostBuilder<'l> {
    pub(super) lab: &'l Lab,
    pub(super) name: String,
    pub(super) number: u8,
    pub(super) memory_mib: u32,
    pub(super) modules: Vec<String>,
    pub(super) containers: bool,
    pub(super) disks: Slots,
}

impl<'l> HostBuilder<'l> {
    #[track_caller]
    pub(super) fn new(lab: &'l Lab, name: &str, number: u8) -> Self {
        fs::create_dir(lab.dir().join(name)).expect("no other host has this name");
        if let Some(network) = &lab.network {
            network.add_port(number);
        }
        Self {
            lab,
            name: name.to_owned(),
            number,
            memory_mib: MEMORY_MIB,
            modules: Vec::new(),
            containers: false,
            disks: Slots::default(),
        }
    }

    /// Memory, of which the machine gives only what is used.
    pub(crate) fn memory(mut self, mebibytes: u32) -> Self {
        self.memory_mib = mebibytes;
        self
    }

    /// Kernel modules to load.
    pub(crate) fn modules(mut self, modules: &[&str]) -> Self {
        self.modules.extend(modules.iter().map(|&module| module.to_owned()));
        self
    }

    /// What a Docker Engine needs of its host.
    pub(crate) fn containers(mut self) -> Self {
        self.containers = true;
        self
    }

    /// A disk that is there from the start.
    #[track_caller]
    pub(crate) fn disk(mut self, disk: &Disk) -> Self {
        self.disks.put(disk);
        self
    }

    /// A new disk that is there from the start.
    #[track_caller]
    pub(crate) fn new_disk(self, mebibytes: u64) -> Self {
        let disk = self.lab.disk(mebibytes);
        self.disk(&disk)
    }

    /// Boots it and waits until it is up.
    #[track_caller]
    pub(crate) fn boot(self) -> Host<'l> {
        let (host, up) = Host::power_on(self);
        host.wait_until_up(&up);
        host
    }

    pub(super) fn address(&self) -> String {
        format!("10.77.0.{}", self.number)
    }

    pub(super) fn console(&self) -> PathBuf {
        self.lab.dir().join(format!("{}.console", self.name))
    }

    /// Where the kernel has its sockets; each host has a directory in it.
    pub(super) fn sockets(&self) -> PathBuf {
        self.lab.dir().join("sockets")
    }
    /// Where the files of a job are, outside.
    pub(super) fn job_dir(&self, number: u32) -> PathBuf {
        self.lab.dir().join(&self.name).join(number.to_string())
    }
}
