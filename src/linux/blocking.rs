//! Work that blocks, on threads where it can be abandoned.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::error::{Error, Result};

/// Runs `work` on a blocking thread and waits for it no longer than `limit`. Past the limit the
/// thread is left to itself and the error is [`ErrorKind::Unavailable`]: the work may still happen.
///
/// [`ErrorKind::Unavailable`]: crate::error::ErrorKind::Unavailable
pub(crate) async fn run<T: Send + 'static>(
    what: &str,
    limit: Duration,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let thread = tokio::task::spawn_blocking(work);
    match tokio::time::timeout(limit, thread).await {
        Ok(Ok(result)) => result,
        Ok(Err(join)) => Err(Error::internal(format!("{what}: a defect")).caused_by(join)),
        Err(_) => Err(Error::unavailable(format!(
            "{what} has not finished within {} s and may still happen",
            limit.as_secs()
        ))),
    }
}

/// Like [`run`], for work that must not happen late: if nobody waits for it any more when it is
/// done, because of the limit or because the caller went away, `undo` takes it back.
pub(crate) async fn run_or_undo<T: Send + 'static>(
    what: &str,
    limit: Duration,
    work: impl FnOnce() -> Result<T> + Send + 'static,
    undo: impl FnOnce(T) + Send + 'static,
) -> Result<T> {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let thread = run(what, limit, move || {
        match work() {
            Ok(value) => {
                if let Err(late) = sender.send(value) {
                    undo(late);
                }
            }
            Err(error) => return Err(error),
        }
        Ok(())
    });
    thread.await?;
    receiver.await.map_err(|gone| Error::internal(format!("{what}: a defect")).caused_by(gone))
}

/// Tells work on another thread that nobody waits for it any more, as soon as this is dropped.
#[derive(Debug, Default)]
pub(crate) struct CancelOnDrop(Arc<AtomicBool>);

impl CancelOnDrop {
    /// What the work looks at from time to time.
    pub(crate) fn flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.0)
    }
}

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::error::ErrorKind;

    #[tokio::test]
    async fn rule_11_work_that_hangs_is_abandoned() {
        let (release, hang) = mpsc::channel::<()>();
        let error = run("a read", Duration::from_millis(1), move || {
            let _ = hang.recv();
            Ok(())
        })
        .await
        .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(error.full_message().contains("may still happen"));
        drop(release);
    }

    #[tokio::test]
    async fn rule_14_late_work_is_undone() {
        let (release, hang) = mpsc::channel::<()>();
        let (undone, wait) = mpsc::channel();
        let work = move || {
            let _ = hang.recv();
            Ok(7)
        };
        let late = run_or_undo("a freeze", Duration::from_millis(1), work, move |value| {
            undone.send(value).unwrap();
        });
        assert_eq!(late.await.unwrap_err().kind(), ErrorKind::Unavailable);
        drop(release);
        assert_eq!(tokio::task::spawn_blocking(move || wait.recv()).await.unwrap(), Ok(7));
    }

    #[tokio::test]
    async fn work_in_time_is_not_undone() {
        let undo = |_| panic!("undone");
        assert_eq!(run_or_undo("x", Duration::from_secs(60), || Ok(1), undo).await.unwrap(), 1);
    }
}
