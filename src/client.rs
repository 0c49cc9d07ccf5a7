//! A client of the admin socket.

mod backup;

use std::path::{Path, PathBuf};

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::HOST;
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::task::JoinHandle;

use crate::api::admin::{
    Adopt, Changed, CreateVolume, Cut, ErrorBody, GrowPool, MountBy, Named, Resize, SetSchedule,
    Size,
};
use crate::engine::view::{
    ErrorView, EventView, OperationView, PoolView, SnapshotView, StatusView, VolumeDetails,
    VolumeSchedule, VolumeSummary,
};
use crate::error::{Error, ErrorKind};
use crate::id::{MountId, OperationId, VolumeUuid};
use crate::name::{BackendName, HookName, SnapshotRef, VolumeName};
use crate::units::ByteSize;

/// Why there is no answer, or not the one that was hoped for.
#[derive(Debug)]
pub enum Failure {
    /// Nobody listens, we may not connect, or the daemon ended before it answered.
    Unreachable(Error),
    /// The daemon's own answer.
    Refused(Error),
}

/// What a call gives.
pub type Answer<T> = Result<T, Failure>;

/// How a change is to be made.
#[derive(Debug, Clone, Copy)]
pub struct How {
    /// The id to watch it by.
    pub operation: OperationId,
    /// Whether to answer once it is on its way.
    pub wait: Wait,
}

/// When a change is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// When it is done.
    Done,
    /// When it is on its way.
    Begun,
}

/// Whether to go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Go on.
    More,
    /// Stop.
    Enough,
}

