//! Whether green offers what blue does: what the nodes of both have for pods.
//!
//! Counted are nodes that are Ready and schedulable. Those with a taint that keeps pods out count when all of blue's have
//! one, as in a cluster whose only nodes are its control plane; and then in both clusters, so that like is compared with
//! like.

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::api::{Api, ListParams};
use lockkeeper_crds::{CheckResult, CutoverCapacity};

use super::clusters::Cluster;

/// Nodes that are asked for at a time.
const PAGE: u32 = 250;

const RESOURCES: [&str; 3] = ["cpu", "memory", "pods"];

/// A Ready and schedulable node: whether a taint keeps pods out, and what it has for them, in thousandths.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Offer {
    tainted: bool,
    has: [u128; 3],
}

/// Asks both.
pub(super) async fn look(blue: &Cluster, green: &Cluster, wanted: &CutoverCapacity) -> (CheckResult, String) {
    match tokio::try_join!(offers(blue), offers(green)) {
        Ok((blue, green)) => judge(&blue, &green, wanted.at_least_percent),
        Err(why) => (CheckResult::Unknown, why),
    }
}

async fn offers(cluster: &Cluster) -> Result<Vec<Offer>, String> {
    let side = cluster.side;
    let nodes: Api<Node> = Api::all(cluster.api.client());
    let mut params = ListParams::default().limit(PAGE);
    let mut all = Vec::new();
    loop {
        let page = cluster
            .api
            .within(format!("list the nodes of {side}"), nodes.list(&params))
            .await;
        let page = page.map_err(|e| e.to_string())?;
        for node in &page.items {
            all.extend(offer(node).map_err(|why| format!("{why} in {side}"))?);
        }
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => return Ok(all),
        }
    }
}

/// None: no pod goes there.
fn offer(node: &Node) -> Result<Option<Offer>, String> {
    let spec = node.spec.as_ref();
    let status = node.status.as_ref();
    let conditions = status.and_then(|s| s.conditions.as_ref()).into_iter().flatten();
    let ready = conditions
        .into_iter()
        .any(|c| c.type_ == "Ready" && c.status == "True");
    if !ready || spec.is_some_and(|s| s.unschedulable == Some(true)) {
        return Ok(None);
    }
    let taints = spec.and_then(|s| s.taints.as_ref()).into_iter().flatten();
    let tainted = taints.into_iter().any(|t| t.effect != "PreferNoSchedule");
    let mut has = [0; 3];
    for (name, has) in RESOURCES.into_iter().zip(&mut has) {
        let quantity = status.and_then(|s| s.allocatable.as_ref()?.get(name));
        let name_of = node.metadata.name.as_deref().unwrap_or_default();
        *has = quantity
            .and_then(thousandths)
            .ok_or_else(|| format!("status.allocatable of node {name_of} tells no {name}"))?;
    }
    Ok(Some(Offer { tainted, has }))
}

fn judge(blue: &[Offer], green: &[Offer], at_least_percent: u32) -> (CheckResult, String) {
    let with_tainted = blue.iter().all(|offer| offer.tainted);
    let sum = |all: &[Offer]| {
        let mut counted = (0_usize, [0_u128; 3]);
        for offer in all.iter().filter(|offer| with_tainted || !offer.tainted) {
            counted.0 += 1;
            for (sum, has) in counted.1.iter_mut().zip(offer.has) {
                *sum += has;
            }
        }
        counted
    };
    let ((in_blue, blue), (in_green, green)) = (sum(blue), sum(green));
    if blue.contains(&0) {
        let why = "blue has no Ready and schedulable node, or none that offers anything: what green must carry is not known; mend blue, or set spec.capacity.atLeastPercent to 0 with a reason";
        return (CheckResult::Unknown, why.to_owned());
    }
    let nodes = format!("{in_green} nodes of green and {in_blue} of blue");
    let all = RESOURCES.into_iter().zip(green.into_iter().zip(blue));
    let told = |(name, (green, blue))| format!("{} {name} of blue's {}", text(name, green), text(name, blue));
    let short = all
        .clone()
        .filter(|(_, (green, blue))| green * 100 < blue * u128::from(at_least_percent));
    let short: Vec<String> = short.map(told).collect();
    if short.is_empty() {
        let has: Vec<String> = all.map(told).collect();
        return (
            CheckResult::Pass,
            format!("green has {} ({nodes})", has.join(", ")),
        );
    }
    let why = format!(
        "green has only {} ({nodes}; Ready and schedulable ones), {at_least_percent} % are wanted: add nodes there, or say in spec.capacity of a new ClusterCutover how much is enough, and why",
        short.join(", ")
    );
    (CheckResult::Block, why)
}

/// For a person.
#[allow(clippy::cast_precision_loss)] // Three digits are shown.
fn text(resource: &str, thousandths: u128) -> String {
    match resource {
        "memory" => format!("{:.1} GiB", thousandths as f64 / 1000.0 / f64::from(1 << 30)),
        _ => format!("{}", thousandths as f64 / 1000.0),
    }
}

