//! HTTPS questions to the processes of this node, each with a deadline and bounded memory.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::TokioIo;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// One question; the kubelet's own probes wait longer, but ours are asked again at once.
const DEADLINE: Duration = Duration::from_secs(2);

/// Answers that are read whole are a few words or a small JSON object.
const SMALL: usize = 64 * 1024;

/// A controller manager's metrics are some 300 KiB; what is longer than this is not read to its end.
const LARGE: usize = 8 * 1024 * 1024;

/// Why a process could not be asked.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum ProbeError {
    #[error("no answer within {} s", DEADLINE.as_secs())]
    Deadline,
    #[error("not reachable: {0}")]
    Connect(String),
    #[error("nobody listens there")]
    Refused,
    #[error("TLS: {0}")]
    Tls(String),
    #[error("HTTP: {0}")]
    Http(String),
}

/// How the other side proves who it is.
#[derive(Clone, Debug)]
pub(crate) struct Trust(Arc<ClientConfig>);

impl Trust {
    /// A process on a loopback address, which has made its own certificate: whoever listens there is root on this
    /// node already. Only [`Target::new`] with a loopback address takes it.
    pub(crate) fn loopback() -> Result<Self, ProbeError> {
        Self::new(None, None)
    }

    /// The node's own authority (`ca`, PEM), or exactly the certificate that the manifest's flags name (`leaf`, PEM).
    pub(crate) fn node(ca: Option<&[u8]>, leaf: Option<&[u8]>) -> Result<Self, ProbeError> {
        let provider = provider();
        let tls = |error: &dyn std::fmt::Display| ProbeError::Tls(error.to_string());
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(ca.unwrap_or_default()) {
            roots
                .add(certificate.map_err(|e| tls(&e))?)
                .map_err(|e| tls(&e))?;
        }
        let leaf = leaf.and_then(|pem| CertificateDer::from_pem_slice(pem).ok());
        if roots.is_empty() && leaf.is_none() {
            return Err(ProbeError::Tls(
                "neither /etc/kubernetes/pki/ca.crt nor the serving certificate can be read".to_owned(),
            ));
        }
        let by_authority = if roots.is_empty() {
            None
        } else {
            Some(
                WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
                    .build()
                    .map_err(|e| tls(&e))?,
            )
        };
        Self::new(by_authority, Some(leaf))
    }

    /// Members of the node's own etcd, as its peers: their authority (`ca`), and this member's own certificate and
    /// key, all PEM.
    pub(crate) fn peer(ca: &[u8], certificate: &[u8], key: &[u8]) -> Result<Self, ProbeError> {
        let tls = |error: &dyn std::fmt::Display| ProbeError::Tls(error.to_string());
        let mut roots = RootCertStore::empty();
        for authority in CertificateDer::pem_slice_iter(ca) {
            roots.add(authority.map_err(|e| tls(&e))?).map_err(|e| tls(&e))?;
        }
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(certificate).collect();
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|e| tls(&e))?;
        let config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|e| tls(&e))?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain.map_err(|e| tls(&e))?, key)
            .map_err(|e| tls(&e))?;
        Ok(Self(Arc::new(config)))
    }

    fn new(
        by_authority: Option<Arc<WebPkiServerVerifier>>,
        leaf: Option<Option<CertificateDer<'static>>>,
    ) -> Result<Self, ProbeError> {
        let provider = provider();
        let verifier = Verifier {
            by_authority,
            anyone: leaf.is_none(),
            leaf: leaf.flatten(),
            provider: provider.clone(),
        };
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| ProbeError::Tls(error.to_string()))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_no_client_auth();
        Ok(Self(Arc::new(config)))
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

