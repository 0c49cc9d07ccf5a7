//! What the daemon costs, as ratios to the bare thing in the same run (`docs/benchmarks.md`).
//!
//! `cargo bench --bench plugin` as root; `-- NAME...` runs some of: latency, list, start, bare, parallel,
//! stall, backup.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a benchmark that fails should stop")]
#![allow(clippy::disallowed_methods, reason = "the echo server's process ends by exit")]

#[path = "common/mod.rs"]
mod common;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{BINARY, Client, micros, run, summary};
use holdfast::backend::Description;
use holdfast::catalog::{Catalog, Change};
use holdfast::id::{Generation, StorageId, VolumeUuid};
use holdfast::model::{Content, Volume, VolumeState};
use holdfast::options::{FilesystemKind, OnRemove, Ownership};
use holdfast::units::ByteSize;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    if let Some(["echo-server", socket]) =
        arguments.iter().map(String::as_str).collect::<Vec<_>>().get(..2).map(|a| [a[0], a[1]])
    {
        echo_server(Path::new(socket));
        return;
    }
    let chosen = |name: &str| arguments.is_empty() || arguments.iter().any(|a| a == name);
    let all: [(&str, fn()); 7] = [
        ("latency", latency),
        ("list", list),
        ("start", start),
        ("bare", bare),
        ("parallel", parallel),
        ("stall", stall),
        ("backup", backup),
    ];
    for (name, run) in all {
        if chosen(name) {
            println!("\n## {name}");
            run();
        }
    }
}

/// A daemon in a directory of its own, gone with its mounts when dropped.
struct Daemon {
    root: tempfile::TempDir,
    child: Child,
}

impl Daemon {
    fn on(root: tempfile::TempDir) -> Self {
        let child = spawn_daemon(root.path());
        let daemon = Self { root, child };
        daemon.client().post("/Plugin.Activate", "");
        daemon
    }

    fn new() -> Self {
        Self::on(tempfile::tempdir().unwrap())
    }

    fn socket(&self) -> PathBuf {
        self.root.path().join("plugin.sock")
    }

    fn client(&self) -> Client {
        Client::connect(&self.socket())
    }

    /// The command line on this daemon.
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(BINARY);
        command
            .arg("--socket")
            .arg(self.root.path().join("run/holdfast.sock"))
            .args(arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        command
    }

    fn run(&self, arguments: &[&str]) {
        assert!(self.command(arguments).status().unwrap().success(), "{arguments:?}");
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        for mount in std::fs::read_dir(self.root.path().join("state/mounts")).into_iter().flatten()
        {
            let _ =
                Command::new("umount").arg(mount.unwrap().path()).stderr(Stdio::null()).status();
        }
    }
}

fn spawn_daemon(root: &Path) -> Child {
    Command::new(BINARY)
        .env("HOLDFAST_CONFIG", root.join("config.toml"))
        .arg("daemon")
        .arg("--state-dir")
        .arg(root.join("state"))
        .arg("--runtime-dir")
        .arg(root.join("run"))
        .arg("--plugin-socket")
        .arg(root.join("plugin.sock"))
        .stdout(Stdio::null())
        .stderr(std::fs::File::create(root.join("log")).unwrap())
        .spawn()
        .unwrap()
}

