//! Gates of cutovers: rounds of requests, and what is remembered of them.
//!
//! Only the gates that count at a moment are asked. What is remembered dies with the process; what was spent is
//! written into the status.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use futures::StreamExt as _;
use lockkeeper_crds as crds;
use lockkeeper_policies::cutover::{Gate, Spent};
use reqwest::redirect::Policy;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use crate::api::chain;
use crate::trust;

/// Requests of one round that are under way at a time.
const AT_ONCE: usize = 10;
/// How much of an answer is looked through.
const LOOKED_THROUGH: usize = 64 << 10;

/// One round of a gate.
#[derive(Clone, Debug)]
struct Round {
    began: DateTime<Utc>,
    passed: bool,
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
    log: Arc<Mutex<Log>>,
    bell: Arc<Notify>,
    moment: Option<crds::GateMoment>,
    /// Dropped with this, and the requests with them.
    running: JoinSet<()>,
}

impl Gates {
    /// `bell` is rung when a round has ended otherwise than the one before.
    pub(super) fn new(specs: &[crds::CutoverGate], bell: Arc<Notify>) -> Self {
        Self {
            specs: specs.to_vec(),
            log: Arc::default(),
            bell,
            moment: None,
            running: JoinSet::new(),
        }
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
            let (log, bell) = (Arc::clone(&self.log), Arc::clone(&self.bell));
            self.running
                .spawn(rounds(Asker::new(&spec), spec, log, bell, counts));
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
                let in_a_row = |passed: bool, since: DateTime<Utc>| {
                    let newest_first = rounds.into_iter().flatten().rev();
                    let like = newest_first.take_while(|r| r.passed == passed && r.began >= since);
                    u32::try_from(like.count()).unwrap_or(u32::MAX)
                };
                // Times are remembered in whole seconds: a round of the same second may have begun before.
                let seen = reached.unwrap_or(since) + TimeDelta::seconds(1);
                Gate {
                    name: spec.name.clone(),
                    passes: in_a_row(true, seen).min(spec.passes),
                    passes_wanted: spec.passes,
                    failures: in_a_row(false, since).min(spec.failures),
                    failures_limit: spec.failures,
                    message: rounds
                        .and_then(|r| r.back())
                        .map_or_else(|| "not asked yet".to_owned(), |r| r.message.clone()),
                }
            })
            .collect()
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

/// Never ends; aborted with its gates.
async fn rounds(
    asker: Asker,
    spec: crds::CutoverGate,
    log: Arc<Mutex<Log>>,
    bell: Arc<Notify>,
    counts: bool,
) {
    let mut clock = interval(Duration::from_secs(spec.interval_seconds.into()));
    clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let keep = usize::try_from(spec.passes.max(spec.failures)).unwrap_or(1000) + 2;
    loop {
        clock.tick().await;
        let (began, started) = (Utc::now(), Instant::now());
        let (failed, message) = asker.round().await;
        let passed = failed * 100 <= spec.http.requests * u32::from(spec.http.max_failed_percent);
        let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
        if counts {
            log.unsaved.failed_requests += u64::from(failed);
            if !passed {
                let took = started.elapsed().as_secs().max(spec.interval_seconds.into());
                log.unsaved.failing_seconds += took;
            }
        }
        let rounds = log.rounds.entry(spec.name.clone()).or_default();
        let news = rounds.back().is_none_or(|last| last.passed != passed) || !passed || failed > 0;
        rounds.push_back(Round {
            began,
            passed,
            message,
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
struct Asker {
    http: crds::HttpGate,
    client: Result<reqwest::Client, String>,
}

impl Asker {
    fn new(spec: &crds::CutoverGate) -> Self {
        Self {
            client: client(&spec.http).map_err(|e| chain(&e)),
            http: spec.http.clone(),
        }
    }

    /// How many requests failed, and what a person is told.
    async fn round(&self) -> (u32, String) {
        let all = self.http.requests;
        let client = match &self.client {
            Ok(client) => client,
            Err(why) => return (all, format!("no request can be made: {why}")),
        };
        let limit = Duration::from_secs(self.http.timeout_seconds.into());
        let asked = futures::stream::iter(0..all).map(|_| async {
            match timeout(limit, self.one(client)).await {
                Ok(answer) => answer,
                Err(_) => Err(format!("no answer within {} s", limit.as_secs())),
            }
        });
        let answers: Vec<_> = asked.buffer_unordered(AT_ONCE).collect().await;
        let mut failures = answers.into_iter().filter_map(Result::err);
        match failures.next() {
            None => (0, format!("{all} of {all} requests were answered as wanted")),
            Some(first) => {
                let failed = u32::try_from(failures.count()).unwrap_or(all).saturating_add(1);
                (
                    failed,
                    format!("{failed} of {all} requests failed, one with: {first}"),
                )
            }
        }
    }

    async fn one(&self, client: &reqwest::Client) -> Result<(), String> {
        let mut request = client.get(&self.http.url);
        for (name, value) in &self.http.headers {
            request = request.header(name, value);
        }
        let mut answer = request.send().await.map_err(|e| chain(&e.without_url()))?;
        let status = answer.status();
        let wanted = if self.http.statuses.is_empty() {
            status.is_success()
        } else {
            self.http.statuses.contains(&status.as_u16())
        };
        if !wanted {
            return Err(format!("status {}", status.as_u16()));
        }
        let Some(text) = &self.http.contains else {
            return Ok(());
        };
        let mut body = Vec::new();
        while let Some(more) = answer.chunk().await.map_err(|e| chain(&e.without_url()))? {
            body.extend_from_slice(&more);
            if body.len() >= LOOKED_THROUGH {
                break;
            }
        }
        body.truncate(LOOKED_THROUGH);
        let body = String::from_utf8_lossy(&body);
        if body.contains(text.as_str()) {
            Ok(())
        } else {
            Err(format!("the answer does not hold {text:?}"))
        }
    }
}

/// Each request on a connection of its own: a kept one would ask one cluster for ever.
fn client(http: &crds::HttpGate) -> Result<reqwest::Client, reqwest::Error> {
    let pem = http.ca_bundle.as_deref().map(str::as_bytes);
    let authorities = pem.map(reqwest::Certificate::from_pem_bundle).transpose()?;
    let client = reqwest::Client::builder()
        .no_proxy()
        .redirect(Policy::none())
        .pool_max_idle_per_host(0)
        .user_agent(concat!("lockkeeper/", env!("CARGO_PKG_VERSION")));
    trust::only(authorities, &http.url, client).build()
}

#[cfg(test)]
#[path = "gates_tests.rs"]
mod tests;
