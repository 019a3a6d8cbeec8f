//! A client for one bucket, from the spec and the credentials.

use std::time::Duration;

use http::Uri;
use lockkeeper_crds::{S3, ServerSideEncryption, ServerSideKind};
use object_store::aws::AmazonS3ConfigKey;
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::local::LocalFileSystem;
use object_store::{BackoffConfig, Certificate, ClientOptions, RetryConfig};

use super::clock::Clock;
use super::error::Failure;

/// A static key pair.
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

/// How long a server is waited for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    connect: Duration,
    /// From the request to the head of its answer (the request's body included), then between two pieces of
    /// the answer. Not a limit on the whole: reading back 1 GiB takes as long as it takes.
    idle: Duration,
    retries: usize,
    retry_for: Duration,
}

impl Patience {
    /// 8 MiB within 30 s needs 2.3 Mbit/s. With its retries an operation ends within 80 s: a server that
    /// restarts is survived, one that is gone does not hold a backup until its deadline.
    pub(super) const DATA: Self = Self {
        connect: Duration::from_secs(5),
        idle: Duration::from_secs(30),
        retries: 10,
        retry_for: Duration::from_secs(45),
    };

    /// One more try after a lost packet, then the answer: a person or a preflight waits for it.
    pub(super) const PROBE: Self = Self {
        connect: Duration::from_secs(3),
        idle: Duration::from_secs(5),
        retries: 1,
        retry_for: Duration::from_secs(3),
    };
}

/// `credentials`: none, and the environment says who we are.
///
/// # Errors
/// When a field makes no sense, or there is no set of CA certificates on this machine and `https` needs one.
pub(super) fn connect(
    s3: &S3,
    credentials: Option<&Credentials>,
    patience: Patience,
    clock: &Clock,
) -> Result<AmazonS3, Failure> {
    let endpoint = s3.endpoint.as_deref().map(Endpoint::parse).transpose()?;
    let retry = RetryConfig {
        backoff: BackoffConfig {
            init_backoff: Duration::from_millis(200),
            max_backoff: Duration::from_secs(10),
            base: 2.,
        },
        max_retries: patience.retries,
        retry_timeout: patience.retry_for,
    };
    let builder = match credentials {
        Some(credentials) => AmazonS3Builder::new()
            .with_access_key_id(&credentials.access_key_id)
            .with_secret_access_key(&credentials.secret_access_key),
        None => AmazonS3Builder::from_env(),
    };
    let mut builder = builder
        .with_bucket_name(&s3.bucket)
        .with_region(&s3.region)
        .with_virtual_hosted_style_request(s3.virtual_hosted_style)
        // One object at a time is all that is deleted here, and not every server knows the bulk request.
        .with_disable_bulk_delete(true)
        .with_client_options(options(s3, patience)?)
        .with_http_connector(clock.clone())
        .with_retry(retry);
    if let Some(endpoint) = endpoint {
        builder = builder.with_endpoint(endpoint.url(s3));
    }
    if let Some(encryption) = &s3.server_side_encryption {
        builder = server_side(builder, encryption);
    }
    builder.build().map_err(|e| Failure::Spec {
        field: "spec.s3",
        problem: super::error::chain(&e),
    })
}

