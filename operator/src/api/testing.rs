//! Small TLS servers for tests, here and in other rooms; and a client of answers that a test gives, for what a real API
//! server does not do on demand: lists that expire, break off or are refused in the middle.

use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use http::{Request, Response};
use kube::client::Body;
use kube::{Client, Config};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use super::{Address, ApiServers};

pub(super) const CA: &[u8] = include_bytes!("testdata/ca.pem");
const CERTIFICATE: &[u8] = include_bytes!("testdata/server.pem");
// Belongs to nothing but these tests.
const KEY: &[u8] = include_bytes!("testdata/server-key.pem");

/// What a server does with a request.
#[derive(Clone, Copy)]
pub(crate) enum Manner {
    /// Answers with its name.
    Answers,
    /// Reads it and says nothing.
    Hangs,
    /// Begins an answer, as to a watch, and says no more.
    Begins,
    /// 429 and closes, as a server that is shutting down.
    Leaves,
}

/// A TLS server with the certificate of an API server.
pub(crate) struct TlsServer {
    pub(crate) address: Address,
    requests: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl TlsServer {
    pub(crate) async fn start(name: &'static str, manner: Manner) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self::on(listener, name, manner)
    }

    fn on(listener: TcpListener, name: &'static str, manner: Manner) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let address = listener.local_addr().unwrap().to_string().parse().unwrap();
        let requests = Arc::new(AtomicUsize::new(0));
        let seen = Arc::clone(&requests);
        let config = rustls::ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(
                vec![CertificateDer::from_pem_slice(CERTIFICATE).unwrap()],
                PrivateKeyDer::from_pem_slice(KEY).unwrap(),
            )
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let task = tokio::spawn(async move {
            // Dropped with the task: killing it resets its connections.
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                let (acceptor, seen) = (acceptor.clone(), Arc::clone(&seen));
                connections.spawn(async move {
                    let mut tls = acceptor.accept(tcp).await.unwrap();
                    let mut buffer = vec![0; 8192];
                    while tls.read(&mut buffer).await.is_ok_and(|n| n > 0) {
                        seen.fetch_add(1, Ordering::SeqCst);
                        let body = format!(r#"{{"major":"1","minor":"35","gitVersion":"{name}"}}"#);
                        let text = match manner {
                            Manner::Hangs => continue,
                            Manner::Begins => "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned(),
                            Manner::Answers => format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()),
                            Manner::Leaves => "HTTP/1.1 429 Too Many Requests\r\nRetry-After: 5\r\nConnection: close\r\nContent-Length: 0\r\n\r\n".to_owned(),
                        };
                        tls.write_all(text.as_bytes()).await.unwrap();
                        if matches!(manner, Manner::Leaves) {
                            return;
                        }
                    }
                });
            }
        });
        Self {
            address,
            requests,
            task,
        }
    }

    pub(crate) async fn kill(self) {
        self.task.abort();
        let _ = self.task.await;
    }

    pub(crate) fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }
}

/// A client that trusts them, for this one and what is learned.
pub(crate) fn api_servers(last: &Address) -> ApiServers {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut config = Config::new(format!("https://{last}").parse().unwrap());
    config.root_cert = Some(vec![CertificateDer::from_pem_slice(CA).unwrap().to_vec()]);
    ApiServers::from_config(config, None).unwrap()
}

/// Status and body.
pub(crate) type Answer = (u16, String);

/// What was asked, in order.
pub(crate) type Asked = Arc<Mutex<Vec<String>>>;

/// A client whose every request, path and query, is answered by `answer`.
pub(crate) fn client(answer: impl Fn(&str) -> Answer + Send + Sync + 'static) -> (Client, Asked) {
    let asked = Asked::default();
    let (log, answer) = (Arc::clone(&asked), Arc::new(answer));
    let service = tower::service_fn(move |request: Request<Body>| {
        let (log, answer) = (Arc::clone(&log), Arc::clone(&answer));
        async move {
            let what = request.uri().path_and_query().unwrap().as_str().to_owned();
            let (status, body) = answer(&what);
            log.lock().unwrap().push(what);
            let response = Response::builder()
                .status(status)
                .body(Body::from(body.into_bytes()));
            Ok::<_, Infallible>(response.unwrap())
        }
    });
    (Client::new(service, "default"), asked)
}

/// An answer.
pub(crate) fn ok(body: &Value) -> Answer {
    (200, body.to_string())
}

/// A refusal in an API server's words.
pub(crate) fn refused(code: u16, reason: &str) -> Answer {
    let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": reason, "reason": reason, "code": code});
    (code, status.to_string())
}
