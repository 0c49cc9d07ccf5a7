//! Docker's volume plugin protocol.
//!
//! Docker takes any error answer to `Get` as "does not exist" and then sends `Create`. So `Get` is
//! answered from what this host knows for sure, or the connection is closed without an answer.

mod wire;

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use hyper::body::Incoming;
use hyper::{Method, Request, StatusCode};
use tokio::net::UnixListener;

use super::Gate;
use super::metrics::Metrics;
use super::server::{self, BodyFault, Limits};
use crate::engine::{Engine, SnapshotsToo};
use crate::error::{Error, ErrorKind, Result};
use crate::model::Holder;
use crate::name::{BackendName, VolumeName};
use crate::options::VolumeOptions;
use wire::{Ask, Reply};

/// Docker waits two minutes for Create and Mount, and a minute for all else: the answer that it took
/// too long has to come before that.
const LONG: Duration = Duration::from_secs(115);
const SHORT: Duration = Duration::from_secs(55);
/// How long `Get` waits for details that it can leave out.
const DETAILS: Duration = Duration::from_secs(5);

/// What the face has to know to name things in its errors.
#[derive(Debug, Clone)]
pub struct Place {
    /// This node.
    pub node: String,
    /// Where volumes go that name no backend.
    pub default_backend: BackendName,
}

#[derive(Debug)]
struct Face {
    gate: Gate,
    place: Place,
    metrics: Metrics,
    limits: Limits,
}

/// Serves the protocol until `stop` is done.
pub async fn serve(
    listener: UnixListener,
    gate: Gate,
    place: Place,
    metrics: Metrics,
    limits: Limits,
    stop: impl Future<Output = ()>,
) {
    let face = std::sync::Arc::new(Face { gate, place, metrics, limits });
    let service = hyper::service::service_fn(move |request| {
        let face = face.clone();
        async move { face.answer(request).await }
    });
    server::serve(listener, limits, service, stop).await;
}

/// The connection is closed without an answer: Docker takes that for what it is, "nothing is known".
#[derive(Debug)]
struct HangUp;

impl fmt::Display for HangUp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("closed without an answer")
    }
}

impl std::error::Error for HangUp {}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Endpoint {
    Activate,
    Capabilities,
    List,
    Get,
    Path,
    Create,
    Remove,
    Mount,
    Unmount,
}

impl Endpoint {
    fn find(path: &str) -> Option<Self> {
        Some(match path {
            "/Plugin.Activate" => Self::Activate,
            "/VolumeDriver.Capabilities" => Self::Capabilities,
            "/VolumeDriver.List" => Self::List,
            "/VolumeDriver.Get" => Self::Get,
            "/VolumeDriver.Path" => Self::Path,
            "/VolumeDriver.Create" => Self::Create,
            "/VolumeDriver.Remove" => Self::Remove,
            "/VolumeDriver.Mount" => Self::Mount,
            "/VolumeDriver.Unmount" => Self::Unmount,
            _ => return None,
        })
    }

    fn limit(self) -> Duration {
        match self {
            Self::Create | Self::Mount => LONG,
            _ => SHORT,
        }
    }

    /// The last part of its path, for metrics.
    fn name(self) -> &'static str {
        match self {
            Self::Activate => "Activate",
            Self::Capabilities => "Capabilities",
            Self::List => "List",
            Self::Get => "Get",
            Self::Path => "Path",
            Self::Create => "Create",
            Self::Remove => "Remove",
            Self::Mount => "Mount",
            Self::Unmount => "Unmount",
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Activate => "activate",
            Self::Capabilities => "tell the capabilities",
            Self::List => "list",
            Self::Get | Self::Path => "look up",
            Self::Create => "create",
            Self::Remove => "remove",
            Self::Mount => "mount",
            Self::Unmount => "unmount",
        }
    }
}

/// A request that is being answered; counted when it is dropped.
#[derive(Debug)]
struct Asked<'a> {
    endpoint: Endpoint,
    begun: Instant,
    metrics: &'a Metrics,
    result: &'static str,
}

impl Asked<'_> {
    fn answered(mut self, reply: Result<Reply, HangUp>) -> Result<Reply, HangUp> {
        self.result = match &reply {
            Ok(reply) if wire::is_failure(reply) => "error",
            Ok(_) => "ok",
            Err(HangUp) => "closed",
        };
        reply
    }
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        self.metrics.asked(self.endpoint.name(), self.result, self.begun.elapsed());
    }
}

impl Face {
    async fn answer(&self, request: Request<Incoming>) -> Result<Reply, HangUp> {
        let Some(endpoint) = Endpoint::find(request.uri().path()) else {
            let text = "there is no such call in Docker's volume plugin protocol";
            return Ok(wire::failed(StatusCode::NOT_FOUND, text));
        };
        if request.method() != Method::POST {
            let text = "Docker's volume plugin protocol has POST only";
            return Ok(wire::failed(StatusCode::METHOD_NOT_ALLOWED, text));
        }
        let asked =
            Asked { endpoint, begun: Instant::now(), metrics: &self.metrics, result: "dropped" };
        asked.answered(self.answer_to(endpoint, request).await)
    }

