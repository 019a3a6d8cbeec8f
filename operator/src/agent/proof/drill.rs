//! The node's own API server, made harmless, on an etcd that was booted on a backup: can every Secret be read?
//!
//! It listens on loopback with a certificate that it makes itself, knows one token that is made for the occasion,
//! calls no webhook, writes no audit log, and has no part in the cluster's endpoints. What it writes at its start goes
//! into the copy.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, ListParams};
use kube::config::AuthInfo;
use kube::{Client, Config};
use lockkeeper_crds::{Component, Findings};
use lockkeeper_policies::KubernetesVersion;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde_yaml::Value;
use tokio::time::{Instant, sleep, timeout};
use tracing::instrument::WithSubscriber as _;
use tracing::subscriber::NoSubscriber;

use super::boot::{Booted, Chores, free_port};
use super::{ProofError, verdict};
use crate::agent::chore::{Chore, ChoreError, Mount, Standing};
use crate::agent::directory;
use crate::agent::host::{self, Host};
use crate::agent::manifest::{self, Manifest};
use crate::agent::rehearsal::Flags;
use crate::api::SERVER_NAME;
use crate::store;

/// Where the API server finds its token and puts its certificate.
const FILES: &str = "/lockkeeper-drill";

/// 2 s were measured on a small cluster; it reads every kind of object once.
const READY_LIMIT: Duration = Duration::from_secs(180);

/// For one answer.
const ANSWER: Duration = Duration::from_secs(30);

/// Secrets in one answer, without their data.
const PAGE: u32 = 500;

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(500);

/// This node's API server, as its manifest has it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct ApiServer {
    manifest: Manifest,
}

impl ApiServer {
    pub(super) fn of(host: &Host) -> Result<Self, ProofError> {
        let directory = directory::scan(host);
        let Some(manifest) = directory.manifest(Component::KubeApiserver) else {
            let path = host.manifest(Component::KubeApiserver);
            return Err(ProofError::NoComponent(format!(
                "{} cannot be used: a backup is drilled with this node's kube-apiserver",
                path.display()
            )));
        };
        let manifest = manifest.clone();
        Ok(Self { manifest })
    }

    /// What an API server wrote is read by one of the same minor.
    pub(super) fn fits(self, backup: &store::Manifest) -> Result<Self, ProofError> {
        let minor = |text: &str| text.parse::<KubernetesVersion>().ok().map(|v| v.minor);
        let tag = self.manifest.image.rsplit_once(':').map_or("", |(_, tag)| tag);
        let taken_of = backup.kubernetes_version.as_deref().unwrap_or_default();
        // One that does not say is read by what runs: nothing else is known.
        if taken_of.is_empty() || minor(taken_of) == minor(tag) {
            return Ok(self);
        }
        Err(ProofError::OtherMinor {
            component: "kube-apiserver",
            backup: taken_of.to_owned(),
            node: self.manifest.image.clone(),
        })
    }

    /// The command, the environment and the mounts of the harmless one.
    fn made_harmless(&self, chore: &mut Chore, etcd: &str, port: u16) -> Result<(), ProofError> {
        chore.command = harmless(&self.manifest.arguments, etcd, port).ok_or_else(|| {
            ProofError::NoComponent(
                "kube-apiserver.yaml: the first word of spec.containers[].command is not kube-apiserver itself, so its flags cannot be made harmless: write the binary as the first word and each flag as a word of its own".to_owned(),
            )
        })?;
        let document = &self.manifest.document;
        let Some(container) = manifest::container(document, "kube-apiserver") else {
            return Ok(());
        };
        for variable in sequence(container.get("env")) {
            let text = |field: &str| variable.get(field).and_then(Value::as_str).map(str::to_owned);
            if let (Some(name), Some(value)) = (text("name"), text("value")) {
                chore.environment.push((name, value));
            }
        }
        for its in sequence(container.get("volumeMounts")) {
            add_mount(chore, document, its);
        }
        Ok(())
    }
}

fn sequence(value: Option<&Value>) -> impl Iterator<Item = &Value> {
    value.and_then(Value::as_sequence).into_iter().flatten()
}

