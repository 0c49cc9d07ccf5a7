//! The sockets that the daemon listens on, and what it tells its service manager.

use std::io::ErrorKind as Io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt};
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::unistd::Group;

use crate::error::{Error, Result};

/// The group whose members may use the admin socket.
const GROUP: &str = "holdfast";

/// A socket to listen on; its file goes with it, unless somebody else made it.
#[derive(Debug)]
pub(super) struct Socket {
    listener: Option<UnixListener>,
    own: Option<PathBuf>,
}

/// Who may connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// Root.
    Owner,
    /// Root and the group `holdfast`.
    Group,
}

/// The sockets that systemd passed on.
#[derive(Debug, Default)]
pub(super) struct Inherited {
    listeners: Vec<UnixListener>,
}

impl Inherited {
    /// Takes them over from the environment.
    pub(super) fn take() -> Result<Self> {
        let mut passed = listenfd::ListenFd::from_env();
        let mut listeners = Vec::new();
        for index in 0..passed.len() {
            let listener = passed.take_unix_listener(index).map_err(|error| {
                Error::io(format!("inherited socket {index} is not a unix stream socket"), error)
            })?;
            listeners.extend(listener);
        }
        Ok(Self { listeners })
    }

    /// The one that is bound to `path`.
    fn at(&mut self, path: &Path) -> Option<UnixListener> {
        let bound = |listener: &UnixListener| {
            listener.local_addr().is_ok_and(|address| address.as_pathname() == Some(path))
        };
        let index = self.listeners.iter().position(bound)?;
        Some(self.listeners.remove(index))
    }

    /// The only one that is left: a service manager may have put Docker's socket elsewhere.
    fn other(&mut self) -> Result<Option<UnixListener>> {
        if self.listeners.len() < 2 {
            return Ok(self.listeners.pop());
        }
        let places = self.listeners.iter().map(|listener| match listener.local_addr() {
            Ok(address) => format!("{address:?}"),
            Err(_) => "unknown".to_owned(),
        });
        let places = places.collect::<Vec<_>>().join(", ");
        Err(Error::invalid(format!("it is not clear which inherited socket is Docker's: {places}"))
            .hint("set plugin_socket and admin_socket to the paths of the inherited sockets"))
    }
}

impl Socket {
    /// The socket of the admin API.
    pub(super) fn admin(path: &Path, inherited: &mut Inherited) -> Result<Self> {
        match inherited.at(path) {
            Some(listener) => Ok(Self { listener: Some(listener), own: None }),
            None => Self::bind(path, Access::Group),
        }
    }

    /// Docker's socket. Asked for after the admin socket, it takes what that left.
    pub(super) fn plugin(path: &Path, inherited: &mut Inherited) -> Result<Self> {
        let listener = match inherited.at(path) {
            Some(listener) => Some(listener),
            None => inherited.other()?,
        };
        match listener {
            Some(listener) => Ok(Self { listener: Some(listener), own: None }),
            None => Self::bind(path, Access::Owner),
        }
    }

    fn bind(path: &Path, access: Access) -> Result<Self> {
        let failed =
            |error| Error::io(format!("cannot listen on the socket {}", path.display()), error);
        if let Some(directory) = path.parent() {
            make_directory(directory, 0o755)?;
        }
        prove_unused(path)?;
        // In a directory of its own until its mode is right: between bind and chmod others could
        // connect.
        let name = path.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
        let nest = path.with_file_name(format!(".{name}.new"));
        let draft = nest.join("s");
        let mode = match access {
            Access::Owner => 0o600,
            Access::Group => 0o660,
        };
        clear(&nest, &draft).map_err(failed)?;
        make_directory(&nest, 0o700)?;
        let bound = UnixListener::bind(&draft).and_then(|listener| {
            std::fs::set_permissions(&draft, PermissionsExt::from_mode(mode))?;
            if access == Access::Group {
                give_to_group(&draft)?;
            }
            std::fs::rename(&draft, path)?;
            Ok(listener)
        });
        let cleared = clear(&nest, &draft);
        let listener = bound.and_then(|listener| cleared.map(|()| listener)).map_err(failed)?;
        Ok(Self { listener: Some(listener), own: Some(path.to_owned()) })
    }

