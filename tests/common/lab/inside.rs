//! Tests that run in a host. Outside they boot one and run themselves in it.

use std::time::Duration;

use super::builder::HostBuilder;
use super::host::Host;
use super::{Command, Lab, text};

/// Tells a test that it runs in a host.
const INSIDE: &str = "HOLDFAST_LAB_HOST";

/// Just below what `.config/nextest.toml` allows a test.
const LIMIT: Duration = Duration::from_secs(170);

/// How many tests run at once in a host, which has one processor.
const THREADS: &str = "--test-threads=2";

pub(crate) fn is_inside() -> bool {
    std::env::var_os(INSIDE).is_some()
}

/// For tests that only [`Host::run_tests`] may start.
#[track_caller]
pub(crate) fn assert_inside() {
    assert!(
        is_inside(),
        "this test runs in a lab host, where another test starts it (docs/lab.md); \
         `cargo nextest run` leaves it out by itself"
    );
}

impl Host<'_> {
    /// Runs those tests of the calling test's own binary in the host whose paths contain `path`.
    #[track_caller]
    pub(crate) fn run_tests(&self, path: &str) {
        self.run_test_binary(&[path, THREADS]);
    }

    /// One such test, for who wants to do something while it runs.
    #[track_caller]
    pub(crate) fn test_command(&self, path: &str) -> Command<'_> {
        self.test_binary().args(&["--exact", path, "--nocapture"])
    }

    fn test_binary(&self) -> Command<'_> {
        let binary = std::env::current_exe().expect("this test's binary");
        self.command(text(&binary)).env(INSIDE, self.name()).limit(LIMIT)
    }

    #[track_caller]
    fn run_test_binary(&self, args: &[&str]) {
        let output = self.test_binary().args(args).output();
        let (stdout, stderr) = (&output.stdout, &output.stderr);
        assert_eq!(output.code, 0, "in {}:\n{stdout}{stderr}", self.name());
        assert!(!stdout.contains("test result: ok. 0 passed"), "no test has run: {args:?}");
        println!("{stdout}{stderr}");
    }
}

/// The outer half of [`in_lab`].
#[track_caller]
pub(crate) fn run_inside<'l>(
    lab: &'l Lab,
    plan: impl FnOnce(HostBuilder<'l>) -> HostBuilder<'l>,
    module: &str,
    test: &str,
) {
    let host = plan(lab.host("lab")).boot();
    // A test's path begins below its crate.
    let path = match module.split_once("::") {
        Some((_, module)) => format!("{module}::{test}"),
        None => test.to_owned(),
    };
    host.run_test_binary(&["--exact", &path, "--nocapture"]);
}

/// One test whose body runs in a host of its own: `in_lab! { on |host| host.memory(1024); fn name() { ... } }`.
macro_rules! in_lab {
    (on $plan:expr; $(#[$attribute:meta])* fn $name:ident() $body:block) => {
        $(#[$attribute])*
        #[test]
        fn $name() {
            if $crate::common::lab::is_inside() {
                $body
            } else {
                let lab = $crate::common::lab::Lab::new();
                $crate::common::lab::run_inside(&lab, $plan, module_path!(), stringify!($name));
            }
        }
    };
}
pub(crate) use in_lab;
