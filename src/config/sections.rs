//! Sections whose names the user chooses, of which there can be any number: `[repository.main]`.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::keys::{Config, Fallback, Key, variable};
use super::settings::{Part, Settings};
use crate::error::{Error, Result};
use crate::model::HookConfig;
use crate::name::{HookName, RepositoryName};
use crate::options::nearest;
use crate::repository::{Limits, Location, RepositorySettings, S3Settings, SecretSource};
use crate::units::ByteSize;

/// A kind of section.
#[derive(Debug)]
pub struct Section {
    /// The first word of its name.
    pub name: &'static str,
    /// Its keys, by their names within the section.
    pub keys: &'static [Key],
    /// Checks the name that the user chose.
    pub(super) check_name: fn(&str) -> Result<()>,
}

impl Section {
    /// The names of its keys, and of those for a file that holds a value.
    pub(super) fn leaves(&self) -> impl Iterator<Item = String> {
        self.keys.iter().flat_map(|key| {
            let file = key.secret.then(|| format!("{}_file", key.name));
            std::iter::once(key.name.to_owned()).chain(file)
        })
    }

    /// The name that the user chose, in a variable without its `HOLDFAST_`: `MAIN` of
    /// `REPOSITORY_MAIN_URL`. Variables have only capitals, and `_` for all signs.
    pub(super) fn chosen<'v>(&self, variable: &'v str) -> Option<&'v str> {
        let rest = variable.strip_prefix(&self.name.to_uppercase())?.strip_prefix('_')?;
        let names = self
            .leaves()
            .filter_map(|leaf| rest.strip_suffix(&leaf.to_uppercase())?.strip_suffix('_'));
        // The longest key: `PASSWORD_FILE` and not a `FILE` of its own.
        names.min_by_key(|name| name.len()).filter(|name| (self.check_name)(name).is_ok())
    }

    /// The variables that may be meant by one that is none of ours.
    pub(super) fn near(&self, variable_name: &str) -> Vec<String> {
        let start = variable(self.name);
        let Some(rest) = variable_name.strip_prefix(&start).and_then(|r| r.strip_prefix('_'))
        else {
            return Vec::new();
        };
        let names = rest.match_indices('_').filter_map(|(at, _)| rest.get(..at));
        let all = names.flat_map(|name| {
            self.leaves().map(move |leaf| variable(&format!("{}.{name}.{leaf}", self.name)))
        });
        all.collect()
    }
}

/// All kinds.
pub static SECTIONS: &[&Section] = &[&REPOSITORY, &HOOK];

