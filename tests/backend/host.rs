//! What the host does with devices and mounts, as other programs see it.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use holdfast::error::ErrorKind;
use holdfast::linux::{FilesystemSpec, Host, LinuxHost, MountRequest};
use holdfast::model::Outcome;
use holdfast::options::FilesystemKind;
use uuid::Uuid;

use crate::place::{Place, path, run};

/// A device with a filesystem, made and attached by the system's own programs.
struct Disk {
    place: Place,
    device: PathBuf,
    host: LinuxHost,
}

impl Disk {
    fn blank(mebibytes: u64) -> Self {
        let place = Place::plain();
        let image = place.path().join("image");
        std::fs::File::create(&image).unwrap().set_len(mebibytes << 20).unwrap();
        let device = run("losetup", &["--find", "--show", path(&image)]).trim().into();
        Self { place, device, host: LinuxHost::new().unwrap() }
    }

    fn formatted() -> Self {
        let disk = Self::blank(16);
        run("mkfs.ext4", &["-q", path(&disk.device)]);
        disk
    }

    fn target(&self) -> PathBuf {
        self.place.path().join("target")
    }

    fn request(&self, options: &[&str]) -> MountRequest {
        MountRequest {
            source: path(&self.device).to_owned(),
            filesystem: "ext4".to_owned(),
            target: self.target(),
            options: options.iter().map(|option| (*option).to_owned()).collect(),
            read_only: false,
        }
    }

    async fn mounted(&self) -> PathBuf {
        self.host.mount(&self.request(&[])).await.unwrap().ignore();
        self.target()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.target()).output();
        let _ = Command::new("losetup").arg("--detach").arg(&self.device).output();
    }
}

fn spec(kind: FilesystemKind, options: &[&str]) -> FilesystemSpec {
    let options = options.iter().map(|option| (*option).to_owned()).collect();
    FilesystemSpec { kind, uuid: Uuid::new_v4(), options }
}

#[tokio::test]
async fn mount_options_reach_the_mount_and_the_filesystem() {
    let disk = Disk::formatted();
    let mut request = disk.request(&["noatime", "nodev", "nosuid", "noexec", "sync", "commit=7"]);
    request.read_only = true;
    disk.host.mount(&request).await.unwrap().ignore();
    let options = run("findmnt", &["--noheadings", "--output", "OPTIONS", path(&disk.target())]);
    for option in ["ro", "noatime", "nodev", "nosuid", "noexec", "sync", "commit=7"] {
        assert!(options.trim().split(',').any(|shown| shown == option), "{option}: {options}");
    }
    let mounted = disk.host.mounts_below(&disk.target()).await.unwrap();
    assert!(mounted[0].read_only);
}

#[tokio::test]
async fn a_wrong_mount_option_is_named_with_the_kernels_words() {
    let disk = Disk::formatted();
    for option in ["bogus", "commit=never", "loop", "bind"] {
        let error = disk.host.mount(&disk.request(&[option])).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{}", error.full_message());
        let key = option.split('=').next().unwrap();
        assert!(error.full_message().contains(key), "{}", error.full_message());
    }
    assert!(disk.host.mounts_below(&disk.target()).await.unwrap().is_empty());
}

#[tokio::test]
async fn what_holds_no_filesystem_is_corrupt() {
    let disk = Disk::blank(16);
    let error = disk.host.mount(&disk.request(&[])).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{}", error.full_message());
}

#[tokio::test]
async fn a_link_in_place_of_the_target_is_refused() {
    let disk = Disk::formatted();
    std::os::unix::fs::symlink("/mnt", disk.target()).unwrap();
    assert!(disk.host.mount(&disk.request(&[])).await.is_err());
    std::fs::remove_file(disk.target()).unwrap();
}

