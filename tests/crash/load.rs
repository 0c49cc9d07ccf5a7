//! Kills that hit whatever is being done, under load.

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use crate::common::daemon::Launch;
use crate::common::host::Host;
use crate::common::plugin::PluginClient;
use crate::common::wait;

const WORKERS: usize = 4;
const KILLS: u64 = 10;

struct Load {
    plugin: PluginClient,
    over: AtomicBool,
    rounds: AtomicU64,
}

/// Ends the load when the test ends, a failing one too.
struct EndOf<'l>(&'l Load);

impl Drop for EndOf<'_> {
    fn drop(&mut self) {
        self.0.over.store(true, Ordering::Relaxed);
    }
}

impl Load {
    /// Each worker has one volume that it comes back to, copies of it, and one that comes and goes.
    fn work(&self, host: &Host, worker: usize) {
        let mut written = 0;
        while !self.over.load(Ordering::Relaxed) {
            // A daemon that is down does nothing; it is asked again.
            if self.round(host, worker, &mut written).is_ok() {
                self.rounds.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    fn round(&self, host: &Host, worker: usize, written: &mut u64) -> Result<(), String> {
        let plugin = &self.plugin;
        let (kept, fleeting) = (format!("kept-{worker}"), format!("fleeting-{worker}"));
        plugin.create(&kept, &[("size", "64M")])?;
        let file = host.inside(plugin.mount(&kept, "worker")?.join("file"));
        let found = fs::read_to_string(&file).unwrap_or_else(|_| "0".to_owned());
        assert_eq!(found, written.to_string(), "{kept} has lost what was written");
        *written += 1;
        fs::write(&file, written.to_string()).expect("write");
        let copy = format!("copy-{worker}-{written}");
        plugin.create(&copy, &[("clone-of", &kept)])?;
        let file = host.inside(plugin.mount(&copy, "worker")?.join("file"));
        let found = fs::read_to_string(&file).unwrap_or_default();
        assert_eq!(found, written.to_string(), "{copy} is no copy of {kept}");
        plugin.unmount(&copy, "worker")?;
        plugin.remove(&copy)?;
        plugin.unmount(&kept, "worker")?;
        plugin.create(&fleeting, &[("size", "64M")])?;
        plugin.mount(&fleeting, "worker")?;
        plugin.unmount(&fleeting, "worker")?;
        plugin.remove(&fleeting)
    }
}

#[test]
fn a_daemon_killed_again_and_again_under_load_loses_and_leaks_nothing() {
    let host = Host::new();
    let mut daemon = Launch::new(&host).short_grace().start(&host);
    let load =
        Load { plugin: daemon.plugin(), over: AtomicBool::new(false), rounds: AtomicU64::new(0) };
    thread::scope(|scope| {
        let _end = EndOf(&load);
        for worker in 0..WORKERS {
            let (load, host) = (&load, &host);
            scope.spawn(move || load.work(host, worker));
        }
        for kill in 0..KILLS {
            let before = load.rounds.load(Ordering::Relaxed);
            wait::until_true("the workers go on", || {
                load.rounds.load(Ordering::Relaxed) > before + kill % 3
            });
            daemon.kill_and_start_again();
        }
    });
    let mut kept = daemon.plugin().list();
    kept.retain(|name| name.starts_with("kept-"));
    assert_eq!(kept.len(), WORKERS);
    crate::driver::remove_all_but(&[], &daemon, &host);
    crate::driver::assert_only(&crate::LOOP, &daemon, &host, &[]);
}
