//! Who leads: decisions from a lease, the time since it changed, and nothing else.
//!
//! What comes in: readings of the lease, outcomes of writes, a local monotonic clock as an argument.
//! What goes out: the next thing to do. May touch: nothing.
//!
//! Why two never act at once: a leader acts until `renew_deadline` after it *sent* its last successful
//! write. A follower takes over only with a write that replaces exactly the version of the lease that it
//! has seen unchanged for the whole lease duration. That write succeeds only if the leader's last one is
//! that version, which then was sent before the follower saw it. The difference of the two spans is the
//! margin for clocks that run at different speeds and for work that takes a moment to stop. Neither
//! anybody's wall clock nor `renewTime` plays a part.
//!
//! What this cannot do: a process that is stopped as a whole (SIGSTOP, a frozen virtual machine) may send
//! one more request when it wakes, before it looks at the clock. Whoever writes must therefore check
//! [`super::Leadership::check`] before, and write with a resource version.

use std::time::Duration;

use tokio::time::Instant;

/// How long things may take. The defaults:
///
/// * lease 30 s: a dead leader is replaced within that; an upgrade step takes longer anyway.
/// * renewed every 8 s: two attempts may fail before the deadline; 7.5 requests a minute, the better
///   part of what an idle operator may ask for (20).
/// * deadline 20 s: 10 s of margin to the lease, 5 of them for the work to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// A follower takes over when the lease has not changed for this long.
    pub lease: Duration,
    /// A leader renews this long after its last renewal.
    pub renew_every: Duration,
    /// A leader that could not renew for this long stops.
    pub renew_deadline: Duration,
    /// After that, the work has this long to end before the process does.
    pub stop_within: Duration,
    /// For one request.
    pub call_limit: Duration,
    /// Between two attempts.
    pub retry: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(30),
            renew_every: Duration::from_secs(8),
            renew_deadline: Duration::from_secs(20),
            stop_within: Duration::from_secs(5),
            call_limit: Duration::from_secs(5),
            retry: Duration::from_secs(1),
        }
    }
}

/// One process that may lead.
///
/// `replica` outlives the process where a restarted container is the only successor of its predecessor
/// (a pod's name); `process` never does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    replica: String,
    process: String,
}

impl Identity {
    /// `replica` must belong to one process at a time: a pod's name does, since a kubelet starts a
    /// container anew only after the old one has ended. `process` must differ from one process to the next.
    #[must_use]
    pub fn new(replica: impl Into<String>, process: impl Into<String>) -> Self {
        Self {
            replica: replica.into().replace('_', "-"),
            process: process.into().replace('_', "-"),
        }
    }

    /// As written into the lease.
    #[must_use]
    pub fn holder(&self) -> String {
        format!("{}_{}", self.replica, self.process)
    }

    /// Whether the holder is an earlier process of this replica, hence dead.
    fn is_earlier_self(&self, holder: &str) -> bool {
        holder.split_once('_').is_some_and(|(replica, process)| {
            !replica.is_empty() && replica == self.replica && process != self.process
        })
    }
}

/// What the lease says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Who holds it; absent when it was released.
    pub holder: Option<String>,
    /// Its resource version.
    pub version: String,
    /// The duration that the holder promised.
    pub duration: Duration,
    /// How often it changed hands; the fencing epoch.
    pub transitions: i32,
}

/// What was last seen of the lease, and when that became so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observed {
    /// Absent when there is no such object.
    pub record: Option<Record>,
    /// Since when, by the local clock, it has not changed.
    pub changed_at: Instant,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Take the lease.
    Acquire,
    /// Write it again.
    Renew,
    /// Lead on; renew then.
    Hold {
        /// When.
        until: Instant,
    },
    /// Somebody else leads; take over then, unless it changes before.
    Follow {
        /// When.
        until: Instant,
    },
    /// Stop leading, now.
    StepDown,
}

/// A holder's promise is honoured up to this; a nonsensical one must not lock everybody out for ever.
const LONGEST_PROMISE: Duration = Duration::from_secs(300);

/// `renewed_at`: when the last write that succeeded was sent, for one who leads.
#[must_use]
pub fn decide(
    observed: &Observed,
    renewed_at: Option<Instant>,
    now: Instant,
    me: &Identity,
    timing: &Timing,
) -> Decision {
    let holder = observed
        .record
        .as_ref()
        .and_then(|record| record.holder.as_deref());
    let mine = holder == Some(me.holder().as_str());
    if let Some(renewed_at) = renewed_at {
        let renew_at = renewed_at + timing.renew_every;
        return if !mine || now >= renewed_at + timing.renew_deadline {
            Decision::StepDown
        } else if now >= renew_at {
            Decision::Renew
        } else {
            Decision::Hold { until: renew_at }
        };
    }
    match (&observed.record, holder) {
        (Some(record), Some(holder)) if !mine && !me.is_earlier_self(holder) => {
            let promise = record
                .duration
                .clamp(timing.lease, LONGEST_PROMISE.max(timing.lease));
            let until = observed.changed_at + promise;
            if now >= until {
                Decision::Acquire
            } else {
                Decision::Follow { until }
            }
        }
        // No lease, a released one, that of a dead predecessor, or ours by a write whose answer was lost.
        _ => Decision::Acquire,
    }
}

