//! Three machines are gone with all that was on them. What is left: the encrypted backup in the bucket, and what a
//! person keeps elsewhere: the key that opens it, the bucket's credentials, kubeadm's configuration, the binary. On
//! new machines of the same names and addresses the cluster is built again with `lockkeeper rescue` and kubeadm: what
//! the API tells is what it told at the backup, Secrets are read (they are encrypted at rest), a ServiceAccount token
//! of before is still valid, and three members vote.
//!
//! Or the machines are there, and all three etcd data directories are destroyed, with the PKI and what Secrets are
//! encrypted with: then `lockkeeper rescue` does it beside agents that live on, with a copy of the bucket in a directory
//! and the passphrase.
//!
//! The backup was drilled while all was well: an API server read the encrypted Secrets on it. Before it is restored, it
//! is verified, and a copy of it with one byte flipped is refused by name.
//!
//! The seed chooses which, the machine that begins, and when the restore is killed on its way.
//!
//! Seen failing: with the restored `sa.key` and `sa.pub` removed before `kubeadm init`, which then made new ones ("the
//! ServiceAccount token of before is not taken: ... 401"); and with another key in the restored encryption configuration
//! (the API server does not become ready: "waited 240 s for the API to be back"). With data lost and a rescue that writes no
//! `sa.key` and `sa.pub`, the same 401. With one that does not compare hashes: "rescue verify ... was to refuse with ... is not
//! what its manifest says: SHA-256". With one that waits 60 s for the kubelet, whose API server hangs: "etcdutl snapshot
//! restore ... was not started within 60 s".

