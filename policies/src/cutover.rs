//! A cutover of traffic and duty from one cluster to another, as it is decided: the wish, the memory and what is seen
//! go in, the one next act comes out. No clock, no client.
//!
//! ```text
//! Checking --> Step 0 --> Step 1 --> ... --> [HandingOver -->] last Step --> Window --> Completed
//!     |           |          |                    |                |           |
//!     |           +----------+--------------------+----------------+-----------+--> Back --> RolledBack
//!     +-------------------------------------------------------------------------------------> RolledBack
//! ```
//!
//! The rules, each a branch below:
//!
//! * A weight is written down before it is set, is read back where it was set, and nothing moves before it is seen.
//! * Only weights of the plan are set, and all-to-blue. From a step it goes to the next one, or back; never forward
//!   again after back.
//! * What cannot be seen is unknown: neither empty, nor stopped, nor as it was.
//! * What runs once is started in a cluster only when it is proven stopped in the other, in the same look, and a stop
//!   changes the object, so that a start which was decided before it is refused ([`Fence`]).
//! * A freeze has an end from its beginning. It lasts until the last client heeds that green has all traffic; what has
//!   not come so far by its end goes back.
//! * Once the freeze is lifted with green at work, going back loses writes: then a person decides.

mod model;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;

use chrono::{DateTime, TimeDelta, Utc};

pub use model::{
    Act, Budget, Duty, Fence, Gate, Held, Memory, Obstacle, Reason, Seen, Side, Spent, Stage, Step, Wanted,
    Weights, WhenLost,
};

/// How long all-to-blue must be seen before a way back has ended: longer than a request of a predecessor that was
/// stopped in the middle may be on its way (its lease, and a driver's own limit).
const BACK_STAYS: TimeDelta = TimeDelta::seconds(5);

fn wait(reason: Reason, message: impl Into<String>) -> Act {
    Act::Wait(Held {
        reason,
        message: message.into(),
    })
}

/// The one next act.
#[must_use]
pub fn decide(me: &Memory, wanted: &Wanted, seen: &Seen, now: DateTime<Utc>) -> Act {
    match me.stage {
        Stage::Completed | Stage::RolledBack => wait(Reason::Ended, me.reason.clone()),
        Stage::Checking => checking(me, wanted, seen, now),
        Stage::Back => back(me, wanted, seen, now),
        Stage::HandingOver | Stage::Step(_) | Stage::Window => {
            if let Some(why) = cause_to_turn_back(me, wanted, seen, now) {
                if me.diverged && !wanted.abort {
                    return wait(
                        Reason::GreenDiverged,
                        format!(
                            "{why}; going back would leave behind what was written to green since the freeze was lifted: set spec.abort to go back all the same, or mend green"
                        ),
                    );
                }
                return Act::Mark(Memory {
                    reason: why,
                    spent: seen.spent,
                    ..me.at(Stage::Back, now)
                });
            }
            match me.stage {
                Stage::HandingOver => handing_over(me, wanted, seen, now),
                Stage::Step(i) => step(i, me, wanted, seen, now),
                _ => window(me, wanted, seen, now),
            }
        }
    }
}

/// For a person. Times of day and not seconds left: a sentence that changes every second is written every second.
fn clock(at: DateTime<Utc>) -> String {
    at.format("%Y-%m-%d %H:%M:%S UTC").to_string()
}

/// The share that green has at a stage.
#[must_use]
pub fn share(stage: Stage, wanted: &Wanted) -> u8 {
    let at = |i: usize| wanted.steps.get(i).map_or(0, |s| s.green);
    match stage {
        Stage::Checking | Stage::Back | Stage::RolledBack => 0,
        Stage::HandingOver => before(wanted.steps.len().saturating_sub(1), wanted),
        Stage::Step(i) => at(i),
        Stage::Window | Stage::Completed => at(wanted.steps.len().saturating_sub(1)),
    }
}

/// The share that green has before a step.
fn before(i: usize, wanted: &Wanted) -> u8 {
    i.checked_sub(1)
        .and_then(|i| wanted.steps.get(i))
        .map_or(0, |s| s.green)
}

