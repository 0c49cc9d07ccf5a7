//! The objects of a repository, wherever they lie, with limits on requests and bytes.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use super::lock;
use crate::error::{Error, ErrorKind, Result};
use crate::name::RepositoryName;
use crate::units::ByteSize;

/// How often a request is made before its error counts, besides what the service's client repeats.
const TRIES: u32 = 4;

/// The pause before the first repetition; each next one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(200);

/// How fast and how many at once.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes per second to the store.
    pub upload: Option<ByteSize>,
    /// Bytes per second from the store.
    pub download: Option<ByteSize>,
    /// Requests at once.
    pub connections: usize,
}

/// How long a request may take where its client has no limit of its own: what hangs in the kernel hangs for ever.
#[derive(Debug, Clone, Copy)]
pub(super) struct Within {
    /// Reading, removing, or telling of a part of a list.
    pub(super) read: Duration,
    /// Writing, which waits for what others write.
    pub(super) write: Duration,
}

/// One repository's objects. Calls block, and are made on threads that may.
#[derive(Debug)]
pub(super) struct Store {
    name: RepositoryName,
    place: String,
    objects: Arc<dyn ObjectStore>,
    prefix: Path,
    runtime: Handle,
    within: Option<Within>,
    silent: AtomicBool,
    requests: Arc<Semaphore>,
    upload: Option<Pace>,
    download: Option<Pace>,
}

impl Store {
    pub(super) fn new(
        name: RepositoryName,
        place: String,
        (objects, prefix): (Arc<dyn ObjectStore>, Path),
        runtime: Handle,
        limits: Limits,
        within: Option<Within>,
    ) -> Self {
        Self {
            name,
            place,
            objects,
            prefix,
            runtime,
            within,
            silent: AtomicBool::new(false),
            requests: Arc::new(Semaphore::new(limits.connections.max(1))),
            upload: limits.upload.map(Pace::new),
            download: limits.download.map(Pace::new),
        }
    }

    /// Where it is, without secrets.
    pub(super) fn place(&self) -> &str {
        &self.place
    }

    /// Whether the last request was not answered in time.
    pub(super) fn is_silent(&self) -> bool {
        self.silent.load(Ordering::Relaxed)
    }

    pub(super) fn runtime(&self) -> &Handle {
        &self.runtime
    }

    fn path(&self, name: &str) -> Path {
        Path::from_iter(self.prefix.parts().chain(Path::from(name).parts()))
    }

    /// The whole object; none if there is no such one.
    pub(super) fn get(&self, name: &str) -> Result<Option<Bytes>> {
        let path = self.path(name);
        let read = |objects: Arc<dyn ObjectStore>| {
            let path = path.clone();
            async move {
                match objects.get(&path).await {
                    Ok(found) => found.bytes().await.map(Some),
                    other => unless_missing(other.map(drop)).map(|_| None),
                }
            }
        };
        let bytes = self.repeated("read", name, read)?;
        self.pace(self.download.as_ref(), bytes.as_ref().map_or(0, Bytes::len));
        Ok(bytes)
    }

    /// `length` bytes of an object.
    pub(super) fn get_range(&self, name: &str, offset: u64, length: u64) -> Result<Bytes> {
        let path = self.path(name);
        let end = offset + length;
        let read = |objects: Arc<dyn ObjectStore>| {
            let path = path.clone();
            async move {
                match objects.get_range(&path, offset..end).await {
                    Ok(bytes) => Ok(Some(bytes)),
                    // Each service has its own error for a range beyond the end.
                    Err(error) => match objects.head(&path).await {
                        Ok(meta) if meta.size < end => Ok(None),
                        _ => Err(error),
                    },
                }
            }
        };
        let bytes = self.repeated("read", name, read)?.filter(|bytes| bytes.len() as u64 == length);
        let bytes = bytes.ok_or_else(|| {
            self.error(ErrorKind::Corrupt, format!("{name} is shorter than it should be"))
        })?;
        self.pace(self.download.as_ref(), bytes.len());
        Ok(bytes)
    }

    /// The size of an object; none if there is no such one.
    pub(super) fn size(&self, name: &str) -> Result<Option<u64>> {
        let path = self.path(name);
        self.repeated("look at", name, |objects| {
            let path = path.clone();
            async move {
                let found = objects.head(&path).await;
                unless_missing(found.map(|meta| meta.size))
            }
        })
    }

    /// The names, without their directories, and sizes of the objects below `directory`.
    pub(super) fn list(&self, directory: &str) -> Result<Vec<(String, u64)>> {
        let path = self.path(directory);
        let within = self.within.map(|within| within.read);
        let list = |objects: Arc<dyn ObjectStore>| {
            let path = path.clone();
            async move {
                let mut all = Vec::new();
                let mut listed = objects.list(Some(&path));
                while let Some(meta) = in_time(within, listed.try_next()).await? {
                    let name = meta.location.filename().unwrap_or_default().to_owned();
                    all.push((name, meta.size));
                }
                Ok(all)
            }
        };
        self.repeated("list", directory, list)
    }