mod evidence;
mod kept;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use futures::FutureExt;
use k8s_openapi::api::core::v1::{Node as KubeNode, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::api::Api;
use lockkeeper_crds::Strategy;
use serde_json::json;

use evidence::{ENCRYPTION, encrypt_at_rest, encrypted, keep_a_secret, kept_config, manifest, token, valid};
use kept::{Kept, bucket, copy};

use super::rescuing::{
    CLUSTER, content, destroy, killed_on_the_way, no_api, refused, rejoin, rescue, three_voting_members,
    wait_for_containerd,
};
use super::restoring::{Notes, Stage};
use super::{Scenario, Suite};
use crate::kubeadm;
use crate::lockkeeper::{Backups, Keeper, runs};
use crate::node::Node;
use crate::progress::spoken;
use crate::recipes::START;
use crate::scene::{Look, Scene};

/// The scenario.
pub(super) const SCENARIO: Scenario = Scenario {
    name: "all-lost",
    about: "three machines gone: rebuilt from the encrypted backup, Secrets readable, old tokens valid",
    suite: Suite::Chaos,
    minutes: 14,
    lab: super::three_nodes,
    leaves_clean: false,
    play: |scene| play(scene).boxed_local(),
};

const MINUTE: Duration = Duration::from_secs(60);
/// The store's name and prefix.
const STORE: &str = "all-lost";
const BACKUP: &str = "the-last-one";
/// Where a person puts what was kept elsewhere, on the nodes.
const KEPT: &str = "/var/lib/lockkeeper-rescue";
/// What `kubeadm init` leaves to later, so that no API server runs on an etcd without data: kubelets that hear of an
/// empty cluster end their pods.
const LATER: &str = "--skip-phases=control-plane,wait-control-plane,upload-config,upload-certs,mark-control-plane,bootstrap-token,kubelet-finalize,addon,show-join-command";

async fn play(scene: &Scene) -> Result<String> {
    let keeper = Keeper::at_start(scene, Strategy::default()).await?;
    encrypt_at_rest(scene).await?;
    let stage = Stage::new(scene, &keeper);
    let then = stage.write_before().await?;
    let secret = keep_a_secret(scene).await?;
    let token = token(scene)?;
    valid(scene, &token).await.context("before anything was lost")?;
    let machines = scene.below(3) > 0;
    let kept = Kept::new(machines);
    let backups = Backups::of(scene, &keeper, STORE, &kept.secret_in(scene).await?).await?;
    let drilled = json!({"include": ["PKI"], "proof": "Drilled"});
    backups.begin(BACKUP, &drilled).await?;
    let is_drilled = |c: &Condition| c.type_ == "Drilled" && c.status == "True";
    backups
        .reaches(BACKUP, "to be drilled", |s| s.conditions.iter().any(is_drilled))
        .await?;
    stage.write_after(&then).await?;

    let mut names: Vec<String> = scene.lab.nodes().iter().map(|n| n.name().to_owned()).collect();
    let first = names.remove(usize::try_from(scene.below(names.len() as u64))?);
    let began = Instant::now();
    if machines {
        scene.say(format_args!(
            "all machines are lost; {first} is the first of the new ones"
        ));
        lose_everything(scene, &kept).await?;
        begin_anew(scene, &first, &kept)?;
    } else {
        scene.say(format_args!(
            "all members' data are lost; {first} is the first to have some again"
        ));
        lose_the_data(scene, &kept, &first, &names).await?;
    }
    verify(scene, &first, &kept)?;
    restore(scene, &first, &kept)?;
    let etcd_back = began.elapsed();
    if machines {
        let node = scene.lab.node(&first)?;
        let words = ["init", "phase", "control-plane", "all"];
        kubeadm::by_words(&node, &words, &kept_config(&node)?)?;
    }
    serves(scene, &first).await?;
    let api_back = began.elapsed();
    as_at_the_backup(scene, &stage, &then, &secret, &token).await?;
    for node in &names {
        if machines {
            join(scene, &first, node, &kept).await?;
        } else {
            rejoin(scene, node, &first)?;
        }
    }
    let took = began.elapsed();

    scene.wait_until_whole(MINUTE * 5).await?;
    three_voting_members(scene, &first).await?;
    as_at_the_backup(scene, &stage, &then, &secret, &token).await?;
    encrypted(scene, &first)?;
    for node in scene.lab.nodes() {
        ensure!(
            manifest(&node)?.contains(ENCRYPTION),
            "the API server of {} knows no encryption",
            node.name()
        );
    }
    keeper.idle_at(START).await?;
    runs(scene, START).await?;
    content(scene, &keeper).await?;
    Ok(format!(
        "{} lost, {first} first: etcd again after {}, an API after {}, three voting members after {}; {} notes as at the backup",
        if machines { "machines" } else { "data" },
        spoken(etcd_back),
        spoken(api_back),
        spoken(took),
        then.len()
    ))
}

/// Three new machines, with what a person kept elsewhere.
async fn lose_everything(scene: &Scene, kept: &Kept) -> Result<()> {
    let names: Vec<String> = scene.lab.nodes().iter().map(|n| n.name().to_owned()).collect();
    for node in &names {
        scene.lab.power_cut(node)?;
    }
    for node in &names {
        scene.lab.renew(node, &scene.progress)?;
        wait_for_containerd(scene, node).await?;
    }
    for node in scene.lab.nodes() {
        ensure!(
            std::fs::read_dir(node.kubernetes_folder())?.next().is_none()
                && !node.var_lib("lockkeeper").exists(),
            "{} is no new machine",
            node.name()
        );
    }
    kept.bring(scene)?;
    // Its registry has the image still.
    let binary = scene.install.binary.as_ref().context("no `lockkeeper`")?;
    scene.lab.import_lockkeeper(binary)
}

/// All three data directories hold garbage, and the PKI comes from the backup; the other nodes are fenced.
async fn lose_the_data(scene: &Scene, kept: &Kept, first: &str, others: &[String]) -> Result<()> {
    kept.bring(scene)?;
    let mut all = others.to_vec();
    all.push(first.to_owned());
    destroy(scene, &all, false)?;
    no_api(scene, first).await?;
    for name in &all {
        let node = scene.lab.node(name)?;
        lose_the_pki(&node)?;
        rescue(scene, name, &words(&["pki", BACKUP], &kept.with_key()))?;
        kubeadm::by_words(&node, &["init", "phase", "certs", "all"], &kept_config(&node)?)?;
    }
    for node in others {
        rescue(scene, node, &["fence", "--confirm", CLUSTER])?;
    }
    Ok(())
}

/// Every file of the PKI, and what Secrets are encrypted with. The directories stay, since what runs has them mounted.
fn lose_the_pki(node: &Node) -> Result<()> {
    let kubernetes = node.kubernetes_folder();
    for folder in ["pki", "pki/etcd", "enc"] {
        let folder = kubernetes.join(folder);
        for entry in std::fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                std::fs::remove_file(entry.path())?;
            }
        }
    }
    ensure!(
        !kubernetes.join("pki/ca.key").exists() && !kubernetes.join("enc/config.yaml").exists(),
        "the PKI of {} is there still",
        node.name()
    );
    Ok(())
}

