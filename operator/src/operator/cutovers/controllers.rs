//! Who else would stop or start what runs once: controllers that keep objects as Git, or as a load, wants them.
//!
//! Asks; changes nothing. What tells of one: labels and annotations of the object, its field managers, and the
//! HorizontalPodAutoscalers that name it. What decides is who manages the one field that is changed (`spec.replicas`,
//! `spec.suspend`): a controller that leaves it to others undoes nothing.
//!
//! A HorizontalPodAutoscaler of its own accord leaves alone what has no replicas, unless its `minReplicas` is 0; KEDA,
//! which makes one for each of its ScaledObjects and takes it away while that is paused, does not.

use std::collections::BTreeMap;

use futures::future::try_join_all;
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use kube::api::{Api, DynamicObject, ListParams};
use lockkeeper_crds::{AcceptedController, CheckResult, Singleton, SingletonKind};
use serde_json::Value;

use super::clusters::Cluster;
use super::duties;

/// One controller that would undo what a cutover does.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Rival {
    who: String,
    way_out: &'static str,
}

/// Asks both clusters for each of them.
pub(super) async fn look(
    clusters: [&Cluster; 2],
    all: &[Singleton],
    accepted: &[AcceptedController],
) -> (CheckResult, String) {
    let asked = clusters
        .into_iter()
        .flat_map(|cluster| all.iter().map(move |one| (cluster, one)));
    let found = try_join_all(asked.map(async |(cluster, one)| {
        let rivals = rivals_of(cluster, one).await?;
        Ok::<_, String>((cluster.side.to_string(), one, rivals))
    }));
    match found.await {
        Ok(found) => judge(&found, accepted),
        Err(why) => (CheckResult::Unknown, why),
    }
}

async fn rivals_of(cluster: &Cluster, one: &Singleton) -> Result<Vec<Rival>, String> {
    // One that is not there is told of elsewhere.
    let Some(object) = duties::read(cluster, one).await? else {
        return Ok(Vec::new());
    };
    let mut rivals = keepers(one.kind, &object);
    if one.kind != SingletonKind::CronJob {
        let api: Api<HorizontalPodAutoscaler> = Api::namespaced(cluster.api.client(), &one.namespace);
        let params = ListParams::default();
        let what = format!("list the HorizontalPodAutoscalers for {one} in {}", cluster.side);
        let listed = cluster
            .api
            .within(what, api.list(&params))
            .await
            .map_err(|e| e.to_string())?;
        rivals.extend(listed.items.iter().filter_map(|scaler| scales(scaler, one)));
    }
    Ok(rivals)
}

