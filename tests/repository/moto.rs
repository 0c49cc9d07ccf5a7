//! Amazon's S3 as moto has it, and a proxy before it that spoils answers.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use holdfast::repository::{Location, S3Settings, Secret, SecretSource};

use crate::world::World;

pub(crate) const BUCKET: &str = "backups";

/// moto looks at no signature, but an object may be replaced only by somebody with a name.
const AUTHORIZATION: &str = "AWS4-HMAC-SHA256 Credential=key/20260101/us-east-1/s3/aws4_request, \
                             SignedHeaders=host, Signature=0";

/// A server of the test's own.
pub(crate) struct Moto {
    process: Child,
    pub(crate) address: SocketAddr,
}

impl Moto {
    pub(crate) fn new() -> Self {
        let program = std::env::var("HOLDFAST_MOTO_SERVER").unwrap_or("moto_server".to_owned());
        let mut process = Command::new(program)
            .args(["-H", "127.0.0.1", "-p", "0"])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("moto is installed (scripts/test does it)");
        let mut said = BufReader::new(process.stderr.take().unwrap());
        let address = loop {
            let mut line = String::new();
            assert_ne!(said.read_line(&mut line).unwrap(), 0, "moto tells where it listens");
            if let Some((_, rest)) = line.split_once("Running on http://") {
                break rest.trim().parse().unwrap();
            }
        };
        // It would wait for room in the pipe.
        std::thread::spawn(move || std::io::copy(&mut said, &mut std::io::sink()));
        let moto = Self { process, address };
        moto.put("", b"");
        moto
    }

    /// Stores an object; the bucket itself without a name.
    pub(crate) fn put(&self, name: &str, content: &[u8]) {
        let length = content.len();
        let head = format!(
            "PUT /{BUCKET}/{name} HTTP/1.1\r\nHost: {}\r\nAuthorization: {AUTHORIZATION}\r\n\
             Content-Length: {length}\r\nConnection: close\r\n\r\n",
            self.address
        );
        let answer = exchange(self.address, &[head.as_bytes(), content].concat());
        assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
    }

    /// A repository below `prefix` of the bucket, as it is reached at `address`.
    pub(crate) fn world(address: SocketAddr, bucket: &str) -> World {
        let location = Location::S3 {
            endpoint: Some(format!("http://{address}")),
            bucket: bucket.to_owned(),
            prefix: "some/prefix".to_owned(),
        };
        let s3 = S3Settings {
            region: None,
            access_key_id: Some("key".to_owned()),
            secret_access_key: Some(SecretSource::Given(Secret::new("secret"))),
        };
        World::at(tempfile::tempdir().unwrap(), location, s3)
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn exchange(server: SocketAddr, request: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(server).unwrap();
    stream.write_all(request).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    answer
}

/// What becomes of an answer.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Answer {
    Whole,
    /// Some other one, without asking the server.
    Instead(&'static str),
    /// It was done, and nobody hears of it.
    None,
    /// It ends in the middle of its body.
    Half,
    Late(Duration),
}

type Rule = Arc<dyn Fn(&str, &str) -> Answer + Send + Sync>;

/// Forwards what `rule` lets through, by method and path. Ends with the process of the test.
pub(crate) fn proxy(
    server: SocketAddr,
    rule: impl Fn(&str, &str) -> Answer + Send + Sync + 'static,
) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let rule: Rule = Arc::new(rule);
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let rule = Arc::clone(&rule);
            std::thread::spawn(move || forward(&client, server, &rule));
        }
    });
    address
}

/// Every `n`th request that `wanted` holds for gets this answer.
pub(crate) fn every(
    n: usize,
    answer: Answer,
    wanted: impl Fn(&str, &str) -> bool + Send + Sync + 'static,
) -> impl Fn(&str, &str) -> Answer + Send + Sync + 'static {
    let seen = AtomicUsize::new(0);
    move |method, path| {
        let hit = wanted(method, path) && seen.fetch_add(1, Ordering::SeqCst).is_multiple_of(n);
        if hit { answer } else { Answer::Whole }
    }
}

fn forward(mut client: &TcpStream, server: SocketAddr, rule: &Rule) -> Option<()> {
    let mut reader = BufReader::new(client.try_clone().ok()?);
    let (mut head, mut length, mut first) = (Vec::new(), 0, String::new());
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        let lower = line.to_ascii_lowercase();
        if first.is_empty() {
            first.clone_from(&line);
        }
        if let Some(value) = lower.strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
        if lower.starts_with("expect:") {
            client.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").ok()?;
            continue;
        }
        if lower.starts_with("connection:") {
            continue;
        }
        if line == "\r\n" {
            head.extend_from_slice(b"Connection: close\r\n\r\n");
            break;
        }
        head.extend_from_slice(line.as_bytes());
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let mut words = first.split(' ');
    let answer = rule(words.next()?, words.next()?);
    if let Answer::Instead(text) = answer {
        return client.write_all(text.as_bytes()).ok();
    }
    let mut whole = exchange(server, &[head, body].concat());
    match answer {
        Answer::None => return None,
        Answer::Half => {
            let start = whole.windows(4).position(|part| part == b"\r\n\r\n")? + 4;
            whole.truncate(start + (whole.len() - start) / 2);
        }
        Answer::Late(time) => std::thread::sleep(time),
        Answer::Whole | Answer::Instead(_) => {}
    }
    client.write_all(&whole).ok()
}
