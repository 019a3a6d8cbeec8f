//! How a rescue begins: what must hold, and the claim that keeps agent and guard from acting meanwhile.

use std::time::Duration;

use chrono::Utc;
use semver::Version;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::super::cri::Cri;
use super::super::etcd::EtcdMember;
use super::super::flags;
use super::super::guard::Claim;
use super::super::host::{Host, read_limited};
use super::super::restore::JournalStore;
use super::book::{Age, Book, BookError, Entry, Kind, Part, Step, in_hand};
use super::data::{self, DataError};
use super::ground::{Node, agreed};
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

/// The copies of the data that other nodes have, as a person has looked: nobody else can, where no member answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Copies {
    /// Nothing was said of them.
    Unsaid,
    /// There are none.
    Absent,
    /// Where their logs end.
    Known(Vec<CopyEnd>),
}

/// Where another copy's log ends; the greater one is the newer copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct CopyEnd {
    term: u64,
    index: u64,
}

impl std::fmt::Display for CopyEnd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.term, self.index)
    }
}

impl std::str::FromStr for CopyEnd {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text
            .split_once('/')
            .and_then(|(term, index)| Some((term.parse().ok()?, index.parse().ok()?)));
        let (term, index) = parsed
            .ok_or("write TERM/INDEX, as `lockkeeper rescue journal` shows them on that node: 7/123456")?;
        Ok(Self { term, index })
    }
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
        Kind::RecoverQuorum => recovery(host, asked, &seen, &manifest)?,
        Kind::Rejoin => rejoining(host, asked, &seen, &manifest).await?,
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
        entry.via = Some(find_survivor(host, asked, &manifest).await?.0);
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

pub(super) const FORCE: &str = "force-new-cluster";

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

/// What must hold before the one survivor becomes a cluster of its own.
fn recovery(host: &Host, asked: &Begin, seen: &Survey, manifest: &EtcdManifest) -> Result<Entry, StartError> {
    if seen.quorum {
        return refused(format!(
            "etcd on this node has its quorum ({} members): there is nothing to recover. A single lost member comes back by `lockkeeper rescue rejoin` on its own node",
            seen.members.len()
        ));
    }
    if let Some(other) = seen.peers.iter().find(|peer| peer.quorum) {
        return refused(format!(
            "{} ({}) has a quorum without this node: bring this node back instead, `lockkeeper rescue rejoin --confirm {} --via {}`",
            other.name,
            other.peer_url,
            seen.cluster,
            super::host_of(&other.peer_url)
        ));
    }
    version_is_safe(seen.version.as_deref())?;
    alone(seen, manifest)?;
    let mut entry = blank(asked, seen, manifest);
    let data = host.reach(&entry.data);
    let Some(log) = seen.log.filter(|_| data::is_there(&data)) else {
        return refused(format!(
            "there are no data of a member in {}: run this on a node that has some. {}",
            data.display(),
            survey::CHOICE
        ));
    };
    let own = CopyEnd {
        term: log.term,
        index: log.index,
    };
    let others: Vec<&str> = seen.peers.iter().map(|peer| peer.name.as_str()).collect();
    newest(own, &asked.copies, &others)?;
    let state = host.state().join("rescue").join(&entry.id).join("etcd");
    entry.aside = match &asked.copy_to {
        Some(place) => place.join(format!("etcd-{}", entry.id)),
        None => host.on_host(&state),
    };
    data::room(&data, &host.reach(&entry.aside))?;
    Ok(entry)
}

/// This node's copy is not older than any other. `others`: the members that may have one.
fn newest(own: CopyEnd, copies: &Copies, others: &[&str]) -> Result<(), StartError> {
    match copies {
        Copies::Unsaid if !others.is_empty() => refused(format!(
            "whether another node has newer data is not seen from here, and what only they have would be lost: run `lockkeeper rescue journal` on {} and give the end of each log that is there, --beside TERM/INDEX; where none of them has data left, --only-copy",
            others.join(" and ")
        )),
        Copies::Unsaid | Copies::Absent => Ok(()),
        Copies::Known(ends) => match ends.iter().max().filter(|end| **end > own) {
            Some(newer) => refused(format!(
                "the log that ends with {newer} is newer than this node's, which ends with {own}: run this on the node that has it"
            )),
            None => Ok(()),
        },
    }
}

