//! A directory of this host as a store whose writes are durable.

use std::fmt;
use std::path::Path as FilePath;
use std::sync::Arc;

use async_trait::async_trait;
use futures_util::stream::BoxStream;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result as StoreResult,
};
use tokio::sync::Semaphore;

use crate::error::{Error, Result};
use crate::linux::direct;

/// From how many bytes on an object is written past the page cache.
const LARGE: usize = 1 << 20;

/// Opens a directory that is there. Large objects are written in such a way that others can use the disk meanwhile.
pub(super) fn open(path: &FilePath) -> Result<(Arc<dyn ObjectStore>, Path)> {
    Ok((Arc::new(Directory { files: files(path)?, large: Semaphore::new(1) }), Path::default()))
}

fn files(path: &FilePath) -> Result<LocalFileSystem> {
    let shown = path.display();
    let files = LocalFileSystem::new_with_prefix(path).map_err(|error| match path.try_exists() {
        Ok(false) => {
            Error::not_found(format!("there is no directory {shown}")).caused_by(error).hint(
                "mount what belongs there; if it is to be a new repository, `holdfast repository init` makes it",
            )
        }
        _ => Error::unsupported(format!("the directory {shown} cannot be used")).caused_by(error),
    })?;
    Ok(files.with_fsync(true))
}

#[derive(Debug)]
struct Directory {
    files: LocalFileSystem,
    /// One large object is written at a time: that keeps a disk busy, and others wait for no more than one write.
    large: Semaphore,
}

impl fmt::Display for Directory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.files.fmt(f)
    }
}

#[async_trait]
impl ObjectStore for Directory {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> StoreResult<PutResult> {
        if payload.content_length() >= LARGE && matches!(options.mode, PutMode::Overwrite) {
            // It is never closed.
            let _turn = self.large.acquire().await;
            let (path, content) = (self.files.path_to_filesystem(location)?, payload.clone());
            let written = tokio::task::spawn_blocking(move || {
                direct::write_file(&path, content.iter().map(|bytes| &bytes[..]))
            });
            match written.await? {
                Err(error) if error.kind() == std::io::ErrorKind::Unsupported => {}
                Err(error) => {
                    return Err(object_store::Error::Generic {
                        store: "directory",
                        source: error.into(),
                    });
                }
                Ok(()) => {
                    return Ok(PutResult {
                        e_tag: None,
                        version: None,
                        extensions: object_store::Extensions::default(),
                    });
                }
            }
        }
        self.files.put_opts(location, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> StoreResult<Box<dyn MultipartUpload>> {
        self.files.put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> StoreResult<GetResult> {
        self.files.get_opts(location, options).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, StoreResult<Path>>,
    ) -> BoxStream<'static, StoreResult<Path>> {
        self.files.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, StoreResult<ObjectMeta>> {
        self.files.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> StoreResult<ListResult> {
        self.files.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> StoreResult<()> {
        self.files.copy_opts(from, to, options).await
    }
}
