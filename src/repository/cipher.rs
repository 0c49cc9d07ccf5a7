//! The encryption of a repository's files, for those that rustic_core gives no way to write: locks, and
//! packs that are put in order.

use std::sync::Arc;

use aes256ctr_poly1305aes::aead::Aead;
use aes256ctr_poly1305aes::{Aes256CtrPoly1305Aes, Key, Nonce};
use rustic_core::repofile::MasterKey;
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::id::BackupId;

/// Bytes of a nonce, which stands before what it was used for.
const NONCE: usize = 16;

/// Seals and opens with a repository's master key.
#[derive(Clone)]
pub(super) struct Cipher(Arc<Aes256CtrPoly1305Aes>);

impl Cipher {
    pub(super) fn new(key: &MasterKey) -> Result<Self> {
        let bytes: Vec<u8> = [&key.encrypt[..], &key.mac.k, &key.mac.r].concat();
        let bytes: [u8; 64] = bytes
            .try_into()
            .map_err(|_| Error::corrupt("the repository's key has a wrong length"))?;
        Ok(Self(Arc::new(Aes256CtrPoly1305Aes::new(&Key::from(bytes)))))
    }

    pub(super) fn seal(&self, plain: &[u8]) -> Result<Vec<u8>> {
        let nonce = *uuid::Uuid::new_v4().as_bytes();
        let sealed = self.0.encrypt(&Nonce::from(nonce), plain);
        let sealed = sealed.map_err(|_| Error::internal("cannot encrypt"))?;
        Ok([&nonce[..], &sealed].concat())
    }

    pub(super) fn open(&self, sealed: &[u8]) -> Result<Vec<u8>> {
        let damaged = || Error::corrupt("it is damaged, or was encrypted with another key");
        let (nonce, sealed) = sealed.split_at_checked(NONCE).ok_or_else(damaged)?;
        self.0.decrypt(Nonce::from_slice(nonce), sealed).map_err(|_| damaged())
    }

    /// The content of a chunk or tree, if it has the id.
    pub(super) fn open_blob(&self, sealed: &[u8], compressed: bool, id: &str) -> Option<Vec<u8>> {
        let plain = self.open(sealed).ok()?;
        let plain = match compressed {
            true => zstd::decode_all(&plain[..]).ok()?,
            false => plain,
        };
        (digest(&plain) == id).then_some(plain)
    }
}

/// The id of a content.
pub(super) fn digest(bytes: &[u8]) -> String {
    BackupId::from_bytes(Sha256::digest(bytes).into()).to_string()
}
