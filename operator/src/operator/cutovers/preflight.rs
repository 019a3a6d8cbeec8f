//! What must hold before a cutover touches anything. Asks; changes nothing.

use std::collections::BTreeSet;
use std::time::Duration;

use lockkeeper_crds as crds;
use lockkeeper_crds::CheckResult;
use lockkeeper_policies::KubernetesVersion;

use super::clusters::Cluster;
use super::freeze::Freezer;
use super::gates::Gates;
use super::ground::Ground;
use super::parity::{BEING_COMPARED, Parity};
use super::rights::{self, Right};
use super::seldom::Seldom;
use super::{capacity, controllers};
use crate::api::{ApiError, ApiServers};
use crate::operator::act::Hands;
use crate::traffic::Driver;

/// The minors that Lockkeeper knows (ARCHITECTURE.md).
const MINORS: std::ops::RangeInclusive<u32> = 33..=37;

const BEING_ASKED: &str = "being asked";

/// What a check says that was not made yet.
pub(super) const PENDING: [&str; 2] = [BEING_ASKED, BEING_COMPARED];

/// What is looked at.
pub(super) struct Looked<'a> {
    pub(super) name: &'a str,
    pub(super) spec: &'a crds::ClusterCutoverSpec,
    pub(super) hands: &'a Hands,
    pub(super) ground: &'a Ground,
    pub(super) gates: &'a Gates,
    pub(super) parity: Option<&'a Parity>,
    /// Cutovers that have begun and not ended.
    pub(super) others: &'a [crds::ClusterCutover],
}

/// Every check, and the UIDs of the two clusters.
pub(super) async fn look(at: &Looked<'_>, seldom: &mut Seldom) -> (Vec<crds::Check>, [Option<String>; 2]) {
    let Looked {
        name,
        spec,
        hands,
        ground,
        ..
    } = *at;
    let operator = async {
        let needed = rights::of_operator(&hands.namespace, spec);
        let missing = rights::lacking(&hands.api, "the operator's own cluster", &needed).await;
        vec![permissions(
            "OperatorPermissions",
            "the operator's credentials for its own cluster",
            "set the chart's cutover.enabled, and name every Secret in its cutover.secretNames",
            &missing,
        )]
    };
    let mut checks = seldom.ask("operator", operator).await;
    let mut uids = [None, None];
    let sides = [("Blue", &ground.blue), ("Green", &ground.green)];
    for ((colour, cluster), uid) in sides.into_iter().zip(&mut uids) {
        match cluster {
            Err(why) => checks.push(check(
                &format!("{colour}Reachable"),
                CheckResult::Block,
                why.clone(),
            )),
            Ok(cluster) => *uid = of_cluster(colour, cluster, spec, &mut checks, seldom).await,
        }
    }
    if let [Some(blue), Some(green)] = &uids {
        checks.push(if blue == green {
            check(
                "TwoClusters",
                CheckResult::Block,
                "spec.blue and spec.green lead to the same cluster: correct one of them".to_owned(),
            )
        } else {
            check(
                "TwoClusters",
                CheckResult::Pass,
                "they are two clusters".to_owned(),
            )
        });
    }
    if let Ok(driver) = &ground.driver {
        of_edges(&spec.traffic, driver, &mut checks, seldom).await;
    }
    checks.push(match &ground.driver {
        Err(why) => check("Traffic", CheckResult::Block, why.clone()),
        Ok(driver) => match driver.check().await {
            Ok(()) => check("Traffic", CheckResult::Pass, "it can be read and set".to_owned()),
            Err(error) if error.is_at_work() => {
                check("Traffic", CheckResult::Unknown, BEING_ASKED.to_owned())
            }
            Err(error) => check("Traffic", CheckResult::Block, error.to_string()),
        },
    });
    if let Ok(driver) = &ground.driver {
        let cannot = spec
            .steps
            .iter()
            .find_map(|s| driver.can(crds::Weights::of_green(s.green)).err());
        checks.push(match cannot {
            None => check("Weights", CheckResult::Pass, "every step can be set".to_owned()),
            Some(error) => check("Weights", CheckResult::Block, error.to_string()),
        });
    }
    if let (Some(freeze), Ok(blue)) = (&spec.freeze, &ground.blue) {
        let tried = Freezer::new(blue, freeze, name, "").is_there().await;
        checks.push(freeze_can_be(
            freeze,
            ground.settles(),
            tried.map(drop).map_err(|error| error.to_string()),
        ));
    }
    checks.push(target_free(name, &ground.targets(), at.others));
    checks.extend(of_both(at, uids.iter().all(Option::is_some), seldom).await);
    if spec.parity.is_some() {
        let found = at.parity.and_then(Parity::check);
        let (result, message) = found.unwrap_or_else(|| (CheckResult::Unknown, BEING_COMPARED.to_owned()));
        checks.push(check("Parity", result, message));
    }
    (checks, uids)
}

