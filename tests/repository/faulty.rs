//! A store that fails, waits and counts as a test says.

use std::fmt;
use std::path::Path as FilePath;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

/// What is asked of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verb {
    Read,
    List,
    Put,
    Remove,
}

impl Verb {
    pub(crate) fn writes(self) -> bool {
        matches!(self, Self::Put | Self::Remove)
    }
}

/// Why a request fails.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Failure {
    /// Nothing is repeated after it.
    Refused,
    /// Repeated for a while.
    Unreachable,
    /// There is no room.
    Full,
}

impl Failure {
    fn error(self) -> Error {
        let source = "the test says so".into();
        match self {
            Self::Refused => Error::PermissionDenied { path: String::new(), source },
            Self::Unreachable => Error::Generic { store: "test", source },
            Self::Full => {
                let full = std::io::Error::from(std::io::ErrorKind::StorageFull);
                Error::Generic { store: "test", source: full.into() }
            }
        }
    }
}

type Rule = Arc<dyn Fn(Verb, &str) -> Option<Failure> + Send + Sync>;

/// A directory that obeys a rule, which may also wait: others get another thread meanwhile.
#[derive(Clone)]
pub(crate) struct Faulty {
    below: Arc<LocalFileSystem>,
    rule: Arc<Mutex<Rule>>,
}

impl Faulty {
    pub(crate) fn new(directory: &FilePath) -> Self {
        std::fs::create_dir_all(directory).unwrap();
        let below = LocalFileSystem::new_with_prefix(directory).unwrap();
        Self { below: Arc::new(below), rule: Arc::new(Mutex::new(Arc::new(|_, _| None))) }
    }

    pub(crate) fn obey(
        &self,
        rule: impl Fn(Verb, &str) -> Option<Failure> + Send + Sync + 'static,
    ) {
        *self.rule.lock().unwrap() = Arc::new(rule);
    }

    pub(crate) fn obey_nothing(&self) {
        self.obey(|_, _| None);
    }

    /// From the `n`th write of those to `directory` on all of them fail, locks aside: an owner that cannot
    /// even remove its lock is another test's.
    pub(crate) fn fail_from(&self, n: usize, failure: Failure) -> Arc<AtomicUsize> {
        let count = Arc::new(AtomicUsize::new(0));
        let seen = Arc::clone(&count);
        self.obey(move |verb, path| {
            let counts = verb.writes() && !path.starts_with("locks");
            (counts && seen.fetch_add(1, Ordering::SeqCst) + 1 >= n).then_some(failure)
        });
        count
    }

    fn ask(&self, verb: Verb, path: &str) -> Result<()> {
        let rule = Arc::clone(&self.rule.lock().unwrap());
        tokio::task::block_in_place(|| rule(verb, path))
            .map_or(Ok(()), |failure| Err(failure.error()))
    }
}

impl fmt::Debug for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Faulty")
    }
}

impl fmt::Display for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a faulty store")
    }
}

#[async_trait]
impl ObjectStore for Faulty {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> Result<PutResult> {
        self.ask(Verb::Put, location.as_ref())?;
        self.below.put_opts(location, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.ask(Verb::Put, location.as_ref())?;
        self.below.put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.ask(Verb::Read, location.as_ref())?;
        self.below.get_opts(location, options).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        let this = self.clone();
        let asked = locations.map(move |path| {
            let path = path?;
            this.ask(Verb::Remove, path.as_ref())?;
            Ok(path)
        });
        self.below.delete_stream(asked.boxed())
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        match self.ask(Verb::List, prefix.map_or("", Path::as_ref)) {
            Ok(()) => self.below.list(prefix),
            Err(error) => futures_util::stream::once(async move { Err(error) }).boxed(),
        }
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.ask(Verb::List, prefix.map_or("", Path::as_ref))?;
        self.below.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.ask(Verb::Put, to.as_ref())?;
        self.below.copy_opts(from, to, options).await
    }
}
