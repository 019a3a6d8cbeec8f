//! Connections to the first API server that answers, whatever host the request names.
//!
//! What comes in: [`Endpoints`] and how to speak TLS. What goes out: encrypted connections that notice
//! when their server is gone. May touch: the network.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures::future::OptionFuture;
use http::Uri;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::WaitForCancellationFutureOwned;

use super::endpoints::Link;
use super::{Address, Endpoints};

/// A node in the same network accepts within milliseconds; one retransmitted SYN (1 s) is not worth
/// waiting for while other servers are there.
const ACCEPT_LIMIT: Duration = Duration::from_secs(1);
/// For the TLS handshake. The kernel accepts for a process that is stopped or starved, so only this
/// tells that somebody is at home.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(2);
/// A server ends a watch after at most 290 s (kube's default); silence beyond that and a margin is a
/// dead connection.
const SILENCE_LIMIT: Duration = Duration::from_secs(300);
/// Connections end after this where they are not with the server that is preferred to all others: an agent comes home to its
/// own node's.
pub(super) const REFUGE_LIMIT: Duration = Duration::from_secs(60);
/// Keepalive probes begin after and come every five seconds; three unanswered end the connection.
const KEEPALIVE: Duration = Duration::from_secs(5);
const KEEPALIVE_PROBES: u32 = 3;
/// Sent data that stays unacknowledged this long ends the connection: the node was powered off or cut
/// off. Without it a watch hangs for a quarter of an hour (tcp_retries2).
const UNACKNOWLEDGED_LIMIT: Duration = Duration::from_secs(15);

/// No API server could be reached.
#[derive(Debug, thiserror::Error)]
#[error("no API server could be reached: {tried}")]
pub struct NobodyAnswers {
    tried: String,
}

/// Dials the first address that answers.
#[derive(Clone)]
pub(super) struct Dialer {
    endpoints: Endpoints,
    tls: TlsConnector,
    name: ServerName<'static>,
}

impl Dialer {
    pub(super) fn new(
        endpoints: Endpoints,
        tls: Arc<rustls::ClientConfig>,
        name: ServerName<'static>,
    ) -> Self {
        Self {
            endpoints,
            tls: TlsConnector::from(tls),
            name,
        }
    }

    async fn dial(self) -> Result<TokioIo<Conduit>, NobodyAnswers> {
        let mut tried = Vec::new();
        for address in self.endpoints.order(Instant::now()) {
            let link = self.endpoints.link(&address);
            match self.dial_one(&address).await {
                Ok(stream) => {
                    let stay = self.endpoints.is_refuge(&address).then_some(REFUGE_LIMIT);
                    return Ok(TokioIo::new(Conduit::new(stream, link, stay)));
                }
                Err(error) => {
                    self.endpoints.failed(&address, Instant::now(), error.to_string());
                    tried.push(format!("{address}: {error}"));
                }
            }
        }
        if tried.is_empty() {
            tried.push("no address is known".to_owned());
        }
        Err(NobodyAnswers {
            tried: tried.join("; "),
        })
    }

    async fn dial_one(&self, address: &Address) -> io::Result<TlsStream<TcpStream>> {
        let tcp = timeout(ACCEPT_LIMIT, TcpStream::connect(address.as_str()))
            .await
            .map_err(|_| late("does not accept a connection", ACCEPT_LIMIT))??;
        notice_a_dead_peer(&tcp)?;
        timeout(HANDSHAKE_LIMIT, self.tls.connect(self.name.clone(), tcp))
            .await
            .map_err(|_| late("accepts, and does not answer the TLS handshake", HANDSHAKE_LIMIT))?
    }
}

fn late(what: &str, limit: Duration) -> io::Error {
    io::Error::new(
        io::ErrorKind::TimedOut,
        format!("{what} within {} s", limit.as_secs()),
    )
}

fn notice_a_dead_peer(tcp: &TcpStream) -> io::Result<()> {
    use rustix::net::sockopt;
    tcp.set_nodelay(true)?;
    sockopt::set_socket_keepalive(tcp, true)?;
    sockopt::set_tcp_keepidle(tcp, KEEPALIVE)?;
    sockopt::set_tcp_keepintvl(tcp, KEEPALIVE)?;
    sockopt::set_tcp_keepcnt(tcp, KEEPALIVE_PROBES)?;
    let limit = u32::try_from(UNACKNOWLEDGED_LIMIT.as_millis()).unwrap_or(u32::MAX);
    sockopt::set_tcp_user_timeout(tcp, limit)?;
    Ok(())
}

impl tower::Service<Uri> for Dialer {
    type Response = TokioIo<Conduit>;
    type Error = NobodyAnswers;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        Box::pin(self.clone().dial())
    }
}

/// An encrypted connection that ends when its server was given up, and when it is silent for too long.
pub(super) struct Conduit {
    stream: TlsStream<TcpStream>,
    link: Link,
    given_up: Pin<Box<WaitForCancellationFutureOwned>>,
    silence: Pin<Box<Sleep>>,
    /// When it ends at the latest.
    stay: Pin<Box<OptionFuture<Sleep>>>,
}

impl Conduit {
    fn new(stream: TlsStream<TcpStream>, link: Link, stay: Option<Duration>) -> Self {
        Self {
            stream,
            given_up: Box::pin((*link.token).clone().cancelled_owned()),
            link,
            silence: Box::pin(tokio::time::sleep(SILENCE_LIMIT)),
            stay: Box::pin(stay.map(tokio::time::sleep).into()),
        }
    }
}

impl Connection for Conduit {
    fn connected(&self) -> Connected {
        Connected::new().extra(self.link.clone())
    }
}

impl AsyncRead for Conduit {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.given_up.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::Error::new(
                io::ErrorKind::ConnectionAborted,
                format!("{} was given up", this.link.address),
            )));
        }
        match Pin::new(&mut this.stream).poll_read(cx, buf) {
            Poll::Pending => {
                if let Poll::Ready(Some(())) = this.stay.as_mut().poll(cx) {
                    return Poll::Ready(Err(io::Error::new(
                        io::ErrorKind::ConnectionAborted,
                        format!("{} is left for the preferred API server", this.link.address),
                    )));
                }
                ready!(this.silence.as_mut().poll(cx));
                Poll::Ready(Err(late("sends nothing", SILENCE_LIMIT)))
            }
            done @ Poll::Ready(_) => {
                this.silence.as_mut().reset(Instant::now() + SILENCE_LIMIT);
                done
            }
        }
    }
}

impl AsyncWrite for Conduit {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
