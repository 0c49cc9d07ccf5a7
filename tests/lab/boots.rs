//! Booting hosts.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::common::lab::Lab;

#[test]
fn two_hosts_reach_each_other_on_the_bridge() {
    let lab = Lab::with_network();
    let [a, b] = lab.boot([lab.host("a"), lab.host("b")]);
    a.run("busybox", &["ping", "-c", "1", &b.address()]);
    b.run("busybox", &["ping", "-c", "1", &a.address()]);
    assert_eq!(a.run("hostname", &[""; 0]), "a\n");
    a.run("busybox", &["ping", "-c", "1", "127.0.0.1"]);
}

#[test]
fn a_host_that_does_not_boot_shows_its_console() {
    let lab = Lab::new();
    let boot = catch_unwind(AssertUnwindSafe(|| lab.host("a").modules(&["no-such-module"]).boot()));
    let panic = boot.expect_err("there is no such module");
    let message = panic.downcast_ref::<String>().expect("a message");
    assert!(message.contains("a did not boot (AsTheHostEnded)"), "{message}");
    assert!(message.contains("Module no-such-module not found"), "{message}");
}
