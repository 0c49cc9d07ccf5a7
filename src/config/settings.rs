//! The layers, one over the other.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::file::{self, Entries};
use super::keys::{Fallback, Key, variable};
use super::sections::Section;
use super::value::Value;
use super::{DEFAULT_FILE, FILE_VARIABLE, FileChoice, PREFIX};
use crate::error::{Error, ErrorKind, Result};
use crate::repository::{Secret, SecretSource};

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
    /// The key's whole name: `loop.dir`, `repository.main.url`.
    pub name: String,
    /// Where the value came from.
    pub source: Source,
    given: Given,
}

/// What the source says. Debug output shows none of it: it may be a secret.
#[derive(Debug, Clone)]
enum Given {
    /// The value.
    Text(Secret),
    /// The file that holds it.
    File(PathBuf),
}

impl Setting {
    /// The value for people; a secret is not told.
    pub fn shown(&self) -> String {
        match &self.given {
            Given::File(path) => format!("(secret in {})", path.display()),
            Given::Text(text) if !self.key.secret => text.reveal().to_owned(),
            Given::Text(text) if text.reveal().is_empty() => String::new(),
            Given::Text(_) => "(secret)".to_owned(),
        }
    }

    /// The value for programs; a secret is not told.
    ///
    /// # Errors
    /// None for a value that was checked before.
    pub fn json(&self) -> Result<serde_json::Value> {
        match &self.given {
            Given::File(path) => Ok(SecretSource::File(path.clone()).json()),
            Given::Text(text) => (self.key.check)(text.reveal()),
        }
    }

    /// The source with all that helps to find it.
    pub fn place(&self) -> String {
        let suffix = match self.given {
            Given::File(_) => "_file",
            Given::Text(_) => "",
        };
        match &self.source {
            Source::Flag => format!("--{}{}", self.key.flag(), suffix.replace('_', "-")),
            Source::Environment => {
                format!("{}{}", variable(&self.name), suffix.to_uppercase())
            }
            Source::File { path, line } => format!("{} line {line}", path.display()),
            Source::Default => "default".to_owned(),
        }
    }
}

/// All keys' values: those of the table in its order, then those of the sections with chosen names.
#[derive(Debug, Clone)]
pub struct Settings {
    values: Vec<Setting>,
    /// The sections with chosen names, as `repository` and `main`.
    parts: Vec<(&'static str, String)>,
}

/// One section with a chosen name.
#[derive(Debug)]
pub(super) struct Part<'a> {
    settings: &'a Settings,
    section: &'static str,
    /// The name that the user chose.
    pub(super) chosen: &'a str,
}

impl Part<'_> {
    /// Its whole name: `repository.main`.
    pub(super) fn name(&self) -> String {
        format!("{}.{}", self.section, self.chosen)
    }

    /// The value of the key `leaf`.
    pub(super) fn value<T: Value>(&self, leaf: &str) -> Result<T> {
        match &self.settings.find(&format!("{}.{leaf}", self.name()))?.given {
            Given::Text(text) => T::parse(text.reveal()),
            Given::File(path) => T::in_file(path.clone()),
        }
    }
}

