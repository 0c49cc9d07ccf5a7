//! One HTTP/1 server on a unix socket for every face, with limits on what a client can take up.

use std::error::Error as StdError;
use std::time::Duration;

use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::{Body, Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use hyper_util::server::graceful::{GracefulConnection, GracefulShutdown};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;

use super::stream::{Patient, Turn};

/// Bytes of a request's head.
const HEAD: usize = 64 << 10;

/// What a client can take up.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections at once; further ones wait until one ends.
    pub connections: usize,
    /// Bytes of a request's body.
    pub body: usize,
    /// How long a client may take for a request's head, for its body, and to take an answer.
    pub stall: Duration,
    /// How long requests that run may still take when the server stops.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 1024,
            body: 1 << 20,
            stall: Duration::from_secs(10),
            drain: Duration::from_secs(5),
        }
    }
}

/// Serves until `stop` is done and what was asked before is answered, or the drain's time is over.
///
/// A service that returns an error closes the connection without an answer. When a client hangs
/// up, the future that works on its request is dropped.
pub async fn serve<S, B>(
    listener: UnixListener,
    limits: Limits,
    service: S,
    stop: impl Future<Output = ()>,
) where
    S: Service<Request<Incoming>, Response = Response<B>> + Clone + Send + Sync + 'static,
    S::Future: Send,
    S::Error: Into<Box<dyn StdError + Send + Sync>> + Send,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    let graceful = GracefulShutdown::new();
    let room = std::sync::Arc::new(Semaphore::new(limits.connections));
    let mut stop = std::pin::pin!(stop);
    loop {
        let accepted = async {
            let permit = room.clone().acquire_owned().await;
            (permit, listener.accept().await)
        };
        let (permit, stream) = tokio::select! {
            (permit, stream) = accepted => (permit, stream),
            () = &mut stop => break,
        };
        let stream = match stream {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of file descriptors, most likely: those in use come back as requests end.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let connection = graceful.watch(connection(stream, limits.stall, service.clone()));
        tokio::spawn(async move {
            let _permit = permit;
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection ended early");
            }
        });
    }
    drop(listener);
    if tokio::time::timeout(limits.drain, graceful.shutdown()).await.is_err() {
        tracing::warn!("stopping while requests still run");
    }
}

fn connection<S, B>(
    stream: UnixStream,
    stall: Duration,
    service: S,
) -> impl GracefulConnection<Error = hyper::Error> + Send
where
    S: Service<Request<Incoming>, Response = Response<B>> + Send + 'static,
    S::Future: Send,
    S::Error: Into<Box<dyn StdError + Send + Sync>>,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    let turn = Turn::default();
    let stream = Patient::new(stream, stall, turn.clone());
    let service = service_fn(move |request| {
        let answering = turn.answering();
        let answer = service.call(request);
        async move {
            let _answering = answering;
            answer.await
        }
    });
    http1::Builder::new()
        .header_read_timeout(None)
        .max_buf_size(HEAD)
        .serve_connection(TokioIo::new(stream), service)
}

/// Why a request's body is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyFault {
    /// It is longer than the limit.
    TooLong,
    /// It did not come in time.
    TooSlow,
    /// It broke off or was not HTTP.
    Broken,
}