#[tokio::test]
async fn what_is_open_is_not_unmounted() {
    let disk = Disk::formatted();
    let target = disk.mounted().await;
    let open = std::fs::File::create(target.join("f")).unwrap();
    let error = disk.host.unmount(&target).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InUse);
    assert!(error.kind().is_temporary());
    drop(open);
    assert_eq!(disk.host.unmount(&target).await.unwrap(), Outcome::Changed);
}

/// A process with mounts of its own, as a container's is.
struct Container(Child);

impl Container {
    fn with_bind_mount(from: &Path, to: &Path) -> Self {
        std::fs::create_dir_all(to).unwrap();
        let script = "mount --bind \"$0\" \"$1\" && echo ready && exec cat";
        let mut child = Command::new("unshare")
            .args(["--mount", "sh", "-c", script])
            .args([from, to])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let stdout = child.stdout.as_mut().unwrap();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut line).unwrap();
        assert_eq!(line.trim(), "ready");
        Self(child)
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn rule_04_containers_are_counted_by_their_bind_mounts() {
    let disk = Disk::formatted();
    let target = disk.mounted().await;
    std::fs::create_dir(target.join("data")).unwrap();
    assert_eq!(disk.host.bind_mounts_of(&target).await.unwrap(), 0);
    let place = disk.place.path();
    let one = Container::with_bind_mount(&target.join("data"), &place.join("one"));
    assert_eq!(disk.host.bind_mounts_of(&target).await.unwrap(), 1);
    // The whole of it, in a copy of our namespace, is our own mount and not a container's.
    let whole = Container::with_bind_mount(&target, &place.join("whole"));
    assert_eq!(disk.host.bind_mounts_of(&target).await.unwrap(), 1);
    let two = Container::with_bind_mount(&target.join("data"), &place.join("two"));
    assert_eq!(disk.host.bind_mounts_of(&target).await.unwrap(), 2);
    drop((one, two, whole));
    assert_eq!(disk.host.bind_mounts_of(&target).await.unwrap(), 0);
    let error = disk.host.bind_mounts_of(&place).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn mkfs_tells_what_it_does_not_like() {
    let disk = Disk::blank(16);
    let too_small = disk.host.make_filesystem(&disk.device, &spec(FilesystemKind::Xfs, &[])).await;
    let text = too_small.unwrap_err().full_message();
    assert!(text.contains("mkfs.xfs failed") && text.contains("300MB"), "{text}");
    let wrong = spec(FilesystemKind::Ext4, &["-b", "banana"]);
    let error = disk.host.make_filesystem(&disk.device, &wrong).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{}", error.full_message());
    assert!(error.full_message().contains("banana"), "{}", error.full_message());
    assert!(disk.host.is_blank(&disk.device).await.unwrap());
    let dry = disk.host.make_filesystem(&disk.device, &spec(FilesystemKind::Ext4, &["-n"])).await;
    assert_eq!(dry.unwrap_err().kind(), ErrorKind::Invalid, "a dry run is not a filesystem");
}

#[tokio::test]
async fn filesystems_have_the_uuid_and_options_that_were_asked_for() {
    for (kind, options, mebibytes) in [
        (FilesystemKind::Ext4, &["-L", "label"][..], 16),
        (FilesystemKind::Ext4, &["-O", "^has_journal,^metadata_csum"], 16),
        (FilesystemKind::Xfs, &["-L", "label", "-m", "reflink=0"], 300),
        (FilesystemKind::Btrfs, &["-L", "label"], 256),
    ] {
        let disk = Disk::blank(mebibytes);
        let spec = spec(kind, options);
        disk.host.make_filesystem(&disk.device, &spec).await.unwrap();
        let probe = |key: &str| {
            run("blkid", &["-p", "-o", "value", "-s", key, path(&disk.device)]).trim().to_owned()
        };
        assert_eq!(probe("UUID"), spec.uuid.to_string());
        assert_eq!(probe("TYPE"), kind.as_str());
        if options[0] == "-L" {
            assert_eq!(probe("LABEL"), "label");
        }
        let renewed = Uuid::new_v4();
        let scratch = disk.place.path().join("scratch");
        let host = &disk.host;
        host.renew_identity(&disk.device, kind, renewed, &scratch).await.unwrap();
        assert_eq!(probe("UUID"), renewed.to_string());
        let mut request = disk.request(&[]);
        request.filesystem = kind.as_str().to_owned();
        assert_eq!(host.mount(&request).await.unwrap(), Outcome::Changed);
        assert_eq!(host.unmount(&disk.target()).await.unwrap(), Outcome::Changed);
    }
}

#[tokio::test]
async fn a_copied_journal_is_replayed_before_the_identity_changes() {
    for kind in [FilesystemKind::Ext4, FilesystemKind::Xfs, FilesystemKind::Btrfs] {
        let disk = Disk::blank(300);
        disk.host.make_filesystem(&disk.device, &spec(kind, &[])).await.unwrap();
        let mut request = disk.request(&[]);
        request.filesystem = kind.as_str().to_owned();
        disk.host.mount(&request).await.unwrap().ignore();
        let file = disk.target().join("f");
        std::fs::write(&file, "in the journal").unwrap();
        std::fs::File::open(&file).unwrap().sync_all().unwrap();
        // As after a power cut: flushed files, a journal that nobody replayed.
        let copy = disk.place.path().join("copy");
        run(
            "dd",
            &[
                &format!("if={}", path(&disk.device)),
                &format!("of={}", path(&copy)),
                "bs=1M",
                "conv=sparse",
                // What the device holds, not what somebody read of it before.
                "iflag=direct",
            ],
        );
        let device: PathBuf = run("losetup", &["--find", "--show", path(&copy)]).trim().into();
        disk.host.unmount(&disk.target()).await.unwrap().ignore();
        let scratch = disk.place.path().join("scratch");
        let renewed = disk.host.renew_identity(&device, kind, Uuid::new_v4(), &scratch).await;
        let beside = MountRequest {
            source: path(&device).to_owned(),
            target: disk.place.path().join("beside"),
            ..request
        };
        let mounted = disk.host.mount(&beside).await;
        let read = std::fs::read_to_string(beside.target.join("f"));
        let _ = disk.host.unmount(&beside.target).await;
        run("losetup", &["--detach", path(&device)]);
        renewed.unwrap();
        mounted.unwrap().ignore();
        assert_eq!(read.unwrap(), "in the journal", "{kind}");
    }
}

/// Frozen, it would stay in the kernel out of everybody's reach, and keep the device.
#[tokio::test]
async fn rule_14_a_filesystem_that_is_unmounted_is_thawed_first() {
    use std::os::unix::fs::OpenOptionsExt;
    let disk = Disk::formatted();
    let target = disk.mounted().await;
    assert_eq!(disk.host.freeze(&target).await.unwrap(), Outcome::Changed);
    assert_eq!(disk.host.unmount(&target).await.unwrap(), Outcome::Changed);
    let mut alone = std::fs::File::options();
    alone.write(true).custom_flags(nix::libc::O_EXCL).open(&disk.device).expect("nobody has it");
    disk.mounted().await;
    std::fs::write(target.join("file"), "not frozen").unwrap();
}

/// What a flush has written, a freeze need not write while everybody waits.
#[tokio::test]
async fn rule_14_a_flush_writes_out_and_stops_nobody() {
    let disk = Disk::formatted();
    let target = disk.mounted().await;
    let text = Uuid::new_v4().to_string();
    std::fs::write(target.join("file"), &text).unwrap();
    disk.host.flush(&target).await.unwrap();
    let image = std::fs::read(disk.place.path().join("image")).unwrap();
    assert!(image.windows(text.len()).any(|bytes| bytes == text.as_bytes()), "it is on the disk");
    std::fs::write(target.join("file"), "not frozen").unwrap();
    let error = disk.host.flush(&disk.place.path()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "never the host's own filesystem");
}
