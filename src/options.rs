//! The options of a volume: the same keys wherever a user can write them.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::id::BackupRef;
use crate::keep::Keep;
use crate::name::{BackendName, HookName, RepositoryName, SnapshotRef, VolumeName};
use crate::timing::Timing;
use crate::units::ByteSize;

/// A filesystem that we make on a block device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "the filesystems' own names")]
pub enum FilesystemKind {
    Ext4,
    Xfs,
    Btrfs,
}

impl FilesystemKind {
    /// The name that the kernel and `mkfs` know it by.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
        }
    }

    /// The smallest device that its `mkfs` accepts (mkfs.xfs(8) since 5.19; mkfs.btrfs(8)).
    pub fn smallest(self) -> ByteSize {
        ByteSize::new(match self {
            Self::Ext4 => 1 << 20,
            Self::Xfs => 300 << 20,
            Self::Btrfs => 109 << 20,
        })
    }
}

impl fmt::Display for FilesystemKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for FilesystemKind {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "ext4" => Ok(Self::Ext4),
            "xfs" => Ok(Self::Xfs),
            "btrfs" => Ok(Self::Btrfs),
            other => Err(Error::invalid(format!("{other:?} is not a filesystem we can make"))
                .hint("use ext4, xfs or btrfs")),
        }
    }
}

/// What removing a volume does to its data.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnRemove {
    /// The data is deleted.
    #[default]
    Delete,
    /// The volume is forgotten; the data stays in the backend.
    Retain,
    /// The data is deleted after a while, and can be had back until then.
    Trash,
}

impl FromStr for OnRemove {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "delete" => Ok(Self::Delete),
            "retain" => Ok(Self::Retain),
            "trash" => Ok(Self::Trash),
            other => Err(Error::invalid(format!("{other:?} is not a way to remove a volume"))
                .hint("use delete, retain or trash")),
        }
    }
}

/// Where a new volume's content comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ContentSource {
    /// A snapshot's content.
    FromSnapshot(SnapshotRef),
    /// Another volume's content as it is now.
    CloneOf(VolumeName),
    /// A backup's content.
    FromBackup(BackupRef),
}

impl ContentSource {
    /// The volume that the content comes from, if it comes from one of this node.
    pub fn volume(&self) -> Option<&VolumeName> {
        match self {
            Self::FromSnapshot(reference) => Some(&reference.volume),
            Self::CloneOf(volume) => Some(volume),
            Self::FromBackup(_) => None,
        }
    }
}

/// Owner and mode that the root of a volume gets, once, when it is made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ownership {
    /// Numeric owner.
    pub uid: Option<u32>,
    /// Numeric group.
    pub gid: Option<u32>,
    /// Permission bits.
    pub mode: Option<u32>,
}

/// The options that a user gave, under their own names and checked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VolumeOptions {
    /// `backend`
    pub backend: Option<BackendName>,
    /// `size`
    pub size: Option<ByteSize>,
    /// `fs`
    pub filesystem: Option<FilesystemKind>,
    /// `mkfs-options`, split at blanks.
    pub mkfs_options: Vec<String>,
    /// `mount-options`, split at commas; without `ro` and `rw`, which are `read-only`.
    pub mount_options: Vec<String>,
    /// `uid`, `gid`, `mode`
    pub ownership: Ownership,
    /// `from-snapshot`, `clone-of`, `from-backup`
    pub source: Option<ContentSource>,
    /// `read-only`
    pub read_only: bool,
    /// `on-remove`
    pub on_remove: OnRemove,
    /// `snapshot-every`
    pub snapshot_every: Option<Timing>,
    /// `backup-every`
    pub backup_every: Option<Timing>,
    /// `keep`
    pub keep: Keep,
    /// `repository`
    pub repository: Option<RepositoryName>,
    /// `hook`
    pub hook: Option<HookName>,
    /// Everything above as text, under canonical keys; what an existing volume is compared with.
    given: BTreeMap<String, String>,
}

/// One key.
#[derive(Debug)]
pub struct OptionKey {
    /// Its name.
    pub name: &'static str,
    /// What to write.
    pub form: &'static str,
    /// What it means, in a line.
    pub help: &'static str,
}

