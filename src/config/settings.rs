//! The layers, one over the other.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use super::file::{self, Entries};
use super::keys::{Fallback, Key};
use super::{DEFAULT_FILE, FILE_VARIABLE, FileChoice};
use crate::error::{Error, ErrorKind, Result};

/// What the values are taken from.
#[derive(Debug, Clone)]
pub struct Inputs {
    /// Which file.
    pub file: FileChoice,
    /// Flags that were given, by the names of their keys.
    pub flags: BTreeMap<String, String>,
    /// The environment's variables.
    pub environment: Vec<(String, String)>,
}

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A flag.
    Flag,
    /// A variable.
    Environment,
    /// The file.
    File {
        /// Which.
        path: PathBuf,
        /// Where in it.
        line: usize,
    },
    /// Nobody gave one.
    Default,
}

impl Source {
    /// One word for programs.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Flag => "flag",
            Self::Environment => "environment",
            Self::File { .. } => "file",
            Self::Default => "default",
        }
    }
}

/// One key's value.
#[derive(Debug, Clone)]
pub struct Setting {
    /// The key.
    pub key: &'static Key,
    /// Where the value came from.
    pub source: Source,
    /// Whether the source named a file that holds the value.
    from_file: bool,
    text: Secret,
}

/// Text that no log shows by accident.
#[derive(Clone)]
struct Secret(String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("..")
    }
}

impl Setting {
    /// The value for people; a secret is not told.
    pub fn shown(&self) -> &str {
        if self.key.secret { "(secret)" } else { &self.text.0 }
    }

    /// The value for programs; a secret is not told.
    ///
    /// # Errors
    /// None for a value that was checked before.
    pub fn json(&self) -> Result<serde_json::Value> {
        if self.key.secret { Ok(self.shown().into()) } else { (self.key.check)(&self.text.0) }
    }

    /// The source with all that helps to find it.
    pub fn place(&self) -> String {
        let suffix = if self.from_file { "_file" } else { "" };
        match &self.source {
            Source::Flag => format!("--{}{}", self.key.flag(), suffix.replace('_', "-")),
            Source::Environment => {
                format!("{}{}", self.key.variable(), suffix.to_uppercase())
            }
            Source::File { path, line } => format!("{} line {line}", path.display()),
            Source::Default => "default".to_owned(),
        }
    }
}

/// All keys' values, in the order of the table.
#[derive(Debug, Clone)]
pub struct Settings(Vec<Setting>);

