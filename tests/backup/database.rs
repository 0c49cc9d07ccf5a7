//! Recipe "A database, a bad upgrade, and a lost host" of `docs/recipes.md`, with PostgreSQL in an image made of
//! Debian's packages.

use std::fs;
use std::os::unix::fs::{chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use crate::back_up;
use crate::common::daemon::{Daemon, Launch};
use crate::common::engine::Engine;
use crate::common::host::{Host, checked};
use crate::common::repository::Repository;
use crate::common::wait;

const DATA: &str = "/var/lib/postgresql/data";

/// As the official image does: a database is made where there is none.
const ENTRY: &str = "test -s $PGDATA/PG_VERSION || initdb --auth=trust || exit 1\n\
                     exec postgres -c listen_addresses=\n";

/// Where the newest server of Debian's packages has its programs.
fn programs() -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql").expect("the package postgresql");
    let servers = versions.flatten().map(|entry| entry.path().join("bin"));
    servers.filter(|bin| bin.join("postgres").exists()).max().expect("the package postgresql")
}

/// The libraries that a program needs.
fn libraries(program: &Path) -> Vec<String> {
    let list = checked(&mut Command::new("ldd"), &[program.to_str().unwrap()]);
    let paths = list.split_whitespace().filter(|word| word.starts_with('/'));
    paths.map(str::to_owned).collect()
}

/// Makes the image `postgres`, whose user is `postgres`.
fn import(engine: &Engine<'_>, directory: &Path) {
    let (root, bin) = (directory.join("postgres"), programs());
    let home = bin.parent().unwrap();
    for directory in ["bin", "etc", "run/postgresql", "tmp", &DATA[1..]] {
        fs::create_dir_all(root.join(directory)).unwrap();
    }
    symlink("/run", root.join("var/run")).unwrap();
    fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
    for applet in ["sh", "test"] {
        symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
    let id = |which| checked(&mut Command::new("id"), &[which, "postgres"]).trim().parse().unwrap();
    let (uid, gid): (u32, u32) = (id("-u"), id("-g"));
    let users = format!("postgres:x:{uid}:{gid}::/tmp:/bin/sh\n");
    fs::write(root.join("etc/passwd"), users).unwrap();
    fs::write(root.join("entry"), ENTRY).unwrap();
    for directory in ["run/postgresql", "tmp", &DATA[1..]] {
        chown(root.join(directory), Some(uid), Some(gid)).unwrap();
    }
    let shared = format!("/usr/share/postgresql/{}", home.file_name().unwrap().to_str().unwrap());
    let mut files =
        vec![home.to_str().unwrap().to_owned(), shared, "/usr/share/zoneinfo".to_owned()];
    for program in ["postgres", "initdb", "psql"] {
        files.extend(libraries(&bin.join(program)));
    }
    files.sort();
    files.dedup();
    checked(Command::new("cp").args(["-rL", "--parents"]).args(files).arg(&root), &[]);
    let archive = directory.join("postgres.tar");
    checked(Command::new("tar").arg("-C").arg(&root).arg("-cf").arg(&archive), &["."]);
    let path = format!("ENV PATH={}:/bin PGDATA={DATA}", bin.display());
    let changes = ["CMD [\"sh\", \"/entry\"]", "USER postgres", &path];
    let mut args = vec!["import"];
    args.extend(changes.iter().flat_map(|change| ["--change", change]));
    args.extend([archive.to_str().unwrap(), "postgres"]);
    engine.docker(&args);
}

fn start<'h>(host: &'h Host, repository: &Repository) -> (Daemon<'h>, Engine<'h>) {
    let daemon = repository.known_to(Launch::for_engine()).start(host);
    let engine = Engine::start(host);
    import(&engine, host.dir());
    (daemon, engine)
}

/// Runs the server, and waits until it answers.
#[track_caller]
fn run(engine: &Engine<'_>, volume: &str) {
    let volume = format!("{volume}:{DATA}");
    engine.docker(&[
        "run",
        "-d",
        "--name",
        "db",
        "-v",
        &volume,
        "--volume-driver",
        "holdfast",
        "postgres",
    ]);
    wait::until_true("PostgreSQL answers", || {
        let psql = ["exec", "db", "psql", "-c", "select 1"];
        engine.client(&psql).output().is_ok_and(|run| run.status.success())
    });
}

#[track_caller]
fn sql(engine: &Engine<'_>, statement: &str) -> String {
    engine.docker(&["exec", "db", "psql", "-v", "ON_ERROR_STOP=1", "-qAtc", statement])
}

fn rows(engine: &Engine<'_>) -> u64 {
    sql(engine, "select count(*) from visits").parse().unwrap()
}

fn stop(engine: &Engine<'_>) {
    engine.docker(&["stop", "db"]);
    engine.docker(&["rm", "db"]);
}

#[test]
fn a_database_survives_a_bad_upgrade_and_the_loss_of_its_host() {
    let (host, other) = (Host::new(), Host::new());
    let elsewhere = tempfile::tempdir().unwrap();
    let repository = Repository::at(elsewhere.path());
    let (daemon, engine) = start(&host, &repository);
    let cli = daemon.cli();
    cli.ok(&["repository", "init", "main"]);
    engine.docker(&["volume", "create", "-d", "holdfast", "-o", "size=256M", "pgdata"]);
    run(&engine, "pgdata");
    sql(&engine, "create table visits (id bigint primary key)");
    sql(&engine, "insert into visits select generate_series(1, 1000)");

    cli.ok(&["snapshot", "create", "pgdata@before-upgrade"]);
    sql(&engine, "drop table visits");
    stop(&engine);
    cli.ok(&["snapshot", "restore", "pgdata@before-upgrade"]);
    run(&engine, "pgdata");
    assert_eq!(rows(&engine), 1000);

    // It writes all the time, one committed row after the other.
    let (committed, over) = (AtomicU64::new(1000), AtomicBool::new(false));
    let (at_least, while_it_wrote) = thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                let next = committed.load(Ordering::Relaxed) + 1;
                sql(&engine, &format!("insert into visits values ({next})"));
                committed.store(next, Ordering::Relaxed);
            }
        });
        let committed = || committed.load(Ordering::Relaxed);
        wait::until_true("rows are committed", || committed() > 1003);
        let before = committed();
        let made = cli.run(&["backup", "create", "pgdata"]);
        let after = committed();
        let goes_on = wait::try_until(|| (committed() > after).then_some(()));
        over.store(true, Ordering::Relaxed);
        assert_eq!((made.code, goes_on), (0, Some(())), "{made:?}");
        (before, made.json()["backup"]["id"].as_str().unwrap().to_owned())
    });
    let at_most = committed.load(Ordering::Relaxed);
    stop(&engine);
    let last = back_up(&cli, "pgdata");
    drop((engine, daemon));
    drop(host);

    let (daemon, engine) = start(&other, &repository);
    for (id, volume) in [(while_it_wrote, "while-it-wrote"), (last, "pgdata")] {
        daemon.cli().ok(&["backup", "restore", &id, volume]);
        run(&engine, volume);
        let rows = rows(&engine);
        match volume {
            "pgdata" => assert_eq!(rows, at_most, "every committed row"),
            _ => assert!((at_least..=at_most).contains(&rows), "{at_least} to {at_most}: {rows}"),
        }
        assert_eq!(
            sql(&engine, "select max(id) from visits"),
            rows.to_string(),
            "none is left out"
        );
        sql(&engine, "insert into visits values (0)");
        stop(&engine);
    }
    repository.assert_sound();
}
