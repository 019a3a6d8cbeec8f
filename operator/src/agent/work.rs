//! The agent's loop: look, decide, act, tell.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use chrono::Utc;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use lockkeeper_crds::{
    ControlPlaneNodeStatus, EtcdStatus, PreflightReport, Ticket, Tristate, Verdict, condition, set_condition,
};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::certificates::{self, Certificates};
use super::cri::Cri;
use super::desk::Desk;
use super::directory;
use super::etcd::EtcdMember;
use super::executor::Executor;
use super::host::Host;
use super::journal::JournalState;
use super::observe::{Observation, Observer, file_seen};
use super::preflight::Bench;
use super::rehearse;
use super::report::Known;
use super::ticket::{NodeSeen, decide};
use super::time::to_api;

/// Between looks while a ticket is live: readiness is on the critical path of every upgrade.
const LIVE: Duration = Duration::from_secs(1);
/// While the operator waits.
const ATTENTIVE: Duration = Duration::from_secs(2);
/// At rest.
const AT_REST: Duration = Duration::from_secs(10);

/// Certificates change when a person renews them.
const CERTIFICATES: Duration = Duration::from_secs(600);

/// More acts than a ticket has in one breath: accept, three files, three marks.
const BREATH: usize = 16;

/// etcd's own look has a deadline of 10 s.
const ETCD: Duration = Duration::from_secs(12);

/// Everything the loop holds.
pub(crate) struct Work {
    host: Host,
    observer: Observer,
    executor: Executor,
    desk: Desk,
    known: watch::Receiver<Known>,
    status: watch::Sender<Option<ControlPlaneNodeStatus>>,
    etcd: watch::Receiver<Option<EtcdStatus>>,
    preflight: watch::Receiver<Option<PreflightReport>>,
    certificates: Option<(Instant, Certificates)>,
    conditions: Vec<Condition>,
}

impl Work {
    pub(crate) fn new(
        host: Host,
        cri: Cri,
        bench: Bench,
        known: watch::Receiver<Known>,
        status: watch::Sender<Option<ControlPlaneNodeStatus>>,
        etcd: watch::Receiver<Option<EtcdStatus>>,
    ) -> Self {
        let desk = Desk::new(bench);
        Self {
            observer: Observer::new(host.clone(), cri),
            executor: Executor::open(host.clone()),
            preflight: desk.reports(),
            desk,
            host,
            known,
            status,
            etcd,
            certificates: None,
            conditions: Vec::new(),
        }
    }

    /// Loops until `shutdown`.
    pub(crate) async fn run(&mut self, shutdown: &CancellationToken) {
        if let Err(error) = rehearse::clear(&self.host) {
            tracing::error!(%error, "a stale rehearsal cannot be removed");
        }
        while !shutdown.is_cancelled() {
            let known = self.known.borrow_and_update().clone();
            let wanted = self.wanted(known.spec.ticket.as_ref());
            let live = self.executor.journal().live().is_some();
            let close = live || known.spec.attentive || !wanted.is_empty();
            let observation = self.observer.observe(&wanted, close).await;
            let acted = self.act(observation.seen.clone());
            let live = self.executor.journal().live().is_some();
            let busy = live || !self.wanted(known.spec.ticket.as_ref()).is_empty();
            if known.synced {
                self.desk
                    .attend(known.spec.preflight.as_ref(), known.preflight.as_ref(), busy);
                // Not before the first word of the API: a preflight that was done before a restart would
                // be told away before it is taken over.
                self.publish(observation, &known);
            }
            if acted {
                continue;
            }
            let pause = match (busy, known.spec.attentive) {
                (true, _) => LIVE,
                (false, true) => ATTENTIVE,
                (false, false) => AT_REST,
            };
            tokio::select! {
                () = sleep(pause) => {}
                _ = self.known.changed() => {}
                _ = self.preflight.changed() => {}
                _ = self.etcd.changed() => {}
                () = shutdown.cancelled() => {}
            }
        }
    }

    pub(crate) async fn close(&mut self) {
        self.desk.close().await;
    }