impl Settings {
    /// Lays the layers over each other and checks every value.
    ///
    /// # Errors
    /// As [`super::load`].
    pub fn resolve(keys: &'static [Key], inputs: &Inputs) -> Result<Self> {
        let file = read_file(keys, &inputs.file)?;
        let mut settings = Self(Vec::with_capacity(keys.len()));
        for key in keys {
            let setting = match find(key, inputs, file.as_ref())? {
                Some(setting) => setting,
                None => settings.fallback(key)?,
            };
            (key.check)(&setting.text.0).map_err(|error| {
                // The text of a secret must not come back in its error.
                if key.secret {
                    Error::invalid(format!("{}: not a {}", setting.place(), key.form))
                } else {
                    error.context(format!("{} ({})", key.name, setting.place()))
                }
            })?;
            settings.0.push(setting);
        }
        Ok(settings)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Setting> {
        self.0.iter()
    }

    /// The text of the value of `name`, secret or not.
    pub(super) fn text(&self, name: &str) -> Result<&str> {
        self.0
            .iter()
            .find(|setting| setting.key.name == name)
            .map(|setting| setting.text.0.as_str())
            .ok_or_else(|| Error::internal(format!("the key {name} is used before it has a value")))
    }

    fn fallback(&self, key: &'static Key) -> Result<Setting> {
        let text = match key.fallback {
            Fallback::Text(text) => text.to_owned(),
            Fallback::Below(parent, leaf) => {
                Path::new(self.text(parent)?).join(leaf).to_string_lossy().into_owned()
            }
            Fallback::HostName => host_name()?,
        };
        Ok(Setting { key, source: Source::Default, from_file: false, text: Secret(text) })
    }
}

fn find(
    key: &'static Key,
    inputs: &Inputs,
    file: Option<&(PathBuf, Entries)>,
) -> Result<Option<Setting>> {
    // A variable that is set to nothing is one that was not set.
    let variable = |name: &str| {
        inputs.environment.iter().find(|(n, v)| n == name && !v.is_empty()).map(|(_, v)| v.clone())
    };
    let in_file = |name: &str| {
        let (path, entries) = file?;
        let entry = entries.get(name)?;
        Some((entry.text.clone(), Source::File { path: path.clone(), line: entry.line }))
    };
    let named = format!("{}_file", key.name);
    let of_file = |found: Option<(String, Source)>| found.filter(|_| key.secret);
    let layers = [
        (inputs.flags.get(key.name).map(|v| (v.clone(), Source::Flag)), false),
        (of_file(inputs.flags.get(&named).map(|v| (v.clone(), Source::Flag))), true),
        (variable(&key.variable()).map(|v| (v, Source::Environment)), false),
        (
            of_file(
                variable(&format!("{}_FILE", key.variable())).map(|v| (v, Source::Environment)),
            ),
            true,
        ),
        (in_file(key.name), false),
        (of_file(in_file(&named)), true),
    ];
    let found = layers.into_iter().find_map(|(found, from_file)| Some((found?, from_file)));
    let Some(((text, source), from_file)) = found else { return Ok(None) };
    let text = match (from_file, &source) {
        (true, _) => read_secret(key, Path::new(&text))?,
        // A path on the command line is meant from where the user stands.
        (false, Source::Flag | Source::Environment) if key.form == "PATH" => absolute(&text)?,
        (false, _) => text,
    };
    Ok(Some(Setting { key, source, from_file, text: Secret(text) }))
}

fn absolute(text: &str) -> Result<String> {
    let path = std::path::absolute(text)
        .map_err(|error| Error::io(format!("{text:?} is not a path"), error))?;
    Ok(path.to_string_lossy().into_owned())
}

fn read_secret(key: &Key, path: &Path) -> Result<String> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        Error::io(format!("{}: cannot read the secret in {}", key.name, path.display()), error)
            .with_kind(ErrorKind::Invalid)
    })?;
    Ok(text.trim_end_matches(['\n', '\r']).to_owned())
}

fn host_name() -> Result<String> {
    const PLACE: &str = "/proc/sys/kernel/hostname";
    let name = std::fs::read_to_string(PLACE)
        .map_err(|error| Error::io(format!("cannot read {PLACE}"), error).hint("set node"))?;
    Ok(name.trim().to_owned())
}

fn read_file(keys: &[Key], choice: &FileChoice) -> Result<Option<(PathBuf, Entries)>> {
    let (path, must_exist) = match choice {
        FileChoice::Nothing => return Ok(None),
        FileChoice::Usual => (Path::new(DEFAULT_FILE), false),
        FileChoice::Named(path) => (path.as_path(), true),
    };
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && !must_exist => {
            return Ok(None);
        }
        Err(error) => {
            let what = format!("cannot read the configuration {}", path.display());
            return Err(Error::io(what, error)
                .with_kind(ErrorKind::Invalid)
                .hint(format!("name a file that can be read with --config or {FILE_VARIABLE}")));
        }
    };
    Ok(Some((path.to_owned(), file::read(keys, path, &text)?)))
}

#[cfg(test)]
mod tests {
    use super::super::keys::KEYS;
    use super::super::value::Value;
    use super::*;

    fn inputs(file: &str, environment: &[(&str, &str)], flags: &[(&str, &str)]) -> Inputs {
        let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        Inputs {
            file: if file.is_empty() {
                FileChoice::Nothing
            } else {
                FileChoice::Named(file.into())
            },
            environment: environment.iter().map(owned).collect(),
            flags: flags.iter().map(owned).collect(),
        }
    }

