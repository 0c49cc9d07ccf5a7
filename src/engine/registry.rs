//! Operations as people watch them: what runs, how far it is, and how the last ones ended.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;

use super::figures::Work;
use super::view::{ErrorView, OperationState, OperationView};
use crate::error::{Error, Result};
use crate::id::OperationId;
use crate::model::{Progress, Subject};

/// The kinds whose work looks whether somebody has asked for its end, and can be undone until it is done.
const CANCELLABLE: [&str; 5] = ["backup", "restore-backup", "verify", "prune", "create"];

/// Operations that are over and still told of.
const HISTORY: usize = 256;

#[derive(Debug, Default)]
pub(super) struct Registry {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    running: HashMap<OperationId, Running>,
    over: VecDeque<OperationView>,
    counts: BTreeMap<(Work, bool), u64>,
}

#[derive(Debug)]
struct Running {
    kind: &'static str,
    subject: Subject,
    started: Timestamp,
    progress: Arc<Progress>,
    report: Vec<String>,
}

/// A running operation's place in the registry. Dropped without an end it counts as given up.
#[derive(Debug)]
pub(super) struct Entry {
    registry: Arc<Registry>,
    id: OperationId,
    progress: Arc<Progress>,
}

impl Registry {
    /// Begins to tell of an operation.
    ///
    /// # Errors
    /// `Conflict` if the id is one that runs or has run.
    pub(super) fn begin(
        self: &Arc<Self>,
        id: OperationId,
        kind: &'static str,
        subject: Subject,
        started: Timestamp,
    ) -> Result<Entry> {
        let mut inner = self.lock();
        if inner.running.contains_key(&id) || inner.over.iter().any(|view| view.id == id) {
            return Err(Error::conflict(format!("there is an operation {id} already")));
        }
        let progress = Arc::new(Progress::default());
        let running =
            Running { kind, subject, started, progress: Arc::clone(&progress), report: Vec::new() };
        inner.running.insert(id, running);
        Ok(Entry { registry: Arc::clone(self), id, progress })
    }

    pub(super) fn is_running(&self, id: OperationId) -> bool {
        self.lock().running.contains_key(&id)
    }

    pub(super) fn is_idle(&self) -> bool {
        self.lock().running.is_empty()
    }

    /// Those that run, then those that are over, each in the order of their beginning.
    pub(super) fn views(&self) -> Vec<OperationView> {
        let inner = self.lock();
        let mut running: Vec<_> =
            inner.running.iter().map(|(id, running)| running.view(*id)).collect();
        running.sort_by_key(|view| (view.started, view.id));
        running.into_iter().chain(inner.over.iter().cloned()).collect()
    }

    /// How many run, and how many are over and whether they failed.
    pub(super) fn counts(&self) -> (BTreeMap<Work, u64>, BTreeMap<(Work, bool), u64>) {
        let inner = self.lock();
        let mut running = BTreeMap::new();
        for one in inner.running.values() {
            *running.entry(one.work()).or_default() += 1;
        }
        (running, inner.counts.clone())
    }

    pub(super) fn view(&self, id: OperationId) -> Option<OperationView> {
        let inner = self.lock();
        let running = inner.running.get(&id).map(|running| running.view(id));
        running.or_else(|| inner.over.iter().find(|view| view.id == id).cloned())
    }

    /// Asks a running operation to end, and tells how it stands. None if it does not run.
    ///
    /// # Errors
    /// `Unsupported` for a kind that goes on to its end.
    pub(super) fn cancel(&self, id: OperationId) -> Result<Option<OperationView>> {
        let inner = self.lock();
        let Some(running) = inner.running.get(&id) else { return Ok(None) };
        if !running.is_cancellable() {
            return Err(Error::unsupported(format!("a {} cannot be cancelled", running.kind))
                .hint(format!(
                    "it will end by itself; `holdfast operation watch {id}` waits for it"
                )));
        }
        running.progress.cancel();
        Ok(Some(running.view(id)))
    }

    /// Asks all that can be ended to end: what took hours would keep the daemon from stopping.
    pub(super) fn cancel_all(&self) {
        let inner = self.lock();
        let long = inner.running.values().filter(|running| running.is_cancellable());
        long.for_each(|running| running.progress.cancel());
    }

    /// Keeps what a running operation has to tell besides whether it failed.
    pub(super) fn report(&self, id: OperationId, sentences: Vec<String>) {
        if let Some(running) = self.lock().running.get_mut(&id) {
            running.report = sentences;
        }
    }

    fn end(&self, id: OperationId, finished: Option<Timestamp>, error: Option<ErrorView>) {
        let mut inner = self.lock();
        let Some(running) = inner.running.remove(&id) else { return };
        *inner.counts.entry((running.work(), error.is_some())).or_default() += 1;
        let state = if error.is_some() { OperationState::Failed } else { OperationState::Done };
        inner.over.push_back(OperationView { state, finished, error, ..running.view(id) });
        if inner.over.len() > HISTORY {
            inner.over.pop_front();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Running {
    fn is_cancellable(&self) -> bool {
        CANCELLABLE.contains(&self.kind)
    }

    fn work(&self) -> Work {
        Work { kind: self.kind, subject: self.subject.word() }
    }

    fn view(&self, id: OperationId) -> OperationView {
        OperationView {
            id,
            kind: self.kind.to_owned(),
            subject: self.subject.clone(),
            state: OperationState::Running,
            done: self.progress.done(),
            total: self.progress.total(),
            started: self.started,
            finished: None,
            error: None,
            report: self.report.clone(),
        }
    }
}

impl Entry {
    pub(super) fn progress(&self) -> &Arc<Progress> {
        &self.progress
    }

    /// The operation is over.
    pub(super) fn end<T>(self, now: Timestamp, result: &Result<T>) {
        let error = result.as_ref().err().map(ErrorView::from);
        self.registry.end(self.id, Some(now), error);
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        // After `end` this finds nothing.
        let error = ErrorView::from(&Error::busy("the caller gave up before it began"));
        self.registry.end(self.id, None, Some(error));
    }
}

impl From<&Error> for ErrorView {
    fn from(error: &Error) -> Self {
        Self {
            code: error.kind().code().to_owned(),
            message: error.full_message(),
            hint: error.hint_text().map(str::to_owned),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn what_can_be_undone_until_it_is_done_can_be_cancelled() {
        let registry = Arc::new(Registry::default());
        let subject = Subject::Repository("main".parse().unwrap());
        let id = |number| OperationId::from_uuid(uuid::Uuid::from_u128(number));
        let begin = |number, kind| {
            registry.begin(id(number), kind, subject.clone(), Timestamp::UNIX_EPOCH).unwrap()
        };
        let prune = begin(1, "prune");
        assert!(prune.progress().go_on().is_ok());
        let told = registry.cancel(id(1)).unwrap().unwrap();
        assert_eq!((told.kind.as_str(), told.state), ("prune", OperationState::Running));
        assert_eq!(prune.progress().go_on().unwrap_err().kind(), ErrorKind::Cancelled);

        let check = begin(2, "check");
        assert_eq!(registry.cancel(id(2)).unwrap_err().kind(), ErrorKind::Unsupported);
        assert!(check.progress().go_on().is_ok());
        drop(prune);
        assert_eq!(registry.cancel(id(1)).unwrap(), None, "it is over");
    }
}
