//! The one error type: a kind that decides what a caller can do, a sentence for a person, a hint,
//! and the chain of causes.

use std::fmt;
use std::time::Duration;

/// Result of everything that can fail in a way a user may have to hear about.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What a caller can do about an error. Retries, recovery, HTTP statuses and exit codes depend on
/// this alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The request is wrong and will stay wrong.
    Invalid,
    /// What the request names does not exist.
    NotFound,
    /// The name is taken by something with other options.
    Conflict,
    /// Somebody uses the thing right now.
    InUse,
    /// Another change of the same volume has not finished within the limit.
    Busy,
    /// No room left for it.
    OutOfSpace,
    /// The other side asks to slow down.
    Throttled {
        /// How long to wait before the next try.
        after: Duration,
    },
    /// The other side did not answer: the effect may or may not have happened.
    Unavailable,
    /// What was read is not what was written, or not what we thought it was.
    Corrupt,
    /// This backend, filesystem or host cannot do it.
    Unsupported,
    /// Somebody asked for its end before it was done; it was undone.
    Cancelled,
    /// A defect, or a failure of the host that no caller can act upon.
    Internal,
}

impl ErrorKind {
    /// Every kind.
    pub const ALL: [Self; 12] = [
        Self::Invalid,
        Self::NotFound,
        Self::Conflict,
        Self::InUse,
        Self::Busy,
        Self::OutOfSpace,
        Self::Throttled { after: Duration::ZERO },
        Self::Unavailable,
        Self::Corrupt,
        Self::Unsupported,
        Self::Cancelled,
        Self::Internal,
    ];

    /// Stable word for programs; also the name of the page under `docs/errors/`.
    pub fn code(self) -> &'static str {
        match self {
            Self::Invalid => "invalid",
            Self::NotFound => "not-found",
            Self::Conflict => "conflict",
            Self::InUse => "in-use",
            Self::Busy => "busy",
            Self::OutOfSpace => "out-of-space",
            Self::Throttled { .. } => "throttled",
            Self::Unavailable => "unavailable",
            Self::Corrupt => "corrupt",
            Self::Unsupported => "unsupported",
            Self::Cancelled => "cancelled",
            Self::Internal => "internal",
        }
    }

    /// Whether the same request may succeed later without anybody changing anything.
    pub fn is_temporary(self) -> bool {
        matches!(self, Self::InUse | Self::Busy | Self::Throttled { .. } | Self::Unavailable)
    }
}

/// An error that says what failed and why, and where possible what to do.
#[derive(Debug)]
pub struct Error(Box<Inner>);

#[derive(Debug)]
struct Inner {
    kind: ErrorKind,
    message: String,
    hint: Option<String>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

macro_rules! constructors {
    ($($name:ident => $kind:ident),* $(,)?) => {$(
        #[doc = concat!("An error of kind [`ErrorKind::", stringify!($kind), "`].")]
        pub fn $name(message: impl Into<String>) -> Self {
            Self::new(ErrorKind::$kind, message)
        }
    )*};
}

impl Error {
    /// An error of any kind.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self(Box::new(Inner { kind, message: message.into(), hint: None, source: None }))
    }

    constructors! {
        invalid => Invalid,
        not_found => NotFound,
        conflict => Conflict,
        in_use => InUse,
        busy => Busy,
        out_of_space => OutOfSpace,
        unavailable => Unavailable,
        corrupt => Corrupt,
        unsupported => Unsupported,
        cancelled => Cancelled,
        internal => Internal,
    }

    /// An input or output error of the operating system, of the kind that its errno means.
    pub fn io(what: impl Into<String>, source: std::io::Error) -> Self {
        use std::io::ErrorKind as Io;
        let kind = match source.kind() {
            Io::NotFound => ErrorKind::NotFound,
            Io::StorageFull | Io::QuotaExceeded => ErrorKind::OutOfSpace,
            Io::ResourceBusy => ErrorKind::InUse,
            Io::TimedOut => ErrorKind::Unavailable,
            Io::Unsupported => ErrorKind::Unsupported,
            _ => ErrorKind::Internal,
        };
        Self::new(kind, what).caused_by(source)
    }

