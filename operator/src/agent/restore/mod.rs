//! A restore of etcd on this node: the engine that does what [`lockkeeper_policies::restore`] decides.
//!
//! What comes in: an [`Order`](lockkeeper_crds::RestoreOrder) and how far it may go by now ([`Told`]), and what the
//! host and the etcd members show. What goes out: data and manifests exchanged and put back, signatures in the
//! restored etcd, [`RestoreProgress`]. May touch: etcd's data directory, the four manifests, its own journal; no API:
//! `lockkeeper rescue` may drive it from a shell.
//!
//! | file | what |
//! | --- | --- |
//! | `deeds` | doing what was decided |
//! | `journal` | what was promised, before it is done |
//! | `place` | the data directory, and how data is exchanged |
//! | `prepare`, `fetch` | the new data, beside the data in use |
//! | `look` | what runs here, and to which cluster the other members belong |
//! | `keys` | what is lost, and what came back |
//!
//! Whoever steps holds the claim ([`super::guard`]). Every act checks its precondition again and may be repeated
//! after a crash at any point.

mod deeds;
mod fetch;
mod journal;
mod keys;
mod look;
mod place;
mod prepare;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use chrono::{TimeDelta, Utc};
use lockkeeper_crds::{Component, RestoreMode, RestoreOrder, RestoreProgress, RestoreStage, RestoreWord};
use lockkeeper_policies::NodeName;
use lockkeeper_policies::restore::{Act, Live, Part, Preparation, Seen, Stage, Word, decide};

pub(crate) use fetch::{by_api, by_hand, describe};
pub(crate) use journal::{Entry, Journal, JournalStore};
pub(crate) use keys::count_loss;
pub(crate) use place::{Folders, Place};
pub(crate) use prepare::{Fetch, Workshop, beside, suits};

use super::cri::Cri;
use super::etcd::{EtcdMember, Reading};
use super::guard::Guard;
use super::host::Host;
use super::manifest::{self, Manifest};
use super::time::to_api;
use journal::JournalError;
use look::Eyes;
use prepare::Round;

/// All are prepared and confirmed: that the word to begin comes takes seconds.
const ARMED_LIMIT: TimeDelta = TimeDelta::minutes(10);

/// After the commit: until controller manager and scheduler run.
const AFTERWARDS_LIMIT: TimeDelta = TimeDelta::minutes(5);

/// A preparation that is told to end takes its pod off at once.
const CLOSING: Duration = Duration::from_secs(10);

/// A manifest is a few KiB.
const LARGEST: u64 = 10 * 1024 * 1024;

/// With all API servers down, a node that loses its power boots into static pods and nothing else.
const NO_GUARD: &str = "the agent has no guard, without which a power cut in the middle would leave this node to be put right by hand: set the chart's value agent.guard.enabled to true, and make a new EtcdRestore";

/// What is known of the order.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Told<'a> {
    /// Nobody has said anything yet.
    Nothing,
    /// This stands in the node's object, or nothing does.
    Order(Option<&'a RestoreOrder>),
}

/// Why an act was not done; it is tried again.
#[derive(Debug, thiserror::Error)]
enum EngineError {
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error("{what}: {source}")]
    Disk { what: String, source: io::Error },
    #[error(transparent)]
    Etcd(#[from] super::etcd::EtcdError),
    #[error("{NO_GUARD}")]
    NoGuard,
}

fn disk(what: impl Into<String>) -> impl FnOnce(io::Error) -> EngineError {
    let what = what.into();
    move |source| EngineError::Disk { what, source }
}

/// What the engine works with.
pub(crate) struct Tools {
    pub(crate) host: Host,
    pub(crate) cri: Cri,
    pub(crate) member: Arc<EtcdMember>,
    pub(crate) guard: Guard,
    /// None: it begins nothing, and only goes on with what the journal says.
    pub(crate) fetch: Option<Fetch>,
    pub(crate) node: String,
}

/// The engine of one process.
pub(crate) struct Restorer {
    tools: Tools,
    eyes: Eyes,
    store: JournalStore,
    journal: Result<Journal, String>,
    round: Option<Round>,
    prepared: Preparation,
    /// The guard was put on for a restore.
    guarded: bool,
    note: String,
}

impl Restorer {
    /// Reads the journal.
    pub(crate) fn open(tools: Tools) -> Self {
        let store = JournalStore::new(tools.host.clone());
        Self {
            eyes: Eyes::new(tools.host.clone(), tools.cri.clone()),
            journal: store.load(),
            store,
            round: None,
            prepared: Preparation::Pending,
            guarded: tools.guard.is_on(),
            note: String::new(),
            tools,
        }
    }

    /// Reads the journal again: another process may have written it.
    pub(crate) fn reload(&mut self) {
        self.journal = self.store.load();
        self.guarded = self.tools.guard.is_on();
    }

    fn live(&self) -> Option<&Entry> {
        self.journal.as_ref().ok().and_then(Journal::live)
    }

    /// True while no ticket may be taken up, and no preflight made.
    pub(crate) fn is_going(&self) -> bool {
        self.live()
            .is_some_and(|e| e.stage.is_touching() || e.stage == Stage::Armed)
    }

