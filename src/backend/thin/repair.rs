//! Mending a pool's metadata. It is copied first, and overwritten only by what was checked.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::pool::{Opened, Pool};
use super::{QUICK, SLOW, State, ThinBackend, watch};
use crate::clock::{Clock as _, System};
use crate::error::{Error, ErrorKind, Result};
use crate::linux::{
    blocking, check_thin_metadata, clear_needs_check, durable, repair_thin_metadata, size_of_device,
};
use crate::thin_metadata::Metadata;

/// What to do about metadata that is not sound.
pub(super) fn advice() -> Vec<String> {
    [
        "stop the containers that use volumes of this pool; `holdfast volume ls` shows them",
        "run `holdfast pool repair`: it keeps a copy of the metadata, and overwrites it only with what \
         thin_check has found sound",
        "start the containers again, and look at what they wrote last",
    ]
    .map(str::to_owned)
    .to_vec()
}

/// Takes the pool out of use, mends it, and takes it into use again.
pub(super) async fn repair(backend: &ThinBackend) -> Result<Vec<String>> {
    let mut done = Vec::new();
    take_out_of_use(backend).await?;
    let mended = mend(backend, &mut done).await;
    // Whatever came of it: what can be used is used.
    let opened = match mended {
        Ok(()) => Pool::open(backend.config.clone(), backend.expected.clone()).await,
        Err(error) => Err(error),
    };
    match opened {
        Ok(pool) => {
            let pool = Arc::new(pool);
            watch::begin(&pool);
            *backend.state_mut() = State::Active(pool);
            done.push("the pool is in use again".to_owned());
            Ok(done)
        }
        Err(error) => {
            let told = error.again();
            *backend.state_mut() = State::Damaged(error);
            Err(told)
        }
    }
}

async fn take_out_of_use(backend: &ThinBackend) -> Result<()> {
    if let Ok(pool) = backend.active() {
        let attached = blocking::run("looking for users", QUICK, move || pool.attached()).await?;
        if !attached.is_empty() {
            let names: Vec<_> = attached.into_iter().map(|device| device.identity.name).collect();
            return Err(Error::in_use(format!(
                "volumes of the pool are attached: {}",
                names.join(", ")
            ))
            .hint(
                "stop the containers that use them; `holdfast volume ls` shows which are mounted",
            ));
        }
    }
    if let Some(pool) = backend.take_pool().await? {
        blocking::run("deactivating the pool", QUICK, move || pool.deactivate()).await?.ignore();
    }
    Ok(())
}

async fn mend(backend: &ThinBackend, done: &mut Vec<String>) -> Result<()> {
    let (config, expected) = (backend.config.clone(), backend.expected.clone());
    let copies = config.copies.clone();
    let open = move || Opened::new(config, &expected);
    let opened = blocking::run("opening the pool", QUICK, open).await?;
    if opened.is_active {
        return Err(Error::in_use("the kernel still has the pool, because a volume is attached"));
    }
    let device = opened.metadata_path()?;
    let copy = copies.join(format!(
        "{}-{}.metadata",
        opened.names.pool_uuid(),
        System.now().strftime("%Y%m%dT%H%M%SZ")
    ));
    copy_metadata(&device, &copy).await?;
    done.push(format!("a copy of the metadata is kept in {}", copy.display()));
    match check_thin_metadata(&device).await {
        Ok(()) => done.push("thin_check found the metadata sound".to_owned()),
        Err(error) if error.kind() == ErrorKind::Corrupt => {
            done.push(format!("thin_check found damage: {}", error.full_message()));
            let mended = copy.with_extension("mended");
            let outcome = mend_copy(&device, &copy, &mended).await;
            let _ = std::fs::remove_file(&mended);
            outcome.map_err(|error| {
                error.context("the metadata could not be mended, and was not changed").hint(
                    format!(
                        "the copy is {}; thin_dump --repair may save more of it",
                        copy.display()
                    ),
                )
            })?;
            done.push(
                "thin_repair mended the metadata, and thin_check found that sound".to_owned(),
            );
        }
        Err(error) => return Err(error),
    }
    if Metadata::open(&device)?.superblock().needs_check {
        clear_needs_check(&device).await?;
        done.push("the mark that the metadata has to be checked was taken away".to_owned());
    }
    Ok(())
}

/// Mends beside, checks that, and only then writes it over the device.
async fn mend_copy(device: &Path, copy: &Path, mended: &Path) -> Result<()> {
    let (from, to) = (copy.to_owned(), mended.to_owned());
    blocking::run("making room for the mended metadata", QUICK, move || {
        let length = File::open(&from).and_then(|file| file.metadata()).map(|meta| meta.len());
        length
            .and_then(|length| new_file(&to)?.set_len(length))
            .map_err(|error| Error::io(format!("cannot make {}", to.display()), error))
    })
    .await?;
    repair_thin_metadata(device, mended).await?;
    check_thin_metadata(mended).await?;
    copy_metadata_to_device(mended, device).await?;
    check_thin_metadata(device).await
}

async fn copy_metadata(device: &Path, copy: &Path) -> Result<()> {
    let (device, copy) = (device.to_owned(), copy.to_owned());
    blocking::run("copying the metadata", SLOW, move || {
        let failed = |error| Error::io(format!("cannot copy to {}", copy.display()), error);
        if let Some(directory) = copy.parent() {
            durable::make_private_directory(directory)?;
        }
        let from = File::open(&device).map_err(failed)?;
        let length = size_of_device(&from).map_err(failed)?;
        let to = new_file(&copy).map_err(failed)?;
        to.set_len(length).map_err(failed)?;
        transfer(&from, &to, length, Zeros::Skip).map_err(failed)?;
        copy.parent().map_or(Ok(()), durable::sync_directory)
    })
    .await
}

async fn copy_metadata_to_device(mended: &Path, device: &Path) -> Result<()> {
    let (mended, device) = (mended.to_owned(), device.to_owned());
    blocking::run("writing the mended metadata", SLOW, move || {
        let failed = |error| Error::io(format!("cannot write {}", device.display()), error);
        let from = File::open(&mended).map_err(failed)?;
        let to = OpenOptions::new().write(true).open(&device).map_err(failed)?;
        let length = from.metadata().map_err(failed)?.len();
        transfer(&from, &to, length, Zeros::Write).map_err(failed)
    })
    .await
}

fn new_file(path: &PathBuf) -> std::io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(path)
}

/// What becomes of blocks of zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Zeros {
    /// They are there already.
    Skip,
    Write,
}

fn transfer(from: &File, to: &File, length: u64, zeros: Zeros) -> std::io::Result<()> {
    const BLOCK: u64 = 1 << 20;
    let mut at = 0;
    while at < length {
        let mut block = vec![0; usize::try_from(BLOCK.min(length - at)).unwrap_or_default()];
        from.read_exact_at(&mut block, at)?;
        if zeros == Zeros::Write || block.iter().any(|byte| *byte != 0) {
            to.write_all_at(&block, at)?;
        }
        at += block.len() as u64;
    }
    to.sync_all()
}
