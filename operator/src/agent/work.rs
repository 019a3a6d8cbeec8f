//! The agent's loop: look, decide, act, tell.

use std::time::{Duration, Instant};

use chrono::Utc;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use lockkeeper_crds::{
    ControlPlaneNodeStatus, EtcdStatus, PreflightReport, Tristate, condition, set_condition,
};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::certificates::{self, Certificates};
use super::desk::Desk;
use super::etcd::EtcdMember;
use super::guard::Claim;
use super::hand::Hand;
use super::host::Host;
use super::journal::JournalState;
use super::observe::Observation;
use super::preflight::Bench;
use super::rehearse;
use super::report::Known;
use super::rescue;
use super::restore::{Restorer, Told};
use super::ticket::NodeSeen;
use super::time::to_api;

/// Between looks while a ticket is live: readiness is on the critical path of every upgrade.
const LIVE: Duration = Duration::from_secs(1);
/// While the operator waits.
const ATTENTIVE: Duration = Duration::from_secs(2);
/// At rest.
const AT_REST: Duration = Duration::from_secs(10);

/// Certificates change when a person renews them.
const CERTIFICATES: Duration = Duration::from_secs(600);

/// etcd's own look has a deadline of 10 s.
const ETCD: Duration = Duration::from_secs(12);

/// What the loop acts with.
pub(crate) struct Hands {
    pub(crate) hand: Hand,
    pub(crate) restorer: Restorer,
    /// Without it nothing is done; let go of while a person's rescue is in hand on this node.
    pub(crate) claim: Option<Claim>,
}

/// Everything the loop holds.
pub(crate) struct Work {
    hand: Hand,
    restorer: Restorer,
    claim: Option<Claim>,
    desk: Desk,
    known: watch::Receiver<Known>,
    status: watch::Sender<Option<ControlPlaneNodeStatus>>,
    etcd: watch::Receiver<Option<EtcdStatus>>,
    preflight: watch::Receiver<Option<PreflightReport>>,
    busy: watch::Sender<bool>,
    certificates: Option<(Instant, Certificates)>,
    conditions: Vec<Condition>,
}

impl Work {
    pub(crate) fn new(
        Hands {
            hand,
            restorer,
            claim,
        }: Hands,
        bench: Bench,
        known: watch::Receiver<Known>,
        status: watch::Sender<Option<ControlPlaneNodeStatus>>,
        etcd: watch::Receiver<Option<EtcdStatus>>,
        busy: watch::Sender<bool>,
    ) -> Self {
        let desk = Desk::new(bench);
        Self {
            preflight: desk.reports(),
            desk,
            hand,
            busy,
            restorer,
            claim,
            known,
            status,
            etcd,
            certificates: None,
            conditions: Vec::new(),
        }
    }

