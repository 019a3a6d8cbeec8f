use kube::api::DynamicObject;
use lockkeeper_crds::{RouteBackend, Weights};
use proptest::prelude::*;

use super::rules::{Colours, shares, taken, with};
use crate::traffic::TrafficError;

fn colours() -> Colours {
    let backend = |name: &str| RouteBackend {
        name: name.to_owned(),
        ..RouteBackend::default()
    };
    Colours::new(&backend("blue"), &backend("green")).unwrap()
}

fn route(rules: &str) -> DynamicObject {
    let text = format!(
        "{{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {{name: shop, namespace: edge, generation: 4}}, spec: {{rules: {rules}}}}}"
    );
    serde_yaml::from_str(&text).unwrap()
}

fn told(rules: &str) -> Result<Weights, TrafficError> {
    shares(&route(rules), &colours(), "the route")
}

#[test]
fn a_rule_leads_to_both_or_to_neither() {
    let both = "{name: blue, port: 80, weight: 75}, {name: green, port: 80, weight: 25}";
    assert_eq!(
        told(&format!("[{{backendRefs: [{both}]}}]")).unwrap(),
        Weights::of_green(25)
    );
    let others = format!("[{{backendRefs: [{{name: static}}]}}, {{backendRefs: [{both}]}}]");
    assert_eq!(
        told(&others).unwrap(),
        Weights::of_green(25),
        "what is not ours is left alone"
    );
    for (rules, reason) in [
        ("[{backendRefs: [{name: blue}]}]".to_owned(), "TrafficUnfit"),
        ("[{backendRefs: [{name: static}]}]".to_owned(), "TrafficUnfit"),
        ("[]".to_owned(), "TrafficUnfit"),
        (
            format!("[{{backendRefs: [{both}, {{name: static}}]}}]"),
            "TrafficStranger",
        ),
        (
            format!("[{{backendRefs: [{both}, {{name: green}}]}}]"),
            "TrafficUnfit",
        ),
        (
            "[{backendRefs: [{name: blue, weight: 0}, {name: green, weight: 0}]}]".to_owned(),
            "TrafficUnfit",
        ),
        (
            format!("[{{backendRefs: [{both}]}}, {{backendRefs: [{{name: blue}}, {{name: green}}]}}]"),
            "TrafficDiffers",
        ),
        (
            format!("[{{backendRefs: [{{name: blue, kind: Other, group: a.b}}, {{name: green}}]}}]"),
            "TrafficStranger",
        ),
        (
            "[{backendRefs: [{name: blue, namespace: elsewhere}, {name: green}]}]".to_owned(),
            "TrafficStranger",
        ),
    ] {
        assert_eq!(told(&rules).unwrap_err().reason(), reason, "{rules}");
    }
}

#[test]
fn a_weight_counts_when_every_gateway_has_looked_at_it() {
    let with_status = |status: &str| {
        let mut route = route("[]");
        let status: serde_json::Value = serde_yaml::from_str(status).unwrap();
        route.data["status"] = status;
        taken(&route)
    };
    let parent = |accepted: &str, generation: u32| {
        format!(
            "{{parentRef: {{name: edge}}, conditions: [{{type: Accepted, status: \"{accepted}\", observedGeneration: {generation}, message: m}}, {{type: ResolvedRefs, status: \"True\", observedGeneration: {generation}}}]}}"
        )
    };
    assert!(with_status("{parents: []}").is_err());
    with_status(&format!("{{parents: [{}]}}", parent("True", 4))).unwrap();
    assert!(
        with_status(&format!("{{parents: [{}]}}", parent("True", 3)))
            .unwrap_err()
            .contains("newest")
    );
    assert!(
        with_status(&format!("{{parents: [{}]}}", parent("False", 4)))
            .unwrap_err()
            .contains("not Accepted: m")
    );
    let two = format!("{{parents: [{}, {}]}}", parent("True", 4), parent("True", 3));
    assert!(with_status(&two).is_err(), "one of two has");
}

proptest! {
    #[test]
    fn what_is_set_is_what_is_read_and_nothing_else_changes(green in 0_u8..=100, before in 0_u8..=100) {
        let blue = 100 - before;
        let text = format!("[{{matches: [{{path: {{value: /a}}}}], backendRefs: [{{name: blue, port: 80, weight: {blue}}}, {{name: green, port: 81, weight: {before}, filters: [{{type: RequestHeaderModifier}}]}}]}}, {{name: other, backendRefs: [{{name: static, weight: 7}}]}}]");
        let old = route(&text);
        let weights = Weights::of_green(green);
        let mut new = old.clone();
        new.data["spec"]["rules"] = serde_json::Value::Array(with(&old, &colours(), weights));
        prop_assert_eq!(shares(&new, &colours(), "it").unwrap(), weights);
        let again = with(&new, &colours(), Weights::of_green(before));
        prop_assert_eq!(&serde_json::Value::Array(again), &old.data["spec"]["rules"]);
    }
}
