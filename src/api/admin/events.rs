//! What has happened, as lines of JSON.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use hyper::body::{Body as HttpBody, Bytes, Frame};
use serde::Deserialize;
use tokio::sync::{mpsc, watch};

use super::extract::{Failure, Params};
use super::{Gate, engine};
use crate::engine::Follower;
use crate::engine::view::EventView;
use crate::error::{Error, Result};

/// What a follower that does not read may have waiting for it; all else waits where events are kept.
const WAITING: usize = 4;

/// Which events.
#[derive(Debug, Deserialize)]
pub(super) struct Which {
    /// Those after the one with this number.
    after: Option<u64>,
    /// Go on with new ones as they come.
    #[serde(default)]
    follow: bool,
}

/// Ends those who follow when the server stops: the sender is dropped then.
#[derive(Debug, Clone)]
pub(super) struct Ending(pub(super) watch::Receiver<()>);

pub(super) async fn events(
    State(gate): State<Gate>,
    Extension(Ending(ending)): Extension<Ending>,
    Params(which): Params<Which>,
) -> Result<Response, Failure> {
    let engine = engine(&gate).await?;
    let body = if which.follow {
        let (sender, receiver) = mpsc::channel(WAITING);
        tokio::spawn(pass_on(engine.events().follow(which.after), sender, ending));
        Body::new(Stream(receiver))
    } else {
        lines(&engine.events().after(which.after.unwrap_or(0)))?.into()
    };
    Ok(([(CONTENT_TYPE, "application/x-ndjson")], body).into_response())
}

fn lines(events: &[EventView]) -> Result<Bytes> {
    let mut text = Vec::new();
    for event in events {
        serde_json::to_writer(&mut text, event)
            .map_err(|error| Error::internal("cannot write an event").caused_by(error))?;
        text.push(b'\n');
    }
    Ok(text.into())
}

async fn pass_on(
    mut follower: Follower,
    reader: mpsc::Sender<Bytes>,
    mut ending: watch::Receiver<()>,
) {
    let follow = async {
        loop {
            let Ok(text) = lines(&follower.next().await) else { return };
            if reader.send(text).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = follow => {}
        () = reader.closed() => {}
        _ = ending.changed() => {}
    }
}

/// A body that ends when its sender does.
struct Stream(mpsc::Receiver<Bytes>);

impl HttpBody for Stream {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(cx).map(|text| text.map(|text| Ok(Frame::data(text))))
    }
}