/// The keys, in the order in which they are told. `fs` and `mkfs-options` mean something on block
/// backends only.
pub const KEYS: &[OptionKey] = &[
    key("backend", "NAME", "where the volume lives"),
    key("size", "SIZE", "how large it is: bytes or 10G, 512M ..."),
    key("fs", "ext4|xfs|btrfs", "its filesystem; ext4 if not given"),
    key("mkfs-options", "WORDS", "words for mkfs, when the filesystem is made"),
    key("mount-options", "LIST", "for each mount, with commas; ro means read-only=true"),
    key("read-only", "true|false", "every mount is read-only"),
    key("uid", "NUMBER", "owner of the volume's root, set once when it is new"),
    key("gid", "NUMBER", "group of the same"),
    key("mode", "OCTAL", "permissions of the same, such as 0750"),
    key("clone-of", "VOLUME", "begin with the content of another volume"),
    key("from-snapshot", "VOLUME@SNAPSHOT", "begin with the content of a snapshot"),
    key("from-backup", "ID", "begin with the content of a backup; its first digits are enough"),
    key(
        "on-remove",
        "delete|retain|trash",
        "removing it deletes the data and its snapshots; forgets it and keeps them; or deletes \
         them after trash_after",
    ),
    key(
        "snapshot-every",
        "TIME",
        "cut a snapshot again and again: 15m, 1h, 1d, 1w, or a cron line in UTC",
    ),
    key("backup-every", "TIME", "make a backup again and again, likewise"),
    key(
        "keep",
        "RULES",
        "how many of these are kept, of snapshots and backups each: 24h,7d,4w,12m,2y, or 3 for the \
         last three; all if not given",
    ),
    key("repository", "NAME", "where these backups go"),
    key("hook", "NAME", "what runs before and after each snapshot, as the configuration says"),
];

const fn key(name: &'static str, form: &'static str, help: &'static str) -> OptionKey {
    OptionKey { name, form, help }
}

/// Names by which stacks written for earlier plugins know our keys (Convoy, REX-Ray, Cloudstor).
const ALIASES: &[(&str, &str)] = &[
    ("driver", "backend"),
    ("fsType", "fs"),
    ("volumeType", "type"),
    ("ebstype", "type"),
    ("availabilityZone", "zone"),
    ("encryptionKey", "kms-key"),
    ("snapshotID", "from-snapshot"),
    ("backup", "from-backup"),
];

impl Ownership {
    /// Whether nothing is asked for.
    pub fn is_default(self) -> bool {
        self == Self::default()
    }
}

impl VolumeOptions {
    /// Reads the options that a user gave as keys and values.
    ///
    /// # Errors
    /// An unknown key (the known ones are listed), a value that is not one, or two sources of content.
    pub fn parse(given: &BTreeMap<String, String>) -> Result<Self> {
        let mut options = Self::default();
        for (key, value) in given {
            let canonical = ALIASES
                .iter()
                .find(|(alias, _)| alias == key)
                .map_or(key.as_str(), |(_, canonical)| canonical);
            options.set(canonical, value).map_err(|error| {
                let shown: String = key.chars().take(40).collect();
                error.context(format!("option {shown:?}"))
            })?;
            if options
                .given
                .insert(canonical.to_owned(), value.clone())
                .is_some_and(|v| v != *value)
            {
                return Err(Error::invalid(format!("option {canonical} is given twice")));
            }
        }
        options.settle_read_only()?;
        Ok(options)
    }

    /// `ro` and `rw` among the mount options are the option `read-only` in other words; as in
    /// mount(8), the last of them counts.
    fn settle_read_only(&mut self) -> Result<()> {
        let settles = |word: &&String| matches!(word.as_str(), "ro" | "rw");
        let Some(last) = self.mount_options.iter().rfind(settles) else { return Ok(()) };
        let read_only = last == "ro";
        if self.given.contains_key("read-only") && self.read_only != read_only {
            return Err(Error::invalid(format!(
                "mount-options says {last}, but read-only says {}",
                self.read_only
            ))
            .hint("leave out one of the two"));
        }
        self.read_only = read_only;
        self.mount_options.retain(|word| !settles(&word));
        self.given.remove("mount-options");
        if !self.mount_options.is_empty() {
            self.given.insert("mount-options".to_owned(), self.mount_options.join(","));
        }
        if read_only {
            self.given.insert("read-only".to_owned(), "true".to_owned());
        }
        Ok(())
    }

