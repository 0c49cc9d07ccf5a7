//! Backups that a schedule makes, over days: the daemon's clock is the test's.

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::common::cli::Cli;
use crate::common::daemon::Launch;
use crate::common::host::Host;
use crate::common::repository::Repository;
use crate::common::{kernel, wait};
use crate::{back_up, create, refused, start_with, text, write};

/// The wall clock of a daemon, ahead of the host's. What waits for a time to pass does not know of it.
struct Clock {
    file: PathBuf,
    hours: u32,
}

impl Clock {
    fn of(host: &Host) -> Self {
        let clock = Self { file: host.dir().join("clock"), hours: 0 };
        clock.tell();
        clock
    }

    fn known_to(&self, launch: Launch) -> Launch {
        let libraries = kernel::names_in("/usr/lib".as_ref()).into_iter();
        let mut places = libraries.map(|name| format!("/usr/lib/{name}/faketime/libfaketime.so.1"));
        let place = places.find(|place| std::fs::exists(place).is_ok_and(|there| there));
        launch
            .env("LD_PRELOAD", &place.expect("faketime is installed"))
            .env("FAKETIME_TIMESTAMP_FILE", self.file.to_str().expect("UTF-8"))
            .env("FAKETIME_NO_CACHE", "1")
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
            .env("NO_FAKE_STAT", "1")
    }

    fn tell(&self) {
        // Whole at any time that it is read.
        let draft = self.file.with_extension("draft");
        std::fs::write(&draft, format!("+{}", u64::from(self.hours) * 3600)).expect("clock");
        std::fs::rename(draft, &self.file).expect("clock");
    }

    fn forward(&mut self, hours: u32) {
        self.hours += hours;
        self.tell();
    }
}

/// Has the daemon look at what is due, which it else does once a minute.
fn wake(cli: &Cli) {
    cli.ok(&["schedule", "set", "other", "--snapshot-every", "900d"]);
    cli.ok(&["schedule", "set", "other", "--snapshot-every", "901d"]);
}

/// The backups of a volume that restic finds, oldest first, and whether a schedule made them.
fn found(repository: &Repository, volume: &str) -> Vec<(String, bool)> {
    let all = repository.restic(&["snapshots", "--json", "--no-lock"]);
    let all: Vec<Value> = serde_json::from_str(&all).unwrap();
    let has = |one: &Value, tag: &str| one["tags"].as_array().unwrap().contains(&json!(tag));
    let mut of: Vec<&Value> =
        all.iter().filter(|one| has(one, &format!("volume={volume}"))).collect();
    of.sort_by_key(|one| one["time"].as_str().unwrap().parse::<jiff::Timestamp>().unwrap());
    of.iter().map(|one| (one["id"].as_str().unwrap().to_owned(), has(one, "scheduled"))).collect()
}

/// The backup of the last run, once that is another than `before`.
fn next_run(cli: &Cli, volume: &str, before: &Value) -> Value {
    wait::until("the schedule makes a backup", || {
        let run = cli.inspect(volume)["last_backup_run"].clone();
        (run != *before && run["outcome"]["done"].is_string()).then_some(run)
    })
}

#[test]
fn a_schedule_backs_up_keeps_what_it_is_told_and_makes_up_for_what_was_missed_once() {
    let host = Host::new();
    let mut clock = Clock::of(&host);
    let (mut daemon, repository) = start_with(&host, |launch| clock.known_to(launch));
    let cli = daemon.cli();
    create(&daemon, "data", "by hand");
    create(&daemon, "other", "else");
    let by_hand = back_up(&cli, "data");
    cli.ok(&["schedule", "set", "data", "--backup-every", "1h", "--keep", "2h,2d"]);
    assert_eq!(found(&repository, "data"), [(by_hand.clone(), false)], "none is due yet");
    let (mut run, mut made) = (Value::Null, Vec::new());
    for hour in 1..=4 {
        write(&daemon, "data", &format!("hour {hour}"));
        clock.forward(1);
        wake(&cli);
        run = next_run(&cli, "data", &run);
        made.push(run["outcome"]["done"].as_str().unwrap().to_owned());
    }
    // The last two hours, one of which is the day's, or one more if midnight lay between; and the user's own.
    let is_kept = |made: &[String], found: &[(String, bool)]| {
        let scheduled: BTreeSet<&String> =
            found.iter().filter(|(_, scheduled)| *scheduled).map(|(id, _)| id).collect();
        let newest = made.iter().rev().take(2).all(|id| scheduled.contains(id));
        newest && (2..=3).contains(&scheduled.len()) && found.contains(&(by_hand.clone(), false))
    };
    wait::until_true("retention leaves what is to be kept", || {
        is_kept(&made, &found(&repository, "data"))
    });

    daemon.terminate();
    clock.forward(60);
    daemon.start_again();
    let cli = daemon.cli();
    run = next_run(&cli, "data", &run);
    made.push(run["outcome"]["done"].as_str().unwrap().to_owned());
    let started: jiff::Timestamp = run["started"].as_str().unwrap().parse().unwrap();
    let next = cli.inspect("data")["schedule"]["next_backup"].as_str().unwrap().to_owned();
    let wait = next.parse::<jiff::Timestamp>().unwrap().duration_since(started).as_secs();
    assert_eq!(wait, 3600, "nothing more is due for what was missed");
    // Of the days before, one is left beside that of today, and of the hours the one before.
    wait::until_true("retention has gone on", || {
        let left = found(&repository, "data");
        let scheduled = left.iter().filter(|(_, scheduled)| *scheduled).count();
        scheduled == 2 && is_kept(&made, &left)
    });
    assert_eq!(cli.inspect("data")["last_backup_run"], run, "one run has made up for all");

    let left = found(&repository, "data");
    assert_eq!(left.len(), 3, "{left:?}");
    let holds = |id: &str| {
        cli.ok(&["backup", "restore", id, "copy"]);
        let text = text(&daemon, "copy");
        daemon.plugin().remove("copy").unwrap();
        text
    };
    assert_eq!(left[0], (by_hand.clone(), false));
    assert_eq!([holds(&by_hand), holds(&made[3])], ["by hand", "hour 4"]);
    assert_eq!(holds(&made[4]), "hour 4");
    cli.ok(&["backup", "prune", "--now"]);
    repository.assert_sound();
    let (code, _) = refused(&cli.run(&["backup", "inspect", &made[0]]));
    assert_eq!(code, 3, "it is gone");
}