macro_rules! section {
    ($(#[$doc:meta])* $section:ident = $word:literal, $name:ty;
     $read:ident -> $config:ident { $($field:ident: $type:ty = $fallback:expr, $help:literal;)* }) => {
        $(#[$doc])*
        pub static $section: Section = Section {
            name: $word,
            keys: &[$(Key::new::<$type>(stringify!($field), $fallback, $help)),*],
            check_name: |name| name.parse::<$name>().map(drop),
        };

        fn $read(part: &Part<'_>) -> Result<$config> {
            Ok($config { $($field: part.value::<$type>(stringify!($field))?,)* })
        }
    };
}

use Fallback::{Below, Required, Text};

section! {
    /// A place for backups.
    REPOSITORY = "repository", RepositoryName;
    read_repository -> RepositoryConfig {
        url: Location = Required,
            "Where it is: `/path`, `nfs://server/path`, `s3:https://server/bucket/prefix`, `s3:bucket/prefix`, `gs:bucket/prefix` or `azure:container/prefix`.";
        password: SecretSource = Required,
            "What its contents are encrypted with. Whoever loses it has lost the backups.";
        cache_dir: PathBuf = Below("state_dir", "cache"),
            "Where to keep what is read again and again of a repository that is far away.";
        upload_limit: Option<ByteSize> = Text(""),
            "How many bytes to send in a second at most, such as `20M`.";
        download_limit: Option<ByteSize> = Text(""),
            "How many bytes to fetch in a second at most.";
        connections: NonZeroUsize = Text("8"),
            "How many requests to make at once.";
        region: Option<String> = Text(""),
            "The region of an S3 bucket; without it `AWS_REGION`.";
        endpoint: Option<String> = Text(""),
            "The server of an S3 bucket, as `https://server`, if the url does not name it; without either Amazon's.";
        access_key_id: Option<String> = Text(""),
            "The public half of the key to an S3 bucket; without it the usual `AWS_*` variables, and at last the instance's role.";
        secret_access_key: Option<SecretSource> = Text(""),
            "The secret half of the same key.";
    }
}

section! {
    /// Programs around snapshots.
    HOOK = "hook", HookName;
    read_hook -> HookConfig {
        before: Vec<String> = Text(""),
            "The program to run before a snapshot is cut, and its arguments; no shell reads them.";
        after: Vec<String> = Text(""),
            "The same for after it was cut or was not.";
        timeout: Duration = Text("60s"),
            "How long each of them may take before it is killed.";
    }
}

/// What an administrator decides about a repository.
#[derive(Debug, Clone)]
pub struct RepositoryConfig {
    /// Where it is.
    pub url: Location,
    /// Its password.
    pub password: SecretSource,
    /// Where to keep what is read again and again.
    pub cache_dir: PathBuf,
    /// Bytes per second to it; never 0.
    pub upload_limit: Option<ByteSize>,
    /// Bytes per second from it; never 0.
    pub download_limit: Option<ByteSize>,
    /// Requests at once.
    pub connections: NonZeroUsize,
    /// S3: the region.
    pub region: Option<String>,
    /// S3: the server's URL, if `url` names none.
    pub endpoint: Option<String>,
    /// S3: the public half of the key.
    pub access_key_id: Option<String>,
    /// S3: the secret half of the key; there if the public half is.
    pub secret_access_key: Option<SecretSource>,
}

impl RepositoryConfig {
    /// What does not go together is told now and not when the first backup is due.
    fn checked(self) -> Result<Self> {
        for (key, limit) in
            [("upload_limit", self.upload_limit), ("download_limit", self.download_limit)]
        {
            if limit.is_some_and(|limit| limit.bytes() == 0) {
                return Err(Error::invalid(format!("{key} lets nothing through"))
                    .hint("leave it out for no limit"));
            }
        }
        if self.access_key_id.is_some() != self.secret_access_key.is_some() {
            return Err(Error::invalid("one half of the key is missing")
                .hint("set access_key_id and secret_access_key, or neither"));
        }
        let for_s3 = [
            ("region", self.region.is_some()),
            ("endpoint", self.endpoint.is_some()),
            ("access_key_id", self.access_key_id.is_some()),
        ];
        match &self.url {
            Location::S3 { endpoint: Some(_), .. } if self.endpoint.is_some() => {
                return Err(Error::invalid("the url names a server, and endpoint another")
                    .hint("leave out one of the two"));
            }
            Location::S3 { .. } => {}
            _ => {
                if let Some((key, _)) = for_s3.iter().find(|(_, given)| *given) {
                    return Err(Error::invalid(format!("{key} means nothing without S3")).hint(
                        "leave it out, or write the url as s3:https://server/bucket/prefix",
                    ));
                }
            }
        }
        if let Some(endpoint) = &self.endpoint {
            let server = ["https://", "http://"].iter().find_map(|s| endpoint.strip_prefix(s));
            if server.is_none_or(|server| server.is_empty() || server.contains(['/', '@'])) {
                return Err(Error::invalid("endpoint is not the URL of a server")
                    .hint("write https://server, without a path and without credentials"));
            }
        }
        Ok(self)
    }

    /// The same as the repository `name` wants it on `node`, whose daemon runs in `runtime_dir`.
    pub fn settings(
        &self,
        name: RepositoryName,
        node: String,
        runtime_dir: &Path,
    ) -> RepositorySettings {
        let mut location = self.url.clone();
        if let (Location::S3 { endpoint, .. }, Some(given)) = (&mut location, &self.endpoint) {
            *endpoint = Some(given.clone());
        }
        RepositorySettings {
            mountpoint: runtime_dir.join("repositories").join(name.as_str()),
            name,
            node,
            location,
            password: self.password.clone(),
            cache: self.cache_dir.clone(),
            limits: Limits {
                upload: self.upload_limit,
                download: self.download_limit,
                connections: self.connections.get(),
            },
            s3: S3Settings {
                region: self.region.clone(),
                access_key_id: self.access_key_id.clone(),
                secret_access_key: self.secret_access_key.clone(),
            },
        }
    }
}

pub(super) fn repositories(
    settings: &Settings,
) -> Result<BTreeMap<RepositoryName, RepositoryConfig>> {
    let read = |part: Part<'_>| {
        let config = read_repository(&part)?.checked();
        Ok((part.chosen.parse()?, config.map_err(|error| error.context(part.name()))?))
    };
    settings.parts(&REPOSITORY).map(read).collect()
}

pub(super) fn hooks(settings: &Settings) -> Result<BTreeMap<HookName, HookConfig>> {
    let read = |part: Part<'_>| {
        let config = read_hook(&part)?;
        if config.before.is_empty() && config.after.is_empty() {
            return Err(Error::invalid(format!("{} runs nothing", part.name()))
                .hint("set before, after or both"));
        }
        Ok((part.chosen.parse()?, config))
    };
    settings.parts(&HOOK).map(read).collect()
}

