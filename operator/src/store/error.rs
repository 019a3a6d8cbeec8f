//! What goes wrong with a store, as sentences that name the store, the field of its spec, and the way out.
//!
//! The client's errors are not kept as sources: their text holds the server's whole answer, and S3 quotes the
//! access key and the signed string in it. What is kept is the status, S3's error code and, where there was no
//! answer, the operating system's reason.

use std::time::Duration;

use object_store::client::{HttpError, HttpErrorKind};

use super::clock::Clock;

/// A store that could not do what was asked of it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("EtcdBackupStore {store}: {failure}")]
pub struct StoreError {
    store: String,
    failure: Box<Failure>,
}

impl StoreError {
    pub(crate) fn new(store: &str, failure: Failure) -> Self {
        Self {
            store: store.to_owned(),
            failure: Box::new(failure),
        }
    }

    /// What went wrong.
    #[must_use]
    pub fn failure(&self) -> &Failure {
        &self.failure
    }

    /// Short and stable, for a condition's reason and a metric's label.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        self.failure.reason()
    }
}

impl StoreError {
    /// True when it says something about the store, not about the API or about one backup in it.
    #[must_use]
    pub fn of_the_store(&self) -> bool {
        !matches!(
            *self.failure,
            Failure::Api { .. }
                | Failure::ManifestTaken { .. }
                | Failure::NotOurs { .. }
                | Failure::ManifestInvalid { .. }
                | Failure::Damaged { .. }
                | Failure::Misplaced { .. }
                | Failure::File { .. }
                | Failure::NoKey { .. }
                | Failure::WrongKey { .. }
                | Failure::EncryptionWanted
                | Failure::Cancelled
        )
    }
}

