//! Watches the pool: grows it in time where it can grow, and says what nobody has asked for.

use std::sync::{Arc, Weak};
use std::time::Duration;

use super::QUICK;
use super::pool::Pool;
use super::status::Mode;
use crate::error::Result;
use crate::linux::blocking;
use crate::units::ByteSize;

/// The kernel tells of low water once for each time that the pool is resumed, so it is no substitute
/// for looking (`thin-provisioning.rst`).
const ROUND: Duration = Duration::from_secs(2);

/// By how much a pool on files grows at a time, at least.
const STEP: u64 = 1 << 30;

/// Begins to watch, for as long as the pool lives.
pub(super) fn begin(pool: &Arc<Pool>) {
    let pool = Arc::downgrade(pool);
    tokio::spawn(async move {
        let mut told = None;
        loop {
            tokio::time::sleep(ROUND).await;
            let Some(looked) = look(&pool).await else { return };
            let now = looked.err().map(|error| error.full_message());
            // Said once, and again when it is something else.
            if now != told
                && let Some(trouble) = &now
            {
                tracing::warn!("{trouble}");
            }
            told = now;
        }
    });
}

/// `None` once the pool is gone.
async fn look(pool: &Weak<Pool>) -> Option<Result<()>> {
    let pool = pool.upgrade()?;
    Some(blocking::run("watching the pool", QUICK, move || pool.attend()).await)
}

impl Pool {
    /// Grows the pool if it has to and can, and makes what finds no room wait or fail accordingly.
    fn attend(&self) -> Result<()> {
        let status = self.status()?;
        if status.mode == Mode::ReadOnly {
            return Ok(());
        }
        let chunk = self.chunk_size().bytes();
        if status.data.free() < self.config.low_water.of(status.data.total)
            && let Some(room) = self.storage.room_below()?
        {
            let now = status.data.total.saturating_mul(chunk);
            let step = (now / 4).max(STEP).min(room / 2);
            if step > chunk {
                let size = ByteSize::new(now.saturating_add(step));
                tracing::info!("the pool has little room left; growing it to {size}");
                self.grow(Some(size))?.ignore();
                return Ok(());
            }
        }
        if status.fails_when_full == self.can_grow()? {
            self.show_pool()?.ignore();
        }
        Ok(())
    }
}
