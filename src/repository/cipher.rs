//! The encryption and the names of a repository's files.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use aes256ctr_poly1305aes::aead::AeadInPlace;
use aes256ctr_poly1305aes::{Aes256CtrPoly1305Aes, Key, Nonce, Tag};
use bytes::Bytes;
use rustic_core::repofile::MasterKey;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::error::{Error, Result};
use crate::id::BackupId;

/// Bytes of a nonce, which stands before what it was used for, and of the tag behind that.
const NONCE: usize = 16;
const TAG: usize = 16;

/// Seals and opens with a repository's master key.
#[derive(Clone)]
pub(super) struct Cipher(Arc<Aes256CtrPoly1305Aes>);

impl fmt::Debug for Cipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Cipher")
    }
}

impl Cipher {
    pub(super) fn new(key: &MasterKey) -> Result<Self> {
        let bytes: Vec<u8> = [&key.encrypt[..], &key.mac.k, &key.mac.r].concat();
        let bytes: [u8; 64] = bytes
            .try_into()
            .map_err(|_| Error::corrupt("the repository's key has a wrong length"))?;
        Ok(Self(Arc::new(Aes256CtrPoly1305Aes::new(&Key::from(bytes)))))
    }

    pub(super) fn seal(&self, plain: &[u8]) -> Result<Vec<u8>> {
        let nonce = Nonce::from(*uuid::Uuid::new_v4().as_bytes());
        let mut sealed = Vec::with_capacity(NONCE + plain.len() + TAG);
        sealed.extend_from_slice(&nonce);
        sealed.extend_from_slice(plain);
        let tag = self.0.encrypt_in_place_detached(&nonce, &[], &mut sealed[NONCE..]);
        sealed.extend_from_slice(&tag.map_err(|_| Error::internal("cannot encrypt"))?);
        Ok(sealed)
    }

    pub(super) fn open(&self, sealed: &[u8]) -> Result<Vec<u8>> {
        let damaged = || Error::corrupt("it is damaged, or was encrypted with another key");
        let (nonce, rest) = sealed.split_at_checked(NONCE).ok_or_else(damaged)?;
        let (sealed, tag) = rest.split_last_chunk::<TAG>().ok_or_else(damaged)?;
        let mut plain = sealed.to_vec();
        let opened = self.0.decrypt_in_place_detached(
            Nonce::from_slice(nonce),
            &[],
            &mut plain,
            Tag::from_slice(tag),
        );
        opened.map_err(|_| damaged())?;
        Ok(plain)
    }
}

/// The SHA-256 of something stored, which is its name.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Digest(BackupId);

impl Digest {
    pub(super) fn of(bytes: &[u8]) -> Self {
        Self(BackupId::from_bytes(Sha256::digest(bytes).into()))
    }

    pub(super) fn of_all(parts: &[Bytes]) -> Self {
        let mut hasher = Sha256::new();
        parts.iter().for_each(|part| hasher.update(part));
        Self(BackupId::from_bytes(hasher.finalize().into()))
    }

    pub(super) fn bytes(&self) -> &[u8; 32] {
        self.0.bytes()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.short())
    }
}

impl FromStr for Digest {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        text.parse().map(Self)
    }
}

/// The same name as rustic_core has it.
impl TryFrom<Digest> for rustic_core::Id {
    type Error = Error;

    fn try_from(digest: Digest) -> Result<Self> {
        let id = digest.to_string().parse();
        id.map_err(|_| Error::internal("a digest that rustic_core does not take"))
    }
}

impl TryFrom<rustic_core::Id> for Digest {
    type Error = Error;

    fn try_from(id: rustic_core::Id) -> Result<Self> {
        id.to_hex().parse()
    }
}