    fn set(&mut self, key: &str, value: &str) -> Result<()> {
        match key {
            "backend" => self.backend = Some(value.parse()?),
            "size" => self.size = Some(value.parse()?),
            "fs" => self.filesystem = Some(value.parse()?),
            "mkfs-options" => {
                self.mkfs_options = value.split_whitespace().map(str::to_owned).collect();
            }
            "mount-options" => self.mount_options = parse_mount_options(value)?,
            "uid" => self.ownership.uid = Some(parse_id(value)?),
            "gid" => self.ownership.gid = Some(parse_id(value)?),
            "mode" => self.ownership.mode = Some(parse_mode(value)?),
            "from-snapshot" => self.set_source(ContentSource::FromSnapshot(value.parse()?))?,
            "clone-of" => self.set_source(ContentSource::CloneOf(value.parse()?))?,
            "from-backup" => self.set_source(ContentSource::FromBackup(value.parse()?))?,
            "read-only" => self.read_only = parse_bool(value)?,
            "on-remove" => self.on_remove = value.parse()?,
            "snapshot-every" => self.snapshot_every = Some(value.parse()?),
            "backup-every" => self.backup_every = Some(value.parse()?),
            "keep" => self.keep = value.parse()?,
            "repository" => self.repository = Some(value.parse()?),
            "hook" => self.hook = Some(value.parse()?),
            _ => return Err(Error::invalid("there is no such option").hint(known_keys_hint(key))),
        }
        Ok(())
    }

    fn set_source(&mut self, source: ContentSource) -> Result<()> {
        if self.source.replace(source).is_some() {
            return Err(Error::invalid("a volume has one source of content")
                .hint("give one of clone-of, from-snapshot and from-backup"));
        }
        Ok(())
    }

    /// The options as given, under canonical keys.
    pub fn given(&self) -> &BTreeMap<String, String> {
        &self.given
    }

    /// Whether two values of the option `key` mean the same, `10G` and `10240M` for example.
    pub fn same_value(key: &str, one: &str, other: &str) -> bool {
        let canonical = |value: &str| {
            let given = BTreeMap::from([(key.to_owned(), value.to_owned())]);
            Self::parse(&given).map(|options| Self { given: BTreeMap::new(), ..options })
        };
        one == other
            || matches!((canonical(one), canonical(other)), (Ok(one), Ok(other)) if one == other)
    }
}

fn known_keys_hint(wrong: &str) -> String {
    let known = KEYS.iter().map(|key| key.name);
    let list = known.clone().collect::<Vec<_>>().join(", ");
    match nearest(wrong, known) {
        Some(near) => format!("did you mean {near}? The options are {list}"),
        None => format!("the options are {list}"),
    }
}

/// The word nearest to `wrong` among `known`, if one is near enough to be meant.
pub fn nearest<'a>(wrong: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    if wrong.len() > 64 {
        return None;
    }
    known
        .into_iter()
        .map(|word| (edit_distance(wrong, word), word))
        .min()
        .filter(|(distance, word)| *distance <= 1 + word.len() / 4)
        .map(|(_, word)| word)
}

/// Levenshtein's distance in bytes.
fn edit_distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = i;
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let replace = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replace.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

fn parse_id(value: &str) -> Result<u32> {
    // The highest id means "leave it" to chown(2).
    value.parse().ok().filter(|id| *id != u32::MAX).ok_or_else(|| {
        Error::invalid(format!("{value:?} is not a numeric id"))
            .hint("use a number: names mean different ids on different hosts")
    })
}

fn parse_mode(value: &str) -> Result<u32> {
    u32::from_str_radix(value, 8)
        .ok()
        .filter(|mode| *mode <= 0o7777 && !value.starts_with('+'))
        .ok_or_else(|| Error::invalid(format!("{value:?} is not an octal mode such as 0750")))
}

fn parse_bool(value: &str) -> Result<bool> {
    match value {
        "" | "true" | "yes" | "1" => Ok(true),
        "false" | "no" | "0" => Ok(false),
        other => Err(Error::invalid(format!("{other:?} is neither true nor false"))),
    }
}

