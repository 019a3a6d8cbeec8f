//! Whether gateways go by a route as it is now: by its status, and by theirs.

use kube::api::DynamicObject;
use serde_json::Value;

use super::GROUP;

/// A gateway that a route names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct GatewayRef {
    pub(super) namespace: String,
    pub(super) name: String,
}

/// A parent of a route, as the route names it and as a gateway's controller does in the route's status.
#[derive(Debug, PartialEq, Eq)]
struct Parent<'a> {
    group: &'a str,
    kind: &'a str,
    namespace: &'a str,
    name: &'a str,
    section: Option<&'a str>,
    port: Option<u64>,
}

impl<'a> Parent<'a> {
    fn of(reference: &'a Value, route: &'a DynamicObject) -> Self {
        let text = |field: &str| reference.get(field).and_then(Value::as_str);
        let home = route.metadata.namespace.as_deref().unwrap_or_default();
        Self {
            group: text("group").unwrap_or(GROUP),
            kind: text("kind").unwrap_or("Gateway"),
            namespace: text("namespace").unwrap_or(home),
            name: text("name").unwrap_or_default(),
            section: text("sectionName"),
            port: reference.get("port").and_then(Value::as_u64),
        }
    }
}

impl std::fmt::Display for Parent<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}/{}", self.kind, self.namespace, self.name)?;
        self.section.map_or(Ok(()), |section| write!(f, " ({section})"))
    }
}

fn list<'a>(of: &'a Value, pointer: &str) -> impl Iterator<Item = &'a Value> {
    let found = of.pointer(pointer).and_then(Value::as_array);
    found.into_iter().flatten()
}

fn parents(route: &DynamicObject) -> impl Iterator<Item = Parent<'_>> {
    list(&route.data, "/spec/parentRefs").map(|reference| Parent::of(reference, route))
}

/// The gateways that a route names; a parent may be something else, too.
pub(super) fn gateways(route: &DynamicObject) -> Vec<GatewayRef> {
    let gateways = parents(route).filter(|parent| parent.group == GROUP && parent.kind == "Gateway");
    let named = gateways.map(|parent| GatewayRef {
        namespace: parent.namespace.to_owned(),
        name: parent.name.to_owned(),
    });
    named.collect()
}

/// Every parent that the route names has taken it as it is now.
pub(super) fn by_all(route: &DynamicObject) -> Result<(), String> {
    each(route, |parent, told| {
        let generation = route.metadata.generation;
        // Of this generation too, whatever it says: whoever has resolved them has looked at the weights.
        condition(told, "ResolvedRefs", generation).map_err(|why| format!("{parent} {why}"))?;
        match condition(told, "Accepted", generation) {
            Ok(Said::Yes) => Ok(()),
            Ok(Said::No(why)) => Err(format!("{parent} has not accepted it: {why}")),
            Err(why) => Err(format!("{parent} {why}")),
        }
    })
}

/// Every parent finds every backend.
pub(super) fn refs_resolve(route: &DynamicObject) -> Result<(), String> {
    each(route, |parent, told| {
        match condition(told, "ResolvedRefs", route.metadata.generation) {
            Ok(Said::Yes) => Ok(()),
            Ok(Said::No(why)) => Err(format!("{parent} does not find a backend of it: {why}")),
            Err(why) => Err(format!("{parent} {why}")),
        }
    })
}

/// Asks each entry of the status that is about a parent which the route names; there must be one for each.
fn each(
    route: &DynamicObject,
    ask: impl Fn(&Parent<'_>, &Value) -> Result<(), String>,
) -> Result<(), String> {
    let mut none = true;
    for parent in parents(route) {
        none = false;
        let told = list(&route.data, "/status/parents").filter(|told| {
            let about = told.get("parentRef");
            about.is_some_and(|about| Parent::of(about, route) == parent)
        });
        let mut silent = true;
        for told in told {
            silent = false;
            ask(&parent, told)?;
        }
        if silent {
            return Err(format!("{parent} says nothing of it: is it there?"));
        }
    }
    if none {
        return Err("it names no gateway in spec.parentRefs".to_owned());
    }
    Ok(())
}

/// The gateway itself is accepted and programmed.
pub(super) fn programmed(gateway: &DynamicObject) -> Result<(), String> {
    let status = gateway.data.get("status").unwrap_or(&Value::Null);
    for wanted in ["Accepted", "Programmed"] {
        match condition(status, wanted, gateway.metadata.generation) {
            Ok(Said::Yes) => {}
            Ok(Said::No(why)) => return Err(format!("it is not {wanted}: {why}")),
            Err(_) => return Err(format!("its controller has not said yet whether it is {wanted}")),
        }
    }
    Ok(())
}

enum Said<'a> {
    Yes,
    No(&'a str),
}

/// What a condition says of this generation; an error while it speaks of an older one.
fn condition<'a>(status: &'a Value, wanted: &str, generation: Option<i64>) -> Result<Said<'a>, String> {
    let found = list(status, "/conditions")
        .find(|condition| condition.get("type").and_then(Value::as_str) == Some(wanted));
    let observed = found.and_then(|c| c.get("observedGeneration")?.as_i64());
    if observed < generation {
        return Err("has not looked at its newest weights yet".to_owned());
    }
    let text = |field: &str| found.and_then(|c| c.get(field)?.as_str());
    Ok(match text("status") {
        Some("True") => Said::Yes,
        _ => Said::No(text("message").unwrap_or("it does not say why")),
    })
}
