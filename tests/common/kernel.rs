//! What the kernel and the disk say. Loop devices belong to the whole machine, so only those are
//! looked at whose backing file lies in the asking test's directory.

use std::fs;
use std::path::{Path, PathBuf};

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Loop {
    pub(crate) device: PathBuf,
    pub(crate) backing_file: PathBuf,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mount {
    pub(crate) target: PathBuf,
    pub(crate) source: String,
    pub(crate) filesystem: String,
    pub(crate) options: Vec<String>,
}

/// The loop devices on files below `dir`, deleted ones included.
pub(crate) fn loops_under(dir: &Path) -> Vec<Loop> {
    let entries = fs::read_dir("/sys/block").expect("/sys/block").flatten();
    let mut loops: Vec<_> = entries
        .filter_map(|entry| {
            let backing = fs::read_to_string(entry.path().join("loop/backing_file")).ok()?;
            let backing_file = PathBuf::from(backing.trim_end());
            let device = Path::new("/dev").join(entry.file_name());
            backing_file.starts_with(dir).then_some(Loop { device, backing_file })
        })
        .collect();
    loops.sort_by(|a, b| a.device.cmp(&b.device));
    loops
}

/// The mounts below `dir` in the mount namespace of `pid`.
pub(crate) fn mounts_under(pid: i32, dir: &Path) -> Vec<Mount> {
    let table = fs::read_to_string(format!("/proc/{pid}/mountinfo")).expect("mountinfo");
    table.lines().map(parse_mount).filter(|mount| mount.target.starts_with(dir)).collect()
}

/// `36 35 98:0 /root /target rw,noatime shared:1 - ext4 /dev/root rw,errors=continue`
fn parse_mount(line: &str) -> Mount {
    let (left, right) = line.split_once(" - ").expect("a line of mountinfo");
    let left: Vec<_> = left.split(' ').collect();
    let right: Vec<_> = right.split(' ').collect();
    let options = left[5].split(',').chain(right[2].split(',')).map(str::to_owned).collect();
    Mount {
        target: PathBuf::from(left[4]),
        source: right[1].to_owned(),
        filesystem: right[0].to_owned(),
        options,
    }
}

/// The names in `dir`, sorted; none if there is no such directory.
pub(crate) fn names_in(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<_> =
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// Every file below `dir`, directories not; none if there is no such directory.
pub(crate) fn files_under(dir: &Path) -> Vec<PathBuf> {
    let (mut files, mut left) = (Vec::new(), vec![dir.to_owned()]);
    while let Some(dir) = left.pop() {
        for path in names_in(&dir).into_iter().map(|name| dir.join(name)) {
            let is_dir = path.symlink_metadata().is_ok_and(|metadata| metadata.is_dir());
            if is_dir { left.push(path) } else { files.push(path) }
        }
    }
    files.sort();
    files
}
