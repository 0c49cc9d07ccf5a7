//! A host that was booted, driven from outside.

use std::fs;
use std::path::PathBuf;
use std::process::Command as OuterCommand;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use super::Lab;
use super::builder::HostBuilder;
use super::command::Command;
use super::control::{Answer, NoAnswer};
use super::disk::{Disk, Slots};
use super::kernel::Kernel;
use crate::common::host::checked;
use crate::common::wait;

/// A host. It loses its power when it is dropped.
#[derive(Debug)]
pub(crate) struct Host<'l> {
    plan: HostBuilder<'l>,
    disks: Mutex<Slots>,
    /// For requests, over all times that it was booted.
    next_number: AtomicU32,
    kernel: Mutex<Option<Kernel>>,
}

impl<'l> Host<'l> {
    /// The answer is for [`Host::wait_until_up`].
    pub(super) fn power_on(mut plan: HostBuilder<'l>) -> (Self, Answer) {
        let disks = std::mem::take(&mut plan.disks);
        let (kernel, up) = Kernel::start(&plan, &disks);
        let host = Self {
            plan,
            disks: Mutex::new(disks),
            next_number: AtomicU32::new(1),
            kernel: Mutex::new(Some(kernel)),
        };
        (host, up)
    }

    pub(crate) fn name(&self) -> &str {
        &self.plan.name
    }

    /// Its address on the lab's network.
    pub(crate) fn address(&self) -> String {
        self.plan.address()
    }

    pub(super) fn lab(&self) -> &'l Lab {
        self.plan.lab
    }

    /// The device that a disk of this host shows as.
    #[track_caller]
    pub(crate) fn device(&self, disk: &Disk) -> PathBuf {
        self.disks.lock().expect("no panic under this lock").device(disk)
    }

    /// A command that will run in it.
    pub(crate) fn command(&self, program: &str) -> Command<'_> {
        Command::new(self, program)
    }

    /// Runs a command that has to succeed and gives what it printed.
    #[track_caller]
    pub(crate) fn run<S: AsRef<str>>(&self, program: &str, args: &[S]) -> String {
        self.command(program).args(args).checked()
    }

    /// Runs lines of shell that have to succeed, to the last, and gives what they printed.
    #[track_caller]
    pub(crate) fn sh(&self, lines: &str) -> String {
        self.run("bash", &["-euo", "pipefail", "-c", lines])
    }

    /// Puts a disk in while it runs, and gives the device that it shows as.
    #[track_caller]
    pub(crate) fn plug_in(&self, disk: &Disk) -> PathBuf {
        let name = self.disks.lock().expect("no panic under this lock").put(disk);
        self.configure(&["config", &format!("{name}={}", disk.file().display())]);
        self.device(disk)
    }

    /// Takes a disk out while it runs. The kernel refuses while the device is open.
    #[track_caller]
    pub(crate) fn unplug(&self, disk: &Disk) {
        let device = self.device(disk);
        let name = device.file_name().and_then(|name| name.to_str()).expect("UTF-8");
        self.configure(&["remove", name]);
        self.disks.lock().expect("no panic under this lock").take(disk);
    }

    #[track_caller]
    fn configure(&self, request: &[&str]) {
        let socket = self.plan.sockets().join(self.name()).join("mconsole");
        let answer = checked(OuterCommand::new("uml_mconsole").arg(socket), request);
        assert!(answer.trim_end().ends_with("OK"), "{request:?} on {}: {answer}", self.name());
    }

    /// Ends it as a loss of power would: what has not reached its disks is gone.
    pub(crate) fn lose_power(&self) {
        self.kill();
    }

    /// Ends it in good order: all processes, then the mounts of its disks.
    #[track_caller]
    pub(crate) fn power_off(&self) {
        let answer = self.ask("off", self.next_number(), "").wait(wait::LIMIT);
        self.kill();
        let ended = answer == Err(NoAnswer::AsTheHostEnded);
        assert!(ended, "{} did not power off\n{}", self.name(), self.last_words());
    }

    /// Boots an ended host again, with the disks that it has.
    #[track_caller]
    pub(crate) fn boot_again(&self) {
        let (started, up) = {
            let disks = self.disks.lock().expect("no panic under this lock");
            Kernel::start(&self.plan, &disks)
        };
        let before = self.kernel.lock().expect("no panic under this lock").replace(started);
        assert!(before.is_none(), "{} was on", self.name());
        self.wait_until_up(&up);
    }

    #[track_caller]
    pub(super) fn wait_until_up(&self, up: &Answer) {
        if let Err(why) = up.wait(wait::LIMIT) {
            self.kill();
            panic!("{} did not boot ({why:?})\n{}", self.name(), self.last_words());
        }
    }

    pub(super) fn kill(&self) {
        let kernel = self.kernel.lock().expect("no panic under this lock").take();
        if let Some(kernel) = kernel {
            kernel.end();
        }
    }

    pub(super) fn next_number(&self) -> u32 {
        self.next_number.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn job_dir(&self, number: u32) -> PathBuf {
        self.plan.job_dir(number)
    }

    #[track_caller]
    pub(super) fn ask(&self, verb: &str, number: u32, argument: &str) -> Answer {
        let kernel = self.kernel.lock().expect("no panic under this lock");
        let answer = kernel.as_ref().map(|kernel| kernel.ask(verb, number, argument));
        drop(kernel);
        answer.unwrap_or_else(|| panic!("{} is off", self.name()))
    }

    /// The last lines of its console.
    pub(super) fn last_words(&self) -> String {
        let console = fs::read(self.plan.console()).unwrap_or_default();
        let console = String::from_utf8_lossy(&console);
        let lines: Vec<_> = console.lines().collect();
        let last = &lines[lines.len().saturating_sub(30)..];
        format!("--- the last lines on {}'s console\n{}\n---", self.name(), last.join("\n"))
    }
}

impl Drop for Host<'_> {
    fn drop(&mut self) {
        // Who killed it has told this already.
        let on = self.kernel.get_mut().is_ok_and(|kernel| kernel.is_some());
        if on && std::thread::panicking() {
            eprintln!("{}", self.last_words());
        }
        self.kill();
    }
}
