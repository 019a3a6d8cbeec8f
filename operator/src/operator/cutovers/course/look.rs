//! One look at everything that a decision needs, and what it stands on.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use lockkeeper_crds as crds;
use lockkeeper_crds::CheckResult;
use lockkeeper_policies::cutover::{Memory, Obstacle, Seen, Spent, Stage};
use tokio::time::Instant;

use super::{Course, Look, REBUILD};
use crate::operator::conductor::PassError;
use crate::operator::cutovers::clusters::Cluster;
use crate::operator::cutovers::duties::{self, Sense};
use crate::operator::cutovers::freeze::Freezer;
use crate::operator::cutovers::gates::Gates;
use crate::operator::cutovers::ground::Ground;
use crate::operator::cutovers::parity::Parity;
use crate::operator::cutovers::preflight::Looked;
use crate::operator::cutovers::{preflight, sight};
use crate::operator::wanted::chrono_time;

impl Course {
    /// Clusters, driver and gates: built once, and again where something was missing.
    pub(super) async fn stand(&mut self, object: &crds::ClusterCutover) {
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
    pub(super) fn compare(&mut self, object: &crds::ClusterCutover, stage: Stage) {
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

    pub(super) async fn look(
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
    pub(super) async fn frozen(
        &self,
        ground: &Ground,
        object: &crds::ClusterCutover,
        memory: &Memory,
    ) -> Option<bool> {
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
    pub(super) fn freezer<'a>(
        &'a self,
        object: &'a crds::ClusterCutover,
        blue: &'a Cluster,
    ) -> Option<Freezer<'a>> {
        let spec = object.spec.freeze.as_ref()?;
        Some(Freezer::new(blue, spec, &self.name, &self.uid))
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

/// What stands in the way; unknown is not fine.
fn obstacle(check: &crds::Check) -> Option<Obstacle> {
    matches!(check.result, CheckResult::Block | CheckResult::Unknown).then(|| Obstacle {
        message: format!("{}: {}", check.name, check.message),
        pending: check.result == CheckResult::Unknown && preflight::PENDING.contains(&check.message.as_str()),
    })
}
