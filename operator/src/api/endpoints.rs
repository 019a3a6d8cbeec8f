//! Which API servers there are, in which order to try them, and what is remembered of each.
//!
//! What comes in: addresses, failures. What goes out: an order. May touch: nothing (the clock is an argument).

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Address;

/// How long an address that failed is tried after the others. Long enough that a run of requests does
/// not pay for a dead server each time (1 s a try), short enough that a server which was swapped
/// (some 5 s) is in use again soon after.
pub const FAILURE_MEMORY: Duration = Duration::from_secs(10);

/// The API servers, in order of preference; shared and updated while in use.
///
/// The order: an agent's own node first, then those learned from `ControlPlaneNode.status.address`,
/// last the service or load balancer that the process was configured with. Those that failed within
/// [`FAILURE_MEMORY`] come after all others, the longest ago first: none is ever left out.
#[derive(Clone, Debug, Default)]
pub struct Endpoints {
    table: Arc<Mutex<Table>>,
}

#[derive(Debug, Default)]
struct Table {
    first: Option<Address>,
    learned: Vec<Address>,
    last: Option<Address>,
    /// The one that has answered most recently.
    current: Option<Address>,
    memory: HashMap<Address, Memory>,
}

#[derive(Debug, Default)]
struct Memory {
    failure: Option<(Instant, String)>,
    /// Cancelled to close every connection to this address; the next connection brings a new one.
    links: Arc<CancellationToken>,
}

impl Endpoints {
    /// `first` is tried before and `last` after what is learned later.
    #[must_use]
    pub fn new(first: Option<Address>, last: Option<Address>) -> Self {
        Self {
            table: Arc::new(Mutex::new(Table {
                first,
                last,
                ..Table::default()
            })),
        }
    }

    /// Exactly one server, for a client that must not fall back on another.
    #[must_use]
    pub fn only(address: Address) -> Self {
        Self::new(Some(address), None)
    }

    /// Changes which server is tried before all others: an agent learns its own node's from the manifest.
    pub fn prefer(&self, first: Option<Address>) {
        self.lock().first = first;
    }

    /// Replaces what was learned. Existing connections stay: a server that vanished from the list
    /// ends them itself, and one that is missing by mistake must not cost a running watch. But for what was learned
    /// first: connections by the address of last resort, behind which is any server, end then. A watch there would be
    /// with a server that nobody asks anything else, so that nobody would notice when it hangs.
    pub fn learn(&self, addresses: impl IntoIterator<Item = Address>) {
        let mut table = self.lock();
        let knew_none = table.learned.is_empty();
        table.learned.clear();
        for address in addresses {
            if !table.learned.contains(&address) {
                table.learned.push(address);
            }
        }
        let known = table.all();
        if knew_none
            && let Some(last) = table.last.clone()
            && known.first() != Some(&last)
            && let Some(memory) = table.memory.get(&last)
        {
            memory.links.cancel();
        }
        let current = table.current.clone();
        let kept = |address: &Address| known.contains(address) || current.as_ref() == Some(address);
        table.memory.retain(|address, _| kept(address));
    }

    /// Every address, in order of preference.
    #[must_use]
    pub fn all(&self) -> Vec<Address> {
        self.lock().all()
    }

    /// True for a server that is used only while the one that goes before all others does not answer.
    pub(super) fn is_refuge(&self, address: &Address) -> bool {
        self.lock().first.as_ref().is_some_and(|first| first != address)
    }

    /// Every address, in the order to try now.
    #[must_use]
    pub fn order(&self, now: Instant) -> Vec<Address> {
        let table = self.lock();
        let mut order = table.all();
        // Stable: equals keep their preference.
        order.sort_by_key(|address| {
            table
                .memory
                .get(address)
                .and_then(|memory| memory.failure.as_ref())
                .map(|(at, _)| *at)
                .filter(|at| now.saturating_duration_since(*at) < FAILURE_MEMORY)
        });
        order
    }

