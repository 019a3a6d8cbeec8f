//! What must outlive the loss, and the proof that it did: encryption of Secrets at rest, a Secret, a ServiceAccount's
//! token.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, PostParams};
use serde_json::{Value, json};

use crate::cache::hex;
use crate::kubeadm;
use crate::node::Node;
use crate::recipes::START;
use crate::scene::{Look, Scene};

const MINUTE: Duration = Duration::from_secs(60);
/// Where the API server's encryption configuration lies.
pub(super) const ENCRYPTION: &str = "/etc/kubernetes/enc/config.yaml";

/// What kubeadm's configuration says of the API server, as its user set it up.
fn api_server() -> Value {
    json!({
        "extraArgs": [{"name": "encryption-provider-config", "value": ENCRYPTION}],
        "extraVolumes": [{
            "name": "enc", "hostPath": "/etc/kubernetes/enc", "mountPath": "/etc/kubernetes/enc",
            "readOnly": true, "pathType": "DirectoryOrCreate",
        }],
    })
}

pub(super) fn kept_config(node: &Node) -> Result<String> {
    kubeadm::kept_config(node, START, &api_server())
}

pub(super) fn manifest(node: &Node) -> Result<String> {
    let path = node.kubernetes_folder().join("manifests/kube-apiserver.yaml");
    std::fs::read_to_string(&path).with_context(|| path.display().to_string())
}

/// Turns encryption of Secrets on, node by node, as a person does with kubeadm.
pub(super) async fn encrypt_at_rest(scene: &Scene) -> Result<()> {
    use base64::Engine as _;
    let key = base64::engine::general_purpose::STANDARD.encode(rand::random::<[u8; 32]>());
    let config = json!({
        "apiVersion": "apiserver.config.k8s.io/v1", "kind": "EncryptionConfiguration",
        "resources": [{"resources": ["secrets"], "providers": [
            {"secretbox": {"keys": [{"name": "one", "secret": key}]}}, {"identity": {}},
        ]}],
    });
    for node in scene.lab.nodes() {
        let folder = node.kubernetes_folder().join("enc");
        std::fs::create_dir_all(&folder)?;
        secret_file(&folder.join("config.yaml"), &config.to_string())?;
        let words = ["init", "phase", "control-plane", "apiserver"];
        kubeadm::by_words(&node, &words, &kept_config(&node)?)?;
        let flag = format!("--encryption-provider-config={ENCRYPTION}");
        scene
            .wait_for(&format!("{} to encrypt", node.name()), MINUTE * 3, || async {
                let running = node.processes("kube-apiserver")?;
                Ok(if running.iter().any(|p| p.arguments().contains(&flag)) {
                    Look::Done(())
                } else {
                    Look::NotYet("not yet".into())
                })
            })
            .await?;
        scene.wait_until_whole(MINUTE * 3).await?;
    }
    let one = scene.lab.nodes().into_iter().next().context("no node")?;
    kubeadm::by_words(
        &one,
        &["init", "phase", "upload-config", "kubeadm"],
        &kept_config(&one)?,
    )?;
    Ok(())
}

pub(super) fn secret_file(path: &Path, text: &str) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::write(path, text)?;
    Ok(std::fs::set_permissions(
        path,
        std::fs::Permissions::from_mode(0o600),
    )?)
}

/// A Secret, and what it says.
pub(super) async fn keep_a_secret(scene: &Scene) -> Result<String> {
    let says = hex(&rand::random::<[u8; 16]>());
    let secrets: Api<Secret> = Api::namespaced(scene.client().await?, "default");
    let secret: Secret = serde_json::from_value(json!({
        "metadata": {"name": "kept"}, "stringData": {"says": says},
    }))?;
    secrets.create(&PostParams::default(), &secret).await?;
    let first = scene.lab.nodes().into_iter().next().context("no node")?;
    encrypted(scene, first.name())?;
    Ok(says)
}

/// What etcd holds of the Secret can be read by nobody without the key.
pub(super) fn encrypted(scene: &Scene, node: &str) -> Result<()> {
    let asked = ["get", "--print-value-only", "/registry/secrets/default/kept"];
    let stored = scene.lab.node(node)?.etcdctl(&asked)?.check()?;
    ensure!(
        stored.starts_with("k8s:enc:secretbox:v1:one:"),
        "the Secret is not encrypted in etcd"
    );
    Ok(())
}

/// A ServiceAccount's token, as somebody outside may hold it.
pub(super) fn token(scene: &Scene) -> Result<String> {
    let output = scene
        .lab
        .kubectl(&["create", "token", "default", "--duration=8h"])?;
    ensure!(output.success(), "no token: {}", output.stderr);
    Ok(output.stdout.trim().to_owned())
}

/// Whether the API takes the token for whose it is.
pub(super) async fn valid(scene: &Scene, token: &str) -> Result<()> {
    let mut config: serde_yaml::Value =
        serde_yaml::from_str(&std::fs::read_to_string(scene.lab.kubeconfig(None))?)?;
    let user = config
        .get_mut("users")
        .and_then(|users| users.get_mut(0))
        .and_then(|user| user.get_mut("user"))
        .context("the kubeconfig has no user")?;
    *user = serde_yaml::to_value(json!({"token": token}))?;
    let path = scene.file("token.conf");
    std::fs::create_dir_all(path.parent().context("no folder")?)?;
    secret_file(&path, &serde_yaml::to_string(&config)?)?;
    let reviews: Api<SelfSubjectReview> = Api::all(scene.client_by(&path).await?);
    let told = reviews
        .create(&PostParams::default(), &SelfSubjectReview::default())
        .await
        .context("the ServiceAccount token of before is not taken")?;
    let name = told.status.and_then(|s| s.user_info).and_then(|u| u.username);
    ensure!(
        name.as_deref() == Some("system:serviceaccount:default:default"),
        "the token is taken for {name:?}"
    );
    Ok(())
}
