//! What the watcher saw, and what of it breaks a promise. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use lockkeeper_crds::TicketState;

use super::journal::Journalled;

/// An API server that does not answer ready in so many looks in a row (a second and a half) is away; less is an
/// etcd that is slow for a moment on a busy machine.
const AWAY: u32 = 4;

/// One node in one look.
#[derive(Debug, Clone, Default)]
pub struct Sight {
    /// The last ticket in its journal.
    pub ticket: Option<Journalled>,
    /// Whether its API server says that it is ready.
    pub ready: bool,
    /// Manifests that are not on its disk.
    pub missing: Vec<String>,
}

/// All looks.
#[derive(Debug, Clone, Default)]
pub struct Book {
    /// How many.
    pub looks: u64,
    /// Every state in which a ticket was seen, in order: node, number, state.
    pub tickets: Vec<(String, i64, TicketState)>,
    /// Broken promises, each in a sentence, each once.
    pub broken: Vec<String>,
    /// The longest time in which no API server said that it is ready.
    pub longest_without_api: Duration,
    last: BTreeMap<String, Journalled>,
    without_api_since: Option<Duration>,
    unready: BTreeMap<String, u32>,
}

const fn moves(state: TicketState) -> bool {
    matches!(
        state,
        TicketState::Applying | TicketState::Starting | TicketState::Undoing
    )
}

impl Book {
    /// Takes one look in, `at` since the start.
    pub fn look(&mut self, at: Duration, nodes: &BTreeMap<String, Sight>) {
        self.looks += 1;
        for (name, sight) in nodes {
            let unready = self.unready.entry(name.clone()).or_default();
            *unready = if sight.ready { 0 } else { *unready + 1 };
            for file in &sight.missing {
                self.broke(format!("{name} was without {file}"));
            }
            if let Some(ticket) = sight.ticket {
                self.note(name, ticket);
            }
        }
        self.one_at_a_time(nodes);
        if nodes.values().any(|sight| sight.ready) {
            self.without_api_since = None;
        } else {
            let since = *self.without_api_since.get_or_insert(at);
            self.longest_without_api = self.longest_without_api.max(at.saturating_sub(since));
        }
    }

    fn note(&mut self, node: &str, ticket: Journalled) {
        let before = self.last.insert(node.to_owned(), ticket);
        // What had ended before the first look belongs to an earlier scenario.
        let old = before.is_none() && self.looks == 1 && ticket.state.is_end();
        if !old && before != Some(ticket) {
            self.tickets.push((node.to_owned(), ticket.number, ticket.state));
        }
    }

    fn one_at_a_time(&mut self, nodes: &BTreeMap<String, Sight>) {
        let live: Vec<(&String, Journalled)> = nodes
            .iter()
            .filter_map(|(name, sight)| Some((name, sight.ticket.filter(|t| !t.state.is_end())?)))
            .collect();
        if let [(one, a), (other, b), ..] = live.as_slice() {
            self.broke(format!(
                "two nodes had a ticket at once: {one} ({:?}) and {other} ({:?})",
                a.state, b.state
            ));
        }
        for (name, ticket) in live.iter().filter(|(_, ticket)| moves(ticket.state)) {
            let away: Vec<String> = nodes
                .keys()
                .filter(|other| other != name && self.unready.get(*other).is_some_and(|n| *n >= AWAY))
                .cloned()
                .collect();
            for other in away {
                self.broke(format!(
                    "{name} was being changed ({:?}) while the API server of {other} was away",
                    ticket.state
                ));
            }
        }
    }

    fn broke(&mut self, sentence: String) {
        if !self.broken.contains(&sentence) {
            self.broken.push(sentence);
        }
    }

    /// The states in which a ticket was seen, without its node and number.
    #[must_use]
    pub fn states(&self) -> Vec<TicketState> {
        self.tickets.iter().map(|(.., state)| *state).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sight(state: Option<TicketState>, ready: bool) -> Sight {
        Sight {
            ticket: state.map(|state| Journalled { number: 1, state }),
            ready,
            missing: vec![],
        }
    }

    fn nodes(one: Sight, two: Sight) -> BTreeMap<String, Sight> {
        [("cp1".to_owned(), one), ("cp2".to_owned(), two)].into()
    }

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    #[test]
    fn two_tickets_at_once_are_seen_and_one_after_another_are_fine() {
        use TicketState::{Confirmed, Ready, Starting};
        let mut book = Book::default();
        book.look(
            seconds(0),
            &nodes(sight(Some(Confirmed), true), sight(Some(Starting), false)),
        );
        assert!(book.broken.is_empty(), "{:?}", book.broken);
        book.look(
            seconds(1),
            &nodes(sight(Some(Ready), true), sight(Some(Starting), true)),
        );
        assert_eq!(book.broken.len(), 1);
        assert_eq!(book.states(), [Starting, Ready], "the first was there before");
    }

    #[test]
    fn a_neighbour_that_is_away_is_seen_and_one_that_blinks_is_not() {
        let mut book = Book::default();
        let look = |book: &mut Book, ready| {
            book.look(
                seconds(0),
                &nodes(sight(Some(TicketState::Starting), false), sight(None, ready)),
            );
        };
        for ready in [false, false, false, true, false] {
            look(&mut book, ready);
        }
        assert!(book.broken.is_empty());
        for _ in 0..3 {
            look(&mut book, false);
        }
        assert!(
            book.broken[0].contains("the API server of cp2"),
            "{:?}",
            book.broken
        );
    }

    #[test]
    fn a_missing_manifest_and_the_time_without_any_api_are_noted() {
        let mut book = Book::default();
        let mut bare = sight(None, false);
        bare.missing.push("kube-scheduler.yaml".into());
        for second in [10, 12, 17] {
            book.look(seconds(second), &nodes(bare.clone(), sight(None, false)));
        }
        book.look(seconds(18), &nodes(sight(None, true), sight(None, false)));
        assert_eq!(book.broken, ["cp1 was without kube-scheduler.yaml"]);
        assert_eq!(book.longest_without_api, seconds(7));
    }
}