    /// The images that the ticket in hand, or the one to be taken up, speaks of.
    fn wanted(&self, desired: Option<&Ticket>) -> BTreeSet<String> {
        if let Some(entry) = self.executor.journal().live() {
            return entry
                .files
                .iter()
                .flat_map(|f| [f.old_image.clone(), f.new_image.clone()])
                .collect();
        }
        let JournalState::Known(journal) = self.executor.journal() else {
            return BTreeSet::new();
        };
        desired
            .filter(|t| t.number > journal.last_number && t.verdict == Verdict::Pending)
            .map(|t| t.changes.iter().map(|c| c.image.clone()).collect())
            .unwrap_or_default()
    }

    /// Decides and acts until there is nothing more to do now. True when something was done.
    fn act(&mut self, mut seen: NodeSeen) -> bool {
        for done in 0..BREATH {
            // The freshest word: it may have come while the node was looked at.
            let desired = self.known.borrow().spec.ticket.clone();
            let now = Utc::now();
            let action = decide(self.executor.journal(), desired.as_ref(), &seen, now);
            match self.executor.perform(action, now) {
                Ok(true) => self.look_at_files(&mut seen),
                Ok(false) => return done > 0,
                Err(error) => {
                    tracing::error!(%error, "not done, trying again");
                    // Not "acted": that would try again without a pause.
                    return false;
                }
            }
        }
        true
    }

    fn look_at_files(&self, seen: &mut NodeSeen) {
        for (component, there) in &mut seen.components {
            there.file = file_seen(Some(&directory::read_component(&self.host, *component)));
        }
    }

    fn publish(&mut self, observation: Observation, known: &Known) {
        let (reason, ready, message) = self.readiness(&observation);
        let now = to_api(Utc::now());
        set_condition(
            &mut self.conditions,
            condition("Ready", ready, reason, &message, known.generation, now),
        );
        if self
            .certificates
            .as_ref()
            .is_none_or(|(at, _)| at.elapsed() >= CERTIFICATES)
        {
            self.certificates = Some((Instant::now(), certificates::read(&self.host)));
        }
        let status = ControlPlaneNodeStatus {
            observed_generation: known.generation,
            heartbeat: 0,
            observed_at: None,
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            address: observation.address,
            components: observation.components,
            etcd: self.etcd.borrow_and_update().clone(),
            certificates: self
                .certificates
                .as_ref()
                .map(|(_, found)| found.status())
                .unwrap_or_default(),
            manifest_problems: observation
                .directory
                .problems
                .into_iter()
                .map(|p| p.sentence)
                .collect(),
            preflight: self.preflight.borrow_and_update().clone(),
            ticket: self.executor.status(),
            conditions: self.conditions.clone(),
        };
        self.status.send_replace(Some(status));
    }

    fn readiness(&self, observation: &Observation) -> (&'static str, Tristate, String) {
        if let JournalState::Broken(why) = self.executor.journal() {
            return ("JournalBroken", Tristate::False, why.clone());
        }
        if let Some(why) = &observation.runtime_problem {
            return ("RuntimeUnreachable", Tristate::False, why.clone());
        }
        if self.executor.journal().live().is_none() && !self.executor.note().is_empty() {
            return ("TicketWaits", Tristate::True, self.executor.note().to_owned());
        }
        ("HostSeen", Tristate::True, "The agent sees its host.".to_owned())
    }
}

/// Looks at the local etcd member in its own time: a slow member must not hold up a way back.
pub(crate) async fn watch_etcd(
    member: &EtcdMember,
    known: watch::Receiver<Known>,
    tell: watch::Sender<Option<EtcdStatus>>,
    shutdown: CancellationToken,
) {
    loop {
        let seen = match timeout(ETCD, member.observe()).await {
            Ok(seen) => seen,
            Err(_) => Some(EtcdStatus {
                message: format!("the member did not answer within {} s", ETCD.as_secs()),
                ..EtcdStatus::default()
            }),
        };
        // Only what changed wakes the loop.
        tell.send_if_modified(|old| {
            let changed = *old != seen;
            *old = seen;
            changed
        });
        let pause = if known.borrow().spec.attentive {
            ATTENTIVE
        } else {
            AT_REST
        };
        tokio::select! {
            () = sleep(pause) => {}
            () = shutdown.cancelled() => return,
        }
    }
}
