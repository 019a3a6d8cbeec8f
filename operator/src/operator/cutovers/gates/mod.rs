//! Gates of cutovers: rounds of questions, and what is remembered of them.
//!
//! What comes in: `spec.gates`, and what they reach ([`Reach`]). What goes out: how each stands. May touch: what a gate
//! names, asking; and Jobs of its own.
//!
//! | file | a round is |
//! | --- | --- |
//! | `http` | requests |
//! | `promql` | a query |
//! | `cel` | objects of a cluster, and an expression over them (`expression`) |
//! | `job` | a Job, made and waited for |
//!
//! Only the gates that count at a moment are asked. What is remembered dies with the process; what was spent is
//! written into the status, and a Job that runs is found again.

mod cel;
mod expression;
mod http;
mod job;
mod promql;
mod reach;

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use lockkeeper_crds as crds;
use lockkeeper_crds::{CheckResult, OnLoss};
use lockkeeper_policies::cutover::{Gate, Spent};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};

pub(super) use reach::Reach;

/// What a round has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Passed,
    Failed,
    Unknown,
}

/// What a question was answered.
#[derive(Clone, Debug)]
struct Answer {
    outcome: Outcome,
    /// Of http.
    failed_requests: u32,
    message: String,
    /// When it was asked, where that was before this round.
    asked: Option<DateTime<Utc>>,
}

impl Answer {
    fn new(outcome: Outcome, message: impl Into<String>) -> Self {
        Self {
            outcome,
            failed_requests: 0,
            message: message.into(),
            asked: None,
        }
    }

    fn unknown(message: impl Into<String>) -> Self {
        Self::new(Outcome::Unknown, message)
    }
}

/// What hinders a gate from ever passing, found before anything begins.
struct Hindrance(CheckResult, String);

impl Hindrance {
    /// Nothing but another spec, or another right, helps.
    fn block(why: impl Into<String>) -> Self {
        Self(CheckResult::Block, why.into())
    }

    fn unknown(why: impl Into<String>) -> Self {
        Self(CheckResult::Unknown, why.into())
    }
}

/// One round of a gate.
#[derive(Clone, Debug)]
struct Round {
    began: DateTime<Utc>,
    outcome: Outcome,
    message: String,
}

#[derive(Default)]
struct Log {
    rounds: BTreeMap<String, VecDeque<Round>>,
    /// Not yet written into a status.
    unsaved: Spent,
}

/// The gates of one cutover.
pub(super) struct Gates {
    specs: Vec<crds::CutoverGate>,
    /// The UID of the cutover.
    owner: String,
    reach: watch::Sender<Reach>,
    log: Arc<Mutex<Log>>,
    bell: Arc<Notify>,
    moment: Option<crds::GateMoment>,
    /// Dropped with this, and the requests with them.
    running: JoinSet<()>,
}

impl Gates {
    /// `bell` is rung when a round has ended otherwise than the one before.
    pub(super) fn new(specs: &[crds::CutoverGate], owner: &str, reach: Reach, bell: Arc<Notify>) -> Self {
        Self {
            specs: specs.to_vec(),
            owner: owner.to_owned(),
            reach: watch::Sender::new(reach),
            log: Arc::default(),
            bell,
            moment: None,
            running: JoinSet::new(),
        }
    }

    /// Clusters and Secrets, from now on.
    pub(super) fn renew(&self, reach: Reach) {
        self.reach.send_replace(reach);
    }

    /// What keeps one from ever passing; none: they can be asked.
    pub(super) async fn check(&self) -> (CheckResult, String) {
        let reach = self.reach.borrow().clone();
        for spec in &self.specs {
            let asker = Asker::new(spec, &self.owner);
            if let Err(Hindrance(result, why)) = asker.check(&reach).await {
                return (result, format!("gate {}: {why}", spec.name));
            }
        }
        (CheckResult::Pass, "they can be asked".to_owned())
    }

    /// From now on the gates of this moment are asked, and no other.
    pub(super) fn ask(&mut self, moment: Option<crds::GateMoment>) {
        if self.moment == moment {
            return;
        }
        self.moment = moment;
        self.running.abort_all();
        let counts = moment != Some(crds::GateMoment::Before);
        let counted: Vec<_> = self.counted().into_iter().cloned().collect();
        for spec in counted {
            let asker = Asker::new(&spec, &self.owner);
            let ground = (
                self.reach.subscribe(),
                Arc::clone(&self.log),
                Arc::clone(&self.bell),
            );
            self.running.spawn(rounds(asker, spec, ground, counts));
        }
    }

    fn counted(&self) -> Vec<&crds::CutoverGate> {
        let moment = self.moment;
        let all = self.specs.iter();
        all.filter(|g| moment.is_some_and(|m| g.at.contains(&m)))
            .collect()
    }

