//! Who we are to a store's server: from a Secret, or from a file where no API is there to ask.
//!
//! No error here holds what was read, nor does any parser's own.

use std::path::Path;

use k8s_openapi::api::core::v1::Secret;
use object_store::azure::{AzureAccessKey, split_sas};
use serde::Deserialize;

use super::{Failure, Kind};

/// The keys of the Secret that `credentialsSecret` names.
const ACCESS_KEY_ID: &str = "AWS_ACCESS_KEY_ID";
const SECRET_ACCESS_KEY: &str = "AWS_SECRET_ACCESS_KEY";
const SERVICE_ACCOUNT_KEY: &str = "GOOGLE_SERVICE_ACCOUNT_KEY";
const ACCOUNT_KEY: &str = "AZURE_STORAGE_ACCOUNT_KEY";
const SAS_TOKEN: &str = "AZURE_STORAGE_SAS_TOKEN";

/// A static key pair of S3's.
#[derive(Clone)]
pub struct Credentials {
    /// `AWS_ACCESS_KEY_ID`.
    pub access_key_id: String,
    /// `AWS_SECRET_ACCESS_KEY`.
    pub secret_access_key: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Credentials(…)")
    }
}

/// What a server is shown.
#[derive(Clone)]
pub enum Access {
    /// S3.
    KeyPair(Credentials),
    /// Google: a service account's key, as JSON.
    ServiceAccount(String),
    /// Azure: a storage account's key, base64.
    AccountKey(String),
    /// Azure: a shared access signature, `sv=...&sig=...`.
    Sas(String),
}

impl std::fmt::Debug for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Access(…)")
    }
}

impl From<Credentials> for Access {
    fn from(pair: Credentials) -> Self {
        Self::KeyPair(pair)
    }
}

/// What must be there of a service account's key; the client reads it again.
#[derive(Deserialize)]
struct ServiceAccount {
    private_key: String,
    #[serde(rename = "private_key_id")]
    _private_key_id: String,
    client_email: String,
}

impl Access {
    /// From the Secret of this name.
    pub(super) fn of_secret(kind: Kind, secret: &Secret, name: &str) -> Result<Self, Failure> {
        let get = |key| match text(secret, key) {
            Ok(found) => Ok(found),
            Err(problem) => Err(wrong(kind, name, problem)),
        };
        Self::of(kind, name, get)
    }

    /// From a file: a Secret as YAML or JSON, lines `KEY=value`, or a service account's key as Google gives it out.
    pub(super) fn of_file(kind: Kind, content: &str, path: &Path) -> Result<Self, Failure> {
        let path = path.display().to_string();
        if let Ok(mut secret) = serde_yaml::from_str::<Secret>(content)
            && (secret.data.is_some() || secret.string_data.is_some())
        {
            let plain = secret.string_data.take().unwrap_or_default();
            let data = secret.data.get_or_insert_default();
            for (key, value) in plain {
                data.insert(key, k8s_openapi::ByteString(value.into_bytes()));
            }
            return Self::of_secret(kind, &secret, &format!("in {path}"));
        }
        let whole = kind == Kind::Gcs && content.trim_start().starts_with('{');
        let get = |key: &'static str| {
            let lines = content.lines().filter_map(|line| line.split_once('='));
            let mut values = lines
                .map(|(key, value)| (key.trim().trim_start_matches("export ").trim(), value.trim()))
                .filter(|(name, value)| name.eq_ignore_ascii_case(key) && !value.is_empty())
                .map(|(_, value)| value.trim_matches(['"', '\'']).to_owned());
            Ok(if whole {
                Some(content.to_owned())
            } else {
                values.next()
            })
        };
        Self::of(kind, &path, get).map_err(|failure| match failure {
            Failure::Secret { problem, .. } => Failure::File {
                path: path.clone(),
                doing: "used for credentials",
                detail: format!("it is no Secret, and {problem}"),
            },
            other => other,
        })
    }

    fn of(
        kind: Kind,
        name: &str,
        get: impl Fn(&'static str) -> Result<Option<String>, Failure>,
    ) -> Result<Self, Failure> {
        let must = |key| get(key)?.ok_or_else(|| wrong(kind, name, format!("has no key {key}")));
        match kind {
            Kind::S3 | Kind::Directory => Ok(Self::KeyPair(Credentials {
                access_key_id: must(ACCESS_KEY_ID)?,
                secret_access_key: must(SECRET_ACCESS_KEY)?,
            })),
            Kind::Gcs => {
                let key = must(SERVICE_ACCOUNT_KEY)?;
                let whole = serde_json::from_str::<ServiceAccount>(&key)
                    .is_ok_and(|k| !k.private_key.is_empty() && !k.client_email.is_empty());
                let problem = format!(
                    "holds no service account's key under {SERVICE_ACCOUNT_KEY} (the JSON file with private_key, private_key_id and client_email)"
                );
                whole
                    .then_some(Self::ServiceAccount(key))
                    .ok_or_else(|| wrong(kind, name, problem))
            }
            Kind::Azure => match (get(ACCOUNT_KEY)?, get(SAS_TOKEN)?) {
                (Some(key), None) if AzureAccessKey::try_new(&key).is_ok() => Ok(Self::AccountKey(key)),
                (Some(_), None) => {
                    let problem = format!("holds no storage account's key under {ACCOUNT_KEY} (base64)");
                    Err(wrong(kind, name, problem))
                }
                (None, Some(sas)) if is_signed(&sas) => Ok(Self::Sas(sas)),
                (None, Some(_)) => {
                    let problem =
                        format!("holds no shared access signature under {SAS_TOKEN} (sv=...&sig=...)");
                    Err(wrong(kind, name, problem))
                }
                (Some(_), Some(_)) => {
                    let problem = format!("holds both {ACCOUNT_KEY} and {SAS_TOKEN}: remove one");
                    Err(wrong(kind, name, problem))
                }
                (None, None) => {
                    let problem = format!("has neither a key {ACCOUNT_KEY} nor {SAS_TOKEN}");
                    Err(wrong(kind, name, problem))
                }
            },
        }
    }
}

fn wrong(kind: Kind, secret: &str, problem: String) -> Failure {
    Failure::Secret {
        kind,
        secret: secret.to_owned(),
        problem,
    }
}

fn is_signed(sas: &str) -> bool {
    split_sas(sas).is_ok_and(|pairs| pairs.iter().any(|(name, _)| name == "sig"))
}

/// What a Secret holds under a key, or what is wrong with it.
pub(super) fn text(secret: &Secret, key: &'static str) -> Result<Option<String>, String> {
    let Some(value) = secret.data.as_ref().and_then(|data| data.get(key)) else {
        return Ok(None);
    };
    // A trailing newline is what `echo secret | base64` leaves behind; no credential has one.
    let value = std::str::from_utf8(&value.0)
        .map_err(|_| format!("holds something other than text under {key}"))?
        .trim();
    if value.is_empty() {
        return Err(format!("holds nothing under {key}"));
    }
    Ok(Some(value.to_owned()))
}

#[cfg(test)]
#[path = "access_tests.rs"]
mod tests;
