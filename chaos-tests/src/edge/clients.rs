//! Clients of the application through the edge: on a fresh connection each, on kept ones, or on both. Every answer is
//! written down with the moment at which it was asked for.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use hickory_resolver::TokioResolver;
use http::uri::PathAndQuery;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};
use tonic_prost::ProstCodec;

use super::app::{METHOD, NODE_PORT};
use super::certificate::{self, Certificate};
use super::{Colour, dns};
use crate::network;

/// Requests a second on fresh connections, and as many on kept ones.
const RATE: u32 = 50;
/// How many connections are kept.
const KEPT: u32 = 10;
/// The longest that an answer may take.
const LIMIT: Duration = Duration::from_secs(5);

/// What came of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
enum What {
    Answered(Colour),
    Failed(String),
}

#[derive(Debug, Clone)]
struct Entry {
    asked: Instant,
    kept: bool,
    what: What,
}

type Book = Arc<Mutex<Vec<Entry>>>;

/// Whom clients ask, and how.
#[derive(Debug, Clone)]
pub(super) enum Target {
    /// An address, on fresh connections and on kept ones.
    Address(SocketAddr),
    /// The shop's name, whose addresses are looked up for each request, on fresh connections: a name moves no others.
    Name,
    /// An address that gives each connection away as a whole: on fresh ones.
    Connections(SocketAddr),
    /// The same, over TLS with the application itself.
    Tls(SocketAddr, Certificate),
    /// An address, by gRPC: on kept connections.
    Calls(SocketAddr),
}

impl Target {
    /// Whether that many answers of all came on kept connections as they should have.
    const fn suits(&self, kept: u64, all: u64) -> bool {
        match self {
            Self::Address(_) => kept > 0 && kept < all,
            Self::Name | Self::Connections(_) | Self::Tls(..) => kept == 0,
            Self::Calls(_) => kept == all,
        }
    }
}

/// Clients at work.
#[derive(Debug)]
pub struct Clients {
    target: Target,
    book: Book,
    stop: watch::Sender<bool>,
    thread: Option<std::thread::JoinHandle<Result<()>>>,
}

/// What clients were answered in a while.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Count {
    /// By blue.
    pub blue: u64,
    /// By green.
    pub green: u64,
    /// On kept connections, of the two above.
    pub kept: u64,
    /// Not at all, or with an error: why, and how often.
    pub failed: BTreeMap<String, u64>,
}

impl Count {
    /// Answered requests.
    #[must_use]
    pub const fn answered(&self) -> u64 {
        self.blue + self.green
    }

    /// Failed requests.
    #[must_use]
    pub fn failures(&self) -> u64 {
        self.failed.values().sum()
    }

    /// Green's part of the answers, in percent.
    #[must_use]
    #[allow(clippy::cast_precision_loss)] // Some 100 a second.
    pub fn green_share(&self) -> f64 {
        self.green as f64 * 100.0 / self.answered().max(1) as f64
    }

    /// Fails if a request did.
    pub fn none_failed(&self) -> Result<()> {
        ensure!(
            self.failures() == 0,
            "{} requests failed: {:?}",
            self.failures(),
            self.failed
        );
        ensure!(self.answered() > 0, "nobody asked");
        Ok(())
    }

    fn add(&mut self, entry: &Entry) {
        match &entry.what {
            What::Answered(colour) => {
                match colour {
                    Colour::Blue => self.blue += 1,
                    Colour::Green => self.green += 1,
                }
                self.kept += u64::from(entry.kept);
            }
            What::Failed(why) => *self.failed.entry(why.clone()).or_default() += 1,
        }
    }
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} requests ({} on kept connections): {} by blue, {} by green, {} failed",
            self.answered() + self.failures(),
            self.kept,
            self.blue,
            self.green,
            self.failures()
        )
    }
}

impl Clients {
    pub(super) fn start(namespace: &str, target: Target) -> Result<Self> {
        let (stop, stopped) = watch::channel(false);
        let book = Book::default();
        let (namespace, written, asked) = (namespace.to_owned(), book.clone(), target.clone());
        let thread = std::thread::spawn(move || {
            network::move_thread_into(&namespace)?;
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime.block_on(work(asked, &written, stopped))
        });
        Ok(Self {
            target,
            book,
            stop,
            thread: Some(thread),
        })
    }

