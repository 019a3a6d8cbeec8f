//! One request to one API server, with an end to its patience.

use std::error::Error;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response, StatusCode, header};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::{CaptureConnection, capture_connection};
use kube::client::Body;
use tokio::time::{Instant, sleep, timeout};
use tower::BoxError;

use super::connect::Dialer;
use super::endpoints::Link;
use super::{ANSWER_LIMIT, Endpoints};

/// A request that no API server answered.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// Connected, sent, and then silence.
    #[error("{server} left {what} unanswered for {} s", limit.as_secs())]
    Unanswered {
        /// Method and path.
        what: String,
        /// Which server.
        server: String,
        /// How long was waited.
        limit: Duration,
    },
    /// No connection could be made.
    #[error("{what}: {why}")]
    Unconnected {
        /// Method and path.
        what: String,
        /// Each address and what became of it.
        why: String,
    },
    /// The connection broke before an answer came.
    #[error("{what} at {server}: {why}")]
    Broken {
        /// Method and path.
        what: String,
        /// Which server.
        server: String,
        /// The whole chain of causes in one line.
        why: String,
        /// The first of them.
        #[source]
        source: hyper_util::client::legacy::Error,
    },
}

/// A request that is dropped sooner than this says nothing of its server. Over the 3 s that a write takes while etcd elects a
/// leader, under the 5 s in which a lease is renewed.
const DROPPED_LIMIT: Duration = Duration::from_secs(4);

/// Sends requests; a server that leaves one unanswered is given up and its connections are closed, so
/// that a retry lands on another.
#[derive(Clone)]
pub(super) struct Caller {
    pub(super) http: HttpClient<Dialer, Body>,
    pub(super) endpoints: Endpoints,
    /// Until the head of the response; a watch has its head at once.
    pub(super) limit: Duration,
}

impl Caller {
    async fn call(self, mut request: Request<Body>) -> Result<Response<Incoming>, CallError> {
        let what = format!("{} {}", request.method(), request.uri().path());
        let captured = capture_connection(&mut request);
        let mut waiting = Waiting {
            what: &what,
            captured: &captured,
            endpoints: &self.endpoints,
            since: Instant::now(),
            over: false,
        };
        let outcome = timeout(self.limit, self.http.request(request)).await;
        waiting.over = true;
        drop(waiting);
        let link = link_of(&captured);
        let server = link
            .as_ref()
            .map_or_else(|| "any API server".to_owned(), |link| link.address.to_string());
        let now = Instant::now();
        match outcome {
            Err(_) => {
                let error = CallError::Unanswered {
                    what,
                    server,
                    limit: self.limit,
                };
                if let Some(link) = link {
                    self.endpoints.give_up_link(&link, now, error.to_string());
                }
                Err(error)
            }
            Ok(Err(source)) if source.is_connect() => Err(CallError::Unconnected {
                what,
                why: source.source().map_or_else(|| source.to_string(), chain),
            }),
            Ok(Err(source)) => {
                let why = chain(&source);
                if let Some(link) = link {
                    self.endpoints.failed(&link.address, now, why.clone());
                }
                Err(CallError::Broken {
                    what,
                    server,
                    why,
                    source,
                })
            }
            Ok(Ok(response)) => {
                if let Some(link) = link {
                    if is_leaving(&response) {
                        self.endpoints.failed(&link.address, now, "it is shutting down");
                    } else if !response.status().is_server_error() {
                        self.answered(&link);
                    }
                }
                Ok(response)
            }
        }
    }

    /// From now on all connections are with this server.
    fn answered(&self, link: &Link) {
        if let Some(left) = self.endpoints.answered(link) {
            tokio::spawn(async move {
                // What was asked there may still be answered.
                sleep(ANSWER_LIMIT).await;
                left.cancel();
            });
        }
    }
}

/// A request under way. A caller that is less patient than [`Caller::limit`], as one who renews a lease must be, drops it:
/// its server has left it unanswered all the same, and whatever watches through that server sees nothing.
struct Waiting<'a> {
    what: &'a str,
    captured: &'a CaptureConnection,
    endpoints: &'a Endpoints,
    since: Instant,
    over: bool,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let now = Instant::now();
        let waited = now.duration_since(self.since);
        if !self.over
            && waited >= DROPPED_LIMIT
            && let Some(link) = link_of(self.captured)
        {
            let why = format!("left {} unanswered for {} s", self.what, waited.as_secs());
            self.endpoints.give_up_link(&link, now, why);
        }
    }
}

fn link_of(captured: &CaptureConnection) -> Option<Link> {
    let connected = captured.connection_metadata();
    let mut extras = http::Extensions::new();
    connected.as_ref()?.get_extras(&mut extras);
    extras.remove::<Link>()
}

/// With `--shutdown-send-retry-after` a server that is going answers 429 and closes the connection
/// (facts 4.1), while its listener still accepts: the retry must go elsewhere.
fn is_leaving<B>(response: &Response<B>) -> bool {
    matches!(
        response.status(),
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE
    ) && response
        .headers()
        .get(header::CONNECTION)
        .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"close"))
}

/// An error and its causes in one line, none twice; kube and hyper show only the outermost, which says
/// nothing, while others repeat theirs.
#[must_use]
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}

/// What an error of kube's client says, in one line for a person.
#[must_use]
pub fn explain(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => format!("{} ({} {})", status.message, status.code, status.reason),
        // Ours, in a box that calls it "ServiceError".
        kube::Error::Service(error) => chain(error.as_ref()),
        other => chain(other),
    }
}

impl tower::Service<Request<Body>> for Caller {
    type Response = Response<Incoming>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let call = Self::call(self.clone(), request);
        Box::pin(async move { call.await.map_err(BoxError::from) })
    }
}