    /// Loops until `shutdown`.
    pub(crate) async fn run(&mut self, shutdown: &CancellationToken) {
        if let Err(error) = rehearse::clear(&self.hand.host) {
            tracing::error!(%error, "a stale rehearsal cannot be removed");
        }
        while !shutdown.is_cancelled() {
            let known = self.known.borrow_and_update().clone();
            let may_act = self.may_act();
            let restored = may_act && self.restore(&known).await;
            let wanted = self.hand.images(known.spec.ticket.as_ref());
            // Told before it is acted upon: what else burdens the node makes way.
            self.tell_busy(!may_act || !wanted.is_empty() || self.restorer.is_busy());
            let live = self.hand.executor.journal().live().is_some() || self.restorer.is_going();
            let close = live || known.spec.attentive || !wanted.is_empty();
            let observation = self.hand.observer.observe(&wanted, close).await;
            let acted = self.act(observation.seen.clone()).await || restored;
            let live = self.hand.executor.journal().live().is_some() || self.restorer.is_busy();
            let busy = live || !may_act || !self.hand.images(known.spec.ticket.as_ref()).is_empty();
            self.tell_busy(busy);
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

    /// What the ticket asks for. True when something was done.
    async fn act(&mut self, seen: NodeSeen) -> bool {
        // Asked again: the look at the node takes its time.
        if !self.may_act() {
            return false;
        }
        // No ticket is taken up beside a restore.
        let going = self.restorer.is_going();
        let known = &self.known;
        let acted = self.hand.act(seen.clone(), || {
            known.borrow().spec.ticket.clone().filter(|_| !going)
        });
        self.hand.see_out(&seen).await;
        acted
    }

    /// Whether a ticket is in hand, or about to be.
    fn tell_busy(&self, busy: bool) {
        let _ = self
            .busy
            .send_if_modified(|told| std::mem::replace(told, busy) != busy);
    }

    /// True while this process has the claim and no rescue is in hand; lets go of the claim for one.
    fn may_act(&mut self) -> bool {
        if rescue::in_hand(&self.hand.host).is_some() {
            if self.claim.take().is_some() {
                tracing::warn!("a rescue is in hand on this node: nothing is done until it has ended");
            }
            return false;
        }
        if self.claim.is_none() {
            match Claim::take(&self.hand.host) {
                Ok(claim) => self.claim = claim,
                Err(error) => tracing::error!(%error, "the claim cannot be taken"),
            }
            if self.claim.is_some() {
                // The guard may have written since, and the rescue has changed what runs.
                self.hand.executor.reload();
                self.restorer.reload();
                tracing::info!("no rescue is in hand any more");
            }
        }
        self.claim.is_some()
    }

    pub(crate) async fn close(&mut self) {
        self.desk.close().await;
        self.restorer.close().await;
    }

    /// One thing for a restore. True when something was done.
    async fn restore(&mut self, known: &Known) -> bool {
        let told = if known.synced {
            Told::Order(known.spec.restore.as_ref())
        } else {
            Told::Nothing
        };
        let free = self.hand.executor.journal().live().is_none();
        let acted = self.restorer.step(told, free, false).await;
        self.hand.executor.mind_restore(self.restorer.is_going());
        acted
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
            self.certificates = Some((Instant::now(), certificates::read(&self.hand.host)));
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
            ticket: self.hand.executor.status(),
            restore: self.restorer.progress(),
            guard: if self.restorer.is_guarded() {
                Tristate::True
            } else {
                Tristate::False
            },
            conditions: self.conditions.clone(),
        };
        self.status.send_replace(Some(status));
    }

    fn readiness(&self, observation: &Observation) -> (&'static str, Tristate, String) {
        if self.claim.is_none() {
            let why = "`lockkeeper rescue` is in hand on this node, and nothing else is done there until it has ended: `lockkeeper rescue journal` on the node shows where it stands.";
            return ("RescueInHand", Tristate::False, why.to_owned());
        }
        if let JournalState::Broken(why) = self.hand.executor.journal() {
            return ("JournalBroken", Tristate::False, why.clone());
        }
        if let Some(why) = self.restorer.trouble() {
            return ("JournalBroken", Tristate::False, why.to_owned());
        }
        if let Some(why) = &observation.runtime_problem {
            return ("RuntimeUnreachable", Tristate::False, why.clone());
        }
        if self.hand.executor.journal().live().is_none() && !self.hand.executor.note().is_empty() {
            return (
                "TicketWaits",
                Tristate::True,
                self.hand.executor.note().to_owned(),
            );
        }
        ("HostSeen", Tristate::True, "The agent sees its host.".to_owned())
    }
}

/// Looks at the local etcd member in its own time: a slow member must not hold up a way back.
pub(crate) async fn watch_etcd(
    host: &Host,
    member: &EtcdMember,
    known: watch::Receiver<Known>,
    tell: watch::Sender<Option<EtcdStatus>>,
    shutdown: CancellationToken,
) {
    loop {
        let seen = match timeout(ETCD, member.observe()).await {
            // Without a manifest there is no member; in a rescue it is away for a while.
            Ok(None) if rescue::in_hand(host).is_some() => Some(EtcdStatus {
                message: "a rescue is in hand on this node".to_owned(),
                ..EtcdStatus::default()
            }),
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
