//! Whether the lab itself is sound: nodes, kube-proxy, S3, pods that reach the API, a power cut and the return.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::FutureExt;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams, PostParams};
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions, path::Path};

use super::{Scenario, Suite};
use crate::images;
use crate::scene::{Look, Scene};

/// The scenario.
pub(super) const SCENARIO: Scenario = Scenario {
    name: "lab-smoke",
    about: "three nodes, kube-proxy, S3, pods that reach the API by its service, a power cut and the return",
    suite: Suite::Quick,
    minutes: 3,
    lab: super::three_nodes,
    leaves_clean: true,
    play: |scene| play(scene).boxed_local(),
};

const MINUTE: Duration = Duration::from_secs(60);
/// The image of this program, to run in pods.
const IMAGE: &str = "lockkeeper.dev/lab:dev";

async fn play(scene: &Scene) -> Result<String> {
    scene.wait_until_whole(MINUTE * 2).await?;
    kube_proxy_runs(scene).await?;
    store_keeps_its_word(scene).await?;
    pods_reach_the_api(scene).await?;
    let report = power_cut(scene).await?;
    report.none_lost()?;
    // The clients must have seen that a server went away, or they look at the wrong thing.
    ensure!(
        report.requests() > 100,
        "the clients asked only {} times",
        report.requests()
    );
    Ok(report.to_string())
}

async fn kube_proxy_runs(scene: &Scene) -> Result<()> {
    let sets: Api<DaemonSet> = Api::namespaced(scene.client().await?, "kube-system");
    let wanted = i32::try_from(scene.lab.nodes().len())?;
    scene
        .wait_for("kube-proxy on every node", MINUTE, || async {
            let ready = sets
                .get("kube-proxy")
                .await?
                .status
                .map_or(0, |status| status.number_ready);
            Ok(if ready == wanted {
                Look::Done(())
            } else {
                Look::NotYet(format!("{ready} of {wanted}"))
            })
        })
        .await
}

async fn store_keeps_its_word(scene: &Scene) -> Result<()> {
    let store = scene.store()?;
    let path = Path::from("lab-smoke/object");
    store.put(&path, "content".into()).await.context("put")?;
    let back = store.get(&path).await.context("get")?.bytes().await?;
    ensure!(back == "content", "another content came back");
    let twice = PutOptions {
        mode: PutMode::Create,
        ..PutOptions::default()
    };
    let refused = store.put_opts(&path, "other".into(), twice).await;
    ensure!(
        matches!(refused, Err(object_store::Error::AlreadyExists { .. })),
        "a conditional put was not refused: {refused:?}"
    );
    store.delete(&path).await.context("delete")?;
    Ok(())
}

/// Runs this program in a pod on each node; it asks the API server by the service's address.
async fn pods_reach_the_api(scene: &Scene) -> Result<()> {
    let tar = scene.file("lab-image.tar");
    images::program(&tar, IMAGE, "lab", &scene.lab.program())?;
    scene.lab.import(&tar)?;
    let pods: Api<Pod> = Api::namespaced(scene.client().await?, "default");
    for node in scene.lab.nodes() {
        let name = format!("lab-probe-{}", node.name());
        // Named straight: the scheduler would look at the taint of control-plane nodes.
        let pod = serde_json::from_value(serde_json::json!({
            "metadata": {"name": name},
            "spec": {
                "nodeName": node.name(), "restartPolicy": "Never",
                "containers": [
                    {"name": "probe", "image": IMAGE, "imagePullPolicy": "Never", "args": ["probe"]},
                ],
            },
        }))?;
        let _ = pods.delete(&name, &DeleteParams::default().grace_period(0)).await;
        scene
            .wait_for(&format!("pod {name} to be made"), MINUTE, || async {
                pods.create(&PostParams::default(), &pod).await?;
                Ok(Look::Done(()))
            })
            .await?;
        scene
            .wait_for(&format!("pod {name} to reach the API"), MINUTE * 2, || async {
                let phase = pods
                    .get(&name)
                    .await?
                    .status
                    .and_then(|status| status.phase)
                    .unwrap_or_default();
                Ok(if phase == "Succeeded" {
                    Look::Done(())
                } else {
                    Look::NotYet(phase)
                })
            })
            .await?;
        pods.delete(&name, &DeleteParams::default().grace_period(0))
            .await?;
    }
    Ok(())
}

async fn power_cut(scene: &Scene) -> Result<crate::load::Report> {
    let nodes = scene.lab.nodes();
    let chosen = usize::try_from(scene.below(nodes.len() as u64))?;
    let node = nodes.get(chosen).context("a lab without nodes")?;
    let load = scene.lab.load_start(None)?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    scene.say(format_args!("power cut on {}", node.name()));
    scene.lab.power_cut(node.name())?;
    ensure!(!node.on(), "{} is still on", node.name());
    tokio::time::sleep(Duration::from_secs(10)).await;
    scene.say(format_args!("power on {}", node.name()));
    scene.lab.power_on(node.name())?;
    scene.wait_until_whole(MINUTE * 3).await?;
    load.stop()
}

/// What runs in the pod: asks the API server the way every program in a cluster does.
pub fn probe() -> Result<()> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(async {
            let config = kube::Config::incluster_env()?;
            println!("asking {}", config.cluster_url);
            let version = kube::Client::try_from(config)?.apiserver_version().await?;
            println!("the API server is {}", version.git_version);
            Ok(())
        })
}
