//! Runs thin-provisioning-tools, and reads what they say.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use holdfast::thin_metadata::ChangeKind;

use crate::pool::Pool;

/// Room for the metadata of the largest pool here.
const METADATA_SIZE: u64 = 8 << 20;

fn run(program: &str, arguments: &[&str], path: &Path) -> String {
    let output = Command::new(program).args(arguments).arg(path).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

/// Makes the metadata of a pool in a directory.
pub(crate) fn restore(pool: &Pool, directory: &Path) -> PathBuf {
    let (xml, path) = (directory.join("pool.xml"), directory.join("metadata"));
    std::fs::write(&xml, pool.xml()).unwrap();
    std::fs::File::create(&path).unwrap().set_len(METADATA_SIZE).unwrap();
    run("thin_restore", &["-q", "-i", xml.to_str().unwrap(), "-o"], &path);
    path
}

pub(crate) fn check(path: &Path) {
    run("thin_check", &["-q"], path);
}

fn attribute<'a>(line: &'a str, name: &str) -> &'a str {
    let (_, rest) = line.split_once(&format!(" {name}=\"")).unwrap();
    rest.split_once('"').unwrap().0
}

fn number(line: &str, name: &str) -> u64 {
    attribute(line, name).parse().unwrap()
}

/// The mappings of each device.
pub(crate) fn dump(path: &Path) -> BTreeMap<u32, BTreeMap<u64, u64>> {
    let text = run("thin_dump", &[], path);
    let mut devices: BTreeMap<u32, BTreeMap<u64, u64>> = BTreeMap::new();
    let mut device = 0;
    for line in text.lines().map(str::trim) {
        if line.starts_with("<device ") {
            device = u32::try_from(number(line, "dev_id")).unwrap();
            devices.insert(device, BTreeMap::new());
        }
        let mapped = devices.entry(device);
        if line.starts_with("<single_mapping ") {
            mapped.or_default().insert(number(line, "origin_block"), number(line, "data_block"));
        } else if line.starts_with("<range_mapping ") {
            let begins = (number(line, "origin_begin"), number(line, "data_begin"));
            let pairs = (0..number(line, "length")).map(|i| (begins.0 + i, begins.1 + i));
            mapped.or_default().extend(pairs);
        }
    }
    devices
}

/// What differs between two devices, block by block.
pub(crate) fn delta(path: &Path, base: u32, other: u32) -> BTreeMap<u64, ChangeKind> {
    let (base, other) = (base.to_string(), other.to_string());
    let text = run("thin_delta", &["--snap1", &base, "--snap2", &other], path);
    let mut changes = BTreeMap::new();
    for line in text.lines().map(str::trim) {
        let kind = match line.split(' ').next().unwrap() {
            "<left_only" => ChangeKind::Removed,
            "<right_only" => ChangeKind::Added,
            "<different" => ChangeKind::Replaced,
            _ => continue,
        };
        let begin = number(line, "begin");
        changes.extend((begin..begin + number(line, "length")).map(|block| (block, kind)));
    }
    changes
}

/// Of each device: blocks that it has mapped, alone, and with others.
pub(crate) fn usage(path: &Path) -> BTreeMap<u32, [u64; 3]> {
    let fields = "DEV,MAPPED_BLOCKS,EXCLUSIVE_BLOCKS,SHARED_BLOCKS";
    let text = run("thin_ls", &["--no-headers", "-o", fields], path);
    let mut devices = BTreeMap::new();
    for line in text.lines() {
        let numbers: Vec<u64> = line.split_whitespace().map(|n| n.parse().unwrap()).collect();
        devices.insert(u32::try_from(numbers[0]).unwrap(), numbers[1..].try_into().unwrap());
    }
    devices
}
