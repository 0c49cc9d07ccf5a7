//! Mending a pool's metadata. It is copied first, and overwritten only by what was checked.
//!
//! ```text
//! <state>/thin-metadata/<pool>-<time>.metadata    the metadata before; kept
//! <state>/thin-metadata/<pool>-<time>.mended      what is to take its place; removed at the end
//! ```
//!
//! While the metadata is overwritten its superblock is spoilt, and it becomes whole last of all: a repair
//! that is cut off leaves a pool that nobody activates, and the next repair finishes it.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::devices::in_use;
use super::pool::{Opened, Pool};
use super::{QUICK, SLOW, State, ThinBackend, ThinConfig, closed};
use crate::backend::NoticeKind;
use crate::clock::{Clock as _, System};
use crate::error::{Error, ErrorKind, Result};
use crate::id::PoolUuid;
use crate::linux::loop_device::LoopDevice;
use crate::linux::{
    blocking, check_thin_metadata, clear_needs_check, durable, loop_image, repair_thin_metadata,
    size_of_device,
};
use crate::thin_metadata::Metadata;

const SUPERBLOCK: usize = 4096;
const MENDED: &str = "mended";
const COPY: &str = "metadata";

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
    refuse_attached(backend).await?;
    let mut done = Vec::new();
    let pool = backend.take_pool().await?;
    let mended = async {
        if let Some(pool) = pool {
            let deactivate = move || pool.deactivate();
            blocking::run("deactivating the pool", QUICK, deactivate).await?.ignore();
        }
        mend(backend, &mut done).await
    };
    let mended = mended.await;
    // Whatever came of it: what can be used is used.
    let (state, opened) = match Pool::open(backend.config.clone(), backend.expected.clone()).await {
        Ok(pool) => (State::watched(pool, backend.notifier.clone()), Ok(())),
        Err(error) => {
            let told = error.again();
            (State::Damaged(error), Err(told))
        }
    };
    *backend.state_mut() = state;
    mended?;
    opened?;
    backend.notifier.tell(NoticeKind::PoolRecovered, "the pool was mended and is in use again");
    done.push("the pool is in use again".to_owned());
    Ok(done)
}

async fn refuse_attached(backend: &ThinBackend) -> Result<()> {
    let pool = match &*backend.state() {
        State::Active(pool) => std::sync::Arc::clone(pool),
        State::Damaged(_) => return Ok(()),
        State::Closed => return Err(closed()),
    };
    let attached = blocking::run("looking for users", QUICK, move || pool.attached()).await?;
    match &attached[..] {
        [] => Ok(()),
        attached => Err(in_use(attached)),
    }
}

async fn mend(backend: &ThinBackend, done: &mut Vec<String>) -> Result<()> {
    let config = &backend.config;
    let open = {
        let (config, expected) = (config.clone(), backend.expected.clone());
        move || {
            let mut opened = Opened::new(config, &expected)?;
            if opened.is_active {
                opened.stop_pool()?;
            }
            Ok(opened)
        }
    };
    let opened = blocking::run("opening the pool", QUICK, open).await?;
    let device = opened.metadata_path()?;
    let pool = opened.names.pool_uuid();
    if !finish_interrupted(config, pool, &device, done).await? {
        let time = System.now().strftime("%Y%m%dT%H%M%SZ");
        let copy = config.copies.join(format!("{pool}-{time}.{COPY}"));
        copy_metadata(&device, &copy).await?;
        done.push(format!("a copy of the metadata is kept in {}", copy.display()));
        match check_thin_metadata(&device).await {
            Ok(()) => done.push("thin_check found the metadata sound".to_owned()),
            Err(error) if error.kind() == ErrorKind::Corrupt => {
                done.push(format!("thin_check found damage: {}", error.full_message()));
                let mended = make_mended(&copy, &device).await;
                let mended = mended.map_err(|error| not_mended(error, &copy))?;
                put_in_place(&copy, &mended, &device).await?;
                done.push(
                    "thin_repair mended the metadata, and thin_check found that sound".to_owned(),
                );
            }
            Err(error) => return Err(error),
        }
    }
    let read = {
        let device = device.clone();
        move || Metadata::open(&device).map(|metadata| metadata.superblock().needs_check)
    };
    if blocking::run("reading the pool's superblock", QUICK, read).await? {
        clear_needs_check(&device).await?;
        done.push("the mark that the metadata has to be checked was taken away".to_owned());
    }
    Ok(())
}

fn not_mended(error: Error, copy: &Path) -> Error {
    error
        .context("the metadata could not be mended, and was not changed")
        .hint(format!("a copy of it is {}; thin_dump --repair may save more of it", copy.display()))
}

/// Goes on with a repair that was cut off after it had made what is to take the metadata's place.
/// Says whether there was one.
async fn finish_interrupted(
    config: &ThinConfig,
    pool: PoolUuid,
    device: &Path,
    done: &mut Vec<String>,
) -> Result<bool> {
    let (copies, for_look) = (config.copies.clone(), device.to_owned());
    let look = move || interrupted(&copies, pool, &for_look);
    let left = blocking::run("looking for an interrupted repair", QUICK, look).await?;
    for (copy, is_of_device) in left {
        let path = copy.with_extension(MENDED);
        let mended = behind_loop(path.clone()).await?;
        if is_of_device && check_thin_metadata(&mended.path()).await.is_ok() {
            put_in_place(&copy, &mended, device).await?;
            done.push(format!(
                "an earlier repair was cut off and is finished now; the metadata from before it is {}",
                copy.display()
            ));
            return Ok(true);
        }
        remove(&path)?;
    }
    Ok(false)
}