impl Settings {
    /// Lays the layers over each other and checks every value.
    ///
    /// # Errors
    /// As [`super::load`].
    pub fn resolve(
        keys: &'static [Key],
        sections: &[&'static Section],
        inputs: &Inputs,
    ) -> Result<Self> {
        let layers = Layers { inputs, file: read_file(keys, sections, &inputs.file)? };
        let mut settings = Self { values: Vec::with_capacity(keys.len()), parts: Vec::new() };
        for key in keys {
            settings.add(key, key.name.to_owned(), &layers)?;
        }
        for section in sections {
            for chosen in layers.parts(section)? {
                for key in section.keys {
                    let name = format!("{}.{chosen}.{}", section.name, key.name);
                    settings.add(key, name, &layers)?;
                }
                settings.parts.push((section.name, chosen));
            }
        }
        Ok(settings)
    }

    fn add(&mut self, key: &'static Key, name: String, layers: &Layers<'_>) -> Result<()> {
        let setting = match layers.find(key, &name)? {
            Some(setting) => setting,
            None => self.fallback(key, name)?,
        };
        let checked = match &setting.given {
            Given::Text(text) => (key.check)(text.reveal()).map(drop),
            Given::File(path) => PathBuf::parse(&path.to_string_lossy()).map(drop),
        };
        checked.map_err(|error| {
            // The text of a secret must not come back in its error.
            if key.secret && matches!(setting.given, Given::Text(_)) {
                Error::invalid(format!("{}: not a {}", setting.place(), key.form))
            } else {
                error.context(format!("{} ({})", setting.name, setting.place()))
            }
        })?;
        self.values.push(setting);
        Ok(())
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Setting> {
        self.values.iter()
    }

    /// The sections of a kind.
    pub(super) fn parts(&self, section: &Section) -> impl Iterator<Item = Part<'_>> {
        let wanted = section.name;
        let parts = self.parts.iter().filter(move |(section, _)| *section == wanted);
        parts.map(|(section, chosen)| Part { settings: self, section, chosen })
    }

    /// The text of the value of `name`, which is no secret.
    pub(super) fn text(&self, name: &str) -> Result<&str> {
        match &self.find(name)?.given {
            Given::Text(text) => Ok(text.reveal()),
            Given::File(_) => Err(Error::internal(format!("the value of {name} is a secret"))),
        }
    }

    fn find(&self, name: &str) -> Result<&Setting> {
        self.values
            .iter()
            .find(|setting| setting.name == name)
            .ok_or_else(|| Error::internal(format!("the key {name} is used before it has a value")))
    }

    fn fallback(&self, key: &'static Key, name: String) -> Result<Setting> {
        let text = match key.fallback {
            Fallback::Text(text) => text.to_owned(),
            Fallback::Below(parent, leaf) => {
                Path::new(self.text(parent)?).join(leaf).to_string_lossy().into_owned()
            }
            Fallback::HostName => host_name()?,
            Fallback::Required => {
                let or_file =
                    if key.secret { format!(" or {}_file", key.name) } else { String::new() };
                return Err(Error::invalid(format!("{name} is not given")).hint(format!(
                    "set {}{or_file} there, or the variable {}",
                    key.name,
                    variable(&name)
                )));
            }
        };
        Ok(Setting { key, name, source: Source::Default, given: Given::Text(Secret::new(text)) })
    }
}

/// Where values come from.
struct Layers<'a> {
    inputs: &'a Inputs,
    file: Option<(PathBuf, Entries)>,
}

