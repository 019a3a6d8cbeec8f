//! Gateway, routes and backends, as a user would have them before a cutover; and the rights to move them.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

use serde_json::{Value, json};

use crate::edge::network::application;
use crate::edge::{Colour, certificate};

/// The namespace of the Gateway, its routes and their backends.
pub const NAMESPACE: &str = "edge";
/// The Gateway's name.
pub(super) const GATEWAY: &str = "edge";
pub(super) const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 80, 0, 4);
pub(super) const GROUP: &str = "gateway.networking.k8s.io";
const RBAC: &str = "rbac.authorization.k8s.io";

/// The kinds of routes that lead to the application, of each of which there is one, with a listener of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Of requests.
    Http,
    /// Of gRPC calls.
    Grpc,
    /// Of TLS connections, by the name that they ask for; the application answers TLS itself.
    Tls,
    /// Of any other connections.
    Tcp,
}

impl Kind {
    /// All.
    pub const ALL: [Self; 4] = [Self::Http, Self::Grpc, Self::Tls, Self::Tcp];

    /// The version that Contour reads, the kind, and the route's name. Contour mixes up the statuses of routes of one name,
    /// whatever their kinds.
    pub(in crate::edge) const fn words(self) -> [&'static str; 3] {
        match self {
            Self::Http => ["v1", "HTTPRoute", "shop"],
            Self::Grpc => ["v1", "GRPCRoute", "orders"],
            Self::Tls => ["v1alpha2", "TLSRoute", "vault"],
            Self::Tcp => ["v1alpha2", "TCPRoute", "queue"],
        }
    }

    /// The route, as Lockkeeper names it.
    #[must_use]
    pub fn route(self) -> String {
        let [_, kind, name] = self.words();
        format!("{kind} {NAMESPACE}/{name}")
    }

    /// What a right on it names.
    #[must_use]
    pub fn resource(self) -> String {
        let [_, kind, _] = self.words();
        format!("{}s", kind.to_lowercase())
    }

    /// The listener's protocol, and its port, which is its backends' too.
    const fn speaks(self) -> (&'static str, u16) {
        match self {
            Self::Http => ("HTTP", 80),
            Self::Grpc => ("HTTP", 81),
            Self::Tls => ("TLS", 443),
            Self::Tcp => ("TCP", 90),
        }
    }

    /// Where clients ask: Contour has Envoy listen 8000 above the Gateway's port.
    #[must_use]
    pub const fn listener(self) -> SocketAddr {
        SocketAddr::V4(SocketAddrV4::new(ADDRESS, 8000 + self.speaks().1))
    }

    /// The listener in Envoy, and its routes where it has any.
    pub(super) fn in_envoy(self) -> String {
        let (protocol, port) = self.speaks();
        match self {
            Self::Tls => format!("https-{port}"),
            _ => format!("{}-{port}", protocol.to_lowercase()),
        }
    }
}

/// The rules of a route, with these weights and maybe a backend more.
#[must_use]
pub fn rules(kind: Kind, green: u8, another: Option<&str>) -> Value {
    let (_, port) = kind.speaks();
    let of = |name: &str, weight: u8| json!({"name": name, "port": port, "weight": weight});
    let mut backends = vec![
        of(Colour::Blue.name(), 100 - green),
        of(Colour::Green.name(), green),
    ];
    backends.extend(another.map(|name| of(name, 0)));
    let mark = json!([{
        "type": "ResponseHeaderModifier",
        "responseHeaderModifier": {"set": [{"name": "x-edge", "value": "contour"}]},
    }]);
    match kind {
        Kind::Http => {
            let matches = json!([{"path": {"type": "PathPrefix", "value": "/"}}]);
            json!([{"matches": matches, "filters": mark, "backendRefs": backends}])
        }
        Kind::Grpc => {
            let matches = json!([{"method": {"type": "Exact", "service": "shop.Colour", "method": "Get"}}]);
            json!([{"matches": matches, "filters": mark, "backendRefs": backends}])
        }
        Kind::Tls | Kind::Tcp => json!([{"backendRefs": backends}]),
    }
}

fn named(name: &str) -> Value {
    json!({"namespace": NAMESPACE, "name": name})
}