/// A state directory whose catalog has `count` volumes. Behind them are their descriptions alone.
fn state_with(count: u128) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    let images = root.path().join("state/loop");
    std::fs::create_dir_all(&images).unwrap();
    let storage = StorageId::from_uuid(uuid::Uuid::from_u128(7));
    std::fs::write(images.join(".id"), storage.to_string()).unwrap();
    let catalog = Catalog::open(&root.path().join("state/catalog.redb")).unwrap();
    let changes = (0..count).map(|number| {
        let volume = Volume {
            uuid: VolumeUuid::from_uuid(uuid::Uuid::from_u128(number + 1)),
            name: format!("volume-{number:05}").parse().unwrap(),
            backend: "loop".parse().unwrap(),
            generation: Generation::FIRST,
            state: VolumeState::Ready,
            content: Content::Prepared,
            size: Some(ByteSize::GIB),
            grow_pending: false,
            filesystem: Some(FilesystemKind::Ext4),
            mkfs_options: vec![],
            mount_options: vec![],
            ownership: Ownership::default(),
            read_only: false,
            on_remove: OnRemove::Delete,
            options: BTreeMap::from([("size".to_owned(), "1G".to_owned())]),
            labels: BTreeMap::new(),
            created: jiff::Timestamp::UNIX_EPOCH,
        };
        let directory = images.join(volume.uuid.to_string());
        std::fs::create_dir(&directory).unwrap();
        let description = Description {
            volume: volume.clone(),
            snapshots: Vec::new(),
            retained: false,
            schedule: None,
        };
        let text = serde_json::to_vec_pretty(&description).unwrap();
        std::fs::write(directory.join("volume.json"), text).unwrap();
        Change::PutVolume(Box::new(volume))
    });
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let storage = Change::PutStorage("loop".parse().unwrap(), storage);
    runtime.block_on(catalog.commit(changes.chain([storage]).collect())).unwrap();
    root
}

fn echo_server(socket: &Path) {
    use http_body_util::{BodyExt as _, Full};
    use hyper::body::Bytes;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let listener = tokio::net::UnixListener::bind(socket).unwrap();
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let service = hyper::service::service_fn(
                |request: hyper::Request<hyper::body::Incoming>| async {
                    let body = request.into_body().collect().await?.to_bytes();
                    Ok::<_, hyper::Error>(hyper::Response::new(Full::<Bytes>::new(body)))
                },
            );
            tokio::spawn(
                hyper::server::conn::http1::Builder::new()
                    .serve_connection(hyper_util::rt::TokioIo::new(stream), service),
            );
        }
    });
}