fn checking(me: &Memory, wanted: &Wanted, seen: &Seen, now: DateTime<Utc>) -> Act {
    if wanted.abort {
        return Act::Mark(Memory {
            reason: "aborted before anything was touched".to_owned(),
            ..me.at(Stage::RolledBack, now)
        });
    }
    if let Some(first) = seen.obstacles.iter().find(|o| !o.pending) {
        return wait(Reason::Blocked, first.message.clone());
    }
    if let Some(first) = seen.obstacles.first() {
        return wait(Reason::Looking, first.message.clone());
    }
    match &seen.weights {
        Weights::Unknown(why) => return wait(Reason::Blocked, why.clone()),
        Weights::NotYet(what) => return wait(Reason::Looking, what.clone()),
        weights if !weights.are(0) => {
            return wait(
                Reason::Blocked,
                "not all traffic is blue's: a cutover begins with green's weight at 0",
            );
        }
        Weights::Known(_) => {}
    }
    if wanted.hand_over {
        match &seen.green {
            Duty::Stopped(_) => {}
            Duty::Unknown(why) => return wait(Reason::Blocked, why.clone()),
            _ => {
                return wait(
                    Reason::Blocked,
                    "what spec.singletons names runs in green already: stop it there",
                );
            }
        }
        if let Duty::Unknown(why) = &seen.blue {
            return wait(Reason::Blocked, why.clone());
        }
    }
    if wanted.paused {
        return wait(Reason::Paused, "spec.paused");
    }
    if let Some(waiting) = lost(seen).or_else(|| pending(seen)) {
        return waiting;
    }
    match seen.ready_at {
        None => Act::Prepare,
        Some(ready) if now < ready => wait(
            Reason::Preparing,
            format!(
                "a longer TTL was lowered; the last who was told it asks again by {}",
                clock(ready)
            ),
        ),
        Some(_) => go_to(0, me, wanted, seen, now),
    }
}

/// A cluster that does not answer holds every step.
fn lost(seen: &Seen) -> Option<Act> {
    [(Side::Blue, seen.blue_lost), (Side::Green, seen.green_lost)]
        .into_iter()
        .find_map(|(side, since)| {
            since.map(|_| wait(Reason::ClusterLost, format!("the API of {side} does not answer")))
        })
}

/// A gate that has not passed often enough.
fn pending(seen: &Seen) -> Option<Act> {
    let gate = seen.gates.iter().find(|g| g.passes < g.passes_wanted)?;
    Some(wait(
        Reason::GatesPending,
        format!(
            "gate {} has passed {} of {} times: {}",
            gate.name, gate.passes, gate.passes_wanted, gate.message
        ),
    ))
}

/// On to a step, with what comes before it.
fn go_to(i: usize, me: &Memory, wanted: &Wanted, seen: &Seen, now: DateTime<Utc>) -> Act {
    let Some(next) = wanted.steps.get(i) else {
        return Act::Mark(Memory {
            spent: seen.spent,
            ..me.at(Stage::Window, now)
        });
    };
    if next.approval && wanted.promoted < next.green {
        return wait(
            Reason::AwaitingApproval,
            format!(
                "the step to {0} % waits for a person: set spec.promote to {0}",
                next.green
            ),
        );
    }
    let last = i + 1 == wanted.steps.len();
    let hands_over = last && (wanted.hand_over || wanted.freeze.is_some());
    let mut memory = Memory {
        spent: seen.spent,
        ..me.at(
            if hands_over {
                Stage::HandingOver
            } else {
                Stage::Step(i)
            },
            now,
        )
    };
    if hands_over {
        memory.handed = wanted.hand_over;
        memory.frozen_until = wanted.freeze.map(|longest| now + longest);
    }
    Act::Mark(memory)
}

fn cause_to_turn_back(me: &Memory, wanted: &Wanted, seen: &Seen, now: DateTime<Utc>) -> Option<String> {
    if wanted.abort {
        return Some("aborted by spec.abort or by deletion".to_owned());
    }
    if let Some(gate) = seen.gates.iter().find(|g| g.failures >= g.failures_limit) {
        return Some(format!(
            "gate {} has failed {} times in a row: {}",
            gate.name, gate.failures, gate.message
        ));
    }
    if let Some(limit) = wanted.budget.failed_requests
        && seen.spent.failed_requests > limit
    {
        return Some(format!(
            "{} requests of gates failed; the budget is {limit}",
            seen.spent.failed_requests
        ));
    }
    if let Some(limit) = wanted.budget.failing_seconds
        && seen.spent.failing_seconds > limit
    {
        return Some(format!(
            "gates were failing for {} s; the budget is {limit} s",
            seen.spent.failing_seconds
        ));
    }
    for (side, since, then) in [
        (Side::Blue, seen.blue_lost, wanted.blue_lost),
        (Side::Green, seen.green_lost, wanted.green_lost),
    ] {
        if then == WhenLost::GoBack
            && let Some(since) = since
            && now - since >= wanted.lost_after
        {
            return Some(format!(
                "the API of {side} has not answered for {} s",
                (now - since).num_seconds()
            ));
        }
    }
    too_late(me, wanted, now)
}

