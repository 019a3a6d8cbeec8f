//! A store, from its spec and the Secrets that it names.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use lockkeeper_crds::{Encryption, EtcdBackupStore, EtcdBackupStoreSpec, LocalReference, S3};
use object_store::path::Path;

use super::clock::Clock;
use super::connect::{Patience, connect, directory};
use super::error::Place;
use super::keys::Lock;
use super::pack::Packing;
use super::sweep::Uploads;
use super::{Credentials, Failure, Identities, Store, StoreError};

/// Longest that one call of the API may take.
const API_LIMIT: Duration = Duration::from_secs(10);

/// The keys of the Secret that `spec.s3.credentialsSecret` names.
pub(super) const ACCESS_KEY_ID: &str = "AWS_ACCESS_KEY_ID";
pub(super) const SECRET_ACCESS_KEY: &str = "AWS_SECRET_ACCESS_KEY";

/// The key of the Secret that `spec.encryption.passphraseSecret` names.
const PASSPHRASE: &str = "passphrase";

/// The key of the Secret that `spec.encryption.identitySecret` names.
const IDENTITY: &str = "identity";

/// What the Secrets that a store names hold.
#[derive(Clone, Debug, Default)]
pub struct Secrets {
    /// Of `spec.s3.credentialsSecret`; none: the environment says who we are.
    pub credentials: Option<Credentials>,
    /// Of `spec.encryption.passphraseSecret`.
    pub passphrase: Option<Passphrase>,
    /// Of `spec.encryption.identitySecret`, or given by a person.
    pub identities: Identities,
}

impl From<Credentials> for Secrets {
    fn from(credentials: Credentials) -> Self {
        Self {
            credentials: Some(credentials),
            ..Self::default()
        }
    }
}

impl From<&Credentials> for Secrets {
    fn from(credentials: &Credentials) -> Self {
        credentials.clone().into()
    }
}

/// Text that does not print itself.
#[derive(Clone)]
pub struct Passphrase(pub String);

impl std::fmt::Debug for Passphrase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Passphrase(…)")
    }
}

impl Store {
    /// Reads `EtcdBackupStore` `name` and its Secrets, and makes a client of them. Asks nothing of the store
    /// itself: [`Store::probe`] does.
    ///
    /// # Errors
    /// When one of the objects is missing, incomplete or cannot be read.
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
        let secrets = Secrets::read(client, namespace, &store.spec)
            .await
            .map_err(fail)?;
        Self::from_spec(name, &store.spec, secrets)
    }

    /// The same without an API.
    ///
    /// # Errors
    /// When a field of the spec makes no sense; it is named.
    pub fn from_spec(
        name: &str,
        spec: &EtcdBackupStoreSpec,
        secrets: impl Into<Secrets>,
    ) -> Result<Self, StoreError> {
        let fail = |failure| StoreError::new(name, failure);
        let secrets = secrets.into();
        let packing = Packing {
            compression: spec.compression,
            lock: spec
                .encryption
                .as_ref()
                .map(|e| lock(e, secrets.passphrase.as_ref()))
                .transpose()
                .map_err(fail)?,
        };
        let mut identities = secrets.identities;
        if let Some(passphrase) = &secrets.passphrase {
            identities = identities.with_passphrase(&passphrase.0);
        }
        let limit = spec
            .limit_bytes_per_second
            .and_then(|limit| u64::try_from(limit).ok());
        let ground = match (&spec.s3, &spec.directory) {
            (Some(s3), None) => Ground::bucket(name, s3, secrets.credentials.as_ref()),
            (None, Some(at)) => Ground::directory(name, &at.path),
            _ => Err(Failure::Spec {
                field: "spec",
                problem: "must name one place, spec.s3 or spec.directory, and not both".to_owned(),
            }),
        };
        let Ground {
            place,
            prefix,
            objects,
            brisk,
            uploads,
        } = ground.map_err(fail)?;
        Ok(Self {
            place: Arc::new(place),
            prefix,
            packing,
            limit,
            identities,
            objects,
            brisk,
            uploads,
        })
    }
}

/// What a store stands on.
struct Ground {
    place: Place,
    prefix: Path,
    objects: Arc<dyn object_store::ObjectStore>,
    brisk: Arc<dyn object_store::ObjectStore>,
    uploads: Uploads,
}

impl Ground {
    fn bucket(store: &str, s3: &S3, credentials: Option<&Credentials>) -> Result<Self, Failure> {
        let prefix = Path::parse(&s3.prefix).map_err(|e| Failure::Spec {
            field: "spec.s3.prefix",
            problem: e.to_string(),
        })?;
        let secret = s3.credentials_secret.as_ref();
        let place = Place {
            store: store.to_owned(),
            root: format!("s3://{}/", s3.bucket),
            directory: None,
            bucket: s3.bucket.clone(),
            endpoint: s3
                .endpoint
                .clone()
                .unwrap_or_else(|| format!("Amazon S3 in {}", s3.region)),
            region: s3.region.clone(),
            secret: secret.map_or_else(
                || "(none: spec.s3.credentialsSecret names none)".to_owned(),
                |s| s.name.clone(),
            ),
            clock: Clock::default(),
        };
        let data = Arc::new(connect(s3, credentials, Patience::DATA, &place.clock)?);
        let brisk = Arc::new(connect(s3, credentials, Patience::PROBE, &place.clock)?);
        Ok(Self {
            place,
            prefix,
            uploads: Uploads::of_bucket(data.clone(), s3)?,
            objects: data,
            brisk,
        })
    }

