//! Identifiers: each thing's id is a type of its own, so that one cannot pass for another.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::error::{Error, Result};

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(
            Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(Uuid);

        impl $name {
            /// The id with this UUID.
            pub const fn from_uuid(uuid: Uuid) -> Self {
                Self(uuid)
            }

            /// The bare UUID.
            pub const fn uuid(self) -> Uuid {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.hyphenated().fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = Error;

            fn from_str(text: &str) -> Result<Self> {
                Uuid::try_parse(text)
                    .map(Self)
                    .map_err(|_| Error::invalid(format!("{text:?} is not a UUID")))
            }
        }
    };
}

uuid_id! {
    /// A volume, whatever its name is or becomes.
    VolumeUuid
}
uuid_id! {
    /// A snapshot.
    SnapshotUuid
}
uuid_id! {
    /// A change in progress.
    OperationId
}
uuid_id! {
    /// A pool of storage that volumes share.
    PoolUuid
}
uuid_id! {
    /// Storage on which a backend keeps volumes: a directory on one disk, a pool. Stays the same
    /// wherever it is mounted.
    StorageId
}
uuid_id! {
    /// One run of the kernel: changes at each boot (`/proc/sys/kernel/random/boot_id`).
    BootId
}

/// Which content a volume holds: grows by one each time the content is replaced as a whole, so that
/// what a backend keeps for the old content and for the new one have different names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Generation(u64);

impl Generation {
    /// The content that a volume is created with.
    pub const FIRST: Self = Self(1);

    /// The generation after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }

    /// The number, for names.
    pub const fn number(self) -> u64 {
        self.0
    }

    /// The generation with this number.
    pub const fn from_number(number: u64) -> Self {
        Self(number)
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A backup: the id of its snapshot file in a repository, 64 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BackupId([u8; 32]);

impl BackupId {
    /// The id of these bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Its bytes.
    pub const fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The first eight digits, by which people tell backups apart.
    pub fn short(self) -> String {
        self.to_string()[..8].to_owned()
    }
}

impl fmt::Display for BackupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for BackupId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = || Error::invalid(format!("{text:?} is not the id of a backup"));
        let digits: BackupRef = text.parse().map_err(|_| wrong())?;
        let mut bytes = [0; 32];
        if digits.0.len() != 2 * bytes.len() {
            return Err(wrong());
        }
        for (byte, pair) in bytes.iter_mut().zip(digits.0.as_bytes().chunks(2)) {
            let pair = std::str::from_utf8(pair).map_err(|_| wrong())?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| wrong())?;
        }
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for BackupId {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<BackupId> for String {
    fn from(id: BackupId) -> Self {
        id.to_string()
    }
}

/// A backup as users name it: as many of the first digits of its id as tell it from the others, and no
/// fewer than four.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BackupRef(String);

impl BackupRef {
    /// Whether `id` begins so.
    pub fn names(&self, id: BackupId) -> bool {
        id.to_string().starts_with(&self.0)
    }
}

impl fmt::Display for BackupRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for BackupRef {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let digits = text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        if digits && (4..=64).contains(&text.len()) {
            return Ok(Self(text.to_owned()));
        }
        let shown: String = text.chars().take(70).collect();
        Err(Error::invalid(format!("{shown:?} is not the id of a backup"))
            .hint("see `holdfast backup ls`; its first digits are enough"))
    }
}

impl TryFrom<String> for BackupRef {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<BackupRef> for String {
    fn from(reference: BackupRef) -> Self {
        reference.0
    }
}

impl From<BackupId> for BackupRef {
    fn from(id: BackupId) -> Self {
        Self(id.to_string())
    }
}

/// A device of a dm-thin pool: a number of 24 bits that the pool's manager chooses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct ThinId(u32);

impl ThinId {
    /// The largest id (`MAX_DEV_ID` of the kernel's dm-thin.c).
    pub const MAX: Self = Self((1 << 24) - 1);

    /// The number, for the kernel.
    pub const fn number(self) -> u32 {
        self.0
    }
}

impl TryFrom<u32> for ThinId {
    type Error = Error;

    fn try_from(number: u32) -> Result<Self> {
        if number > Self::MAX.0 {
            return Err(Error::invalid(format!("{number} is not the id of a thin device"))
                .hint(format!("the largest is {}", Self::MAX)));
        }
        Ok(Self(number))
    }
}

impl From<ThinId> for u32 {
    fn from(id: ThinId) -> Self {
        id.0
    }
}

impl fmt::Display for ThinId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Docker's name for one container's use of a volume: up to 256 printable ASCII characters, none of
/// them a space.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MountId(String);

impl MountId {
    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for MountId {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        if text.is_empty() {
            return Err(Error::invalid("the mount id is empty"));
        }
        if text.len() > 256 || !text.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(Error::invalid("a mount id is 1 to 256 printable ASCII characters"));
        }
        Ok(Self(text))
    }
}

impl FromStr for MountId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        text.to_owned().try_into()
    }
}

impl From<MountId> for String {
    fn from(id: MountId) -> Self {
        id.0
    }
}

impl fmt::Display for MountId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
