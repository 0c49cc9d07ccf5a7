//! The table of keys.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use super::PREFIX;
use super::sections::{self, RepositoryConfig};
use super::settings::Settings;
use super::value::{LogFormat, LogLevel, NodeName, Value};
use crate::error::Result;
use crate::model::HookConfig;
use crate::name::{BackendName, HookName, RepositoryName};
use crate::units::{ByteSize, Percent};

/// One key.
#[derive(Debug)]
pub struct Key {
    /// Its name in the file: `state_dir`, or `loop.dir` for `dir` in the section `[loop]`. In a section
    /// whose name the user chooses it is the name within that.
    pub name: &'static str,
    /// What to write.
    pub form: &'static str,
    /// The value when nobody gives one.
    pub fallback: Fallback,
    /// Whether the value is never shown, and can be given as the name of a file that holds it.
    pub secret: bool,
    /// One sentence.
    pub help: &'static str,
    /// Checks a value and gives it as JSON.
    pub check: fn(&str) -> Result<serde_json::Value>,
}

/// The value of a key that nobody gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fallback {
    /// Always the same.
    Text(&'static str),
    /// A name in the directory that another key, earlier in the table, says.
    Below(&'static str, &'static str),
    /// The host's name.
    HostName,
    /// There is none: it has to be given.
    Required,
}

/// The environment variable of a key with this full name: `HOLDFAST_LOOP_DIR` for `loop.dir`.
pub(super) fn variable(name: &str) -> String {
    format!("{PREFIX}{}", name.replace(['.', '-'], "_").to_uppercase())
}

impl Key {
    /// A key whose values are `T`.
    pub(super) const fn new<T: Value>(
        name: &'static str,
        fallback: Fallback,
        help: &'static str,
    ) -> Self {
        Self {
            name,
            form: T::FORM,
            fallback,
            secret: T::SECRET,
            help,
            check: |text| T::parse(text).map(|value| value.json()),
        }
    }

    /// Whether `name` is this key's, or that of the file that holds its value.
    pub(super) fn takes(&self, name: &str) -> bool {
        self.name == name
            || self.secret && name.strip_suffix("_file").is_some_and(|name| name == self.name)
    }

    /// The environment variable: `HOLDFAST_LOOP_DIR` for `loop.dir`.
    pub fn variable(&self) -> String {
        variable(self.name)
    }

    /// The flag without its dashes: `loop-dir` for `loop.dir`.
    pub fn flag(&self) -> String {
        self.name.replace(['.', '_'], "-")
    }
}

