//! A restore of all etcd members at once, as one node decides it: what its journal says and what it sees go in, the
//! one next act comes out. No clock, no disk, no API.
//!
//! ```text
//! Preparing --> Prepared --> Armed --> Going --> Ready --> Committed --> Done
//!      |            |          |         |         |
//!      +------------+----------+         +---------+--> Undoing --> Undone
//!                   |
//!                   v
//!                Dropped
//! ```
//!
//! The API dies under a restore, so nobody directs it: every node acts by its own journal. It is a two-phase commit
//! whose register is the restored etcd itself: each node signs there that it is *up*, then that it is *ready*, and
//! a transaction that creates the decision if there is none decides for all. The rules, each a branch below:
//!
//! * Nothing is touched before [`Stage::Going`]; who has not come so far drops out, and the others undo.
//! * A commit needs the signature of every node. Who has not journalled [`Stage::Ready`] has not signed, and may
//!   undo alone.
//! * Who has journalled it is in doubt and never undoes alone: only by the register's decision, or because a peer is
//!   seen on the old data. That says enough, since nobody becomes ready before all were up on the new data
//!   (the *barrier*), and nobody leaves the new data but by undoing.
//! * So either the restored etcd has a quorum of nodes that are in doubt, and it decides, or somebody has undone,
//!   and is seen. No clock decides anything but when to give up.
//! * Controller managers and schedulers act on nothing before the commit.

mod model;
#[cfg(test)]
mod simulation;

use chrono::{DateTime, Utc};

use crate::model::NodeName;

pub use model::{
    Act, Decision, Live, Part, PartSeen, Preparation, Register, Seen, Side, Stage, Standing, Word,
};

fn wait(why: impl Into<String>) -> Act {
    Act::Wait(why.into())
}

/// The one next act.
#[must_use]
pub fn decide(me: &Standing<'_>, seen: &Seen, now: DateTime<Utc>) -> Act {
    match me.stage {
        Stage::Preparing => preparing(me, seen, now),
        Stage::Prepared | Stage::Armed => waiting(me, seen, now),
        Stage::Going => going(me, seen, now),
        Stage::Ready => ready(me, seen, now),
        Stage::Committed => committed(me, seen, now),
        Stage::Undoing => undoing(seen),
        Stage::Done | Stage::Undone | Stage::Dropped => wait(""),
    }
}

fn preparing(me: &Standing<'_>, seen: &Seen, now: DateTime<Utc>) -> Act {
    match &seen.preparation {
        _ if seen.word == Word::Withdrawn => Act::Mark(Stage::Dropped, WITHDRAWN.to_owned()),
        Preparation::Ready => Act::Mark(Stage::Prepared, String::new()),
        Preparation::Failed(why) => Act::Mark(Stage::Dropped, why.clone()),
        Preparation::Pending if now >= me.deadline => Act::Mark(
            Stage::Dropped,
            "the backup was not fetched and restored beside the data in time: see the store and this node's disk, or raise spec.deadlines.prepareSeconds in a new EtcdRestore".to_owned(),
        ),
        Preparation::Pending => wait("the backup is being fetched and restored beside the data in use"),
    }
}

const WITHDRAWN: &str = "withdrawn before anything was touched";

fn waiting(me: &Standing<'_>, seen: &Seen, now: DateTime<Utc>) -> Act {
    let begun = seen.peers.iter().find(|(_, side)| **side == Side::New);
    match (me.stage, seen.word) {
        (_, Word::Withdrawn) => Act::Mark(Stage::Dropped, WITHDRAWN.to_owned()),
        (Stage::Prepared, Word::Arm | Word::Go) => Act::Mark(Stage::Armed, String::new()),
        (Stage::Armed, Word::Go) => Act::Mark(Stage::Going, "the operator's word".to_owned()),
        // The API went down before the word came here too: it was for all.
        (Stage::Armed, _) if let Some((node, _)) = begun => {
            Act::Mark(Stage::Going, format!("{node} has begun"))
        }
        _ if now >= me.deadline => Act::Mark(
            Stage::Dropped,
            "nobody said to begin within the time that prepared data is kept".to_owned(),
        ),
        (Stage::Prepared, _) => wait("prepared; nothing was touched"),
        _ => wait("all is prepared here; waits for the word to begin"),
    }
}

