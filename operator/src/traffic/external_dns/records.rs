//! The records of a `DNSEndpoint`: whose traffic they divide, and the same with other weights.

use std::collections::BTreeMap;

use kube::api::DynamicObject;
use lockkeeper_crds::{ExternalDnsTraffic, Weights};
use serde_json::{Value, json};

use crate::traffic::{TrafficError, alike, nearest};

/// Who is blue and who is green, by `setIdentifier`, and what the provider calls a weight.
#[derive(Clone, Debug)]
pub(super) struct Colours {
    blue: String,
    green: String,
    property: String,
}

impl Colours {
    pub(super) fn new(spec: &ExternalDnsTraffic) -> Result<Self, TrafficError> {
        if spec.blue == spec.green {
            return Err(TrafficError::Spec {
                field: "spec.traffic.externalDNS.green",
                problem: "is blue's setIdentifier too: they must be two".to_owned(),
            });
        }
        Ok(Self {
            blue: spec.blue.clone(),
            green: spec.green.clone(),
            property: spec.weight_property.clone(),
        })
    }

    fn weight(&self, record: &Value) -> Option<u64> {
        let all = record.get("providerSpecific").and_then(Value::as_array)?;
        let ours = all
            .iter()
            .find(|p| p.get("name").and_then(Value::as_str) == Some(&self.property));
        ours?.get("value")?.as_str()?.parse().ok()
    }
}

fn records(object: &DynamicObject) -> &[Value] {
    let all = object.data.pointer("/spec/endpoints").and_then(Value::as_array);
    all.map_or(&[], Vec::as_slice)
}

fn text<'a>(record: &'a Value, field: &str) -> &'a str {
    record.get(field).and_then(Value::as_str).unwrap_or_default()
}

/// Whether external-dns has read it as it is now.
pub(super) fn was_read(object: &DynamicObject) -> bool {
    let read = object
        .data
        .pointer("/status/observedGeneration")
        .and_then(Value::as_i64);
    read.is_some() && read == object.metadata.generation
}

/// The one share that all names give which have a record of blue or green. Other names are none of ours.
pub(super) fn shares(
    object: &DynamicObject,
    colours: &Colours,
    target: &str,
) -> Result<Weights, TrafficError> {
    let mut names: BTreeMap<(&str, &str), Vec<&Value>> = BTreeMap::new();
    for record in records(object) {
        let name = (text(record, "dnsName"), text(record, "recordType"));
        names.entry(name).or_default().push(record);
    }
    let is_ours =
        |record: &&Value| [&*colours.blue, &*colours.green].contains(&text(record, "setIdentifier"));
    names.retain(|_, records| records.iter().any(is_ours));
    let mut found = Vec::new();
    for ((name, kind), records) in &names {
        let place = format!("{target}, {kind} {name}");
        found.push((share(records, colours, &place)?, format!("in {place}")));
    }
    alike(&found)?.ok_or_else(|| TrafficError::Unfit {
        target: target.to_owned(),
        problem: format!(
            "no record of it has the setIdentifier {} or {}",
            colours.blue, colours.green
        ),
    })
}

fn share(records: &[&Value], colours: &Colours, place: &str) -> Result<Weights, TrafficError> {
    let unfit = |problem: String| TrafficError::Unfit {
        target: place.to_owned(),
        problem,
    };
    let (mut blue, mut green) = (None, None);
    for record in records {
        let id = text(record, "setIdentifier");
        let known = if id == colours.blue {
            &mut blue
        } else if id == colours.green {
            &mut green
        } else {
            return Err(TrafficError::Stranger {
                target: place.to_owned(),
                what: format!("a record with setIdentifier {id:?}"),
            });
        };
        let weight = colours
            .weight(record)
            .ok_or_else(|| unfit(format!("the record of {id} has no {}: add it", colours.property)))?;
        if known.replace(weight).is_some() {
            return Err(unfit(format!("it has two records of {id}: name it once")));
        }
    }
    let lacks = |id: &str| unfit(format!("it has no record of {id}: add one with weight 0"));
    let blue = blue.ok_or_else(|| lacks(&colours.blue))?;
    let green = green.ok_or_else(|| lacks(&colours.green))?;
    nearest(blue, green)
        .ok_or_else(|| unfit("both records have weight 0, which providers take for alike".to_owned()))
}