    /// Stores an object, durably when this returns.
    pub(super) fn put(&self, name: &str, content: &[Bytes]) -> Result<()> {
        let path = self.path(name);
        self.pace(self.upload.as_ref(), content.iter().map(Bytes::len).sum());
        let payload: PutPayload = content.iter().cloned().collect();
        self.repeated("write", name, |objects| {
            let (path, payload) = (path.clone(), payload.clone());
            async move { objects.put(&path, payload).await.map(drop) }
        })
    }

    /// Removes an object, there or not.
    pub(super) fn remove(&self, name: &str) -> Result<()> {
        let path = self.path(name);
        self.repeated("remove", name, |objects| {
            let path = path.clone();
            async move { unless_missing(objects.delete(&path).await).map(drop) }
        })
    }

    fn repeated<T, F, R>(&self, verb: &str, name: &str, request: F) -> Result<T>
    where
        T: Send + 'static,
        F: Fn(Arc<dyn ObjectStore>) -> R,
        R: Future<Output = object_store::Result<T>> + Send + 'static,
    {
        let within = self.within.and_then(|within| match verb {
            "write" => Some(within.write),
            // However long a list is; each part of it has the limit.
            "list" => None,
            _ => Some(within.read),
        });
        let mut pause = FIRST_PAUSE;
        let done = self.runtime.block_on(async {
            for _ in 1..TRIES {
                match self.once(within, &request).await {
                    // The kernel has repeated it already, or hangs.
                    Err(error) if self.within.is_some() && is_timeout(&error) => return Err(error),
                    Err(error) if self.kind(&error) == ErrorKind::Unavailable => {
                        tracing::debug!(repository = %self.name, "{verb} {name}: {error}; trying again");
                    }
                    other => return other,
                }
                tokio::time::sleep(pause).await;
                pause *= 2;
            }
            self.once(within, &request).await
        });
        self.silent.store(done.as_ref().is_err_and(is_timeout), Ordering::Relaxed);
        done.map_err(|error| self.explain(verb, name, error))
    }

    /// What hangs in the kernel is left to itself. It can do no harm later: what an object holds is told by its
    /// name. It keeps its turn, so that no more hang than there are.
    async fn once<T, F, R>(&self, within: Option<Duration>, request: &F) -> object_store::Result<T>
    where
        T: Send + 'static,
        F: Fn(Arc<dyn ObjectStore>) -> R,
        R: Future<Output = object_store::Result<T>> + Send + 'static,
    {
        // It is never closed.
        let turn = Arc::clone(&self.requests).acquire_owned();
        let Some(limits) = self.within else {
            let _turn = turn.await;
            return request(Arc::clone(&self.objects)).await;
        };
        // Those before may hang.
        let turn = in_time(Some(limits.write), async { Ok(turn.await) }).await?;
        let request = request(Arc::clone(&self.objects));
        let task = self.runtime.spawn(async move {
            let done = request.await;
            drop(turn);
            done
        });
        in_time(within, async move { task.await? }).await
    }

    fn pace(&self, pace: Option<&Pace>, bytes: usize) {
        if let Some(pace) = pace {
            std::thread::sleep(pace.take(bytes as u64));
        }
    }

    /// An error about this repository.
    pub(super) fn error(&self, kind: ErrorKind, what: impl std::fmt::Display) -> Error {
        Error::new(kind, format!("repository {} at {}: {what}", self.name, self.place))
    }

    fn kind(&self, error: &object_store::Error) -> ErrorKind {
        use object_store::Error as Store;
        match error {
            Store::NotFound { .. } => ErrorKind::NotFound,
            Store::AlreadyExists { .. } => ErrorKind::Conflict,
            Store::PermissionDenied { .. } | Store::Unauthenticated { .. } => {
                ErrorKind::Unsupported
            }
            Store::InvalidPath { .. } | Store::UnknownConfigurationKey { .. } => ErrorKind::Invalid,
            other if is_missing_bucket(other) => ErrorKind::NotFound,
            other if is_refused(other) => ErrorKind::Unsupported,
            other => match io_cause(other) {
                Some(std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded) => {
                    ErrorKind::OutOfSpace
                }
                Some(
                    std::io::ErrorKind::PermissionDenied
                    | std::io::ErrorKind::ReadOnlyFilesystem
                    | std::io::ErrorKind::NotADirectory,
                ) => ErrorKind::Unsupported,
                _ => ErrorKind::Unavailable,
            },
        }
    }

    fn explain(&self, verb: &str, name: &str, error: object_store::Error) -> Error {
        let kind = self.kind(&error);
        let missing = is_missing_bucket(&error);
        let explained = self.error(kind, format_args!("cannot {verb} {name}")).caused_by(error);
        match kind {
            _ if missing => explained.hint("there is no such bucket: make it, or mend the repository's url"),
            ErrorKind::Unsupported if verb == "write" || verb == "remove" => {
                explained.hint("it may only be read: allow the daemon to write there, or use another repository")
            }
            ErrorKind::Unsupported => explained.hint("look at the repository's credentials and at who may use it"),
            ErrorKind::OutOfSpace => explained
                .hint("make room there: remove backups and run `holdfast backup prune --now`, or give it more space"),
            ErrorKind::Unavailable => explained.hint("try again when it can be reached"),
            _ => explained,
        }
    }
}