/// A stage that should be done by now.
fn too_late(me: &Memory, wanted: &Wanted, now: DateTime<Utc>) -> Option<String> {
    match me.stage {
        Stage::Step(_) if me.reached.is_none() && now - me.since >= wanted.takes => Some(format!(
            "the weights were not seen where they were set within {} s",
            wanted.takes.num_seconds()
        )),
        // Also when nobody looked at that moment: blue has taken writes that green has not.
        Stage::Step(_)
            if me.frozen_until.is_some_and(|end| {
                now >= end && me.reached.is_none_or(|reached| reached + wanted.settles > end)
            }) =>
        {
            Some("not every client heeded that green has all traffic before the freeze had to end".to_owned())
        }
        Stage::HandingOver if me.frozen_until.is_some_and(|end| now >= end) => {
            Some("what runs once was not handed over before the freeze had to end".to_owned())
        }
        Stage::HandingOver if now - me.since >= wanted.hand_over_limit => Some(format!(
            "what runs once was not handed over within {} s",
            wanted.hand_over_limit.num_seconds()
        )),
        _ => None,
    }
}

fn handing_over(me: &Memory, wanted: &Wanted, seen: &Seen, now: DateTime<Utc>) -> Act {
    if let Some(waiting) = drifted(&seen.weights, share(Stage::HandingOver, wanted)) {
        return waiting;
    }
    if let Some(until) = me.frozen_until {
        match seen.frozen {
            Some(true) => {}
            Some(false) => return Act::Freeze(until),
            None => {
                return wait(
                    Reason::HandingOver,
                    "whether writes to blue are refused is not known",
                );
            }
        }
    }
    if wanted.hand_over {
        if let Some(act) = stop(Side::Blue, &seen.blue, Fence::Forward) {
            return act;
        }
        if let Some(act) = start(Side::Green, &seen.green) {
            return act;
        }
    }
    Act::Mark(me.at(Stage::Step(wanted.steps.len().saturating_sub(1)), now))
}

/// Until it is proven stopped with this fence.
fn stop(side: Side, duty: &Duty, fence: Fence) -> Option<Act> {
    match duty {
        Duty::Stopped(Some(there)) if *there == fence => None,
        Duty::Stopping => Some(wait(
            Reason::HandingOver,
            format!("what runs once is still ending in {side}"),
        )),
        Duty::Unknown(why) => Some(wait(Reason::HandingOver, why.clone())),
        Duty::Running | Duty::Starting | Duty::Stopped(_) => Some(Act::Stop(side, fence)),
    }
}

/// Until it runs. The other side has been proven stopped in the same look.
fn start(side: Side, duty: &Duty) -> Option<Act> {
    match duty {
        Duty::Running => None,
        Duty::Starting => Some(wait(
            Reason::HandingOver,
            format!("what runs once is coming up in {side}"),
        )),
        Duty::Unknown(why) => Some(wait(Reason::HandingOver, why.clone())),
        Duty::Stopping | Duty::Stopped(_) => Some(Act::Start(side)),
    }
}

/// Weights that are not what they should be and that nobody here has asked for.
fn drifted(weights: &Weights, should: u8) -> Option<Act> {
    match weights {
        Weights::Unknown(why) => Some(wait(Reason::TrafficUnknown, why.clone())),
        Weights::NotYet(what) => Some(wait(Reason::AtWork, what.clone())),
        weights if weights.are(should) => None,
        Weights::Known(all) => Some(wait(
            Reason::WeightsChanged,
            format!(
                "green's weight is {}, not {should} as it was set: somebody else moves this traffic; nothing moves until it is {should} again, or set spec.abort",
                all.iter()
                    .map(ToString::to_string)
                    .collect::<Vec<_>>()
                    .join(" and ")
            ),
        )),
    }
}