/// A quantity as Kubernetes writes it; none: it cannot be read.
fn thousandths(quantity: &Quantity) -> Option<u128> {
    let text = quantity.0.trim();
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let factor: u128 = match suffix {
        "m" => 1,
        "" => 1000,
        "k" => 1_000_000,
        "M" => 1_000_000_000,
        "G" => 1_000_000_000_000,
        "T" => 1_000_000_000_000_000,
        "Ki" => 1000 << 10,
        "Mi" => 1000 << 20,
        "Gi" => 1000 << 30,
        "Ti" => 1000 << 40,
        _ => return None,
    };
    let (whole, part) = number.split_once('.').unwrap_or((number, ""));
    let digits = u32::try_from(part.len()).ok().filter(|n| *n <= 9)?;
    let all: u128 = format!("{whole}{part}").parse().ok()?;
    Some(all.checked_mul(factor)? / 10_u128.pow(digits))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn node(more: &Value) -> Node {
        let mut node = json!({
            "metadata": {"name": "n"}, "spec": {},
            "status": {
                "allocatable": {"cpu": "3920m", "memory": "8Gi", "pods": "110"},
                "conditions": [{"type": "Ready", "status": "True"}],
            },
        });
        for (part, fields) in more.as_object().unwrap() {
            let part = node[part].as_object_mut().unwrap();
            part.extend(fields.as_object().unwrap().clone());
        }
        serde_json::from_value(node).unwrap()
    }

    fn offered(tainted: bool, gib: u128) -> Offer {
        let has = [4000, (gib * 1000) << 30, 110_000];
        Offer { tainted, has }
    }

    #[test]
    fn quantities_are_read_as_kubernetes_writes_them() {
        for (text, wanted) in [
            ("4", Some(4000)),
            ("3920m", Some(3920)),
            ("1.5", Some(1500)),
            ("0", Some(0)),
            ("16Ki", Some(16_384_000)),
            ("1.5Gi", Some(1_610_612_736_000)),
            ("2M", Some(2_000_000_000)),
            ("1e3", None),
            ("", None),
            ("many", None),
        ] {
            assert_eq!(thousandths(&Quantity(text.to_owned())), wanted, "{text}");
        }
    }

    #[test]
    fn a_node_offers_what_it_has_if_pods_can_go_there() {
        let plain = offer(&node(&json!({}))).unwrap().unwrap();
        assert_eq!(
            (plain.tainted, plain.has[0], plain.has[2]),
            (false, 3920, 110_000)
        );
        let taint = |effect: &str| json!({"spec": {"taints": [{"key": "a", "effect": effect}]}});
        assert!(offer(&node(&taint("NoSchedule"))).unwrap().unwrap().tainted);
        assert!(!offer(&node(&taint("PreferNoSchedule"))).unwrap().unwrap().tainted);
        for gone in [
            json!({"spec": {"unschedulable": true}}),
            json!({"status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}}),
            json!({"status": {"conditions": []}}),
        ] {
            assert_eq!(offer(&node(&gone)), Ok(None), "{gone}");
        }
        let silent = json!({"status": {"allocatable": {"cpu": "4", "pods": "110"}}});
        assert!(offer(&node(&silent)).unwrap_err().contains("tells no memory"));
    }

    #[test]
    fn green_is_short_of_what_blue_has_and_both_numbers_are_told() {
        let blue = [offered(false, 8), offered(false, 8)];
        assert_eq!(judge(&blue, &blue, 100).0, CheckResult::Pass);
        let (result, told) = judge(&blue, &[offered(false, 12), offered(false, 3)], 100);
        assert_eq!(result, CheckResult::Block);
        assert!(
            told.contains("15.0 GiB memory of blue's 16.0 GiB") && !told.contains("cpu"),
            "{told}"
        );
        assert_eq!(
            judge(&blue, &[offered(false, 12), offered(false, 3)], 90).0,
            CheckResult::Pass
        );
        let (result, told) = judge(&blue, &blue[..1], 100);
        assert!(
            result == CheckResult::Block && told.contains("4 cpu of blue's 8"),
            "{told}"
        );
    }

    #[test]
    fn tainted_nodes_count_in_both_when_blue_has_no_others() {
        let control_plane = [offered(true, 8)];
        assert_eq!(judge(&control_plane, &control_plane, 100).0, CheckResult::Pass);
        let blue = [offered(true, 8), offered(false, 8)];
        assert_eq!(judge(&blue, &control_plane, 100).0, CheckResult::Block);
        assert_eq!(judge(&blue, &[offered(false, 8)], 100).0, CheckResult::Pass);
    }

    #[test]
    fn nothing_is_at_least_nothing_and_proves_nothing() {
        for green in [&[][..], &[offered(false, 8)]] {
            assert_eq!(judge(&[], green, 100).0, CheckResult::Unknown);
        }
    }
}
