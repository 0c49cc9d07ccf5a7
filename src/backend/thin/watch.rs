//! Watches the pool: grows it in time where it can grow, and says what nobody has asked for.

use std::sync::{Arc, Weak};
use std::time::Duration;

use super::QUICK;
use super::pool::Pool;
use super::status::{METADATA_BLOCK, Mode, PoolStatus};
use crate::backend::NoticeKind;
use crate::backend::notice::Notifier;
use crate::error::{ErrorKind, Result};
use crate::linux::blocking;
use crate::units::ByteSize;

/// The kernel tells of low water once for each time that the pool is resumed, so it is no substitute
/// for looking (`thin-provisioning.rst`).
const ROUND: Duration = Duration::from_secs(2);

/// By how much a pool on files grows at a time, at least.
const STEP: u64 = 1 << 30;

/// How a pool is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Level {
    Fine,
    Low,
    Full,
    ReadOnly,
    Damaged,
}

/// What a look at the pool has found.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    level: Level,
    /// Bytes of data in all, while that can be told.
    total: Option<u64>,
    /// Why it is not fine.
    why: String,
}

/// Begins to watch, for as long as the pool lives.
pub(super) fn begin(pool: &Arc<Pool>, notifier: Notifier) {
    let pool = Arc::downgrade(pool);
    tokio::spawn(async move {
        let mut before = Seen { level: Level::Fine, total: None, why: String::new() };
        let mut trouble = None;
        loop {
            let Some(looked) = look(&pool, before.level).await else { return };
            match looked {
                Ok(now) => {
                    trouble = None;
                    changes(&before, &now)
                        .into_iter()
                        .for_each(|(kind, text)| notifier.tell(kind, text));
                    before = Seen { total: now.total.or(before.total), ..now };
                }
                Err(error) => {
                    // Said once, and again when it is something else.
                    let now = Some(error.full_message());
                    if now != trouble {
                        notifier.tell(NoticeKind::Warning, error.full_message());
                    }
                    trouble = now;
                }
            }
            tokio::time::sleep(ROUND).await;
        }
    });
}

/// `None` once the pool is gone.
async fn look(pool: &Weak<Pool>, before: Level) -> Option<Result<Seen>> {
    let pool = pool.upgrade()?;
    Some(blocking::run("watching the pool", QUICK, move || pool.attend(before)).await)
}

/// What is worth telling.
fn changes(before: &Seen, now: &Seen) -> Vec<(NoticeKind, String)> {
    let mut told = Vec::new();
    if let (Some(before), Some(now)) = (before.total, now.total)
        && before < now
    {
        let (before, now) = (ByteSize::new(before), ByteSize::new(now));
        told.push((NoticeKind::PoolGrown, format!("the pool has grown from {before} to {now}")));
    }
    if before.level != now.level {
        let kind = match now.level {
            Level::Fine => NoticeKind::PoolRecovered,
            Level::Low => NoticeKind::PoolLow,
            Level::Full => NoticeKind::PoolFull,
            Level::ReadOnly => NoticeKind::PoolReadOnly,
            Level::Damaged => NoticeKind::PoolDamaged,
        };
        told.push((kind, now.why.clone()));
    }
    told
}

impl Pool {
    /// Grows the pool if it has to and can, makes what finds no room wait or fail accordingly, and says
    /// how it is.
    fn attend(&self, before: Level) -> Result<Seen> {
        let status = match self.status() {
            Ok(status) => status,
            Err(error) if error.kind() == ErrorKind::Corrupt => {
                let why = error.full_message();
                return Ok(Seen { level: Level::Damaged, total: None, why });
            }
            Err(error) => return Err(error),
        };
        if status.mode == Mode::ReadOnly {
            return Ok(self.seen(&status, before));
        }
        let used = status.metadata.used.saturating_mul(METADATA_BLOCK);
        let kept = self.storage.keep_room_for_metadata(used);
        // Without room for that, what the data's writers find is the more urgent.
        let status = self.attend_to_data(status)?;
        kept?;
        Ok(self.seen(&status, before))
    }

    /// Gives the pool's status afterwards.
    fn attend_to_data(&self, status: PoolStatus) -> Result<PoolStatus> {
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
                return self.status();
            }
        }
        if status.fails_when_full == self.can_grow()? {
            self.show_pool()?.ignore();
        }
        Ok(status)
    }

    fn seen(&self, status: &PoolStatus, before: Level) -> Seen {
        let chunk = self.chunk_size().bytes();
        let total = Some(status.data.total.saturating_mul(chunk));
        let low = [("data", status.data, chunk), ("metadata", status.metadata, METADATA_BLOCK)]
            .into_iter()
            .find(|(_, level, _)| {
                let mark = self.config.low_water.of(level.total);
                // What has been told is over only a little above the mark.
                let mark = if before == Level::Low { mark.saturating_add(mark / 10) } else { mark };
                level.free() < mark
            });
        let (level, why) = match (status.mode, low) {
            (Mode::ReadOnly, _) => (
                Level::ReadOnly,
                "the pool is read-only after an error of its metadata: see `holdfast pool check`"
                    .to_owned(),
            ),
            (Mode::OutOfDataSpace, _) => (
                Level::Full,
                "the pool is full: grow it with `holdfast pool grow`, or remove snapshots"
                    .to_owned(),
            ),
            (Mode::Writable, Some((what, level, unit))) => (
                Level::Low,
                format!(
                    "only {} of {} of the pool's {what} are free: grow it with `holdfast pool grow`, \
                     or remove snapshots",
                    ByteSize::new(level.free().saturating_mul(unit)),
                    ByteSize::new(level.total.saturating_mul(unit)),
                ),
            ),
            (Mode::Writable, None) => (Level::Fine, "the pool has room again and works".to_owned()),
        };
        Seen { level, total, why }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_told_once() {
        let seen = |level, total| Seen { level, total, why: String::new() };
        let kinds = |before: &Seen, now: &Seen| {
            changes(before, now).into_iter().map(|(kind, _)| kind).collect::<Vec<_>>()
        };
        let (unknown, fine) = (seen(Level::Fine, None), seen(Level::Fine, Some(100)));
        assert_eq!(kinds(&unknown, &fine), []);
        assert_eq!(kinds(&fine, &fine), []);
        let low = seen(Level::Low, Some(100));
        assert_eq!(kinds(&unknown, &low), [NoticeKind::PoolLow]);
        assert_eq!(kinds(&low, &low), []);
        let grown = seen(Level::Fine, Some(200));
        assert_eq!(kinds(&low, &grown), [NoticeKind::PoolGrown, NoticeKind::PoolRecovered]);
        assert_eq!(kinds(&grown, &seen(Level::Damaged, None)), [NoticeKind::PoolDamaged]);
    }
}