    /// Remembers that a server failed: others are dialled before it for a while.
    pub fn failed(&self, address: &Address, now: Instant, why: impl Into<String>) {
        self.lock().memory.entry(address.clone()).or_default().failure = Some((now, why.into()));
    }

    /// Forgets a failure. When another server has answered before, what closes the connections to that one: a watch that
    /// stayed there would be with a server that is asked nothing else, and nobody would notice when it hangs.
    pub(super) fn answered(&self, link: &Link) -> Option<Arc<CancellationToken>> {
        let mut table = self.lock();
        let memory = table.memory.get_mut(&link.address)?;
        if !Arc::ptr_eq(&memory.links, &link.token) || link.token.is_cancelled() {
            // By a connection that ends: others have left for another server.
            return None;
        }
        memory.failure = None;
        let left = table.current.replace(link.address.clone());
        let left = left.filter(|left| *left != link.address)?;
        // Its next connections are not those that end now.
        Some(std::mem::take(&mut table.memory.get_mut(&left)?.links))
    }

    /// Remembers a failure and closes every connection to that server, watches too: one that does not
    /// answer a request will not send the events of a watch either, and says so to nobody.
    pub fn give_up(&self, address: &Address, now: Instant, why: impl Into<String>) {
        let mut table = self.lock();
        let memory = table.memory.entry(address.clone()).or_default();
        memory.failure = Some((now, why.into()));
        memory.links.cancel();
    }

    /// As [`Self::give_up`], for the connections that were made along with this one: many requests that
    /// time out together must not close the connections of their successors.
    pub(super) fn give_up_link(&self, link: &Link, now: Instant, why: impl Into<String>) {
        self.failed(&link.address, now, why);
        link.token.cancel();
    }

    #[cfg(test)]
    pub(super) fn current(&self) -> Option<Address> {
        self.lock().current.clone()
    }

    /// What a new connection to the address carries with it.
    pub(super) fn link(&self, address: &Address) -> Link {
        let mut table = self.lock();
        let memory = table.memory.entry(address.clone()).or_default();
        if memory.links.is_cancelled() {
            memory.links = Arc::default();
        }
        Link {
            address: address.clone(),
            token: Arc::clone(&memory.links),
        }
    }

    /// One line for an error message: every address and its last failure.
    #[must_use]
    pub fn describe(&self, now: Instant) -> String {
        let table = self.lock();
        let mut text = String::new();
        for address in table.all() {
            if !text.is_empty() {
                text.push_str(", ");
            }
            text.push_str(address.as_str());
            if let Some((at, why)) = table.memory.get(&address).and_then(|m| m.failure.as_ref()) {
                let ago = now.saturating_duration_since(*at).as_secs();
                // Writing to a String cannot fail.
                let _ = write!(text, " (failed {ago} s ago: {why})");
            }
        }
        if text.is_empty() {
            text.push_str("no known API server");
        }
        text
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        // Every critical section leaves the table whole, so a panic in another thread spoils nothing.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn all(&self) -> Vec<Address> {
        let mut all: Vec<Address> = Vec::with_capacity(self.learned.len() + 2);
        for address in self.first.iter().chain(&self.learned) {
            if !all.contains(address) && Some(address) != self.last.as_ref() {
                all.push(address.clone());
            }
        }
        all.extend(self.last.clone());
        all
    }
}

/// Ties a connection to its server, so that it can be closed from outside.
#[derive(Clone, Debug)]
pub(super) struct Link {
    pub(super) address: Address,
    pub(super) token: Arc<CancellationToken>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn a(text: &str) -> Address {
        text.parse().unwrap()
    }

    fn texts(order: &[Address]) -> Vec<&str> {
        order.iter().map(Address::as_str).collect()
    }