/// How the server is talked to.
pub(super) fn options(s3: &S3, patience: Patience) -> Result<ClientOptions, Failure> {
    // reqwest is built without a TLS provider of its own, so that there is one only. Whoever came first wins;
    // it is the same one.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let endpoint = s3.endpoint.as_deref().map(Endpoint::parse).transpose()?;
    let plain = endpoint.as_ref().is_some_and(Endpoint::plain);
    let mut options = ClientOptions::new()
        .with_timeout_disabled()
        .with_read_timeout(patience.idle)
        .with_connect_timeout(patience.connect)
        .with_allow_http(plain)
        // Without TLS no CA certificates are needed, and an image may have none.
        .with_no_system_certificates(plain);
    if let Some(bundle) = &s3.ca_bundle {
        let fail = |problem: &str| Failure::Spec {
            field: "spec.s3.caBundle",
            problem: problem.to_owned(),
        };
        let all =
            Certificate::from_pem_bundle(bundle.as_bytes()).map_err(|_| fail("is no certificate in PEM"))?;
        if all.is_empty() {
            return Err(fail("holds no certificate in PEM"));
        }
        for certificate in all {
            options = options.with_root_certificate(certificate);
        }
    }
    Ok(options)
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

/// # Errors
/// When it is not there.
pub(super) fn directory(path: &str) -> Result<LocalFileSystem, Failure> {
    // What is said to be stored must be on the disk, as a server's answer means.
    let opened = LocalFileSystem::new_with_prefix(path);
    let opened = opened.map(|files| files.with_fsync(true).with_automatic_cleanup(true));
    opened.map_err(|e| Failure::Directory {
        path: path.to_owned(),
        doing: "find it",
        detail: super::error::deepest(&e),
    })
}

struct Endpoint(Uri);

impl Endpoint {
    fn parse(text: &str) -> Result<Self, Failure> {
        let fail = |problem: &str| Failure::Spec {
            field: "spec.s3.endpoint",
            problem: problem.to_owned(),
        };
        let uri: Uri = text
            .trim_end_matches('/')
            .parse()
            .map_err(|_| fail("is not a URL"))?;
        if !matches!(uri.scheme_str(), Some("http" | "https")) {
            return Err(fail("must begin with https:// or http://"));
        }
        let authority = uri.authority().ok_or_else(|| fail("names no host"))?;
        if authority.as_str().contains('@') {
            // It would stand in every error message.
            return Err(fail("must not hold credentials: they belong into the Secret"));
        }
        if uri.query().is_some() {
            return Err(fail("must not have a query"));
        }
        Ok(Self(uri))
    }

    fn plain(&self) -> bool {
        self.0.scheme_str() == Some("http")
    }

    /// The client takes an endpoint of virtual-hosted style with the bucket already in its host.
    fn url(&self, s3: &S3) -> String {
        let scheme = self.0.scheme_str().unwrap_or("https");
        let authority = self.0.authority().map_or("", http::uri::Authority::as_str);
        let path = self.0.path().trim_end_matches('/');
        if s3.virtual_hosted_style {
            format!("{scheme}://{}.{authority}{path}", s3.bucket)
        } else {
            format!("{scheme}://{authority}{path}")
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use lockkeeper_crds::LocalReference;

    pub(in crate::store) fn s3(endpoint: &str) -> S3 {
        S3 {
            bucket: "backups".to_owned(),
            prefix: "one/cluster".to_owned(),
            endpoint: Some(endpoint.to_owned()),
            region: "us-east-1".to_owned(),
            virtual_hosted_style: false,
            credentials_secret: Some(LocalReference {
                name: "s3-key".to_owned(),
            }),
            ca_bundle: None,
            server_side_encryption: None,
        }
    }

    pub(in crate::store) fn spec(endpoint: &str) -> lockkeeper_crds::EtcdBackupStoreSpec {
        lockkeeper_crds::EtcdBackupStoreSpec {
            s3: Some(s3(endpoint)),
            ..Default::default()
        }
    }

    pub(in crate::store) fn credentials() -> Credentials {
        Credentials {
            access_key_id: "AKIAIDENTIFIER".to_owned(),
            secret_access_key: "VERYSECRET".to_owned(),
        }
    }

    #[test]
    fn an_endpoint_that_makes_no_sense_is_refused_by_the_name_of_its_field() {
        for (endpoint, says) in [
            ("ftp://host", "must begin with"),
            ("host:9000", "must begin with"),
            ("https://user:pass@host", "must not hold credentials"),
            ("https://host/?a=b", "must not have a query"),
            ("https://", "must begin with"),
        ] {
            let failure = connect(
                &s3(endpoint),
                Some(&credentials()),
                Patience::PROBE,
                &Clock::default(),
            )
            .unwrap_err();
            let text = failure.to_string();
            assert!(text.contains("spec.s3.endpoint"), "{endpoint}: {text}");
            assert!(text.contains(says), "{endpoint}: {text}");
            assert!(!text.contains("pass@"), "{text}");
        }
    }

    #[test]
    fn the_bucket_goes_into_the_host_only_where_that_is_asked_for() {
        let mut spec = s3("https://s3.example:9000/");
        let endpoint = Endpoint::parse("https://s3.example:9000/").unwrap();
        assert_eq!(endpoint.url(&spec), "https://s3.example:9000");
        spec.virtual_hosted_style = true;
        assert_eq!(endpoint.url(&spec), "https://backups.s3.example:9000");
    }

    #[test]
    fn credentials_do_not_print_themselves() {
        let store =
            crate::store::Store::from_spec("main", &spec("http://127.0.0.1:1"), credentials()).unwrap();
        let printed = format!("{:?} {store:?}", credentials());
        assert!(
            !printed.contains("VERYSECRET") && !printed.contains("AKIA"),
            "{printed}"
        );
    }
}
