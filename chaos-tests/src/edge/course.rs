//! A ClusterCutover as a scenario meets it, and beside it the truth: the weights that the edge itself has, looked up
//! without Lockkeeper's help.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kube::api::{Api, Patch, PatchParams};
use lockkeeper_crds::{ClusterCutover, ClusterCutoverStatus};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use super::{BACKEND, Colour, Pair, Proxy, RUNTIME_API};
use crate::install::{Install, NAMESPACE};
use crate::scene::Look;

/// The Secret with green's kubeconfig.
const SECRET: &str = "green";
const MINUTE: Duration = Duration::from_secs(60);
/// Between two looks at the edge's weights.
const LOOK_EVERY: Duration = Duration::from_millis(50);

impl<'a> Pair<'a> {
    /// Installs Lockkeeper in blue, with leave to read green's kubeconfig and nothing else.
    pub async fn install(&self) -> Result<()> {
        self.install_with(&[]).await
    }

    /// The same, with more values for helm.
    pub async fn install_with(&self, more: &[&str]) -> Result<()> {
        let client = self.client(Colour::Blue).await?;
        let green = self.kubeconfig(Colour::Green)?;
        let objects = [
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}),
            json!({
                "apiVersion": "v1", "kind": "Secret",
                "metadata": {"name": SECRET, "namespace": NAMESPACE},
                "stringData": {"kubeconfig": green},
            }),
        ];
        for object in &objects {
            super::app::apply(self, &client, object).await?;
        }
        let mut install: Install = self.scene.install.clone();
        let own = [
            "cutover.enabled=true",
            &format!("cutover.secretNames={{{SECRET}}}"),
        ];
        install
            .set
            .extend(own.iter().chain(more).map(|&value| value.to_owned()));
        self.scene.lab.install(&install, &self.scene.progress)
    }

    /// Makes a ClusterCutover of the edge's backend.
    pub async fn begin(&self, name: &str, plan: &Plan) -> Result<Cutover<'_, 'a>> {
        let client = self.client(Colour::Blue).await?;
        let object = json!({
            "apiVersion": "lockkeeper.dev/v1alpha1", "kind": "ClusterCutover", "metadata": {"name": name},
            "spec": plan.spec(),
        });
        super::app::apply(self, &client, &object).await?;
        self.scene
            .say(format_args!("ClusterCutover {name}: steps {:?}", plan.steps));
        Ok(Cutover {
            pair: self,
            api: Api::all(client),
            name: name.to_owned(),
        })
    }
}

/// What a cutover is to do.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Green's shares.
    pub steps: Vec<u8>,
    /// Seconds of each.
    pub soak: u32,
    /// Seconds of the way back after the last.
    pub window: u32,
    /// What its gate asks. Through the edge it sees both colours, by their weights.
    pub gate: String,
    /// Requests in a round of the gate, of which there is one a second; two rounds that fail send all back.
    pub requests: u32,
    /// More fields of its spec.
    pub more: Value,
}

/// Rounds of a gate that must fail in a row.
pub const FAILURES: u32 = 2;

impl Plan {
    fn spec(&self) -> Value {
        let steps: Vec<Value> = self
            .steps
            .iter()
            .map(|green| json!({"green": green, "soakSeconds": self.soak}))
            .collect();
        let (address, port) = RUNTIME_API;
        let mut spec = json!({
            "blue": {"thisCluster": true},
            "green": {"kubeconfigSecret": {"name": SECRET}},
            "traffic": {"haproxy": {
                "endpoints": [format!("{address}:{port}")], "backend": BACKEND,
                "blue": ["blue"], "green": ["green"],
            }},
            "steps": steps,
            "gates": [{
                "name": "shop", "intervalSeconds": 1, "passes": 2, "failures": FAILURES,
                "http": {"url": self.gate, "requests": self.requests},
            }],
            "rollbackWindowSeconds": self.window,
        });
        if let (Value::Object(spec), Value::Object(more)) = (&mut spec, &self.more) {
            spec.extend(more.clone());
        }
        spec
    }
}