/// The task of a connection, which ends with this.
#[derive(Debug)]
struct Connection(JoinHandle<()>);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A client; each call is a connection of its own.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// A client of the daemon at `socket`.
    pub fn new(socket: &Path) -> Self {
        Self { socket: socket.to_owned() }
    }

    /// The node on one screen.
    ///
    /// # Errors
    /// This and all the following: [`Failure`].
    pub async fn status(&self) -> Answer<StatusView> {
        self.get("/v1/status").await
    }

    /// All volumes.
    ///
    /// # Errors
    /// [`Failure`]
    pub async fn volumes(&self) -> Answer<Vec<VolumeSummary>> {
        self.get("/v1/volumes").await
    }

    /// One volume.
    ///
    /// # Errors
    /// [`Failure`]
    pub async fn volume(&self, name: &VolumeName) -> Answer<VolumeDetails> {
        self.get(&format!("/v1/volumes/{name}")).await
    }

    /// The snapshots of one volume or of all.
    ///
    /// # Errors
    /// [`Failure`]
    pub async fn snapshots(&self, volume: Option<&VolumeName>) -> Answer<Vec<SnapshotView>> {
        match volume {
            Some(volume) => self.get(&format!("/v1/volumes/{volume}/snapshots")).await,
            None => self.get("/v1/snapshots").await,
        }
    }

    /// One snapshot.
    ///
    /// # Errors
    /// [`Failure`]
    pub async fn snapshot(&self, reference: &SnapshotRef) -> Answer<SnapshotView> {
        self.get(&of(reference)).await
    }

    /// Operations that run, that are stuck, and the last ones that are over.
    ///
    /// # Errors
    /// [`Failure`]
    pub async fn operations(&self) -> Answer<Vec<OperationView>> {
        self.get("/v1/operations").await
    }

    /// One operation.
    ///
    /// # Errors
    /// [`Failure`]
    pub async fn operation(&self, id: OperationId) -> Answer<OperationView> {
        self.get(&format!("/v1/operations/{id}")).await
    }

    /// Asks an operation to end before it is done, and tells how it stands.
    ///
    /// # Errors
    /// [`Failure`]
    pub async fn cancel(&self, id: OperationId) -> Answer<OperationView> {
        self.ask(Method::POST, &format!("/v1/operations/{id}/cancel"), Bytes::new()).await
    }

    /// Makes a volume.
    ///
    /// # Errors
    /// [`Failure`]
    pub async fn create(&self, how: How, volume: &CreateVolume) -> Answer<Changed> {
        self.change(how, Method::POST, "/v1/volumes", volume).await
    }

    /// Removes a volume, with the snapshots that users made of it if `snapshots` says so.
    ///
    /// # Errors
    /// [`Failure`]
    pub async fn remove(&self, how: How, name: &VolumeName, snapshots: bool) -> Answer<Changed> {
        let path = format!("/v1/volumes/{name}?snapshots={snapshots}");
        self.change(how, Method::DELETE, &path, &()).await
    }

    /// Takes a volume out of the trash.
    ///
    /// # Errors
    /// [`Failure`]
    pub async fn undelete(&self, how: How, name: &VolumeName) -> Answer<Changed> {
        self.change(how, Method::POST, &format!("/v1/volumes/{name}/undelete"), &()).await
    }

    /// Takes up a volume that nobody knows any more, under `name` or the one that it had last.
    ///
    /// # Errors
    /// [`Failure`]
    pub async fn adopt(
        &self,
        how: How,
        uuid: VolumeUuid,
        name: Option<&VolumeName>,
    ) -> Answer<Changed> {
        let asked = Adopt { uuid: uuid.to_string(), name: name.map(VolumeName::to_string) };
        self.change(how, Method::POST, "/v1/adopt", &asked).await
    }

    /// Mounts a volume for `id`.
    ///
    /// # Errors
    /// [`Failure`]
    pub async fn mount(&self, how: How, name: &VolumeName, id: MountId) -> Answer<Changed> {
        let by = MountBy { id: id.into() };
        self.change(how, Method::POST, &format!("/v1/volumes/{name}/mount"), &by).await
    }

    /// Gives up one mount of `id`.
    ///
    /// # Errors
    /// [`Failure`]
    pub async fn unmount(&self, how: How, name: &VolumeName, id: MountId) -> Answer<Changed> {
        let by = MountBy { id: id.into() };
        self.change(how, Method::POST, &format!("/v1/volumes/{name}/unmount"), &by).await
    }

    /// Grows a volume.
    ///
    /// # Errors
    /// [`Failure`]
    pub async fn resize(&self, how: How, name: &VolumeName, size: ByteSize) -> Answer<Changed> {
        let to = Resize { size: Size::Bytes(size.bytes()) };
        self.change(how, Method::POST, &format!("/v1/volumes/{name}/resize"), &to).await
    }

    /// Gives a volume another name.
    ///
    /// # Errors
    /// [`Failure`]
    pub async fn rename(&self, how: How, name: &VolumeName, new: &VolumeName) -> Answer<Changed> {
        let new = Named { name: new.to_string() };
        self.change(how, Method::POST, &format!("/v1/volumes/{name}/rename"), &new).await
    }

    /// Cuts a snapshot, between the programs of `hook` or else of the one that the volume has.
    ///
    /// # Errors
    /// [`Failure`]
    pub async fn cut(
        &self,
        how: How,
        reference: &SnapshotRef,
        hook: Option<&HookName>,
    ) -> Answer<Changed> {
        let path = format!("/v1/volumes/{}/snapshots", reference.volume);
        let hook = hook.map(HookName::to_string);
        let asked = Cut { name: reference.snapshot.to_string(), hook };
        self.change(how, Method::POST, &path, &asked).await
    }

    /// Deletes a snapshot.
    ///
    /// # Errors
    /// [`Failure`]
    pub async fn remove_snapshot(&self, how: How, reference: &SnapshotRef) -> Answer<Changed> {
        self.change(how, Method::DELETE, &of(reference), &()).await
    }

    /// Puts a snapshot's content in place of its volume's.
    ///
    /// # Errors
    /// [`Failure`]
    pub async fn restore(&self, how: How, reference: &SnapshotRef) -> Answer<Changed> {
        self.change(how, Method::POST, &format!("{}/restore", of(reference)), &()).await
    }

    /// The schedules of all volumes.
    ///
    /// # Errors
    /// [`Failure`]
    pub async fn schedules(&self) -> Answer<Vec<VolumeSchedule>> {
        self.get("/v1/schedules").await
    }

    /// Gives a volume a schedule.
    ///
    /// # Errors
    /// [`Failure`]
    pub async fn set_schedule(
        &self,
        how: How,
        name: &VolumeName,
        schedule: &SetSchedule,
    ) -> Answer<Changed> {
        self.change(how, Method::PUT, &format!("/v1/volumes/{name}/schedule"), schedule).await
    }

    /// Ends a volume's schedule.
    ///
    /// # Errors
    /// [`Failure`]
    pub async fn remove_schedule(&self, how: How, name: &VolumeName) -> Answer<Changed> {
        self.change(how, Method::DELETE, &format!("/v1/volumes/{name}/schedule"), &()).await
    }

    /// All pools.
    ///
    /// # Errors
    /// [`Failure`]
    pub async fn pools(&self) -> Answer<Vec<PoolView>> {
        self.get("/v1/pools").await
    }

    /// One pool.
    ///
    /// # Errors
    /// [`Failure`]
    pub async fn pool(&self, name: &BackendName) -> Answer<PoolView> {
        self.get(&format!("/v1/pools/{name}")).await
    }

    /// Grows a pool.
    ///
    /// # Errors
    /// [`Failure`]
    pub async fn grow_pool(
        &self,
        how: How,
        name: &BackendName,
        size: Option<ByteSize>,
    ) -> Answer<Changed> {
        let to = GrowPool { size: size.map(|size| Size::Bytes(size.bytes())) };
        self.change(how, Method::POST, &format!("/v1/pools/{name}/grow"), &to).await
    }

    /// Reads all metadata of a pool.
    ///
    /// # Errors
    /// [`Failure`]
    pub async fn check_pool(&self, how: How, name: &BackendName) -> Answer<Changed> {
        self.change(how, Method::POST, &format!("/v1/pools/{name}/check"), &()).await
    }

    /// Mends the metadata of a pool.
    ///
    /// # Errors
    /// [`Failure`]
    pub async fn repair_pool(&self, how: How, name: &BackendName) -> Answer<Changed> {
        self.change(how, Method::POST, &format!("/v1/pools/{name}/repair"), &()).await
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Answer<T> {
        self.ask(Method::GET, path, Bytes::new()).await
    }

    async fn change<T: DeserializeOwned>(
        &self,
        how: How,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> Answer<T> {
        let detach = how.wait == Wait::Begun;
        let joint = if path.contains('?') { '&' } else { '?' };
        let path = format!("{path}{joint}operation={}&detach={detach}", how.operation);
        let body = serde_json::to_vec(body).map_err(|error| {
            Failure::Refused(Error::internal("the request cannot be written").caused_by(error))
        })?;
        self.ask(method, &path, body.into()).await
    }

    /// Gives each event after the one with the number `after` to `each`, and with `follow` those that
    /// come, until `each` has enough or the daemon ends.
    ///
    /// # Errors
    /// [`Failure`]
    pub async fn events(
        &self,
        after: Option<u64>,
        follow: bool,
        mut each: impl FnMut(EventView) -> Next,
    ) -> Answer<()> {
        let after = after.map(|after| format!("&after={after}")).unwrap_or_default();
        let path = format!("/v1/events?follow={follow}{after}");
        let (mut body, _connection) = self.send(Method::GET, &path, Bytes::new()).await?;
        let mut text = Vec::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| self.gone(error))?;
            text.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
            while let Some(end) = text.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = text.drain(..=end).collect();
                let event = serde_json::from_slice(&line).map_err(|error| self.strange(error))?;
                if each(event) == Next::Enough {
                    return Ok(());
                }
            }
        }
        match follow {
            false => Ok(()),
            true => Err(Failure::Unreachable(
                Error::unavailable(format!("the daemon at {} stops", self.socket.display()))
                    .hint("follow again with --after and the last sequence number, once it runs"),
            )),
        }
    }

    async fn ask<T: DeserializeOwned>(&self, method: Method, path: &str, body: Bytes) -> Answer<T> {
        let (body, _connection) = self.send(method, path, body).await?;
        let body = body.collect().await.map_err(|error| self.gone(error))?.to_bytes();
        serde_json::from_slice(&body).map_err(|error| self.strange(error))
    }

    /// Names are safe in a path as they are. The connection has to be kept while the body is read.
    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Answer<(Incoming, Connection)> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|e| self.unreachable(e))?;
        let gone = |error: hyper::Error| self.gone(error);
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(gone)?;
        let connection = Connection(tokio::spawn(async move {
            // What is wrong with it shows where the answer is read.
            let _ = connection.await;
        }));
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, "holdfast")
            .body(Full::new(body))
            .map_err(|error| {
                Failure::Refused(Error::internal("the request cannot be made").caused_by(error))
            })?;
        let answer = sender.send_request(request).await.map_err(gone)?;
        let status = answer.status();
        let body = answer.into_body();
        if status.is_success() {
            return Ok((body, connection));
        }
        let body = body.collect().await.map_err(gone)?.to_bytes();
        let refusal: ErrorBody = serde_json::from_slice(&body).map_err(|e| self.strange(e))?;
        Err(Failure::Refused(error_of(refusal.error)))
    }

    fn strange(&self, error: serde_json::Error) -> Failure {
        let what = format!("{} gave an answer that cannot be read", self.socket.display());
        Failure::Refused(
            Error::internal(what)
                .hint("the daemon and this program may be of different versions")
                .caused_by(error),
        )
    }

    fn unreachable(&self, error: std::io::Error) -> Failure {
        let hint = match error.kind() {
            std::io::ErrorKind::PermissionDenied => "run this as root, or join the group holdfast",
            _ => {
                "start it with `holdfast daemon`, or name its socket with --socket or HOLDFAST_ADMIN_SOCKET"
            }
        };
        let what = format!("cannot reach the daemon at {}", self.socket.display());
        Failure::Unreachable(Error::unavailable(what).hint(hint).caused_by(error))
    }

    fn gone(&self, error: hyper::Error) -> Failure {
        let what = format!("the daemon at {} ended before it answered", self.socket.display());
        Failure::Unreachable(
            Error::unavailable(what)
                .hint("what was asked may have been done or not; it is finished or undone at the daemon's next start")
                .caused_by(error),
        )
    }
}