#[derive(Debug)]
struct Verifier {
    by_authority: Option<Arc<WebPkiServerVerifier>>,
    leaf: Option<CertificateDer<'static>>,
    anyone: bool,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if self.anyone || self.leaf.as_ref().is_some_and(|leaf| leaf == end_entity) {
            return Ok(ServerCertVerified::assertion());
        }
        match &self.by_authority {
            Some(authority) => {
                authority.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
            }
            None => Err(rustls::Error::InvalidCertificate(
                rustls::CertificateError::UnknownIssuer,
            )),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(
            message,
            cert,
            dss,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            cert,
            dss,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// Whom to ask.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    address: IpAddr,
    port: u16,
    trust: Trust,
}

impl Target {
    /// `node` is what to trust at an address that is not a loopback one.
    pub(crate) fn new(
        address: IpAddr,
        port: u16,
        node: impl FnOnce() -> Result<Trust, ProbeError>,
    ) -> Result<Self, ProbeError> {
        let trust = if address.is_loopback() {
            Trust::loopback()?
        } else {
            node()?
        };
        Ok(Self { address, port, trust })
    }

    /// An address, and what to trust there whatever it is.
    pub(crate) fn at(address: std::net::SocketAddr, trust: Trust) -> Self {
        Self {
            address: address.ip(),
            port: address.port(),
            trust,
        }
    }

    /// Asks; answers with one header of the response, where it has that.
    pub(crate) async fn header(&self, path: &str, name: &str) -> Result<Option<String>, ProbeError> {
        let work = async {
            let response = self.send(path, None).await?;
            let value = response.headers().get(name);
            Ok(value.and_then(|v| v.to_str().ok()).map(str::to_owned))
        };
        tokio::time::timeout(DEADLINE, work)
            .await
            .unwrap_or(Err(ProbeError::Deadline))
    }

    /// Asks; answers with the HTTP status and the beginning of the body.
    pub(crate) async fn get(&self, path: &str, token: Option<&str>) -> Result<(u16, String), ProbeError> {
        let work = async {
            let mut response = self.send(path, token).await?;
            let mut body = Vec::new();
            while let Some(data) = next(&mut response).await? {
                body.extend_from_slice(&data);
                if body.len() > SMALL {
                    body.truncate(SMALL);
                    break;
                }
            }
            Ok((
                response.status().as_u16(),
                String::from_utf8_lossy(&body).into_owned(),
            ))
        };
        tokio::time::timeout(DEADLINE, work)
            .await
            .unwrap_or(Err(ProbeError::Deadline))
    }

    /// Asks, and reads line by line until `find` finds something; only one line is held at a time.
    pub(crate) async fn find<T>(
        &self,
        path: &str,
        token: Option<&str>,
        find: impl Fn(&str) -> Option<T>,
    ) -> Result<(u16, Option<T>), ProbeError> {
        let work = async {
            let mut response = self.send(path, token).await?;
            let status = response.status().as_u16();
            let (mut line, mut read) = (Vec::new(), 0);
            while let Some(data) = next(&mut response).await? {
                read += data.len();
                let mut pieces = data.split(|b| *b == b'\n');
                if let Some(first) = pieces.next() {
                    line.extend_from_slice(first);
                }
                for piece in pieces {
                    if let Some(found) = find(&String::from_utf8_lossy(&line)) {
                        return Ok((status, Some(found)));
                    }
                    line.clear();
                    line.extend_from_slice(piece);
                }
                if read > LARGE || line.len() > SMALL {
                    return Ok((status, None));
                }
            }
            Ok((status, find(&String::from_utf8_lossy(&line))))
        };
        tokio::time::timeout(DEADLINE, work)
            .await
            .unwrap_or(Err(ProbeError::Deadline))
    }

    async fn send(
        &self,
        path: &str,
        token: Option<&str>,
    ) -> Result<http::Response<hyper::body::Incoming>, ProbeError> {
        let http = |error: &dyn std::fmt::Display| ProbeError::Http(error.to_string());
        let tcp = TcpStream::connect((self.address, self.port))
            .await
            .map_err(|error| match error.kind() {
                io::ErrorKind::ConnectionRefused => ProbeError::Refused,
                _ => ProbeError::Connect(error.to_string()),
            })?;
        let tls = TlsConnector::from(self.trust.0.clone())
            .connect(ServerName::IpAddress(self.address.into()), tcp)
            .await
            .map_err(|error| ProbeError::Tls(error.to_string()))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tls))
            .await
            .map_err(|e| http(&e))?;
        // Ends when the response has been read or dropped.
        tokio::spawn(connection);
        let mut request = http::Request::get(path)
            .header(http::header::HOST, self.to_string())
            .header(http::header::USER_AGENT, "lockkeeper-agent");
        if let Some(token) = token {
            request = request.header(http::header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let request = request.body(Empty::<bytes::Bytes>::new()).map_err(|e| http(&e))?;
        sender.send_request(request).await.map_err(|e| http(&e))
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::net::SocketAddr::new(self.address, self.port).fmt(f)
    }
}

async fn next(
    response: &mut http::Response<hyper::body::Incoming>,
) -> Result<Option<bytes::Bytes>, ProbeError> {
    while let Some(frame) = response.body_mut().frame().await {
        let frame = frame.map_err(|error| ProbeError::Http(error.to_string()))?;
        if let Ok(data) = frame.into_data() {
            return Ok(Some(data));
        }
    }
    Ok(None)
}

/// The version in a line of `kubernetes_build_info{…git_version="v1.36.3"…} 1`.
pub(crate) fn build_version(line: &str) -> Option<String> {
    let labels = line.strip_prefix("kubernetes_build_info{")?;
    let (_, rest) = labels.split_once("git_version=\"")?;
    rest.split_once('"').map(|(version, _)| version.to_owned())
}

/// The version in the answer to `/version`.
pub(crate) fn git_version(body: &str) -> Option<String> {
    serde_json::from_str::<serde_json::Value>(body)
        .ok()?
        .get("gitVersion")?
        .as_str()
        .map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_found_where_the_processes_put_them() {
        let line =
            r#"kubernetes_build_info{build_date="x",git_version="v1.36.3",go_version="go1.26",major="1"} 1"#;
        assert_eq!(build_version(line).as_deref(), Some("v1.36.3"));
        assert_eq!(
            build_version("# HELP kubernetes_build_info git_version=\"no\""),
            None
        );
        assert_eq!(
            git_version(r#"{"major":"1","gitVersion":"v1.35.4"}"#).as_deref(),
            Some("v1.35.4")
        );
        assert_eq!(git_version("not json"), None);
    }

    #[test]
    fn without_any_certificate_a_distant_address_is_not_asked() {
        assert!(Target::new([10, 0, 0, 1].into(), 6443, || Trust::node(None, None)).is_err());
        assert!(Target::new([127, 0, 0, 1].into(), 10257, || Trust::node(None, None)).is_ok());
    }
}
