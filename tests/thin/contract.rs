//! What every backend promises, of the thin backend.

use crate::common::lab::Lab;

/// Runs the contract's tests for one filesystem in a host.
#[track_caller]
fn keeps_the_contract(filesystem: &str) {
    let lab = Lab::new();
    let modules = ["dm-thin-pool", "loop", "xfs", "btrfs"];
    let host = lab.host("a").memory(6144).modules(&modules).boot();
    host.run_tests(&format!("contract::in_lab::{filesystem}::"));
}

#[test]
fn ext4_volumes_keep_the_contract() {
    keeps_the_contract("ext4");
}

#[test]
fn xfs_volumes_keep_the_contract() {
    keeps_the_contract("xfs");
}

#[test]
fn btrfs_volumes_keep_the_contract() {
    keeps_the_contract("btrfs");
}

mod in_lab {
    use std::os::unix::fs::FileExt;
    use std::path::Path;
    use std::sync::Arc;

    use async_trait::async_trait;
    use holdfast::backend::contract::{RawContent, Trial};
    use holdfast::backend::thin::ThinBackend;
    use holdfast::backend::{Backend, Expected};
    use holdfast::clock::System;
    use holdfast::linux::LinuxHost;
    use holdfast::options::FilesystemKind;
    use holdfast::units::ByteSize;

    use crate::common::lab::assert_inside;
    use crate::helpers::backend_config;

    /// A directory with a pool in it, which ends before its files do.
    struct Place {
        backend: Arc<ThinBackend>,
        _directory: tempfile::TempDir,
    }

    impl Drop for Place {
        fn drop(&mut self) {
            let stopped = tokio::task::block_in_place(|| {
                tokio::runtime::Handle::current().block_on(self.backend.stop())
            });
            if let Err(error) = stopped {
                eprintln!("the pool stays: {}", error.full_message());
            }
        }
    }

    async fn trial(filesystem: FilesystemKind) -> (Trial, Place) {
        assert_inside();
        let directory = tempfile::tempdir().unwrap();
        let scratch = directory.path().join("mounts");
        std::fs::create_dir(&scratch).unwrap();
        let backend = Arc::new(
            ThinBackend::open(backend_config(&directory.path().join("thin")), Expected::Anything)
                .await
                .unwrap(),
        );
        let trial = Trial {
            backend: Arc::clone(&backend) as Arc<dyn Backend>,
            host: Arc::new(LinuxHost::new().unwrap()),
            entropy: Arc::new(System),
            raw: Arc::new(Devices),
            scratch,
            filesystem,
            size: ByteSize::new(match filesystem {
                FilesystemKind::Ext4 => 16 << 20,
                FilesystemKind::Xfs => filesystem.smallest().bytes(),
                // The kernel grows none to less than this.
                FilesystemKind::Btrfs => 256 << 20,
            }),
        };
        (trial, Place { backend, _directory: directory })
    }

    /// Devices are written to like files.
    #[derive(Debug)]
    struct Devices;

    #[async_trait]
    impl RawContent for Devices {
        async fn write(&self, device: &Path, at: u64, bytes: &[u8]) {
            let file = std::fs::File::options().write(true).open(device).unwrap();
            file.write_all_at(bytes, at).unwrap();
            file.sync_all().unwrap();
        }
    }

    mod ext4 {
        use super::*;
        holdfast::backend_contract!(trial(FilesystemKind::Ext4).await);
    }

    mod xfs {
        use super::*;
        holdfast::backend_contract!(trial(FilesystemKind::Xfs).await);
    }

    mod btrfs {
        use super::*;
        holdfast::backend_contract!(trial(FilesystemKind::Btrfs).await);
    }
}