/// No other member takes connections, and nothing is forced already.
pub(super) fn alone(seen: &Survey, manifest: &EtcdManifest) -> Result<(), StartError> {
    if let Some(alive) = seen.peers.iter().find(|peer| peer.alive) {
        return refused(format!(
            "{} ({}) answers. A member that lives on breaks the recovered one: run `lockkeeper rescue fence` on its node first (or switch that node off)",
            if alive.name.is_empty() {
                "another member"
            } else {
                &alive.name
            },
            alive.peer_url
        ));
    }
    if manifest.pod.flag(FORCE).is_some() {
        return refused(format!(
            "{} has the flag --{FORCE}: take it out; `lockkeeper rescue recover-quorum` puts it in for as long as it is needed",
            manifest.path.display()
        ));
    }
    Ok(())
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

/// `--force-new-cluster` leaves other members in place before 3.5.22, and learners before 3.5.25 and 3.6.6
/// (facts.md 3.7).
fn version_is_safe(version: Option<&str>) -> Result<(), StartError> {
    let parsed = version.and_then(|v| Version::parse(v).ok());
    let Some(version) = parsed else {
        return refused(
            "the version of etcd is not known: it does not answer, and its image's tag in etcd.yaml tells none. Name the image as repository:VERSION",
        );
    };
    let floor = match (version.major, version.minor) {
        (3, 5) => Version::new(3, 5, 25),
        (3, 6) => Version::new(3, 6, 6),
        (3, minor) if minor > 6 => return Ok(()),
        _ => Version::new(3, 5, 25),
    };
    if version >= floor {
        return Ok(());
    }
    refused(format!(
        "etcd {version} leaves dead members in a cluster that is forced anew: put image {floor} or newer of the same minor into etcd.yaml first (it starts without a quorum too), then run this again"
    ))
}

/// What must hold before a node is fenced, or joins anew.
async fn rejoining(
    host: &Host,
    asked: &Begin,
    seen: &Survey,
    manifest: &EtcdManifest,
) -> Result<Entry, StartError> {
    let mut entry = blank(asked, seen, manifest);
    entry.aside = host.on_host(&data::aside_of(&host.reach(&entry.data), &entry.id));
    if asked.until == Step::Fenced {
        return Ok(entry);
    }
    let (via, members) = find_survivor(host, asked, manifest).await?;
    let ids = |all: &[super::super::etcd::members::Listed]| all.iter().map(|m| m.id).collect::<Vec<_>>();
    let mine = members.iter().find(|member| member.name == entry.name);
    let own = seen.standing.as_ref().map(|standing| standing.member_id);
    let same = seen.quorum && mine.is_some_and(|mine| Some(mine.id) == own && !mine.learner);
    let mut here = ids(&seen.members);
    let mut there = ids(&members);
    here.sort_unstable();
    there.sort_unstable();
    if same && here == there {
        return refused(format!(
            "{} is a voting member of the cluster at {via} and in sync: there is nothing to rejoin",
            entry.name
        ));
    }
    if let Some(other) = members
        .iter()
        .find(|m| m.learner && m.name != entry.name && !m.peer_urls.contains(&entry.peer_url))
    {
        return refused(format!(
            "{} ({:x}) is a learner still, and members come back one at a time: wait until its `lockkeeper rescue rejoin` has ended, then run this again",
            if other.name.is_empty() {
                "another member"
            } else {
                &other.name
            },
            other.id
        ));
    }
    entry.via = Some(via);
    Ok(entry)
}

/// The survivor that answers, and whom it lists.
async fn find_survivor(
    host: &Host,
    asked: &Begin,
    manifest: &EtcdManifest,
) -> Result<(String, Vec<super::super::etcd::members::Listed>), StartError> {
    let own = survey::own_peer_url(&manifest.pod);
    let candidates: Vec<String> = match &asked.via {
        Some(via) if via.contains("://") => vec![via.clone()],
        // The port is this node's own unless one is named.
        Some(via) => survey::client_url(&manifest.pod, &format!("https://{via}"))
            .map(|url| {
                if has_port(via) {
                    format!("https://{via}")
                } else {
                    url
                }
            })
            .into_iter()
            .collect(),
        None => survey::initial_cluster(&manifest.pod)
            .into_iter()
            .filter(|(name, url)| name != manifest.pod.name() && *url != own)
            .filter_map(|(_, url)| survey::client_url(&manifest.pod, &url))
            .collect(),
    };
    let mut problems = Vec::new();
    for candidate in &candidates {
        let member = EtcdMember::by_copy(host.root(), &manifest.path, Some(candidate));
        match agreed(&member).await {
            Ok(members)
                if members.iter().any(|m| {
                    m.name == manifest.pod.name() && m.peer_urls.contains(&own) && members.len() == 1
                }) =>
            {
                problems.push(format!("{candidate} is this node itself"));
            }
            Ok(members) => return Ok((candidate.clone(), members)),
            Err(why) => problems.push(format!("{candidate}: {why}")),
        }
    }
    if candidates.is_empty() {
        return refused(
            "etcd.yaml names no other member in --initial-cluster: name the survivor, --via ADDRESS (the node on which `lockkeeper rescue recover-quorum` ran)",
        );
    }
    refused(format!(
        "no member of a cluster with a quorum answers ({}): run `lockkeeper rescue recover-quorum` on the survivor first, or name it by --via ADDRESS",
        problems.join("; ")
    ))
}

fn has_port(address: &str) -> bool {
    match address.rsplit_once(':') {
        Some((host, port)) => port.parse::<u16>().is_ok() && (host.ends_with(']') || !host.contains(':')),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_that_leave_dead_members_behind_are_refused_with_the_first_good_one() {
        for (version, good) in [
            ("3.5.24", None),
            ("3.5.25", Some(())),
            ("3.6.5", None),
            ("3.6.6", Some(())),
            ("3.7.0", Some(())),
            ("3.4.30", None),
        ] {
            let said = version_is_safe(Some(version));
            assert_eq!(said.is_ok(), good.is_some(), "{version}");
        }
        let error = version_is_safe(Some("3.6.5")).unwrap_err().to_string();
        assert!(error.contains("3.6.6"), "{error}");
        assert!(
            version_is_safe(None)
                .unwrap_err()
                .to_string()
                .contains("etcd.yaml")
        );
    }

    #[test]
    fn an_older_copy_or_one_that_was_compared_with_none_is_not_recovered_from() {
        let end = |text: &str| text.parse::<CopyEnd>().unwrap();
        let known = |ends: &[&str]| Copies::Known(ends.iter().map(|e| end(e)).collect());
        let (own, others) = (end("7/100"), ["cp1", "cp3"]);
        for copies in [known(&["7/100"]), known(&["6/900", "7/99"]), Copies::Absent] {
            newest(own, &copies, &others).unwrap();
        }
        newest(own, &Copies::Unsaid, &[]).unwrap();
        for newer in ["7/101", "8/1"] {
            let told = newest(own, &known(&["1/1", newer]), &others)
                .unwrap_err()
                .to_string();
            assert!(told.contains(newer) && told.contains("7/100"), "{told}");
        }
        let told = newest(own, &Copies::Unsaid, &others).unwrap_err().to_string();
        for says in ["cp1 and cp3", "--beside", "--only-copy"] {
            assert!(told.contains(says), "{says}: {told}");
        }
        assert!("7".parse::<CopyEnd>().unwrap_err().contains("TERM/INDEX"));
    }

    #[test]
    fn an_address_may_have_a_port() {
        assert!(has_port("10.0.0.1:2379") && has_port("[fd00::1]:2379"));
        assert!(!has_port("10.0.0.1") && !has_port("fd00::1") && !has_port("[fd00::1]"));
    }
}