    async fn answer_to(
        &self,
        endpoint: Endpoint,
        request: Request<Incoming>,
    ) -> Result<Reply, HangUp> {
        let body = match server::read_body(request.into_body(), &self.limits).await {
            Ok(body) => body,
            Err(fault) => return Ok(self.refuse(fault)),
        };
        // Docker waits for this one without limit, holding a lock: it needs no engine.
        if endpoint == Endpoint::Activate {
            return Ok(wire::activated());
        }
        let asked = match endpoint {
            Endpoint::Capabilities | Endpoint::List => Ask::default(),
            _ => match Ask::read(&body) {
                Ok(asked) => asked,
                Err(error) => return Ok(wire::failed(StatusCode::BAD_REQUEST, &sentence(&error))),
            },
        };
        drop(body);
        let work = async {
            // No engine is "unknown", never "absent".
            let engine = self.gate.engine().await.ok_or(HangUp)?;
            self.work(endpoint, asked, &engine).await
        };
        match tokio::time::timeout(endpoint.limit(), work).await {
            Ok(reply) => reply,
            Err(_) if matches!(endpoint, Endpoint::Get | Endpoint::Path) => Err(HangUp),
            Err(_) => Ok(wire::failed(StatusCode::OK, &self.too_slow(endpoint))),
        }
    }

    fn refuse(&self, fault: BodyFault) -> Reply {
        match fault {
            BodyFault::TooLong => wire::failed(
                StatusCode::PAYLOAD_TOO_LARGE,
                &format!("the request is longer than {} bytes", self.limits.body),
            ),
            BodyFault::TooSlow => wire::failed(
                StatusCode::REQUEST_TIMEOUT,
                &format!("the request did not come within {} s", self.limits.stall.as_secs()),
            ),
            BodyFault::Broken => wire::failed(StatusCode::BAD_REQUEST, "the request broke off"),
        }
    }

    async fn work(
        &self,
        endpoint: Endpoint,
        mut asked: Ask,
        engine: &Engine,
    ) -> Result<Reply, HangUp> {
        match endpoint {
            Endpoint::Activate => return Ok(wire::activated()),
            Endpoint::Capabilities => return Ok(wire::capabilities(engine.scope())),
            Endpoint::List => return Ok(wire::list(engine)),
            _ => {}
        }
        let name = match asked.name() {
            Ok(name) => name,
            Err(error) => return Ok(wire::failed(StatusCode::OK, &sentence(&error))),
        };
        if endpoint == Endpoint::Get {
            return Ok(self.get(engine, &name).await);
        }
        // What the volume was before the change: afterwards it may be gone.
        let backend = engine.volume(&name).map(|v| v.backend).or_else(|| asked.backend());
        let begun = Instant::now();
        let result = match endpoint {
            Endpoint::Path => Ok(path(engine, &name)),
            Endpoint::Create => self.create(engine, name.clone(), &mut asked).await,
            Endpoint::Remove => remove(engine, name.clone()).await,
            Endpoint::Mount => mount(engine, name.clone(), &mut asked).await,
            _ => unmount(engine, name.clone(), &mut asked).await,
        };
        let millis = begun.elapsed().as_millis();
        tracing::debug!(%name, millis, ok = result.is_ok(), "Docker asked to {}", endpoint.word());
        Ok(result.unwrap_or_else(|error| {
            let text = self.explain(endpoint, &name, backend.as_ref(), &error);
            wire::failed(StatusCode::OK, &text)
        }))
    }

    /// Never an error for a volume that exists.
    async fn get(&self, engine: &Engine, name: &VolumeName) -> Reply {
        let Some(summary) = engine.volume(name) else { return wire::absent(name.as_str()) };
        match tokio::time::timeout(DETAILS, engine.details(name)).await {
            Ok(Ok(details)) => wire::found(&details),
            _ => wire::found_summary(&summary, &self.place.node),
        }
    }

    async fn create(&self, engine: &Engine, name: VolumeName, asked: &mut Ask) -> Result<Reply> {
        let options = VolumeOptions::parse(&asked.options()).map_err(|error| {
            error.context(format!("cannot create {name} on node {}", self.place.node))
        })?;
        engine.change(None).create(name, options, BTreeMap::new()).await?.ignore();
        Ok(wire::done())
    }

    /// The text that a user of Docker sees, who knows nothing of us: which volume, which backend,
    /// which node, what to do. The engine's errors begin with the volume and the node.
    fn explain(
        &self,
        endpoint: Endpoint,
        name: &VolumeName,
        backend: Option<&BackendName>,
        error: &Error,
    ) -> String {
        let Place { node, default_backend } = &self.place;
        if endpoint == Endpoint::Mount && backend.is_none() && error.kind() == ErrorKind::NotFound {
            return format!(
                "there is no volume {name} on node {node}; create it with `docker volume create --driver holdfast {name}`"
            );
        }
        let backend = backend.unwrap_or(default_backend);
        let hint = error.hint_text().map_or_else(
            || format!("see `holdfast status` and the daemon's log on node {node}"),
            str::to_owned,
        );
        format!("holdfast: {} (backend {backend}); {hint}", error.full_message())
    }