fn of(reference: &SnapshotRef) -> String {
    format!("/v1/volumes/{}/snapshots/{}", reference.volume, reference.snapshot)
}

/// An error that came over the socket, as it was when it was sent.
pub fn error_of(view: ErrorView) -> Error {
    let kind = ErrorKind::ALL.into_iter().find(|kind| kind.code() == view.code);
    let error = Error::new(kind.unwrap_or(ErrorKind::Internal), view.message);
    match view.hint {
        Some(hint) => error.hint(hint),
        None => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_comes_over_the_socket_whole() {
        let sent = Error::in_use("volume a is mounted").hint("stop it");
        let came = error_of(ErrorBody::from(&sent).error);
        assert_eq!(came.kind(), ErrorKind::InUse);
        assert_eq!((came.full_message(), came.hint_text()), (sent.full_message(), Some("stop it")));
    }

    #[tokio::test]
    async fn nobody_there_is_told_with_a_way_out() {
        let directory = tempfile::tempdir().unwrap();
        let client = Client::new(&directory.path().join("no.sock"));
        let Err(Failure::Unreachable(error)) = client.status().await else { panic!("reached") };
        assert!(error.full_message().contains("no.sock"));
        assert!(error.hint_text().is_some_and(|hint| hint.contains("holdfast daemon")));
    }
}
