use kube::api::DynamicObject;
use lockkeeper_crds::{RouteBackend, Weights};
use proptest::prelude::*;
use serde_json::Value;

use super::rules::{Colours, shares, together, with};
use super::taken::{by_all, gateways, programmed, refs_resolve};
use crate::traffic::TrafficError;

fn backend(name: &str) -> RouteBackend {
    RouteBackend {
        name: name.to_owned(),
        namespace: None,
        kind: "Service".to_owned(),
        group: String::new(),
    }
}

fn colours() -> Colours {
    Colours::new(&backend("blue"), &backend("green")).unwrap()
}

/// A route of generation 4 of two gateways, one of them named twice.
fn route(rules: &str) -> DynamicObject {
    let text = format!(
        r#"
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: shop, namespace: shop, generation: 4}}
spec:
  parentRefs: [{{name: near}}, {{name: far, namespace: edge, sectionName: a}}, {{name: far, namespace: edge, sectionName: b}}]
  rules: {rules}
"#
    );
    serde_yaml::from_str(&text).unwrap()
}

fn told(rules: &str) -> Result<Weights, TrafficError> {
    together(shares(&route(rules), &colours(), "the route")?.iter())
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
            "[{backendRefs: [{name: blue, kind: Other, group: a.b}, {name: green}]}]".to_owned(),
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
fn a_colour_has_one_backend() {
    let error = Colours::new(&backend("blue"), &backend("blue")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "spec.traffic.gatewayAPI.green is blue's backend too: they must be two"
    );
}

#[test]
fn what_is_in_the_way_is_named() {
    let error = told("[{backendRefs: [{name: blue}, {name: green}, {name: canary}]}]").unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("the route, rule 0 has the backend canary, which is neither blue's nor green's"),
        "{error}"
    );
    let error = told("[{}, {backendRefs: [{name: blue}]}]").unwrap_err();
    assert_eq!(
        error.to_string(),
        "the route, rule 1 cannot be steered: it does not lead to green: add its backend with weight 0"
    );
    let error = told(
        "[{backendRefs: [{name: blue}, {name: green}]}, {backendRefs: [{name: blue, weight: 3}, {name: green}]}]",
    )
    .unwrap_err();
    let TrafficError::Differ { greens, .. } = error else {
        panic!("{error}")
    };
    assert_eq!(greens, [50, 25], "what was read of each part is known");
}

fn parent(parent: &str, accepted: &str, resolved: &str, generation: u32) -> String {
    format!(
        r#"{{parentRef: {parent}, conditions: [
            {{type: Accepted, status: "{accepted}", observedGeneration: {generation}, message: m}},
            {{type: ResolvedRefs, status: "{resolved}", observedGeneration: {generation}, message: n}}]}}"#
    )
}

/// As a controller tells them: with every default written out.
const NEAR: &str = "{group: gateway.networking.k8s.io, kind: Gateway, name: near, namespace: shop}";
const FAR_A: &str =
    "{group: gateway.networking.k8s.io, kind: Gateway, name: far, namespace: edge, sectionName: a}";
const FAR_B: &str = "{kind: Gateway, name: far, namespace: edge, sectionName: b}";

fn with_status(parents: &[String]) -> DynamicObject {
    let mut route = route("[]");
    route.data["status"] = serde_yaml::from_str(&format!("{{parents: [{}]}}", parents.join(", "))).unwrap();
    route
}

#[test]
fn a_weight_counts_when_every_gateway_has_taken_it() {
    let fine = |at: &str| parent(at, "True", "True", 4);
    let others = [fine(FAR_A), fine(FAR_B)];
    let with_near = |near: &[String]| with_status(&[near, &others].concat());
    let whole = with_near(&[fine(NEAR)]);
    by_all(&whole).unwrap();
    refs_resolve(&whole).unwrap();

    for (near, why) in [
        (vec![], "Gateway shop/near says nothing of it: is it there?"),
        (
            vec![parent(NEAR, "True", "True", 3)],
            "Gateway shop/near has not looked at its newest weights yet",
        ),
        (
            vec![parent(NEAR, "False", "True", 4)],
            "Gateway shop/near has not accepted it: m",
        ),
        (
            vec![fine(NEAR), parent(NEAR, "True", "True", 3)],
            "Gateway shop/near has not looked at its newest weights yet",
        ),
        (
            vec![fine("{name: near, namespace: elsewhere}")],
            "Gateway shop/near says nothing of it: is it there?",
        ),
    ] {
        assert_eq!(by_all(&with_near(&near)).unwrap_err(), why);
    }
    let old = parent("{name: gone}", "False", "False", 1);
    by_all(&with_near(&[fine(NEAR), old])).expect("whoever is named no more is not asked");
    let one_section = with_status(&[fine(NEAR), fine(FAR_A)]);
    assert!(by_all(&one_section).unwrap_err().contains("Gateway edge/far (b)"));

    let mut of_nobody = whole;
    of_nobody.data["spec"]["parentRefs"] = Value::Null;
    assert!(by_all(&of_nobody).unwrap_err().contains("names no gateway"));
}

#[test]
fn a_backend_that_is_not_found_is_known_and_named() {
    let missing = with_status(&[
        parent(NEAR, "True", "False", 4),
        parent(FAR_A, "True", "True", 4),
        parent(FAR_B, "True", "True", 4),
    ]);
    by_all(&missing).expect("it has been looked at");
    assert_eq!(
        refs_resolve(&missing).unwrap_err(),
        "Gateway shop/near does not find a backend of it: n"
    );
}

#[test]
fn a_gateway_must_be_programmed_as_it_is_now() {
    let gateway = |accepted: u32, programmed: &str, generation: u32| -> DynamicObject {
        let text = format!(
            r#"
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: far, namespace: edge, generation: 2}}
status: {{conditions: [
  {{type: Accepted, status: "True", observedGeneration: {accepted}}},
  {{type: Programmed, status: "{programmed}", observedGeneration: {generation}, message: no address}}]}}
"#
        );
        serde_yaml::from_str(&text).unwrap()
    };
    programmed(&gateway(2, "True", 2)).unwrap();
    assert_eq!(
        programmed(&gateway(2, "False", 2)).unwrap_err(),
        "it is not Programmed: no address"
    );
    assert!(programmed(&gateway(2, "True", 1)).is_err());
    assert!(programmed(&gateway(1, "True", 2)).is_err());
    let named: Vec<String> = gateways(&route("[]"))
        .into_iter()
        .map(|gateway| format!("{}/{}", gateway.namespace, gateway.name))
        .collect();
    assert_eq!(named, ["shop/near", "edge/far", "edge/far"]);
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
        let found = shares(&new, &colours(), "it").unwrap();
        prop_assert_eq!(together(found.iter()).unwrap(), weights);
        let again = with(&new, &colours(), Weights::of_green(before));
        prop_assert_eq!(&serde_json::Value::Array(again), &old.data["spec"]["rules"]);
    }
}