/// A mount of the manifest, read-only; a directory that lives with the pod, as one.
fn add_mount(chore: &mut Chore, pod: &Value, its: &Value) {
    let (Some(name), Some(inside)) = (its.get("name"), its.get("mountPath").and_then(Value::as_str)) else {
        return;
    };
    let volumes = pod.get("spec").and_then(|s| s.get("volumes"));
    let Some(volume) = sequence(volumes).find(|v| v.get("name") == Some(name)) else {
        return;
    };
    if volume.get("emptyDir").is_some() {
        chore.scratch.push(inside.into());
    }
    let path = volume
        .get("hostPath")
        .and_then(|h| h.get("path"))
        .and_then(Value::as_str);
    if let Some(path) = path {
        let mut host = PathBuf::from(path);
        if let Some(below) = its.get("subPath").and_then(Value::as_str) {
            host.push(below);
        }
        chore.mounts.push(Mount {
            host,
            inside: inside.into(),
            read_only: true,
        });
    }
}

/// The manifest's command with every flag that reaches out, or that would write into a file of the node's own
/// server, turned aside. None when the first word is not the binary.
fn harmless(words: &[String], etcd: &str, port: u16) -> Option<Vec<String>> {
    let (binary, rest) = words.split_first()?;
    if binary.rsplit('/').next() != Some("kube-apiserver") {
        return None;
    }
    let mut flags = Flags::new(rest);
    for reaching_out in [
        "etcd-servers-overrides",
        // Its own certificate instead: it names loopback, and the node's may not.
        "tls-cert-file",
        "tls-private-key-file",
        "tls-sni-cert-key",
        "audit-policy-file",
        "audit-log-path",
        "audit-webhook-config-file",
        "admission-control-config-file",
        "enable-admission-plugins",
        "authentication-config",
        "authentication-token-webhook-config-file",
        "oidc-issuer-url",
        "oidc-client-id",
        "oidc-ca-file",
        "oidc-username-claim",
        "oidc-username-prefix",
        "oidc-groups-claim",
        "oidc-groups-prefix",
        "oidc-required-claim",
        "oidc-signing-algs",
        "authorization-config",
        "authorization-webhook-config-file",
        "authorization-webhook-version",
        "authorization-webhook-cache-authorized-ttl",
        "authorization-webhook-cache-unauthorized-ttl",
        "egress-selector-config-file",
        "tracing-config-file",
        "shutdown-delay-duration",
    ] {
        flags.remove(reaching_out);
    }
    for (name, value) in [
        ("etcd-servers", etcd.to_owned()),
        ("bind-address", "127.0.0.1".to_owned()),
        ("advertise-address", "127.0.0.1".to_owned()),
        ("secure-port", port.to_string()),
        ("cert-dir", format!("{FILES}/tls")),
        ("token-auth-file", format!("{FILES}/tokens.csv")),
        ("authorization-mode", "RBAC".to_owned()),
        ("endpoint-reconciler-type", "none".to_owned()),
        (
            "disable-admission-plugins",
            "MutatingAdmissionWebhook,ValidatingAdmissionWebhook".to_owned(),
        ),
        // Every kind of object in memory is what this server is not given.
        ("watch-cache", "false".to_owned()),
    ] {
        flags.set(name, &value);
    }
    Some(flags.command(binary))
}

impl Chores<'_> {
    /// Boots the API server on the etcd that was booted, and reads every Secret through it.
    pub(super) async fn drill(
        &self,
        server: &ApiServer,
        booted: &Booted,
        findings: Findings,
    ) -> Result<(Findings, String), ProofError> {
        // Before it is there to write any.
        let keys = booted.secrets().await?;
        booted.disarm().await?;
        let image = &server.manifest.image;
        let token = format!("{}{}", store::unique(), store::unique());
        let files = self.files(&token)?;
        let port = free_port().map_err(|source| ProofError::File {
            path: "127.0.0.1:0".into(),
            doing: "listened at",
            source,
        })?;
        let scheme = if booted.secure { "https" } else { "http" };
        let etcd = format!("{scheme}://127.0.0.1:{}", booted.port);
        let mut chore = self.chore("drill", image, vec![]);
        chore.mounts = vec![Mount {
            host: self.place.on_host().join("drill"),
            inside: FILES.into(),
            read_only: false,
        }];
        server.made_harmless(&mut chore, &etcd, port)?;
        let standing = chore
            .stand(self.host, self.cri, READY_LIMIT, self.cancel)
            .await
            .map_err(|source| ProofError::Chore {
                doing: "no API server can be booted on it",
                source,
            })?;
        let read = async {
            let client = ready(image, &standing, &files, port, &token).await?;
            let listed = secrets(image, client).await?;
            verdict::drilled(image, findings, keys, listed)
        };
        let read = tokio::select! {
            read = read => read,
            () = self.cancel.cancelled() => Err(ProofError::Interrupted),
        };
        let dismissed = standing.dismiss().await.map_err(|source| ProofError::Chore {
            doing: "the API server that was booted on it",
            source,
        });
        let read = read?;
        dismissed.map(|()| read)
    }

    /// The directory with the token; readable by root only.
    fn files(&self, token: &str) -> Result<PathBuf, ProofError> {
        let files = self.place.inside("drill");
        let failed = |source| ProofError::File {
            path: files.clone(),
            doing: "written",
            source,
        };
        host::create_directory(&files.join("tls")).map_err(failed)?;
        let line = format!("{token},lockkeeper-drill,lockkeeper-drill,\"system:masters\"\n");
        host::replace(&files.join("tokens.csv"), line.as_bytes(), 0o600).map_err(failed)?;
        Ok(files)
    }
}