fn step(i: usize, me: &Memory, wanted: &Wanted, seen: &Seen, now: DateTime<Utc>) -> Act {
    let share = share(me.stage, wanted);
    let Some(reached) = me.reached else {
        return match &seen.weights {
            weights if weights.are(share) => Act::Mark(Memory {
                reached: Some(now),
                spent: seen.spent,
                ..me.clone()
            }),
            Weights::Known(all)
                if !all.is_empty() && all.iter().all(|w| *w == share || *w == before(i, wanted)) =>
            {
                Act::Set(share)
            }
            weights => drifted(weights, share)
                .unwrap_or_else(|| wait(Reason::TrafficUnknown, "the traffic cannot be read")),
        };
    };
    if let Some(act) = drifted(&seen.weights, share).or_else(|| settled_duties(me, wanted, seen, now)) {
        return act;
    }
    if wanted.paused {
        return wait(Reason::Paused, "spec.paused");
    }
    let soak = wanted.steps.get(i).map_or(TimeDelta::zero(), |s| s.soak);
    let soak = soak.max(wanted.settles);
    if now - reached < soak {
        return wait(
            Reason::Soaking,
            format!("green has {share} %, looked at until {}", clock(reached + soak)),
        );
    }
    if let Some(waiting) = lost(seen).or_else(|| pending(seen)) {
        return waiting;
    }
    go_to(i + 1, me, wanted, seen, now)
}

/// After a hand-over: the freeze is lifted once the last client heeds the weights, and what runs once stays out of blue.
fn settled_duties(me: &Memory, wanted: &Wanted, seen: &Seen, now: DateTime<Utc>) -> Option<Act> {
    let heeded = me.reached.is_none_or(|reached| now - reached >= wanted.settles);
    if me.frozen_until.is_some() && heeded {
        if !me.diverged {
            // Written down before writes are let through: what cannot be taken back is never unsaid.
            return Some(Act::Mark(Memory {
                diverged: true,
                ..me.clone()
            }));
        }
        return Some(thaw(me, seen, now));
    }
    if me.handed && wanted.hand_over && matches!(seen.blue, Duty::Running | Duty::Starting) {
        return Some(Act::Stop(Side::Blue, Fence::Forward));
    }
    None
}

/// Lifts the freeze, and forgets it when it is gone.
fn thaw(me: &Memory, seen: &Seen, now: DateTime<Utc>) -> Act {
    let over = me.frozen_until.is_some_and(|end| now >= end);
    match seen.frozen {
        Some(true) => Act::Thaw,
        // Not known: it is taken away all the same, unless it has lifted itself.
        None if !over => Act::Thaw,
        Some(false) | None => Act::Mark(Memory {
            frozen_until: None,
            ..me.clone()
        }),
    }
}

fn window(me: &Memory, wanted: &Wanted, seen: &Seen, now: DateTime<Utc>) -> Act {
    let share = share(me.stage, wanted);
    if let Some(act) = drifted(&seen.weights, share).or_else(|| settled_duties(me, wanted, seen, now)) {
        return act;
    }
    if wanted.paused {
        return wait(Reason::Paused, "spec.paused");
    }
    let end = me.since + wanted.window;
    if now < end {
        return wait(
            Reason::RollbackWindow,
            format!("green has all traffic; blue is kept until {}", clock(end)),
        );
    }
    if let Some(waiting) = lost(seen).or_else(|| pending(seen)) {
        return waiting;
    }
    Act::Mark(Memory {
        reason: "green has all traffic".to_owned(),
        spent: seen.spent,
        ..me.at(Stage::Completed, now)
    })
}

/// Traffic first, at once; then what runs once, the same careful way.
fn back(me: &Memory, wanted: &Wanted, seen: &Seen, now: DateTime<Utc>) -> Act {
    if !seen.weights.are(0) {
        // Also when they cannot be read: all-to-blue is what is wanted whatever they are.
        return Act::Set(0);
    }
    let Some(reached) = me.reached else {
        return Act::Mark(Memory {
            reached: Some(now),
            ..me.clone()
        });
    };
    if me.frozen_until.is_some() {
        return thaw(me, seen, now);
    }
    if me.handed {
        if let Some(act) = stop(Side::Green, &seen.green, Fence::Back) {
            return act;
        }
        if let Some(act) = start(Side::Blue, &seen.blue) {
            return act;
        }
    }
    if now - reached < BACK_STAYS.max(wanted.settles) {
        return wait(
            Reason::RollingBack,
            format!("all traffic is blue's again: {}", me.reason),
        );
    }
    Act::Mark(me.at(Stage::RolledBack, now))
}
