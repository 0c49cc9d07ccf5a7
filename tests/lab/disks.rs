//! Disks, and what a loss of power leaves on them.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::common::lab::{Lab, in_lab};
use crate::common::{host::checked, wait};

#[test]
fn what_was_synced_survives_a_loss_of_power() {
    let lab = Lab::new();
    let disk = lab.disk(64);
    let host = lab.host("a").disk(&disk).boot();
    let device = host.device(&disk);
    let device = device.to_str().unwrap();
    host.sh(&format!("mkfs.ext4 -q {device}; mkdir /disk; mount {device} /disk"));
    host.sh("echo kept > /disk/kept; sync /disk/kept; echo lost > /disk/lost; touch /run/lost");
    host.lose_power();
    host.boot_again();
    host.sh(&format!("mkdir /disk; mount {device} /disk"));
    assert_eq!(host.run("cat", &["/disk/kept"]), "kept\n");
    assert_ne!(host.command("cat").args(&["/disk/lost"]).output().stdout, "lost\n");
    assert_ne!(host.run("ls", &["/run"]), "lost\n");
}

#[test]
fn a_power_off_leaves_clean_filesystems() {
    let lab = Lab::new();
    let disk = lab.disk(64);
    let host = lab.host("a").disk(&disk).boot();
    let device = host.device(&disk);
    let device = device.to_str().unwrap();
    host.sh(&format!("mkfs.ext4 -q {device}; mkdir /disk; mount {device} /disk"));
    host.sh("echo kept > /disk/kept; cd /disk; sleep 1000 &");
    host.power_off();
    let file = disk.file().to_str().unwrap();
    let state = checked(&mut std::process::Command::new("dumpe2fs"), &["-h", file]);
    assert!(!state.contains("needs_recovery"), "{state}");
    host.boot_again();
    host.sh(&format!("mkdir /disk; mount {device} /disk"));
    assert_eq!(host.run("cat", &["/disk/kept"]), "kept\n");
}

#[test]
fn a_disk_comes_and_goes_while_the_host_runs() {
    let lab = Lab::new();
    let (first, second) = (lab.disk(8), lab.disk(16));
    let host = lab.host("a").disk(&first).boot();
    let device = host.plug_in(&second);
    let device = device.to_str().unwrap();
    assert_eq!(host.run("blockdev", &["--getsize64", device]), format!("{}\n", 16 << 20));
    host.sh(&format!("echo moved | dd of={device} conv=fsync status=none"));
    host.sh(&format!("exec 3< {device}; sleep 1000 & echo $! > /run/user"));
    catch_unwind(AssertUnwindSafe(|| host.unplug(&second))).expect_err("it is open");
    host.sh("kill $(cat /run/user); while [ -e /proc/$(cat /run/user) ]; do sleep 0.1; done");
    host.unplug(&second);
    wait::until_true("the device is gone", || {
        host.command("test").args(&["-e", device]).output().code == 1
    });
    let other = lab.host("b").disk(&second).boot();
    let moved = other.device(&second);
    assert_eq!(other.run("head", &["-c", "6", moved.to_str().unwrap()]), "moved\n");
}

in_lab! {
    on |host| host.modules(&["dm-thin-pool"]).new_disk(64).new_disk(256);
    fn a_thin_pool_can_be_made() {
        let run = |args: &[&str]| checked(&mut std::process::Command::new("dmsetup"), args);
        run(&["create", "pool", "--table", "0 524288 thin-pool /dev/ubda /dev/ubdb 128 0"]);
        run(&["message", "pool", "0", "create_thin 0"]);
        run(&["create", "thin", "--table", "0 2097152 thin /dev/mapper/pool 0"]);
        checked(&mut std::process::Command::new("mkfs.ext4"), &["-q", "/dev/mapper/thin"]);
        assert!(run(&["status", "pool"]).contains("thin-pool"));
    }
}