/// The copies whose mended metadata is still there, and whether it was made of what is on the device.
fn interrupted(copies: &Path, pool: PoolUuid, device: &Path) -> Result<Vec<(PathBuf, bool)>> {
    let failed = |error| Error::io(format!("cannot read {}", copies.display()), error);
    let entries = match std::fs::read_dir(copies) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed)?,
    };
    let now = superblock(device).map_err(failed)?;
    let mut left = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if !name.starts_with(&format!("{pool}-"))
            || path.extension().is_none_or(|extension| extension != MENDED)
        {
            continue;
        }
        let copy = path.with_extension(COPY);
        let before = superblock(&copy).ok();
        let is_of_device = before.is_some_and(|before| now == before || now == spoilt(before));
        left.push((copy, is_of_device));
    }
    Ok(left)
}

/// Mends beside, and checks that.
async fn make_mended(copy: &Path, device: &Path) -> Result<LoopDevice> {
    let path = copy.with_extension(MENDED);
    let made = async {
        let (from, to) = (copy.to_owned(), path.clone());
        blocking::run("making room for the mended metadata", QUICK, move || {
            let length = File::open(&from).and_then(|file| file.metadata()).map(|meta| meta.len());
            length
                .and_then(|length| new_file(&to)?.set_len(length))
                .map_err(|error| Error::io(format!("cannot make {}", to.display()), error))
        })
        .await?;
        let mended = behind_loop(path.clone()).await?;
        repair_thin_metadata(device, &mended.path()).await?;
        check_thin_metadata(&mended.path()).await?;
        Ok(mended)
    };
    let made = made.await;
    if made.is_err() {
        remove(&path)?;
    }
    made
}

/// The tools read and write past the page cache, which not every filesystem lets them do to a file.
async fn behind_loop(path: PathBuf) -> Result<LoopDevice> {
    blocking::run("attaching the mended metadata", QUICK, move || {
        let file = OpenOptions::new().read(true).write(true).open(&path);
        let file =
            file.map_err(|error| Error::io(format!("cannot open {}", path.display()), error))?;
        loop_image::attach(&file, &path)
    })
    .await
}

/// Writes what was mended over the metadata. If it is cut off, the next repair goes on with it.
async fn put_in_place(copy: &Path, mended: &LoopDevice, device: &Path) -> Result<()> {
    let (from, before, to) = (mended.path(), copy.to_owned(), device.to_owned());
    let written = async {
        let write = move || overwrite(&from, &before, &to);
        blocking::run("writing the mended metadata", SLOW, write).await?;
        check_thin_metadata(device).await
    };
    written.await.map_err(|error| {
        error.context("the metadata is half mended").hint(format!(
            "run `holdfast pool repair` again, which goes on with it; the metadata from before is {}",
            copy.display()
        ))
    })?;
    remove(&copy.with_extension(MENDED))
}

fn overwrite(mended: &Path, copy: &Path, device: &Path) -> Result<()> {
    let failed = |error| Error::io(format!("cannot write {}", device.display()), error);
    let write = || {
        let from = File::open(mended)?;
        from.sync_all()?;
        let to = OpenOptions::new().write(true).open(device)?;
        to.write_all_at(&spoilt(superblock(copy)?), 0)?;
        to.sync_all()?;
        let length = size_of_device(&from)?;
        transfer(&from, &to, SUPERBLOCK as u64..length, Zeros::Write)?;
        transfer(&from, &to, 0..SUPERBLOCK as u64, Zeros::Write)
    };
    copy.parent().map_or(Ok(()), durable::sync_directory)?;
    write().map_err(failed)
}

fn superblock(path: &Path) -> std::io::Result<[u8; SUPERBLOCK]> {
    let mut block = [0; SUPERBLOCK];
    File::open(path)?.read_exact_at(&mut block, 0)?;
    Ok(block)
}

/// A superblock whose checksum is wrong, and which can be told from any other by what it was.
fn spoilt(mut superblock: [u8; SUPERBLOCK]) -> [u8; SUPERBLOCK] {
    for byte in &mut superblock[..4] {
        *byte = !*byte;
    }
    superblock
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
        transfer(&from, &to, 0..length, Zeros::Skip).map_err(failed)?;
        copy.parent().map_or(Ok(()), durable::sync_directory)
    })
    .await
}

fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::io(format!("cannot remove {}", path.display()), error))
        }
        _ => Ok(()),
    }
}

/// Never one that is there: an earlier copy is not overwritten.
fn new_file(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)
}

/// What becomes of blocks of zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Zeros {
    /// They are there already.
    Skip,
    Write,
}

fn transfer(
    from: &File,
    to: &File,
    range: std::ops::Range<u64>,
    zeros: Zeros,
) -> std::io::Result<()> {
    const BLOCK: u64 = 1 << 20;
    let mut at = range.start;
    while at < range.end {
        let mut block = vec![0; usize::try_from(BLOCK.min(range.end - at)).unwrap_or_default()];
        from.read_exact_at(&mut block, at)?;
        if zeros == Zeros::Write || block.iter().any(|byte| *byte != 0) {
            to.write_all_at(&block, at)?;
        }
        at += block.len() as u64;
    }
    to.sync_all()
}