/// What can go wrong with a store. `detail` never holds a credential.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // Each sentence says what its fields are.
pub enum Failure {
    #[error("does not exist in namespace {namespace}: create it, or name another one")]
    Missing { namespace: String },
    #[error(
        "Secret {secret} {problem}: it must hold AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and spec.s3.credentialsSecret must name it"
    )]
    Secret { secret: String, problem: String },
    #[error("the {what} could not be read from the API: {detail}")]
    Api { what: &'static str, detail: String },
    #[error("{field} {problem}")]
    Spec { field: &'static str, problem: String },
    #[error("bucket {bucket} does not exist at {endpoint}: create it, or correct spec.s3.bucket ({detail})")]
    NoSuchBucket {
        bucket: String,
        endpoint: String,
        detail: String,
    },
    #[error("{endpoint} cannot be reached to {doing}: bring it back, or correct spec.s3.endpoint ({detail})")]
    Unreachable {
        endpoint: String,
        doing: &'static str,
        detail: String,
    },
    #[error(
        "{endpoint} shows a certificate that nobody here trusts, so nothing was sent to {doing}: put the CA that signed it into spec.s3.caBundle, or correct spec.s3.endpoint ({detail})"
    )]
    Untrusted {
        endpoint: String,
        doing: &'static str,
        detail: String,
    },
    #[error(
        "{endpoint} did not answer in time to {doing}: see how it fares, or correct spec.s3.endpoint ({detail})"
    )]
    TimedOut {
        endpoint: String,
        doing: &'static str,
        detail: String,
    },
    #[error(
        "{endpoint} does not accept the credentials: correct AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in Secret {secret} ({detail})"
    )]
    BadCredentials {
        endpoint: String,
        secret: String,
        detail: String,
    },
    #[error(
        "the credentials in Secret {secret} may not {doing} in bucket {bucket}: allow s3:PutObject, s3:GetObject, s3:DeleteObject, s3:ListBucket and s3:AbortMultipartUpload, or correct AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY ({detail})"
    )]
    Forbidden {
        bucket: String,
        secret: String,
        doing: &'static str,
        detail: String,
    },
    #[error(
        "the clocks of this node and of {endpoint} differ by more than it accepts: set the wrong one by NTP ({detail})"
    )]
    ClockSkew { endpoint: String, detail: String },
    #[error(
        "bucket {bucket} is not in region {region}: correct spec.s3.region, or spec.s3.endpoint ({detail})"
    )]
    WrongRegion {
        bucket: String,
        region: String,
        detail: String,
    },
    #[error("{endpoint} has no room left for bucket {bucket}: make room, or raise its quota ({detail})")]
    Full {
        bucket: String,
        endpoint: String,
        detail: String,
    },
    #[error("{endpoint} failed to {doing}: see its own log ({detail})")]
    ServerError {
        endpoint: String,
        doing: &'static str,
        detail: String,
    },
    #[error("{endpoint} refused to {doing} ({detail})")]
    Refused {
        endpoint: String,
        doing: &'static str,
        detail: String,
    },
    #[error(
        "{endpoint} does not honour conditional puts (If-None-Match), without which a half backup cannot be told from a whole one: use a server that does ({detail})"
    )]
    ConditionalPut { endpoint: String, detail: String },
    #[error(
        "what was read back from {location} is not what was written: {detail}; the store or the way to it damages data"
    )]
    ReadBack { location: String, detail: String },
    #[error("there is a manifest already at {location}, written by somebody else: nothing was overwritten")]
    ManifestTaken { location: String },
    #[error(
        "the manifest at {location} is of another backup: nothing was deleted; see who writes there, or give each cluster a spec.s3.prefix of its own"
    )]
    NotOurs { location: String },
    #[error("the manifest at {location} cannot be understood: {detail}")]
    ManifestInvalid { location: String, detail: String },
    #[error(
        "what lies at {location} is not what its manifest says: {detail}; it was damaged or changed since it was stored: use another backup"
    )]
    Damaged { location: String, detail: String },
    #[error(
        "the manifest at {location} is of another backup ({name}, UID {uid}, of etcd cluster {cluster}, from node {node}): it was copied or moved there; use the backup that belongs there, or name the place where this one lies"
    )]
    Misplaced {
        location: String,
        name: String,
        uid: String,
        cluster: String,
        node: String,
    },
    #[error("{location} is encrypted, and no key is given for it: give {wanted}")]
    NoKey { location: String, wanted: String },
    #[error("wrong key: {location} is encrypted, and none of the keys given opens it; give {wanted}")]
    WrongKey { location: String, wanted: String },
    #[error("Secret {secret} {problem}")]
    Key { secret: String, problem: String },
    #[error(
        "the PKI is stored encrypted only, and this store does not encrypt: set spec.encryption, or leave PKI out of the backup's spec.include"
    )]
    EncryptionWanted,
    #[error("{path} cannot be used to {doing}: make it writable, or correct spec.directory.path ({detail})")]
    Directory {
        path: String,
        doing: &'static str,
        detail: String,
    },
    #[error("{path} cannot be {doing}: {detail}")]
    File {
        path: String,
        doing: &'static str,
        detail: String,
    },
    #[error("cancelled")]
    Cancelled,
}

impl Failure {
    /// Short and stable.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Missing { .. } => "StoreNotFound",
            Self::Secret { .. } => "SecretInvalid",
            Self::Api { .. } => "ApiUnavailable",
            Self::Spec { .. } => "SpecInvalid",
            Self::NoSuchBucket { .. } => "NoSuchBucket",
            Self::Unreachable { .. } => "Unreachable",
            Self::Untrusted { .. } => "CertificateUntrusted",
            Self::TimedOut { .. } => "TimedOut",
            Self::BadCredentials { .. } => "BadCredentials",
            Self::Forbidden { .. } => "Forbidden",
            Self::ClockSkew { .. } => "ClockSkew",
            Self::WrongRegion { .. } => "WrongRegion",
            Self::Full { .. } => "Full",
            Self::ServerError { .. } => "ServerError",
            Self::Refused { .. } => "Refused",
            Self::ConditionalPut { .. } => "ConditionalPutIgnored",
            Self::ReadBack { .. } => "ReadBackMismatch",
            Self::ManifestTaken { .. } => "ManifestTaken",
            Self::NotOurs { .. } => "NotOurs",
            Self::ManifestInvalid { .. } => "ManifestInvalid",
            Self::Damaged { .. } => "Damaged",
            Self::NoKey { .. } => "NoKey",
            Self::WrongKey { .. } => "WrongKey",
            Self::Key { .. } => "KeyInvalid",
            Self::EncryptionWanted => "EncryptionRequired",
            Self::Directory { .. } => "DirectoryUnusable",
            Self::Misplaced { .. } => "Misplaced",
            Self::File { .. } => "FileUnusable",
            Self::Cancelled => "Cancelled",
        }
    }

    /// True when the same request may well succeed a moment later.
    pub(super) fn passing(&self) -> bool {
        matches!(
            self,
            Self::Unreachable { .. } | Self::TimedOut { .. } | Self::ServerError { .. }
        )
    }
}

