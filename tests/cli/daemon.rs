//! How the daemon starts, stops and keeps others out.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::common::daemon::{Daemon, Launch};
use crate::common::host::Host;
use crate::common::plugin::PluginClient;
use crate::common::{HOLDFAST, kernel, wait};
use crate::holdfast;

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

/// A daemon outside of any private host; it mounts nothing.
struct Bare {
    directory: tempfile::TempDir,
    child: Child,
}

impl Bare {
    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn end(&mut self) -> std::process::ExitStatus {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        kill(pid, Signal::SIGTERM).unwrap();
        self.child.wait().unwrap()
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn bare(directory: tempfile::TempDir, mut command: Command) -> Bare {
    let path = |name: &str| directory.path().join(name);
    let child = command
        .env("HOLDFAST_CONFIG", "/dev/null")
        .env("HOLDFAST_STATE_DIR", path("state"))
        .env("HOLDFAST_RUNTIME_DIR", path("run"))
        .env("HOLDFAST_PLUGIN_SOCKET", path("plugin.sock"))
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    Bare { directory, child }
}

fn answers(socket: &Path) -> bool {
    let plugin = PluginClient { socket: socket.to_owned() };
    plugin.post("Plugin.Activate", b"").is_ok_and(|answer| answer.status == 200)
}

#[test]
fn its_directories_and_sockets_are_closed_to_others() {
    let directory = tempfile::tempdir().unwrap();
    let mut command = Command::new(HOLDFAST);
    command.arg("daemon");
    let mut daemon = bare(directory, command);
    let (plugin, admin) = (daemon.path("plugin.sock"), daemon.path("run/holdfast.sock"));
    wait::until_true("it answers", || answers(&plugin));
    assert_eq!(mode(&daemon.path("state")), 0o700);
    assert_eq!(mode(&plugin), 0o600);
    assert_eq!(mode(&admin), 0o660);
    assert!(daemon.end().success());
    assert!(!plugin.exists() && !admin.exists(), "it takes its sockets along");
}

#[test]
fn it_takes_a_socket_that_systemd_passes_on_and_tells_when_it_is_ready() {
    let directory = tempfile::tempdir().unwrap();
    let passed = directory.path().join("passed.sock");
    let listener = UnixListener::bind(&passed).unwrap();
    let notified = directory.path().join("notify");
    let notify = UnixDatagram::bind(&notified).unwrap();
    let mut command = Command::new("sh");
    command
        .arg("-c")
        .arg(format!("exec 3<&0; LISTEN_FDS=1 LISTEN_PID=$$ exec {HOLDFAST} daemon"))
        .stdin(Stdio::from(OwnedFd::from(listener)))
        .env("NOTIFY_SOCKET", &notified);
    let mut daemon = bare(directory, command);
    wait::until_true("it answers", || answers(&passed));
    assert!(!daemon.path("plugin.sock").exists(), "the configured one is not made");
    let mut text = [0; 64];
    let mut told = || {
        let length = notify.recv(&mut text).unwrap();
        String::from_utf8_lossy(&text[..length]).into_owned()
    };
    assert_eq!(told(), "READY=1");
    assert!(daemon.end().success());
    assert_eq!(told(), "STOPPING=1");
    assert!(fs::symlink_metadata(&passed).unwrap().file_type().is_socket(), "systemd's, not its");
}

#[test]
fn one_daemon_for_each_state_directory() {
    let host = Host::new();
    let daemon = Daemon::start(&host);
    let state = daemon.state_dir();
    let other = tempfile::tempdir().unwrap();
    let (run, plugin) = (other.path().join("run"), other.path().join("plugin.sock"));
    let second = holdfast(
        &[],
        &[
            "daemon",
            "--state-dir",
            state.to_str().unwrap(),
            "--runtime-dir",
            run.to_str().unwrap(),
            "--plugin-socket",
            plugin.to_str().unwrap(),
        ],
    );
    assert_eq!(second.code, 4, "{second:?}");
    assert!(second.stderr.contains(state.to_str().unwrap()), "{second:?}");
    assert!(!plugin.exists());
    daemon.plugin().list();
}

/// Each would take the other's mounts for what nobody holds.
#[test]
fn rule_08_one_daemon_for_each_mount_directory() {
    let host = Host::new();
    let daemon = Daemon::start(&host);
    let plugin = daemon.plugin();
    plugin.create("data", &[("size", "64M")]).unwrap();
    let mountpoint = plugin.mount("data", "id").unwrap();
    let at = |name: &str| host.dir().join(name).display().to_string();
    let mut second = host.command(HOLDFAST);
    second.args(["daemon", "--state-dir", &at("other"), "--runtime-dir", &at("other-run")]);
    second.args(["--plugin-socket", &at("other.sock"), "--mount-dir"]);
    let second = second.arg(daemon.state_dir().join("mounts")).output().unwrap();
    let said = String::from_utf8_lossy(&second.stderr);
    assert_eq!(second.status.code(), Some(4), "{said}");
    assert!(said.contains("mounts/.lock"), "{said}");
    daemon.write(mountpoint.join("file"), "still mounted");
    plugin.unmount("data", "id").unwrap();
}

#[test]
fn a_socket_on_which_somebody_listens_is_left_alone() {
    let host = Host::new();
    let daemon = Daemon::start(&host);
    let other = tempfile::tempdir().unwrap();
    let second = holdfast(
        &[],
        &[
            "daemon",
            "--state-dir",
            other.path().join("state").to_str().unwrap(),
            "--runtime-dir",
            other.path().join("run").to_str().unwrap(),
            "--plugin-socket",
            daemon.plugin().socket.to_str().unwrap(),
        ],
    );
    assert_eq!(second.code, 4, "{second:?}");
    assert!(second.stderr.contains("another process listens"), "{second:?}");
    daemon.plugin().list();
}

#[test]
fn a_stop_leaves_mounts_in_place_and_the_next_start_knows_them() {
    let host = Host::new();
    let mut daemon = Daemon::start(&host);
    let plugin = daemon.plugin();
    plugin.create("data", &[("size", "64M")]).unwrap();
    let mountpoint = plugin.mount("data", "id").unwrap();
    daemon.write(mountpoint.join("file"), "content");
    daemon.terminate();
    assert!(!plugin.socket.exists());
    assert_eq!(host.mounts().len(), 1);
    assert_eq!(daemon.read(mountpoint.join("file")), "content");
    daemon.start_again();
    assert_eq!(plugin.path("data").unwrap(), mountpoint.to_str().unwrap());
    plugin.unmount("data", "id").unwrap();
    assert_eq!(host.mounts(), []);
}

#[test]
fn a_stop_waits_for_what_was_asked_before() {
    let host = Host::new();
    let mut daemon = Launch::new(&host).failpoint("create.allocate=delay:3000").start(&host);
    let cli = daemon.cli();
    let creating = std::thread::spawn(move || cli.run(&["volume", "create", "x", "--size", "64M"]));
    wait::until_true("the create is under way", || {
        daemon.cli().ok(&["operation", "ls"]).json().as_array().is_some_and(|all| !all.is_empty())
    });
    kill(daemon.pid(), Signal::SIGTERM).unwrap();
    let socket = daemon.plugin().socket;
    wait::until_true("new connections are refused", || {
        std::os::unix::net::UnixStream::connect(&socket).is_err()
    });
    assert!(!daemon.has_ended(), "while what was asked before goes on");
    assert!(daemon.wait_end().success());
    let run = creating.join().unwrap();
    assert_eq!(run.code, 0, "{run:?}");
    daemon.start_again();
    assert_eq!(daemon.plugin().list(), ["x"]);
}

#[test]
fn a_lost_catalog_is_rebuilt_from_what_the_backend_holds() {
    let host = Host::new();
    let mut daemon = Daemon::start(&host);
    let cli = daemon.cli();
    cli.ok(&["volume", "create", "data", "--size", "64M", "--label", "a=b"]);
    cli.ok(&["snapshot", "create", "data@one"]);
    let before = cli.inspect("data");
    daemon.terminate();
    let catalog = daemon.state_dir().join("catalog.redb");
    fs::remove_file(&catalog).unwrap();
    daemon.start_again();
    assert_eq!(cli.inspect("data"), before);
}

#[test]
fn a_damaged_catalog_is_told_of_and_rebuilt_when_asked_to() {
    let host = Host::new();
    let mut daemon = Daemon::start(&host);
    let cli = daemon.cli();
    cli.ok(&["volume", "create", "data", "--size", "64M"]);
    daemon.terminate();
    let catalog = daemon.state_dir().join("catalog.redb");
    fs::write(&catalog, vec![7; 64 << 10]).unwrap();
    let mut broken = Launch::new(&host).spawn(&host);
    assert_eq!(broken.wait_end().code(), Some(1));
    let log = broken.log();
    assert!(log.contains("--rebuild-catalog"), "the way out is named: {log}");
    assert_eq!(fs::read(&catalog).unwrap().len(), 64 << 10, "nothing is thrown away");
    let rebuilt = Launch::new(&host).args(&["--rebuild-catalog"]).start(&host);
    assert_eq!(rebuilt.cli().inspect("data")["size"], 64 << 20);
    let kept = kernel::files_under(&daemon.state_dir());
    assert!(kept.iter().any(|path| path.to_string_lossy().ends_with(".old")), "{kept:?}");
}

/// A warning of `holdfast status` that has all of `words`.
#[track_caller]
fn assert_warned(daemon: &Daemon<'_>, words: &[&str]) {
    let warnings = daemon.cli().ok(&["status"]).json()["warnings"].clone();
    let told = warnings.as_array().unwrap().iter().any(|warning| {
        let warning = warning.as_str().unwrap();
        words.iter().all(|word| warning.contains(word))
    });
    assert!(told, "{words:?} in {warnings}");
}

#[test]
fn a_rebuilt_catalog_sets_owner_and_mode_of_no_volume_again() {
    let host = Host::new();
    let mut daemon = Daemon::start(&host);
    let plugin = daemon.plugin();
    plugin.create("data", &[("size", "64M"), ("uid", "70"), ("mode", "0700")]).unwrap();
    let mountpoint = plugin.mount("data", "id").unwrap();
    let place = mountpoint.to_str().unwrap();
    host.run("chown", &["999", place]);
    host.run("chmod", &["0755", place]);
    plugin.unmount("data", "id").unwrap();
    daemon.terminate();
    fs::remove_file(daemon.state_dir().join("catalog.redb")).unwrap();
    daemon.start_again();
    plugin.mount("data", "id").unwrap();
    assert_eq!(host.run("stat", &["-c", "%u %a", place]), "999 755\n");
}

#[test]
fn a_rebuilt_catalog_drops_no_volume_unasked_and_tells_of_it_afterwards() {
    let host = Host::new();
    let mut daemon = Daemon::start(&host);
    let cli = daemon.cli();
    for volume in ["data", "damaged", "bare"] {
        cli.ok(&["volume", "create", volume, "--size", "64M"]);
    }
    cli.ok(&["volume", "create", "retained", "--size", "64M", "-o", "on-remove=retain"]);
    cli.ok(&["volume", "rm", "retained"]);
    let uuid = |name: &str| cli.inspect(name)["uuid"].as_str().unwrap().to_owned();
    let (damaged, bare) = (uuid("damaged"), uuid("bare"));
    daemon.terminate();
    let catalog = daemon.state_dir().join("catalog.redb");
    fs::remove_file(&catalog).unwrap();
    let description = |uuid: &str| daemon.loop_dir().join(uuid).join("volume.json");
    fs::write(description(&damaged), "{").unwrap();
    fs::remove_file(description(&bare)).unwrap();

    let mut refused = Launch::new(&host).spawn(&host);
    assert_eq!(refused.wait_end().code(), Some(1));
    let log = refused.log();
    for words in [&*damaged, &*bare, description(&damaged).to_str().unwrap(), "--rebuild-catalog"] {
        assert!(log.contains(words), "{words}: {log}");
    }
    assert!(!catalog.exists(), "Docker is not told of a part for the whole");

    let mut rebuilt = Launch::new(&host).args(&["--rebuild-catalog"]).start(&host);
    assert_eq!(rebuilt.plugin().list(), ["data"]);
    assert_warned(&rebuilt, &[&damaged]);
    rebuilt.terminate();
    let later = Launch::new(&host).start(&host);
    let warnings = || later.cli().ok(&["status"]).json()["warnings"].clone();
    wait::until_true("the backend is compared with the catalog", || {
        let warnings = warnings().to_string();
        warnings.contains(&damaged) && warnings.contains(&bare)
    });
    assert_eq!(warnings().as_array().unwrap().len(), 2, "of nothing else: {}", warnings());
    assert!(daemon.loop_dir().join(&damaged).exists(), "its data is where it was");
}

#[test]
fn a_loop_directory_that_is_away_is_not_replaced_by_an_empty_one() {
    let host = Host::new();
    let mut daemon = Launch::new(&host).failpoint("delete.commit=kill").start(&host);
    let plugin = daemon.plugin();
    plugin.create("data", &[("size", "64M")]).unwrap();
    plugin.create("doomed", &[("size", "64M")]).unwrap();
    let file = plugin.mount("data", "id").unwrap().join("file");
    daemon.write(&file, "content");
    plugin.unmount("data", "id").unwrap();
    plugin.remove("doomed").expect_err("killed in the middle");
    daemon.wait_end();

    let (dir, away) = (daemon.loop_dir(), daemon.state_dir().join("away"));
    fs::rename(&dir, &away).unwrap();
    // A directory that is not there, and one on which nothing is mounted.
    for empty in [false, true] {
        if empty {
            fs::create_dir(&dir).unwrap();
        }
        daemon.start_again();
        assert_eq!(plugin.get("data").unwrap()["Name"], "data");
        let health = daemon.cli().inspect("data")["health"].clone();
        assert!(health.as_str().unwrap().contains("cannot be used"), "{health}");
        let place = dir.to_str().unwrap();
        assert_warned(&daemon, &["loop", place, "mount the right disk", "restart"]);
        for error in [
            plugin.mount("data", "id").unwrap_err(),
            plugin.create("other", &[("size", "64M")]).unwrap_err(),
        ] {
            assert!(error.contains(place) && error.contains("restart"), "{error}");
        }
        plugin.create("data", &[("size", "64M")]).expect("it exists");
        assert_eq!(plugin.list(), ["data"]);
        let operations = daemon.cli().ok(&["operation", "ls"]).json();
        let stuck = |one: &serde_json::Value| one["volume"] == "doomed" && one["state"] == "stuck";
        assert!(operations.as_array().unwrap().iter().any(stuck), "{operations}");
        daemon.terminate();
        assert_eq!(dir.exists(), empty, "no directory is made");
        assert_eq!(kernel::names_in(&dir), [""; 0], "nothing is made in it");
    }
    fs::remove_dir(&dir).unwrap();
    fs::rename(&away, &dir).unwrap();
    daemon.start_again();
    plugin.mount("data", "id").unwrap();
    assert_eq!(daemon.read(&file), "content");
    plugin.unmount("data", "id").unwrap();
    wait::until_true("the deletion is finished", || {
        daemon.cli().ok(&["status"]).json()["operations"].as_array().is_some_and(Vec::is_empty)
    });
    plugin.remove("data").unwrap();
    daemon.wait_no_volume_files();
}

#[test]
fn a_backend_that_cannot_be_opened_does_not_keep_the_daemon_from_starting() {
    let host = Host::new();
    let mut daemon = Daemon::start(&host);
    daemon.plugin().list();
    daemon.terminate();
    fs::remove_dir_all(daemon.loop_dir()).unwrap();
    fs::write(daemon.loop_dir(), "in the way").unwrap();
    daemon.start_again();
    let place = daemon.loop_dir();
    assert_warned(&daemon, &["loop", place.to_str().unwrap(), "cannot be used"]);
    let error = daemon.plugin().create("data", &[]).unwrap_err();
    assert!(error.contains(place.to_str().unwrap()), "{error}");
    daemon.terminate();
    let mut refused = Launch::new(&host).args(&["--rebuild-catalog"]).spawn(&host);
    assert_eq!(refused.wait_end().code(), Some(1), "a catalog without it would be a part");
    assert!(daemon.state_dir().join("catalog.redb").exists(), "the one that is there stays");
    fs::remove_file(&place).unwrap();
    daemon.start_again();
    daemon.plugin().create("data", &[("size", "64M")]).unwrap();
}

#[test]
fn a_typing_error_in_a_variable_is_told_of() {
    let host = Host::new();
    let daemon = Launch::new(&host).env("HOLDFAST_LOOP_DEFAULTSIZE", "1G").start(&host);
    let log = daemon.log();
    assert!(log.contains("HOLDFAST_LOOP_DEFAULTSIZE"), "{log}");
    assert!(log.contains("HOLDFAST_LOOP_DEFAULT_SIZE"), "{log}");
}
