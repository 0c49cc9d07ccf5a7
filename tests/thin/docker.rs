//! A Docker Engine whose volumes are in a pool.

use std::path::Path;
use std::process::Command;

use crate::common::daemon::Launch;
use crate::common::engine::Engine;
use crate::common::host::{Host, checked};
use crate::common::lab::in_lab;
use crate::helpers::{directory, pool_device, volume_devices};

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

in_lab! {
    on |host| host.memory(2048).modules(&["dm-thin-pool", "loop"]).containers();
    fn recipe_2_a_thin_pool_on_two_files_behind_loop_devices() {
        let host = Host::new();
        let place = directory();
        let attached = |name: &str, size: &str| {
            let file = place.join(name);
            checked(&mut Command::new("truncate"), &["--size", size, text(&file)]);
            let args = ["--find", "--show", text(&file)];
            checked(&mut Command::new("losetup"), &args).trim().to_owned()
        };
        let (data, metadata) = (attached("data.img", "100G"), attached("metadata.img", "1G"));
        let args = ["--default-backend", "thin", "--thin-data", &data, "--thin-metadata", &metadata];
        let mut daemon = Launch::for_engine().args(&args).start(&host);
        let engine = Engine::start(&host);
        let run = |line: &str| {
            let volume = ["-v", "test_volume:/sample", "--volume-driver", "holdfast"];
            let words = [&["run", "--rm"][..], &volume, &["busybox", "sh", "-c", line]].concat();
            engine.docker(&words)
        };
        run("echo test > /sample/file");
        assert_eq!(run("cat /sample/file; ls -A /sample"), "test\nfile");
        let volume = daemon.cli().inspect("test_volume");
        assert_eq!((&volume["backend"], &volume["size"]), (&"thin".into(), &(10_u64 << 30).into()));
        assert_eq!(volume_devices(), Vec::<String>::new());
        let table = checked(&mut Command::new("dmsetup"), &["table", &pool_device()]);
        assert!(table.contains("thin-pool"), "{table}");
        engine.docker(&["volume", "rm", "test_volume"]);
        daemon.terminate();
        for device in [data, metadata] {
            checked(&mut Command::new("losetup"), &["--detach", &device]);
        }
    }
}

in_lab! {
    on |host| host.memory(2048).modules(&["dm-thin-pool", "loop"]).containers();
    fn recipe_2_a_thin_pool_on_files_that_holdfast_makes() {
        let host = Host::new();
        let place = directory().join("thin");
        // Beside loop, which stays the default.
        let mut daemon = Launch::for_engine().args(&["--thin-file", text(&place)]).start(&host);
        let engine = Engine::start(&host);
        let create = ["volume", "create", "-d", "holdfast", "-o", "backend=thin"];
        engine.docker(&[&create[..], &["-o", "size=1G", "test_volume"]].concat());
        engine.in_volume("test_volume", "echo test > /data/file");
        assert_eq!(engine.in_volume("test_volume", "cat /data/file; ls -A /data"), "test\nfile");
        engine.in_volume("beside", "echo loop > /data/file");
        let backend = |volume: &str| daemon.cli().inspect(volume)["backend"].clone();
        assert_eq!((backend("test_volume"), backend("beside")), ("thin".into(), "loop".into()));
        let told = engine.docker(&["volume", "inspect", "-f", "{{.Status.backend}}", "test_volume"]);
        assert_eq!(told, "thin");

        // The daemon is killed under a container.
        let run = ["run", "-d", "--name", "long", "-v", "test_volume:/data", "busybox"];
        engine.docker(&[&run[..], &["sleep", "10000"]].concat());
        assert_eq!(volume_devices().len(), 1);
        daemon.kill_and_start_again();
        assert_eq!(engine.docker(&["exec", "long", "cat", "/data/file"]), "test");
        engine.docker(&["exec", "long", "sh", "-c", "echo more > /data/more"]);
        engine.docker(&["rm", "-f", "long"]);
        assert_eq!(volume_devices(), Vec::<String>::new());
        assert_eq!(engine.in_volume("test_volume", "cat /data/more"), "more");
        for volume in ["test_volume", "beside"] {
            engine.docker(&["volume", "rm", volume]);
        }
        daemon.terminate();
    }
}

in_lab! {
    on |host| {
        let host = host.memory(2048).modules(&["dm-thin-pool", "loop"]).containers();
        host.new_disk(2048).new_disk(32).new_disk(512)
    };
    fn recipe_9_the_disk_test_measures_a_thin_volume_beside_the_disk() {
        checked(&mut Command::new("mkfs.ext4"), &["-q", "/dev/ubdc"]);
        checked(&mut Command::new("mount"), &["/dev/ubdc", "/mnt"]);
        let host = Host::new();
        let args = ["--default-backend", "thin", "--thin-data", "/dev/ubda"];
        let launch = Launch::for_engine().args(&args).args(&["--thin-metadata", "/dev/ubdb"]);
        let mut daemon = launch.start(&host);
        let engine = Engine::start(&host);
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/disk-test");
        let mut measure = engine.for_client(script);
        measure.arg("/mnt").env("RUNTIME", "1").env("SIZE", "16M");
        let output = measure.output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
        for (job, unit) in [("randwrite", "IOPS"), ("seqwrite", "MB/s"), ("fsync", "us")] {
            let row = text.lines().find(|line| line.contains(job));
            let row = row.unwrap_or_else(|| panic!("{text}"));
            assert_eq!(row.matches(unit).count(), 2, "of the volume and of the disk: {row}");
            assert!(!row.contains(&format!(" 0 {unit}")), "{row}");
        }
        assert_eq!(daemon.plugin().list(), Vec::<String>::new(), "it cleans up after itself");
        daemon.terminate();
    }
}