    fn directory(store: &str, path: &str) -> Result<Self, Failure> {
        let objects = Arc::new(directory(path)?);
        let place = Place {
            store: store.to_owned(),
            root: format!("file://{}/", path.trim_end_matches('/')),
            directory: Some(path.to_owned()),
            bucket: String::new(),
            endpoint: path.to_owned(),
            region: String::new(),
            secret: String::new(),
            clock: Clock::default(),
        };
        Ok(Self {
            place,
            prefix: Path::default(),
            brisk: objects.clone(),
            objects,
            uploads: Uploads::of_directory(path),
        })
    }
}

fn lock(encryption: &Encryption, passphrase: Option<&Passphrase>) -> Result<Lock, Failure> {
    match (&encryption.passphrase_secret, passphrase) {
        (None, _) if !encryption.recipients.is_empty() => Lock::recipients(&encryption.recipients),
        (Some(secret), Some(text)) if encryption.recipients.is_empty() => {
            Lock::passphrase(&text.0, &secret.name)
        }
        (Some(secret), None) if encryption.recipients.is_empty() => Ok(Lock::Missing(secret.name.clone())),
        _ => Err(Failure::Spec {
            field: "spec.encryption",
            problem: "must name recipients or a passphraseSecret, and not both".to_owned(),
        }),
    }
}

impl Secrets {
    async fn read(
        client: &kube::Client,
        namespace: &str,
        spec: &EtcdBackupStoreSpec,
    ) -> Result<Self, Failure> {
        let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
        let named = |reference: Option<&LocalReference>, field: &'static str| {
            let name = reference.map(|r| r.name.clone());
            let api = api.clone();
            async move {
                let Some(name) = name else { return Ok(None) };
                let found = read("Secret", api.get_opt(&name)).await?;
                let found = found.ok_or_else(|| Failure::Key {
                    secret: name.clone(),
                    problem: format!("does not exist in namespace {namespace}: make it, or correct {field}"),
                })?;
                Ok::<_, Failure>(Some((name, found)))
            }
        };
        let s3 = spec.s3.as_ref().and_then(|s3| s3.credentials_secret.as_ref());
        let credentials = named(s3, "spec.s3.credentialsSecret").await.map_err(of_bucket)?;
        let encryption = spec.encryption.as_ref();
        let passphrase = encryption.and_then(|e| e.passphrase_secret.as_ref());
        let passphrase = named(passphrase, "spec.encryption.passphraseSecret").await?;
        let identity = encryption.and_then(|e| e.identity_secret.as_ref());
        let identity = named(identity, "spec.encryption.identitySecret").await?;
        Ok(Self {
            credentials: credentials
                .map(|(name, secret)| key_pair(&secret, &name))
                .transpose()?,
            passphrase: passphrase
                .map(|(name, secret)| text(&secret, &name, PASSPHRASE).map(Passphrase))
                .transpose()?,
            identities: match identity {
                Some((name, secret)) => {
                    Identities::parse(&text(&secret, &name, IDENTITY)?, &format!("Secret {name}"))?
                }
                None => Identities::none(),
            },
        })
    }
}

pub(super) async fn read<T>(
    what: &'static str,
    call: impl Future<Output = kube::Result<T>>,
) -> Result<T, Failure> {
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

/// The static keys that a Secret holds.
pub(super) fn key_pair(secret: &Secret, name: &str) -> Result<Credentials, Failure> {
    let field = |key| text(secret, name, key).map_err(of_bucket);
    Ok(Credentials {
        access_key_id: field(ACCESS_KEY_ID)?,
        secret_access_key: field(SECRET_ACCESS_KEY)?,
    })
}

fn of_bucket(failure: Failure) -> Failure {
    match failure {
        Failure::Key { secret, problem } => Failure::Secret { secret, problem },
        other => other,
    }
}

fn text(secret: &Secret, name: &str, key: &'static str) -> Result<String, Failure> {
    let fail = |problem: String| Failure::Key {
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
        assert_eq!(text(&secret, "s3", ACCESS_KEY_ID).unwrap(), "id");
        let failure = key_pair(&secret, "s3").unwrap_err();
        let sentence = StoreError::new("main", failure).to_string();
        assert!(
            sentence.contains("Secret s3 has no key AWS_SECRET_ACCESS_KEY")
                && sentence.contains("spec.s3.credentialsSecret"),
            "{sentence}"
        );
    }
}
