//! What a person keeps elsewhere: what opens the backups, and where they are.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, PostParams};
use lockkeeper::store::Identities;
use serde_json::{Value, json};

use super::evidence::secret_file;
use super::{KEPT, STORE};
use crate::cache::hex;
use crate::fabric::{BUCKET, S3Keys, s3_endpoint};
use crate::install::{NAMESPACE, STORE_SECRET};
use crate::scenarios::rescuing::bring_the_program;
use crate::scene::Scene;

/// What opens it, in the cluster.
const SECRET: &str = "all-lost-key";

/// What a person keeps elsewhere, beside the binary and kubeadm's configuration: what opens the backups, and the bucket's
/// credentials or a copy of what is in it.
pub(super) struct Kept {
    machines: bool,
    key: String,
    /// What the store must be told to encrypt for it.
    encryption: Value,
}

impl Kept {
    pub(super) fn new(machines: bool) -> Self {
        let (key, encryption) = if machines {
            let (_, public, key) = Identities::generate();
            (
                key,
                json!({"recipients": [public], "identitySecret": {"name": SECRET}}),
            )
        } else {
            let passphrase = hex(&rand::random::<[u8; 16]>());
            (passphrase, json!({"passphraseSecret": {"name": SECRET}}))
        };
        Self {
            machines,
            key,
            encryption: json!({"encryption": encryption}),
        }
    }

    /// The key lies in the cluster too, for the drill. Returns what the store's spec says of it.
    pub(super) async fn secret_in(&self, scene: &Scene) -> Result<Value> {
        let name = if self.machines { "identity" } else { "passphrase" };
        let secret: Secret = serde_json::from_value(json!({
            "metadata": {"name": SECRET}, "stringData": {name: self.key},
        }))?;
        let secrets: Api<Secret> = Api::namespaced(scene.client().await?, NAMESPACE);
        secrets.create(&PostParams::default(), &secret).await?;
        scene.set(vec![
            format!("store.secretNames={{{STORE_SECRET},{SECRET}}}"),
            // The lab's nodes have one disk each.
            "agent.verification.onEtcdDisk=true".to_owned(),
        ])?;
        Ok(self.encryption.clone())
    }

    /// Puts it onto every node.
    pub(super) fn bring(&self, scene: &Scene) -> Result<()> {
        bring_the_program(scene)?;
        let keys = S3Keys::of(scene.lab.home())?;
        for node in scene.lab.nodes() {
            let kept = node.var_lib("lockkeeper-rescue");
            secret_file(&kept.join("key.txt"), &format!("{}\n", self.key))?;
            if self.machines {
                let (id, secret) = (&keys.access, &keys.secret);
                let text = format!("AWS_ACCESS_KEY_ID={id}\nAWS_SECRET_ACCESS_KEY={secret}\n");
                secret_file(&kept.join("s3.env"), &text)?;
            } else {
                copy(&bucket(scene), &kept.join("store"))?;
            }
        }
        Ok(())
    }

    /// The flags that say where the backups lie.
    pub(super) fn keyless(&self) -> Vec<String> {
        let words = if self.machines {
            format!(
                "--bucket {BUCKET} --prefix {STORE} --endpoint {} --credentials {KEPT}/s3.env",
                s3_endpoint()
            )
        } else {
            format!("--directory {KEPT}/store")
        };
        words.split_whitespace().map(str::to_owned).collect()
    }

    /// And what opens them.
    pub(super) fn with_key(&self) -> Vec<String> {
        [self.keyless(), self.opens()].concat()
    }

    /// The same for a copy of the store in a directory beside it.
    pub(super) fn with_key_at(&self, copied: &str) -> Vec<String> {
        let directory = ["--directory".to_owned(), format!("{KEPT}/{copied}")];
        [directory.to_vec(), self.opens()].concat()
    }

    fn opens(&self) -> Vec<String> {
        let flag = if self.machines {
            "--identity"
        } else {
            "--passphrase-file"
        };
        vec![flag.to_owned(), format!("{KEPT}/key.txt")]
    }
}

/// Where the lab's S3 server has the store's objects, as files.
pub(super) fn bucket(scene: &Scene) -> PathBuf {
    scene.lab.home().path("s3").join(BUCKET).join(STORE)
}

/// A directory with all that is in it, as `aws s3 sync` would bring it.
pub(super) fn copy(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from).with_context(|| from.display().to_string())? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &to)?;
        } else {
            std::fs::copy(entry.path(), to)?;
        }
    }
    Ok(())
}
