//! `config show`, `config check`, and what of the configuration wins.

use serde_json::{Value, json};

use crate::{holdfast, json_error};

/// Value, source and place of a key.
#[track_caller]
fn shown(env: &[(&str, &str)], args: &[&str], key: &str) -> (Value, String, String) {
    let args = [&["--output", "json", "config", "show"], args].concat();
    let run = holdfast(env, &args);
    assert_eq!(run.code, 0, "{run:?}");
    let all = run.json();
    let found = all.as_array().unwrap().iter().find(|one| one["key"] == key).expect("key").clone();
    let text = |name: &str| found[name].as_str().unwrap().to_owned();
    (found["value"].clone(), text("source"), text("place"))
}

fn file(text: &str) -> (tempfile::TempDir, String) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("config.toml");
    std::fs::write(&path, text).unwrap();
    let path = path.to_str().unwrap().to_owned();
    (directory, path)
}

#[test]
fn flags_win_over_environment_over_file_over_default() {
    let (_directory, path) = file("[loop]\ndefault_size = \"1G\"\n");
    let config = ["--config", &path];
    let both = ["--config", &path, "--loop-default-size", "3G"];
    let env = [("HOLDFAST_LOOP_DEFAULT_SIZE", "2G")];
    let key = "loop.default_size";
    let own =
        |size: u64, source: &str, place: &str| (json!(size << 30), source.into(), place.into());
    let place = format!("{path} line 2");
    assert_eq!(shown(&[], &["--config", "/dev/null"], key), own(10, "default", "default"));
    assert_eq!(shown(&[], &config, key), own(1, "file", &place));
    assert_eq!(shown(&env, &config, key), own(2, "environment", env[0].0));
    assert_eq!(shown(&env, &both, key), own(3, "flag", "--loop-default-size"));
    let named = [("HOLDFAST_CONFIG", path.as_str())];
    assert_eq!(shown(&named, &[], key), own(1, "file", &place));
}

#[test]
fn places_follow_the_directories_they_stand_in() {
    let env = [("HOLDFAST_STATE_DIR", "/s"), ("HOLDFAST_RUNTIME_DIR", "/r")];
    let value = |key| shown(&env, &["--config", "/dev/null"], key).0;
    assert_eq!(value("loop.dir"), "/s/loop");
    assert_eq!(value("mount_dir"), "/s/mounts");
    assert_eq!(value("admin_socket"), "/r/holdfast.sock");
    assert_eq!(value("plugin_socket"), "/run/docker/plugins/holdfast.sock");
    let socket = shown(&env, &["--config", "/dev/null", "--socket", "/x.sock"], "admin_socket");
    assert_eq!(socket, (json!("/x.sock"), "flag".into(), "--admin-socket".into()));
}

#[test]
fn an_unknown_key_is_named_with_the_nearest_known_one() {
    let (_directory, path) = file("# ours\n[loop]\ndefault-size = \"1G\"\n");
    let run = holdfast(&[], &["config", "check", &path]);
    assert_eq!(run.code, 1, "{run:?}");
    assert!(run.stderr.starts_with(&format!("holdfast: {path} line 3: ")), "{run:?}");
    assert!(run.stderr.contains("loop.default-size"), "{run:?}");
    assert!(run.stderr.contains("did you mean loop.default_size?"), "{run:?}");
    let error = json_error(&holdfast(&[], &["--output", "json", "config", "check", &path]));
    assert_eq!(error["code"], "invalid");
    // The daemon does not start on a configuration that may not be what was meant.
    let run = holdfast(&[], &["daemon", "--config", &path]);
    assert_eq!(run.code, 2, "{run:?}");
    assert!(run.stderr.contains("did you mean loop.default_size?"), "{run:?}");
}

#[test]
fn a_good_file_is_ok_and_a_missing_one_is_not() {
    let (_directory, path) = file("node = \"a\"\ntrash_after = \"1d\"\n[loop]\nenabled = true\n");
    let run = holdfast(&[], &["config", "check", &path]);
    assert_eq!((run.code, run.stdout.trim()), (0, format!("{path}: ok").as_str()), "{run:?}");
    let run = holdfast(&[], &["config", "check", "/no/such.toml"]);
    assert_eq!(run.code, 1, "{run:?}");
    assert!(run.stderr.contains("/no/such.toml"), "{run:?}");
    let run = holdfast(&[], &["--config", "/no/such.toml", "config", "show"]);
    assert_eq!(run.code, 2, "a file that was named has to be there: {run:?}");
}

