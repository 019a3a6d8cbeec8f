//! `lockkeeper rescue` as the scenarios of lost control planes use it: brought to the nodes, run in their shells,
//! killed there; and what must hold when all is well again.

use std::ops::Range;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::lockkeeper::Keeper;
use crate::node::Node;
use crate::process::Output;
use crate::scene::{Look, Scene};

const MINUTE: Duration = Duration::from_secs(60);
/// The cluster's name, as kubeadm gives it.
pub(super) const CLUSTER: &str = "kubernetes";
/// Where the binary lies on the nodes.
const PROGRAM: &str = "/var/lib/lockkeeper-rescue/lockkeeper";

pub(super) fn bring_the_program(scene: &Scene) -> Result<()> {
    let program = scene
        .install
        .binary
        .as_ref()
        .context("no `lockkeeper` to bring to the nodes")?;
    for node in scene.lab.nodes() {
        let target = node.var_lib("lockkeeper-rescue");
        std::fs::create_dir_all(&target)?;
        std::fs::copy(program, target.join("lockkeeper"))?;
    }
    Ok(())
}

/// Runs `lockkeeper rescue` in a shell of a node.
fn said(scene: &Scene, node: &str, words: &[&str], limit: Duration) -> Result<Output> {
    let mut argv = vec![PROGRAM, "rescue"];
    argv.extend(words);
    scene.lab.node(node)?.run(&argv)?.limit(limit).output()
}

pub(super) fn rescue(scene: &Scene, node: &str, words: &[&str]) -> Result<String> {
    scene.say(format_args!("{node}: lockkeeper rescue {}", words.join(" ")));
    let output = said(scene, node, words, MINUTE * 8)?;
    for line in output.stderr.lines() {
        scene.say(format_args!("  {node}: {line}"));
    }
    ensure!(
        output.success(),
        "`lockkeeper rescue {}` on {node}: {}",
        words.join(" "),
        output.stderr.lines().last().unwrap_or_default()
    );
    Ok(output.stdout)
}

pub(super) fn refused(scene: &Scene, node: &str, words: &[&str], because: &str) -> Result<()> {
    let output = said(scene, node, words, MINUTE)?;
    ensure!(
        !output.success() && output.stderr.contains(because),
        "`lockkeeper rescue {}` on {node} was to refuse with {because:?}, and said: {}{}",
        words.join(" "),
        output.stderr,
        output.stdout
    );
    Ok(())
}

pub(super) fn address(scene: &Scene, node: &str) -> Result<String> {
    Ok(scene.lab.node(node)?.address().to_string())
}

/// Begins a rescue and kills it after some seconds: within what it takes at least.
pub(super) fn killed_on_the_way(
    scene: &Scene,
    node: &str,
    words: &[&str],
    seconds: &Range<u64>,
) -> Result<()> {
    let seconds = (seconds.start + scene.below(seconds.end - seconds.start)).to_string();
    scene.say(format_args!(
        "{node}: lockkeeper rescue {}, killed after {seconds} s",
        words.join(" ")
    ));
    let mut argv = vec!["timeout", "-s", "KILL", &seconds, PROGRAM, "rescue"];
    argv.extend(words);
    let output = scene.lab.node(node)?.run(&argv)?.limit(MINUTE * 5).output()?;
    // 128 + SIGKILL, of `timeout` itself as well.
    ensure!(
        output.status == 137,
        "it was not killed ({}): {}",
        output.status,
        output.stderr
    );
    Ok(())
}

pub(super) async fn wait_for_containerd(scene: &Scene, node: &str) -> Result<()> {
    scene
        .wait_for(&format!("containerd of {node}"), MINUTE, || async {
            let output = scene.lab.exec(node, &["ctr", "version"])?;
            Ok(if output.success() {
                Look::Done(())
            } else {
                Look::NotYet("not yet".into())
            })
        })
        .await
}

