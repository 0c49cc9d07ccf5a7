//! Private places for tests: directories and small filesystems that go away with them, also when a
//! test panics.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A directory of its own, with everything that is mounted below it.
#[derive(Debug)]
pub(crate) struct Place {
    directory: tempfile::TempDir,
}

impl Place {
    /// A plain directory on the machine's own disk.
    pub(crate) fn plain() -> Self {
        assert!(
            nix::unistd::geteuid().is_root(),
            "these tests make loop devices: run them as root"
        );
        Self { directory: tempfile::tempdir().unwrap() }
    }

    /// The directory.
    pub(crate) fn path(&self) -> PathBuf {
        // As the kernel shows it.
        self.directory.path().canonicalize().unwrap()
    }

    /// A new filesystem in an image below the place, mounted at `name`.
    pub(crate) fn with_filesystem(&self, name: &str, kind: &str, mebibytes: u64) -> PathBuf {
        let (image, target) = (self.path().join(format!("{name}.image")), self.path().join(name));
        std::fs::File::create(&image).unwrap().set_len(mebibytes << 20).unwrap();
        make_filesystem(kind, &image);
        std::fs::create_dir(&target).unwrap();
        run("mount", &["-o", "loop", path(&image), path(&target)]);
        target
    }

    /// Every mount below the place, the deepest first.
    fn mounts(&self) -> Vec<PathBuf> {
        let below = self.path();
        let text = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let targets = text.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
        let mut targets: Vec<_> = targets.filter(|target| target.starts_with(&below)).collect();
        targets.reverse();
        targets
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // A call that a panic cut off may still mount one more.
        for _ in 0..3 {
            for target in self.mounts() {
                let _ = Command::new("fsfreeze").arg("--unfreeze").arg(&target).output();
                let _ = Command::new("umount").arg("--lazy").arg(&target).output();
            }
        }
    }
}

/// mkfs.btrfs looks at every loop device of the machine, and fails when another test's goes meanwhile.
fn make_filesystem(kind: &str, image: &Path) {
    for _ in 0..50 {
        let mut mkfs = Command::new(format!("mkfs.{kind}"));
        let output = mkfs.args(["-q", path(image)]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        if output.status.success() {
            return;
        }
        assert!(said.contains("mount status"), "mkfs.{kind}: {said}");
    }
    panic!("mkfs.{kind} was disturbed each time");
}

/// Runs a program that has to succeed.
pub(crate) fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{program} {arguments:?}: {said}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A path as an argument.
pub(crate) fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The loop devices whose image lies below a directory, as losetup(8) sees them.
pub(crate) fn loop_devices_below(directory: &Path) -> Vec<String> {
    let list = run("losetup", &["--list", "--noheadings", "--output", "NAME,BACK-FILE"]);
    let of = |line: &str| line.contains(path(directory)).then(|| line.to_owned());
    list.lines().filter_map(of).collect()
}
