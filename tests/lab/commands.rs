//! Commands in a host.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use crate::common::lab::{Lab, SHARE};

#[test]
fn exit_code_output_and_files_come_back() {
    let lab = Lab::new();
    let host = lab.host("a").boot();

    let output = host.command("sh").args(&["-c", "echo out; echo err >&2; exit 7"]).output();
    assert_eq!((output.code, output.stdout.as_str()), (7, "out\n"));
    assert_eq!(output.stderr, "err\n");
    let words = ["a b", "it's", "$HOME", "", "a\nb"];
    let printed = host.command("printf").args(&["[%s]"]).args(&words).env("X", "it's").output();
    assert_eq!(printed.stdout, "[a b][it's][$HOME][][a\nb]");
    assert_eq!(host.command("printenv").args(&["X"]).env("X", "it's").output().stdout, "it's\n");

    fs::write(lab.dir().join("from-outside"), "outside").unwrap();
    assert_eq!(host.run("cat", &[format!("{SHARE}/from-outside")]), "outside");
    host.sh(&format!("echo inside > {SHARE}/from-inside"));
    assert_eq!(fs::read_to_string(lab.dir().join("from-inside")).unwrap(), "inside\n");

    // What a process left behind holds open comes back all the same.
    assert_eq!(host.sh("echo before; sleep 1000 &"), "before\n");
    let marker = lab.dir().join("written-in-the-overlay");
    host.sh(&format!("mkdir -p {0} && rmdir {0} && touch /etc/marker", marker.display()));
    assert!(!fs::exists("/etc/marker").unwrap());
}

#[test]
fn commands_run_at_once() {
    let lab = Lab::new();
    let host = lab.host("a").boot();
    host.run("mkfifo", &["/run/fifo"]);
    let reader = host.command("cat").args(&["/run/fifo"]).spawn();
    let writer = host.command("sh").args(&["-c", "echo through > /run/fifo"]).spawn();
    assert_eq!(reader.wait().stdout, "through\n");
    assert_eq!(writer.wait().code, 0);
}

#[test]
fn a_hanging_command_is_killed_with_its_host_and_the_console_is_shown() {
    let lab = Lab::new();
    let host = lab.host("a").boot();
    host.sh("echo said on the console > /dev/console");
    let hangs = host
        .command("sh")
        .args(&["-c", "echo said before; exec sleep 1000"])
        .limit(Duration::from_millis(500));
    let panic = catch_unwind(AssertUnwindSafe(|| hangs.output())).expect_err("it hangs");
    let message = panic.downcast_ref::<String>().expect("a message");
    for part in
        ["`sh -c echo said before", "500ms", "a was killed", "said before", "said on the console"]
    {
        assert!(message.contains(part), "{part}: {message}");
    }
    let off = catch_unwind(AssertUnwindSafe(|| host.sh("true"))).expect_err("it is off");
    assert_eq!(off.downcast_ref::<String>().expect("a message"), "a is off");
}

#[test]
fn a_command_is_told_that_its_host_has_ended() {
    let lab = Lab::new();
    let host = lab.host("a").boot();
    let panic = catch_unwind(AssertUnwindSafe(|| host.run("busybox", &["poweroff", "-f"])));
    let panic = panic.expect_err("no answer");
    let message = panic.downcast_ref::<String>().expect("a message");
    assert!(message.contains("did not end before a did"), "{message}");
}