/// Whoever keeps the one field as it is written elsewhere.
fn keepers(kind: SingletonKind, object: &DynamicObject) -> Vec<Rival> {
    let empty = BTreeMap::new();
    let labels = object.metadata.labels.as_ref().unwrap_or(&empty);
    let notes = object.metadata.annotations.as_ref().unwrap_or(&empty);
    let field = match kind {
        SingletonKind::CronJob => "suspend",
        SingletonKind::Deployment | SingletonKind::StatefulSet => "replicas",
    };
    let says =
        |of: &BTreeMap<String, String>, key: &str, value: &str| of.get(key).is_some_and(|v| v == value);
    let named = |group: &str| {
        let name = labels.get(&format!("{group}/name"))?;
        let namespace = labels.get(&format!("{group}/namespace"));
        Some(namespace.map_or_else(|| name.clone(), |namespace| format!("{namespace}/{name}")))
    };
    let manages = |manager: &[&str]| manages(object, manager, field);
    let mut rivals = Vec::new();
    let disabled = says(notes, "kustomize.toolkit.fluxcd.io/reconcile", "disabled")
        || says(labels, "kustomize.toolkit.fluxcd.io/reconcile", "disabled")
        || says(notes, "kustomize.toolkit.fluxcd.io/ssa", "IfNotPresent")
        || says(notes, "kustomize.toolkit.fluxcd.io/ssa", "Ignore");
    if let Some(name) = named("kustomize.toolkit.fluxcd.io")
        && !disabled
        && manages(&["kustomize-controller"])
    {
        rivals.push(Rival {
            who: format!("Flux (Kustomization {name})"),
            way_out: "annotate the object with kustomize.toolkit.fluxcd.io/reconcile: disabled, or leave the field out of Git",
        });
    }
    let disabled = says(notes, "helm.toolkit.fluxcd.io/driftDetection", "disabled");
    if let Some(name) = named("helm.toolkit.fluxcd.io")
        && !disabled
        && manages(&["helm-controller"])
    {
        rivals.push(Rival {
            who: format!("Flux (HelmRelease {name})"),
            way_out: "annotate the object with helm.toolkit.fluxcd.io/driftDetection: disabled and make no release meanwhile, or leave the field out of the chart",
        });
    }
    let tracked = notes.get("argocd.argoproj.io/tracking-id");
    let tracked = tracked.map(|id| id.split(':').next().unwrap_or_default().to_owned());
    let instance = || labels.get("app.kubernetes.io/instance").cloned();
    const ARGO: [&str; 2] = ["argocd-controller", "argocd-application-controller"];
    let by_argo = manages_anything(object, &ARGO);
    if let Some(name) = tracked.or_else(|| instance().filter(|_| by_argo))
        && (manages(&ARGO) || was_applied(notes, field))
    {
        rivals.push(Rival {
            who: format!("Argo CD (Application {name})"),
            way_out: "leave the field out of Git, or annotate the Application with argocd.argoproj.io/skip-reconcile: \"true\" and accept it by name",
        });
    }
    rivals
}

/// Whether one of these manages the field. An object that does not tell who manages what may be managed by anybody.
fn manages(object: &DynamicObject, managers: &[&str], field: &str) -> bool {
    let Some(entries) = &object.metadata.managed_fields else {
        return true;
    };
    entries.iter().any(|entry| {
        let its = |fields: &Value| fields.pointer(&format!("/f:spec/f:{field}")).is_some();
        let by = entry.manager.as_deref().is_some_and(|m| managers.contains(&m));
        by && entry.fields_v1.as_ref().is_some_and(|fields| its(&fields.0))
    })
}

fn manages_anything(object: &DynamicObject, managers: &[&str]) -> bool {
    let entries = object.metadata.managed_fields.iter().flatten();
    let mut names = entries.filter_map(|entry| entry.manager.as_deref());
    names.any(|name| managers.contains(&name))
}

/// Argo CD applies as kubectl does unless told otherwise, and keeps what it applied in an annotation.
fn was_applied(notes: &BTreeMap<String, String>, field: &str) -> bool {
    let applied = notes.get("kubectl.kubernetes.io/last-applied-configuration");
    let applied = applied.and_then(|text| serde_json::from_str::<Value>(text).ok());
    applied.is_some_and(|object| object.pointer(&format!("/spec/{field}")).is_some())
}

/// Whether a scaler would give replicas to what has none.
fn scales(scaler: &HorizontalPodAutoscaler, one: &Singleton) -> Option<Rival> {
    let spec = scaler.spec.as_ref()?;
    let target = &spec.scale_target_ref;
    if target.kind != one.kind.to_string() || target.name != one.name {
        return None;
    }
    let name = scaler.metadata.name.as_deref().unwrap_or_default();
    if let Some(scaled) = scaler
        .metadata
        .labels
        .as_ref()
        .and_then(|l| l.get("scaledobject.keda.sh/name"))
    {
        return Some(Rival {
            who: format!("KEDA (ScaledObject {}/{scaled})", one.namespace),
            way_out: "annotate the ScaledObject with autoscaling.keda.sh/paused: \"true\" until the cutover has ended",
        });
    }
    (spec.min_replicas == Some(0)).then(|| Rival {
        who: format!("HorizontalPodAutoscaler {}/{name}", one.namespace),
        way_out: "raise its minReplicas to 1 until the cutover has ended: with that it leaves alone what has no replicas",
    })
}

