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

mod availability;
mod connect;
mod error;
mod fetch;
mod files;
mod keys;
mod list;
mod manifest;
mod probe;
mod remove;
mod upload;

use std::hash::{BuildHasher as _, Hasher as _};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use lockkeeper_crds::{EtcdBackupStore, EtcdBackupStoreSpec};
use object_store::ObjectStore;
use object_store::path::Path;

pub use availability::publish_availability;
pub use connect::Credentials;
pub use error::{Failure, StoreError, UploadError};
pub use keys::Identities;
pub use list::Listed;
pub use manifest::{BackupKey, FORMAT, Manifest};
pub(crate) use upload::hex;
pub use upload::{Fingerprint, PART_SIZE, Piece, Source};

use connect::{Patience, connect};
use error::Place;

/// Longest that one call of the API may take.
const API_LIMIT: Duration = Duration::from_secs(10);

/// The keys of the Secret that `spec.s3.credentialsSecret` names.
const ACCESS_KEY_ID: &str = "AWS_ACCESS_KEY_ID";
const SECRET_ACCESS_KEY: &str = "AWS_SECRET_ACCESS_KEY";

/// A place for backups.
///
/// Cheap to clone. Holds no connection while nothing is asked of it for a minute and a half.
#[derive(Clone)]
pub struct Store {
    place: Arc<Place>,
    prefix: Path,
    identities: Identities,
    /// For data: retries for most of a minute, so that a server's restart does not cost a backup.
    objects: Arc<dyn ObjectStore>,
    /// For [`Store::probe`]: answers soon, well or not.
    brisk: Arc<dyn ObjectStore>,
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
    /// Reads `EtcdBackupStore` `name` and its Secret, and makes a client of them. Asks nothing of the store
    /// itself: [`Store::probe`] does.
    ///
    /// # Errors
    /// When one of the two objects is missing, incomplete or cannot be read.
    pub async fn open(client: &kube::Client, namespace: &str, name: &str) -> Result<Self, StoreError> {
        let fail = |failure| StoreError::new(name, failure);
        let stores: Api<EtcdBackupStore> = Api::namespaced(client.clone(), namespace);
        let store = read("EtcdBackupStore", stores.get_opt(name))
            .await
            .map_err(fail)?
            .ok_or_else(|| {
                fail(Failure::Missing {
                    namespace: namespace.to_owned(),
                })
            })?;
        let secret_name = store.spec.s3.credentials_secret.name.as_str();
        let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
        let secret = read("Secret", secrets.get_opt(secret_name))
            .await
            .map_err(fail)?
            .ok_or_else(|| {
                fail(Failure::Secret {
                    secret: secret_name.to_owned(),
                    problem: format!("does not exist in namespace {namespace}"),
                })
            })?;
        let credentials = key_pair(&secret, secret_name).map_err(fail)?;
        Self::from_spec(name, &store.spec, &credentials)
    }

    /// The same without an API.
    ///
    /// # Errors
    /// When a field of the spec makes no sense; it is named.
    pub fn from_spec(
        name: &str,
        spec: &EtcdBackupStoreSpec,
        credentials: &Credentials,
    ) -> Result<Self, StoreError> {
        let fail = |failure| StoreError::new(name, failure);
        let s3 = &spec.s3;
        let prefix = Path::parse(&s3.prefix).map_err(|e| {
            fail(Failure::Spec {
                field: "spec.s3.prefix",
                problem: e.to_string(),
            })
        })?;
        Ok(Self {
            place: Arc::new(Place {
                store: name.to_owned(),
                bucket: s3.bucket.clone(),
                endpoint: s3
                    .endpoint
                    .clone()
                    .unwrap_or_else(|| format!("Amazon S3 in {}", s3.region)),
                region: s3.region.clone(),
                secret: s3.credentials_secret.name.clone(),
            }),
            objects: Arc::new(connect(s3, credentials, Patience::DATA).map_err(fail)?),
            brisk: Arc::new(connect(s3, credentials, Patience::PROBE).map_err(fail)?),
            prefix,
            identities: Identities::none(),
        })
    }

    /// The name of the `EtcdBackupStore`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.place.store
    }

    /// What opens its encrypted backups inside the cluster; none where the keys are kept elsewhere.
    #[must_use]
    pub fn identities(&self) -> &Identities {
        &self.identities
    }

    /// Where the backup of this name and UID lies, or would lie.
    #[must_use]
    pub fn key(&self, backup: &str, uid: &str) -> BackupKey {
        BackupKey::new(&self.prefix, backup, uid)
    }

    /// `s3://bucket/key`.
    #[must_use]
    pub fn uri(&self, location: &Path) -> String {
        format!("s3://{}/{location}", self.place.bucket)
    }

    fn error(&self, doing: &'static str, e: &object_store::Error) -> StoreError {
        self.place.error(doing, e)
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
                store: "test".to_owned(),
                bucket: "bucket".to_owned(),
                endpoint: "memory".to_owned(),
                region: "nowhere".to_owned(),
                secret: "secret".to_owned(),
            }),
            prefix: Path::from(prefix),
            identities: Identities::none(),
            brisk: objects.clone(),
            objects,
        }
    }
}

async fn read<T>(what: &'static str, call: impl Future<Output = kube::Result<T>>) -> Result<T, Failure> {
    match tokio::time::timeout(API_LIMIT, call).await {
        Ok(Ok(found)) => Ok(found),
        Ok(Err(e)) => Err(Failure::Api {
            what,
            detail: e.to_string(),
        }),
        Err(_) => Err(Failure::Api {
            what,
            detail: format!("no answer within {} s", API_LIMIT.as_secs()),
        }),
    }
}

fn key_pair(secret: &Secret, name: &str) -> Result<Credentials, Failure> {
    Ok(Credentials {
        access_key_id: secret_key(secret, name, ACCESS_KEY_ID)?,
        secret_access_key: secret_key(secret, name, SECRET_ACCESS_KEY)?,
    })
}

fn secret_key(secret: &Secret, name: &str, key: &'static str) -> Result<String, Failure> {
    let fail = |problem: String| Failure::Secret {
        secret: name.to_owned(),
        problem,
    };
    let value = secret
        .data
        .as_ref()
        .and_then(|data| data.get(key))
        .ok_or_else(|| fail(format!("has no key {key}")))?;
    // A trailing newline is what `echo secret | base64` leaves behind; no credential has one.
    let value = std::str::from_utf8(&value.0)
        .map_err(|_| fail(format!("holds something other than text under {key}")))?
        .trim();
    if value.is_empty() {
        return Err(fail(format!("holds nothing under {key}")));
    }
    Ok(value.to_owned())
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
    use k8s_openapi::ByteString;

    #[test]
    fn a_secret_that_lacks_a_key_is_named_with_the_key() {
        let secret = Secret {
            data: Some([(ACCESS_KEY_ID.to_owned(), ByteString(b"id\n".to_vec()))].into()),
            ..Secret::default()
        };
        assert_eq!(secret_key(&secret, "s3", ACCESS_KEY_ID).unwrap(), "id");
        let failure = secret_key(&secret, "s3", SECRET_ACCESS_KEY).unwrap_err();
        let sentence = StoreError::new("main", failure).to_string();
        assert!(
            sentence.contains("Secret s3 has no key AWS_SECRET_ACCESS_KEY"),
            "{sentence}"
        );
    }

    #[test]
    fn no_two_ids_are_the_same() {
        assert_ne!(unique(), unique());
        assert_eq!(unique().len(), 32);
    }
}