/// Reads a request's body within the limits.
///
/// # Errors
/// As [`BodyFault`] says.
pub async fn read_body(body: Incoming, limits: &Limits) -> Result<Bytes, BodyFault> {
    if body.size_hint().lower() > limits.body as u64 {
        return Err(BodyFault::TooLong);
    }
    let whole = Limited::new(body, limits.body).collect();
    match tokio::time::timeout(limits.stall, whole).await {
        Err(_) => Err(BodyFault::TooSlow),
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(BodyFault::TooLong),
        Ok(Err(_)) => Err(BodyFault::Broken),
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use http_body_util::Full;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::sync::oneshot;

    use super::*;

    const STALL: Duration = Duration::from_millis(300);

    const BIG: usize = 16 << 20;

    /// A server whose `/wait` never answers, `/break` closes the connection, `/big` is more than a
    /// socket holds, and all else echoes.
    struct Server {
        directory: tempfile::TempDir,
        dropped: Arc<AtomicUsize>,
        stop: Option<oneshot::Sender<()>>,
        task: tokio::task::JoinHandle<()>,
    }

    struct CountDrop(Arc<AtomicUsize>);
    impl Drop for CountDrop {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    impl Server {
        fn start(connections: usize) -> Self {
            let directory = tempfile::tempdir().unwrap();
            let listener = UnixListener::bind(directory.path().join("s")).unwrap();
            let dropped = Arc::new(AtomicUsize::new(0));
            let limits = Limits { connections, body: 64, stall: STALL, drain: STALL };
            let counter = dropped.clone();
            let service = service_fn(move |request: Request<Incoming>| {
                let guard = CountDrop(counter.clone());
                async move {
                    let _guard = guard;
                    let path = request.uri().path().to_owned();
                    let body = read_body(request.into_body(), &limits).await;
                    match path.as_str() {
                        "/wait" => std::future::pending().await,
                        "/break" => Err("closed"),
                        "/big" => Ok(Response::new(Full::new(Bytes::from(vec![b'x'; BIG])))),
                        _ => Ok(Response::new(Full::new(Bytes::from(match body {
                            Ok(body) => format!("<{}>", String::from_utf8_lossy(&body)),
                            Err(fault) => format!("{fault:?}"),
                        })))),
                    }
                }
            });
            let (stop, stopped) = oneshot::channel::<()>();
            let task = tokio::spawn(serve(listener, limits, service, async {
                let _ = stopped.await;
            }));
            Self { directory, dropped, stop: Some(stop), task }
        }

        async fn connect(&self) -> UnixStream {
            UnixStream::connect(self.directory.path().join("s")).await.unwrap()
        }

        async fn say(&self, text: &str) -> String {
            let mut stream = self.connect().await;
            stream.write_all(text.as_bytes()).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            answer
        }
    }

    fn post(path: &str, body: &str) -> String {
        let length = body.len();
        format!(
            "POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
        )
    }

    #[tokio::test]
    async fn bodies_have_a_limit_in_length_and_time() {
        let server = Server::start(10);
        assert!(server.say(&post("/", "hello")).await.ends_with("<hello>"));
        assert!(server.say(&post("/", &"x".repeat(65))).await.ends_with("TooLong"));
        let chunked = format!(
            "POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n40\r\n{}\r\n40\r\n{}\r\n",
            "x".repeat(64),
            "x".repeat(64)
        );
        assert!(server.say(&chunked).await.ends_with("TooLong"));
        let half = post("/", "hello").replace("\r\n\r\nhello", "\r\n\r\nhel");
        assert!(server.say(&half).await.ends_with("TooSlow"));
    }

    #[tokio::test]
    async fn a_head_that_was_begun_has_a_limit_and_an_idle_connection_has_none() {
        let server = Server::start(10);
        assert_eq!(server.say("POST / HTT").await, "", "closed after a while");

        let mut stream = server.connect().await;
        let request = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";
        for _ in 0..2 {
            tokio::time::sleep(STALL * 2).await;
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = [0; 512];
            let read = stream.read(&mut answer).await.unwrap();
            assert!(String::from_utf8_lossy(&answer[..read]).ends_with("<>"));
        }
        stream.write_all(b"GET /slow").await.unwrap();
        assert_eq!(stream.read(&mut [0; 512]).await.unwrap_or(0), 0);
    }

    #[tokio::test]
    async fn an_answer_that_nobody_takes_has_a_limit() {
        let server = Server::start(1);
        let mut stream = server.connect().await;
        stream.write_all(post("/big", "").as_bytes()).await.unwrap();
        // The only connection there may be is given up for the next client.
        assert!(server.say(&post("/", "next")).await.ends_with("<next>"));
        let mut taken = Vec::new();
        let _ = stream.read_to_end(&mut taken).await;
        assert!(taken.len() < BIG);
    }

    #[tokio::test]
    async fn a_service_can_close_without_an_answer() {
        let server = Server::start(10);
        assert_eq!(server.say(&post("/break", "")).await, "");
    }

    #[tokio::test]
    async fn rule_05_the_work_of_a_client_that_hangs_up_is_dropped() {
        let server = Server::start(10);
        let mut stream = server.connect().await;
        stream.write_all(post("/wait", "x").as_bytes()).await.unwrap();
        tokio::time::sleep(STALL / 3).await;
        assert_eq!(server.dropped.load(Ordering::SeqCst), 0);
        drop(stream);
        for _ in 0..100 {
            if server.dropped.load(Ordering::SeqCst) == 1 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("the future still waits");
    }

    #[tokio::test]
    async fn further_connections_wait_for_room() {
        let server = Server::start(2);
        let (first, _second) = (server.connect().await, server.connect().await);
        tokio::time::sleep(STALL / 3).await;
        let request = post("/", "hi");
        let mut third = Box::pin(server.say(&request));
        assert!(tokio::time::timeout(STALL, &mut third).await.is_err());
        drop(first);
        assert!(third.await.ends_with("<hi>"));
    }

    #[tokio::test]
    async fn stopping_closes_idle_connections_and_waits_for_no_one_too_long() {
        let mut server = Server::start(10);
        let mut idle = server.connect().await;
        let mut working = server.connect().await;
        working.write_all(post("/wait", "").as_bytes()).await.unwrap();
        tokio::time::sleep(STALL / 3).await;
        let _ = server.stop.take().unwrap().send(());
        assert_eq!(idle.read(&mut [0; 16]).await.unwrap_or(0), 0);
        tokio::time::timeout(STALL * 4, server.task).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn an_infallible_service_is_a_service() {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("s")).unwrap();
        let service = service_fn(|_: Request<Incoming>| async {
            Ok::<_, Infallible>(Response::new(Full::new(Bytes::new())))
        });
        serve(listener, Limits::default(), service, std::future::ready(())).await;
    }
}
