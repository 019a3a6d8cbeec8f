//! The certificate with which the application answers TLS by itself, where nobody ends it before.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::process::Run;

/// The name that it is for.
pub(super) const NAME: &str = "vault.example.test";

/// Signed by itself, and its key, as PEM.
#[derive(Clone)]
pub(super) struct Certificate(String);

impl std::fmt::Debug for Certificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Certificate").finish_non_exhaustive()
    }
}

impl Certificate {
    /// Makes one, and leaves it in a folder.
    pub(super) fn make(folder: &Path) -> Result<Self> {
        let [certificate, key] = ["app.crt", "app.key"].map(|name| folder.join(name));
        let kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
        let name = format!("subjectAltName=DNS:{NAME}");
        Run::new("openssl")
            .args(["req", "-x509", "-days", "2", "-subj", "/CN=app"])
            .args(kind)
            .args(["-addext", &name, "-addext", "basicConstraints=critical,CA:FALSE"])
            .arg("-out")
            .arg(&certificate)
            .arg("-keyout")
            .arg(&key)
            .check()?;
        let read = std::fs::read_to_string;
        Ok(Self(read(certificate)? + &read(key)?))
    }

    /// One that was made before.
    pub(super) const fn of(pem: String) -> Self {
        Self(pem)
    }

    pub(super) fn pem(&self) -> &str {
        &self.0
    }

    fn chain(&self) -> Result<Vec<CertificateDer<'static>>> {
        let all = CertificateDer::pem_slice_iter(self.0.as_bytes()).collect::<Result<_, _>>();
        all.context("no certificate in PEM")
    }

    /// For who bears it.
    pub(super) fn acceptor(&self) -> Result<TlsAcceptor> {
        let key = PrivateKeyDer::from_pem_slice(self.0.as_bytes()).context("no key in PEM")?;
        let config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(self.chain()?, key)?;
        Ok(TlsAcceptor::from(Arc::new(config)))
    }

    /// For who trusts it and nobody else, and greets as if for the first time each time.
    pub(super) fn connector(&self) -> Result<TlsConnector> {
        let mut roots = RootCertStore::empty();
        for certificate in self.chain()? {
            roots.add(certificate)?;
        }
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.resumption = Resumption::disabled();
        Ok(TlsConnector::from(Arc::new(config)))
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}
