//! What goes wrong with a store, as sentences that name the store, the field of its spec, and the way out.
//!
//! The client's errors are not kept as sources: their text holds the server's whole answer, and S3 quotes the
//! access key and the signed string in it. What is kept is the status, S3's error code and, where there was no
//! answer, the operating system's reason.

use std::io::ErrorKind;
use std::time::Duration;

use object_store::client::{HttpError, HttpErrorKind};

use super::failure::{Failure, Kind};
use super::hear::Heard;

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
                | Failure::Locked { .. }
                | Failure::NoKey { .. }
                | Failure::WrongKey { .. }
                | Failure::EncryptionWanted
                | Failure::Cancelled
        )
    }

    /// True when the Kubernetes API has not answered what was asked for the store: another time it may.
    #[must_use]
    pub fn is_unanswered(&self) -> bool {
        matches!(*self.failure, Failure::Api { refused: false, .. })
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
    pub(super) kind: Kind,
    pub(super) store: String,
    /// Before every key in an address: `s3://bucket/`, `file:///path/`.
    pub(super) root: String,
    /// Or the container; of a directory, its path.
    pub(super) bucket: String,
    pub(super) endpoint: String,
    pub(super) region: String,
    pub(super) secret: String,
    /// What its answers say beside.
    pub(super) heard: Heard,
}

