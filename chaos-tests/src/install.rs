//! Installs Lockkeeper as its users do: the image on the nodes, the store's keys in a Secret, the chart by helm.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::fabric::{BUCKET, S3Keys, s3_endpoint};
use crate::images;
use crate::lab::Lab;
use crate::progress::Progress;

/// The namespace of the operator and the agents.
pub const NAMESPACE: &str = "lockkeeper-system";
/// The Secret with the store's keys.
pub const STORE_SECRET: &str = "lockkeeper-store";

/// What to install.
#[derive(Debug, Clone, Default)]
pub struct Install {
    /// Our binary; without it the image must be on the nodes already.
    pub binary: Option<PathBuf>,
    /// The chart; `helm/lockkeeper` of the checkout without it.
    pub chart: Option<PathBuf>,
    /// More values for helm, each `key=value`.
    pub set: Vec<String>,
}

impl Install {
    /// Our binary, or the one beside this program where none was named.
    #[must_use]
    pub fn or_beside(mut self) -> Self {
        self.binary = self.binary.or_else(beside);
        self
    }
}

/// `lockkeeper` in the folder that this program was started from: `make build` puts both there.
#[must_use]
pub fn beside() -> Option<PathBuf> {
    let found = std::env::current_exe().ok()?.parent()?.join("lockkeeper");
    found.is_file().then_some(found)
}

impl Lab {
    /// Installs or upgrades the chart and waits until everything of it is ready.
    pub fn install(&self, what: &Install, progress: &Progress) -> Result<()> {
        let chart = chart(what.chart.as_deref())?;
        if let Some(binary) = &what.binary {
            progress.say("lockkeeper's image: into every node");
            self.import_lockkeeper(binary)?;
        }
        self.write_store_secret()?;
        let was_there = self
            .out(&["helm", "status", "lockkeeper", "-n", NAMESPACE])?
            .output()?
            .success();
        progress.say(format_args!(
            "helm upgrade --install lockkeeper {}",
            chart.display()
        ));
        let (repository, tag) = images::LOCKKEEPER
            .rsplit_once(':')
            .unwrap_or((images::LOCKKEEPER, "dev"));
        let own = [
            format!("image.repository={repository}"),
            format!("image.tag={tag}"),
            "image.pullPolicy=Never".into(),
            format!("store.s3.bucket={BUCKET}"),
            format!("store.s3.endpoint={}", s3_endpoint()),
        ];
        let chart = chart.to_string_lossy();
        let mut argv = vec![
            "helm",
            "upgrade",
            "--install",
            "lockkeeper",
            &chart,
            "-n",
            NAMESPACE,
            "--create-namespace",
            "--wait",
        ];
        argv.extend(["--timeout", "3m"]);
        for value in own.iter().chain(&what.set) {
            argv.extend(["--set", value]);
        }
        self.out(&argv)?.limit(Duration::from_secs(240)).check()?;
        if was_there && what.binary.is_some() {
            // The tag stayed the same, so nothing in the pods changed: they must be told.
            self.roll_out_again()?;
        }
        Ok(())
    }

    /// Puts our image onto every node that is on.
    pub fn import_lockkeeper(&self, binary: &Path) -> Result<()> {
        let tar = self.home().path("images/lockkeeper.tar");
        images::lockkeeper(&tar, binary)?;
        self.import(&tar)
    }

    /// Writes the namespace and the Secret with the keys of the lab's S3 server.
    pub fn write_store_secret(&self) -> Result<()> {
        let keys = S3Keys::of(self.home())?;
        let objects = serde_json::json!({"apiVersion": "v1", "kind": "List", "items": [
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}},
            {
                "apiVersion": "v1", "kind": "Secret", "metadata": {"name": STORE_SECRET, "namespace": NAMESPACE},
                "stringData": {"AWS_ACCESS_KEY_ID": keys.access, "AWS_SECRET_ACCESS_KEY": keys.secret},
            },
        ]});
        self.out(&[
            "kubectl",
            "apply",
            "--server-side",
            "--force-conflicts",
            "-f",
            "-",
        ])?
        .input(objects.to_string())
        .check()
        .map(drop)
    }

    fn roll_out_again(&self) -> Result<()> {
        for kind in ["deployment", "daemonset"] {
            self.out(&["kubectl", "-n", NAMESPACE, "rollout", "restart", kind])?
                .check()?;
        }
        for kind in ["deployment", "daemonset"] {
            self.out(&[
                "kubectl",
                "-n",
                NAMESPACE,
                "rollout",
                "status",
                kind,
                "--timeout",
                "3m",
            ])?
            .limit(Duration::from_secs(200))
            .check()?;
        }
        Ok(())
    }
}

/// The chart given, or the one of the checkout that the command is run in.
fn chart(given: Option<&Path>) -> Result<PathBuf> {
    if let Some(given) = given {
        return given
            .canonicalize()
            .with_context(|| format!("there is no chart at {}", given.display()));
    }
    let here = std::env::current_dir()?;
    for dir in here.ancestors() {
        let candidate = dir.join("helm/lockkeeper");
        if candidate.join("Chart.yaml").is_file() {
            return Ok(candidate);
        }
    }
    bail!("no helm/lockkeeper here or above: run this in the checkout, or give --chart")
}