/// All records, with these weights where they are blue's or green's.
pub(super) fn with(object: &DynamicObject, colours: &Colours, weights: Weights) -> Vec<Value> {
    let mut all = records(object).to_vec();
    for record in &mut all {
        let weight = match text(record, "setIdentifier") {
            id if id == colours.blue => weights.blue,
            id if id == colours.green => weights.green,
            _ => continue,
        };
        let properties = record.get_mut("providerSpecific").and_then(Value::as_array_mut);
        for property in properties.into_iter().flatten() {
            if text(property, "name") == colours.property {
                *property = json!({"name": colours.property, "value": weight.to_string()});
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn colours() -> Colours {
        Colours {
            blue: "blue".to_owned(),
            green: "green".to_owned(),
            property: "aws/weight".to_owned(),
        }
    }

    fn record(name: &str, id: &str, weight: &str) -> Value {
        json!({
            "dnsName": name, "recordType": "A", "recordTTL": 60, "targets": ["192.0.2.1"], "setIdentifier": id,
            "providerSpecific": [{"name": "aws/health-check-id", "value": "h"}, {"name": "aws/weight", "value": weight}],
        })
    }

    fn object(records: &[Value]) -> DynamicObject {
        serde_json::from_value(json!({
            "apiVersion": "externaldns.k8s.io/v1alpha1", "kind": "DNSEndpoint",
            "metadata": {"name": "shop", "namespace": "edge", "generation": 3},
            "spec": {"endpoints": records}, "status": {"observedGeneration": 3},
        }))
        .unwrap()
    }

    fn told(records: &[Value]) -> Result<Weights, TrafficError> {
        shares(&object(records), &colours(), "it")
    }

    #[test]
    fn a_name_has_one_record_of_each_colour_and_no_other() {
        let (blue, green) = (record("a", "blue", "75"), record("a", "green", "25"));
        let other = json!({"dnsName": "static", "recordType": "A", "targets": ["192.0.2.9"]});
        let fine = [blue.clone(), green.clone(), other];
        assert_eq!(told(&fine).unwrap(), Weights::of_green(25));
        let mut without = green.clone();
        without["providerSpecific"] = json!([]);
        for (records, reason) in [
            (vec![], "TrafficUnfit"),
            (vec![blue.clone()], "TrafficUnfit"),
            (vec![blue.clone(), green.clone(), green.clone()], "TrafficUnfit"),
            (vec![blue.clone(), without], "TrafficUnfit"),
            (
                vec![record("a", "blue", "0"), record("a", "green", "0")],
                "TrafficUnfit",
            ),
            (
                vec![blue.clone(), green.clone(), record("a", "canary", "1")],
                "TrafficStranger",
            ),
            (
                vec![blue, green, record("b", "blue", "50"), record("b", "green", "50")],
                "TrafficDiffers",
            ),
        ] {
            assert_eq!(told(&records).unwrap_err().reason(), reason, "{records:?}");
        }
    }

    #[test]
    fn what_is_set_is_what_is_read_and_nothing_else_changes() {
        let before = object(&[
            record("a", "blue", "100"),
            record("a", "green", "0"),
            record("b", "x", "7"),
        ]);
        let mut after = before.clone();
        after.data["spec"]["endpoints"] = Value::Array(with(&before, &colours(), Weights::of_green(25)));
        assert_eq!(shares(&after, &colours(), "it").unwrap(), Weights::of_green(25));
        let back = with(&after, &colours(), Weights::BLUE);
        assert_eq!(Value::Array(back), before.data["spec"]["endpoints"]);
    }

    #[test]
    fn a_generation_that_was_not_read_is_not_set() {
        let mut found = object(&[]);
        assert!(was_read(&found));
        found.metadata.generation = Some(4);
        assert!(!was_read(&found));
        found.data["status"] = Value::Null;
        found.metadata.generation = None;
        assert!(!was_read(&found), "nobody has read it at all");
    }
}
