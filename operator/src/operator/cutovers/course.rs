//! The course of one cutover: look, ask the protocol, do the one thing, tell. It keeps nothing that it cannot lose.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use kube::{Resource as _, ResourceExt as _};
use lockkeeper_crds as crds;
use lockkeeper_crds::{CheckResult, Weights};
use lockkeeper_policies::cutover::{self, Act, Memory, Obstacle, Seen, Side, Spent, Stage, Wanted};
use tokio::sync::{Mutex, Notify};
use tokio::time::{Instant, timeout};

use super::clusters::{Cluster, Health};
use super::duties::{self, Found, Sense};
use super::freeze::Freezer;
use super::gates::Gates;
use super::ground::Ground;
use super::parity::Parity;
use super::preflight::Looked;
use super::seldom::Seldom;
use super::status::{self, Facts, Traffic};
use super::{Teller, preflight, sight};
use crate::operator::act::{FINALIZER, Hands};
use crate::operator::conductor::PassError;
use crate::operator::leader::Leadership;
use crate::operator::tell::outcome_of;
use crate::operator::wanted::chrono_time;
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

    /// Clusters, driver and gates: built once, and again where something was missing.
    async fn stand(&mut self, object: &crds::ClusterCutover) {
        let memory = sight::memory(object, Utc::now());
        let again = memory.stage == Stage::Checking || self.state.trouble.is_some();
        let not_known = self.state.gates.as_ref().is_some_and(Gates::are_unknown);
        let due = self.state.built.is_none_or(|at| at.elapsed() >= REBUILD);
        match &mut self.state.ground {
            None => {
                self.state.ground = Some(Ground::build(&self.hands, object).await);
                self.state.built = Some(Instant::now());
            }
            Some(ground) if due && (again || ground.is_in_trouble() || !ground.is_whole() || not_known) => {
                let renewed = ground.renew(&self.hands, object).await;
                if renewed.clusters {
                    // It goes on comparing by the old credentials.
                    self.state.parity = None;
                }
                if renewed.clusters || renewed.secrets {
                    self.state.seldom.forget();
                    if let Some(gates) = &self.state.gates {
                        gates.renew(ground.reach(&self.hands));
                    }
                }
                self.state.built = Some(Instant::now());
            }
            Some(_) => {}
        }
        if let Some(ground) = &self.state.ground {
            let gates = self.state.gates.get_or_insert_with(|| {
                let bell = Arc::clone(&self.bell);
                Gates::new(&object.spec.gates, &self.uid, ground.reach(&self.hands), bell)
            });
            gates.ask(sight::moment(memory.stage));
        }
        self.compare(object, memory.stage);
    }

    /// Compares the clusters as long as nothing was touched.
    fn compare(&mut self, object: &crds::ClusterCutover, stage: Stage) {
        let (Some(spec), Stage::Checking) = (&object.spec.parity, stage) else {
            self.state.parity = None;
            return;
        };
        if self.state.parity.is_none() {
            let ground = self.state.ground.as_ref();
            self.state.parity =
                ground.and_then(|g| Parity::new(spec, &object.spec.singletons, g, Arc::clone(&self.bell)));
        }
    }

    async fn look(
        &mut self,
        object: &crds::ClusterCutover,
        memory: Memory,
        now: DateTime<Utc>,
    ) -> Result<Look, PassError> {
        let mut checks = Vec::new();
        let (Some(ground), Some(gates)) = (&self.state.ground, &self.state.gates) else {
            // `stand` has made both.
            return Err(PassError::Act(crate::operator::act::ActError::Changed(
                "nothing was built".to_owned(),
            )));
        };
        let wanted = sight::wanted(object, ground.settles(), ground.takes());
        if memory.stage == Stage::Checking && !wanted.abort {
            let others = self.hands.list_cutovers().await?;
            let looked = Looked {
                name: &self.name,
                spec: &object.spec,
                hands: &self.hands,
                ground,
                gates,
                parity: self.state.parity.as_ref(),
                others: &others,
            };
            (checks, self.state.uids) = preflight::look(&looked, &mut self.state.seldom).await;
        }
        let all = duties_at(&memory, &object.spec);
        let ((weights, traffic), blue, green, frozen) = tokio::join!(
            ground.traffic(),
            duties::look(&ground.blue, all, now),
            duties::look(&ground.green, all, now),
            self.frozen(ground, object, &memory),
        );
        // Which of the two is to be stopped.
        let (in_blue, in_green) = match memory.stage {
            Stage::Back => (Sense::Start, Sense::Stop),
            Stage::Checking => (Sense::Stop, Sense::Stop),
            _ => (Sense::Stop, Sense::Start),
        };
        let unsaved = gates.unsaved();
        let lost = |cluster: &Result<Cluster, String>| match cluster {
            Ok(cluster) => cluster.health().lost,
            // It cannot even be asked: lost since this stage began, at the latest.
            Err(_) => Some(memory.since),
        };
        let seen = Seen {
            weights,
            obstacles: checks.iter().filter_map(obstacle).collect(),
            ready_at: object
                .status
                .as_ref()
                .and_then(|s| chrono_time(s.prepared_until.as_ref()?)),
            gates: gates.standing(memory.since, memory.reached),
            blue_lost: lost(&ground.blue),
            green_lost: lost(&ground.green),
            blue: duties::together(&blue, in_blue),
            green: duties::together(&green, in_green),
            frozen,
            spent: Spent {
                failed_requests: memory.spent.failed_requests + unsaved.failed_requests,
                failing_seconds: memory.spent.failing_seconds + unsaved.failing_seconds,
            },
        };
        Ok(Look {
            memory,
            wanted,
            seen,
            traffic,
            checks,
            unsaved,
            duties: [blue, green],
        })
    }

    /// Whether blue refuses writes; asked only where a freeze may be in force.
    async fn frozen(&self, ground: &Ground, object: &crds::ClusterCutover, memory: &Memory) -> Option<bool> {
        if object.spec.freeze.is_none() || memory.frozen_until.is_none() {
            return Some(false);
        }
        let answers = |c: &&Cluster| c.health().asked && c.health().lost.is_none();
        let blue = ground.blue.as_ref().ok().filter(answers)?;
        let there = self.freezer(object, blue)?.is_there().await;
        there
            .inspect_err(|error| tracing::warn!(cutover = self.name, %error, "is blue frozen?"))
            .ok()
    }

    /// None: it freezes nothing.
    fn freezer<'a>(&'a self, object: &'a crds::ClusterCutover, blue: &'a Cluster) -> Option<Freezer<'a>> {
        let spec = object.spec.freeze.as_ref()?;
        Some(Freezer::new(blue, spec, &self.name, &self.uid))
    }

    /// One act on what runs once, or on the freeze. What was not done is done by a later look.
    async fn hand_over(
        &mut self,
        object: &crds::ClusterCutover,
        act: &Act,
        [blue, green]: &[Vec<Found>; 2],
        now: DateTime<Utc>,
    ) {
        let Some(ground) = &self.state.ground else { return };
        let all = &object.spec.singletons;
        let of = |side: Side| match side {
            Side::Blue => (&ground.blue, blue, green),
            Side::Green => (&ground.green, green, blue),
        };
        let told = match act {
            Act::Stop(side, fence) => match of(*side) {
                (Ok(cluster), found, _) => duties::stop(cluster, all, found, *fence, now).await,
                (Err(why), ..) => Err(why.clone()),
            },
            Act::Start(side) => match of(*side) {
                (Ok(cluster), found, other) => duties::start(cluster, all, found, other).await,
                (Err(why), ..) => Err(why.clone()),
            },
            Act::Freeze(_) | Act::Thaw => match ground.blue.as_ref().map(|blue| self.freezer(object, blue)) {
                Ok(Some(freezer)) => match act {
                    Act::Freeze(until) => freezer.begin(*until, now).await,
                    _ => freezer.end().await,
                },
                Ok(None) => Ok(()),
                Err(why) => Err(why.clone()),
            },
            Act::Wait(_) | Act::Mark(_) | Act::Prepare | Act::Set(_) => Ok(()),
        };
        if let Err(why) = &told {
            tracing::warn!(cutover = self.name, ?act, why, "not done yet");
        }
        self.state.trouble = told.err();
    }

    /// Makes what moves the traffic ready for changes.
    async fn prepare(&mut self, now: DateTime<Utc>) {
        let driver = self.state.ground.as_ref().map(|g| &g.driver);
        let prepared = match driver {
            Some(Ok(driver)) => driver.prepare().await.map_err(|e| e.to_string()),
            Some(Err(why)) => Err(why.clone()),
            None => return,
        };
        match prepared {
            Ok(left) => {
                // Times are kept in whole seconds: rounded up.
                let rounded = left.as_secs().saturating_add(u64::from(!left.is_zero()));
                let rounded = TimeDelta::try_seconds(i64::try_from(rounded).unwrap_or(i64::MAX));
                self.state.prepared_until = now.checked_add_signed(rounded.unwrap_or(TimeDelta::MAX));
                self.state.trouble = None;
            }
            Err(why) => self.state.trouble = Some(why),
        }
    }

    async fn set(&mut self, green: u8) {
        let driver = self.state.ground.as_ref().map(|g| &g.driver);
        let tried = match driver {
            Some(Ok(driver)) => {
                let set = driver.set(Weights::of_green(green)).await;
                set.map_err(|error| (error.to_string(), error.is_at_work()))
            }
            Some(Err(why)) => Err((why.clone(), false)),
            None => Ok(()),
        };
        if let Err((why, false)) = &tried {
            tracing::warn!(cutover = self.name, green, why, "the weights could not be set");
        }
        self.state.trouble = tried.err().map(|(why, _)| why);
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

    /// Takes back what was prepared.
    async fn take_back(&mut self, object: &crds::ClusterCutover) -> Result<(), String> {
        if object.status.as_ref().is_none_or(|s| s.prepared_until.is_none()) {
            return Ok(());
        }
        self.stand(object).await;
        self.leadership.check().map_err(|e| e.to_string())?;
        match self.state.ground.as_ref().map(|g| &g.driver) {
            Some(Ok(driver)) => driver.finish().await.map_err(|e| e.to_string()),
            Some(Err(why)) => Err(why.clone()),
            None => Err("nothing was built".to_owned()),
        }
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

/// What runs once, where the protocol asks for it. On the way back the traffic does not wait for a look at the rest.
fn duties_at<'a>(memory: &Memory, spec: &'a crds::ClusterCutoverSpec) -> &'a [crds::Singleton] {
    let asked = match memory.stage {
        Stage::Checking | Stage::HandingOver => true,
        Stage::Step(_) | Stage::Window => memory.handed,
        Stage::Back => memory.handed && memory.reached.is_some(),
        Stage::Completed | Stage::RolledBack => false,
    };
    if asked { &spec.singletons } else { &[] }
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

/// What stands in the way; unknown is not fine.
fn obstacle(check: &crds::Check) -> Option<Obstacle> {
    matches!(check.result, CheckResult::Block | CheckResult::Unknown).then(|| Obstacle {
        message: format!("{}: {}", check.name, check.message),
        pending: check.result == CheckResult::Unknown && preflight::PENDING.contains(&check.message.as_str()),
    })
}
