//! The words of Docker's plugin protocol.

use std::collections::BTreeMap;
use std::io::Write as _;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Response, StatusCode};
use serde::{Deserialize, Serialize};

use crate::backend::Scope;
use crate::engine::Engine;
use crate::engine::view::{VolumeDetails, VolumeSummary};
use crate::error::{Error, Result};
use crate::id::MountId;
use crate::name::{BackendName, VolumeName};

pub(super) type Reply = Response<Full<Bytes>>;

/// The version that Docker asks for; it does not check what it gets.
const MEDIA_TYPE: HeaderValue =
    HeaderValue::from_static("application/vnd.docker.plugins.v1.2+json");

/// What Docker asks. Unknown fields are ignored, because a later Docker may send more.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Ask {
    #[serde(rename = "Name", default)]
    name: Option<String>,
    #[serde(rename = "Opts", default)]
    options: Option<BTreeMap<String, String>>,
    #[serde(rename = "ID", default)]
    id: Option<String>,
}

impl Ask {
    /// Reads a request. One without a body is an error and never success: after a crash of ours
    /// Docker repeats a request with its body lost, and whatever it asked has not happened.
    pub(super) fn read(body: &[u8]) -> Result<Self> {
        let strange = || Error::invalid("the request is not what Docker sends");
        match body.trim_ascii_start().first() {
            None => Err(Error::invalid("the request has no body").hint(
                "Docker sends one again without its body when the daemon ended under it: repeat the command",
            )),
            // serde would take an array for the same fields in order.
            Some(b'{') => {
                serde_json::from_slice(body).map_err(|error| strange().caused_by(error))
            }
            Some(_) => Err(strange()),
        }
    }

    pub(super) fn name(&mut self) -> Result<VolumeName> {
        self.name
            .take()
            .filter(|name| !name.is_empty())
            .ok_or_else(|| Error::invalid("the request names no volume"))?
            .try_into()
    }

    pub(super) fn id(&mut self) -> Result<MountId> {
        self.id.take().ok_or_else(|| Error::invalid("the request has no mount id"))?.try_into()
    }

    /// The backend that the options name, if any.
    pub(super) fn backend(&self) -> Option<BackendName> {
        let options = self.options.as_ref()?;
        options.get("backend").or_else(|| options.get("driver"))?.parse().ok()
    }

    pub(super) fn options(&mut self) -> BTreeMap<String, String> {
        self.options.take().unwrap_or_default()
    }
}

/// One error in the form that Docker shows.
#[derive(Debug, Serialize)]
struct Failed<'a> {
    #[serde(rename = "Err")]
    error: &'a str,
}

#[derive(Debug, Serialize)]
struct Found<'a> {
    #[serde(rename = "Volume")]
    volume: Option<Volume<'a>>,
    #[serde(rename = "Err")]
    error: &'a str,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Volume<'a> {
    name: &'a str,
    mountpoint: String,
    created_at: String,
    status: Status<'a>,
}

/// What `docker volume inspect` shows besides.
#[derive(Debug, Serialize)]
struct Status<'a> {
    backend: &'a str,
    size: Option<u64>,
    used: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    exclusive: Option<u64>,
    filesystem: Option<&'a str>,
    state: &'a str,
    health: &'a str,
    node: &'a str,
    source: Option<&'a str>,
    snapshots: Vec<&'a str>,
    last_backup: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Mounted<'a> {
    mountpoint: &'a str,
    err: &'a str,
}