    /// What became of the requests that were sent from one moment until another.
    #[must_use]
    pub fn between(&self, from: Instant, until: Instant) -> Count {
        let mut count = Count::default();
        let book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
        book.iter()
            .filter(|entry| entry.asked >= from && entry.asked < until)
            .for_each(|entry| count.add(entry));
        count
    }

    /// When green answered for the last time to a request that was sent after a moment: the moment it was sent.
    #[must_use]
    pub fn last_by(&self, colour: Colour, after: Instant) -> Option<Instant> {
        let book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
        book.iter()
            .filter(|entry| entry.asked >= after && entry.what == What::Answered(colour))
            .map(|entry| entry.asked)
            .max()
    }

    /// Stops them and returns all that was counted.
    pub fn stop(mut self) -> Result<Count> {
        let _ = self.stop.send(true);
        if let Some(thread) = self.thread.take() {
            thread
                .join()
                .map_err(|_| anyhow::anyhow!("the clients panicked"))??;
        }
        let mut count = Count::default();
        let book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
        book.iter().for_each(|entry| count.add(entry));
        ensure!(
            self.target.suits(count.kept, count.answered()),
            "clients did not ask on the connections that they should have: {count}"
        );
        Ok(count)
    }
}

async fn work(target: Target, book: &Book, mut stopped: watch::Receiver<bool>) -> Result<()> {
    let mut tasks = JoinSet::new();
    for _ in 0..KEPT {
        match target {
            Target::Address(server) => tasks.spawn(keep_asking(server, book.clone(), stopped.clone())),
            Target::Calls(server) => {
                tasks.spawn(keep_calling(channel(server)?, book.clone(), stopped.clone()))
            }
            _ => break,
        };
    }
    let fresh = Fresh::of(target)?.map(Arc::new);
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / RATE);
    while !*stopped.borrow() {
        tokio::select! {
            _ = ticks.tick() => if let Some(fresh) = &fresh {
                let (book, fresh) = (book.clone(), fresh.clone());
                tasks.spawn(async move {
                    let asked = Instant::now();
                    let what = limited(fresh.ask()).await;
                    write(&book, asked, false, what);
                });
            },
            _ = stopped.changed() => {}
        }
        while tasks.try_join_next().is_some() {}
    }
    while tasks.join_next().await.is_some() {}
    Ok(())
}

/// Who asks on a connection of its own each time.
enum Fresh {
    Known(SocketAddr),
    Tls(SocketAddr, TlsConnector),
    /// The answer is kept for its TTL; requests go round the addresses in it.
    Named(Box<TokioResolver>, AtomicUsize),
}

impl Fresh {
    fn of(target: Target) -> Result<Option<Self>> {
        Ok(Some(match target {
            Target::Address(server) | Target::Connections(server) => Self::Known(server),
            Target::Name => Self::Named(Box::new(dns::resolver()?), AtomicUsize::new(0)),
            Target::Tls(server, certificate) => Self::Tls(server, certificate.connector()?),
            Target::Calls(_) => return Ok(None),
        }))
    }

    async fn ask(&self) -> Result<Colour> {
        let (server, sender) = match self {
            Self::Known(server) => (*server, connect(*server).await?),
            Self::Named(resolver, turn) => {
                let server = look_up(resolver, turn).await?;
                (server, connect(server).await?)
            }
            Self::Tls(server, tls) => {
                let stream = tls.connect(ServerName::try_from(certificate::NAME)?, dial(*server).await?);
                (*server, open(stream.await.context("TLS")?).await?)
            }
        };
        Ok(ask(sender, server).await?.1)
    }
}

async fn look_up(resolver: &TokioResolver, turn: &AtomicUsize) -> Result<SocketAddr> {
    let found = resolver.lookup_ip(dns::NAME).await.context("look the name up")?;
    let mut addresses: Vec<_> = found.iter().collect();
    addresses.sort_unstable();
    let turn = turn.fetch_add(1, Ordering::Relaxed);
    let chosen = turn.checked_rem(addresses.len()).and_then(|at| addresses.get(at));
    let chosen = chosen.context("the name has no address")?;
    Ok(SocketAddr::new(*chosen, NODE_PORT))
}