#[test]
fn wrong_values_are_told_with_the_place_they_come_from() {
    for (env, args, words) in [
        (&[("HOLDFAST_TRASH_AFTER", "soon")][..], &[][..], ["HOLDFAST_TRASH_AFTER", "soon"]),
        (&[], &["--loop-default-size", "much"], ["--loop-default-size", "much"]),
        (&[], &["--log-level", "loud"], ["--log-level", "loud"]),
        (&[], &["--loop-enabled", "maybe"], ["--loop-enabled", "maybe"]),
        (&[], &["--default-backend", "a/b"], ["--default-backend", "a/b"]),
    ] {
        let args = [&["config", "show", "--config", "/dev/null"], args].concat();
        let run = holdfast(env, &args);
        assert_eq!(run.code, 2, "{run:?}");
        assert!(words.iter().all(|word| run.stderr.contains(word)), "{run:?}");
    }
}

#[test]
fn a_person_sees_a_table() {
    let run = holdfast(&[], &["config", "show", "--config", "/dev/null"]);
    let lines: Vec<_> = run.stdout.lines().collect();
    assert!(lines[0].starts_with("KEY "), "{run:?}");
    let line = lines.iter().find(|line| line.starts_with("loop.default_size ")).unwrap();
    assert_eq!(
        line.split_whitespace().collect::<Vec<_>>(),
        ["loop.default_size", "10G", "default"]
    );
}

#[test]
fn repositories_and_hooks_are_sections_with_names_of_their_own() {
    let (directory, path) = file(
        "[repository.off-site]\nurl = \"s3:bucket/prefix\"\nupload_limit = \"20M\"\n\
         [hook.db]\nbefore = [\"sync\", \"-f\"]\n",
    );
    let key = directory.path().join("key");
    let key = key.to_str().unwrap();
    let env = [
        ("HOLDFAST_REPOSITORY_OFF_SITE_PASSWORD_FILE", key),
        ("HOLDFAST_HOOK_DB_AFTER", "[\"true\"]"),
        ("HOLDFAST_REPOSITORY_MAIN_URL", "/backups"),
        ("HOLDFAST_REPOSITORY_MAIN_PASSWORD", "hunter2"),
    ];
    let config = ["--config", &path];
    let value = |key| shown(&env, &config, key).0;
    assert_eq!(value("repository.off-site.url"), "s3:bucket/prefix");
    assert_eq!(value("repository.off-site.upload_limit"), 20 << 20);
    assert_eq!(value("repository.off-site.password"), format!("(secret in {key})"));
    assert_eq!(value("repository.main.url"), "/backups");
    assert_eq!(value("repository.main.cache_dir"), "/var/lib/holdfast/cache");
    assert_eq!(value("hook.db.before"), json!(["sync", "-f"]));
    assert_eq!(value("hook.db.after"), json!(["true"]));
    assert_eq!(value("hook.db.timeout"), 60);
    let place = shown(&env, &config, "repository.main.password");
    assert_eq!(
        place,
        (json!("(secret)"), "environment".into(), "HOLDFAST_REPOSITORY_MAIN_PASSWORD".into())
    );
    for form in ["table", "json"] {
        let run = holdfast(&env, &["--output", form, "config", "show", "--config", &path]);
        assert!(run.code == 0 && !run.stdout.contains("hunter2"), "{run:?}");
    }
}

#[test]
fn what_is_wrong_with_a_repository_is_told_when_its_file_is_checked() {
    let wrong = "[repository.main]\nurl = \"s3:https://key:hunter2@server/b\"\npassword = \"p\"\n";
    let (_directory, path) = file(wrong);
    let run = holdfast(&[], &["config", "check", &path]);
    assert_eq!(run.code, 1, "{run:?}");
    assert!(run.stderr.contains(&format!("repository.main.url ({path} line 2)")), "{run:?}");
    assert!(!run.stderr.contains("hunter2"), "{run:?}");

    let good = "[repository.main]\nurl = \"/backups\"\npassword_file = \"/no/such.key\"\n";
    let (_directory, path) = file(good);
    let run = holdfast(&[], &["config", "check", &path]);
    assert_eq!(run.code, 0, "the file can come later: {run:?}");
    let warning = "\nwarning: repository.main.password_file: cannot read /no/such.key";
    assert!(run.stdout.contains(warning), "{run:?}");
}