    /// Adds what the user can do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }

    /// Adds the cause; its text is appended to the message when it is shown.
    #[must_use]
    pub fn caused_by(
        mut self,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// The same error seen from one level up: `what` failed because of this. Kind and hint stay.
    #[must_use]
    pub fn context(self, what: impl Into<String>) -> Self {
        let mut outer = Self::new(self.kind(), what);
        outer.0.hint.clone_from(&self.0.hint);
        outer.caused_by(self)
    }

    /// The same error with another kind, where the caller knows better what it means.
    #[must_use]
    pub fn with_kind(mut self, kind: ErrorKind) -> Self {
        self.0.kind = kind;
        self
    }

    /// The same error for one more who has to hear of it: kind, message and hint; the causes as text.
    #[must_use]
    pub fn again(&self) -> Self {
        let copy = Self::new(self.kind(), self.full_message());
        match self.hint_text() {
            Some(hint) => copy.hint(hint),
            None => copy,
        }
    }

    /// What a caller can do.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// What a user can do, if we know.
    pub fn hint_text(&self) -> Option<&str> {
        self.0.hint.as_deref()
    }

    /// The message and all causes in one line.
    pub fn full_message(&self) -> String {
        let mut text = self.0.message.clone();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            // An Error's Display is only its own level, so the chain is walked without repeats.
            text.push_str(": ");
            text.push_str(&error.to_string().trim_end().replace('\n', " "));
            cause = error.source();
        }
        text
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_ref().map(|source| &**source as &(dyn std::error::Error + 'static))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Forces whoever adds a kind to come here.
    fn place(kind: ErrorKind) -> usize {
        match kind {
            ErrorKind::Invalid => 0,
            ErrorKind::NotFound => 1,
            ErrorKind::Conflict => 2,
            ErrorKind::InUse => 3,
            ErrorKind::Busy => 4,
            ErrorKind::OutOfSpace => 5,
            ErrorKind::Throttled { .. } => 6,
            ErrorKind::Unavailable => 7,
            ErrorKind::Corrupt => 8,
            ErrorKind::Unsupported => 9,
            ErrorKind::Cancelled => 10,
            ErrorKind::Internal => 11,
        }
    }

    #[test]
    fn every_code_has_its_page_and_every_page_its_code() {
        let places: Vec<usize> = ErrorKind::ALL.iter().map(|kind| place(*kind)).collect();
        assert!(places.iter().copied().eq(0..ErrorKind::ALL.len()), "{places:?}");
        let docs = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs");
        let mut pages: Vec<String> = std::fs::read_dir(docs.join("errors"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        pages.sort();
        let mut expected = ErrorKind::ALL.map(|kind| format!("{}.md", kind.code()));
        expected.sort();
        assert_eq!(pages, expected);
        let commands = std::fs::read_to_string(docs.join("commands.md")).unwrap();
        for kind in ErrorKind::ALL {
            let code = kind.code();
            let page = std::fs::read_to_string(docs.join(format!("errors/{code}.md"))).unwrap();
            assert!(page.starts_with(&format!("# {code}: ")), "{code}");
            assert!(page.contains("What to do:"), "{code}");
            assert!(commands.contains(&format!("[`{code}`](errors/{code}.md)")), "{code}");
        }
    }

    #[test]
    fn the_chain_is_told_once_and_the_hint_survives_context() {
        let error = Error::io("cannot write /x", std::io::Error::from_raw_os_error(28))
            .hint("free some room")
            .context("cannot create volume db");
        assert_eq!(error.kind(), ErrorKind::OutOfSpace);
        assert_eq!(error.hint_text(), Some("free some room"));
        assert_eq!(
            error.full_message(),
            "cannot create volume db: cannot write /x: No space left on device (os error 28)"
        );
    }
}