/// One kept connection, opened again when the other end closed it between two requests.
async fn keep_asking(server: SocketAddr, book: Book, stopped: watch::Receiver<bool>) {
    let mut ticks = tokio::time::interval(Duration::from_secs(1) * KEPT / RATE);
    let mut open: Option<SendRequest<Empty<Bytes>>> = None;
    while !*stopped.borrow() {
        ticks.tick().await;
        let asked = Instant::now();
        let what = limited(async {
            let sender = match open.take().filter(|sender| !sender.is_closed()) {
                Some(sender) => sender,
                None => connect(server).await?,
            };
            let (sender, colour) = ask(sender, server).await?;
            open = Some(sender);
            Ok(colour)
        })
        .await;
        write(&book, asked, true, what);
    }
}

fn channel(server: SocketAddr) -> Result<Channel> {
    Ok(Endpoint::from_shared(format!("http://{server}"))?.connect_lazy())
}

/// The same by gRPC.
async fn keep_calling(channel: Channel, book: Book, stopped: watch::Receiver<bool>) {
    let mut ticks = tokio::time::interval(Duration::from_secs(1) * KEPT / RATE);
    while !*stopped.borrow() {
        ticks.tick().await;
        let asked = Instant::now();
        let what = limited(call(channel.clone())).await;
        write(&book, asked, true, what);
    }
}

async fn call(channel: Channel) -> Result<Colour> {
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await?;
    let (method, codec) = (
        PathAndQuery::from_static(METHOD),
        ProstCodec::<(), String>::default(),
    );
    let answer = client.unary(tonic::Request::new(()), method, codec).await?;
    colour(answer.into_inner().as_bytes())
}

fn write(book: &Book, asked: Instant, kept: bool, what: What) {
    book.lock()
        .unwrap_or_else(PoisonError::into_inner)
        .push(Entry { asked, kept, what });
}

async fn limited(ask: impl Future<Output = Result<Colour>>) -> What {
    match tokio::time::timeout(LIMIT, ask).await {
        Ok(Ok(colour)) => What::Answered(colour),
        Ok(Err(error)) => What::Failed(format!("{error:#}")),
        Err(_) => What::Failed("time-out".into()),
    }
}

async fn dial(server: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect(server).await.context("connect")?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

async fn connect(server: SocketAddr) -> Result<SendRequest<Empty<Bytes>>> {
    open(dial(server).await?).await
}

async fn open(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
) -> Result<SendRequest<Empty<Bytes>>> {
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    Ok(sender)
}

async fn ask(
    mut sender: SendRequest<Empty<Bytes>>,
    server: SocketAddr,
) -> Result<(SendRequest<Empty<Bytes>>, Colour)> {
    let request = Request::get("/")
        .header(header::HOST, server.to_string())
        .body(Empty::new())?;
    sender.ready().await?;
    let answer = sender.send_request(request).await?;
    let status = answer.status();
    let body = answer.into_body().collect().await?.to_bytes();
    ensure!(status == StatusCode::OK, "{status}");
    Ok((sender, colour(&body)?))
}

fn colour(answer: &[u8]) -> Result<Colour> {
    match answer {
        b"blue" => Ok(Colour::Blue),
        b"green" => Ok(Colour::Green),
        other => anyhow::bail!("an answer of no colour: {}", String::from_utf8_lossy(other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edge::app;

    #[test]
    fn shares_are_counted_among_the_answered() {
        let mut count = Count::default();
        let entry = |kept, what| Entry {
            asked: Instant::now(),
            kept,
            what,
        };
        for _ in 0..3 {
            count.add(&entry(true, What::Answered(Colour::Blue)));
        }
        count.add(&entry(false, What::Answered(Colour::Green)));
        assert!((count.green_share() - 25.0).abs() < f64::EPSILON);
        count.none_failed().unwrap();
        count.add(&entry(false, What::Failed("500".into())));
        assert_eq!(count.failures(), 1);
        count.none_failed().unwrap_err();
    }

    #[tokio::test]
    async fn the_application_answers_by_http_tls_and_grpc_on_one_port() {
        let (server, certificate) = app::tests::green().await;
        for target in [Target::Connections(server), Target::Tls(server, certificate)] {
            let fresh = Fresh::of(target).unwrap().unwrap();
            assert_eq!(fresh.ask().await.unwrap(), Colour::Green);
        }
        let channel = channel(server).unwrap();
        for _ in 0..2 {
            assert_eq!(call(channel.clone()).await.unwrap(), Colour::Green);
        }
    }
}
