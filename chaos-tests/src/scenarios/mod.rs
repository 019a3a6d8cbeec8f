//! The scenarios by name. Each is a file of this folder: a function that plays in a [`Scene`] and returns, in a
//! sentence, what was seen.

mod agent_killed;
mod all_lost;
mod api_away;
mod backup_corrupt;
mod backup_faults;
mod backup_schedule;
mod blocked_by_rehearsal;
mod cutover_abort;
mod cutover_away;
mod cutover_bad_green;
mod cutover_denied;
mod cutover_dns;
mod cutover_freeze;
mod cutover_gateway;
mod cutover_haproxy;
mod cutover_killed;
mod cutover_routes;
mod cutover_several;
mod cutover_singletons;
mod cutover_two;
mod cutting_over;
mod encrypted;
mod lab_smoke;
mod operator_killed;
mod power_cut;
mod proof_yields;
mod quorum_at_risk;
mod quorum_lost;
mod rescuing;
mod restore_fails;
mod restore_inplace;
mod restoring;
mod rollback_ha;
mod rollback_late;
mod schedule_faults;
mod store_down;
mod struck;
mod upgrade_ha;

use anyhow::{Result, bail};
use futures::future::LocalBoxFuture;

use crate::recipes::TARGET;
use crate::scene::Scene;
use crate::state::Options;

pub use lab_smoke::probe;

/// Which run a scenario belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Suite {
    /// `lab run --quick`: part of `make test`.
    Quick,
    /// `lab run --all`: everything.
    Chaos,
}

/// A scenario.
#[derive(Clone, Copy)]
pub struct Scenario {
    /// Its name, as `lab run NAME` wants it.
    pub name: &'static str,
    /// What it shows.
    pub about: &'static str,
    /// The smallest run it belongs to.
    pub suite: Suite,
    /// About how many minutes it takes on two cores, the lab included.
    pub minutes: u32,
    /// The lab it wants; the name in it is replaced.
    pub lab: fn() -> Options,
    /// Whether a lab in which it passed is as if fresh.
    pub leaves_clean: bool,
    /// The play.
    pub play: for<'a> fn(&'a Scene) -> LocalBoxFuture<'a, Result<String>>,
}

impl std::fmt::Debug for Scenario {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scenario")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// All of them, in the order in which they run: those that leave the cluster as it was come first, so that one lab
/// serves them all.
pub const ALL: &[Scenario] = &[
    lab_smoke::SCENARIO,
    blocked_by_rehearsal::SCENARIO,
    quorum_at_risk::SCENARIO,
    rollback_ha::SCENARIO,
    rollback_late::SCENARIO,
    store_down::SCENARIO,
    backup_faults::SCENARIO,
    backup_corrupt::SCENARIO,
    encrypted::SCENARIO,
    schedule_faults::SCENARIO,
    restore_fails::SCENARIO,
    upgrade_ha::SCENARIO,
    backup_schedule::SCENARIO,
    proof_yields::SCENARIO,
    api_away::SCENARIO,
    operator_killed::SCENARIO,
    agent_killed::SCENARIO,
    power_cut::SCENARIO,
    quorum_lost::SCENARIO,
    all_lost::SCENARIO,
    restore_inplace::SCENARIO,
    cutover_haproxy::SCENARIO,
    cutover_abort::SCENARIO,
    cutover_bad_green::SCENARIO,
    cutover_bad_green::BY_METRICS,
    cutover_killed::SCENARIO,
    cutover_two::SCENARIO,
    cutover_singletons::SCENARIO,
    cutover_freeze::SCENARIO,
    cutover_denied::SCENARIO,
    cutover_dns::SCENARIO,
    cutover_away::SCENARIO,
    cutover_gateway::SCENARIO,
    cutover_routes::SCENARIO,
    cutover_several::SCENARIO,
];

/// Three nodes that have the target's images too.
fn three_nodes() -> Options {
    Options {
        also: vec![TARGET.to_owned()],
        ..Options::default()
    }
}

/// One node that has the target's images too.
fn one_node() -> Options {
    Options {
        nodes: 1,
        ..three_nodes()
    }
}

/// One node; a cutover's scenario makes green beside it.
fn one_cluster() -> Options {
    Options {
        nodes: 1,
        ..Options::default()
    }
}

/// The scenarios of a list of names.
pub fn by_names(names: &[String]) -> Result<Vec<Scenario>> {
    names
        .iter()
        .map(|name| match ALL.iter().find(|scenario| scenario.name == name) {
            Some(found) => Ok(*found),
            None => bail!("there is no scenario `{name}`; `lab scenarios` lists them"),
        })
        .collect()
}

/// The scenarios of a suite.
#[must_use]
pub fn of_suite(suite: Suite) -> Vec<Scenario> {
    ALL.iter()
        .filter(|scenario| suite == Suite::Chaos || scenario.suite == Suite::Quick)
        .copied()
        .collect()
}

/// The list, for people.
#[must_use]
pub fn list() -> String {
    ALL.iter()
        .map(|scenario| {
            let suite = if scenario.suite == Suite::Quick {
                "quick"
            } else {
                "chaos"
            };
            format!(
                "{:<24} {:<6} {:>3} min  {}\n",
                scenario.name, suite, scenario.minutes, scenario.about
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_are_given_once_and_an_unknown_one_is_told() {
        let names: BTreeSet<&str> = ALL.iter().map(|scenario| scenario.name).collect();
        assert_eq!(names.len(), ALL.len());
        assert!(
            by_names(&["nothing".into()])
                .unwrap_err()
                .to_string()
                .contains("lab scenarios")
        );
    }
}
