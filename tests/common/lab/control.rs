//! The channel to a host's `init`: numbered requests in lines, and for each its number and a code back.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::process::{ChildStdin, ChildStdout};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// Why there is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoAnswer {
    InTime,
    AsTheHostEnded,
}

/// An answer that is to come.
#[derive(Debug)]
pub(super) struct Answer(Receiver<i32>);

impl Answer {
    /// The answer, if it has come.
    pub(super) fn try_wait(&self) -> Option<i32> {
        self.0.try_recv().ok()
    }

    pub(super) fn wait(&self, limit: Duration) -> Result<i32, NoAnswer> {
        self.0.recv_timeout(limit).map_err(|error| match error {
            RecvTimeoutError::Timeout => NoAnswer::InTime,
            RecvTimeoutError::Disconnected => NoAnswer::AsTheHostEnded,
        })
    }
}

/// Nothing is added once the host has ended.
type Waiting = Arc<Mutex<Option<HashMap<u32, Sender<i32>>>>>;

/// The host lives as long as this does, as it reads from its pipe.
#[derive(Debug)]
pub(super) struct Control {
    requests: Mutex<ChildStdin>,
    waiting: Waiting,
    reader: JoinHandle<()>,
}

impl Control {
    /// Gives also the answer that tells that the host is up.
    pub(super) fn new(requests: ChildStdin, answers: ChildStdout) -> (Self, Answer) {
        let (sender, up) = channel();
        let waiting = Waiting::new(Mutex::new(Some(HashMap::from([(0, sender)]))));
        let reader = std::thread::spawn({
            let waiting = Arc::clone(&waiting);
            move || read(answers, &waiting)
        });
        (Self { requests: Mutex::new(requests), waiting, reader }, Answer(up))
    }

    /// Sends a request. The number is one that was never used for this host.
    pub(super) fn ask(&self, verb: &str, number: u32, argument: &str) -> Answer {
        let (sender, receiver) = channel();
        if let Some(waiting) = &mut *self.waiting.lock().expect("no panic under this lock") {
            waiting.insert(number, sender);
        }
        let mut requests = self.requests.lock().expect("no panic under this lock");
        // That the host has ended is told by the answer.
        let _ = writeln!(requests, "{verb} {number} {argument}");
        Answer(receiver)
    }

    /// Lets go of the host, which ends by that.
    pub(super) fn close(self) -> JoinHandle<()> {
        self.reader
    }
}

fn read(answers: ChildStdout, waiting: &Waiting) {
    for line in BufReader::new(answers).lines().map_while(Result::ok) {
        let words = line.trim_end().split_once(' ');
        let Some((number, code)) =
            words.and_then(|(n, c)| Some((n.parse().ok()?, c.parse().ok()?)))
        else {
            continue;
        };
        let mut waiting = waiting.lock().expect("no panic under this lock");
        if let Some(sender) = waiting.as_mut().and_then(|waiting| waiting.remove(&number)) {
            let _ = sender.send(code);
        }
    }
    *waiting.lock().expect("no panic under this lock") = None;
}