/// Ends what is not over in time, as the kernel does where it has a limit.
async fn in_time<T>(
    within: Option<Duration>,
    work: impl Future<Output = object_store::Result<T>>,
) -> object_store::Result<T> {
    let Some(within) = within else { return work.await };
    tokio::time::timeout(within, work).await.unwrap_or_else(|late| {
        let source = std::io::Error::new(std::io::ErrorKind::TimedOut, late).into();
        Err(object_store::Error::Generic { store: "directory", source })
    })
}

/// None of an object that is not there.
fn unless_missing<T>(found: object_store::Result<T>) -> object_store::Result<Option<T>> {
    match found {
        Err(object_store::Error::NotFound { source, .. }) if !is_missing_bucket(&*source) => {
            Ok(None)
        }
        other => other.map(Some),
    }
}

/// Whether an object is not found because all of them are not.
fn is_missing_bucket(error: &(dyn std::error::Error + 'static)) -> bool {
    says(error, &["NoSuchBucket", "ContainerNotFound", "The specified bucket does not exist"])
}

/// Whether a list is refused, for which there is no error of its own.
fn is_refused(error: &(dyn std::error::Error + 'static)) -> bool {
    says(error, &["403 Forbidden", "401 Unauthorized"])
}

fn says(error: &(dyn std::error::Error + 'static), words: &[&str]) -> bool {
    let mut at = std::iter::successors(Some(error), |error| error.source());
    at.any(|error| {
        let text = error.to_string();
        words.iter().any(|words| text.contains(words))
    })
}

/// Whether an answer was waited for, and did not come.
fn is_timeout(error: &object_store::Error) -> bool {
    io_cause(error) == Some(std::io::ErrorKind::TimedOut)
}

/// The operating system's reason, if that is the cause.
fn io_cause(error: &object_store::Error) -> Option<std::io::ErrorKind> {
    let mut at = std::error::Error::source(error);
    while let Some(error) = at {
        if let Some(io) = error.downcast_ref::<std::io::Error>() {
            return Some(io.kind());
        }
        at = error.source();
    }
    None
}

/// A rate that is not gone over in the long run.
#[derive(Debug)]
struct Pace {
    bytes_per_second: f64,
    /// When what was taken so far will have been due.
    due: Mutex<Option<Instant>>,
}

impl Pace {
    fn new(rate: ByteSize) -> Self {
        #[allow(clippy::cast_precision_loss, reason = "a rate is no exact number")]
        Self { bytes_per_second: rate.bytes().max(1) as f64, due: Mutex::new(None) }
    }

    /// Counts `bytes` and tells how long to wait before they may be moved.
    fn take(&self, bytes: u64) -> Duration {
        let now = Instant::now();
        let mut due = lock(&self.due);
        let start = due.map_or(now, |due| due.max(now));
        #[allow(clippy::cast_precision_loss, reason = "a rate is no exact number")]
        let seconds = bytes as f64 / self.bytes_per_second;
        *due = Some(start + Duration::from_secs_f64(seconds.min(86_400.0)));
        start - now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_kept_over_all_that_is_moved() {
        let pace = Pace::new(ByteSize::new(1000));
        assert_eq!(pace.take(500), Duration::ZERO);
        let waits: Vec<Duration> = (0..4).map(|_| pace.take(500)).collect();
        for (i, wait) in waits.iter().enumerate() {
            let due = Duration::from_millis(500 * (i as u64 + 1));
            assert!(*wait <= due && *wait > due - Duration::from_millis(400), "{waits:?}");
        }
    }

    #[test]
    fn requests_that_hang_are_given_up_and_no_more_of_them_hang_than_there_may_be() {
        let place = tempfile::tempdir().unwrap();
        let fifo = place.path().join("hangs");
        let mode = rustix::fs::Mode::RUSR;
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        std::fs::write(place.path().join("there"), "content").unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .max_blocking_threads(4)
            .enable_all()
            .build()
            .unwrap();
        let limits = Limits { upload: None, download: None, connections: 3 };
        let short = Duration::from_millis(50);
        let store = Store::new(
            "main".parse().unwrap(),
            "here".to_owned(),
            super::super::directory::open(place.path()).unwrap(),
            runtime.handle().clone(),
            limits,
            Some(Within { read: short, write: short }),
        );
        let began = Instant::now();
        for _ in 0..10 {
            let error = store.get("hangs").unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
            assert!(store.is_silent());
        }
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
        // A thread is left for others.
        runtime.block_on(runtime.spawn_blocking(|| ())).unwrap();
        // Whoever writes there lets them all go on.
        drop(std::fs::File::options().write(true).open(&fifo).unwrap());
        let answers = || store.get("there").is_ok_and(|found| found.is_some());
        assert!((0..200).any(|_| answers()), "it answers again");
    }
}