    /// The listener, for whoever serves it and closes it when the daemon stops. It must not stay open
    /// beyond that: a connection that nobody takes any more would be lost with its request, and
    /// Docker repeats the request without its body. A refused one it repeats whole.
    pub(super) fn listener(&mut self) -> Result<tokio::net::UnixListener> {
        let failed = |error| Error::io("cannot listen", error);
        let listener =
            self.listener.take().ok_or_else(|| Error::internal("a socket is served twice"))?;
        listener.set_nonblocking(true).map_err(failed)?;
        tokio::net::UnixListener::from_std(listener).map_err(failed)
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if let Some(path) = &self.own {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Fails unless `path` is free, or is a socket on which nobody listens any more.
fn prove_unused(path: &Path) -> Result<()> {
    let kind = match std::fs::symlink_metadata(path) {
        Ok(metadata) => metadata.file_type(),
        Err(error) if error.kind() == Io::NotFound => return Ok(()),
        Err(error) => return Err(Error::io(format!("cannot look at {}", path.display()), error)),
    };
    if !kind.is_socket() {
        return Err(Error::conflict(format!("{} exists and is not a socket", path.display()))
            .hint("move it away, or choose another path for the socket"));
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == Io::ConnectionRefused => Ok(()),
        Err(error) if error.kind() == Io::NotFound => Ok(()),
        Ok(_) => Err(Error::in_use(format!("another process listens on {}", path.display()))
            .hint("stop it first, or choose another path for the socket")),
        Err(error) => Err(Error::io(
            format!("cannot tell whether somebody listens on {}", path.display()),
            error,
        )),
    }
}

/// Removes what an interrupted start left: a directory with at most a socket in it.
fn clear(nest: &Path, draft: &Path) -> std::io::Result<()> {
    let gone = |result: std::io::Result<()>| match result {
        Err(error) if error.kind() == Io::NotFound => Ok(()),
        other => other,
    };
    gone(std::fs::remove_file(draft))?;
    gone(std::fs::remove_dir(nest))
}

/// A host without the group has only root to let in.
fn give_to_group(path: &Path) -> std::io::Result<()> {
    match Group::from_name(GROUP)? {
        Some(group) => std::os::unix::fs::chown(path, None, Some(group.gid.as_raw())),
        None => Ok(()),
    }
}

/// Makes a directory and those above it.
pub(super) fn make_directory(path: &Path, mode: u32) -> Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(mode).create(path).map_err(|error| {
        let denied = error.kind() == Io::PermissionDenied;
        let error = Error::io(format!("cannot make the directory {}", path.display()), error);
        if denied { error.hint("run the daemon as root") } else { error }
    })
}

/// Tells systemd how we are, if it asked (`sd_notify(3)`).
pub(super) fn notify(state: &str) {
    let Some(place) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let place = place.to_string_lossy();
    let address = match place.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(&*place),
    };
    let sent = address.and_then(|address| {
        UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address).map(|_| ())
    });
    if let Err(error) = sent {
        tracing::warn!(%error, "the service manager cannot be told {state}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn a_socket_is_ours_alone_and_goes_with_us() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a/b/holdfast.sock");
        let socket = Socket::plugin(&path, &mut Inherited::default()).unwrap();
        assert_eq!(mode(&path), 0o600);
        let admin = directory.path().join("admin.sock");
        let _admin = Socket::admin(&admin, &mut Inherited::default()).unwrap();
        assert_eq!(mode(&admin), 0o660);
        let error = Socket::plugin(&path, &mut Inherited::default()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InUse, "somebody listens");
        drop(socket);
        assert!(!path.exists());
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 0);
    }

    #[test]
    fn a_stale_socket_is_replaced_and_anything_else_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s.sock");
        drop(UnixListener::bind(&path).unwrap());
        let nest = directory.path().join(".s.sock.new");
        std::fs::create_dir(&nest).unwrap();
        drop(UnixListener::bind(nest.join("s")).unwrap());
        drop(Socket::plugin(&path, &mut Inherited::default()).unwrap());
        std::fs::write(&path, "precious").unwrap();
        let error = Socket::plugin(&path, &mut Inherited::default()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Conflict);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    }

    #[test]
    fn an_inherited_socket_wins_and_stays() {
        let directory = tempfile::tempdir().unwrap();
        let (admin, elsewhere) = (directory.path().join("a"), directory.path().join("e"));
        let mut inherited = Inherited {
            listeners: vec![
                UnixListener::bind(&admin).unwrap(),
                UnixListener::bind(&elsewhere).unwrap(),
            ],
        };
        let own = directory.path().join("own");
        let one = Socket::admin(&admin, &mut inherited).unwrap();
        let other = Socket::plugin(&own, &mut inherited).unwrap();
        assert!(!own.exists());
        drop((one, other));
        assert!(admin.exists() && elsewhere.exists());
    }
    #[test]
    fn of_two_strange_sockets_none_is_taken_for_docker_s() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let listeners = vec![
            UnixListener::bind(path("one")).unwrap(),
            UnixListener::bind(path("two")).unwrap(),
        ];
        let error = Socket::plugin(&path("own"), &mut Inherited { listeners }).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.full_message().contains("/two"), "{error}");
    }
}