/// An upload that did not become a backup. Nothing of it is left in the store unless a log line says so.
#[derive(Debug, thiserror::Error)]
pub enum UploadError<E: std::error::Error + 'static> {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What was to be stored could not be read, or did not prove itself.
    #[error(transparent)]
    Source(E),
    /// The caller cancelled it.
    #[error("cancelled")]
    Cancelled,
}

/// What an error says about where it happened.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) store: String,
    /// Before every key in an address: `s3://bucket/`, `file:///path/`.
    pub(super) root: String,
    /// For a directory, its path.
    pub(super) directory: Option<String>,
    pub(super) bucket: String,
    pub(super) endpoint: String,
    pub(super) region: String,
    pub(super) secret: String,
    /// What its answers say of the time.
    pub(super) clock: Clock,
}

impl Place {
    pub(super) fn timed_out(&self, doing: &'static str, limit: Duration) -> StoreError {
        self.because(Failure::TimedOut {
            endpoint: self.endpoint.clone(),
            doing,
            detail: format!("no answer within {} s", limit.as_secs()),
        })
    }

    pub(super) fn because(&self, failure: Failure) -> StoreError {
        StoreError::new(&self.store, failure)
    }

    /// Says what `e`, met while `doing`, means.
    pub(super) fn error(&self, doing: &'static str, e: &object_store::Error) -> StoreError {
        let failure = self.classify(doing, e);
        let refused = matches!(
            failure,
            Failure::ClockSkew { .. } | Failure::BadCredentials { .. } | Failure::Forbidden { .. }
        );
        // Not every server calls it by its name: what is signed at the wrong time is signed wrongly.
        match self.clock.last().filter(|read| refused && read.is_off()) {
            Some(read) => self.because(Failure::ClockSkew {
                endpoint: self.endpoint.clone(),
                detail: format!("{}; {}", Answer::of(e).detail, read.told("this node", "it")),
            }),
            None => self.because(failure),
        }
    }

    fn classify(&self, doing: &'static str, e: &object_store::Error) -> Failure {
        if let Some(path) = &self.directory {
            // What is not there is told apart by its kind, as on S3.
            let io = find::<std::io::Error>(e);
            return Failure::Directory {
                path: path.clone(),
                doing,
                detail: io.map_or_else(|| deepest(e), ToString::to_string),
            };
        }
        let Place {
            bucket,
            endpoint,
            region,
            secret,
            ..
        } = self;
        let (bucket, endpoint, secret) = (bucket.clone(), endpoint.clone(), secret.clone());
        let answer = Answer::of(e);
        let detail = answer.detail.clone();
        match (answer.code.as_deref().unwrap_or_default(), answer.status) {
            ("NoSuchBucket", _) => Failure::NoSuchBucket {
                bucket,
                endpoint,
                detail,
            },
            ("RequestTimeTooSkewed", _) => Failure::ClockSkew { endpoint, detail },
            (
                "SignatureDoesNotMatch"
                | "InvalidAccessKeyId"
                | "InvalidSecurity"
                | "InvalidToken"
                | "ExpiredToken"
                | "InvalidClientTokenId"
                | "NotSignedUp",
                _,
            )
            | (_, Some(401)) => Failure::BadCredentials {
                endpoint,
                secret,
                detail,
            },
            (
                "PermanentRedirect" | "AuthorizationHeaderMalformed" | "IllegalLocationConstraintException",
                _,
            )
            | (_, Some(301 | 307)) => Failure::WrongRegion {
                bucket,
                region: region.clone(),
                detail,
            },
            ("QuotaExceeded" | "XMinioStorageFull" | "InsufficientStorage", _) | (_, Some(507)) => {
                Failure::Full {
                    bucket,
                    endpoint,
                    detail,
                }
            }
            (_, Some(403)) => Failure::Forbidden {
                bucket,
                secret,
                doing,
                detail,
            },
            (_, Some(501)) => Failure::Refused {
                endpoint,
                doing,
                detail,
            },
            (_, Some(429 | 500..=599)) => Failure::ServerError {
                endpoint,
                doing,
                detail,
            },
            (_, Some(_)) => Failure::Refused {
                endpoint,
                doing,
                detail,
            },
            (_, None) => match answer.transport {
                Some(HttpErrorKind::Timeout) => Failure::TimedOut {
                    endpoint,
                    doing,
                    detail,
                },
                // rustls' words; the type is hidden within one of the operating system's errors.
                Some(_) if detail.starts_with("invalid peer certificate") => Failure::Untrusted {
                    endpoint,
                    doing,
                    detail,
                },
                Some(_) => Failure::Unreachable {
                    endpoint,
                    doing,
                    detail,
                },
                None => Failure::Refused {
                    endpoint,
                    doing,
                    detail,
                },
            },
        }
    }
}

