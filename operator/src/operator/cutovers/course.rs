//! The course of one cutover: look, ask the protocol, do the one thing, tell. It keeps nothing that it cannot lose.

mod act;
mod look;

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use kube::{Resource as _, ResourceExt as _};
use lockkeeper_crds as crds;
use lockkeeper_policies::cutover::{self, Act, Memory, Seen, Spent, Stage, Wanted};
use tokio::sync::{Mutex, Notify};
use tokio::time::{Instant, timeout};

use super::clusters::{Cluster, Health};
use super::duties::{self, Found};
use super::gates::Gates;
use super::ground::Ground;
use super::parity::Parity;
use super::seldom::Seldom;
use super::status::{self, Facts, Traffic};
use super::{Teller, sight};
use crate::operator::act::{FINALIZER, Hands};
use crate::operator::conductor::PassError;
use crate::operator::leader::Leadership;
use crate::operator::tell::outcome_of;
use crate::telemetry::Reason;
use crate::telemetry::metrics::Kind;

/// A pass asks a dozen small things, each with a limit of its own.
const PASS_LIMIT: Duration = Duration::from_secs(60);
/// Between two tries to build what is not there.
const REBUILD: Duration = Duration::from_secs(5);
/// After a failed pass.
const RETRY: Duration = Duration::from_secs(1);
/// Between two times that the same weights are set.
const AGAIN: Duration = Duration::from_millis(300);

/// When to look again, unless a bell rings before.
enum After {
    /// The act has changed what is seen.
    Now,
    Wait(Duration),
    /// Nothing is left to do.
    End,
}

/// The course of one cutover.
pub(super) struct Course {
    pub(super) name: String,
    pub(super) uid: String,
    pub(super) hands: Hands,
    pub(super) leadership: Leadership,
    pub(super) teller: Teller,
    /// Rung when the object changes, and when a gate fails.
    pub(super) bell: Arc<Notify>,
    /// Held from the look at the other cutovers until the beginning is written down.
    pub(super) beginning: Arc<Mutex<()>>,
    pub(super) state: State,
}

/// What may be lost.
#[derive(Default)]
pub(super) struct State {
    ground: Option<Ground>,
    built: Option<Instant>,
    gates: Option<Gates>,
    /// Only before the first step.
    parity: Option<Parity>,
    uids: [Option<String>; 2],
    seldom: Seldom,
    /// From when on what moves the traffic is ready.
    prepared_until: Option<DateTime<Utc>>,
    /// Why the last act was not done.
    trouble: Option<String>,
}

/// What a look has found.
struct Look {
    memory: Memory,
    wanted: Wanted,
    seen: Seen,
    traffic: Traffic,
    checks: Vec<crds::Check>,
    unsaved: Spent,
    /// What runs once, in blue and in green.
    duties: [Vec<Found>; 2],
}

impl Course {
    /// Until it has ended, or this process leads no more.
    pub(super) async fn run(mut self) {
        let token = self.leadership.token.clone();
        tokio::select! {
            () = token.cancelled() => {}
            () = self.work() => {}
        }
    }