/// `lockkeeper rescue WORDS` with the store's flags, and its key.
fn words<'a>(of: &[&'a str], flags: &'a [String]) -> Vec<&'a str> {
    of.iter()
        .copied()
        .chain(flags.iter().map(String::as_str))
        .collect()
}

/// PKI, kubeconfigs, kubelet and an etcd without data: no API server yet.
fn begin_anew(scene: &Scene, first: &str, kept: &Kept) -> Result<()> {
    let node = scene.lab.node(first)?;
    let (keyless, flags) = (kept.keyless(), kept.with_key());
    let listed = rescue(scene, first, &words(&["list"], &keyless))?;
    ensure!(listed.contains(BACKUP), "the backup is not listed: {listed}");
    refused(scene, first, &words(&["pki", BACKUP], &keyless), "key")?;
    let shown = rescue(scene, first, &words(&["pki", BACKUP, "--dry-run"], &flags))?;
    ensure!(
        shown.contains("would be written") && !node.kubernetes_folder().join("pki").exists(),
        "the dry run wrote something, or says nothing: {shown}"
    );
    // A file that is another one's is not written over without a word.
    std::fs::create_dir_all(node.kubernetes_folder().join("pki"))?;
    std::fs::write(node.kubernetes_folder().join("pki/sa.pub"), "another's")?;
    refused(scene, first, &words(&["pki", BACKUP], &flags), "different")?;
    ensure!(
        !node.kubernetes_folder().join("pki/sa.key").exists(),
        "something was written all the same"
    );
    rescue(scene, first, &words(&["pki", BACKUP, "--force"], &flags))?;
    kubeadm::by_words(&node, &["init", LATER], &kept_config(&node)?)?;
    Ok(())
}

/// What is stored is what was taken, and etcd takes it. A copy of it with one byte flipped is refused by name.
fn verify(scene: &Scene, first: &str, kept: &Kept) -> Result<()> {
    let told = rescue(scene, first, &words(&["verify", BACKUP], &kept.with_key()))?;
    ensure!(
        told.contains(BACKUP) && told.contains("etcdutl restored it"),
        "it does not say what it has verified: {told}"
    );
    let copied = scene.lab.node(first)?.var_lib("lockkeeper-rescue/damaged");
    copy(&bucket(scene), &copied)?;
    let name = flip(scene, &copied)?;
    let flags = kept.with_key_at("damaged");
    let says = format!("{KEPT}/damaged/{name} is not what its manifest says: SHA-256");
    refused(scene, first, &words(&["verify", BACKUP], &flags), &says)?;
    std::fs::remove_dir_all(copied)?;
    Ok(())
}

