//! Nothing outlives its test.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::common::lab::Lab;
use crate::common::wait;

/// Has the test below boot a host and keep it.
const KEEP: &str = "HOLDFAST_LAB_KEEP";

/// The processes, the calling one aside, whose command line names `dir`.
fn processes_of(dir: &Path) -> Vec<String> {
    let own = std::process::id().to_string();
    let command_line = |pid: PathBuf| {
        let bytes = fs::read(pid.join("cmdline")).ok()?;
        Some(String::from_utf8_lossy(&bytes).replace('\0', " "))
    };
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let others = processes.filter(|entry| entry.file_name().to_str() != Some(&own));
    let lines = others.filter_map(|entry| command_line(entry.path()));
    lines.filter(|line| line.contains(dir.to_str().unwrap())).collect()
}

/// The processes in a network namespace.
fn processes_in(namespace: &Path) -> Vec<PathBuf> {
    let processes = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    processes
        .filter(|process| fs::read_link(process.join("ns/net")).is_ok_and(|net| net == namespace))
        .collect()
}

/// The files behind kernels' memory; those in use are in no directory.
fn memory_files() -> Vec<PathBuf> {
    let dirs = [std::env::temp_dir(), "/dev/shm".into(), "/tmp".into()];
    let files = dirs.iter().flat_map(|dir| fs::read_dir(dir).into_iter().flatten().flatten());
    files
        .map(|file| file.path())
        .filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("vm_file"))
        .collect()
}

/// The network namespace of a host of the lab in `dir`.
fn network_of(dir: &Path) -> PathBuf {
    let dir = dir.to_str().unwrap();
    let processes = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    let of_host = |process: &PathBuf| {
        let words = fs::read(process.join("cmdline")).unwrap_or_default();
        let words = String::from_utf8_lossy(&words).into_owned();
        words.starts_with("linux.uml") && words.contains(dir)
    };
    let process = processes.into_iter().find(of_host).expect("a kernel");
    fs::read_link(process.join("ns/net")).unwrap()
}

#[test]
fn a_dropped_lab_leaves_nothing() {
    let lab = Lab::with_network();
    let dir = lab.dir().to_owned();
    let host = lab.host("a").boot();
    host.sh("sleep 1000 & sleep 1000 &");
    let network = network_of(&dir);
    assert!(!processes_of(&dir).is_empty());
    drop(host);
    assert_eq!(processes_of(&dir), [""; 0]);
    drop(lab);
    assert_eq!(processes_in(&network), [""; 0].map(PathBuf::from));
    assert!(!dir.exists());
    // Those of other tests' kernels show for a moment.
    wait::until_true("no file is left in memory", || memory_files().is_empty());
}

#[test]
fn a_killed_test_leaves_no_host() {
    if std::env::var_os(KEEP).is_some() {
        let lab = Lab::with_network();
        let host = lab.host("a").boot();
        println!("dir {}", lab.dir().display());
        host.command("sleep").args(&["1000"]).output();
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let test = "endings::a_killed_test_leaves_no_host";
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(KEEP, "1")
        .env("TMPDIR", place.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let dir = lines.into_iter().find_map(|line| Some(PathBuf::from(line.split_once("dir ")?.1)));
    let dir = dir.expect("the lab's directory");
    let network = network_of(&dir);
    kill(Pid::from_raw(child.id().try_into().unwrap()), Signal::SIGKILL).unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(9));
    wait::until_true("the host is gone", || processes_of(&dir).is_empty());
    wait::until_true("the network is gone", || processes_in(&network).is_empty());
}