/// Get, Path and Capabilities against a bare hyper echo server, in turn.
fn latency() {
    let directory = tempfile::tempdir().unwrap();
    let echo_socket = directory.path().join("echo.sock");
    let mut echo = Command::new(std::env::current_exe().unwrap())
        .args(["echo-server".as_ref(), echo_socket.as_os_str()])
        .spawn()
        .unwrap();
    println!("| volumes | call | median us | p99 us | bare echo median us | ratio |");
    println!("|---|---|---|---|---|---|");
    for count in [10, 10_000] {
        let daemon = Daemon::on(state_with(count));
        let mut ours = daemon.client();
        let mut bare = Client::connect(&echo_socket);
        for (path, body) in [
            ("/VolumeDriver.Get", r#"{"Name":"volume-00005"}"#),
            ("/VolumeDriver.Path", r#"{"Name":"volume-00005"}"#),
            ("/VolumeDriver.Capabilities", "{}"),
        ] {
            compare(&count.to_string(), &mut ours, &mut bare, path, body);
        }
    }
    mounted_latency(&echo_socket);
    let _ = echo.kill();
    let _ = echo.wait();
}

/// Get of a mounted volume, alone and among 100 mounted ones.
fn mounted_latency(echo_socket: &Path) {
    let daemon = Daemon::new();
    let mut client = daemon.client();
    let mut mounted = 0;
    for count in [1, 100] {
        for volume in mounted..count {
            let (volume, id) = (format!(r#""m{volume}""#), r#""ID":"x""#);
            let body = format!(r#"{{"Name":{volume},"Opts":{{"size":"16M"}}}}"#);
            client.post("/VolumeDriver.Create", &body);
            client.post("/VolumeDriver.Mount", &format!(r#"{{"Name":{volume},{id}}}"#));
        }
        mounted = count;
        let mut bare = Client::connect(echo_socket);
        let title = format!("{count} mounted");
        compare(&title, &mut client, &mut bare, "/VolumeDriver.Get", r#"{"Name":"m0"}"#);
    }
    for volume in 0..mounted {
        client.post("/VolumeDriver.Unmount", &format!(r#"{{"Name":"m{volume}","ID":"x"}}"#));
    }
}

/// One call, in turn with a bare echo of its body.
fn compare(title: &str, ours: &mut Client, bare: &mut Client, path: &str, body: &str) {
    let (mut our_times, mut bare_times) = (Vec::new(), Vec::new());
    for round in 0..6_000 {
        let begin = Instant::now();
        ours.post(path, body);
        let middle = Instant::now();
        bare.post(path, body);
        if round >= 1_000 {
            our_times.push(middle - begin);
            bare_times.push(middle.elapsed());
        }
    }
    let (ours, bare) = (summary(our_times), summary(bare_times));
    println!(
        "| {title} | {} | {:.0} | {:.0} | {:.0} | {:.2} |",
        path.rsplit('.').next().unwrap(),
        micros(ours.median),
        micros(ours.p99),
        micros(bare.median),
        ours.median.as_secs_f64() / bare.median.as_secs_f64(),
    );
}

/// List of 10,000 volumes.
fn list() {
    let daemon = Daemon::on(state_with(10_000));
    let mut client = daemon.client();
    let mut bytes = 0;
    let times = (0..50).map(|_| {
        let begin = Instant::now();
        bytes = client.post("/VolumeDriver.List", "{}").len();
        begin.elapsed()
    });
    let times = summary(times.collect());
    println!(
        "List of 10,000 volumes ({bytes} bytes): median {:.1} ms, p99 {:.1} ms",
        micros(times.median) / 1e3,
        micros(times.p99) / 1e3
    );
}

/// From the start of the process to the first answered Get, with 10,000 volumes, and its memory.
fn start() {
    let mut times = Vec::new();
    let mut memory = Vec::new();
    let root = state_with(10_000);
    for _ in 0..9 {
        let begin = Instant::now();
        let mut child = spawn_daemon(root.path());
        let socket = root.path().join("plugin.sock");
        Client::connect(&socket).post("/VolumeDriver.Get", r#"{"Name":"volume-09999"}"#);
        times.push(begin.elapsed());
        let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        memory.push(line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0);
        child.kill().unwrap();
        child.wait().unwrap();
    }
    memory.sort_by(f64::total_cmp);
    println!(
        "start with 10,000 volumes to the first answer: median {:.0} ms; resident memory: median {:.1} MB",
        micros(summary(times).median) / 1e3,
        memory[memory.len() / 2]
    );
}

/// Create and Mount of a 1 GiB ext4 volume against the same commands by hand, in turn.
fn bare() {
    let daemon = Daemon::new();
    let mut client = daemon.client();
    let by_hand = tempfile::tempdir().unwrap();
    let (mut ours, mut hands, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..22 {
        let begin = Instant::now();
        let name = format!("v{round}");
        client.post(
            "/VolumeDriver.Create",
            &format!(r#"{{"Name":"{name}","Opts":{{"size":"1G"}}}}"#),
        );
        client.post("/VolumeDriver.Mount", &format!(r#"{{"Name":"{name}","ID":"a"}}"#));
        let our = begin.elapsed();

        let image = by_hand.path().join(&name);
        let target = by_hand.path().join(format!("{name}.mnt"));
        let (image, target) = (image.to_str().unwrap(), target.to_str().unwrap());
        let begin = Instant::now();
        run("truncate", &["-s", "1G", image]);
        let device = run("losetup", &["--find", "--show", "--direct-io=on", image]);
        run("mkfs.ext4", &["-q", &device]);
        std::fs::create_dir(target).unwrap();
        run("mount", &[&device, target]);
        let hand = begin.elapsed();

        run("umount", &[target]);
        run("losetup", &["-d", &device]);
        client.post("/VolumeDriver.Unmount", &format!(r#"{{"Name":"{name}","ID":"a"}}"#));
        client.post("/VolumeDriver.Remove", &format!(r#"{{"Name":"{name}"}}"#));
        if round >= 2 {
            ours.push(our);
            hands.push(hand);
            ratios.push(our.as_secs_f64() / hand.as_secs_f64());
        }
    }
    ratios.sort_by(f64::total_cmp);
    println!(
        "Create and Mount of 1 GiB ext4: median {:.1} ms; truncate, losetup, mkfs.ext4, mount by hand: \
         median {:.1} ms; ratio, median of pairs: {:.2}",
        micros(summary(ours).median) / 1e3,
        micros(summary(hands).median) / 1e3,
        ratios[ratios.len() / 2]
    );
}

fn mount_all(daemon: &Daemon, clients: usize, volumes: usize) -> Duration {
    let begin = Instant::now();
    std::thread::scope(|scope| {
        for client in 0..clients {
            let mut connection = daemon.client();
            scope.spawn(move || {
                for volume in (client..volumes).step_by(clients) {
                    connection.post(
                        "/VolumeDriver.Mount",
                        &format!(r#"{{"Name":"p{volume}","ID":"x"}}"#),
                    );
                }
            });
        }
    });
    let took = begin.elapsed();
    let mut connection = daemon.client();
    for volume in 0..volumes {
        connection.post("/VolumeDriver.Unmount", &format!(r#"{{"Name":"p{volume}","ID":"x"}}"#));
    }
    took
}

/// 32 volumes mounted by 32 clients at once, and one after the other; and the same by hand.
fn parallel() {
    let daemon = Daemon::new();
    let mut client = daemon.client();
    for volume in 0..32 {
        client.post(
            "/VolumeDriver.Create",
            &format!(r#"{{"Name":"p{volume}","Opts":{{"size":"64M"}}}}"#),
        );
    }
    mount_all(&daemon, 32, 32);
    let mut rows = Vec::new();
    for _ in 0..7 {
        let one = mount_all(&daemon, 1, 32);
        let many = mount_all(&daemon, 32, 32);
        rows.push((one, many, one.as_secs_f64() / many.as_secs_f64()));
    }
    rows.sort_by(|a, b| a.2.total_cmp(&b.2));
    let (one, many, ratio) = rows[rows.len() / 2];
    println!(
        "32 volumes mounted one after the other: {:.1} ms; by 32 clients at once: {:.1} ms; {ratio:.2} times as fast",
        micros(one) / 1e3,
        micros(many) / 1e3
    );
    for volume in 0..32 {
        client.post("/VolumeDriver.Remove", &format!(r#"{{"Name":"p{volume}"}}"#));
    }
}

/// Get of the volume itself, and Get and Mount of another, while a snapshot of an unmounted volume is copied.
fn stall() {
    let daemon = Daemon::new();
    let mut client = daemon.client();
    for name in ["big", "other"] {
        client.post(
            "/VolumeDriver.Create",
            &format!(r#"{{"Name":"{name}","Opts":{{"size":"3G"}}}}"#),
        );
    }
    fill(&mut client, "big");
    let begin = Instant::now();
    let mut snapshot = daemon.command(&["snapshot", "create", "big@copy"]).spawn().unwrap();
    let (mut own_gets, mut gets, mut mounts) = (Vec::new(), Vec::new(), Vec::new());
    while snapshot.try_wait().unwrap().is_none() {
        let mut timed = |path: &str, body: &str, times: &mut Vec<Duration>| {
            let begin = Instant::now();
            client.post(path, body);
            times.push(begin.elapsed());
        };
        timed("/VolumeDriver.Get", r#"{"Name":"big"}"#, &mut own_gets);
        timed("/VolumeDriver.Get", r#"{"Name":"other"}"#, &mut gets);
        timed("/VolumeDriver.Mount", r#"{"Name":"other","ID":"b"}"#, &mut mounts);
        client.post("/VolumeDriver.Unmount", r#"{"Name":"other","ID":"b"}"#);
    }
    let took = begin.elapsed();
    let worst = |times: &[Duration]| micros(*times.iter().max().unwrap()) / 1e3;
    println!(
        "while a snapshot copy of 2 GiB ran for {:.1} s: {} rounds; longest Get of the same volume {:.1} ms, \
         longest Get of another {:.1} ms, longest Mount of another {:.1} ms",
        took.as_secs_f64(),
        gets.len(),
        worst(&own_gets),
        worst(&gets),
        worst(&mounts)
    );
}

/// Writes 2 GiB that do not compress into a volume.
fn fill(client: &mut Client, name: &str) {
    let id = format!(r#"{{"Name":"{name}","ID":"fill"}}"#);
    let mounted = client.post("/VolumeDriver.Mount", &id);
    let answer: serde_json::Value = serde_json::from_slice(&mounted).unwrap();
    let data = Path::new(answer["Mountpoint"].as_str().unwrap()).join("data");
    let mut file = std::fs::File::create(&data).unwrap();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for _ in 0..512 {
        let block: Vec<u8> = (0..4 << 17)
            .flat_map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (state ^ state >> 29).to_le_bytes()
            })
            .collect();
        file.write_all(&block).unwrap();
    }
    file.sync_all().unwrap();
    drop(file);
    client.post("/VolumeDriver.Unmount", &id);
}

/// What a first backup of one volume costs the calls about others, all on one disk.
fn backup() {
    const VOLUMES: usize = 8;
    let root = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let repository = root.path().join("repository");
    let config = format!("[repository.main]\nurl = {repository:?}\npassword = \"secret\"\n");
    std::fs::write(root.path().join("config.toml"), config).unwrap();
    let daemon = Daemon::on(root);
    let mut client = daemon.client();
    let create = |client: &mut Client, name: &str| {
        let body = format!(r#"{{"Name":"{name}","Opts":{{"size":"3G"}}}}"#);
        client.post("/VolumeDriver.Create", &body);
    };
    create(&mut client, "busy");
    fill(&mut client, "busy");
    daemon.run(&["repository", "init", "main"]);
    daemon.run(&["snapshot", "create", "busy@full"]);
    (0..VOLUMES).for_each(|number| create(&mut client, &format!("v{number}")));
    let mut admin = Client::connect(&daemon.root.path().join("run/holdfast.sock"));
    let mut rounds = 0;
    let mut round = |calls: &mut [Vec<Duration>; 3]| {
        let name = format!("v{}", rounds % VOLUMES);
        let mut timed = |at: usize, work: &mut dyn FnMut()| calls[at].push(common::timed(work));
        let id = format!(r#"{{"Name":"{name}","ID":"a"}}"#);
        timed(0, &mut || drop(client.post("/VolumeDriver.Mount", &id)));
        timed(1, &mut || drop(client.post("/VolumeDriver.Get", &id)));
        client.post("/VolumeDriver.Unmount", &id);
        let snapshot = format!(r#"{{"name":"s{rounds}"}}"#);
        let path = format!("/v1/volumes/{name}/snapshots");
        timed(2, &mut || drop(admin.send("POST", &path, &snapshot)));
        admin.send("DELETE", &format!("{path}/s{rounds}"), "");
        rounds += 1;
    };
    let mut alone = <[Vec<Duration>; 3]>::default();
    (0..100).for_each(|_| round(&mut alone));
    let mut beside = <[Vec<Duration>; 3]>::default();
    let mut backup = daemon.command(&["backup", "create", "busy@full"]).spawn().unwrap();
    let begin = Instant::now();
    while backup.try_wait().unwrap().is_none() {
        round(&mut beside);
    }
    let took = begin.elapsed().as_secs_f64();
    let output = backup.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    println!("a backup of 2 GiB took {took:.1} s beside {} rounds", beside[0].len());
    for (call, (alone, beside)) in
        ["Mount", "Get", "snapshot"].iter().zip(alone.into_iter().zip(beside))
    {
        let (alone, beside) = (summary(alone), summary(beside));
        println!(
            "{call:<9} alone {:>6.2} ms (p99 {:>6.2}), beside the backup {:>6.2} ms (p99 {:>6.2})",
            common::millis(alone.median),
            common::millis(alone.p99),
            common::millis(beside.median),
            common::millis(beside.p99)
        );
    }
}