fn going(me: &Standing<'_>, seen: &Seen, now: DateTime<Utc>) -> Act {
    if let Some(why) = cause_to_undo(me, seen, now) {
        return Act::Mark(Stage::Undoing, why);
    }
    if seen.live != Live::New {
        return exchange(seen);
    }
    if !is_on(seen, Part::Etcd) {
        return Act::PutOn(Part::Etcd);
    }
    let Some(register) = &seen.register else {
        return wait("the restored etcd does not answer yet; it needs more than half of the members");
    };
    if !register.up.contains(me.node) {
        return Act::SignUp;
    }
    if let Some(missing) = me.nodes.iter().find(|n| !register.up.contains(*n)) {
        return wait(format!("{missing} is not up on the restored data yet"));
    }
    if !register.cleansed {
        // One does it, and without that one nothing is decided anyway.
        return if me.nodes.first() == Some(me.node) {
            Act::Cleanse
        } else {
            wait("what belongs to the backup's time is being taken out of the restored etcd")
        };
    }
    if !is_on(seen, Part::KubeApiserver) {
        return Act::PutOn(Part::KubeApiserver);
    }
    if !is_ready(seen, Part::KubeApiserver) {
        return wait("the API server is not ready on the restored data yet");
    }
    Act::Mark(Stage::Ready, String::new())
}

/// Why a node that has not signed undoes.
fn cause_to_undo(me: &Standing<'_>, seen: &Seen, now: DateTime<Utc>) -> Option<String> {
    if let Some(register) = &seen.register {
        if register.decision == Some(Decision::Undo) {
            return Some("another node decided so".to_owned());
        }
        if register.corrupt {
            return Some(
                "the restored etcd has an alarm CORRUPT: the backup holds a damaged state".to_owned(),
            );
        }
        let all_up = me.nodes.iter().all(|n| register.up.contains(n));
        if let Some(node) = gone_back(seen).filter(|_| all_up) {
            return Some(format!("{node} has gone back to the data of before"));
        }
    }
    if let Preparation::Failed(why) = &seen.preparation {
        return Some(why.clone());
    }
    (now >= me.deadline).then(|| match first_trouble(me, seen) {
        Some(trouble) => format!("not ready on the restored data in time: {trouble}"),
        None => "not ready on the restored data in time".to_owned(),
    })
}

fn gone_back(seen: &Seen) -> Option<&NodeName> {
    let old = seen.peers.iter().find(|(_, side)| **side == Side::Old);
    old.map(|(node, _)| node)
}

/// What a node that gives up was waiting for.
fn first_trouble(me: &Standing<'_>, seen: &Seen) -> Option<String> {
    let Some(register) = &seen.register else {
        return Some("the restored etcd did not answer".to_owned());
    };
    if let Some(missing) = me.nodes.iter().find(|n| !register.up.contains(*n)) {
        return Some(format!("{missing} did not come up"));
    }
    (!is_ready(seen, Part::KubeApiserver)).then(|| "the API server did not become ready".to_owned())
}

/// All four down, then the new data in.
fn exchange(seen: &Seen) -> Act {
    if let Live::Unknown(why) = &seen.live {
        return wait(why.clone());
    }
    all_down(seen).unwrap_or(Act::SwapIn)
}

/// The next thing on the way down; none when all are down. etcd goes last.
fn all_down(seen: &Seen) -> Option<Act> {
    let before_etcd = [
        Part::KubeScheduler,
        Part::KubeControllerManager,
        Part::KubeApiserver,
    ];
    for parts in [&before_etcd[..], &[Part::Etcd]] {
        if let Some(part) = parts.iter().find(|p| is_on(seen, **p)) {
            return Some(Act::TakeOff(*part));
        }
        if let Some(part) = parts.iter().find(|p| !is_down(seen, **p)) {
            return Some(wait(format!("{part} is still ending")));
        }
    }
    None
}

fn ready(me: &Standing<'_>, seen: &Seen, now: DateTime<Utc>) -> Act {
    if let Some(off) = [Part::Etcd, Part::KubeApiserver]
        .into_iter()
        .find(|p| !is_on(seen, *p))
    {
        return Act::PutOn(off);
    }
    if let Some(register) = &seen.register {
        match register.decision {
            Some(Decision::Commit) => {
                return Act::Mark(Stage::Committed, "all nodes are ready".to_owned());
            }
            Some(Decision::Undo) => {
                return Act::Mark(Stage::Undoing, "another node decided so".to_owned());
            }
            None => {}
        }
        if !register.ready.contains(me.node) {
            return Act::SignReady;
        }
        if me.nodes.iter().all(|n| register.ready.contains(n)) {
            return Act::Propose(Decision::Commit);
        }
    }
    if let Some(node) = gone_back(seen) {
        return Act::Mark(
            Stage::Undoing,
            format!("{node} has gone back to the data of before"),
        );
    }
    let Some(register) = &seen.register else {
        return wait(
            "in doubt: the restored etcd does not answer, and no other node is seen on the data of before",
        );
    };
    if now >= me.deadline {
        return Act::Propose(Decision::Undo);
    }
    let missing = me.nodes.iter().find(|n| !register.ready.contains(*n));
    wait(missing.map_or_else(String::new, |n| format!("{n} is not ready yet")))
}