/// Waits until it is ready; a client of it.
async fn ready(
    image: &str,
    standing: &Standing,
    files: &Path,
    port: u16,
    token: &str,
) -> Result<Client, ProofError> {
    let begun = Instant::now();
    loop {
        let said = match ask(files, port, token).await {
            Ok(client) => return Ok(client),
            Err(said) => said,
        };
        let (ended, said) = match standing.check().await {
            Ok(()) | Err(ChoreError::Runtime(_)) => (false, said),
            Err(error) => (true, error.to_string()),
        };
        if ended || begun.elapsed() >= READY_LIMIT {
            return Err(ProofError::ApiServer {
                image: image.to_owned(),
                seconds: begun.elapsed().as_secs(),
                said,
            });
        }
        sleep(PAUSE).await;
    }
}

async fn ask(files: &Path, port: u16, token: &str) -> Result<Client, String> {
    // It writes the certificate before it listens.
    let pem =
        fs::read(files.join("tls").join("apiserver.crt")).map_err(|e| format!("no certificate yet ({e})"))?;
    let roots: Vec<Vec<u8>> = CertificateDer::pem_slice_iter(&pem)
        .filter_map(Result::ok)
        .map(|certificate| certificate.to_vec())
        .collect();
    let url: http::Uri = format!("https://127.0.0.1:{port}")
        .parse()
        .map_err(|e: http::uri::InvalidUri| e.to_string())?;
    let mut config = Config::new(url);
    config.root_cert = Some(roots);
    config.tls_server_name = Some(SERVER_NAME.to_owned());
    config.connect_timeout = Some(ANSWER);
    config.read_timeout = Some(ANSWER);
    config.auth_info = AuthInfo {
        token: Some(token.to_owned().into()),
        ..AuthInfo::default()
    };
    let client = Client::try_from(config).map_err(|e| e.to_string())?;
    let request = http::Request::get("/readyz")
        .body(vec![])
        .map_err(|e| e.to_string())?;
    // The client logs every answer that is none of its liking, and "not ready yet" is what is waited out here.
    let asked = client
        .request_text(request)
        .with_subscriber(NoSubscriber::default());
    match timeout(ANSWER, asked).await {
        Ok(Ok(_)) => Ok(client),
        Ok(Err(error)) => Err(crate::api::explain(&error)),
        Err(_) => Err("no answer".to_owned()),
    }
}

/// How many Secrets can be read. Only their names come over; the server has to decrypt and decode each for that.
async fn secrets(image: &str, client: Client) -> Result<i64, ProofError> {
    let failed = |said: String| ProofError::Secrets {
        image: image.to_owned(),
        said,
    };
    let api: Api<Secret> = Api::all(client);
    let mut params = ListParams::default().limit(PAGE);
    let mut listed = 0;
    loop {
        let page = match timeout(ANSWER, api.list_metadata(&params)).await {
            Ok(Ok(page)) => page,
            Ok(Err(error)) => return Err(failed(crate::api::explain(&error))),
            Err(_) => return Err(failed(format!("no answer within {} s", ANSWER.as_secs()))),
        };
        listed += i64::try_from(page.items.len()).unwrap_or(i64::MAX);
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(next) => params = params.continue_token(&next),
            None => return Ok(listed),
        }
    }
}

#[cfg(test)]
#[path = "drill_tests.rs"]
mod tests;