    #[test]
    fn own_node_first_then_the_learned_then_the_service() {
        let endpoints = Endpoints::new(Some(a("n2:6443")), Some(a("svc:443")));
        assert_eq!(texts(&endpoints.all()), ["n2:6443", "svc:443"]);
        endpoints.learn([
            a("n1:6443"),
            a("n2:6443"),
            a("n3:6443"),
            a("svc:443"),
            a("n1:6443"),
        ]);
        assert_eq!(
            texts(&endpoints.all()),
            ["n2:6443", "n1:6443", "n3:6443", "svc:443"]
        );
        endpoints.learn([a("n3:6443")]);
        assert_eq!(texts(&endpoints.all()), ["n2:6443", "n3:6443", "svc:443"]);
        endpoints.prefer(Some(a("n3:6443")));
        assert_eq!(texts(&endpoints.all()), ["n3:6443", "svc:443"]);
    }

    #[test]
    fn recently_failed_ones_are_tried_last_and_never_left_out() {
        let now = Instant::now();
        let endpoints = Endpoints::new(None, Some(a("svc:443")));
        endpoints.learn([a("n1:1"), a("n2:1"), a("n3:1")]);
        endpoints.failed(&a("n2:1"), now, "refused");
        endpoints.failed(&a("n1:1"), now + Duration::from_secs(1), "refused");
        let later = now + Duration::from_secs(2);
        assert_eq!(
            texts(&endpoints.order(later)),
            ["n3:1", "svc:443", "n2:1", "n1:1"]
        );
        assert_eq!(
            endpoints.describe(later),
            "n1:1 (failed 1 s ago: refused), n2:1 (failed 2 s ago: refused), n3:1, svc:443"
        );
        // The memory fades, the earlier failure first.
        let later = now + FAILURE_MEMORY;
        assert_eq!(
            texts(&endpoints.order(later)),
            ["n2:1", "n3:1", "svc:443", "n1:1"]
        );
        endpoints.answered(&endpoints.link(&a("n1:1")));
        assert_eq!(
            texts(&endpoints.order(later)),
            ["n1:1", "n2:1", "n3:1", "svc:443"]
        );
    }

    #[test]
    fn who_has_learned_where_servers_are_leaves_the_one_of_which_it_does_not_know_which_it_is() {
        let endpoints = Endpoints::new(None, Some(a("svc:443")));
        let by_service = endpoints.link(&a("svc:443"));
        endpoints.learn([]);
        assert!(!by_service.token.is_cancelled(), "there is no other");
        endpoints.learn([a("svc:443")]);
        assert!(!by_service.token.is_cancelled(), "it is the only one");
        endpoints.learn([]);
        endpoints.learn([a("n1:1"), a("n2:1")]);
        assert!(by_service.token.is_cancelled());
        let [fallen_back, learned] = ["svc:443", "n1:1"].map(|address| endpoints.link(&a(address)));
        endpoints.learn([a("n2:1")]);
        assert!(!fallen_back.token.is_cancelled() && !learned.token.is_cancelled());
    }

    #[test]
    fn what_is_connected_to_one_server_follows_to_the_next() {
        let endpoints = Endpoints::new(None, None);
        endpoints.learn([a("n1:1"), a("n2:1")]);
        let old = endpoints.link(&a("n1:1"));
        assert!(endpoints.answered(&old).is_none());
        assert!(endpoints.answered(&old).is_none());
        // Also when it is not named any more.
        endpoints.learn([a("n2:1")]);
        let left = endpoints.answered(&endpoints.link(&a("n2:1"))).unwrap();
        assert!(endpoints.answered(&old).is_none(), "it is left already");
        let back = endpoints.link(&a("n1:1"));
        left.cancel();
        assert!(old.token.is_cancelled() && !back.token.is_cancelled());
        assert!(endpoints.answered(&back).is_some());
    }

    #[test]
    fn giving_up_closes_the_connections_of_that_server_once() {
        let now = Instant::now();
        let endpoints = Endpoints::only(a("n1:1"));
        let old = endpoints.link(&a("n1:1"));
        endpoints.give_up_link(&old, now, "silent");
        assert!(old.token.is_cancelled());
        let new = endpoints.link(&a("n1:1"));
        endpoints.give_up_link(&old, now, "silent");
        assert!(
            !new.token.is_cancelled(),
            "a late timeout closed a newer connection"
        );
    }
}
