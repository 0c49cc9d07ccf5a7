//! Steps that fail: what was begun is undone, and the next request succeeds.

use super::driver::{Place, assert_only, remove_all_but, steps_of};
use super::operations::{Operation, find};
use super::{BACKED_UP, steps_within_a_backup};
use crate::common::host::Host;

/// Lets each of these steps fail once, and asks again.
fn fail_at_each<'s>(
    place: &Place,
    operation: &Operation,
    steps: impl IntoIterator<Item = &'s str>,
) {
    let host = Host::new();
    let mut daemon = (place.launch)(&host).start(&host);
    for step in steps {
        eprintln!("--- {} fails at {step}", operation.name);
        (operation.prepare)(&daemon);
        daemon.terminate();
        daemon = (place.launch)(&host).failpoint(&format!("{step}=error@1")).start(&host);
        // What fails after the content is safe is told of, and is no failure of the request.
        if let Err(error) = (operation.run)(&daemon) {
            assert!(error.contains(&format!("failpoint {step}")), "failed otherwise: {error}");
            if let Err(error) = (operation.run)(&daemon) {
                let over = operation.already.iter().any(|word| error.contains(word));
                assert!(over, "{step}: the retried request failed: {error}");
            }
        }
        assert!(daemon.log().contains(&format!("failpoint {step}")), "{step} was not reached");
        (operation.check)(&daemon, &host, place);
        remove_all_but(&[], &daemon, &host);
        assert_only(place, &daemon, &host, &[]);
    }
    daemon.terminate();
    (place.ended)(&host);
}

#[test]
fn backup_survives_a_failure_of_every_step() {
    let operation = find("backup");
    fail_at_each(&BACKED_UP, operation, steps_of(operation));
}

#[test]
fn backup_survives_a_failure_of_every_step_of_its_snapshot() {
    fail_at_each(&BACKED_UP, find("backup"), steps_within_a_backup());
}

#[test]
fn restore_of_a_backup_survives_a_failure_of_every_step() {
    let operation = find("restore-backup");
    fail_at_each(&BACKED_UP, operation, steps_of(operation));
}