    async fn work(&mut self) {
        let bell = Arc::clone(&self.bell);
        loop {
            let started = Instant::now();
            let passed = timeout(PASS_LIMIT, self.pass()).await;
            let Ok(passed) = passed else {
                tracing::warn!(cutover = self.name, "a look took longer than {PASS_LIMIT:?}");
                continue;
            };
            let changed = passed.as_ref().map(|after| matches!(after, After::Now));
            self.teller
                .metrics
                .reconciled(Kind::ClusterCutover, outcome_of(changed), started.elapsed());
            let wait = match passed {
                Ok(After::End) => return,
                Ok(After::Now) => continue,
                Ok(After::Wait(wait)) => wait,
                Err(error) if error.is_conflict() => continue,
                Err(error) => {
                    tracing::warn!(%error, cutover = self.name, "a look was not finished");
                    tokio::time::sleep(RETRY).await;
                    continue;
                }
            };
            tokio::select! {
                () = bell.notified() => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// One look, and one act.
    async fn pass(&mut self) -> Result<After, PassError> {
        let found = self.hands.read_cutover(&self.name).await?;
        let Some(object) = found.filter(|o| o.uid().as_deref() == Some(self.uid.as_str())) else {
            self.teller.metrics.cutover(&self.name, None);
            return Ok(After::End);
        };
        let now = Utc::now();
        let memory = sight::memory(&object, now);
        if memory.stage.is_end() {
            return self.let_go(&object).await;
        }
        self.stand(&object).await;
        let beginning = Arc::clone(&self.beginning);
        let _alone = match memory.stage {
            Stage::Checking => Some(beginning.lock().await),
            _ => None,
        };
        let look = self.look(&object, memory, now).await?;
        let act = cutover::decide(&look.memory, &look.wanted, &look.seen, now);
        let after = match &act {
            Act::Mark(next) => {
                let next = next.clone();
                self.mark(&object, &look, &act, &next, now).await?;
                self.state.trouble = None;
                return Ok(After::Now);
            }
            Act::Wait(_) => {
                self.state.trouble = None;
                After::Wait(rhythm(look.memory.stage))
            }
            Act::Prepare => {
                self.leadership.check()?;
                if !is_held(&object) {
                    // What is prepared must be taken back, also when the object is deleted before the first step.
                    self.hands.hold_cutover(&object, true).await?;
                    return Ok(After::Now);
                }
                self.prepare(now).await;
                After::Wait(AGAIN)
            }
            Act::Set(green) => {
                self.leadership.check()?;
                self.set(*green).await;
                After::Wait(AGAIN)
            }
            Act::Stop(..) | Act::Start(_) | Act::Freeze(_) | Act::Thaw => {
                self.leadership.check()?;
                self.hand_over(&object, &act, &look.duties, now).await;
                After::Wait(AGAIN)
            }
        };
        self.write(&object, &look, &act, &look.memory, now).await?;
        Ok(after)
    }

    /// Writes down what follows, before it follows.
    async fn mark(
        &self,
        object: &crds::ClusterCutover,
        look: &Look,
        act: &Act,
        next: &Memory,
        now: DateTime<Utc>,
    ) -> Result<(), PassError> {
        if !is_held(object) && !next.stage.is_end() {
            self.leadership.check()?;
            // The version has changed: the look is made again.
            self.hands.hold_cutover(object, true).await?;
            return Ok(());
        }
        self.write(object, look, act, next, now).await
    }

    /// Writes the status if it says anything new.
    async fn write(
        &self,
        object: &crds::ClusterCutover,
        look: &Look,
        act: &Act,
        memory: &Memory,
        now: DateTime<Utc>,
    ) -> Result<(), PassError> {
        let ground = self.state.ground.as_ref();
        let health = |cluster: Option<&Result<Cluster, String>>| match cluster {
            Some(Ok(cluster)) => cluster.health(),
            Some(Err(why)) => Health {
                message: why.clone(),
                ..Health::default()
            },
            None => Health::default(),
        };
        let [blue, green] = self.state.uids.clone();
        let facts = Facts {
            object,
            memory,
            wanted: &look.wanted,
            seen: &look.seen,
            act,
            traffic: &look.traffic,
            clusters: [
                (health(ground.map(|g| &g.blue)), blue),
                (health(ground.map(|g| &g.green)), green),
            ],
            checks: look.checks.clone(),
            targets: ground
                .map(|g| g.targets().into_iter().collect())
                .unwrap_or_default(),
            prepared_until: self.state.prepared_until,
            parity: self.state.parity.as_ref().and_then(Parity::status),
            trouble: self.state.trouble.as_deref(),
            singletons: duties::rows(&object.spec.singletons, &look.duties[0], &look.duties[1]),
            now,
        };
        let Some(next) = status::build(&facts) else {
            return Ok(());
        };
        let before = object.status.clone().unwrap_or_default();
        self.teller.figures(&self.name, &next);
        if before == next {
            return Ok(());
        }
        self.leadership.check()?;
        self.hands.write_cutover(object, next.clone()).await?;
        if let Some(gates) = &self.state.gates {
            gates.saved(look.unsaved);
        }
        self.teller.tell(object, &before, &next);
        Ok(())
    }

    /// It has ended: nothing holds it any more.
    async fn let_go(&mut self, object: &crds::ClusterCutover) -> Result<After, PassError> {
        if is_held(object) {
            if let Err(why) = self.take_back(object).await {
                let text = format!("what was prepared is not taken back yet: {why}");
                self.teller
                    .events
                    .publish(&object.object_ref(&()), Reason::CutoverHeld, &text);
                return Ok(After::Wait(REBUILD));
            }
            self.leadership.check()?;
            self.hands.hold_cutover(object, false).await?;
        }
        self.teller.metrics.cutover(&self.name, None);
        Ok(After::End)
    }
}

/// A deletion waits for its end.
fn is_held(object: &crds::ClusterCutover) -> bool {
    object.finalizers().iter().any(|f| f == FINALIZER)
}

/// How long nothing needs a look, unless a bell rings: a word of a person, a gate that fails.
const fn rhythm(stage: Stage) -> Duration {
    match stage {
        Stage::Back => Duration::from_millis(500),
        Stage::HandingOver | Stage::Step(_) => Duration::from_secs(1),
        Stage::Checking => Duration::from_secs(2),
        Stage::Window | Stage::Completed | Stage::RolledBack => Duration::from_secs(5),
    }
}
