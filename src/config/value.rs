//! The kinds of values: how each is written, checked and shown.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::{Error, Result};
use crate::name::{BackendName, RepositoryName};
use crate::repository::{Location, Secret, SecretSource};
use crate::units::{ByteSize, Percent};

/// A kind of value.
pub trait Value: Sized {
    /// What to write, for help and errors.
    const FORM: &'static str;

    /// Whether it is never shown, and can be given as the name of a file that holds it.
    const SECRET: bool = false;

    /// Reads it.
    ///
    /// # Errors
    /// Text that is not such a value.
    fn parse(text: &str) -> Result<Self>;

    /// The value that stands in the file at `path`, which is read when the value is needed.
    ///
    /// # Errors
    /// For all but secrets.
    fn in_file(path: PathBuf) -> Result<Self> {
        Err(Error::internal(format!("{} holds no value", path.display())))
    }

    /// The value for programs; sizes are bytes.
    fn json(&self) -> serde_json::Value;
}

impl Value for PathBuf {
    const FORM: &'static str = "PATH";

    fn parse(text: &str) -> Result<Self> {
        let path = Path::new(text);
        if !path.is_absolute() {
            return Err(Error::invalid(format!("{text:?} is not an absolute path"))
                .hint("write it from the root, beginning with /"));
        }
        Ok(path.to_owned())
    }

    fn json(&self) -> serde_json::Value {
        self.to_string_lossy().into()
    }
}

impl<T: Value> Value for Option<T> {
    const FORM: &'static str = T::FORM;
    const SECRET: bool = T::SECRET;

    /// Empty text is no value.
    fn parse(text: &str) -> Result<Self> {
        if text.is_empty() { Ok(None) } else { T::parse(text).map(Some) }
    }

    fn in_file(path: PathBuf) -> Result<Self> {
        T::in_file(path).map(Some)
    }

    fn json(&self) -> serde_json::Value {
        self.as_ref().map_or(serde_json::Value::Null, Value::json)
    }
}

impl Value for String {
    const FORM: &'static str = "TEXT";

    fn parse(text: &str) -> Result<Self> {
        Ok(text.to_owned())
    }

    fn json(&self) -> serde_json::Value {
        self.as_str().into()
    }
}

impl Value for NonZeroUsize {
    const FORM: &'static str = "NUMBER";

    fn parse(text: &str) -> Result<Self> {
        text.parse().map_err(|_| {
            Error::invalid(format!("{text:?} is not a number")).hint("write 1 or more, in digits")
        })
    }

    fn json(&self) -> serde_json::Value {
        self.get().into()
    }
}

impl Value for Location {
    const FORM: &'static str = "URL";

    fn parse(text: &str) -> Result<Self> {
        text.parse()
    }

    fn json(&self) -> serde_json::Value {
        self.to_string().into()
    }
}

impl Value for SecretSource {
    const FORM: &'static str = "TEXT";
    const SECRET: bool = true;

    fn parse(text: &str) -> Result<Self> {
        if text.is_empty() {
            return Err(Error::invalid("it is empty"));
        }
        Ok(Self::Given(Secret::new(text)))
    }

    fn in_file(path: PathBuf) -> Result<Self> {
        Ok(Self::File(path))
    }

    fn json(&self) -> serde_json::Value {
        match self {
            Self::Given(_) => "(secret)".into(),
            Self::File(path) => format!("(secret in {})", path.display()).into(),
        }
    }
}

/// How words are written where more than one fit: as JSON, which in the file is an array.
pub(super) const WORDS: &str = "[\"PROGRAM\", \"ARGUMENT\", ...]";

impl Value for Vec<String> {
    const FORM: &'static str = WORDS;

    /// Empty text is no program.
    fn parse(text: &str) -> Result<Self> {
        if text.is_empty() {
            return Ok(Self::new());
        }
        let words: Self = serde_json::from_str(text).map_err(|_| {
            Error::invalid(format!("{text:?} is not a list of words"))
                .hint(format!("write the program and each of its arguments: {WORDS}"))
        })?;
        match words.first() {
            Some(program) if !program.is_empty() => Ok(words),
            _ => Err(Error::invalid("it names no program")),
        }
    }

    fn json(&self) -> serde_json::Value {
        self.as_slice().into()
    }
}

impl Value for Percent {
    const FORM: &'static str = "PERCENT";

    fn parse(text: &str) -> Result<Self> {
        text.parse()
    }

    fn json(&self) -> serde_json::Value {
        self.to_string().into()
    }
}

impl Value for ByteSize {
    const FORM: &'static str = "SIZE";

