//! Requests over TLS with the admin's certificate, on a fresh connection or on a kept one, and what went wrong
//! in words that can be counted.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use base64::Engine;
use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// The longest that one try may take.
const LIMIT: Duration = Duration::from_secs(10);

/// A request, as often as it has to be sent.
#[derive(Debug, Clone)]
pub(super) struct Ask {
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) content_type: &'static str,
    pub(super) body: Bytes,
}

impl Ask {
    pub(super) fn get(path: impl Into<String>) -> Self {
        Self {
            method: Method::GET,
            path: path.into(),
            content_type: "application/json",
            body: Bytes::new(),
        }
    }
}

/// What came back.
#[derive(Debug, Clone)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) retry_after: Option<Duration>,
    pub(super) body: Bytes,
}

/// Why nothing came back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Broken {
    /// The connection broke under the request: reset, end of file. client-go reads again after it.
    Midway(String),
    /// The request was never sent. Go's transport takes another connection by itself.
    NeverSent(String),
    /// Everything else: refused, time-out.
    Other(String),
}

impl Broken {
    pub(super) fn kind(&self) -> &str {
        match self {
            Self::Midway(kind) | Self::NeverSent(kind) | Self::Other(kind) => kind,
        }
    }
}

/// Where and as whom to ask.
#[derive(Clone)]
pub(super) struct Target {
    server: SocketAddr,
    http1: TlsConnector,
    http2: TlsConnector,
}

impl Target {
    pub(super) fn new(server: SocketAddr, kubeconfig: &str) -> Result<Self> {
        let config = tls(kubeconfig)?;
        let with = |protocol: &[u8]| {
            let mut config = config.clone();
            config.alpn_protocols = vec![protocol.to_vec()];
            // A resumed session would make the connection less than fresh.
            config.resumption = rustls::client::Resumption::disabled();
            TlsConnector::from(Arc::new(config))
        };
        Ok(Self {
            server,
            http1: with(b"http/1.1"),
            http2: with(b"h2"),
        })
    }

    async fn connect(&self, tls: &TlsConnector) -> Result<TlsStream<TcpStream>, Broken> {
        let stream = TcpStream::connect(self.server)
            .await
            .map_err(|error| before(&error))?;
        let _ = stream.set_nodelay(true);
        let name = ServerName::IpAddress(self.server.ip().into());
        tls.connect(name, stream).await.map_err(|error| before(&error))
    }

    fn request(&self, ask: &Ask, full: bool) -> Result<Request<Full<Bytes>>, Broken> {
        // HTTP/2 wants the whole address, HTTP/1.1 the path and a Host.
        let uri = if full {
            format!("https://{}{}", self.server, ask.path)
        } else {
            ask.path.clone()
        };
        let mut request = Request::builder().method(ask.method.clone()).uri(uri);
        if !full {
            request = request.header(header::HOST, self.server.to_string());
        }
        request
            .header(header::CONTENT_TYPE, ask.content_type)
            .header(header::ACCEPT, "application/json")
            .body(Full::new(ask.body.clone()))
            .map_err(|error| Broken::Other(error.to_string()))
    }

    /// Asks on a connection of its own, as a short-lived command does.
    pub(super) async fn fresh(&self, ask: &Ask) -> Result<Answer, Broken> {
        timed(async {
            let stream = self.connect(&self.http1).await?;
            let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
                .await
                .map_err(|error| during(&error))?;
            let connection = tokio::spawn(connection);
            let answer = async {
                let response = sender
                    .send_request(self.request(ask, false)?)
                    .await
                    .map_err(|error| during(&error))?;
                collect(response).await
            }
            .await;
            connection.abort();
            answer
        })
        .await
    }
}

/// A connection that is kept, as client-go keeps it: HTTP/2, and another one once it is known to be broken.
pub(super) struct Kept {
    target: Target,
    sender: tokio::sync::Mutex<Option<http2::SendRequest<Full<Bytes>>>>,
}

impl Kept {
    pub(super) fn new(target: Target) -> Self {
        Self {
            target,
            sender: tokio::sync::Mutex::new(None),
        }
    }

    pub(super) async fn ask(&self, ask: &Ask) -> Result<Answer, Broken> {
        timed(async {
            // A connection that turns out to be closed before anything went out is replaced in silence.
            for _ in 0..3 {
                match self.once(ask).await {
                    Err(Broken::NeverSent(_)) => {}
                    other => return other,
                }
            }
            self.once(ask).await
        })
        .await
    }