pub(super) fn activated() -> Reply {
    raw(StatusCode::OK, Bytes::from_static(br#"{"Implements":["VolumeDriver"]}"#))
}

pub(super) fn capabilities(scope: Scope) -> Reply {
    raw(
        StatusCode::OK,
        Bytes::from_static(match scope {
            Scope::Local => br#"{"Capabilities":{"Scope":"local"}}"#,
            Scope::Global => br#"{"Capabilities":{"Scope":"global"}}"#,
        }),
    )
}

pub(super) fn done() -> Reply {
    raw(StatusCode::OK, Bytes::from_static(br#"{"Err":""}"#))
}

pub(super) fn failed(status: StatusCode, text: &str) -> Reply {
    let mut reply = json(status, &Failed { error: text });
    reply.extensions_mut().insert(Refusal);
    reply
}

/// Marks answers that are errors: Docker takes most of them with status 200.
#[derive(Debug, Clone, Copy)]
struct Refusal;

/// Whether an answer tells an error.
pub(super) fn is_failure(reply: &Reply) -> bool {
    reply.extensions().get::<Refusal>().is_some()
}

pub(super) fn mounted_at(path: &str) -> Reply {
    json(StatusCode::OK, &Mounted { mountpoint: path, err: "" })
}

pub(super) fn absent(name: &str) -> Reply {
    json(StatusCode::OK, &Found { volume: None, error: &format!("no such volume: {name}") })
}

pub(super) fn found(details: &VolumeDetails) -> Reply {
    let status = Status {
        backend: details.backend.as_str(),
        size: details.size.map(|size| size.bytes()),
        used: details.used,
        exclusive: details.exclusive,
        filesystem: details.filesystem.map(|filesystem| filesystem.as_str()),
        state: &details.state,
        health: &details.health,
        node: &details.node,
        source: details.source.as_deref(),
        snapshots: details.snapshots.iter().map(|snapshot| snapshot.name.as_str()).collect(),
        last_backup: details.last_backup.map(|time| time.to_string()),
    };
    found_with(details.name.as_str(), details.mountpoint.as_deref(), details.created, status)
}

/// The same of a volume whose details cannot be told.
pub(super) fn found_summary(summary: &VolumeSummary, node: &str) -> Reply {
    let status = Status {
        backend: summary.backend.as_str(),
        size: summary.size.map(|size| size.bytes()),
        used: None,
        exclusive: None,
        filesystem: summary.filesystem.map(|filesystem| filesystem.as_str()),
        state: &summary.state,
        health: "unknown",
        node,
        source: None,
        snapshots: Vec::new(),
        last_backup: None,
    };
    found_with(summary.name.as_str(), summary.mountpoint.as_deref(), summary.created, status)
}

fn found_with(
    name: &str,
    mountpoint: Option<&std::path::Path>,
    created: jiff::Timestamp,
    status: Status<'_>,
) -> Reply {
    let mountpoint = mountpoint.map(|path| path.to_string_lossy().into_owned()).unwrap_or_default();
    // Docker decodes the time strictly: a wrong one would make the volume look absent.
    let volume = Volume { name, mountpoint, created_at: created.to_string(), status };
    json(StatusCode::OK, &Found { volume: Some(volume), error: "" })
}

/// The list is written as it is read, because there may be ten thousand volumes.
pub(super) fn list(engine: &Engine) -> Reply {
    let mut body = Vec::with_capacity(16 * 1024);
    body.extend_from_slice(br#"{"Volumes":["#);
    let mut first = true;
    engine.docker_list(&mut |name, mountpoint| {
        if !std::mem::take(&mut first) {
            body.push(b',');
        }
        // A name needs no escapes; a path may.
        let _ = write!(body, r#"{{"Name":"{name}","Mountpoint":"#);
        match mountpoint {
            Some(path) => {
                let _ = serde_json::to_writer(&mut body, &path.to_string_lossy());
            }
            None => body.extend_from_slice(br#""""#),
        }
        body.push(b'}');
    });
    body.extend_from_slice(br#"],"Err":""}"#);
    raw(StatusCode::OK, body.into())
}

fn json(status: StatusCode, value: &impl Serialize) -> Reply {
    match serde_json::to_vec(value) {
        Ok(body) => raw(status, body.into()),
        Err(_) => raw(
            StatusCode::INTERNAL_SERVER_ERROR,
            Bytes::from_static(br#"{"Err":"the answer cannot be written"}"#),
        ),
    }
}

fn raw(status: StatusCode, body: Bytes) -> Reply {
    let mut reply = Response::new(Full::new(body));
    *reply.status_mut() = status;
    reply.headers_mut().insert(CONTENT_TYPE, MEDIA_TYPE);
    reply
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rule_03_a_request_without_body_or_name_is_an_error() {
        for body in [
            &b""[..],
            b"\n",
            b"null",
            b"[]",
            b"[\"a\"]",
            b"{",
            b"{}x",
            b"\"x\"",
            b"{\"Name\":1}",
            b"\xff",
        ] {
            assert!(Ask::read(body).is_err(), "{}", String::from_utf8_lossy(body));
        }
        for body in ["{}", r#"{"Name":""}"#, r#"{"Name":null}"#, r#"{"name":"a"}"#] {
            assert!(Ask::read(body.as_bytes()).unwrap().name().is_err(), "{body}");
        }
    }

    #[test]
    fn what_docker_sends_is_understood() {
        let body = br#"{"Name":"a","Opts":null,"ID":"4f2","Later":{"x":[1]}}"#;
        let mut ask = Ask::read(body).unwrap();
        assert_eq!(ask.name().unwrap().as_str(), "a");
        assert_eq!(ask.id().unwrap().as_str(), "4f2");
        assert!(ask.options().is_empty());
        let mut ask = Ask::read(b"{\"Name\":\"a\",\"Opts\":{\"size\":\"1G\"}}\n").unwrap();
        assert_eq!(ask.options()["size"], "1G");
        assert!(ask.id().is_err());
    }
}