impl Layers<'_> {
    /// A variable that is set to nothing is one that was not set.
    fn variable(&self, name: &str) -> Option<String> {
        let mut all = self.inputs.environment.iter();
        all.find(|(n, value)| n == name && !value.is_empty()).map(|(_, value)| value.clone())
    }

    fn in_file(&self, name: &str) -> Option<(String, Source)> {
        let (path, entries) = self.file.as_ref()?;
        let entry = entries.values.get(name)?;
        Some((entry.text.clone(), Source::File { path: path.clone(), line: entry.line }))
    }

    /// The names that the file and the variables give to sections of a kind. A variable means the section
    /// of the file whose name it has, in whatever signs.
    fn parts(&self, section: &'static Section) -> Result<Vec<String>> {
        let mut names: BTreeMap<String, String> = BTreeMap::new();
        if let Some((path, entries)) = &self.file {
            for (_, name, line) in entries.parts.iter().filter(|(kind, ..)| *kind == section.name) {
                if let Some(other) = names.insert(variable(name), name.clone()) {
                    return Err(Error::invalid(format!(
                        "{} line {line}: {} {other} and {name} have the same variables",
                        path.display(),
                        section.name
                    ))
                    .hint("give one of them another name"));
                }
            }
        }
        for (name, _) in self.inputs.environment.iter().filter(|(_, value)| !value.is_empty()) {
            let chosen = name.strip_prefix(PREFIX).and_then(|name| section.chosen(name));
            if let Some(chosen) = chosen {
                names.entry(variable(chosen)).or_insert_with(|| chosen.to_lowercase());
            }
        }
        Ok(names.into_values().collect())
    }

    fn find(&self, key: &'static Key, name: &str) -> Result<Option<Setting>> {
        let flag = |name: &str| Some((self.inputs.flags.get(name)?.clone(), Source::Flag));
        let environment = |suffix: &str| {
            Some((self.variable(&format!("{}{suffix}", variable(name)))?, Source::Environment))
        };
        let file_key = format!("{name}_file");
        let layers = [
            (flag(name), flag(&file_key)),
            (environment(""), environment("_FILE")),
            (self.in_file(name), self.in_file(&file_key)),
        ];
        for (value, place) in layers {
            let found = match (value, place.filter(|_| key.secret)) {
                (None, None) => continue,
                (Some(_), Some(_)) => {
                    return Err(Error::invalid(format!("{name} and {file_key} are both given"))
                        .hint("leave out one of the two"));
                }
                (Some((text, source)), None) => {
                    let text = match source {
                        // A path on the command line is meant from where the user stands.
                        Source::Flag | Source::Environment if key.form == PathBuf::FORM => {
                            absolute(&text)?
                        }
                        _ => text,
                    };
                    (source, Given::Text(Secret::new(text)))
                }
                (None, Some((path, source))) => {
                    let path = match source {
                        Source::Flag | Source::Environment => absolute(&path)?,
                        _ => path,
                    };
                    (source, Given::File(path.into()))
                }
            };
            let (source, given) = found;
            return Ok(Some(Setting { key, name: name.to_owned(), source, given }));
        }
        Ok(None)
    }
}

fn absolute(text: &str) -> Result<String> {
    let path = std::path::absolute(text)
        .map_err(|error| Error::io(format!("{text:?} is not a path"), error))?;
    Ok(path.to_string_lossy().into_owned())
}

fn host_name() -> Result<String> {
    const PLACE: &str = "/proc/sys/kernel/hostname";
    let name = std::fs::read_to_string(PLACE)
        .map_err(|error| Error::io(format!("cannot read {PLACE}"), error).hint("set node"))?;
    Ok(name.trim().to_owned())
}