    /// How the gates of this moment stand: failures since the stage began, passes since its weights were seen.
    pub(super) fn standing(&self, since: DateTime<Utc>, reached: Option<DateTime<Utc>>) -> Vec<Gate> {
        let log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        let counted = self.counted();
        counted
            .into_iter()
            .map(|spec| {
                let rounds = log.rounds.get(&spec.name);
                let newest_first = || rounds.into_iter().flatten().rev();
                let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
                let passes = |since| {
                    let row = newest_first().take_while(|r| r.outcome == Outcome::Passed && r.began >= since);
                    count(row.count())
                };
                // What is not known neither adds to the failures nor ends their row.
                let failures = |since| {
                    let row = newest_first().take_while(|r| r.outcome != Outcome::Passed && r.began >= since);
                    count(row.filter(|r| fails(spec, r.outcome)).count())
                };
                // Times are remembered in whole seconds: a round of the same second may have begun before.
                let seen = reached.unwrap_or(since) + TimeDelta::seconds(1);
                Gate {
                    name: spec.name.clone(),
                    passes: passes(seen).min(spec.passes),
                    passes_wanted: spec.passes,
                    failures: failures(since).min(spec.failures),
                    failures_limit: spec.failures,
                    message: rounds
                        .and_then(|r| r.back())
                        .map_or_else(|| "not asked yet".to_owned(), |r| r.message.clone()),
                }
            })
            .collect()
    }

    /// The last answer of one is not known: what it was asked with may have been replaced.
    pub(super) fn are_unknown(&self) -> bool {
        let log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        let mut last = self
            .counted()
            .into_iter()
            .filter_map(|g| log.rounds.get(&g.name)?.back());
        last.any(|round| round.outcome == Outcome::Unknown)
    }

    /// What was spent and is in no status yet.
    pub(super) fn unsaved(&self) -> Spent {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).unsaved
    }

    /// So much of it is in the status now.
    pub(super) fn saved(&self, spent: Spent) {
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        let unsaved = &mut log.unsaved;
        unsaved.failed_requests = unsaved.failed_requests.saturating_sub(spent.failed_requests);
        unsaved.failing_seconds = unsaved.failing_seconds.saturating_sub(spent.failing_seconds);
    }
}

/// Whether it counts as a failure.
fn fails(spec: &crds::CutoverGate, outcome: Outcome) -> bool {
    match outcome {
        Outcome::Passed => false,
        Outcome::Failed => true,
        Outcome::Unknown => spec.when_unknown == OnLoss::GoBack,
    }
}

/// Never ends; aborted with its gates.
async fn rounds(
    asker: Asker,
    spec: crds::CutoverGate,
    (reach, log, bell): (watch::Receiver<Reach>, Arc<Mutex<Log>>, Arc<Notify>),
    counts: bool,
) {
    let mut clock = interval(Duration::from_secs(spec.interval_seconds.into()));
    clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // Rounds whose answer was not known lie between those that failed.
    let keep = usize::try_from(spec.passes.max(spec.failures)).unwrap_or(1000) * 2 + 2;
    loop {
        clock.tick().await;
        let (began, started) = (Utc::now(), Instant::now());
        let now = reach.borrow().clone();
        let answer = asker.round(&now).await;
        let outcome = answer.outcome;
        let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
        if counts {
            log.unsaved.failed_requests += u64::from(answer.failed_requests);
            if fails(&spec, outcome) {
                let took = started.elapsed().as_secs().max(spec.interval_seconds.into());
                log.unsaved.failing_seconds += took;
            }
        }
        let rounds = log.rounds.entry(spec.name.clone()).or_default();
        let news = rounds.back().is_none_or(|last| last.outcome != outcome)
            || outcome != Outcome::Passed
            || answer.failed_requests > 0;
        rounds.push_back(Round {
            began: answer.asked.unwrap_or(began),
            outcome,
            message: answer.message,
        });
        while rounds.len() > keep {
            rounds.pop_front();
        }
        drop(log);
        if news {
            bell.notify_one();
        }
    }
}

/// Asks one gate.
enum Asker {
    Http(http::Http),
    PromQl(promql::PromQl),
    Cel(Box<cel::Cel>),
    Job(job::Job),
    /// A spec that asks nothing, whatever the schema let through.
    Nothing,
}

impl Asker {
    fn new(spec: &crds::CutoverGate, owner: &str) -> Self {
        if let Some(asked) = &spec.http {
            Self::Http(http::Http::new(asked))
        } else if let Some(asked) = &spec.prom_ql {
            Self::PromQl(promql::PromQl::new(asked))
        } else if let Some(asked) = &spec.cel {
            Self::Cel(Box::new(cel::Cel::new(asked)))
        } else if let Some(asked) = &spec.job {
            Self::Job(job::Job::new(asked, &spec.name, owner))
        } else {
            Self::Nothing
        }
    }

    async fn round(&self, reach: &Reach) -> Answer {
        match self {
            Self::Http(http) => http.round().await,
            Self::PromQl(promql) => promql.round(reach, Utc::now()).await,
            Self::Cel(cel) => cel.round(reach).await,
            Self::Job(job) => job.round(reach).await,
            Self::Nothing => Answer::unknown("it asks nothing"),
        }
    }

    async fn check(&self, reach: &Reach) -> Result<(), Hindrance> {
        match self {
            Self::Http(http) => http.check(),
            Self::PromQl(promql) => promql.check(reach).await,
            Self::Cel(cel) => cel.check(reach).await,
            Self::Job(job) => job.check(reach).await,
            Self::Nothing => Err(Hindrance::block("it asks nothing: give http, promQL, cel or job")),
        }
    }
}

#[cfg(test)]
mod tests;