impl Place {
    pub(super) fn timed_out(&self, doing: &'static str, limit: Duration) -> StoreError {
        self.because(Failure::TimedOut {
            kind: self.kind,
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
        match self.heard.clock.last().filter(|read| refused && read.is_off()) {
            Some(read) => self.because(Failure::ClockSkew {
                endpoint: self.endpoint.clone(),
                detail: format!("{}; {}", Answer::of(e).detail, read.told("this node", "it")),
            }),
            None => self.because(failure),
        }
    }

    fn classify(&self, doing: &'static str, e: &object_store::Error) -> Failure {
        if self.kind == Kind::Directory {
            // What is not there is told apart by its kind, as on S3.
            let io = find::<std::io::Error>(e);
            let (path, detail) = (
                self.endpoint.clone(),
                io.map_or_else(|| deepest(e), ToString::to_string),
            );
            return match io.map(std::io::Error::kind) {
                Some(ErrorKind::StorageFull | ErrorKind::QuotaExceeded) => {
                    Failure::Full { place: path, detail }
                }
                _ => Failure::Directory { path, doing, detail },
            };
        }
        let answer = Answer::of(e);
        match answer.status {
            _ if answer.of_the_token => self.unnamed(&answer),
            _ if answer.word == Some(Word::Locked) => Failure::Locked {
                bucket: self.bucket.clone(),
                doing,
                detail: answer.detail,
            },
            Some(400 | 501) if self.kind == Kind::S3 && answer.word.is_some() => Failure::Checksum {
                endpoint: self.endpoint.clone(),
                problem: match answer.word {
                    Some(Word::NoChecksum) => {
                        "knows no SHA-256 of what it is sent: set spec.s3.checksum to None"
                    }
                    _ => {
                        "takes nothing without a checksum, as buckets with Object Lock do: set spec.s3.checksum to SHA256"
                    }
                },
                detail: answer.detail,
            },
            None if answer.code.is_none() => self.unanswered(doing, &answer),
            _ => self.answered(doing, &answer),
        }
    }

    /// Whoever gives out tokens for the store gave none.
    fn unnamed(&self, answer: &Answer) -> Failure {
        let (kind, endpoint, detail) = (self.kind, self.endpoint.clone(), answer.detail.clone());
        match answer.status {
            Some(400..=499) => Failure::BadCredentials {
                kind,
                endpoint,
                secret: self.secret.clone(),
                detail,
            },
            _ => Failure::NoIdentity {
                kind,
                endpoint,
                detail,
            },
        }
    }

    fn unanswered(&self, doing: &'static str, answer: &Answer) -> Failure {
        let (kind, endpoint, detail) = (self.kind, self.endpoint.clone(), answer.detail.clone());
        match answer.transport {
            Some(HttpErrorKind::Timeout) => Failure::TimedOut {
                kind,
                endpoint,
                doing,
                detail,
            },
            // rustls' words; the type is hidden within one of the operating system's errors.
            Some(_) if detail.starts_with("invalid peer certificate") => Failure::Untrusted {
                kind,
                endpoint,
                doing,
                detail,
            },
            Some(_) => Failure::Unreachable {
                kind,
                endpoint,
                doing,
                detail,
            },
            None => Failure::Refused {
                endpoint,
                doing,
                detail,
            },
        }
    }

    fn answered(&self, doing: &'static str, answer: &Answer) -> Failure {
        let (kind, bucket, endpoint) = (self.kind, self.bucket.clone(), self.endpoint.clone());
        let (secret, detail) = (self.secret.clone(), answer.detail.clone());
        match (answer.code.as_deref().unwrap_or_default(), answer.status) {
            ("NoSuchBucket" | "ContainerNotFound", _) => Failure::NoSuchBucket {
                kind,
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
                | "NotSignedUp"
                | "AuthenticationRequired"
                | "AuthenticationFailed"
                | "InvalidAuthenticationInfo",
                _,
            )
            | (_, Some(401)) => Failure::BadCredentials {
                kind,
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
                region: self.region.clone(),
                detail,
            },
            ("QuotaExceeded" | "XMinioStorageFull" | "InsufficientStorage", _) | (_, Some(507)) => {
                Failure::Full {
                    place: format!("{endpoint}, bucket {bucket},"),
                    detail,
                }
            }
            (_, Some(403)) => Failure::Forbidden {
                kind,
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
            _ => Failure::Refused {
                endpoint,
                doing,
                detail,
            },
        }
    }
}

/// What is known of a failed request.
struct Answer {
    status: Option<u16>,
    code: Option<String>,
    transport: Option<HttpErrorKind>,
    /// Not the store answered, but whoever gives out tokens for it.
    of_the_token: bool,
    word: Option<Word>,
    detail: String,
}

/// What an answer says in its text alone, beside a code that means much else too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Word {
    /// A lock, a retention or a legal hold forbids it.
    Locked,
    /// It comes without a checksum.
    WantsChecksum,
    /// It comes with one.
    NoChecksum,
}

impl Word {
    /// S3's and versitygw's (AccessDenied), MinIO's (InvalidRequest, of all things), Google's two, and Azure's, which
    /// has codes of its own but not in the answer to a deletion. No name of a bucket or of a key holds a space.
    const LOCKED: [&str; 6] = [
        "protected by object lock",
        "worm protected",
        "retention policy",
        "under active",
        "legal hold",
        "immutable due to",
    ];

    fn of(text: &str) -> Option<Self> {
        let text = text.to_ascii_lowercase();
        if Self::LOCKED.iter().any(|says| text.contains(says)) {
            Some(Self::Locked)
        } else if text.contains("header 'x-amz-checksum") {
            // "Unsupported header '...' received for this API call", "Header '...' with value '...' not implemented"
            Some(Self::NoChecksum)
        } else {
            text.contains("content-md5").then_some(Self::WantsChecksum)
        }
    }
}

impl Answer {
    fn of(e: &object_store::Error) -> Self {
        let text = chain(e);
        // Google's and Azure's client, in its own words.
        let of_the_token = text.contains("Error performing token request");
        if let Some(http) = find::<HttpError>(e) {
            return Self {
                status: None,
                code: None,
                transport: Some(http.kind()),
                of_the_token,
                word: None,
                // The deepest one is the operating system's; those above repeat the URL.
                detail: deepest(http),
            };
        }
        // The client's own type for a bad answer is private; its text is not.
        let status = between(&text, "status code: ", " ")
            // Of a deletion at Azure, which is done by a batch.
            .or_else(|| between(&text, "(code: ", ")"))
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
            of_the_token,
            word: Word::of(&text),
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
