//! Files and directories that are still there after a power cut.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use crate::error::{Error, Result};

/// Writes the entries of a directory to disk: what was made, renamed or removed in it.
pub(crate) fn sync_directory(directory: &Path) -> Result<()> {
    File::open(directory)
        .and_then(|file| file.sync_all())
        .map_err(|error| Error::io(format!("cannot flush {}", directory.display()), error))
}

/// Makes `directory` (one level) for the owner alone, durably. True if it was not there.
pub(crate) fn make_private_directory(directory: &Path) -> Result<bool> {
    match std::fs::DirBuilder::new().mode(0o700).create(directory) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => return Ok(false),
        Err(error) => {
            return Err(Error::io(format!("cannot make {}", directory.display()), error));
        }
    }
    directory.parent().map_or(Ok(()), sync_directory)?;
    Ok(true)
}

/// Puts `content` in place of the file at `path`: whoever looks, power cut or not, finds the old
/// content or the new one. `temporary` is on the same filesystem and is overwritten.
pub(crate) fn replace_file(path: &Path, temporary: &Path, content: &[u8]) -> Result<()> {
    let written = write_new(temporary, content)
        .and_then(|()| std::fs::rename(temporary, path))
        .map_err(|error| Error::io(format!("cannot write {}", path.display()), error));
    if let Err(error) = written {
        let _ = std::fs::remove_file(temporary);
        return Err(error);
    }
    path.parent().map_or(Ok(()), sync_directory)
}

fn write_new(path: &Path, content: &[u8]) -> std::io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(content)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_and_a_link_in_the_way_is_not_followed() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        std::fs::write(at("victim"), "untouched").unwrap();
        std::os::unix::fs::symlink(at("victim"), at("temporary")).unwrap();
        std::os::unix::fs::symlink(at("victim"), at("file")).unwrap();
        replace_file(&at("file"), &at("temporary"), b"one").unwrap();
        replace_file(&at("file"), &at("temporary"), b"two").unwrap();
        assert_eq!(std::fs::read(at("file")).unwrap(), b"two");
        assert_eq!(std::fs::read(at("victim")).unwrap(), b"untouched");
        assert!(!at("temporary").exists());
    }

    #[test]
    fn a_failed_write_leaves_the_old_content_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("file")).unwrap();
        let (path, temporary) = (directory.path().join("file"), directory.path().join("temporary"));
        assert!(replace_file(&path, &temporary, b"x").is_err());
        assert!(!temporary.exists());
    }
}