    fn value<'a>(settings: &'a Settings, name: &str) -> (&'a str, String) {
        let setting = settings.iter().find(|s| s.key.name == name).unwrap();
        (setting.shown(), setting.place())
    }

    #[test]
    fn flags_win_over_environment_over_file_over_default() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("c.toml");
        let path = path.to_str().unwrap();
        std::fs::write(path, "[loop]\ndir = '/file'\ndefault_size = '1G'\n").unwrap();
        let size = ("HOLDFAST_LOOP_DEFAULT_SIZE", "2G");
        let get = |inputs: &Inputs, name: &str| {
            let settings = Settings::resolve(KEYS, inputs).unwrap();
            let (text, place) = value(&settings, name);
            (text.to_owned(), place)
        };
        let own = |text: &str, place: &str| (text.to_owned(), place.to_owned());
        let name = "loop.default_size";
        assert_eq!(get(&inputs("", &[], &[]), name), own("10G", "default"));
        assert_eq!(get(&inputs(path, &[], &[]), name), own("1G", &format!("{path} line 3")));
        assert_eq!(get(&inputs(path, &[size], &[]), name), own("2G", size.0));
        let all = inputs(path, &[size], &[(name, "3G")]);
        assert_eq!(get(&all, name), own("3G", "--loop-default-size"));
        let empty = inputs(path, &[(size.0, "")], &[]);
        assert_eq!(get(&empty, name), own("1G", &format!("{path} line 3")));
    }

    #[test]
    fn defaults_follow_the_directory_they_stand_in() {
        let settings = Settings::resolve(
            KEYS,
            &inputs("", &[], &[("state_dir", "/s"), ("runtime_dir", "/r")]),
        )
        .unwrap();
        assert_eq!(value(&settings, "loop.dir").0, "/s/loop");
        assert_eq!(value(&settings, "mount_dir").0, "/s/mounts");
        assert_eq!(value(&settings, "admin_socket").0, "/r/holdfast.sock");
    }

    #[test]
    fn a_wrong_value_is_told_with_its_place() {
        let wrong = inputs("", &[("HOLDFAST_LOOP_DEFAULT_SIZE", "much")], &[]);
        let error = Settings::resolve(KEYS, &wrong).unwrap_err();
        assert_eq!(
            error.full_message(),
            "loop.default_size (HOLDFAST_LOOP_DEFAULT_SIZE): \"much\" is not a size"
        );
        let error = Settings::resolve(KEYS, &inputs("/no/such", &[], &[])).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.full_message().contains("/no/such"), "{error}");
    }

    static SECRETS: &[Key] = &[Key {
        name: "s.password",
        form: "TEXT",
        fallback: Fallback::Text(""),
        secret: true,
        help: "",
        check: |text| {
            if text == "wrong" {
                return Err(Error::invalid(format!("{text} will not do")));
            }
            PathBuf::parse("/").map(|_| "".into())
        },
    }];

    #[test]
    fn a_secret_is_never_shown_and_can_stand_in_a_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        std::fs::write(&path, "hunter2\n").unwrap();
        let path = path.to_str().unwrap();
        let settings =
            Settings::resolve(SECRETS, &inputs("", &[("HOLDFAST_S_PASSWORD_FILE", path)], &[]))
                .unwrap();
        assert_eq!(settings.text("s.password").unwrap(), "hunter2");
        assert_eq!(value(&settings, "s.password").0, "(secret)");
        assert_eq!(value(&settings, "s.password").1, "HOLDFAST_S_PASSWORD_FILE");
        let told = format!("{settings:?}{}", settings.iter().next().unwrap().json().unwrap());
        assert!(!told.contains("hunter2"), "{told}");

        let wrong = inputs("", &[("HOLDFAST_S_PASSWORD", "wrong")], &[]);
        let error = Settings::resolve(SECRETS, &wrong).unwrap_err();
        assert_eq!(error.full_message(), "HOLDFAST_S_PASSWORD: not a TEXT");
    }
}
