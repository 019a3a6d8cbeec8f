//! A route's rules: whose traffic they divide, and the same with other weights.

use kube::api::DynamicObject;
use lockkeeper_crds::{RouteBackend, Weights};
use serde_json::{Value, json};

use crate::traffic::{TrafficError, nearest};

/// Who is blue and who is green, as a backend is referred to.
#[derive(Clone, Debug)]
pub(super) struct Colours {
    blue: RouteBackend,
    green: RouteBackend,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whose {
    Blue,
    Green,
    Another,
}

impl Colours {
    pub(super) fn new(blue: &RouteBackend, green: &RouteBackend) -> Result<Self, TrafficError> {
        if blue == green {
            return Err(TrafficError::Spec {
                field: "spec.traffic.gateway.green",
                problem: "is blue's backend too: they must be two".to_owned(),
            });
        }
        Ok(Self {
            blue: blue.clone(),
            green: green.clone(),
        })
    }

    fn whose(&self, reference: &Value, home: &str) -> Whose {
        let text = |field: &str| reference.get(field).and_then(Value::as_str);
        let is = |backend: &RouteBackend| {
            text("name") == Some(&backend.name)
                && text("kind").unwrap_or("Service") == backend.kind
                && text("group").unwrap_or("") == backend.group
                && text("namespace").unwrap_or(home) == backend.namespace.as_deref().unwrap_or(home)
        };
        if is(&self.blue) {
            Whose::Blue
        } else if is(&self.green) {
            Whose::Green
        } else {
            Whose::Another
        }
    }
}

fn rules(route: &DynamicObject) -> &[Value] {
    let rules = route.data.pointer("/spec/rules").and_then(Value::as_array);
    rules.map_or(&[], Vec::as_slice)
}

fn references(rule: &Value) -> &[Value] {
    let all = rule.get("backendRefs").and_then(Value::as_array);
    all.map_or(&[], Vec::as_slice)
}

fn home(route: &DynamicObject) -> &str {
    route.metadata.namespace.as_deref().unwrap_or_default()
}

/// The shares that the route gives: those of all rules that lead to blue or green, which must be one. Rules that lead to
/// neither are none of ours.
pub(super) fn shares(
    route: &DynamicObject,
    colours: &Colours,
    target: &str,
) -> Result<Weights, TrafficError> {
    let unfit = |problem: String| TrafficError::Unfit {
        target: target.to_owned(),
        problem,
    };
    let mut found: Vec<Weights> = Vec::new();
    for (number, rule) in rules(route).iter().enumerate() {
        let (mut blue, mut green, mut another) = (None, None, None);
        for reference in references(rule) {
            let weight = reference.get("weight").and_then(Value::as_u64).unwrap_or(1);
            let place = match colours.whose(reference, home(route)) {
                Whose::Blue => &mut blue,
                Whose::Green => &mut green,
                Whose::Another => {
                    another = reference.get("name").and_then(Value::as_str);
                    continue;
                }
            };
            if place.replace(weight).is_some() {
                return Err(unfit(format!(
                    "rule {number} names one backend twice: name it once"
                )));
            }
        }
        match (blue, green, another) {
            (None, None, _) => {}
            (_, _, Some(another)) => {
                return Err(TrafficError::Stranger {
                    target: format!("{target}, rule {number},"),
                    what: format!("the backend {another}"),
                });
            }
            (Some(blue), Some(green), None) => {
                let shares = nearest(blue, green).ok_or_else(|| {
                    unfit(format!(
                        "rule {number} gives nobody a weight: nobody takes traffic"
                    ))
                })?;
                found.push(shares);
            }
            (one, _, None) => {
                let missing = if one.is_some() { "green" } else { "blue" };
                return Err(unfit(format!(
                    "rule {number} does not lead to {missing}: add its backend with weight 0"
                )));
            }
        }
    }
    let first = found.first().copied();
    let first = first.ok_or_else(|| unfit("no rule of it leads to blue and green".to_owned()))?;
    if found.iter().any(|other| *other != first) {
        return Err(TrafficError::Differ {
            detail: format!("the rules of {target} differ"),
            greens: found.iter().map(|w| w.green).collect(),
        });
    }
    Ok(first)
}

/// All rules, with these weights where they lead to blue and green.
pub(super) fn with(route: &DynamicObject, colours: &Colours, weights: Weights) -> Vec<Value> {
    let mut all = rules(route).to_vec();
    for rule in &mut all {
        let Some(references) = rule.get_mut("backendRefs").and_then(Value::as_array_mut) else {
            continue;
        };
        for reference in references {
            let weight = match colours.whose(reference, home(route)) {
                Whose::Blue => weights.blue,
                Whose::Green => weights.green,
                Whose::Another => continue,
            };
            if let Some(fields) = reference.as_object_mut() {
                fields.insert("weight".to_owned(), json!(weight));
            }
        }
    }
    all
}

/// Whether every parent has taken the route as it is now.
pub(super) fn taken(route: &DynamicObject) -> Result<(), String> {
    let parents = route.data.pointer("/status/parents").and_then(Value::as_array);
    let parents = parents.filter(|all| !all.is_empty());
    let parents = parents.ok_or("no gateway has taken it yet: see its spec.parentRefs")?;
    for parent in parents {
        let name = parent.pointer("/parentRef/name").and_then(Value::as_str);
        let name = name.unwrap_or("a gateway without a name");
        let conditions = parent.get("conditions").and_then(Value::as_array);
        for wanted in ["Accepted", "ResolvedRefs"] {
            let found = conditions
                .into_iter()
                .flatten()
                .find(|c| c.get("type") == Some(&json!(wanted)));
            let text = |field: &str| found.and_then(|c| c.get(field)).and_then(Value::as_str);
            let generation = found
                .and_then(|c| c.get("observedGeneration"))
                .and_then(Value::as_i64);
            if text("status") != Some("True") {
                let why = text("message").unwrap_or("it has not said so");
                return Err(format!("gateway {name}: not {wanted}: {why}"));
            }
            if generation < route.metadata.generation {
                return Err(format!("gateway {name} has not looked at the newest weights yet"));
            }
        }
    }
    Ok(())
}