/// A freeze lasts until the last client heeds that green has all traffic. `settles`: how long that takes once it is set;
/// `tried`: a write to blue.
fn freeze_can_be(freeze: &crds::Freeze, settles: Duration, tried: Result<(), String>) -> crds::Check {
    let longest = freeze.longest_seconds;
    let settles = settles.as_secs();
    let (result, message) = match tried {
        Err(error) => (
            CheckResult::Block,
            format!(
                "whether writes to blue are refused could not be told: {error}: correct spec.freeze.namespaces"
            ),
        ),
        Ok(()) if settles >= longest.into() => (
            CheckResult::Block,
            format!(
                "clients heed what moves the traffic within {settles} s (settlesInSeconds in spec.traffic; for dns twice its cutoverTtlSeconds), and spec.freeze.longestSeconds is {longest}: all would go back when the freeze ends; make a new ClusterCutover with a longer freeze, which also covers the hand-over and the setting of 100 %, or without one"
            ),
        ),
        Ok(()) => (CheckResult::Pass, "writes to blue can be tried".to_owned()),
    };
    check("Freeze", result, message)
}

/// Checks that need both clusters. `answer`: both do, and their credentials suffice.
async fn of_both(at: &Looked<'_>, answer: bool, seldom: &mut Seldom) -> Vec<crds::Check> {
    let spec = at.spec;
    let capacity = spec.capacity.at_least_percent > 0;
    let names = [
        ("Capacity", capacity),
        ("Controllers", !spec.singletons.is_empty()),
        ("Gates", !spec.gates.is_empty()),
    ];
    let names = names
        .into_iter()
        .filter(|(_, wanted)| *wanted)
        .map(|(name, _)| name);
    let (true, Ok(blue), Ok(green)) = (answer, &at.ground.blue, &at.ground.green) else {
        let pending = names.map(|name| check(name, CheckResult::Unknown, BEING_ASKED.to_owned()));
        return pending.collect();
    };
    let mut checks = Vec::new();
    for name in names {
        let question = async {
            let (result, message) = match name {
                "Capacity" => capacity::look(blue, green, &spec.capacity).await,
                "Controllers" => {
                    controllers::look([blue, green], &spec.singletons, &spec.accepted_controllers).await
                }
                _ => at.gates.check().await,
            };
            vec![check(name, result, message)]
        };
        checks.extend(seldom.ask(name, question).await);
    }
    checks
}

/// Checks of one cluster; its UID.
async fn of_cluster(
    colour: &str,
    cluster: &Cluster,
    spec: &crds::ClusterCutoverSpec,
    checks: &mut Vec<crds::Check>,
    seldom: &mut Seldom,
) -> Option<String> {
    let health = cluster.health();
    let reachable = format!("{colour}Reachable");
    if !health.asked {
        checks.push(check(&reachable, CheckResult::Unknown, BEING_ASKED.to_owned()));
        return None;
    }
    let answers = health.lost.is_none();
    checks.push(if answers {
        check(&reachable, CheckResult::Pass, "its API is ready".to_owned())
    } else {
        check(&reachable, CheckResult::Block, health.message)
    });
    if answers {
        checks.push(supported(colour, &health.version.unwrap_or_default()));
    } else if !health.forbidden {
        return None;
    }
    let side = cluster.side.to_string();
    let question = async {
        let missing = rights::lacking(&cluster.api, &side, &rights::of_cluster(cluster.side, spec)).await;
        let whose = format!("the credentials for {side}");
        let name = format!("{colour}Permissions");
        vec![permissions(&name, &whose, "give them that right there", &missing)]
    };
    let permissions = seldom.ask(colour, question).await;
    let suffice = permissions.iter().all(|check| check.result == CheckResult::Pass);
    checks.extend(permissions);
    if !answers || !suffice {
        return None;
    }
    match cluster.uid().await {
        Ok(uid) => Some(uid),
        Err(why) => {
            checks.push(check(&format!("{colour}Identity"), CheckResult::Unknown, why));
            None
        }
    }
}

