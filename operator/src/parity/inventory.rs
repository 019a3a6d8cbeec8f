//! One kind of one cluster as records: page by page, object by object.

use std::pin::pin;
use std::time::Duration;

use futures::io::AsyncBufReadExt as _;
use kube::Client;
use kube::api::ListParams;
use kube::core::Request;
use lockkeeper_policies::parity::{Images, Keyed, Kind, Record, Recorder, Scope, Unreadable};
use tokio::time::{sleep, timeout};

use super::discover::Served;
use super::split::{SplitError, Splitter};
use crate::api::{chain, explain};

/// Objects a page: what kubectl asks for.
const PAGE: u32 = 500;
/// A page that does not come is asked for in smaller pieces, down to this.
const SMALLEST_PAGE: u32 = 10;
/// Until a page begins. Above the 8 s after which a silent server is given up.
const BEGINS_WITHIN: Duration = Duration::from_secs(10);
/// Between two pieces of it.
const GOES_ON_WITHIN: Duration = Duration::from_secs(10);
/// How often a page is tried, and how often a kind is begun again when its list has expired.
const TRIES: u32 = 4;
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(500);

/// What is listed.
#[derive(Clone, Debug)]
pub(super) struct Order {
    pub(super) kind: Kind,
    pub(super) served: Served,
    pub(super) scope: Scope,
    /// A label selector.
    pub(super) selector: Option<String>,
}

/// Why a page did not come.
#[derive(Debug, thiserror::Error)]
enum PageError {
    /// The server's own words, or none from it.
    #[error("{}", explain(.0))]
    Api(#[from] kube::Error),
    #[error("{}", chain(.0))]
    Io(#[from] std::io::Error),
    #[error(transparent)]
    Split(#[from] SplitError),
    #[error("an object is not readable: {0}")]
    Json(#[from] serde_json::Error),
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
    #[error("nothing came for {} s", .0.as_secs())]
    Late(Duration),
}

impl PageError {
    const fn status(&self) -> Option<u16> {
        match self {
            Self::Api(kube::Error::Api(status)) => Some(status.code),
            _ => None,
        }
    }

    /// The list that was begun is no longer known there.
    fn is_expired(&self) -> bool {
        self.status() == Some(410)
    }

    /// Asking again leads to the same.
    fn is_final(&self) -> bool {
        self.status()
            .is_some_and(|s| (400..500).contains(&s) && s != 429 && s != 408)
    }
}

/// All of it, as records; and, of pods, what their images are.
///
/// # Errors
/// A sentence. Then it is unknown what there is: a part of a list is never taken for the whole.
pub(super) async fn take(
    client: &Client,
    order: &Order,
    keyed: Keyed,
) -> Result<(Vec<Record>, Images), String> {
    let mut recorder = Recorder {
        kind: &order.kind,
        scope: &order.scope,
        keyed,
        images: Images::default(),
    };
    let mut records = Vec::new();
    for path in order.paths() {
        let mut begun = 0;
        let already = records.len();
        loop {
            begun += 1;
            match whole(client, &path, order, &mut recorder, &mut records).await {
                Ok(()) => break,
                Err(error) if error.is_expired() && begun < TRIES => records.truncate(already),
                Err(error) => return Err(format!("{} cannot be listed: {error}", order.served.plural)),
            }
        }
    }
    records.shrink_to_fit();
    Ok((records, recorder.images))
}

impl Order {
    /// Of the kind, without namespace.
    fn base(&self) -> String {
        let Self { kind, served, .. } = self;
        if kind.group.is_empty() {
            format!("/api/{}", served.version)
        } else {
            format!("/apis/{}/{}", kind.group, served.version)
        }
    }

    /// What is asked for: everything at once, or one namespace after another.
    fn paths(&self) -> Vec<String> {
        let (base, plural) = (self.base(), &self.served.plural);
        if !self.served.namespaced || self.scope.namespaces.is_empty() {
            return vec![format!("{base}/{plural}")];
        }
        let namespaces = self.scope.namespaces.iter();
        namespaces
            .map(|n| format!("{base}/namespaces/{n}/{plural}"))
            .collect()
    }

    /// Of one object.
    pub(super) fn path_of(&self, namespace: &str, name: &str) -> String {
        let (base, plural) = (self.base(), &self.served.plural);
        if namespace.is_empty() {
            format!("{base}/{plural}/{name}")
        } else {
            format!("{base}/namespaces/{namespace}/{plural}/{name}")
        }
    }
}

async fn whole(
    client: &Client,
    path: &str,
    order: &Order,
    recorder: &mut Recorder<'_>,
    records: &mut Vec<Record>,
) -> Result<(), PageError> {
    let mut next = None;
    let mut size = PAGE;
    let mut tries = 0;
    loop {
        let already = records.len();
        match page(
            client,
            path,
            order.selector.clone(),
            size,
            next.clone(),
            recorder,
            records,
        )
        .await
        {
            Ok(token) if token.is_empty() => return Ok(()),
            Ok(token) => (next, tries) = (Some(token), 0),
            Err(error) => {
                records.truncate(already);
                tries += 1;
                if error.is_final() || tries == TRIES {
                    return Err(error);
                }
                size = (size / 4).max(SMALLEST_PAGE);
                sleep(PAUSE).await;
            }
        }
    }
}

/// One page; where the next begins.
async fn page(
    client: &Client,
    path: &str,
    selector: Option<String>,
    size: u32,
    next: Option<String>,
    recorder: &mut Recorder<'_>,
    records: &mut Vec<Record>,
) -> Result<String, PageError> {
    let params = ListParams {
        label_selector: selector,
        limit: Some(size),
        continue_token: next,
        ..ListParams::default()
    };
    let request = Request::new(path)
        .list(&params)
        .map_err(kube::Error::BuildRequest)?;
    let body = timeout(BEGINS_WITHIN, client.request_stream(request));
    let mut body = pin!(body.await.map_err(|_| PageError::Late(BEGINS_WITHIN))??);
    let mut splitter = Splitter::new();
    loop {
        let chunk = timeout(GOES_ON_WITHIN, body.fill_buf());
        let chunk = chunk.await.map_err(|_| PageError::Late(GOES_ON_WITHIN))??;
        if chunk.is_empty() {
            break;
        }
        splitter.feed(chunk, |object| {
            records.extend(recorder.record(serde_json::from_slice(object)?)?);
            Ok::<_, PageError>(())
        })?;
        let read = chunk.len();
        body.consume_unpin(read);
    }
    Ok(splitter.finish()?.next)
}

#[cfg(test)]
#[path = "inventory_tests.rs"]
mod tests;
