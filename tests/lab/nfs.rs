//! A repository on an NFS server, which dies and comes back.

use std::time::{Duration, Instant};

use crate::common::HOLDFAST;
use crate::common::lab::{Command, Host, Lab};

/// Makes the exported filesystem, once.
const MAKE: &str = "mkfs.ext4 -q /dev/ubda";

/// Serves the directory /backups of the host's disk.
const SERVE: &str = "
    mkdir -p /export && mount /dev/ubda /export && mkdir -p /export/backups
    mount -t tmpfs tmpfs /var/lib/nfs
    mkdir -p /var/lib/nfs/rpc_pipefs /var/lib/nfs/v4recovery
    touch /var/lib/nfs/etab /var/lib/nfs/rmtab /var/lib/nfs/xtab
    mount -t nfsd nfsd /proc/fs/nfsd
    echo 10 > /proc/fs/nfsd/nfsv4gracetime
    echo 10 > /proc/fs/nfsd/nfsv4leasetime
    echo '/export *(rw,fsid=0,no_root_squash,insecure,no_subtree_check)' > /etc/exports
    exportfs -ra
    rpc.mountd -N 2 -N 3 < /dev/null > /dev/null 2>&1
    rpc.nfsd -N 3 4
    echo Y > /proc/fs/nfsd/v4_end_grace
";

/// A daemon with its state on the host's disk; 8 MiB/s, so that a backup takes long enough to be cut off.
fn start(client: &Host<'_>, server: &str) {
    client.sh(&format!(
        "mkfs.ext4 -q /dev/ubda && mkdir -p /disk && mount /dev/ubda /disk
        cat > /disk/config.toml <<'END'
[repository.main]
url = 'nfs://{server}/backups'
password = 'secret'
upload_limit = '8M'
END
        setsid {HOLDFAST} daemon --config /disk/config.toml --state-dir /disk/state --runtime-dir /disk/run \
            --plugin-socket /disk/plugin.sock > /disk/log 2>&1 < /dev/null &
        for _ in $(seq 100); do test -S /disk/run/holdfast.sock && exit; sleep 0.1; done; cat /disk/log; exit 1"
    ));
}

fn holdfast<'h>(client: &'h Host<'_>, line: &str) -> Command<'h> {
    let args: Vec<&str> = line.split(' ').collect();
    client
        .command(HOLDFAST)
        .args(&args)
        .env("HOLDFAST_ADMIN_SOCKET", "/disk/run/holdfast.sock")
        .limit(Duration::from_secs(400))
}

/// restic finds the exported repository whole.
fn assert_sound(server: &Host<'_>) {
    let said = server
        .command("restic")
        .args(&["check", "--read-data", "--no-cache", "-r", "/export/backups"])
        .env("RESTIC_PASSWORD", "secret")
        .limit(Duration::from_secs(200))
        .checked();
    assert!(said.contains("no errors were found"), "{said}");
}

fn backup_id(json: &str) -> String {
    let read: serde_json::Value = serde_json::from_str(json).expect(json);
    let all = read.as_array().expect("a list");
    all.last().expect("a backup")["id"].as_str().expect("an id").to_owned()
}

#[test]
fn a_repository_on_nfs_outlives_its_server() {
    let lab = Lab::with_network();
    let [server, client] = lab.boot([
        lab.host("server").modules(&["nfsd"]).new_disk(512),
        lab.host("client").modules(&["nfsv4", "loop"]).new_disk(1024),
    ]);
    server.sh(MAKE);
    server.sh(SERVE);
    start(&client, &server.address());
    holdfast(&client, "repository init main").checked();
    holdfast(&client, "volume create data --size 128M").checked();
    let mounted = "/disk/state/mounts/data/data";
    holdfast(&client, "volume mount data").checked();
    client.sh(&format!("head -c 8M /dev/urandom > {mounted}/first; sync"));
    holdfast(&client, "backup create data").checked();
    let id = backup_id(&holdfast(&client, "backup ls --output json").checked());
    holdfast(&client, &format!("backup verify {id}")).checked();
    holdfast(&client, &format!("backup restore {id} again")).checked();
    holdfast(&client, "volume mount again").checked();
    client.sh(&format!("cmp {mounted}/first /disk/state/mounts/again/data/first"));
    holdfast(&client, "backup prune").checked();
    assert_sound(&server);
    let mounts = client.sh("cat /proc/mounts");
    assert!(mounts.contains(" /disk/run/repositories/main nfs4 rw,"), "{mounts}");

    client.sh(&format!("head -c 64M /dev/urandom > {mounted}/second; sync"));
    let job = holdfast(&client, "backup create data").spawn();
    let began = server.sh("for _ in $(seq 600); do
            test $(find /export/backups/data -type f -size +1M | wc -l) -ge 2 && echo begun && exit
            sleep 0.1
        done");
    assert_eq!(began.trim(), "begun");
    server.lose_power();
    let lost = Instant::now();
    // Nothing else waits for the server.
    holdfast(&client, "volume create other --size 32M").checked();
    holdfast(&client, "volume mount other").checked();
    holdfast(&client, "volume ls").checked();
    assert!(lost.elapsed() < Duration::from_secs(30), "{:?}", lost.elapsed());
    let end = job.wait();
    assert!(lost.elapsed() < Duration::from_secs(180), "{:?}", lost.elapsed());
    assert_eq!(end.code, 1, "{} {}", end.stdout, end.stderr);
    assert!(end.stderr.contains("repository main at nfs://"), "{}", end.stderr);
    assert!(end.stderr.contains("try again when it can be reached"), "{}", end.stderr);

    server.boot_again();
    server.sh(SERVE);
    holdfast(&client, "backup create data").checked();
    let next = backup_id(&holdfast(&client, "backup ls --output json").checked());
    assert_ne!(next, id);
    holdfast(&client, &format!("backup restore {next} later")).checked();
    holdfast(&client, "volume mount later").checked();
    client.sh(&format!("cmp {mounted}/second /disk/state/mounts/later/data/second"));
    assert_sound(&server);

    client.sh(
        "kill $(cat /disk/run/holdfast.pid); tail --pid=$(cat /disk/run/holdfast.pid) -f /dev/null",
    );
    let mounts = client.sh("cat /proc/mounts");
    assert!(!mounts.contains(" nfs4 "), "{mounts}");
}
