//! A client for one bucket, from the spec and who we are.

use lockkeeper_crds::{self as crds, Azure, Gcs, S3, ServerSideEncryption, ServerSideKind};
use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey, Checksum};
use object_store::azure::{AzureConfigKey, MicrosoftAzure, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorage, GoogleCloudStorageBuilder};

use super::connect::{Patience, Server, retry};
use super::hear::Heard;
use super::{Access, Failure, Kind};

/// Google's own.
pub(super) const GOOGLE: &str = "https://storage.googleapis.com";

/// `credentials`: none, and the environment says who we are.
///
/// # Errors
/// When a field makes no sense, or there is no set of CA certificates on this machine and `https` needs one.
pub(super) fn s3(
    s3: &S3,
    access: Option<&Access>,
    patience: Patience,
    heard: &Heard,
) -> Result<AmazonS3, Failure> {
    let server = Server::from(s3);
    let builder = match access {
        Some(Access::KeyPair(pair)) => AmazonS3Builder::new()
            .with_access_key_id(&pair.access_key_id)
            .with_secret_access_key(&pair.secret_access_key),
        Some(_) => return Err(of_another(Kind::S3)),
        None => AmazonS3Builder::from_env(),
    };
    let mut builder = builder
        .with_bucket_name(&s3.bucket)
        .with_region(&s3.region)
        .with_virtual_hosted_style_request(s3.virtual_hosted_style)
        // One object at a time is all that is deleted here, and not every server knows the bulk request.
        .with_disable_bulk_delete(true)
        .with_client_options(server.options(patience)?)
        .with_http_connector(heard.clone())
        .with_retry(retry(patience));
    if let Some(endpoint) = server.endpoint()? {
        // It takes one of virtual-hosted style with the bucket already in its host.
        let host = s3.virtual_hosted_style.then_some(s3.bucket.as_str());
        builder = builder.with_endpoint(endpoint.url(host));
    }
    if let Some(encryption) = &s3.server_side_encryption {
        builder = server_side(builder, encryption);
    }
    if has_checksum(s3) {
        builder = builder.with_checksum_algorithm(Checksum::SHA256);
    }
    builder.build().map_err(|e| refused(Kind::S3, &e))
}

/// Amazon refuses what comes without one into a bucket with a default retention. It costs nothing: the signature needs
/// the same hash. Backblaze and Cloudflare refuse the header, so with other servers it is asked for.
fn has_checksum(s3: &S3) -> bool {
    match s3.checksum {
        Some(checksum) => checksum == crds::Checksum::Sha256,
        None => s3.endpoint.is_none(),
    }
}

fn server_side(builder: AmazonS3Builder, encryption: &ServerSideEncryption) -> AmazonS3Builder {
    let kind = |builder: AmazonS3Builder, kind: &str| {
        let key = "aws_server_side_encryption".parse::<AmazonS3ConfigKey>();
        match key {
            Ok(key) => builder.with_config(key, kind),
            Err(_) => builder,
        }
    };
    match (encryption.kind, &encryption.kms_key_id) {
        (ServerSideKind::S3, _) => kind(builder, "AES256"),
        (ServerSideKind::Kms, Some(key)) => builder.with_sse_kms_encryption(key),
        (ServerSideKind::Kms, None) => kind(builder, "aws:kms"),
    }
}

/// `access`: none, and the environment says who we are, or the machine's own metadata server.
///
/// # Errors
/// When a field makes no sense.
pub(super) fn gcs(
    gcs: &Gcs,
    access: Option<&Access>,
    patience: Patience,
    heard: &Heard,
) -> Result<GoogleCloudStorage, Failure> {
    let server = Server::from(gcs);
    let builder = match access {
        Some(Access::ServiceAccount(key)) => GoogleCloudStorageBuilder::new().with_service_account_key(key),
        Some(_) => return Err(of_another(Kind::Gcs)),
        None => GoogleCloudStorageBuilder::from_env(),
    };
    let url = server.endpoint()?.map_or(GOOGLE.to_owned(), |e| e.url(None));
    let builder = builder
        .with_bucket_name(&gcs.bucket)
        .with_base_url(&url)
        .with_client_options(server.options(patience)?)
        .with_http_connector(heard.clone())
        .with_retry(retry(patience));
    builder.build().map_err(|e| match access {
        // What it could not read it may quote.
        Some(_) => Failure::Secret {
            kind: Kind::Gcs,
            secret: gcs
                .credentials_secret
                .as_ref()
                .map(|s| s.name.clone())
                .unwrap_or_default(),
            problem: "holds a service account's key whose private_key is none of RSA in PEM".to_owned(),
        },
        None => refused(Kind::Gcs, &e),
    })
}

/// `access`: none, and the environment says who we are, or the machine's own metadata server.
///
/// # Errors
/// When a field makes no sense.
pub(super) fn azure(
    azure: &Azure,
    access: Option<&Access>,
    patience: Patience,
    heard: &Heard,
) -> Result<MicrosoftAzure, Failure> {
    let server = Server::from(azure);
    let builder = match access {
        Some(Access::AccountKey(key)) => MicrosoftAzureBuilder::new().with_access_key(key),
        Some(Access::Sas(sas)) => MicrosoftAzureBuilder::new().with_config(AzureConfigKey::SasKey, sas),
        Some(_) => return Err(of_another(Kind::Azure)),
        None => MicrosoftAzureBuilder::from_env(),
    };
    let mut builder = builder
        .with_account(&azure.account)
        .with_container_name(&azure.container)
        .with_client_options(server.options(patience)?)
        .with_http_connector(heard.clone())
        .with_retry(retry(patience));
    if let Some(endpoint) = server.endpoint()? {
        builder = builder.with_endpoint(endpoint.url(None));
    }
    builder.build().map_err(|e| refused(Kind::Azure, &e))
}

/// Credentials were checked before; what is left to refuse is the spec, or the environment.
fn refused(kind: Kind, e: &object_store::Error) -> Failure {
    Failure::Spec {
        field: kind.words().section,
        problem: super::error::chain(e),
    }
}

fn of_another(kind: Kind) -> Failure {
    Failure::Spec {
        field: kind.words().secret,
        problem: format!(
            "names credentials of another provider: it must hold {}",
            kind.words().keys
        ),
    }
}
