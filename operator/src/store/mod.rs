//! Backups in an object store.
//!
//! | | |
//! | --- | --- |
//! | comes in | an `EtcdBackupStore` with its Secret, and a [`Source`] of bytes that proves itself at its end |
//! | goes out | `<prefix>/<backup>-<uid8>/snapshot.db` and, last of all, `manifest.json` beside it; back again, a file |
//! | may touch | the object store; the API only in [`Store::open`] and [`publish_availability`]; one file in [`Store::fetch`] |
//!
//! **A backup without its manifest does not exist.** The manifest is written by a conditional put after the
//! snapshot was read back and its hash compared, so whoever lists manifests sees whole backups only.
//!
//! No error, log line or `Debug` output of this room holds a credential: the server's own error bodies, which
//! may quote the access key, are reduced to their error code ([`error`]).

mod access;
mod availability;
mod clock;
mod clouds;
mod connect;
mod error;
mod failure;
mod fetch;
mod files;
mod ground;
mod hear;
mod keep;
mod keys;
mod list;
mod manifest;
mod open;
mod pack;
pub mod pki;
mod probe;
mod remove;
mod sweep;
#[cfg(test)]
mod testing;
mod upload;
mod versions;
mod whole;

use std::hash::{BuildHasher as _, Hasher as _};
use std::sync::Arc;
use std::time::Duration;

use object_store::ObjectStore;
use object_store::path::Path;

pub use access::{Access, Credentials};
pub use availability::{Fared, publish_availability};
pub use clock::Reading;
pub use error::{StoreError, UploadError};
pub use failure::{Failure, Kind};
pub use keep::Kept;
pub use keys::Identities;
pub use list::Listed;
pub use manifest::{BackupKey, FORMAT, KeyError, KeyHash, Manifest, Object, folder};
pub use open::{Passphrase, Secrets};
pub use pki::{PkiError, PkiFile};
pub(crate) use upload::hex;
pub use upload::{Fingerprint, PART_SIZE, Piece, Source};

use error::Place;
use pack::Packing;
use sweep::Uploads;

/// A place for backups.
///
/// Cheap to clone. Holds no connection while nothing is asked of it for a minute and a half.
#[derive(Clone)]
pub struct Store {
    place: Arc<Place>,
    prefix: Path,
    packing: Packing,
    /// Bytes a second that are read for a backup.
    limit: Option<u64>,
    identities: Identities,
    /// For data: retries for most of a minute, so that a server's restart does not cost a backup.
    objects: Arc<dyn ObjectStore>,
    /// For [`Store::probe`]: answers soon, well or not.
    brisk: Arc<dyn ObjectStore>,
    /// For [`Store::sweep`].
    uploads: Uploads,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // By hand: the client inside knows the credentials.
        f.debug_struct("Store")
            .field("place", &self.place)
            .field("prefix", &self.prefix.as_ref())
            .finish_non_exhaustive()
    }
}

impl Store {
    /// The name of the `EtcdBackupStore`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.place.store
    }

    /// What its server's last answer said of the time; none before the first one, and of a directory.
    #[must_use]
    pub fn clock(&self) -> Option<Reading> {
        self.place.heard.clock.last()
    }

    /// The field of its spec that says below what its backups lie.
    #[must_use]
    pub fn prefix_field(&self) -> &'static str {
        self.place.kind.words().prefix
    }

    /// The server, in words.
    #[must_use]
    pub fn endpoint(&self) -> &str {
        &self.place.endpoint
    }

    /// What opens its encrypted backups inside the cluster; none where the keys are kept elsewhere.
    #[must_use]
    pub fn identities(&self) -> &Identities {
        &self.identities
    }

    /// True when it encrypts what it keeps.
    #[must_use]
    pub fn encrypts(&self) -> bool {
        self.packing.lock.is_some()
    }

    /// What a store that does not encrypt has to say about what must be encrypted.
    pub(crate) fn wants_encryption(&self) -> StoreError {
        self.failure(Failure::EncryptionWanted)
    }

    /// Where the backup of this name and UID lies, or would lie.
    #[must_use]
    pub fn key(&self, backup: &str, uid: &str) -> BackupKey {
        BackupKey::new(&self.prefix, backup, uid)
    }

    /// `s3://bucket/key`, `gs://bucket/key`, `az://container/key`, or `file:///path/key`.
    #[must_use]
    pub fn uri(&self, location: &Path) -> String {
        format!("{}{location}", self.place.root)
    }

    fn error(&self, doing: &'static str, e: &object_store::Error) -> StoreError {
        self.place.error(doing, e)
    }

    /// The most bytes a second that are read for a backup.
    pub(crate) const fn pace(&self) -> Option<u64> {
        self.limit
    }

    fn failure(&self, failure: Failure) -> StoreError {
        StoreError::new(&self.place.store, failure)
    }

    /// `future` within `limit`.
    async fn within<T>(
        &self,
        limit: Duration,
        doing: &'static str,
        future: impl Future<Output = object_store::Result<T>>,
    ) -> Result<T, StoreError> {
        match tokio::time::timeout(limit, future).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(e)) => Err(self.error(doing, &e)),
            Err(_) => Err(self.place.timed_out(doing, limit)),
        }
    }

    #[cfg(test)]
    fn from_objects(objects: Arc<dyn ObjectStore>, prefix: &str) -> Self {
        Self {
            place: Arc::new(Place {
                kind: Kind::S3,
                store: "test".to_owned(),
                root: "s3://bucket/".to_owned(),
                bucket: "bucket".to_owned(),
                endpoint: "memory".to_owned(),
                region: "nowhere".to_owned(),
                secret: "secret".to_owned(),
                heard: Default::default(),
            }),
            prefix: Path::from(prefix),
            packing: Packing::default(),
            limit: None,
            identities: Identities::none(),
            brisk: objects.clone(),
            objects,
            uploads: Uploads::Unknown,
        }
    }
}

/// 128 bits in hexadecimal that nobody else has. Unique, not secret.
pub(crate) fn unique() -> String {
    // RandomState is keyed from the operating system's randomness.
    let half = || std::hash::RandomState::new().build_hasher().finish();
    format!("{:016x}{:016x}", half(), half())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_ids_are_the_same() {
        assert_ne!(unique(), unique());
        assert_eq!(unique().len(), 32);
    }
}
