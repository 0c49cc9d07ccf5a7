//! Single blocks, joined into runs as long as possible.

use crate::error::Result;

/// Something said of one block or of several that follow each other.
pub(super) trait Run {
    /// Takes in the single block `next` if it continues this run; tells whether it does.
    fn extend(&mut self, next: &Self) -> bool;
}

/// The runs made so far of what is read block by block.
#[derive(Debug)]
pub(super) struct Runs<R> {
    current: Option<R>,
    failed: bool,
}

impl<R: Run> Runs<R> {
    pub(super) fn new() -> Self {
        Self { current: None, failed: false }
    }

    /// The next run of the blocks that `read` gives in ascending order. After an error there is
    /// nothing more, and nothing more is read.
    pub(super) fn next(&mut self, read: impl FnMut() -> Result<Option<R>>) -> Option<Result<R>> {
        if self.failed {
            return None;
        }
        let run = self.join(read);
        self.failed = run.is_err();
        run.transpose()
    }

    fn join(&mut self, mut read: impl FnMut() -> Result<Option<R>>) -> Result<Option<R>> {
        while let Some(block) = read()? {
            let extended = self.current.as_mut().is_some_and(|run| run.extend(&block));
            if !extended && let Some(finished) = self.current.replace(block) {
                return Ok(Some(finished));
            }
        }
        Ok(self.current.take())
    }
}