fn version(version: &str) -> String {
    format!("{GROUP}/{version}")
}

pub(super) fn all() -> Vec<Value> {
    let mut all = vec![
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}),
        json!({
            "apiVersion": version("v1"), "kind": "GatewayClass", "metadata": {"name": "contour"},
            "spec": {"controllerName": "projectcontour.io/gateway-controller"},
        }),
        json!({
            "apiVersion": version("v1"), "kind": "Gateway", "metadata": named(GATEWAY),
            "spec": {"gatewayClassName": "contour", "listeners": Kind::ALL.map(listener)},
        }),
    ];
    all.extend([Colour::Blue, Colour::Green].into_iter().flat_map(backend));
    all.extend(Kind::ALL.map(route));
    all
}

/// A listener is called as the kind of its routes is.
fn listener(kind: Kind) -> Value {
    let (protocol, port) = kind.speaks();
    let mut listener = json!({"name": kind.resource(), "protocol": protocol, "port": port});
    if let (Kind::Tls, Some(fields)) = (kind, listener.as_object_mut()) {
        fields.insert("tls".to_owned(), json!({"mode": "Passthrough"}));
    }
    listener
}

fn route(kind: Kind) -> Value {
    let [api, word, name] = kind.words();
    let mut spec = json!({
        "parentRefs": [{"name": GATEWAY, "sectionName": kind.resource()}], "rules": rules(kind, 0, None),
    });
    if let (Kind::Tls, Some(fields)) = (kind, spec.as_object_mut()) {
        fields.insert("hostnames".to_owned(), json!([certificate::NAME]));
    }
    json!({"apiVersion": version(api), "kind": word, "metadata": named(name), "spec": spec})
}

/// The application of a colour, which answers all of them at one port.
fn backend(colour: Colour) -> [Value; 2] {
    let (name, there) = (colour.name(), application(colour));
    let labels = json!({"kubernetes.io/service-name": name});
    let ports = Kind::ALL.map(|kind| {
        let (_, port) = kind.speaks();
        match kind {
            Kind::Grpc => json!({"name": kind.resource(), "port": port, "appProtocol": "kubernetes.io/h2c"}),
            _ => json!({"name": kind.resource(), "port": port}),
        }
    });
    let there_too = Kind::ALL.map(|kind| json!({"name": kind.resource(), "port": there.port()}));
    [
        json!({"apiVersion": "v1", "kind": "Service", "metadata": named(name), "spec": {"ports": ports}}),
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"namespace": NAMESPACE, "name": name, "labels": labels},
            "addressType": "IPv4", "ports": there_too,
            "endpoints": [{"addresses": [there.ip()], "conditions": {"ready": true}}],
        }),
    ]
}

/// What Lockkeeper's README names, given to a ServiceAccount of namespace `default`; maybe without the right to change one.
pub(super) fn rights(account: &str, without: Option<Kind>) -> [Value; 2] {
    let right = |resource: &str, name: &str, verbs: &[&str]| json!({"apiGroups": [GROUP], "resources": [resource], "resourceNames": [name], "verbs": verbs});
    let mut rules = Vec::from(Kind::ALL.map(|kind| {
        let [.., name] = kind.words();
        let verbs: &[&str] = match without == Some(kind) {
            true => &["get"],
            false => &["get", "patch"],
        };
        right(&kind.resource(), name, verbs)
    }));
    rules.push(right("gateways", GATEWAY, &["get"]));
    let api = format!("{RBAC}/v1");
    [
        json!({"apiVersion": api, "kind": "Role", "metadata": named(account), "rules": rules}),
        json!({
            "apiVersion": api, "kind": "RoleBinding", "metadata": named(account),
            "roleRef": {"apiGroup": RBAC, "kind": "Role", "name": account},
            "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": "default"}],
        }),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_begin_with_blue_alone() {
        let text = Value::from(all()).to_string();
        for port in [80, 81, 443, 90] {
            let green = format!(r#"{{"name":"green","port":{port},"weight":0}}"#);
            assert!(text.contains(&green), "{text}");
        }
        assert!(text.contains(r#""addresses":["10.82.0.11"]"#), "{text}");
    }
}
