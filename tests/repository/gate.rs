//! Stops a backup where a test wants to do something else meanwhile.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::{Scope, ScopedJoinHandle};
use std::time::Duration;

use holdfast::error::Result;
use holdfast::repository::{ImageJob, Repository, Stored};

use crate::faulty::{Faulty, Verb};
use crate::world::progress;

/// Longer than anything here takes.
const LIMIT: Duration = Duration::from_secs(60);

/// A backup that waits before the first object that it stores below a directory.
pub(crate) struct Waiting<'scope> {
    backup: ScopedJoinHandle<'scope, Result<Stored>>,
    go_on: SyncSender<()>,
}

impl<'scope> Waiting<'scope> {
    pub(crate) fn before(
        directory: &'static str,
        store: &Faulty,
        repository: &'scope Repository,
        job: ImageJob,
        scope: &'scope Scope<'scope, '_>,
    ) -> Self {
        let (reached, is_reached) = sync_channel(1);
        let (go_on, goes_on): (_, Receiver<()>) = sync_channel(1);
        let once = Arc::new(Mutex::new(Some((reached, goes_on))));
        store.obey(move |verb, path| {
            if verb == Verb::Put && path.starts_with(directory) {
                // Others who come here meanwhile wait for the lock.
                let mut once = once.lock().unwrap();
                if let Some((reached, goes_on)) = once.take() {
                    reached.send(()).unwrap();
                    let _ = goes_on.recv_timeout(LIMIT);
                }
            }
            None
        });
        let backup = scope.spawn(move || repository.back_up_image(&job, &progress()));
        is_reached.recv_timeout(LIMIT).expect("the backup stores something there");
        Self { backup, go_on }
    }

    pub(crate) fn finish(self) -> Result<Stored> {
        self.go_on.send(()).unwrap();
        self.backup.join().unwrap()
    }
}
