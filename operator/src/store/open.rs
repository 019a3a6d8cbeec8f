//! A store, from its spec and the Secrets that it names.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use lockkeeper_crds::{Encryption, EtcdBackupStore, EtcdBackupStoreSpec, LocalReference};

use super::access::text;
use super::ground::{At, Ground};
use super::keys::Lock;
use super::pack::Packing;
use super::{Access, Failure, Identities, Store, StoreError};

/// Bytes a second that are read for a backup unless the spec says otherwise: writes to etcd notice little of it
/// (BENCHMARKS.md), and 8 GiB take eleven minutes.
const DEFAULT_LIMIT: u64 = 12 << 20;

/// Longest that one call of the API may take.
const API_LIMIT: Duration = Duration::from_secs(10);

/// A server that leaves the first call unanswered is given up, and another one gets the next.
const API_TRIES: u32 = 2;

/// The key of the Secret that `spec.encryption.passphraseSecret` names.
const PASSPHRASE: &str = "passphrase";

/// The key of the Secret that `spec.encryption.identitySecret` names.
const IDENTITY: &str = "identity";

/// What the Secrets that a store names hold.
#[derive(Clone, Debug, Default)]
pub struct Secrets {
    /// Of `credentialsSecret`; none: the environment says who we are.
    pub credentials: Option<Access>,
    /// Of `spec.encryption.passphraseSecret`.
    pub passphrase: Option<Passphrase>,
    /// Of `spec.encryption.identitySecret`, or given by a person.
    pub identities: Identities,
}

impl<T: Into<Access>> From<T> for Secrets {
    fn from(access: T) -> Self {
        Self {
            credentials: Some(access.into()),
            ..Self::default()
        }
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
        let store = read("EtcdBackupStore", || stores.get_opt(name))
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
        let limit = spec.limit_bytes_per_second;
        let limit = limit.and_then(|limit| u64::try_from(limit).ok());
        let ground = Ground::of(name, spec, secrets.credentials.as_ref());
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
            limit: Some(limit.unwrap_or(DEFAULT_LIMIT)),
            identities,
            objects,
            brisk,
            uploads,
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
                let found = read("Secret", || api.get_opt(&name)).await?;
                let found = found.ok_or_else(|| Failure::Key {
                    secret: name.clone(),
                    problem: format!("does not exist in namespace {namespace}: make it, or correct {field}"),
                })?;
                Ok::<_, Failure>(Some((name, found)))
            }
        };
        let at = At::of(spec)?;
        let kind = at.kind();
        let of_bucket = |failure| match failure {
            Failure::Key { secret, problem } => Failure::Secret {
                kind,
                secret,
                problem,
            },
            other => other,
        };
        let credentials = named(at.credentials_secret(), kind.words().secret).await;
        let credentials = credentials.map_err(of_bucket)?;
        let encryption = spec.encryption.as_ref();
        let passphrase = encryption.and_then(|e| e.passphrase_secret.as_ref());
        let passphrase = named(passphrase, "spec.encryption.passphraseSecret").await?;
        let identity = encryption.and_then(|e| e.identity_secret.as_ref());
        let identity = named(identity, "spec.encryption.identitySecret").await?;
        Ok(Self {
            credentials: credentials
                .map(|(name, secret)| Access::of_secret(kind, &secret, &name))
                .transpose()?,
            passphrase: passphrase
                .map(|(name, secret)| must(&secret, &name, PASSPHRASE).map(Passphrase))
                .transpose()?,
            identities: match identity {
                Some((name, secret)) => {
                    Identities::parse(&must(&secret, &name, IDENTITY)?, &format!("Secret {name}"))?
                }
                None => Identities::none(),
            },
        })
    }
}

/// Calls until it is answered.
pub(super) async fn read<T, F: Future<Output = kube::Result<T>>>(
    what: &'static str,
    call: impl Fn() -> F,
) -> Result<T, Failure> {
    let mut detail = String::new();
    for _ in 0..API_TRIES {
        detail = match tokio::time::timeout(API_LIMIT, call()).await {
            Ok(Ok(found)) => return Ok(found),
            Ok(Err(e)) if is_refusal(&e) => {
                return Err(Failure::Api {
                    what,
                    detail: e.to_string(),
                    refused: true,
                });
            }
            Ok(Err(e)) => e.to_string(),
            Err(_) => format!("no answer within {} s", API_LIMIT.as_secs()),
        };
    }
    Err(Failure::Api {
        what,
        detail,
        refused: false,
    })
}

/// Of this request, such as for want of a right; not for being busy or ill.
fn is_refusal(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if (400..500).contains(&status.code) && status.code != 429)
}

fn must(secret: &Secret, name: &str, key: &'static str) -> Result<String, Failure> {
    let fail = |problem: String| Failure::Key {
        secret: name.to_owned(),
        problem,
    };
    let found = text(secret, key).map_err(fail)?;
    found.ok_or_else(|| fail(format!("has no key {key}")))
}