    /// True while something is done or waited for that should not wait long.
    pub(crate) fn is_busy(&self) -> bool {
        self.live().is_some_and(|e| e.stage != Stage::Prepared)
    }

    /// True when a guard could be put beside what is changed.
    pub(crate) fn is_guarded(&self) -> bool {
        self.tools.guard.is_at_hand()
    }

    /// What cannot be understood of the journal.
    pub(crate) fn trouble(&self) -> Option<&str> {
        self.journal.as_ref().err().map(String::as_str)
    }

    /// Looks, decides, and does one thing. True when something was done, and the next thing is to be decided at once.
    ///
    /// `free`: no ticket is live. `alone`: the kubelet has got nothing from an API since it started.
    pub(crate) async fn step(&mut self, told: Told<'_>, free: bool, alone: bool) -> bool {
        let done = match self.live().cloned() {
            None => self.take_up(told, free).await,
            Some(entry) if alone && !entry.stage.is_touching() => Ok(false),
            Some(entry) => self.go_on(&entry, told, free, alone).await,
        };
        let done = done.and_then(|done| self.tend_guard(free).map(|()| done));
        match done {
            Ok(done) => done,
            Err(error) => {
                tracing::error!(%error, "restore: not done, trying again");
                self.note = error.to_string();
                // Not "acted": that would try again without a pause.
                false
            }
        }
    }

    /// Ends what is in hand of a preparation; its pod is taken off.
    pub(crate) async fn close(&mut self) {
        if let Some(round) = self.round.take() {
            round.close(CLOSING).await;
        }
    }

    /// A new order, if there is one that may be obeyed.
    async fn take_up(&mut self, told: Told<'_>, free: bool) -> Result<bool, EngineError> {
        let (Ok(journal), Told::Order(Some(order)), Some(_)) = (&self.journal, told, &self.tools.fetch)
        else {
            return Ok(false);
        };
        // An order that was never prepared here is never begun in the middle, whatever its word.
        if !free || order.word != RestoreWord::Prepare || journal.knows(&order.id) {
            return Ok(false);
        }
        let now = Utc::now();
        let node = NodeName::from(self.tools.node.as_str());
        let (place, stage, message) = match Place::read(&self.tools.host) {
            Ok(place) => (place, Stage::Preparing, String::new()),
            Err(error) => (Place::default(), Stage::Dropped, error.to_string()),
        };
        let entry = Entry {
            order: order.clone(),
            node,
            place,
            stage,
            since: now,
            deadline: now + TimeDelta::seconds(order.deadlines.prepare_seconds.into()),
            message,
            manifests: Default::default(),
            backup: None,
            loss: None,
            report: None,
            revision_after: None,
        };
        self.prepared = Preparation::Pending;
        self.save(entry)?;
        Ok(true)
    }

    async fn go_on(
        &mut self,
        entry: &Entry,
        told: Told<'_>,
        free: bool,
        alone: bool,
    ) -> Result<bool, EngineError> {
        if entry.stage == Stage::Preparing {
            self.attend_round(entry).await?;
        }
        // What the round found is in the journal.
        let Some(entry) = self.live().cloned() else {
            return Ok(true);
        };
        if entry.stage == Stage::Prepared && entry.order.mode != RestoreMode::InPlace {
            self.mark(&entry, Stage::Done, "tried; nothing was touched".to_owned())?;
            return Ok(true);
        }
        let seen = self.look(&entry, told, free, alone).await;
        let nodes = entry.nodes();
        let act = decide(&entry.standing(&nodes), &seen, Utc::now());
        if let Act::Wait(why) = act {
            self.note = why;
            return Ok(false);
        }
        self.note.clear();
        tracing::debug!(?act, stage = ?entry.stage, "restore");
        self.perform(&entry, act).await?;
        Ok(true)
    }

    /// Begins the preparation where none is in hand, and takes in what one has found.
    async fn attend_round(&mut self, entry: &Entry) -> Result<(), EngineError> {
        let of_another = self.round.as_ref().is_some_and(|r| r.id != entry.order.id);
        if of_another && let Some(round) = self.round.take() {
            round.close(CLOSING).await;
        }
        let Some(round) = &mut self.round else {
            if let (Some(fetch), Preparation::Pending) = (&self.tools.fetch, &self.prepared) {
                let workshop = Workshop {
                    host: self.tools.host.clone(),
                    cri: self.tools.cri.clone(),
                    member: self.tools.member.clone(),
                    fetch: fetch.clone(),
                };
                self.round = Some(Round::begin(workshop, self.tools.guard.clone(), entry));
            }
            return Ok(());
        };
        let Some(ended) = round.ended().await else {
            return Ok(());
        };
        self.round = None;
        match ended {
            Ok(found) => {
                self.prepared = Preparation::Ready;
                let mut next = entry.clone();
                next.backup = Some(found.backup);
                next.loss = found.loss;
                self.save(next)?;
            }
            Err(why) => self.prepared = Preparation::Failed(why),
        }
        Ok(())
    }