impl Config {
    /// Where there is one repository, it is the default.
    pub(super) fn with_default_repository(mut self) -> Result<Self> {
        let mut names = self.repositories.keys();
        match &self.default_repository {
            None => {
                if let (Some(only), None) = (names.next(), names.next()) {
                    self.default_repository = Some(only.clone());
                }
            }
            Some(name) if !self.repositories.contains_key(name) => {
                let error = Error::invalid(format!("default_repository: there is no {name}"));
                let names = names.map(RepositoryName::as_str);
                return Err(match nearest(name.as_str(), names) {
                    Some(near) => error.hint(format!("did you mean {near}?")),
                    None => error.hint(format!("write a section [repository.{name}]")),
                });
            }
            Some(_) => {}
        }
        Ok(self)
    }

    /// What an administrator should know about files with secrets, as sentences. They are read when they
    /// are needed, so this is no error yet.
    pub fn warnings(&self) -> Vec<String> {
        let secrets = self.repositories.iter().flat_map(|(name, config)| {
            let all = [
                ("password", Some(&config.password)),
                ("secret_access_key", config.secret_access_key.as_ref()),
            ];
            all.into_iter().filter_map(move |(key, secret)| {
                let why = open_to_all(secret?)?;
                Some(format!("repository.{name}.{key}_file: {why}"))
            })
        });
        secrets.collect()
    }
}

fn open_to_all(secret: &SecretSource) -> Option<String> {
    use std::os::unix::fs::PermissionsExt as _;
    let SecretSource::File(path) = secret else { return None };
    let shown = path.display();
    match std::fs::metadata(path) {
        Err(error) => Some(format!("cannot read {shown}: {error}")),
        Ok(found) if found.permissions().mode() & 0o004 != 0 => {
            Some(format!("everybody on this host can read {shown}; `chmod 600 {shown}` closes it"))
        }
        Ok(_) => None,
    }
}