    async fn once(&self, ask: &Ask) -> Result<Answer, Broken> {
        let mut sender = self.sender().await?;
        let response = sender
            .send_request(self.target.request(ask, true)?)
            .await
            .map_err(|error| during(&error))?;
        collect(response).await
    }

    async fn sender(&self) -> Result<http2::SendRequest<Full<Bytes>>, Broken> {
        let mut slot = self.sender.lock().await;
        if let Some(sender) = slot.as_ref().filter(|sender| !sender.is_closed()) {
            return Ok(sender.clone());
        }
        let stream = self.target.connect(&self.target.http2).await?;
        // client-go's own values: it pings after 30 s of silence and gives up after 15 s more.
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(Duration::from_secs(30))
            .keep_alive_timeout(Duration::from_secs(15))
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| during(&error))?;
        tokio::spawn(connection);
        *slot = Some(sender.clone());
        Ok(sender)
    }
}

async fn timed(ask: impl Future<Output = Result<Answer, Broken>>) -> Result<Answer, Broken> {
    match tokio::time::timeout(LIMIT, ask).await {
        Ok(answer) => answer,
        Err(_) => Err(Broken::Other("time-out".into())),
    }
}

async fn collect(response: http::Response<hyper::body::Incoming>) -> Result<Answer, Broken> {
    let status = response.status();
    let retry_after = response
        .headers()
        .get(header::RETRY_AFTER)
        .and_then(|value| value.to_str().ok()?.parse().ok())
        .map(Duration::from_secs);
    let body = response
        .into_body()
        .collect()
        .await
        .map_err(|error| during(&error))?
        .to_bytes();
    Ok(Answer {
        status,
        retry_after,
        body,
    })
}

/// Broken before the request could be sent: connecting and TLS.
fn before(error: &std::io::Error) -> Broken {
    use std::io::ErrorKind;
    match error.kind() {
        ErrorKind::ConnectionRefused => Broken::Other("refused".into()),
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => Broken::Midway("reset".into()),
        ErrorKind::UnexpectedEof => Broken::Midway("EOF".into()),
        kind => Broken::Other(format!("connect: {kind}")),
    }
}

fn during(error: &hyper::Error) -> Broken {
    let root = root_cause(error);
    if error.is_canceled() || not_looked_at(&root) {
        return Broken::NeverSent("connection closed before sending".into());
    }
    if error.is_incomplete_message() {
        return Broken::Midway("EOF".into());
    }
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        if let Some(io) = cause.downcast_ref::<std::io::Error>() {
            return before(io);
        }
        source = cause.source();
    }
    Broken::Midway(root)
}

fn root_cause(error: &hyper::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

/// A stream above the last one that a GOAWAY names, or one refused as a whole, was not looked at: it is safe to
/// send it again, and Go's transport does. h2 tells only by its words.
fn not_looked_at(cause: &str) -> bool {
    cause.contains("refused stream") || cause.contains("connection error received: not a result of an error")
}

/// The cluster's CA and the admin's certificate, from a kubeconfig with its data inline.
fn tls(kubeconfig: &str) -> Result<rustls::ClientConfig> {
    let parsed: serde_yaml::Value = serde_yaml::from_str(kubeconfig).context("the kubeconfig is not YAML")?;
    let data = |list: &str, entry: &str, field: &str| -> Result<Vec<u8>> {
        let text = parsed
            .get(list)
            .and_then(|list| list.get(0)?.get(entry)?.get(field)?.as_str())
            .with_context(|| format!("the kubeconfig has no {list}[0].{entry}.{field}"))?;
        base64::engine::general_purpose::STANDARD
            .decode(text)
            .with_context(|| format!("{field} is not base64"))
    };
    let mut roots = rustls::RootCertStore::empty();
    for certificate in
        CertificateDer::pem_slice_iter(&data("clusters", "cluster", "certificate-authority-data")?)
    {
        roots.add(certificate?)?;
    }
    let chain = CertificateDer::pem_slice_iter(&data("users", "user", "client-certificate-data")?)
        .collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_slice(&data("users", "user", "client-key-data")?)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    Ok(rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_that_goaway_leaves_out_is_sent_again() {
        assert!(not_looked_at(
            "connection error received: not a result of an error"
        ));
        assert!(!not_looked_at("stream error received: stream no longer needed"));
    }
}
