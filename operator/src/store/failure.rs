//! What can go wrong, in words.

/// What kind of place a store is, and what its parts are called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Amazon S3, or what speaks its protocol.
    S3,
    /// Google Cloud Storage.
    Gcs,
    /// Azure Blob Storage.
    Azure,
    /// A directory.
    Directory,
}

/// The fields of one kind's spec, and what its provider calls things.
pub(super) struct Words {
    pub(super) section: &'static str,
    /// Where it is.
    pub(super) endpoint: &'static str,
    pub(super) bucket: &'static str,
    /// What keeps several clusters in one bucket apart.
    pub(super) prefix: &'static str,
    pub(super) ca_bundle: &'static str,
    /// What names the Secret.
    pub(super) secret: &'static str,
    /// What the Secret holds.
    pub(super) keys: &'static str,
    /// What its owner must be allowed.
    pub(super) rights: &'static str,
}

const S3: Words = Words {
    section: "spec.s3",
    endpoint: "spec.s3.endpoint",
    bucket: "spec.s3.bucket",
    prefix: "spec.s3.prefix",
    ca_bundle: "spec.s3.caBundle",
    secret: "spec.s3.credentialsSecret",
    keys: "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    rights: "s3:PutObject, s3:GetObject, s3:DeleteObject, s3:ListBucket and s3:AbortMultipartUpload",
};

const GCS: Words = Words {
    section: "spec.gcs",
    endpoint: "spec.gcs.endpoint",
    bucket: "spec.gcs.bucket",
    prefix: "spec.gcs.prefix",
    ca_bundle: "spec.gcs.caBundle",
    secret: "spec.gcs.credentialsSecret",
    keys: "GOOGLE_SERVICE_ACCOUNT_KEY",
    rights: "the role Storage Object User on the bucket",
};

const AZURE: Words = Words {
    section: "spec.azure",
    endpoint: "spec.azure.account or spec.azure.endpoint",
    bucket: "spec.azure.container",
    prefix: "spec.azure.prefix",
    ca_bundle: "spec.azure.caBundle",
    secret: "spec.azure.credentialsSecret",
    keys: "AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN",
    rights: "the role Storage Blob Data Contributor, or sp=racwdl in a SAS of the container",
};

const DIRECTORY: Words = Words {
    section: "spec.directory",
    endpoint: "spec.directory.path",
    bucket: "spec.directory.path",
    prefix: "spec.directory.path",
    ca_bundle: "",
    secret: "",
    keys: "",
    rights: "",
};

impl Kind {
    pub(super) const fn words(self) -> &'static Words {
        match self {
            Self::S3 => &S3,
            Self::Gcs => &GCS,
            Self::Azure => &AZURE,
            Self::Directory => &DIRECTORY,
        }
    }
}

/// What can go wrong with a store. `detail` never holds a credential.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // Each sentence says what its fields are.
pub enum Failure {
    #[error("does not exist in namespace {namespace}: create it, or name another one")]
    Missing { namespace: String },
    #[error(
        "Secret {secret} {problem}: it must hold {keys}, and {field} must name it",
        keys = kind.words().keys,
        field = kind.words().secret
    )]
    Secret {
        kind: Kind,
        secret: String,
        problem: String,
    },
    #[error("the {what} could not be read from the API: {detail}")]
    Api {
        what: &'static str,
        detail: String,
        /// By a server that has answered: the same comes of asking again.
        refused: bool,
    },
    #[error("{field} {problem}")]
    Spec { field: &'static str, problem: String },
    #[error(
        "bucket {bucket} does not exist at {endpoint}: create it, or correct {field} ({detail})",
        field = kind.words().bucket
    )]
    NoSuchBucket {
        kind: Kind,
        bucket: String,
        endpoint: String,
        detail: String,
    },
    #[error(
        "{endpoint} cannot be reached to {doing}: bring it back, or correct {field} ({detail})",
        field = kind.words().endpoint
    )]
    Unreachable {
        kind: Kind,
        endpoint: String,
        doing: &'static str,
        detail: String,
    },
    #[error(
        "{endpoint} shows a certificate that nobody here trusts, so nothing was sent to {doing}: put the CA that signed it into {bundle}, or correct {field} ({detail})",
        bundle = kind.words().ca_bundle,
        field = kind.words().endpoint
    )]
    Untrusted {
        kind: Kind,
        endpoint: String,
        doing: &'static str,
        detail: String,
    },
    #[error(
        "{endpoint} did not answer in time to {doing}: see how it fares, or correct {field} ({detail})",
        field = kind.words().endpoint
    )]
    TimedOut {
        kind: Kind,
        endpoint: String,
        doing: &'static str,
        detail: String,
    },
    #[error(
        "{endpoint} does not accept the credentials: correct {keys} in Secret {secret} ({detail})",
        keys = kind.words().keys
    )]
    BadCredentials {
        kind: Kind,
        endpoint: String,
        secret: String,
        detail: String,
    },
    #[error(
        "the credentials in Secret {secret} may not {doing} in bucket {bucket}: allow {rights}, or correct {keys} ({detail})",
        rights = kind.words().rights,
        keys = kind.words().keys
    )]
    Forbidden {
        kind: Kind,
        bucket: String,
        secret: String,
        doing: &'static str,
        detail: String,
    },
    #[error(
        "a lock, a retention or a legal hold in bucket {bucket} forbids to {doing}: wait until it ends, or lift it ({detail})"
    )]
    Locked {
        bucket: String,
        doing: &'static str,
        detail: String,
    },
    #[error("{endpoint} {problem} ({detail})")]
    Checksum {
        endpoint: String,
        problem: &'static str,
        detail: String,
    },
    #[error(
        "nobody says who this node is to {endpoint}: name a Secret in {field}, or let the agents' environment say it ({detail})",
        field = kind.words().secret
    )]
    NoIdentity {
        kind: Kind,
        endpoint: String,
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
    #[error("{place} has no room left: make room, or raise its quota ({detail})")]
    Full { place: String, detail: String },
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
        "{endpoint} does not honour conditional puts (If-None-Match; Google's x-goog-if-generation-match), without which a half backup cannot be told from a whole one: use a server that does ({detail})"
    )]
    ConditionalPut { endpoint: String, detail: String },
    #[error(
        "what was read back from {location} is not what was written: {detail}; the store or the way to it damages data"
    )]
    ReadBack { location: String, detail: String },
    #[error("there is a manifest already at {location}, written by somebody else: nothing was overwritten")]
    ManifestTaken { location: String },
    #[error(
        "the manifest at {location} is of another backup: nothing was deleted; see who writes there, or give each cluster a {field} of its own",
        field = kind.words().prefix
    )]
    NotOurs { kind: Kind, location: String },
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
            Self::Locked { .. } => "Locked",
            Self::Checksum { .. } => "Checksum",
            Self::NoIdentity { .. } => "NoIdentity",
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