fn parse_mount_options(value: &str) -> Result<Vec<String>> {
    let words: Vec<String> = value
        .split(',')
        .map(str::trim)
        .filter(|word| !word.is_empty())
        .map(str::to_owned)
        .collect();
    for word in &words {
        if !word.bytes().all(|b| b.is_ascii_graphic() && !b"\\\"'".contains(&b)) {
            return Err(Error::invalid(format!("{word:?} is not a mount option")));
        }
    }
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(pairs: &[(&str, &str)]) -> Result<VolumeOptions> {
        VolumeOptions::parse(
            &pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        )
    }

    #[test]
    fn every_known_key_is_read() {
        let options = parse(&[
            ("backend", "loop"),
            ("size", "1G"),
            ("fs", "xfs"),
            ("mkfs-options", "-m crc=1"),
            ("mount-options", "noatime, nodev"),
            ("uid", "70"),
            ("gid", "71"),
            ("mode", "0750"),
            ("read-only", "true"),
            ("on-remove", "trash"),
        ])
        .unwrap();
        assert_eq!(options.size, Some(ByteSize::GIB));
        assert_eq!(options.mkfs_options, ["-m", "crc=1"]);
        assert_eq!(options.mount_options, ["noatime", "nodev"]);
        assert_eq!(options.ownership.mode, Some(0o750));
        assert!(options.read_only);
    }

    #[test]
    fn the_table_has_the_keys_that_are_read() {
        for key in KEYS {
            let value = match key.name {
                "backend" | "clone-of" => "x",
                "size" => "1G",
                "fs" => "xfs",
                "uid" | "gid" | "mode" => "7",
                "from-snapshot" => "x@y",
                "from-backup" => "0123abcd",
                "on-remove" => "trash",
                "snapshot-every" | "backup-every" => "1h",
                "repository" | "hook" => "x",
                _ => "",
            };
            parse(&[(key.name, value)]).unwrap();
        }
        let error = parse(&[("nothing", "")]).unwrap_err();
        let hint = error.hint_text().unwrap();
        assert!(KEYS.iter().all(|key| hint.contains(key.name)), "{hint}");
    }

    #[test]
    fn an_unknown_key_lists_the_known_ones_and_the_nearest() {
        let error = parse(&[("sise", "1G")]).unwrap_err();
        let hint = error.hint_text().unwrap();
        assert!(hint.contains("did you mean size?") && hint.contains("on-remove"), "{hint}");
    }

    #[test]
    fn names_from_earlier_plugins_are_understood() {
        let options = parse(&[("driver", "loop"), ("fsType", "xfs")]).unwrap();
        assert_eq!(options.filesystem, Some(FilesystemKind::Xfs));
        assert_eq!(options.given()["backend"], "loop");
        assert!(parse(&[("driver", "loop"), ("backend", "thin")]).is_err());
        let id = "0123abcd";
        let source = parse(&[("backup", id)]).unwrap().source;
        assert_eq!(source, Some(ContentSource::FromBackup(id.parse().unwrap())));
    }

    #[test]
    fn hostile_values_are_refused() {
        for (key, value) in [
            ("uid", "root"),
            ("uid", "4294967295"),
            ("mode", "9999"),
            ("mode", "+7"),
            ("mode", "77777"),
            ("size", "-1"),
            ("fs", "ext4; rm -rf /"),
            ("mount-options", "x\0y"),
            ("backend", "../loop"),
            ("on-remove", "maybe"),
            ("from-backup", "abc"),
            ("from-backup", "../../etc"),
        ] {
            assert!(parse(&[(key, value)]).is_err(), "{key}={value}");
        }
        assert!(parse(&[("clone-of", "a"), ("from-snapshot", "a@b")]).is_err());
        assert!(parse(&[("clone-of", "a"), ("from-backup", "0123abcd")]).is_err());
    }

    #[test]
    fn read_only_in_the_words_of_mount_is_read_only() {
        let plain = parse(&[("read-only", "true"), ("mount-options", "noatime")]).unwrap();
        for words in ["ro,noatime", "noatime, ro", "rw,noatime,ro"] {
            assert_eq!(parse(&[("mount-options", words)]).unwrap(), plain, "{words}");
        }
        assert_eq!(parse(&[("mount-options", "ro")]).unwrap().given()["read-only"], "true");
        assert_eq!(parse(&[("mount-options", "rw")]).unwrap(), VolumeOptions::default());
        for (words, flag) in [("ro", "false"), ("rw", "true")] {
            let error = parse(&[("mount-options", words), ("read-only", flag)]).unwrap_err();
            assert!(error.full_message().contains(words), "{}", error.full_message());
        }
        assert!(VolumeOptions::same_value("mount-options", "rw,nodev", "nodev"));
    }

    #[test]
    fn values_that_mean_the_same_are_the_same() {
        assert!(VolumeOptions::same_value("size", "10G", "10240M"));
        assert!(!VolumeOptions::same_value("size", "10G", "11G"));
        assert!(VolumeOptions::same_value("mode", "0750", "750"));
        assert!(VolumeOptions::same_value("snapshot-every", "24h", "1d"));
        assert!(VolumeOptions::same_value("keep", "7d,24h", "24h,7d"));
        assert!(!VolumeOptions::same_value("backup-every", "1d", "@daily"));
    }
}
