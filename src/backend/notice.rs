//! What a backend notices by itself, without being asked.

use tokio::sync::mpsc;

/// More than a reader that is alive leaves lying.
const WAITING: usize = 256;

/// Something that a backend has noticed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// What it is.
    pub kind: NoticeKind,
    /// What has happened and what to do, as a sentence.
    pub message: String,
}

/// What can be noticed. Each is told when it begins to be so, not for as long as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoticeKind {
    /// Little room is left in the pool, and it does not grow by itself.
    PoolLow,
    /// The pool's data is full.
    PoolFull,
    /// The pool takes no changes any more.
    PoolReadOnly,
    /// The pool is not used until it is mended.
    PoolDamaged,
    /// The pool has become larger.
    PoolGrown,
    /// The pool works again as it should.
    PoolRecovered,
    /// Anything else that an administrator should know.
    Warning,
}

impl NoticeKind {
    /// Stable word for programs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::PoolLow => "pool.low",
            Self::PoolFull => "pool.full",
            Self::PoolReadOnly => "pool.read-only",
            Self::PoolDamaged => "pool.damaged",
            Self::PoolGrown => "pool.grown",
            Self::PoolRecovered => "pool.recovered",
            Self::Warning => "backend.warning",
        }
    }
}

/// Where a backend's notices come from.
#[derive(Debug, Clone)]
pub(super) struct Notifier(mpsc::Sender<Notice>);

impl Notifier {
    pub(super) fn channel() -> (Self, mpsc::Receiver<Notice>) {
        let (sender, receiver) = mpsc::channel(WAITING);
        (Self(sender), receiver)
    }

    /// Tells, and waits for nobody.
    pub(super) fn tell(&self, kind: NoticeKind, message: impl Into<String>) {
        let message = message.into();
        match kind {
            NoticeKind::PoolGrown | NoticeKind::PoolRecovered => tracing::info!("{message}"),
            _ => tracing::warn!("{message}"),
        }
        // What nobody reads is in the log.
        let _ = self.0.try_send(Notice { kind, message });
    }
}
