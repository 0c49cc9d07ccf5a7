//! A file that one process holds at a time.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::error::{Error, Result};

/// An exclusive lock, held while the value lives and let go by the kernel if the process dies.
#[derive(Debug)]
pub struct LockFile {
    _file: File,
}

impl LockFile {
    /// Takes the lock and writes our process id into the file.
    ///
    /// # Errors
    /// `InUse`, with the holder's process id, if another process has it.
    pub fn acquire(path: &Path) -> Result<Self> {
        let failed =
            |what: &str, error| Error::io(format!("cannot {what} {}", path.display()), error);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(nix::libc::O_NOFOLLOW)
            .open(path)
            .map_err(|error| failed("open", error))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::Error(error)) => return Err(failed("lock", error)),
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                let _ = (&mut file).take(20).read_to_string(&mut holder);
                let holder = match holder.trim() {
                    "" => "another process".to_owned(),
                    pid => format!("process {pid}"),
                };
                return Err(Error::in_use(format!("{holder} holds {}", path.display())));
            }
        }
        file.set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "{}", std::process::id()))
            .map_err(|error| failed("write", error))?;
        Ok(Self { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn the_second_holder_is_told_who_is_the_first() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        let first = LockFile::acquire(&path).unwrap();
        let error = LockFile::acquire(&path).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InUse);
        assert!(error.full_message().contains(&format!("process {} ", std::process::id())));
        drop(first);
        LockFile::acquire(&path).unwrap();
    }
}