    async fn look(&mut self, entry: &Entry, told: Told<'_>, free: bool, alone: bool) -> Seen {
        let folders = Folders::new(&self.tools.host, &entry.place, &entry.order.id);
        let touching = entry.stage.is_touching();
        let preparation = match entry.stage {
            Stage::Preparing => self.prepared.clone(),
            // Somebody has removed it.
            Stage::Going if folders.live() == Live::Old && !folders.is_prepared() => {
                Preparation::Failed("the prepared data is gone from etcd's disk".to_owned())
            }
            _ => Preparation::Ready,
        };
        let mut seen = Seen {
            word: word(entry, told, free),
            preparation,
            parts: Default::default(),
            live: Live::Old,
            register: None,
            old_whole: false,
            peers: Default::default(),
        };
        if !touching && entry.stage != Stage::Armed {
            return seen;
        }
        if touching {
            seen.live = folders.live();
            let kept = self.api_server_before(entry);
            seen.parts = self.eyes.parts(alone, kept.as_ref()).await;
            let on = seen.parts.get(&Part::Etcd).is_some_and(|p| p.on);
            match seen.live {
                Live::New if on => seen.register = self.register(entry).await.map(|r| r.register),
                Live::Old if on && entry.stage == Stage::Undoing => {
                    let whole = self.tools.member.whole().await;
                    seen.old_whole = whole.is_ok_and(|(id, _)| id == entry.order.cluster_id);
                }
                _ => {}
            }
        }
        // Asked last, so that what they say is newer than what the journal says.
        if matches!(entry.stage, Stage::Armed | Stage::Ready) || seen.live == Live::New {
            seen.peers = self.eyes.peers(entry).await;
        }
        seen
    }

    /// The API server's manifest as it was before it was taken off.
    fn api_server_before(&self, entry: &Entry) -> Option<Manifest> {
        let bytes = self.store.kept(entry, Part::KubeApiserver).ok()?;
        let (component, host) = (Component::KubeApiserver, &self.tools.host);
        manifest::parse(&host.manifest(component), component, &bytes).ok()
    }

    /// The register, if this node's own member of the restored cluster answers.
    async fn register(&self, entry: &Entry) -> Option<Reading> {
        match self.tools.member.register(&entry.order.id).await {
            Ok(reading) if reading.cluster_id != entry.order.cluster_id => Some(reading),
            Ok(_) => None,
            Err(error) => {
                tracing::debug!(%error, "the restored etcd does not answer");
                None
            }
        }
    }

    /// The guard is on from the moment that all are armed until the end.
    fn tend_guard(&mut self, free: bool) -> Result<(), EngineError> {
        let (going, on) = (self.is_going(), self.tools.guard.is_on());
        if going && !on {
            self.tools
                .guard
                .put_on()
                .map_err(disk("the guard cannot be put on"))?;
        }
        if !going && self.guarded && on && free && self.journal.is_ok() {
            self.tools
                .guard
                .take_off()
                .map_err(disk("the guard cannot be taken off"))?;
        }
        self.guarded = going;
        Ok(())
    }

    /// For the node's object.
    pub(crate) fn progress(&self) -> Option<RestoreProgress> {
        let entry = self.journal.as_ref().ok()?.entry.as_ref()?;
        let message = if entry.is_live() && !self.note.is_empty() {
            &self.note
        } else {
            &entry.message
        };
        Some(RestoreProgress {
            id: entry.order.id.clone(),
            name: entry.order.name.clone(),
            stage: stage_out(entry.stage),
            since: to_api(entry.since),
            deadline: (entry.is_live() && entry.stage != Stage::Undoing).then(|| to_api(entry.deadline)),
            message: message.clone(),
            loss: entry.loss.clone(),
            report: entry.report.clone(),
            mode: entry.order.mode,
            store: entry.order.store.name.clone(),
            backup: entry.backup.clone(),
            revision_after: entry.revision_after,
            replaced_cluster_id: entry.order.cluster_id.clone(),
        })
    }
}

/// The word as it counts for this entry.
fn word(entry: &Entry, told: Told<'_>, free: bool) -> Word {
    match told {
        Told::Nothing => Word::Unknown,
        Told::Order(Some(order)) if order.id == entry.order.id => match order.word {
            RestoreWord::Prepare => Word::Prepare,
            // Not beside a ticket.
            RestoreWord::Arm | RestoreWord::Go if !free => Word::Prepare,
            RestoreWord::Arm => Word::Arm,
            RestoreWord::Go => Word::Go,
        },
        Told::Order(_) => Word::Withdrawn,
    }
}

const fn stage_out(stage: Stage) -> RestoreStage {
    match stage {
        Stage::Preparing => RestoreStage::Preparing,
        Stage::Prepared => RestoreStage::Prepared,
        Stage::Armed => RestoreStage::Armed,
        Stage::Going => RestoreStage::Going,
        Stage::Ready => RestoreStage::Ready,
        Stage::Committed => RestoreStage::Committed,
        Stage::Undoing => RestoreStage::Undoing,
        Stage::Done => RestoreStage::Done,
        Stage::Undone => RestoreStage::Undone,
        Stage::Dropped => RestoreStage::Dropped,
    }
}