/// Rights on what moves the traffic, where it is objects of a cluster.
async fn of_edges(
    traffic: &crds::Traffic,
    driver: &Driver,
    checks: &mut Vec<crds::Check>,
    seldom: &mut Seldom,
) {
    if let (Some(spec), Some(routes)) = (&traffic.gateway_api, driver.gateway_api()) {
        let question = async {
            let needed = rights::of_routes(spec, &routes.gateways().await);
            vec![of_edge(Edge::Routes, &spec.cluster, routes.edge(), &needed).await]
        };
        checks.extend(seldom.ask("routes", question).await);
    }
    if let (Some(spec), Some(records)) = (&traffic.external_dns, driver.external_dns()) {
        let needed = rights::of_records(spec);
        let question = async { vec![of_edge(Edge::Records, &spec.cluster, records.edge(), &needed).await] };
        checks.extend(seldom.ask("records", question).await);
    }
    if let (Some(spec), Some(jobs)) = (&traffic.job, driver.job()) {
        let needed = rights::of_traffic_job(spec);
        let question = async { vec![of_edge(Edge::Jobs, &spec.cluster, jobs.cluster(), &needed).await] };
        checks.extend(seldom.ask("jobs", question).await);
    }
}

/// What moves the traffic, where it is objects of a cluster.
#[derive(Clone, Copy)]
enum Edge {
    Routes,
    Records,
    Jobs,
}

/// Rights in the cluster in which it lies.
async fn of_edge(
    edge: Edge,
    access: &crds::ClusterAccess,
    api: &ApiServers,
    needed: &[Right],
) -> crds::Check {
    let missing = rights::lacking(api, "the edge", needed).await;
    let (name, way_out) = match edge {
        Edge::Routes => (
            "EdgePermissions",
            "name the namespaces of the routes and of their gateways in the chart's cutover.gatewayAPI.namespaces",
        ),
        Edge::Records => (
            "RecordsPermissions",
            "name the namespace of the DNSEndpoint in the chart's cutover.externalDNS.namespaces",
        ),
        Edge::Jobs => (
            "JobPermissions",
            "name the namespace of the Jobs in the chart's cutover.trafficJobs.namespaces",
        ),
    };
    let (whose, way_out) = match &access.kubeconfig_secret {
        None => (
            "the operator's credentials for the edge, its own cluster,",
            way_out,
        ),
        Some(_) => ("the credentials for the edge", "give them that right there"),
    };
    permissions(name, whose, way_out, &missing)
}

/// Whether they suffice. `way_out`: where they are given.
fn permissions(
    name: &str,
    whose: &str,
    way_out: &str,
    missing: &Result<Vec<Right>, ApiError>,
) -> crds::Check {
    match missing {
        Err(error) => check(name, CheckResult::Unknown, error.to_string()),
        Ok(missing) if missing.is_empty() => check(name, CheckResult::Pass, "they suffice".to_owned()),
        Ok(missing) => {
            let texts: Vec<String> = missing.iter().map(ToString::to_string).collect();
            let text = format!("{whose} may not {}: {way_out}", texts.join(", nor "));
            check(name, CheckResult::Block, text)
        }
    }
}

fn supported(colour: &str, version: &str) -> crds::Check {
    let name = format!("{colour}Version");
    // A distribution's suffix says nothing about the API.
    let plain = version.split(['-', '+']).next().unwrap_or_default();
    match plain.parse::<KubernetesVersion>() {
        Ok(known) if MINORS.contains(&known.minor) => check(&name, CheckResult::Pass, version.to_owned()),
        _ => check(
            &name,
            CheckResult::Block,
            format!(
                "it runs {version}; supported are v1.{} to v1.{}",
                MINORS.start(),
                MINORS.end()
            ),
        ),
    }
}

/// Only one cutover may move a target at a time.
fn target_free(name: &str, targets: &BTreeSet<String>, others: &[crds::ClusterCutover]) -> crds::Check {
    for other in others {
        let its = other.metadata.name.as_deref().unwrap_or_default();
        let Some(status) = other.status.as_ref().filter(|s| is_at_work(s)) else {
            continue;
        };
        if its != name
            && let Some(target) = status.targets.iter().find(|t| targets.contains(*t))
        {
            return check(
                "TargetFree",
                CheckResult::Block,
                format!(
                    "ClusterCutover {its} moves {target} too and has not ended: wait for its end, or set its spec.abort"
                ),
            );
        }
    }
    check(
        "TargetFree",
        CheckResult::Pass,
        "no other ClusterCutover moves this traffic".to_owned(),
    )
}