/// etcd's own list, and each member's own linearizable read.
pub(super) async fn three_voting_members(scene: &Scene, survivor: &str) -> Result<()> {
    let ask = |words: &[&str]| scene.lab.node(survivor)?.etcdctl(words)?.check();
    let list: Value = serde_json::from_str(&ask(&["member", "list", "-w", "json"])?)?;
    let members = list
        .get("members")
        .and_then(Value::as_array)
        .context("no members")?;
    let voting = members
        .iter()
        .filter(|member| member.get("isLearner").and_then(Value::as_bool) != Some(true))
        .count();
    if (members.len(), voting) != (3, 3) {
        bail!("{} members, {voting} of them voting: {list}", members.len());
    }
    for node in scene.lab.nodes() {
        let endpoint = format!("--endpoints=https://{}:2379", node.address());
        ask(&["endpoint", "health", &endpoint]).with_context(|| format!("the member of {}", node.name()))?;
    }
    Ok(())
}

/// Every agent acts again, and no node says that a rescue is in hand.
pub(super) async fn content(scene: &Scene, keeper: &Keeper<'_>) -> Result<()> {
    scene
        .wait_for("every agent to be Ready", MINUTE * 3, || async {
            for (name, node) in keeper.nodes().await? {
                let ready = node
                    .status
                    .iter()
                    .flat_map(|status| &status.conditions)
                    .find(|condition| condition.type_ == "Ready")
                    .map(|condition| (condition.status.clone(), condition.reason.clone()));
                if ready.as_ref().is_none_or(|(status, _)| status != "True") {
                    return Ok(Look::NotYet(format!("{name}: {ready:?}")));
                }
            }
            Ok(Look::Done(()))
        })
        .await
}

/// Loses the data of these nodes' members, all at one moment.
pub(super) fn destroy(scene: &Scene, lost: &[String], off: bool) -> Result<()> {
    for node in lost {
        if off {
            scene.lab.power_cut(node)?;
        } else {
            // Not started again before its data are gone: the manifest is put back below.
            let manifest = scene
                .lab
                .node(node)?
                .kubernetes_folder()
                .join("manifests/etcd.yaml");
            std::fs::rename(&manifest, aside(&scene.lab.node(node)?))?;
            scene.lab.kill(node, "etcd")?;
        }
    }
    for node in lost {
        let node = scene.lab.node(node)?;
        if !off {
            let began = Instant::now();
            while !node.processes("etcd")?.is_empty() {
                ensure!(began.elapsed() < MINUTE, "etcd of {} does not end", node.name());
                std::thread::sleep(Duration::from_millis(200));
            }
        }
        std::fs::remove_dir_all(node.var_lib("etcd/member"))
            .with_context(|| format!("cannot destroy the data of {}", node.name()))?;
    }
    if !off {
        for node in lost {
            let node = scene.lab.node(node)?;
            // Garbage where the data were, as a broken disk leaves it: etcd does not start on it. (On an empty
            // directory the member that joined last starts under its old id and makes a quorum with the survivor.)
            std::fs::create_dir_all(node.var_lib("etcd/member/wal"))?;
            std::fs::write(
                node.var_lib("etcd/member/wal/0000000000000000-0000000000000000.wal"),
                [0x5a; 512],
            )?;
            std::fs::rename(aside(&node), node.kubernetes_folder().join("manifests/etcd.yaml"))?;
        }
    }
    Ok(())
}

fn aside(node: &Node) -> std::path::PathBuf {
    node.kubernetes_folder().join("etcd.yaml.aside")
}

pub(super) async fn no_api(scene: &Scene, survivor: &str) -> Result<()> {
    let client = scene.client_at(survivor).await?;
    scene
        .wait_for("the API to be dead", MINUTE, || async {
            let request = http::Request::get("/readyz").body(Vec::new())?;
            Ok(match client.request_text(request).await {
                Ok(answer) if answer == "ok" => Look::NotYet("it is ready".into()),
                _ => Look::Done(()),
            })
        })
        .await
}

/// Brings a lost node back; half of the time a first try is killed on its way.
pub(super) fn rejoin(scene: &Scene, node: &str, survivor: &str) -> Result<()> {
    let via = address(scene, survivor)?;
    let words = ["rejoin", "--confirm", CLUSTER, "--via", &via];
    if scene.below(2) == 1 {
        killed_on_the_way(scene, node, &words, &(2..10))?;
    }
    rescue(scene, node, &words)?;
    refused(scene, node, &words, "there is nothing to rejoin")
}
