//! Credentials that lack one right: what lacks is named, and nothing is touched. A Secret with other credentials is
//! noticed, and with the right given it goes on by itself.
//!
//! Seen failing: a chart whose role lets the operator read every Secret of its namespace ("waited 60 s for
//! OperatorPermissions: may not get secrets lockkeeper-system/unnamed").

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::FutureExt;
use lockkeeper_crds::CutoverState;
use serde_json::{Value, json};

use super::cutting_over::{LIMIT, named, plan};
use super::{Scenario, Suite};
use crate::edge::{Colour, Cutover, Pair, Plan, Watch, app};
use crate::install::NAMESPACE;
use crate::scene::Scene;

/// The scenario.
pub(super) const SCENARIO: Scenario = Scenario {
    name: "cutover-denied",
    about: "credentials that lack one right: it is named with its cluster, nothing is touched; given it, all goes on",
    suite: Suite::Chaos,
    minutes: 5,
    lab: super::one_cluster,
    leaves_clean: false,
    play: |scene| play(scene).boxed_local(),
};

/// The ServiceAccount in green, and the Secrets with its kubeconfig.
const LIMITED: &str = "limited";
/// A Secret that the operator may not read.
const UNNAMED: &str = "unnamed";

async fn play(scene: &Scene) -> Result<String> {
    Pair::play(scene, async |pair| {
        let green = pair.client(Colour::Green).await?;
        let of_nobody = pair.kubeconfig_with(Colour::Green, "nobody")?;
        let kubeconfig = pair.account(Colour::Green, LIMITED).await?;
        pair.install_in(Colour::Blue, &[(LIMITED, "kubeconfig", &of_nobody)])
            .await?;
        pair.write_secret(Colour::Blue, UNNAMED, "kubeconfig", &kubeconfig)
            .await?;
        let (clients, watch) = (pair.clients()?, Watch::start());
        let before = app::belongings(pair).await?;

        let with = |secret: &str| Plan {
            secret: secret.to_owned(),
            ..plan(&[50, 100])
        };
        let unnamed = pair.begin("unnamed", &with(UNNAMED)).await?;
        let first = named(
            &unnamed,
            "OperatorPermissions",
            &format!("may not get secrets {NAMESPACE}/{UNNAMED}:"),
        )
        .await?;
        let shop = pair.begin("shop", &with(LIMITED)).await?;
        let stranger = named(&shop, "GreenReachable", "Unauthorized").await?;
        pair.write_secret(Colour::Blue, LIMITED, "kubeconfig", &kubeconfig)
            .await?;
        let lacking = "the credentials for green may not get namespaces kube-system, nor list nodes:";
        let second = named(&shop, "GreenPermissions", lacking).await?;
        // It is asked again and again meanwhile.
        tokio::time::sleep(Duration::from_secs(5 + scene.below(5))).await;
        for cutover in [&unnamed, &shop] {
            untouched(cutover).await?;
        }
        watch.were(&[0])?;
        let now = app::belongings(pair).await?;
        ensure!(now == before, "objects were touched: {before:?}, now {now:?}");

        for object in role() {
            app::apply(pair, &green, &object).await?;
        }
        shop.settles("Completed", LIMIT).await?;
        watch.were(&[0, 50, 100])?;
        untouched(&unnamed).await?;
        let count = clients.stop()?;
        count.none_failed()?;
        Ok(format!(
            "{first}; {stranger}; {second}; with the right given it went on; {count}"
        ))
    })
    .await
}

/// It has not begun.
async fn untouched(cutover: &Cutover<'_, '_>) -> Result<()> {
    let object = cutover.object().await?;
    let status = object.status.context("no status yet")?;
    ensure!(
        status.state == CutoverState::Blocked
            && status.started_at.is_none()
            && status.prepared_until.is_none()
            && object.metadata.finalizers.unwrap_or_default().is_empty(),
        "it began: {:?}, {}",
        status.state,
        status.message
    );
    Ok(())
}

/// The rights.
fn role() -> [Value; 2] {
    [
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": LIMITED},
            "rules": [{"apiGroups": [""], "resources": ["namespaces"], "resourceNames": ["kube-system"], "verbs": ["get"]},
                {"apiGroups": [""], "resources": ["nodes"], "verbs": ["list"]}],
        }),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
            "metadata": {"name": LIMITED},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": LIMITED},
            "subjects": [{"kind": "ServiceAccount", "name": LIMITED, "namespace": "default"}],
        }),
    ]
}