/// It has begun, and not ended.
fn is_at_work(status: &crds::ClusterCutoverStatus) -> bool {
    status.memory.as_ref().is_some_and(|m| {
        !matches!(
            m.stage,
            crds::CutoverStage::Checking | crds::CutoverStage::Completed | crds::CutoverStage::RolledBack
        )
    })
}

fn check(name: &str, result: CheckResult, message: String) -> crds::Check {
    crds::Check {
        name: name.to_owned(),
        result,
        message,
        node: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operator::cutovers::testing::object;
    use lockkeeper_policies::cutover::Side;

    #[test]
    fn a_target_that_another_moves_is_refused_with_its_name_until_it_has_ended() {
        let targets = BTreeSet::from(["haproxy 10.0.0.5:9999/shop".to_owned()]);
        let mut other = object();
        other.metadata.name = Some("first".to_owned());
        let mut at = |stage| {
            other.status = Some(crds::ClusterCutoverStatus {
                targets: targets.iter().cloned().collect(),
                memory: Some(crds::CutoverMemory {
                    stage,
                    step: 0,
                    since: crate::operator::wanted::kube_time(chrono::Utc::now()).unwrap(),
                    reached: None,
                    frozen_until: None,
                    handed: false,
                    diverged: false,
                    reason: String::new(),
                }),
                ..crds::ClusterCutoverStatus::default()
            });
            other.clone()
        };
        for stage in [
            crds::CutoverStage::Step,
            crds::CutoverStage::Window,
            crds::CutoverStage::Back,
        ] {
            let found = target_free("second", &targets, &[at(stage)]);
            assert_eq!(found.result, CheckResult::Block);
            assert!(
                found.message.contains("ClusterCutover first"),
                "{}",
                found.message
            );
            assert_eq!(
                target_free("first", &targets, &[at(stage)]).result,
                CheckResult::Pass
            );
        }
        for stage in [crds::CutoverStage::Checking, crds::CutoverStage::RolledBack] {
            assert_eq!(
                target_free("second", &targets, &[at(stage)]).result,
                CheckResult::Pass
            );
        }
        let elsewhere = BTreeSet::from(["haproxy 10.0.0.6:9999/shop".to_owned()]);
        let busy = at(crds::CutoverStage::Step);
        assert_eq!(
            target_free("second", &elsewhere, &[busy]).result,
            CheckResult::Pass
        );
    }

    #[test]
    fn a_right_that_is_missing_is_named_and_one_that_is_not_known_does_not_pass() {
        let missing = Ok(rights::of_cluster(Side::Blue, &object().spec).split_off(1));
        let found = permissions(
            "GreenPermissions",
            "the credentials for green",
            "give it",
            &missing,
        );
        assert_eq!(found.result, CheckResult::Block);
        assert_eq!(
            found.message,
            "the credentials for green may not get /version, nor get namespaces kube-system, nor list nodes: give it"
        );
        let unknown = Err(ApiError::Late {
            what: "ask green".to_owned(),
            limit: Duration::from_secs(10),
            servers: String::new(),
        });
        assert_eq!(permissions("P", "", "", &unknown).result, CheckResult::Unknown);
        assert_eq!(permissions("P", "", "", &Ok(vec![])).result, CheckResult::Pass);
    }

    #[test]
    fn a_freeze_that_ends_before_the_last_client_heeds_100_percent_is_refused() {
        let freeze = crds::Freeze {
            namespaces: vec!["shop".to_owned()],
            longest_seconds: 120,
        };
        let asked =
            |settles, tried: Result<(), String>| freeze_can_be(&freeze, Duration::from_secs(settles), tried);
        for settles in [0, 119] {
            assert_eq!(asked(settles, Ok(())).result, CheckResult::Pass, "{settles}");
        }
        for settles in [120, 600] {
            let found = asked(settles, Ok(()));
            assert_eq!(found.result, CheckResult::Block, "{settles}");
            let said = found.message;
            assert!(
                said.contains("settlesInSeconds") && said.contains("longestSeconds is 120"),
                "{said}"
            );
        }
        assert_eq!(asked(0, Err("no right".to_owned())).result, CheckResult::Block);
    }

    #[test]
    fn a_distributions_suffix_is_no_reason_to_refuse() {
        for (version, result) in [
            ("v1.36.3", CheckResult::Pass),
            ("v1.35.4-eks-1234", CheckResult::Pass),
            ("v1.34.1+k3s1", CheckResult::Pass),
            ("v1.32.9", CheckResult::Block),
            ("v1.38.0", CheckResult::Block),
            ("", CheckResult::Block),
        ] {
            assert_eq!(supported("Blue", version).result, result, "{version}");
        }
    }
}
