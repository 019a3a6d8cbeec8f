//! A route's rules: whose traffic they divide, and the same with other weights.

use kube::api::DynamicObject;
use lockkeeper_crds::{RouteBackend, Weights};
use serde_json::{Value, json};

use crate::traffic::{TrafficError, alike, nearest};

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
                field: "spec.traffic.gatewayAPI.green",
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

/// What a rule that leads to both gives to each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Share {
    /// The rule, for a person.
    place: String,
    blue: u64,
    green: u64,
}

impl Share {
    /// `None`: nobody has any.
    pub(super) fn weights(&self) -> Option<Weights> {
        nearest(self.blue, self.green)
    }
}

/// What each rule gives that leads to blue and green. Rules that lead to neither are none of ours.
pub(super) fn shares(
    route: &DynamicObject,
    colours: &Colours,
    target: &str,
) -> Result<Vec<Share>, TrafficError> {
    let rules = rules(route).iter().enumerate();
    let of_rule = |(number, rule)| share(rule, format!("{target}, rule {number}"), colours, home(route));
    let found: Vec<Share> = rules
        .filter_map(|rule| of_rule(rule).transpose())
        .collect::<Result<_, _>>()?;
    if found.is_empty() {
        return Err(TrafficError::Unfit {
            target: target.to_owned(),
            problem: "no rule of it leads to blue and green".to_owned(),
        });
    }
    Ok(found)
}

fn share(rule: &Value, place: String, colours: &Colours, home: &str) -> Result<Option<Share>, TrafficError> {
    let (mut blue, mut green, mut another) = (None, None, None);
    for reference in references(rule) {
        let known = match colours.whose(reference, home) {
            Whose::Blue => &mut blue,
            Whose::Green => &mut green,
            Whose::Another => {
                another = reference.get("name").and_then(Value::as_str);
                continue;
            }
        };
        // The API's own default.
        let weight = reference.get("weight").and_then(Value::as_u64).unwrap_or(1);
        if known.replace(weight).is_some() {
            return Err(TrafficError::Unfit {
                target: place,
                problem: "it names one backend twice: name it once".to_owned(),
            });
        }
    }
    match (blue, green, another) {
        (None, None, _) => Ok(None),
        (_, _, Some(another)) => Err(TrafficError::Stranger {
            target: place,
            what: format!("the backend {another}"),
        }),
        (Some(blue), Some(green), None) => Ok(Some(Share { place, blue, green })),
        (one, _, None) => Err(TrafficError::Unfit {
            target: place,
            problem: format!(
                "it does not lead to {}: add its backend with weight 0",
                if one.is_some() { "green" } else { "blue" }
            ),
        }),
    }
}

/// The one share that all of them give.
pub(super) fn together<'a>(all: impl Iterator<Item = &'a Share>) -> Result<Weights, TrafficError> {
    let mut known = Vec::new();
    for share in all {
        let weights = share.weights().ok_or_else(|| TrafficError::Unfit {
            target: share.place.clone(),
            problem: "it gives nobody a weight, so nobody takes traffic".to_owned(),
        })?;
        known.push((weights, format!("in {}", share.place)));
    }
    Ok(alike(&known)?.unwrap_or(Weights::BLUE))
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