/// Flips a bit of the one snapshot in this store; its name in it.
fn flip(scene: &Scene, store: &Path) -> Result<String> {
    let only = |folder: &Path, begins: &str| -> Result<PathBuf> {
        let mut found = vec![];
        for entry in std::fs::read_dir(folder)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(begins) {
                found.push(entry.path());
            }
        }
        match found.as_slice() {
            [one] => Ok(one.clone()),
            _ => bail!("{found:?} begin with {begins} in {}", folder.display()),
        }
    };
    let snapshot = only(&only(store, BACKUP)?, "snapshot.db")?;
    let mut bytes = std::fs::read(&snapshot)?;
    let at = usize::try_from(scene.below(bytes.len() as u64))?;
    *bytes.get_mut(at).context("it is empty")? ^= 1 << scene.below(8);
    std::fs::write(&snapshot, bytes)?;
    Ok(snapshot.strip_prefix(store)?.display().to_string())
}

/// etcd from the backup: shown, confirmed, killed on the way, gone on with.
fn restore(scene: &Scene, first: &str, kept: &Kept) -> Result<()> {
    let (keyless, flags) = (kept.keyless(), kept.with_key());
    let confirm = ["restore", BACKUP, "--confirm", CLUSTER];
    refused(
        scene,
        first,
        &words(&["restore", BACKUP], &flags),
        "--confirm kubernetes",
    )?;
    refused(
        scene,
        first,
        &words(&["restore", BACKUP, "--confirm", "another"], &flags),
        "is not this cluster's name",
    )?;
    refused(scene, first, &words(&confirm, &keyless), "key")?;
    refused(scene, first, &["restore", "--resume"], "--resume: no")?;
    killed_on_the_way(scene, first, &words(&confirm, &flags), &(8..20))?;
    rescue(scene, first, &words(&confirm, &flags))?;
    let journal = rescue(scene, first, &["journal"])?;
    ensure!(
        journal.contains("restore") && journal.contains("ended: Done"),
        "the journal does not say that it ended: {journal}"
    );
    Ok(())
}

async fn serves(scene: &Scene, node: &str) -> Result<()> {
    let client = scene.client_at(node).await?;
    scene
        .wait_for("the API to be back", MINUTE * 4, || async {
            let request = http::Request::get("/readyz").body(Vec::new())?;
            Ok(match client.request_text(request).await?.as_str() {
                "ok" => Look::Done(()),
                other => Look::NotYet(other.to_owned()),
            })
        })
        .await
}

async fn as_at_the_backup(
    scene: &Scene,
    stage: &Stage<'_>,
    then: &Notes,
    secret: &str,
    token: &str,
) -> Result<()> {
    stage.tells(then).await?;
    let secrets: Api<Secret> = Api::namespaced(scene.client().await?, "default");
    let kept = secrets.get("kept").await.context("the Secret cannot be read")?;
    let says = kept.data.and_then(|mut data| data.remove("says"));
    ensure!(
        says.is_some_and(|says| says.0 == secret.as_bytes()),
        "the Secret does not say what it said"
    );
    valid(scene, token).await
}

/// A new machine joins as kubeadm joins any: with the CAs on its disk.
async fn join(scene: &Scene, first: &str, name: &str, kept: &Kept) -> Result<()> {
    let node = scene.lab.node(name)?;
    rescue(scene, name, &words(&["pki", BACKUP], &kept.with_key()))?;
    // kubeadm takes no name whose Node is Ready; the restored one is until it was not heard of for a while.
    let nodes: Api<KubeNode> = Api::all(scene.client().await?);
    scene
        .wait_for(
            &format!("the restored Node {name} to be missed"),
            MINUTE * 4,
            || async {
                let status = nodes.get(name).await?.status.unwrap_or_default();
                let ready = status.conditions.unwrap_or_default();
                let ready = ready.into_iter().find(|c| c.type_ == "Ready").map(|c| c.status);
                Ok(match ready.as_deref() {
                    Some("True") => Look::NotYet("it is Ready still".into()),
                    _ => Look::Done(()),
                })
            },
        )
        .await?;
    scene.say(format_args!("{name}: kubeadm join"));
    let said = scene
        .lab
        .node(first)?
        .run(&["kubeadm", "token", "create", "--print-join-command"])?
        .limit(MINUTE)
        .check()?;
    kubeadm::join_with_own_pki(&node, &said)
}
