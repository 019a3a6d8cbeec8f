//! What the agent and the guard have in common: look at the node, decide, act.

use std::collections::BTreeSet;

use chrono::Utc;
use lockkeeper_crds::{Ticket, Verdict};

use super::cri::Cri;
use super::directory;
use super::executor::Executor;
use super::guard::Guard;
use super::host::Host;
use super::journal::JournalState;
use super::observe::{Observer, file_seen};
use super::ticket::{NodeSeen, decide, outstayed};

/// More acts than a ticket has in one breath: accept, three files, three marks.
const BREATH: usize = 16;

/// Eyes and hand of one process.
#[derive(Debug)]
pub(crate) struct Hand {
    pub(crate) host: Host,
    pub(crate) observer: Observer,
    pub(crate) executor: Executor,
    cri: Cri,
}

impl Hand {
    /// Reads the journal. Whoever is going to act holds the claim.
    pub(crate) fn open(host: Host, cri: Cri, guard: Guard) -> Self {
        Self {
            observer: Observer::new(host.clone(), cri.clone()),
            cri,
            executor: Executor::open(host.clone(), guard),
            host,
        }
    }

    /// The images that the ticket in hand, or the one to be taken up, speaks of.
    pub(crate) fn images(&self, desired: Option<&Ticket>) -> BTreeSet<String> {
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
    ///
    /// `desired` is asked before each act: word may have come while the node was looked at.
    pub(crate) fn act(&mut self, mut seen: NodeSeen, desired: impl Fn() -> Option<Ticket>) -> bool {
        for done in 0..BREATH {
            let now = Utc::now();
            let action = decide(self.executor.journal(), desired().as_ref(), &seen, now);
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

    /// Ends an API server that is being replaced and has nothing left but watches.
    pub(crate) async fn see_out(&self, seen: &NodeSeen) {
        let Some(entry) = self.executor.journal().live() else {
            return;
        };
        let Some(container) = outstayed(entry, seen, Utc::now()) else {
            return;
        };
        let drained = entry.ticket.drain_seconds;
        match self.cri.kill(container).await {
            Ok(()) => tracing::info!(container, drained, "ended the API server that is being replaced"),
            // The kubelet does it a little later.
            Err(error) => {
                tracing::warn!(%error, "the API server that is being replaced could not be ended early")
            }
        }
    }

    fn look_at_files(&self, seen: &mut NodeSeen) {
        for (component, there) in &mut seen.components {
            there.file = file_seen(Some(&directory::read_component(&self.host, *component)));
        }
    }
}
