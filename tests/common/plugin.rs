//! A client of the plugin socket that speaks as the engine does, or worse when a test wants it to.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};

/// Longer than the engine itself waits for any answer.
const TIMEOUT: Duration = Duration::from_secs(150);

#[derive(Debug, Clone)]
pub(crate) struct PluginClient {
    pub(crate) socket: PathBuf,
}

#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: String,
    pub(crate) text: String,
}

impl Answer {
    /// Parses a whole answer from a connection that was closed after it.
    fn parse(bytes: &[u8]) -> io::Result<Self> {
        let bad = || io::Error::new(io::ErrorKind::InvalidData, "not an HTTP answer");
        let whole = std::str::from_utf8(bytes).map_err(|_| bad())?;
        let (headers, text) = whole.split_once("\r\n\r\n").ok_or_else(bad)?;
        let status = headers.split(' ').nth(1).and_then(|code| code.parse().ok());
        Ok(Self {
            status: status.ok_or_else(bad)?,
            headers: headers.to_ascii_lowercase(),
            text: text.to_owned(),
        })
    }

    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|_| panic!("not JSON: {self:?}"))
    }

    /// The error that the engine would show, if it took this for one.
    pub(crate) fn error(&self) -> Option<String> {
        let body: Value = serde_json::from_str(&self.text).unwrap_or_default();
        match body["Err"].as_str() {
            Some("") | None if self.status == 200 => None,
            Some(message) if !message.is_empty() => Some(message.to_owned()),
            _ => Some(self.text.clone()),
        }
    }
}

impl PluginClient {
    pub(crate) fn connect(&self) -> io::Result<UnixStream> {
        let stream = UnixStream::connect(&self.socket)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        Ok(stream)
    }

    /// The bytes of a request as the engine sends it: no Content-Type.
    pub(crate) fn request(method: &str, body: &[u8]) -> Vec<u8> {
        let mut request = format!(
            "POST /{method} HTTP/1.1\r\nHost: plugin.moby.localhost\r\n\
             User-Agent: Go-http-client/1.1\r\nContent-Length: {}\r\n\
             Accept: application/vnd.docker.plugins.v1.2+json\r\nConnection: close\r\n\r\n",
            body.len()
        )
        .into_bytes();
        request.extend_from_slice(body);
        request
    }

    /// Sends any bytes at all and reads the answer until the daemon closes the connection.
    pub(crate) fn send(&self, request: &[u8]) -> io::Result<Answer> {
        let mut stream = self.connect()?;
        // A daemon that refuses a body may answer and close before it has read all of it.
        let written = stream.write_all(request);
        let answer = read_answer(stream);
        written.or_else(|error| if answer.is_ok() { Ok(()) } else { Err(error) })?;
        answer
    }

    pub(crate) fn post(&self, method: &str, body: &[u8]) -> io::Result<Answer> {
        self.send(&Self::request(method, body))
    }

    /// Calls a method of the volume driver and expects an answer of some kind.
    #[track_caller]
    pub(crate) fn call(&self, method: &str, body: &Value) -> Answer {
        match self.post_json(method, body) {
            Ok(answer) => answer,
            Err(error) => panic!("{method} {body}: {error}"),
        }
    }

    fn post_json(&self, method: &str, body: &Value) -> io::Result<Answer> {
        self.post(&format!("VolumeDriver.{method}"), format!("{body}\n").as_bytes())
    }

    /// The answer, or what went wrong: what the daemon says, or that it does not answer at all.
    fn ask(&self, method: &str, body: &Value) -> Result<Value, String> {
        let answer = self.post_json(method, body).map_err(|error| format!("no answer: {error}"))?;
        answer.error().map_or_else(|| Ok(answer.json()), Err)
    }

    pub(crate) fn create(&self, name: &str, options: &[(&str, &str)]) -> Result<(), String> {
        let options: serde_json::Map<String, Value> =
            options.iter().map(|(key, value)| ((*key).to_owned(), json!(value))).collect();
        self.ask("Create", &json!({"Name": name, "Opts": options})).map(drop)
    }

    pub(crate) fn remove(&self, name: &str) -> Result<(), String> {
        self.ask("Remove", &json!({"Name": name})).map(drop)
    }

    /// The mountpoint, as a path inside the host.
    pub(crate) fn mount(&self, name: &str, id: &str) -> Result<PathBuf, String> {
        self.ask("Mount", &json!({"Name": name, "ID": id}))
            .map(|answer| PathBuf::from(answer["Mountpoint"].as_str().expect("Mountpoint")))
    }

    pub(crate) fn unmount(&self, name: &str, id: &str) -> Result<(), String> {
        self.ask("Unmount", &json!({"Name": name, "ID": id})).map(drop)
    }

    pub(crate) fn get(&self, name: &str) -> Result<Value, String> {
        self.ask("Get", &json!({"Name": name})).map(|mut answer| answer["Volume"].take())
    }

    /// The mountpoint that Path tells; empty while the volume is not mounted.
    pub(crate) fn path(&self, name: &str) -> Result<String, String> {
        self.ask("Path", &json!({"Name": name}))
            .map(|answer| answer["Mountpoint"].as_str().unwrap_or_default().to_owned())
    }

    /// The names that List tells, in its order.
    pub(crate) fn list(&self) -> Vec<String> {
        let answer = self.ask("List", &json!({})).expect("List");
        let volumes = answer["Volumes"].as_array().cloned().unwrap_or_default();
        volumes.iter().map(|volume| volume["Name"].as_str().expect("Name").to_owned()).collect()
    }
}

/// Reads what comes until the other side closes; a reset after a whole answer is an end like another.
pub(crate) fn read_answer(mut stream: UnixStream) -> io::Result<Answer> {
    let mut bytes = Vec::new();
    let read = stream.read_to_end(&mut bytes);
    if bytes.is_empty() {
        read?;
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Answer::parse(&bytes)
}