    fn parse(text: &str) -> Result<Self> {
        text.parse()
    }

    fn json(&self) -> serde_json::Value {
        self.bytes().into()
    }
}

impl Value for BackendName {
    const FORM: &'static str = "BACKEND";

    fn parse(text: &str) -> Result<Self> {
        text.parse()
    }

    fn json(&self) -> serde_json::Value {
        self.as_str().into()
    }
}

impl Value for RepositoryName {
    const FORM: &'static str = "REPOSITORY";

    fn parse(text: &str) -> Result<Self> {
        text.parse()
    }

    fn json(&self) -> serde_json::Value {
        self.as_str().into()
    }
}

impl Value for bool {
    const FORM: &'static str = "true|false";

    fn parse(text: &str) -> Result<Self> {
        match text {
            "true" => Ok(true),
            "false" => Ok(false),
            other => Err(Error::invalid(format!("{other:?} is neither true nor false"))),
        }
    }

    fn json(&self) -> serde_json::Value {
        (*self).into()
    }
}

impl Value for Duration {
    const FORM: &'static str = "TIME";

    /// A whole number and a unit: `500ms`, `10s`, `5m`, `2h`, `7d`, `4w`.
    fn parse(text: &str) -> Result<Self> {
        let wrong = || {
            Error::invalid(format!("{text:?} is not a length of time"))
                .hint("write a whole number and a unit: 500ms, 10s, 5m, 2h, 7d or 4w")
        };
        let split = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let (number, unit) = text.split_at(split);
        let number: u64 = number.parse().map_err(|_| wrong())?;
        let seconds = match unit {
            "ms" => return Ok(Self::from_millis(number)),
            "s" => 1,
            "m" => 60,
            "h" => 3600,
            "d" => 86_400,
            "w" => 604_800,
            _ => return Err(wrong()),
        };
        // A century is longer than anybody means, and short enough for every sum of times.
        number
            .checked_mul(seconds)
            .filter(|total| *total <= 100 * 366 * 86_400)
            .map(Self::from_secs)
            .ok_or_else(wrong)
    }

    /// Seconds, with a fraction only where there is one.
    fn json(&self) -> serde_json::Value {
        if self.subsec_nanos() == 0 { self.as_secs().into() } else { self.as_secs_f64().into() }
    }
}

/// The name by which other nodes and error messages know this one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeName(String);

impl NodeName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Value for NodeName {
    const FORM: &'static str = "NAME";

    fn parse(text: &str) -> Result<Self> {
        let fits = text.len() <= 255
            && text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
        if fits {
            return Ok(Self(text.to_owned()));
        }
        Err(Error::invalid(format!("{text:?} is not a node name"))
            .hint("use letters, digits, '.', '_' and '-', beginning with a letter or digit"))
    }

    fn json(&self) -> serde_json::Value {
        self.as_str().into()
    }
}

macro_rules! words {
    ($(#[$doc:meta])* $name:ident, $what:literal: $form:literal { $($variant:ident = $word:literal),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[allow(missing_docs, reason = "the words say it")]
        pub enum $name { $($variant),* }

        impl Value for $name {
            const FORM: &'static str = $form;

            fn parse(text: &str) -> Result<Self> {
                match text {
                    $($word => Ok(Self::$variant),)*
                    other => Err(Error::invalid(format!("{other:?} is not {}", $what))
                        .hint(concat!("write one of ", $form))),
                }
            }

            fn json(&self) -> serde_json::Value {
                match self { $(Self::$variant => $word.into()),* }
            }
        }
    };
}

words! {
    /// How much the log tells.
    LogLevel, "a log level": "error|warn|info|debug|trace" {
        Error = "error", Warn = "warn", Info = "info", Debug = "debug", Trace = "trace",
    }
}
words! {
    /// How the log is written.
    LogFormat, "a log format": "text|json" { Text = "text", Json = "json" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_time_have_a_unit() {
        for (text, seconds) in [("10s", 10), ("5m", 300), ("2h", 7200), ("7d", 604_800)] {
            assert_eq!(Duration::parse(text).unwrap(), Duration::from_secs(seconds));
        }
        assert_eq!(Duration::parse("1500ms").unwrap(), Duration::from_millis(1500));
        for text in ["", "10", "s", "1.5h", "-1s", "10 s", "10y", "99999999999999w"] {
            assert!(Duration::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_node_name_fits_in_a_host_name() {
        assert!(NodeName::parse("web-1.example.org").is_ok());
        for text in ["", "-a", "a b", "a/b", "ä"] {
            assert!(NodeName::parse(text).is_err(), "{text}");
        }
    }
}
