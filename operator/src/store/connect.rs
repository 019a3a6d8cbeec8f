//! How a server is reached: its address, its certificates, how long it is waited for.

use std::time::Duration;

use http::Uri;
use lockkeeper_crds::{Azure, Gcs, S3};
use object_store::local::LocalFileSystem;
use object_store::{BackoffConfig, Certificate, ClientOptions, RetryConfig};

use super::{Failure, Kind};

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

/// Of the client's own tries.
pub(super) fn retry(patience: Patience) -> RetryConfig {
    RetryConfig {
        backoff: BackoffConfig {
            init_backoff: Duration::from_millis(200),
            max_backoff: Duration::from_secs(10),
            base: 2.,
        },
        max_retries: patience.retries,
        retry_timeout: patience.retry_for,
    }
}

/// What a spec says of its server.
#[derive(Clone, Copy, Debug)]
pub(super) struct Server<'a> {
    pub(super) kind: Kind,
    pub(super) endpoint: Option<&'a str>,
    pub(super) ca_bundle: Option<&'a str>,
}

impl<'a> From<&'a S3> for Server<'a> {
    fn from(s3: &'a S3) -> Self {
        Self {
            kind: Kind::S3,
            endpoint: s3.endpoint.as_deref(),
            ca_bundle: s3.ca_bundle.as_deref(),
        }
    }
}

impl<'a> From<&'a Gcs> for Server<'a> {
    fn from(gcs: &'a Gcs) -> Self {
        Self {
            kind: Kind::Gcs,
            endpoint: gcs.endpoint.as_deref(),
            ca_bundle: gcs.ca_bundle.as_deref(),
        }
    }
}

impl<'a> From<&'a Azure> for Server<'a> {
    fn from(azure: &'a Azure) -> Self {
        Self {
            kind: Kind::Azure,
            endpoint: azure.endpoint.as_deref(),
            ca_bundle: azure.ca_bundle.as_deref(),
        }
    }
}

impl Server<'_> {
    /// # Errors
    /// When it makes no sense.
    pub(super) fn endpoint(&self) -> Result<Option<Endpoint>, Failure> {
        self.endpoint
            .map(|text| Endpoint::parse(self.kind, text))
            .transpose()
    }

    /// How it is talked to.
    ///
    /// # Errors
    /// When a field makes no sense.
    pub(super) fn options(&self, patience: Patience) -> Result<ClientOptions, Failure> {
        // reqwest is built without a TLS provider of its own, so that there is one only. Whoever came first wins;
        // it is the same one.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let plain = self.endpoint()?.as_ref().is_some_and(Endpoint::plain);
        let mut options = ClientOptions::new()
            .with_timeout_disabled()
            .with_read_timeout(patience.idle)
            .with_connect_timeout(patience.connect)
            .with_allow_http(plain)
            // Without TLS no CA certificates are needed, and an image may have none.
            .with_no_system_certificates(plain);
        if let Some(bundle) = self.ca_bundle {
            let fail = |problem: &str| Failure::Spec {
                field: self.kind.words().ca_bundle,
                problem: problem.to_owned(),
            };
            let all = Certificate::from_pem_bundle(bundle.as_bytes())
                .map_err(|_| fail("is no certificate in PEM"))?;
            if all.is_empty() {
                return Err(fail("holds no certificate in PEM"));
            }
            for certificate in all {
                options = options.with_root_certificate(certificate);
            }
        }
        Ok(options)
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

/// An address without credentials.
pub(super) struct Endpoint(Uri);

impl Endpoint {
    fn parse(kind: Kind, text: &str) -> Result<Self, Failure> {
        let fail = |problem: &str| Failure::Spec {
            field: kind.words().endpoint,
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

    /// The same without a slash at its end; with a bucket, in its host.
    pub(super) fn url(&self, bucket: Option<&str>) -> String {
        let scheme = self.0.scheme_str().unwrap_or("https");
        let authority = self.0.authority().map_or("", http::uri::Authority::as_str);
        let path = self.0.path().trim_end_matches('/');
        match bucket {
            Some(bucket) => format!("{scheme}://{bucket}.{authority}{path}"),
            None => format!("{scheme}://{authority}{path}"),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use lockkeeper_crds::LocalReference;

    use super::*;
    use crate::store::Credentials;
    use crate::store::clouds::s3 as connect;
    use crate::store::hear::Heard;

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
            checksum: None,
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
                Some(&credentials().into()),
                Patience::PROBE,
                &Heard::default(),
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
        let spec = s3("https://s3.example:9000/");
        let endpoint = Server::from(&spec).endpoint().unwrap().unwrap();
        assert_eq!(endpoint.url(None), "https://s3.example:9000");
        assert_eq!(endpoint.url(Some("backups")), "https://backups.s3.example:9000");
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
