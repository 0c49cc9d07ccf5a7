//! Tests that run in a host.

use std::panic::catch_unwind;

use crate::common::lab::{Lab, assert_inside, in_lab, is_inside};

in_lab! {
    on |host| host;
    fn one_test_runs_itself_in_a_host() {
        let version = std::fs::read_to_string("/proc/version").unwrap();
        let release = std::fs::read_dir("/usr/lib/uml/modules").unwrap().next().unwrap().unwrap();
        assert!(version.contains(release.file_name().to_str().unwrap()), "{version}");
    }
}

#[test]
fn a_suite_runs_in_one_host() {
    let lab = Lab::new();
    lab.host("a").boot().run_tests("tests_inside::in_lab::passes::");
}

#[test]
fn a_failure_inside_is_a_failure_outside() {
    let run = |path: &'static str| {
        let run = catch_unwind(|| {
            let lab = Lab::new();
            lab.host("a").boot().run_tests(path);
        });
        let message = run.expect_err("a failure");
        message.downcast_ref::<String>().expect("a message").clone()
    };
    let message = run("tests_inside::in_lab::fails::");
    assert!(message.contains("this is why"), "{message}");
    let message = run("tests_inside::in_lab::no_such_test");
    assert!(message.contains("no test has run"), "{message}");
}

#[test]
fn an_inner_test_refuses_to_run_outside() {
    assert!(!is_inside());
    let refusal = catch_unwind(assert_inside).expect_err("this is outside");
    assert!(refusal.downcast_ref::<&str>().expect("a message").contains("runs in a lab host"));
}

/// `.config/nextest.toml` leaves modules of this name to the tests above.
mod in_lab {
    mod passes {
        use crate::common::lab::assert_inside;

        #[test]
        fn one() {
            assert_inside();
        }

        #[tokio::test]
        async fn another() {
            assert_inside();
            let kernel = tokio::fs::read_to_string("/proc/cpuinfo").await.unwrap();
            assert!(kernel.contains("User Mode Linux"), "{kernel}");
        }
    }

    mod fails {
        use crate::common::lab::assert_inside;

        #[test]
        fn on_purpose() {
            assert_inside();
            panic!("this is why");
        }
    }
}
