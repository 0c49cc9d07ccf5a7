//! Snapshots of a volume under a writer that keeps a log and pages, as a database does.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::common::host::Host;
use crate::common::lab::in_lab;
use crate::common::wait;
use crate::helpers::{on_disks, pattern};

const RECORD: usize = 64;
const PAGE: usize = 4096;
const PAGES: u64 = 64;
const SNAPSHOTS: u64 = 6;
/// Records between one snapshot and the next.
const BETWEEN: u64 = 25;

/// The page that a record changes.
fn page_of(counter: u64) -> u64 {
    u64::from_le_bytes(pattern(counter, 8).try_into().unwrap()) % PAGES
}

/// Bytes that say which counter they are of, and prove it.
fn sealed(counter: u64, length: usize) -> Vec<u8> {
    let mut bytes = counter.to_le_bytes().to_vec();
    bytes.extend(pattern(counter, length - 8));
    bytes
}

#[track_caller]
fn opened(bytes: &[u8]) -> u64 {
    let counter = u64::from_le_bytes(bytes[..8].try_into().unwrap());
    assert!(bytes == sealed(counter, bytes.len()), "not whole: {counter}");
    counter
}

/// Appends to the log and flushes it, acknowledges, and changes a page, which is flushed from time to
/// time, until it is told to stop.
fn write(directory: &Path, acknowledged: &AtomicU64, stop: &AtomicBool) {
    let log = File::create(directory.join("log")).unwrap();
    let pages = File::create(directory.join("pages")).unwrap();
    pages.set_len(PAGES * PAGE as u64).unwrap();
    let mut counter = 0;
    while !stop.load(Ordering::Relaxed) {
        counter += 1;
        let place = (counter - 1) * RECORD as u64;
        log.write_all_at(&sealed(counter, RECORD), place).unwrap();
        log.sync_data().unwrap();
        acknowledged.store(counter, Ordering::SeqCst);
        pages.write_all_at(&sealed(counter, PAGE), page_of(counter) * PAGE as u64).unwrap();
        if counter.is_multiple_of(16) {
            pages.sync_data().unwrap();
        }
    }
}

/// All that was acknowledged is in the log, and each page is what the log says.
#[track_caller]
fn assert_consistent(directory: &Path, acknowledged: u64) {
    let log = fs::read(directory.join("log")).unwrap();
    assert!(log.len().is_multiple_of(RECORD), "{}", log.len());
    let last = (log.len() / RECORD) as u64;
    assert!(last >= acknowledged, "{last} of {acknowledged}");
    let mut expected = BTreeMap::new();
    for (record, counter) in log.chunks(RECORD).zip(1..) {
        assert_eq!(opened(record), counter);
        if counter < last {
            expected.insert(page_of(counter), counter);
        }
    }
    let pages = fs::read(directory.join("pages")).unwrap();
    for (page, number) in pages.chunks(PAGE).zip(0..) {
        let expected = expected.get(&number).copied();
        let found = page.iter().any(|byte| *byte != 0).then(|| opened(page));
        // The last record's page may or may not have been changed.
        let of_last = (page_of(last) == number).then_some(last);
        assert!(found == expected || (of_last.is_some() && found == of_last), "page {number}");
    }
}

in_lab! {
    on |host| host.memory(768).modules(&["dm-thin-pool", "xfs"]).new_disk(2048).new_disk(32);
    fn snapshots_under_a_writer_hold_all_that_was_acknowledged() {
        let host = Host::new();
        let mut daemon = on_disks(&host).start(&host);
        let (plugin, cli) = (daemon.plugin(), daemon.cli());
        for filesystem in ["ext4", "xfs"] {
            plugin.create("data", &[("size", "400M"), ("fs", filesystem)]).unwrap();
            let directory = host.inside(plugin.mount("data", "c").unwrap());
            let (acknowledged, stop) = (AtomicU64::new(0), AtomicBool::new(false));
            let before: Vec<u64> = std::thread::scope(|scope| {
                let writer = scope.spawn(|| write(&directory, &acknowledged, &stop));
                let taken = (0..SNAPSHOTS).map(|number| {
                    let from = acknowledged.load(Ordering::SeqCst);
                    wait::until_true("the writer goes on", || {
                        assert!(!writer.is_finished());
                        acknowledged.load(Ordering::SeqCst) >= from + BETWEEN
                    });
                    let before = acknowledged.load(Ordering::SeqCst);
                    cli.ok(&["snapshot", "create", &format!("data@{number}")]);
                    before
                });
                let taken = taken.collect();
                stop.store(true, Ordering::Relaxed);
                taken
            });
            for (acknowledged, number) in before.into_iter().zip(0..) {
                cli.ok(&["volume", "clone", &format!("data@{number}"), "copy"]);
                let copy = host.inside(plugin.mount("copy", "c").unwrap());
                assert_consistent(&copy, acknowledged);
                plugin.unmount("copy", "c").unwrap();
                plugin.remove("copy").unwrap();
            }
            assert_consistent(&directory, acknowledged.load(Ordering::SeqCst));
            plugin.unmount("data", "c").unwrap();
            plugin.remove("data").unwrap();
        }
        daemon.terminate();
    }
}