fn committed(me: &Standing<'_>, seen: &Seen, now: DateTime<Utc>) -> Act {
    if let Some(part) = up_next(seen) {
        return Act::PutOn(part);
    }
    let down = not_up(seen);
    match down.first() {
        None => Act::Mark(Stage::Done, String::new()),
        // The decision stands, and a node that waited for ever would keep the way to another restore shut. What it
        // says here is told as the restore's end.
        Some(_) if now >= me.deadline => Act::Mark(
            Stage::Done,
            format!(
                "{} did not come up again in time: see the log on this node",
                names(&down)
            ),
        ),
        Some(part) => wait(format!("{part} is not up yet")),
    }
}

fn names(parts: &[Part]) -> String {
    let all: Vec<&str> = parts.iter().map(|p| p.name()).collect();
    all.join(" and ")
}

fn undoing(seen: &Seen) -> Act {
    match &seen.live {
        Live::Unknown(why) => wait(why.clone()),
        Live::New | Live::Neither => all_down(seen).unwrap_or(Act::SwapOut),
        Live::Old => {
            if let Some(part) = up_next(seen) {
                return Act::PutOn(part);
            }
            if !seen.old_whole {
                return wait(
                    "the data of before is back; etcd needs more than half of the members on it to answer",
                );
            }
            match not_up(seen).first() {
                None => Act::Mark(Stage::Undone, String::new()),
                Some(part) => wait(format!("the data of before is back; {part} is not up yet")),
            }
        }
    }
}

/// The next manifest to put back, etcd first.
fn up_next(seen: &Seen) -> Option<Part> {
    Part::ALL.into_iter().rev().find(|p| !is_on(seen, *p))
}

/// The parts that do not run, and an API server that is not ready.
fn not_up(seen: &Seen) -> Vec<Part> {
    let is_up = |part: &Part| {
        let runs = seen.parts.get(part).is_some_and(|p| p.running == Some(true));
        runs && (*part != Part::KubeApiserver || is_ready(seen, *part))
    };
    Part::ALL.into_iter().filter(|p| !is_up(p)).collect()
}

fn is_on(seen: &Seen, part: Part) -> bool {
    seen.parts.get(&part).is_some_and(|p| p.on)
}

/// Unknown is not down.
fn is_down(seen: &Seen, part: Part) -> bool {
    seen.parts
        .get(&part)
        .is_some_and(|p| !p.on && p.running == Some(false))
}

fn is_ready(seen: &Seen, part: Part) -> bool {
    seen.parts.get(&part).is_some_and(|p| p.on && p.ready)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use chrono::TimeDelta;

    use super::*;

    /// A node that has committed, with all four on and these not running.
    fn committed_without(down: &[Part], late: bool) -> Act {
        let (node, now) = (NodeName::from("cp2"), DateTime::UNIX_EPOCH);
        let part = |part: &Part| PartSeen {
            on: true,
            running: Some(!down.contains(part)),
            ready: true,
        };
        let seen = Seen {
            word: Word::Unknown,
            preparation: Preparation::Ready,
            parts: Part::ALL.iter().map(|p| (*p, part(p))).collect(),
            live: Live::New,
            register: None,
            old_whole: false,
            peers: BTreeMap::new(),
        };
        let me = Standing {
            node: &node,
            nodes: &BTreeSet::from([node.clone()]),
            stage: Stage::Committed,
            deadline: now + TimeDelta::seconds(1),
        };
        decide(&me, &seen, now + TimeDelta::seconds(i64::from(late) * 2))
    }

    #[test]
    fn what_is_not_up_after_the_decision_is_waited_for_and_then_named() {
        let both = [Part::KubeScheduler, Part::KubeControllerManager];
        assert_eq!(
            committed_without(&[], true),
            Act::Mark(Stage::Done, String::new())
        );
        assert!(matches!(committed_without(&both, false), Act::Wait(why) if why.contains("kube-scheduler")));
        let Act::Mark(Stage::Done, told) = committed_without(&both, true) else {
            panic!("it waits for ever");
        };
        assert!(
            told.starts_with("kube-scheduler and kube-controller-manager did not come up"),
            "{told}"
        );
    }
}