fn judge(
    found: &[(String, &Singleton, Vec<Rival>)],
    accepted: &[AcceptedController],
) -> (CheckResult, String) {
    let accepted_by = |one: &Singleton| {
        accepted
            .iter()
            .find(|a| a.kind == one.kind && a.namespace == one.namespace && a.name == one.name)
    };
    let (mut in_the_way, mut fine) = (Vec::new(), Vec::new());
    for (side, one, rivals) in found {
        for rival in rivals {
            match accepted_by(one) {
                Some(acceptance) => fine.push(format!(
                    "{} on {one} in {side} ({})",
                    rival.who, acceptance.reason
                )),
                None => in_the_way.push(format!(
                    "{} would undo what is done to {one} in {side}: {}",
                    rival.who, rival.way_out
                )),
            }
        }
    }
    if !in_the_way.is_empty() {
        let why = format!(
            "{}; or name the object in spec.acceptedControllers of a new ClusterCutover, with a reason",
            in_the_way.join("; ")
        );
        return (CheckResult::Block, why);
    }
    let text = match &*fine {
        [] => "no controller manages what is stopped and started".to_owned(),
        fine => format!("accepted: {}", fine.join(", ")),
    };
    (CheckResult::Pass, text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const FLUX: &str = "kustomize.toolkit.fluxcd.io";

    fn one() -> Singleton {
        Singleton {
            kind: SingletonKind::Deployment,
            namespace: "shop".to_owned(),
            name: "consumer".to_owned(),
        }
    }

    fn object(labels: &Value, annotations: &Value, managers: &[(&str, &str)]) -> DynamicObject {
        let managed = managers.iter().map(|(manager, field)| {
            json!({"manager": manager, "operation": "Apply", "fieldsType": "FieldsV1",
                "fieldsV1": {"f:spec": {format!("f:{field}"): {}}}})
        });
        serde_json::from_value(
            json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {
                "name": "consumer", "labels": labels, "annotations": annotations,
                "managedFields": managed.collect::<Vec<_>>(),
            }}),
        )
        .unwrap()
    }

    fn who(object: &DynamicObject) -> Vec<String> {
        keepers(SingletonKind::Deployment, object)
            .into_iter()
            .map(|r| r.who)
            .collect()
    }

    #[test]
    fn whoever_manages_the_field_is_named_and_whoever_leaves_it_alone_is_not() {
        let flux = json!({format!("{FLUX}/name"): "apps", format!("{FLUX}/namespace"): "flux-system"});
        let helm = json!({"helm.toolkit.fluxcd.io/name": "shop", "helm.toolkit.fluxcd.io/namespace": "shop"});
        let argo = json!({"argocd.argoproj.io/tracking-id": "shop:apps/Deployment:shop/consumer"});
        let applied = |spec: Value| {
            let text = json!({"spec": spec}).to_string();
            let mut notes = argo.clone();
            notes["kubectl.kubernetes.io/last-applied-configuration"] = json!(text);
            notes
        };
        let none = json!({});
        let disabled = |key: String| json!({key: "disabled"});
        let (kustomize, argocd) = (
            ("kustomize-controller", "replicas"),
            ("argocd-controller", "replicas"),
        );
        for (name, object, wanted) in [
            ("nobody", object(&none, &none, &[("kubectl", "replicas")]), vec![]),
            (
                "flux",
                object(&flux, &none, &[kustomize]),
                vec!["Flux (Kustomization flux-system/apps)"],
            ),
            (
                "flux leaves it",
                object(
                    &flux,
                    &none,
                    &[("kustomize-controller", "template"), ("kubectl", "replicas")],
                ),
                vec![],
            ),
            (
                "flux is told not to",
                object(&flux, &disabled(format!("{FLUX}/reconcile")), &[kustomize]),
                vec![],
            ),
            ("of before", object(&none, &none, &[kustomize]), vec![]),
            (
                "helm",
                object(&helm, &none, &[("helm-controller", "replicas")]),
                vec!["Flux (HelmRelease shop/shop)"],
            ),
            (
                "helm is told not to",
                object(
                    &helm,
                    &disabled("helm.toolkit.fluxcd.io/driftDetection".into()),
                    &[("helm-controller", "replicas")],
                ),
                vec![],
            ),
            (
                "argo",
                object(&none, &argo, &[argocd]),
                vec!["Argo CD (Application shop)"],
            ),
            (
                "argo by label",
                object(&json!({"app.kubernetes.io/instance": "shop"}), &none, &[argocd]),
                vec!["Argo CD (Application shop)"],
            ),
            (
                "a label that helm writes too",
                object(
                    &json!({"app.kubernetes.io/instance": "shop"}),
                    &none,
                    &[("helm", "replicas")],
                ),
                vec![],
            ),
            (
                "argo leaves it",
                object(
                    &none,
                    &applied(json!({"template": {}})),
                    &[("argocd-controller", "template")],
                ),
                vec![],
            ),
            (
                "argo wrote it before somebody else did",
                object(
                    &none,
                    &applied(json!({"replicas": 1})),
                    &[("kubectl", "replicas")],
                ),
                vec!["Argo CD (Application shop)"],
            ),
        ] {
            assert_eq!(who(&object), wanted, "{name}");
        }
        let mut silent = object(&flux, &none, &[]);
        silent.metadata.managed_fields = None;
        assert_eq!(who(&silent).len(), 1, "nobody knows who manages it");
    }

    #[test]
    fn a_scaler_is_in_the_way_when_it_scales_from_nothing() {
        let scaler = |name: &str, min: i32, labels: Value| {
            let scaler = json!({"metadata": {"name": "s", "labels": labels}, "spec": {
                "minReplicas": min, "maxReplicas": 5,
                "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": name}}});
            scales(&serde_json::from_value(scaler).unwrap(), &one()).map(|r| r.who)
        };
        assert_eq!(scaler("consumer", 1, json!({})), None);
        assert_eq!(
            scaler("consumer", 0, json!({})),
            Some("HorizontalPodAutoscaler shop/s".to_owned())
        );
        assert_eq!(scaler("another", 0, json!({})), None);
        let keda = json!({"scaledobject.keda.sh/name": "consumer"});
        assert_eq!(
            scaler("consumer", 1, keda),
            Some("KEDA (ScaledObject shop/consumer)".to_owned())
        );
    }

    #[test]
    fn it_stops_unless_it_is_accepted_by_name() {
        let one = one();
        let rival = Rival {
            who: "Flux (Kustomization apps)".to_owned(),
            way_out: "leave it",
        };
        let found = vec![("green".to_owned(), &one, vec![rival])];
        let (result, told) = judge(&found, &[]);
        assert_eq!(result, CheckResult::Block);
        assert!(
            told.starts_with("Flux (Kustomization apps) would undo what is done to Deployment shop/consumer in green: leave it"),
            "{told}"
        );
        let acceptance = |name: &str| AcceptedController {
            kind: one.kind,
            namespace: one.namespace.clone(),
            name: name.to_owned(),
            reason: "paused by hand".to_owned(),
        };
        assert_eq!(judge(&found, &[acceptance("another")]).0, CheckResult::Block);
        let (result, told) = judge(&found, &[acceptance("consumer")]);
        assert!(
            result == CheckResult::Pass && told.contains("paused by hand"),
            "{told}"
        );
        assert_eq!(judge(&[], &[]).0, CheckResult::Pass);
    }
}
