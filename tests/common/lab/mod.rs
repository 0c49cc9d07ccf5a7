//! The lab: throwaway hosts that are User-Mode Linux, each with a kernel, disks and an address of its
//! own. It is for what this machine's kernel lacks, and for what must not happen to this machine:
//! device-mapper, disks that come and go, several nodes, loss of power. `docs/lab.md` tells how to
//! write a test.

mod builder;
mod command;
mod control;
mod disk;
mod engine;
mod host;
mod inside;
mod kernel;
mod network;

use std::path::{Path, PathBuf};
use std::process::Command as OuterCommand;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Condvar, Mutex};

use tempfile::TempDir;

use super::host::checked;
use network::Network;

pub(crate) use builder::HostBuilder;
pub(crate) use command::Command;
pub(crate) use disk::Disk;
pub(crate) use engine::Engine;
pub(crate) use host::Host;
pub(crate) use inside::{assert_inside, in_lab, is_inside, run_inside};

/// Where every host of a lab has the lab's directory.
pub(crate) const SHARE: &str = "/share";

/// A directory and, if wanted, a network, for some hosts of one test.
#[derive(Debug)]
pub(crate) struct Lab {
    dir: TempDir,
    network: Option<Network>,
    next_host: AtomicU8,
    next_disk: AtomicU8,
    _place: Place,
}

impl Lab {
    /// A lab whose hosts have no network: they boot a little faster.
    pub(crate) fn new() -> Self {
        Self::build(false)
    }

    /// A lab whose hosts reach each other over a bridge that nothing else is on.
    pub(crate) fn with_network() -> Self {
        Self::build(true)
    }

    fn build(network: bool) -> Self {
        let place = Place::take();
        let dir = tempfile::Builder::new().prefix("holdfast-lab-").tempdir().expect("temp dir");
        let lab = Self {
            network: network.then(Network::new),
            next_host: AtomicU8::new(1),
            next_disk: AtomicU8::new(1),
            _place: place,
            dir,
        };
        let source = source("xstate.c");
        checked(
            OuterCommand::new("cc").args(["-O2", "-shared", "-fPIC", "-o"]),
            &[text(&lab.xstate()), text(&source)],
        );
        lab
    }

    /// The lab's directory, which is [`SHARE`] in every host.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// A host that is yet to be described and booted.
    pub(crate) fn host(&self, name: &str) -> HostBuilder<'_> {
        HostBuilder::new(self, name, self.next_host.fetch_add(1, Ordering::Relaxed))
    }

    /// Boots hosts side by side, which takes little longer than one.
    #[track_caller]
    pub(crate) fn boot<'l, const N: usize>(&self, hosts: [HostBuilder<'l>; N]) -> [Host<'l>; N] {
        hosts.map(Host::power_on).map(|(host, up)| {
            host.wait_until_up(&up);
            host
        })
    }

    /// A new disk, all zeros, in no host yet. It takes no more room than what is written to it.
    pub(crate) fn disk(&self, mebibytes: u64) -> Disk {
        let number = self.next_disk.fetch_add(1, Ordering::Relaxed);
        Disk::new(self.dir().join(format!("disk{number}")), mebibytes)
    }

    /// What is preloaded into the hosts' kernels.
    fn xstate(&self) -> PathBuf {
        self.dir().join("xstate.so")
    }
}

/// A file beside this one.
fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/common/lab").join(name)
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// How many labs one test process has at once. Other processes are held back by `.config/nextest.toml`.
/// A test has one lab, so that tests which hold one never wait for each other.
const PLACES: usize = 2;

static TAKEN: Mutex<usize> = Mutex::new(0);
static FREED: Condvar = Condvar::new();

#[derive(Debug)]
struct Place;

impl Place {
    fn take() -> Self {
        let taken = TAKEN.lock().expect("no panic under this lock");
        let full = |taken: &mut usize| *taken == PLACES;
        *FREED.wait_while(taken, full).expect("no panic under this lock") += 1;
        Self
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        *TAKEN.lock().expect("no panic under this lock") -= 1;
        FREED.notify_one();
    }
}
