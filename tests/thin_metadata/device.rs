//! Metadata on a block device, which the kernel changes behind the page cache's back.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use holdfast::thin_metadata::Metadata;

use crate::pool::{Pool, Step};
use crate::tools;

struct Loop(PathBuf);

impl Loop {
    fn attach(image: &Path) -> Self {
        let output =
            Command::new("losetup").args(["--find", "--show"]).arg(image).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Self(String::from_utf8(output.stdout).unwrap().trim().into())
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.0).status();
    }
}

#[test]
fn a_device_is_read_as_it_is_and_not_as_it_was() {
    let directories = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let write = Step::Write { device: 0, begin: 5000, length: 300, stride: 1 };
    let histories = [(700, vec![]), (700, vec![write])];
    let [old, new] =
        [0, 1].map(|i| tools::restore(&Pool::after(&histories[i]), directories[i].path()));
    let device = Loop::attach(&old);
    // Whoever has the device open keeps its pages.
    let mut holder = File::open(&device.0).unwrap();
    holder.read_to_end(&mut Vec::new()).unwrap();
    let mapped = || Metadata::open(&device.0).unwrap().devices().unwrap()[0].mapped_blocks;
    assert_eq!(mapped(), 700);

    let mut image = File::options().write(true).open(&old).unwrap();
    image.write_all(&std::fs::read(new).unwrap()).unwrap();
    image.sync_all().unwrap();
    assert_eq!(mapped(), 1000);
    drop(holder);
}
