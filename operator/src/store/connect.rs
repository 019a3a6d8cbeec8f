//! A client for one bucket, from the spec and the credentials.

use std::time::Duration;

use http::Uri;
use lockkeeper_crds::S3;
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::{BackoffConfig, ClientOptions, RetryConfig};

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

/// # Errors
/// When a field makes no sense, or there is no set of CA certificates on this machine and `https` needs one.
pub(super) fn connect(s3: &S3, credentials: &Credentials, patience: Patience) -> Result<AmazonS3, Failure> {
    // reqwest is built without a TLS provider of its own, so that there is one only. Whoever came first wins;
    // it is the same one.
    let _ = rustls::crypto::ring::default_provider().install_default();

    let endpoint = s3.endpoint.as_deref().map(Endpoint::parse).transpose()?;
    let plain = endpoint.as_ref().is_some_and(Endpoint::plain);
    let options = ClientOptions::new()
        .with_timeout_disabled()
        .with_read_timeout(patience.idle)
        .with_connect_timeout(patience.connect)
        .with_allow_http(plain)
        // Without TLS no CA certificates are needed, and an image may have none.
        .with_no_system_certificates(plain);
    let retry = RetryConfig {
        backoff: BackoffConfig {
            init_backoff: Duration::from_millis(200),
            max_backoff: Duration::from_secs(10),
            base: 2.,
        },
        max_retries: patience.retries,
        retry_timeout: patience.retry_for,
    };
    let mut builder = AmazonS3Builder::new()
        .with_bucket_name(&s3.bucket)
        .with_region(&s3.region)
        .with_access_key_id(&credentials.access_key_id)
        .with_secret_access_key(&credentials.secret_access_key)
        .with_virtual_hosted_style_request(s3.virtual_hosted_style)
        // One object at a time is all that is deleted here, and not every server knows the bulk request.
        .with_disable_bulk_delete(true)
        .with_client_options(options)
        .with_retry(retry);
    if let Some(endpoint) = endpoint {
        builder = builder.with_endpoint(endpoint.url(s3));
    }
    builder.build().map_err(|e| Failure::Spec {
        field: "spec.s3",
        problem: super::error::chain(&e),
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
            credentials_secret: LocalReference {
                name: "s3-key".to_owned(),
            },
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
            let failure = connect(&s3(endpoint), &credentials(), Patience::PROBE).unwrap_err();
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
        let store = crate::store::Store::from_spec(
            "main",
            &lockkeeper_crds::EtcdBackupStoreSpec {
                s3: s3("http://127.0.0.1:1"),
            },
            &credentials(),
        )
        .unwrap();
        let printed = format!("{:?} {store:?}", credentials());
        assert!(
            !printed.contains("VERYSECRET") && !printed.contains("AKIA"),
            "{printed}"
        );
    }
}