/// A ClusterCutover.
pub struct Cutover<'p, 'a> {
    pair: &'p Pair<'a>,
    api: Api<ClusterCutover>,
    name: String,
}

impl std::fmt::Debug for Cutover<'_, '_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cutover")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl Cutover<'_, '_> {
    /// Its status now.
    pub async fn status(&self) -> Result<ClusterCutoverStatus> {
        self.api.get(&self.name).await?.status.context("no status yet")
    }

    /// Gives the word to go back. The moment is the one before it was sent.
    pub async fn abort(&self) -> Result<Instant> {
        let word = Instant::now();
        let patch = Patch::Merge(json!({"spec": {"abort": true}}));
        self.api
            .patch(&self.name, &PatchParams::default(), &patch)
            .await?;
        Ok(word)
    }

    /// Waits until its status is accepted.
    pub async fn reaches(
        &self,
        what: &str,
        limit: Duration,
        accepted: impl Fn(&ClusterCutoverStatus) -> bool,
    ) -> Result<ClusterCutoverStatus> {
        self.pair
            .scene
            .wait_for(what, limit, || async {
                let status = self.status().await?;
                Ok(if accepted(&status) {
                    Look::Done(status)
                } else {
                    Look::NotYet(format!("{:?}: {}", status.state, status.message))
                })
            })
            .await
    }

    /// Waits until nothing more will happen; another end than the wanted one is an error.
    pub async fn settles(&self, wanted: &str, limit: Duration) -> Result<ClusterCutoverStatus> {
        let what = format!("{} to end", self.name);
        let status = self.reaches(&what, limit, |status| status.state.is_end()).await?;
        let settled = status
            .conditions
            .iter()
            .find(|condition| condition.type_ == "Settled");
        let reason = settled
            .filter(|condition| condition.status == "True")
            .map(|condition| &*condition.reason);
        ensure!(
            reason == Some(wanted),
            "{} settled as {reason:?}, not {wanted}: {}",
            self.name,
            status.message
        );
        Ok(status)
    }
}

/// The shares that the edge had, each with the moment from which it was seen.
#[derive(Debug)]
pub struct Watch {
    seen: Arc<Mutex<Vec<(Instant, u8)>>>,
    task: JoinHandle<()>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Watch {
    /// Begins to look at the edge.
    #[must_use]
    pub fn start() -> Self {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let book = Arc::clone(&seen);
        let task = tokio::spawn(async move {
            let mut ticks = tokio::time::interval(LOOK_EVERY);
            loop {
                ticks.tick().await;
                // An edge that does not answer has no other weights by that.
                let Ok(green) = Proxy::green_share().await else {
                    continue;
                };
                let mut book = book.lock().unwrap_or_else(PoisonError::into_inner);
                let book: &mut Vec<(Instant, u8)> = &mut book;
                if book.last().is_none_or(|(_, last)| *last != green) {
                    book.push((Instant::now(), green));
                }
            }
        });
        Self { seen, task }
    }

    /// Every share so far, in order.
    #[must_use]
    pub fn shares(&self) -> Vec<(Instant, u8)> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Fails unless green had these shares, in this order, and no other.
    pub fn were(&self, wanted: &[u8]) -> Result<()> {
        let seen: Vec<u8> = self.shares().into_iter().map(|(_, green)| green).collect();
        ensure!(
            seen == wanted,
            "green's shares at the edge were {seen:?}, not {wanted:?}"
        );
        Ok(())
    }

    /// Waits until green has a share; the moment from which it was seen.
    pub async fn until(&self, pair: &Pair<'_>, green: u8) -> Result<Instant> {
        let what = format!("{green} % for green at the edge");
        pair.scene
            .wait_for(&what, MINUTE * 5, || async {
                Ok(match self.shares().last() {
                    Some((from, now)) if *now == green => Look::Done(*from),
                    Some((_, now)) => Look::NotYet(format!("{now} %")),
                    None => Look::NotYet("never seen".into()),
                })
            })
            .await
    }
}
