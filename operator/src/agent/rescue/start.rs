//! How a rescue begins, goes on and is taken back, and the claim that keeps agent and guard from acting meanwhile.

use std::time::Duration;

use chrono::Utc;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::super::cri::Cri;
use super::super::flags;
use super::super::guard::Claim;
use super::super::host::{Host, read_limited};
use super::super::restore::JournalStore;
use super::book::{Age, Book, BookError, Entry, Kind, Part, Step, in_hand};
use super::data::DataError;
use super::ground::Node;
use super::quorum::{self, Copies, FORCE};
use super::rejoin;
use super::restore::{self, Chosen};
use super::run::{RunError, Runner};
use super::survey::{self, EtcdManifest, Survey};

/// An agent looks every 10 s at the latest and lets go at its next look.
const CLAIM: Duration = Duration::from_secs(40);

/// Manifests are a few KiB.
const LARGEST: u64 = 10 * 1024 * 1024;

/// Why a rescue was not begun or not ended. Nothing was changed by the first ones.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error("{0}")]
    Refused(String),
    #[error(transparent)]
    Book(#[from] BookError),
    #[error(transparent)]
    Data(#[from] DataError),
    #[error(transparent)]
    Run(#[from] RunError),
}

pub(super) fn refused<T>(why: impl Into<String>) -> Result<T, StartError> {
    Err(StartError::Refused(why.into()))
}

/// What a person asked for.
#[derive(Clone, Debug)]
pub(crate) struct Begin {
    pub(crate) kind: Kind,
    /// How far: [`Step::Fenced`] or [`Step::Done`].
    pub(crate) until: Step,
    /// The cluster's name, typed.
    pub(crate) confirm: Option<String>,
    /// The survivor's address.
    pub(crate) via: Option<String>,
    /// Where the safety copy goes.
    pub(crate) copy_to: Option<std::path::PathBuf>,
    /// What is restored.
    pub(crate) backup: Option<Chosen>,
    /// The copies of the data that other nodes have.
    pub(crate) copies: Copies,
}

impl Begin {
    /// Asks for this, all of it.
    pub(crate) fn of(kind: Kind, confirm: Option<String>) -> Self {
        Self {
            kind,
            until: Step::Done,
            confirm,
            via: None,
            copy_to: None,
            backup: None,
            copies: Copies::Unsaid,
        }
    }
}

pub(super) type Tell<'a> = &'a (dyn Fn(&str) + Sync);

/// Begins what was asked for, or goes on with it where it is in hand, to its end.
pub(crate) async fn begin(
    host: &Host,
    cri: Cri,
    asked: &Begin,
    tell: Tell<'_>,
    shutdown: &CancellationToken,
) -> Result<Entry, StartError> {
    let book = Book::new(host.clone());
    if let Some(entry) = book.load()?.filter(Entry::is_live) {
        return go_on(host, cri, asked, entry, tell, shutdown).await;
    }
    if let Ok(Some(_claim)) = Claim::take(host) {
        book.settle()?;
    }
    let seen = survey::survey(host).await.map_err(StartError::Refused)?;
    let manifest = survey::etcd_manifest(host).map_err(StartError::Refused)?;
    no_restore_in_hand(host)?;
    let entry = match asked.kind {
        Kind::RecoverQuorum => quorum::beginning(host, asked, &seen, &manifest)?,
        Kind::Rejoin => rejoin::beginning(host, asked, &seen, &manifest).await?,
        Kind::Restore => restore::beginning(host, asked, &seen, &manifest, tell).await?,
    };
    confirmed(asked, &seen.cluster)?;
    let _claim = claim(host, &book, shutdown).await?;
    let promised = async {
        let entry = match &asked.backup {
            Some(chosen) => restore::prepare(host, &cri, chosen, &manifest, entry, tell, shutdown).await?,
            None => entry,
        };
        let entry = keep(host, &book, &manifest, entry)?;
        book.save(&entry)?;
        Ok::<_, StartError>(entry)
    };
    let entry = match promised.await {
        Ok(entry) => entry,
        Err(error) => {
            // Nothing was begun: the agent may go on.
            let _ = book.unmark();
            return Err(error);
        }
    };
    tell(super::sentence(entry.step));
    run(host, cri, entry, asked.until, tell, shutdown).await
}

/// Goes on with what is in hand.
pub(crate) async fn go_on(
    host: &Host,
    cri: Cri,
    asked: &Begin,
    mut entry: Entry,
    tell: Tell<'_>,
    shutdown: &CancellationToken,
) -> Result<Entry, StartError> {
    if entry.kind != asked.kind {
        return refused(format!(
            "`lockkeeper rescue {0}` is in hand on this node since {1}: end it first, with the same command again, or take it back with `lockkeeper rescue {0} --put-back`",
            entry.kind.command(),
            entry.begun.format("%F %T UTC")
        ));
    }
    let book = Book::new(host.clone());
    let _claim = claim(host, &book, shutdown).await?;
    if entry.kind == Kind::Rejoin && asked.until == Step::Done && (asked.via.is_some() || entry.via.is_none())
    {
        let manifest = survey::etcd_manifest(host).map_err(StartError::Refused)?;
        entry.via = Some(rejoin::find_survivor(host, asked, &manifest).await?.0);
    }
    // What was waited for begins anew: the node may have been off in between.
    entry.since = Utc::now();
    book.save(&entry)?;
    tell(&format!("Going on: {}", super::sentence(entry.step)));
    run(host, cri, entry, asked.until, tell, shutdown).await
}

/// Takes back what is in hand.
pub(crate) async fn put_back(
    host: &Host,
    cri: Cri,
    kind: Kind,
    tell: Tell<'_>,
    shutdown: &CancellationToken,
) -> Result<Entry, StartError> {
    let book = Book::new(host.clone());
    let Some(mut entry) = book.load()?.filter(|entry| entry.is_live() && entry.kind == kind) else {
        return refused(format!(
            "no `lockkeeper rescue {}` is in hand on this node: there is nothing to put back",
            kind.command()
        ));
    };
    if entry.kind != Kind::Rejoin && (Step::StartingApi..Step::PuttingBack).contains(&entry.step) {
        return refused(
            "etcd serves again, and members may have joined it or writes been made since: go on instead, with the same command without --put-back",
        );
    }
    if entry.kind == Kind::Rejoin && (Step::Promoting..Step::PuttingBack).contains(&entry.step) {
        return refused(
            "this node's member may be a voting one already: go on instead, with the same command without --put-back",
        );
    }
    let _claim = claim(host, &book, shutdown).await?;
    entry.step = Step::PuttingBack;
    entry.since = Utc::now();
    entry.message = "A person took it back.".to_owned();
    book.save(&entry)?;
    tell(super::sentence(entry.step));
    run(host, cri, entry, Step::Done, tell, shutdown).await
}

async fn run(
    host: &Host,
    cri: Cri,
    entry: Entry,
    until: Step,
    tell: Tell<'_>,
    shutdown: &CancellationToken,
) -> Result<Entry, StartError> {
    let node = Node::new(host.clone(), cri);
    let mut runner = Runner::new(host, &node, entry, tell);
    runner.run(until, shutdown).await?;
    Ok(runner.entry)
}

fn confirmed(asked: &Begin, cluster: &str) -> Result<(), StartError> {
    match asked.confirm.as_deref() {
        Some(typed) if typed == cluster => Ok(()),
        Some(typed) => refused(format!(
            "--confirm {typed:?} is not this cluster's name, which is {cluster:?} (the controller manager's --cluster-name): is this the node you meant?"
        )),
        None => refused(format!(
            "this takes the API server and etcd of this node off: type the cluster's name to confirm, --confirm {cluster}"
        )),
    }
}

/// Marks the node and waits until nobody else of ours acts on it.
pub(super) async fn claim(
    host: &Host,
    book: &Book,
    shutdown: &CancellationToken,
) -> Result<Claim, StartError> {
    let was_marked = in_hand(host).is_some();
    let unwritten = |source| BookError::Write {
        path: book.directory().display().to_string(),
        source,
    };
    book.mark().map_err(unwritten)?;
    let limit = Instant::now() + CLAIM;
    let why = loop {
        match Claim::take(host) {
            Ok(Some(claim)) => return Ok(claim),
            Ok(None) if Instant::now() < limit && !shutdown.is_cancelled() => {
                sleep(Duration::from_millis(250)).await;
            }
            Ok(None) => {
                break format!(
                    "another process of this node did not let go of {} within {} s: another `lockkeeper rescue`, or an agent that does not heed this one. End it (`crictl ps --name agent`, `crictl stop ID`) and run this again",
                    host.state().join("claim").display(),
                    CLAIM.as_secs()
                );
            }
            Err(error) => break format!("the claim in {} cannot be taken: {error}", host.state().display()),
        }
    };
    if !was_marked {
        book.unmark().map_err(unwritten)?;
    }
    refused(why)
}

/// Puts the manifests as they are on disk, and the one with the flag beside them.
fn keep(host: &Host, book: &Book, manifest: &EtcdManifest, mut entry: Entry) -> Result<Entry, BookError> {
    entry.etcd = book.keep(&entry.id, Part::Etcd, Age::Old, &manifest.bytes)?;
    let api = Part::Api.path(host);
    entry.api = match read_limited(&api, LARGEST) {
        Ok(bytes) => Some(book.keep(&entry.id, Part::Api, Age::Old, &bytes)?),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(source) => {
            return Err(BookError::Read {
                path: api.display().to_string(),
                source,
            });
        }
    };
    if entry.kind == Kind::RecoverQuorum {
        let flagged = flags::with_flags(&manifest.path, &manifest.bytes, &[(FORCE, Some("true"))]).map_err(
            |error| BookError::Broken {
                path: manifest.path.display().to_string(),
                why: error.to_string(),
            },
        )?;
        entry.etcd_new = Some(book.keep(&entry.id, Part::Etcd, Age::New, &flagged)?);
    }
    Ok(entry)
}

pub(super) fn blank(asked: &Begin, seen: &Survey, manifest: &EtcdManifest) -> Entry {
    let now = Utc::now();
    let id = now.format("%Y%m%dT%H%M%SZ").to_string();
    Entry {
        kind: asked.kind,
        step: Step::StoppingApi,
        since: now,
        begun: now,
        message: String::new(),
        api: None,
        etcd: String::new(),
        etcd_new: None,
        bridges: Vec::new(),
        name: manifest.pod.name().to_owned(),
        peer_url: survey::own_peer_url(&manifest.pod),
        data: manifest.pod.data_on_host(),
        aside: std::path::PathBuf::new(),
        peers: seen
            .peers
            .iter()
            .map(|peer| (peer.name.clone(), peer.peer_url.clone()))
            .collect(),
        via: None,
        restored: None,
        backup: None,
        learner: None,
        touched: false,
        id,
    }
}

/// An `EtcdRestore` that goes on by this node's journal would exchange the same data.
fn no_restore_in_hand(host: &Host) -> Result<(), StartError> {
    let store = JournalStore::new(host.clone());
    match store.load() {
        Ok(journal) => match journal.live() {
            Some(entry) if entry.stage.is_touching() => refused(format!(
                "the EtcdRestore {} is in hand on this node ({:?}, since {}): its agent or guard brings it to its end or back within its deadlines, also with no API. Where it cannot (`lockkeeper rescue journal` shows why), put {} away; the data of before lie in .lockkeeper below etcd's data directory",
                entry.order.name,
                entry.stage,
                entry.since.format("%F %T UTC"),
                store.path().display()
            )),
            _ => Ok(()),
        },
        Err(why) => refused(why),
    }
}