macro_rules! keys {
    ($($field:ident: $type:ty = $name:literal, $fallback:expr, $help:literal;)*) => {
        /// Every key there is.
        pub const KEYS: &[Key] = &[$(Key::new::<$type>($name, $fallback, $help)),*];

        /// The checked values.
        #[derive(Debug, Clone)]
        pub struct Config {
            $(#[doc = $help] pub $field: $type,)*
            /// Where backups go.
            pub repositories: BTreeMap<RepositoryName, RepositoryConfig>,
            /// What runs around snapshots.
            pub hooks: BTreeMap<HookName, HookConfig>,
        }

        impl Config {
            /// Reads every key's value.
            ///
            /// # Errors
            /// A value that is not one, or that does not go with the others.
            pub fn from_settings(settings: &Settings) -> Result<Self> {
                let config = Self {
                    $($field: <$type as Value>::parse(settings.text($name)?)?,)*
                    repositories: sections::repositories(settings)?,
                    hooks: sections::hooks(settings)?,
                };
                config.with_default_repository()
            }
        }
    };
}

use Fallback::{Below, HostName, Text};

keys! {
    state_dir: PathBuf = "state_dir", Text("/var/lib/holdfast"),
        "The catalog and, unless told otherwise, the volumes: all that must outlive a reboot.";
    runtime_dir: PathBuf = "runtime_dir", Text("/run/holdfast"),
        "The lock and the admin socket: what a reboot may clear.";
    admin_socket: PathBuf = "admin_socket", Below("runtime_dir", "holdfast.sock"),
        "Where the command line reaches the daemon; open to root and to the group holdfast.";
    plugin_socket: PathBuf = "plugin_socket", Text("/run/docker/plugins/holdfast.sock"),
        "Where Docker reaches the daemon; its name is the driver's name in Docker.";
    mount_dir: PathBuf = "mount_dir", Below("state_dir", "mounts"),
        "Where volumes are mounted.";
    node: NodeName = "node", HostName,
        "This host's name in messages and to other nodes.";
    default_backend: BackendName = "default_backend", Text("loop"),
        "Where a volume goes that names no backend.";
    default_repository: Option<RepositoryName> = "default_repository", Text(""),
        "Where a backup goes that names no repository; where there is one repository it is that one.";
    backup_concurrency: NonZeroUsize = "backup.concurrency", Text("2"),
        "How many backups run at once into each repository.";
    trash_after: Duration = "trash_after", Text("7d"),
        "How long a volume removed with on-remove=trash can be had back.";
    mount_grace: Duration = "mount_grace", Text("130s"),
        "How long a container may take to start once it has mounted a volume; if it shows no use of it then, it is gone.";
    loop_enabled: bool = "loop.enabled", Text("true"),
        "Whether the backend loop is on.";
    loop_dir: PathBuf = "loop.dir", Below("state_dir", "loop"),
        "Where loop keeps its image files; on xfs or btrfs, snapshots and clones share blocks.";
    loop_default_size: ByteSize = "loop.default_size", Text("10G"),
        "The size of a volume that names none; an image takes only the room that is written.";
    loop_freeze_limit: Duration = "loop.freeze_limit", Text("10s"),
        "How long a mounted volume's writes may wait for a snapshot; one that needs longer is refused.";
    thin_data: Option<PathBuf> = "thin.data", Text(""),
        "The block device for the data of the pool of thin; turns the backend thin on.";
    thin_metadata: Option<PathBuf> = "thin.metadata", Text(""),
        "The block device for the pool's metadata; without it the one for the data is divided.";
    thin_file: Option<PathBuf> = "thin.file", Text(""),
        "The directory for a pool on files that grow, in place of devices; turns the backend thin on.";
    thin_size: ByteSize = "thin.size", Text("100G"),
        "The size of the data of a new pool on files; they take only the room that is written.";
    thin_chunk_size: ByteSize = "thin.chunk_size", Text("64K"),
        "The unit in which a new pool gives out room: 64K or a multiple of it, up to 1G.";
    thin_default_size: ByteSize = "thin.default_size", Text("10G"),
        "The size of a volume on thin that names none.";
    thin_low_water: Percent = "thin.low_water", Text("20%"),
        "A pool on files grows by itself when less than this share of its data is free.";
    thin_min_free: Percent = "thin.min_free", Text("10%"),
        "No volume or snapshot is made when less than this share of the pool is free.";
    log_level: LogLevel = "log.level", Text("info"),
        "How much the log tells.";
    log_format: LogFormat = "log.format", Text("text"),
        "How the log is written.";
}

#[cfg(test)]
pub(super) fn fallback_text(key: &Key) -> String {
    match key.fallback {
        Text("") => "none".to_owned(),
        Text(value) => format!("`{value}`"),
        Below(parent, leaf) => format!("`{leaf}` in `{parent}`"),
        HostName => "the host's name".to_owned(),
        Fallback::Required => "has to be given".to_owned(),
    }
}

/// The table of keys for the manual.
#[cfg(test)]
pub(super) fn reference() -> String {
    use std::fmt::Write as _;

    let mut text =
        String::from("| key | flag | variable | default | |\n| --- | --- | --- | --- | --- |\n");
    for key in KEYS {
        let fallback = fallback_text(key);
        let form = key.form.replace('|', "\\|");
        let _ = writeln!(
            text,
            "| `{}` | `--{} {form}` | `{}` | {fallback} | {} |",
            key.name,
            key.flag(),
            key.variable(),
            key.help
        );
    }
    let _ = writeln!(
        text,
        "| | `--config PATH` | `{}` | `{}` | The file itself; absent is fine unless it was named. |",
        super::FILE_VARIABLE,
        super::DEFAULT_FILE
    );
    text
}