/// What is known of a failed request.
struct Answer {
    status: Option<u16>,
    code: Option<String>,
    transport: Option<HttpErrorKind>,
    detail: String,
}

impl Answer {
    fn of(e: &object_store::Error) -> Self {
        let text = chain(e);
        if let Some(http) = find::<HttpError>(e) {
            return Self {
                status: None,
                code: None,
                transport: Some(http.kind()),
                // The deepest one is the operating system's; those above repeat the URL.
                detail: deepest(http),
            };
        }
        // The client's own type for a bad answer is private; its text is not.
        let status = between(&text, "status code: ", " ")
            .and_then(|s| s.parse().ok())
            .or(match e {
                object_store::Error::NotFound { .. } => Some(404),
                object_store::Error::PermissionDenied { .. } => Some(403),
                object_store::Error::Unauthenticated { .. } => Some(401),
                object_store::Error::AlreadyExists { .. } => Some(409),
                object_store::Error::Precondition { .. } => Some(412),
                object_store::Error::NotImplemented { .. } => Some(501),
                _ if text.contains("redirect without LOCATION") => Some(301),
                _ => None,
            });
        let code = between(&text, "<Code>", "</Code>")
            .filter(|c| c.len() <= 64 && c.chars().all(|c| c.is_ascii_alphanumeric() || c == '.'))
            .map(str::to_owned);
        let detail = match (status, &code) {
            (Some(status), Some(code)) => format!("HTTP {status}, {code}"),
            (Some(status), None) => format!("HTTP {status}"),
            (None, Some(code)) => code.clone(),
            (None, None) => "the answer made no sense".to_owned(),
        };
        Self {
            status,
            code,
            transport: None,
            detail,
        }
    }
}

fn between<'a>(text: &'a str, from: &str, to: &str) -> Option<&'a str> {
    text.split_once(from)?.1.split_once(to).map(|(found, _)| found)
}

/// An error and its sources, each said once.
pub(super) fn chain(e: &dyn std::error::Error) -> String {
    let mut text = e.to_string();
    let mut next = e.source();
    while let Some(e) = next {
        let more = e.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        next = e.source();
    }
    text
}

pub(super) fn deepest(e: &dyn std::error::Error) -> String {
    let mut deepest = e;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    deepest.to_string()
}

fn find<'a, E: std::error::Error + 'static>(e: &'a (dyn std::error::Error + 'static)) -> Option<&'a E> {
    let mut next = Some(e);
    while let Some(e) = next {
        if let Some(found) = e.downcast_ref::<E>() {
            return Some(found);
        }
        next = e.source();
    }
    None
}

#[cfg(test)]
#[path = "error_tests.rs"]
mod tests;
