//! Mounting what NFS servers export. A server that is gone must not hang anything for ever, and no write may be
//! lost without a word.

use std::io::ErrorKind as Io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::path::Path;
use std::time::Duration;

use super::{MountRequest, blocking, mount};
use crate::error::{Error, ErrorKind, Result};
use crate::model::Outcome;

const PORT: u16 = 2049;

/// From the newest on; all have sessions, so that a lost answer is not a second write.
const VERSIONS: [&str; 2] = ["4.2", "4.1"];

/// How long a call waits for a server, which the kernel's waits below add up to.
pub(crate) const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// What all mounts have.
///
/// `softerr`: a call that is not answered within 5, 10 and 15 seconds fails, as a timeout. What a program has
/// written meanwhile is not lost in silence: the kernel keeps the error for its fsync, so this is for those who
/// call that. What is in a directory is asked for each time: other hosts write there too.
const OPTIONS: [&str; 8] =
    ["softerr", "timeo=50", "retrans=2", "acdirmin=0", "acdirmax=0", "nosuid", "nodev", "noexec"];

/// Mounts a path of a server. `Unchanged` if it is mounted there already.
///
/// # Errors
/// `Unavailable` if the server does not answer in time: it may then still be mounted; `Unsupported` if it does
/// not let us.
pub(crate) async fn mount(server: &str, path: &str, target: &Path) -> Result<Outcome> {
    let (server, path, target) = (server.to_owned(), path.to_owned(), target.to_owned());
    let what = format!("mounting {server}:{path}");
    blocking::run(&what, ANSWER_WITHIN * 2, move || try_mount(&server, &path, &target)).await
}

/// Unmounts what [`mount`] has mounted. `InUse` while files there are open.
pub(crate) async fn unmount(target: &Path) -> Result<Outcome> {
    let what = format!("unmounting {}", target.display());
    let target = target.to_owned();
    blocking::run(&what, ANSWER_WITHIN * 2, move || mount::unmount(&target)).await
}

fn try_mount(server: &str, path: &str, target: &Path) -> Result<Outcome> {
    let addresses = look_up(server)?;
    let mut last = None;
    for (address, version) in
        addresses.iter().flat_map(|address| VERSIONS.map(|version| (address, version)))
    {
        match mount::mount(&request(server, path, target, address.ip(), version)) {
            Ok(outcome) => return Ok(outcome),
            // A server that does not answer to one version does not to the other.
            Err(error) if is_silent(&error) && version == VERSIONS[0] && addresses.len() == 1 => {
                return Err(explain(error, server, path));
            }
            Err(error) => last = Some(error),
        }
    }
    let error = last.unwrap_or_else(|| Error::unavailable(format!("{server} has no address")));
    Err(explain(error, server, path))
}

fn look_up(server: &str) -> Result<Vec<SocketAddr>> {
    let literal = server.trim_start_matches('[').trim_end_matches(']');
    let found = (literal, PORT).to_socket_addrs().map_err(|error| {
        Error::unavailable(format!("cannot look up the NFS server {server}")).caused_by(error)
    })?;
    let mut addresses: Vec<SocketAddr> = Vec::new();
    for address in found {
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    Ok(addresses)
}

fn request(
    server: &str,
    path: &str,
    target: &Path,
    address: IpAddr,
    version: &str,
) -> MountRequest {
    let own = [
        format!("vers={version}"),
        format!("proto={}", if address.is_ipv6() { "tcp6" } else { "tcp" }),
        format!("addr={address}"),
    ];
    MountRequest {
        source: format!("{server}:{path}"),
        filesystem: "nfs4".to_owned(),
        target: target.to_owned(),
        options: own.into_iter().chain(OPTIONS.map(str::to_owned)).collect(),
        read_only: false,
    }
}

/// Whether the server was not reached.
fn is_silent(error: &Error) -> bool {
    matches!(
        io_cause(error),
        Some(
            Io::TimedOut
                | Io::ConnectionRefused
                | Io::ConnectionReset
                | Io::HostUnreachable
                | Io::NetworkUnreachable
                | Io::NetworkDown
        )
    )
}

fn io_cause(error: &Error) -> Option<Io> {
    let mut at = std::error::Error::source(error);
    while let Some(error) = at {
        if let Some(io) = error.downcast_ref::<std::io::Error>() {
            return Some(io.kind());
        }
        at = error.source();
    }
    None
}

fn explain(error: Error, server: &str, path: &str) -> Error {
    if is_silent(&error) {
        let kind = ErrorKind::Unavailable;
        return error.with_kind(kind).hint(format!("try again when {server} can be reached"));
    }
    match io_cause(&error) {
        Some(Io::NotFound) => error
            .with_kind(ErrorKind::Unsupported)
            .hint(format!("{server} exports no {path}; a directory is made on the server")),
        Some(Io::PermissionDenied) => error
            .with_kind(ErrorKind::Unsupported)
            .hint(format!("{server} has to export {path} to this host")),
        _ if error.kind() == ErrorKind::InUse => error,
        // It has the hint that the kernel's module is missing.
        _ if error.kind() == ErrorKind::Unsupported && error.hint_text().is_some() => error,
        _ => error.with_kind(ErrorKind::Unsupported).hint("the server has to speak NFS 4.1 or 4.2"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_looked_up_with_and_without_brackets() {
        let ip = |server| look_up(server).unwrap()[0].ip().to_string();
        assert_eq!(ip("192.0.2.1"), "192.0.2.1");
        assert_eq!(ip("[2001:db8::1]"), "2001:db8::1");
        let error = look_up("no such server").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
    }

    #[test]
    fn what_the_server_says_is_told_by_what_can_be_done() {
        let error = |errno| {
            let io = std::io::Error::from_raw_os_error(errno);
            explain(Error::io("cannot mount", io).context("x"), "nas", "/export")
        };
        use nix::libc::{EACCES, ECONNREFUSED, EHOSTUNREACH, ENOENT, EPROTONOSUPPORT, ETIMEDOUT};
        for errno in [ECONNREFUSED, EHOSTUNREACH, ETIMEDOUT] {
            assert_eq!(error(errno).kind(), ErrorKind::Unavailable);
        }
        for errno in [EACCES, ENOENT, EPROTONOSUPPORT] {
            assert_eq!(error(errno).kind(), ErrorKind::Unsupported);
            assert!(error(errno).hint_text().is_some());
        }
    }
}
