//! A connection that does not wait for ever for the other side.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio::time::{Instant, Sleep};

/// What the service of a connection tells its stream: which request is being answered, if any.
#[derive(Debug, Clone, Default)]
pub(super) struct Turn(Arc<Turns>);

#[derive(Debug, Default)]
struct Turns {
    answering: AtomicBool,
    requests: AtomicU64,
}

/// A request that is being answered, until it is dropped.
#[derive(Debug)]
pub(super) struct Answering(Turn);

impl Turn {
    pub(super) fn answering(&self) -> Answering {
        self.0.requests.fetch_add(1, Ordering::Relaxed);
        self.0.answering.store(true, Ordering::Relaxed);
        Answering(self.clone())
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.0.answering.store(false, Ordering::Relaxed);
    }
}

/// Fails when a request's head that was begun is not finished in time, or an answer is not taken.
///
/// Between requests it waits without limit. hyper's own limit would close idle connections, and
/// Docker, which keeps them, may send a request at that very moment: its retry has an empty body.
#[derive(Debug)]
pub(super) struct Patient {
    inner: UnixStream,
    limit: Duration,
    turn: Turn,
    /// When the head that was begun must be there, and how many requests came before it.
    head: Option<(u64, Pin<Box<Sleep>>)>,
    answer: Option<Pin<Box<Sleep>>>,
}

impl Patient {
    pub(super) fn new(inner: UnixStream, limit: Duration, turn: Turn) -> Self {
        Self { inner, limit, turn, head: None, answer: None }
    }

    /// Passes on the result of a write, unless the other side has not read for too long.
    fn written<T>(
        &mut self,
        cx: &mut Context<'_>,
        result: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if result.is_ready() {
            self.answer = None;
            return result;
        }
        let limit = self.limit;
        let deadline = self.answer.get_or_insert_with(|| Box::pin(sleep(limit)));
        expired(deadline, cx)
    }
}

fn sleep(limit: Duration) -> Sleep {
    tokio::time::sleep_until(Instant::now() + limit)
}

fn expired<T>(deadline: &mut Pin<Box<Sleep>>, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
    deadline.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
}

impl AsyncRead for Patient {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let result = Pin::new(&mut self.inner).poll_read(cx, buffer);
        let requests = self.turn.0.requests.load(Ordering::Relaxed);
        if self.head.as_ref().is_some_and(|(begun, _)| *begun != requests) {
            self.head = None;
        }
        if self.turn.0.answering.load(Ordering::Relaxed) {
            return result;
        }
        if result.is_ready() {
            if buffer.filled().len() > before && self.head.is_none() {
                self.head = Some((requests, Box::pin(sleep(self.limit))));
            }
            return result;
        }
        match &mut self.head {
            Some((_, deadline)) => expired(deadline, cx),
            None => Poll::Pending,
        }
    }
}

impl AsyncWrite for Patient {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.inner).poll_write(cx, bytes);
        self.written(cx, result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.inner).poll_write_vectored(cx, slices);
        self.written(cx, result)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