/// The next thing to do, for the shell around [`Election`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// Read the lease from the API (not from a cache).
    Look,
    /// Create (`replacing` absent) or replace exactly this version of the lease.
    Write {
        /// The version that must still be there.
        replacing: Option<String>,
        /// `leaseTransitions` to write.
        transitions: i32,
        /// True when this takes the lease, false when it renews it.
        acquiring: bool,
    },
    /// Nothing, until then or until the lease changes.
    Wait {
        /// When.
        until: Instant,
    },
    /// Stop leading, now.
    StepDown,
}

/// One candidate's memory.
#[derive(Clone, Debug)]
pub struct Election {
    me: Identity,
    timing: Timing,
    observed: Option<Observed>,
    renewed_at: Option<Instant>,
    not_before: Option<Instant>,
}

impl Election {
    /// A candidate that has seen nothing yet.
    #[must_use]
    pub const fn new(me: Identity, timing: Timing) -> Self {
        Self {
            me,
            timing,
            observed: None,
            renewed_at: None,
            not_before: None,
        }
    }

    /// The candidate.
    #[must_use]
    pub const fn me(&self) -> &Identity {
        &self.me
    }

    /// Until when it may act as the leader; absent for a follower.
    #[must_use]
    pub fn leads_until(&self) -> Option<Instant> {
        self.renewed_at.map(|at| at + self.timing.renew_deadline)
    }

    /// The epoch of the lease as last seen.
    #[must_use]
    pub fn epoch(&self) -> i32 {
        self.record().map_or(0, |record| record.transitions)
    }

    /// The lease as last seen.
    #[must_use]
    pub fn record(&self) -> Option<&Record> {
        self.observed
            .as_ref()
            .and_then(|observed| observed.record.as_ref())
    }

    /// What to do now.
    #[must_use]
    pub fn next(&self, now: Instant) -> Next {
        if self.leads_until().is_some_and(|until| now >= until) {
            return Next::StepDown;
        }
        if let Some(until) = self.not_before.filter(|until| now < *until) {
            return Next::Wait { until };
        }
        let Some(observed) = &self.observed else {
            return Next::Look;
        };
        match decide(observed, self.renewed_at, now, &self.me, &self.timing) {
            Decision::StepDown => Next::StepDown,
            Decision::Hold { until } | Decision::Follow { until } => Next::Wait { until },
            Decision::Renew => self.write(false),
            Decision::Acquire => self.write(true),
        }
    }

    fn write(&self, acquiring: bool) -> Next {
        let record = self.record();
        let from_myself = record.is_some_and(|r| r.holder.as_deref() == Some(self.me.holder().as_str()));
        Next::Write {
            replacing: record.map(|record| record.version.clone()),
            transitions: self.epoch().saturating_add(i32::from(acquiring && !from_myself)),
            acquiring,
        }
    }

    /// The lease was seen, by a read or a watch.
    pub fn saw(&mut self, now: Instant, record: Option<Record>) {
        let same = self.observed.as_ref().is_some_and(|observed| {
            observed.record.as_ref().map(|r| &r.version) == record.as_ref().map(|r| &r.version)
        });
        if !same {
            self.observed = Some(Observed {
                record,
                changed_at: now,
            });
        }
    }

    /// A write that was sent at `sent_at` succeeded.
    pub fn wrote(&mut self, sent_at: Instant, now: Instant, record: Record) {
        self.observed = Some(Observed {
            record: Some(record),
            changed_at: now,
        });
        self.renewed_at = Some(sent_at);
        self.not_before = None;
    }

    /// A write was refused: the lease is not what it was taken for. It is read again, after a pause: the
    /// reason may be one that lasts, such as a namespace that does not exist.
    pub fn lost_the_race(&mut self, now: Instant) {
        self.observed = None;
        self.not_before = Some(now + self.timing.retry);
    }

    /// A read or write had no answer, and may or may not have taken effect.
    pub fn had_no_answer(&mut self, now: Instant) {
        self.not_before = Some(now + self.timing.retry);
    }

    /// Leads no more; begins anew as a follower that has seen nothing.
    pub fn stepped_down(&mut self) {
        self.renewed_at = None;
        self.observed = None;
        self.not_before = None;
    }
}

#[cfg(test)]
#[path = "election_tests.rs"]
mod tests;
