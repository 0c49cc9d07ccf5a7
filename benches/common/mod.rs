//! What the benchmarks share: a client of the daemon's sockets, and times.

#![allow(dead_code, reason = "each benchmark uses its own part of this")]

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// The daemon under test.
pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_holdfast");

/// One keep-alive connection to a socket.
pub(crate) struct Client(BufReader<UnixStream>);

impl Client {
    pub(crate) fn connect(socket: &Path) -> Self {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            match UnixStream::connect(socket) {
                Ok(stream) => return Self(BufReader::new(stream)),
                Err(error) if Instant::now() > deadline => panic!("{}: {error}", socket.display()),
                Err(_) => std::thread::sleep(Duration::from_millis(2)),
            }
        }
    }

    pub(crate) fn post(&mut self, path: &str, body: &str) -> Vec<u8> {
        self.send("POST", path, body)
    }

    pub(crate) fn send(&mut self, method: &str, path: &str, body: &str) -> Vec<u8> {
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: holdfast\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        self.0.get_mut().write_all(request.as_bytes()).unwrap();
        let mut length = None;
        let mut status = String::new();
        self.0.read_line(&mut status).unwrap();
        loop {
            let mut line = String::new();
            self.0.read_line(&mut line).unwrap();
            if line == "\r\n" {
                break;
            }
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = Some(value.trim().parse::<usize>().unwrap());
            }
        }
        let mut answer = vec![0; length.expect("an answer with a length")];
        self.0.read_exact(&mut answer).unwrap();
        assert!(status.contains(" 200 "), "{path}: {status} {}", String::from_utf8_lossy(&answer));
        answer
    }
}

/// The median and the 99th of a hundred.
#[derive(Clone, Copy)]
pub(crate) struct Times {
    pub(crate) median: Duration,
    pub(crate) p99: Duration,
}

pub(crate) fn summary(mut times: Vec<Duration>) -> Times {
    times.sort_unstable();
    Times { median: times[times.len() / 2], p99: times[times.len() * 99 / 100] }
}

pub(crate) fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers[numbers.len() / 2]
}

pub(crate) fn micros(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}

pub(crate) fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

pub(crate) fn timed<T>(work: impl FnOnce() -> T) -> Duration {
    let begin = Instant::now();
    work();
    begin.elapsed()
}

/// Runs a program that has to succeed.
pub(crate) fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}
