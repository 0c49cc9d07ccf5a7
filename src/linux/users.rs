//! Who uses a mounted filesystem: the containers that have a directory of it bind-mounted.

use std::collections::HashSet;
use std::io::ErrorKind as Io;
use std::path::Path;

use super::mountinfo;
use crate::error::{Error, Result};

/// Counts the mounts of directories strictly inside what is mounted at `target`, over all mount
/// namespaces. A copy of a whole namespace shows our own mount again, and is no use of it.
pub(crate) fn bind_mounts_of(target: &Path) -> Result<usize> {
    let real = std::fs::canonicalize(target)
        .map_err(|error| Error::io(format!("cannot resolve {}", target.display()), error))?;
    let Some(mounted) = mountinfo::at(&real)? else {
        return Err(Error::not_found(format!("nothing is mounted at {}", target.display())));
    };
    let mut namespaces = HashSet::new();
    let mut users = HashSet::new();
    for process in processes()? {
        let namespace = match std::fs::read_link(process.join("ns/mnt")) {
            Ok(namespace) if namespaces.contains(&namespace) => continue,
            Ok(namespace) => Some(namespace),
            // A process that ends meanwhile uses nothing.
            Err(error) if is_gone(&error) => continue,
            // One with more rights than ours still shows its mounts.
            Err(_) => None,
        };
        let entries = match mountinfo::read(&process.join("mountinfo")) {
            Ok(entries) if !entries.is_empty() => entries,
            // Ending: another process may still show the namespace.
            Ok(_) => continue,
            Err(error) if is_dying(&error) => continue,
            Err(error) => return Err(error),
        };
        namespaces.extend(namespace);
        let inside = entries.into_iter().filter(|entry| {
            let (root, other) = (&mounted.root, &entry.mounted);
            other.device == mounted.device && other.root != *root && other.root.starts_with(root)
        });
        // The kernel numbers the mounts of all namespaces together.
        users.extend(inside.map(|entry| entry.id));
    }
    Ok(users.len())
}

/// What reading the mounts of a process gives while it goes away.
fn is_dying(error: &Error) -> bool {
    let mut cause = std::error::Error::source(error);
    while let Some(source) = cause {
        if let Some(io) = source.downcast_ref::<std::io::Error>() {
            return is_gone(io) || io.raw_os_error() == Some(nix::libc::EINVAL);
        }
        cause = source.source();
    }
    false
}

fn is_gone(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error(), Some(nix::libc::ENOENT | nix::libc::ESRCH))
}

fn processes() -> Result<Vec<std::path::PathBuf>> {
    let failed = |error| Error::io("cannot list /proc", error);
    let mut processes = Vec::new();
    for entry in std::fs::read_dir("/proc").map_err(failed)? {
        match entry {
            Ok(entry) => {
                let name = entry.file_name();
                if name.as_encoded_bytes().iter().all(u8::is_ascii_digit) {
                    processes.push(entry.path());
                }
            }
            Err(error) if error.kind() == Io::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
    }
    Ok(processes)
}