fn read_file(
    keys: &[Key],
    sections: &[&'static Section],
    choice: &FileChoice,
) -> Result<Option<(PathBuf, Entries)>> {
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
    Ok(Some((path.to_owned(), file::read(keys, sections, path, &text)?)))
}

#[cfg(test)]
mod tests {
    use super::super::keys::KEYS;
    use super::super::sections::SECTIONS;
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

    fn resolve(inputs: &Inputs) -> Result<Settings> {
        Settings::resolve(KEYS, SECTIONS, inputs)
    }

    fn value(settings: &Settings, name: &str) -> (String, String) {
        let setting = settings.iter().find(|s| s.name == name).unwrap();
        (setting.shown(), setting.place())
    }

    #[test]
    fn flags_win_over_environment_over_file_over_default() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("c.toml");
        let path = path.to_str().unwrap();
        std::fs::write(path, "[loop]\ndir = '/file'\ndefault_size = '1G'\n").unwrap();
        let size = ("HOLDFAST_LOOP_DEFAULT_SIZE", "2G");
        let get = |inputs: &Inputs, name: &str| value(&resolve(inputs).unwrap(), name);
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
        let flags = [("state_dir", "/s"), ("runtime_dir", "/r")];
        let settings = resolve(&inputs("", &[], &flags)).unwrap();
        assert_eq!(value(&settings, "loop.dir").0, "/s/loop");
        assert_eq!(value(&settings, "mount_dir").0, "/s/mounts");
        assert_eq!(value(&settings, "admin_socket").0, "/r/holdfast.sock");
    }

    #[test]
    fn a_wrong_value_is_told_with_its_place() {
        let wrong = inputs("", &[("HOLDFAST_LOOP_DEFAULT_SIZE", "much")], &[]);
        let error = resolve(&wrong).unwrap_err();
        assert_eq!(
            error.full_message(),
            "loop.default_size (HOLDFAST_LOOP_DEFAULT_SIZE): \"much\" is not a size"
        );
        let error = resolve(&inputs("/no/such", &[], &[])).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.full_message().contains("/no/such"), "{error}");
    }

    #[test]
    fn a_secret_is_never_shown_and_can_stand_in_a_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        let path = path.to_str().unwrap();
        let url = ("HOLDFAST_REPOSITORY_MAIN_URL", "/backups");
        let key = ("HOLDFAST_REPOSITORY_MAIN_PASSWORD", "hunter2");
        let name = "repository.main.password";
        let told = |settings: &Settings| {
            let json: Vec<_> = settings.iter().map(|one| one.json().unwrap().to_string()).collect();
            format!("{settings:?}{json:?}{}", value(settings, name).0)
        };
        let settings = resolve(&inputs("", &[url, key], &[])).unwrap();
        assert_eq!(value(&settings, name), ("(secret)".into(), key.0.into()));
        assert!(!told(&settings).contains("hunter2"), "{}", told(&settings));

        // The file is read when it is needed.
        let file = ("HOLDFAST_REPOSITORY_MAIN_PASSWORD_FILE", path);
        let settings = resolve(&inputs("", &[url, file], &[])).unwrap();
        assert_eq!(value(&settings, name), (format!("(secret in {path})"), file.0.into()));
        let part = settings.parts(SECTIONS[0]).next().unwrap();
        let secret: SecretSource = part.value("password").unwrap();
        for content in ["hunter2\n", "hunter3"] {
            std::fs::write(path, content).unwrap();
            assert_eq!(secret.read().unwrap().reveal(), content.trim_end());
        }
        let error = resolve(&inputs("", &[url, key, file], &[])).unwrap_err();
        assert!(error.full_message().contains("are both given"), "{error}");
    }

    #[test]
    fn sections_come_from_the_file_and_from_variables() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("c.toml");
        let path = path.to_str().unwrap();
        std::fs::write(path, "[repository.Off-Site]\nurl = 's3:b/x'\nconnections = 3\n").unwrap();
        let password = ("HOLDFAST_REPOSITORY_OFF_SITE_PASSWORD_FILE", "/key");
        let settings = resolve(&inputs(
            path,
            &[
                password,
                ("HOLDFAST_REPOSITORY_OFF_SITE_CONNECTIONS", "5"),
                ("HOLDFAST_REPOSITORY_MY_OWN_URL", "/x"),
                ("HOLDFAST_REPOSITORY_MY_OWN_PASSWORD", "p"),
                ("HOLDFAST_REPOSITORY_UNSET_URL", ""),
                ("HOLDFAST_REPOSITORY_OTHER_NOTHING", "x"),
            ],
            &[("state_dir", "/s")],
        ))
        .unwrap();
        let names: Vec<_> = settings.parts(SECTIONS[0]).map(|part| part.name()).collect();
        assert_eq!(names, ["repository.my_own", "repository.Off-Site"]);
        let get = |name: &str| value(&settings, &format!("repository.{name}"));
        let own = |text: &str, place: &str| (text.to_owned(), place.to_owned());
        assert_eq!(get("Off-Site.url"), own("s3:b/x", &format!("{path} line 2")));
        let variable = "HOLDFAST_REPOSITORY_OFF_SITE_CONNECTIONS";
        assert_eq!(get("Off-Site.connections"), own("5", variable));
        assert_eq!(get("my_own.connections"), own("8", "default"));
        assert_eq!(get("my_own.cache_dir").0, "/s/cache");

        std::fs::write(path, "[hook.a-b]\nbefore = ['x']\n[hook.a_b]\nafter = ['x']\n").unwrap();
        let error = resolve(&inputs(path, &[], &[])).unwrap_err();
        assert!(error.full_message().contains("a-b and a_b have the same variables"), "{error}");
    }
}