    fn too_slow(&self, endpoint: Endpoint) -> String {
        let seconds = endpoint.limit().as_secs();
        let node = &self.place.node;
        let after = match endpoint {
            Endpoint::Mount => "the mount is being undone; try again",
            _ => "it goes on; see `holdfast operation ls`, then try again",
        };
        format!(
            "holdfast: {} took longer than {seconds} s on node {node}: {after}",
            endpoint.word()
        )
    }
}

fn sentence(error: &Error) -> String {
    match error.hint_text() {
        Some(hint) => format!("holdfast: {}; {hint}", error.full_message()),
        None => format!("holdfast: {}", error.full_message()),
    }
}

fn path(engine: &Engine, name: &VolumeName) -> Reply {
    match engine.volume(name) {
        Some(volume) => {
            let path = volume.mountpoint.map(|path| path.to_string_lossy().into_owned());
            wire::mounted_at(&path.unwrap_or_default())
        }
        None => wire::failed(StatusCode::OK, &format!("no such volume: {name}")),
    }
}

async fn remove(engine: &Engine, name: VolumeName) -> Result<Reply> {
    // Docker's users cannot say more than this.
    match engine.change(None).remove(name, SnapshotsToo::Delete).await {
        Ok(outcome) => outcome.ignore(),
        // Docker repeats what it does not know to have happened.
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    Ok(wire::done())
}

async fn mount(engine: &Engine, name: VolumeName, asked: &mut Ask) -> Result<Reply> {
    let id = asked.id()?;
    let path = engine.change(None).mount(name, id, Holder::Container).await?;
    Ok(wire::mounted_at(&path.to_string_lossy()))
}

async fn unmount(engine: &Engine, name: VolumeName, asked: &mut Ask) -> Result<Reply> {
    let id = asked.id()?;
    engine.change(None).unmount(name, id).await?.ignore();
    Ok(wire::done())
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixStream;

    use super::*;

    fn request(method: &str, body: &str) -> String {
        let length = body.len();
        format!(
            "POST /{method} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
        )
    }

    /// A server whose engine never starts by itself.
    struct Waiting {
        directory: tempfile::TempDir,
        keeper: super::super::GateKeeper,
    }

    impl Waiting {
        fn start() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let listener = UnixListener::bind(directory.path().join("s")).unwrap();
            let (keeper, gate) = Gate::closed();
            let place = Place { node: "n".into(), default_backend: "loop".parse().unwrap() };
            let (metrics, limits) = (Metrics::default(), Limits::default());
            let serving = serve(listener, gate, place, metrics, limits, std::future::pending());
            tokio::spawn(serving);
            Self { directory, keeper }
        }

        fn ask(&self, method: &str, body: &str) -> impl Future<Output = String> + use<> {
            let (path, request) = (self.directory.path().join("s"), request(method, body));
            async move {
                let mut stream = UnixStream::connect(&path).await.unwrap();
                stream.write_all(request.as_bytes()).await.unwrap();
                let mut answer = String::new();
                stream.read_to_string(&mut answer).await.map(|_| answer).unwrap_or_default()
            }
        }
    }

    /// Until the engine has started nothing is said of volumes; if it never starts, neither.
    #[tokio::test]
    async fn rule_01_without_an_engine_nothing_is_denied() {
        let server = Waiting::start();
        assert!(server.ask("Plugin.Activate", "").await.contains("VolumeDriver"));
        let mut waiting = Box::pin(server.ask("VolumeDriver.Get", r#"{"Name":"data"}"#));
        let moment = Duration::from_millis(200);
        assert!(tokio::time::timeout(moment, &mut waiting).await.is_err(), "it waits");
        let later = server.ask("VolumeDriver.List", "{}");
        drop(server.keeper);
        assert_eq!(waiting.await, "", "closed without an answer");
        assert_eq!(later.await, "");
    }

    #[tokio::test(start_paused = true)]
    async fn what_takes_too_long_is_told_before_docker_gives_up() {
        let server = Waiting::start();
        let body = r#"{"Name":"data","ID":"x"}"#;
        for (method, limit) in [("Mount", 120), ("Create", 120), ("Unmount", 60), ("Remove", 60)] {
            let begun = tokio::time::Instant::now();
            let answer = server.ask(&format!("VolumeDriver.{method}"), body).await;
            assert!(answer.contains("took longer than"), "{method}: {answer}");
            assert!(begun.elapsed() < Duration::from_secs(limit), "{method}");
        }
        assert_eq!(server.ask("VolumeDriver.Get", body).await, "", "never an error");
    }
}
