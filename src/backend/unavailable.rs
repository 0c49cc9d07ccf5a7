//! What stands for a backend that cannot be used until the daemon is started again. Its volumes are
//! known and told of; whatever would need their data fails and says why.

use async_trait::async_trait;

use super::{
    Attachment, Backend, BackendKind, BackendStatus, Description, Found, Locator, Presence, Scope,
    Usage,
};
use crate::error::{Error, ErrorKind, Result};
use crate::id::{StorageId, VolumeUuid};
use crate::model::{Outcome, Volume};
use crate::name::BackendName;
use crate::units::ByteSize;

/// What is known of a backend without opening it.
#[derive(Debug, Clone)]
pub struct About {
    /// The name by which users choose it.
    pub name: BackendName,
    /// Devices or directories.
    pub kind: BackendKind,
    /// From where its volumes can be reached.
    pub scope: Scope,
    /// The size of a volume when the user names none.
    pub default_size: Option<ByteSize>,
    /// Where it should keep its volumes.
    pub place: String,
}

/// A backend whose every call fails for the same reason.
#[derive(Debug)]
pub struct UnavailableBackend {
    about: About,
    why: Error,
}

impl UnavailableBackend {
    /// In the place of the backend that cannot be used because of `error`.
    pub fn new(about: About, error: &Error) -> Self {
        let hint = error.hint_text().map_or_else(
            || format!("mend what is wrong at {} and restart the daemon", about.place),
            str::to_owned,
        );
        let why = error
            .again()
            .context(format!("the backend {} at {} cannot be used", about.name, about.place))
            .with_kind(ErrorKind::Unavailable)
            .hint(hint);
        Self { about, why }
    }

    fn fail<T>(&self) -> Result<T> {
        Err(self.why.again())
    }
}

#[async_trait]
impl Backend for UnavailableBackend {
    fn name(&self) -> &BackendName {
        &self.about.name
    }

    fn kind(&self) -> BackendKind {
        self.about.kind
    }

    fn scope(&self) -> Scope {
        self.about.scope
    }

    fn default_size(&self) -> Option<ByteSize> {
        self.about.default_size
    }

    fn storage(&self) -> Result<StorageId> {
        self.fail()
    }

    /// The one call that succeeds, because it tells what is wrong.
    async fn status(&self) -> Result<BackendStatus> {
        let hint = self.why.hint_text().map(|hint| format!("; {hint}")).unwrap_or_default();
        Ok(BackendStatus {
            location: self.about.place.clone(),
            warnings: vec![format!("{}{hint}", self.why.full_message())],
            ..BackendStatus::default()
        })
    }

    async fn create(&self, _volume: &Volume) -> Result<Outcome> {
        self.fail()
    }

    async fn delete(&self, _volume: VolumeUuid) -> Result<Outcome> {
        self.fail()
    }

    async fn delete_generation(&self, _locator: Locator) -> Result<Outcome> {
        self.fail()
    }

    async fn attach(&self, _locator: Locator) -> Result<Attachment> {
        self.fail()
    }

    async fn detach(&self, _locator: Locator) -> Result<Outcome> {
        self.fail()
    }

    async fn inspect(&self, _locator: Locator) -> Result<Presence> {
        self.fail()
    }

    async fn usage(&self, _locator: Locator) -> Result<Usage> {
        self.fail()
    }

    async fn describe(&self, _description: &Description) -> Result<()> {
        self.fail()
    }

    async fn survey(&self) -> Result<Vec<Found>> {
        self.fail()
    }
}