/// The tables for the manual.
#[cfg(test)]
pub(super) fn reference() -> String {
    use std::fmt::Write as _;

    let mut text = String::new();
    for section in SECTIONS {
        let _ = writeln!(
            text,
            "`[{}.NAME]`:\n\n| key | variable | default | |\n| --- | --- | --- | --- |",
            section.name
        );
        for key in section.keys {
            let file = if key.secret { format!(" or `{}_file`", key.name) } else { String::new() };
            let _ = writeln!(
                text,
                "| `{}`{file} | `{}` | {} | {} |",
                key.name,
                variable(&format!("{}.NAME.{}", section.name, key.name)),
                super::keys::fallback_text(key),
                key.help
            );
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt as _;

    use super::super::{FileChoice, Inputs, Loaded, load};
    use super::*;

    /// Reads `text` as the file.
    fn read(text: &str) -> Result<Loaded> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("c.toml");
        std::fs::write(&path, text).unwrap();
        let file = FileChoice::Named(path);
        load(&Inputs { file, flags: BTreeMap::new(), environment: Vec::new() })
    }

    #[test]
    fn every_key_of_a_repository_and_of_a_hook_is_read() {
        let config = read(
            "[repository.main]\nurl = 's3:bucket/prefix'\npassword = 'p'\ncache_dir = '/c'\n\
             upload_limit = '20M'\ndownload_limit = '1M'\nconnections = 4\nregion = 'r'\n\
             endpoint = 'http://127.0.0.1:9000'\naccess_key_id = 'a'\nsecret_access_key_file = '/k'\n\
             [hook.db]\nbefore = ['sync', '-f']\nafter = ['true']\ntimeout = '5s'\n",
        )
        .unwrap()
        .config;
        let name: RepositoryName = "main".parse().unwrap();
        assert_eq!(config.default_repository.as_ref(), Some(&name), "the only one");
        let settings = config.repositories[&name].settings(name, "n1".to_owned(), Path::new("/r"));
        assert_eq!(settings.location.to_string(), "s3:http://127.0.0.1:9000/bucket/prefix");
        assert_eq!(settings.password.read().unwrap().reveal(), "p");
        assert_eq!(settings.limits.upload, Some(ByteSize::new(20 << 20)));
        assert_eq!(settings.limits.download, Some(ByteSize::MIB));
        assert_eq!((settings.limits.connections, settings.cache), (4, "/c".into()));
        assert_eq!(settings.s3.region.as_deref(), Some("r"));
        assert_eq!(settings.s3.access_key_id.as_deref(), Some("a"));
        assert_eq!(settings.s3.secret_access_key, Some(SecretSource::File("/k".into())));
        let hook = &config.hooks["db"];
        assert_eq!(
            (&*hook.before, &*hook.after),
            (&["sync".into(), "-f".into()][..], &["true".into()][..])
        );
        assert_eq!(hook.timeout, Duration::from_secs(5));
        assert_eq!(config.backup_concurrency.get(), 2);
    }

    #[test]
    fn what_does_not_go_together_is_told_at_once() {
        let good = "[repository.main]\nurl = '/x'\npassword = 'hunter2'\n";
        for (text, message, hint) in [
            (
                "[repository.main]\npassword = 'hunter2'\n",
                "repository.main.url is not given",
                "_URL",
            ),
            ("[repository.main]\nurl = '/x'\n", "repository.main.password is not", "password_file"),
            (
                "[repository.main]\nurl = 's3:https://hunter2@s/b'\npassword = 'p'",
                "has an @",
                "s3:",
            ),
            (&format!("{good}password_file = '/y'"), "are both given", "leave out one"),
            (
                &format!("{good}upload_limit = 0"),
                "upload_limit lets nothing through",
                "leave it out",
            ),
            (&format!("{good}connections = 0"), "repository.main.connections", "1 or more"),
            (&format!("{good}region = 'r'"), "region means nothing", "s3:"),
            (&format!("{good}access_key_id = 'a'"), "one half of the key", "secret_access_key"),
            (
                "[repository.main]\nurl = 's3:http://a/b'\npassword = 'p'\nendpoint = 'http://c'",
                "the url names a server",
                "leave out one",
            ),
            (
                "[repository.main]\nurl = 's3:b'\npassword = 'p'\nendpoint = 'http://hunter2@c'",
                "endpoint is not the URL",
                "without credentials",
            ),
            (
                &format!("default_repository = 'mian'\n{good}"),
                "there is no mian",
                "did you mean main?",
            ),
            ("default_repository = 'main'\n", "there is no main", "[repository.main]"),
            ("[hook.db]\ntimeout = '5s'", "hook.db runs nothing", "before"),
            ("[hook.db]\nbefore = []", "it names no program", ""),
            ("[hook.db]\nbefore = ['']", "it names no program", ""),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.full_message().contains(message), "{message}: {}", error.full_message());
            assert!(error.hint_text().unwrap_or_default().contains(hint), "{hint}: {error:?}");
            assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
        }
        let two = format!("{good}[repository.other]\nurl = '/y'\npassword = 'p'\n");
        assert_eq!(read(&two).unwrap().config.default_repository, None, "nobody chooses for us");
    }

    #[test]
    fn a_password_file_that_is_missing_or_open_to_all_is_told_of() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        let text = format!("[repository.a]\nurl = '/x'\npassword_file = '{}'\n", path.display());
        let warnings = || read(&text).unwrap().config.warnings();
        let told = warnings();
        assert!(told[0].starts_with("repository.a.password_file: cannot read "), "{told:?}");
        std::fs::write(&path, "p").unwrap();
        let mode = |mode| std::fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        mode(0o644);
        let told = warnings();
        assert!(told[0].contains("everybody") && told[0].contains("chmod 600"), "{told:?}");
        mode(0o640);
        assert_eq!(warnings(), [""; 0]);
    }
}
