//! A ClusterCutover as a scenario meets it, and beside it the truth: the weights that the edge itself has, looked up
//! without Lockkeeper's help.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kube::api::{Api, Patch, PatchParams};
use lockkeeper_crds::{ClusterCutover, ClusterCutoverStatus, CutoverState};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use super::dns::{self, Dns, SERVERS, Server};
use super::gateway::{self, Kind};
use super::network::applications;
use super::{BACKEND, Colour, Pair, Proxy, RUNTIME_API, steer};
use crate::install::{Install, NAMESPACE};
use crate::scene::Look;

/// The Secret with the key that signs updates.
const DNS_SECRET: &str = "dns";
const MINUTE: Duration = Duration::from_secs(60);
/// Between two looks at the edge's weights.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Two weights are set one after the other within less than this.
const PASSING: Duration = Duration::from_millis(100);

impl<'a> Pair<'a> {
    /// Installs Lockkeeper in blue, with leave to read green's kubeconfig and nothing else.
    pub async fn install(&self) -> Result<()> {
        self.install_as(Colour::Blue, &[], &[]).await
    }

    /// The same, with more values for helm.
    pub async fn install_with(&self, values: &[&str]) -> Result<()> {
        self.install_as(Colour::Blue, &[], values).await
    }

    /// Installs Lockkeeper in a colour's cluster, with leave to read the other's kubeconfig and more Secrets: the name
    /// of each, a key and its content.
    pub async fn install_in(&self, home: Colour, more: &[(&str, &str, &str)]) -> Result<()> {
        self.install_as(home, more, &[]).await
    }

    async fn install_as(&self, home: Colour, more: &[(&str, &str, &str)], values: &[&str]) -> Result<()> {
        let client = self.client(home).await?;
        let other = home.other();
        let kubeconfig = self.kubeconfig(other)?;
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}});
        super::app::apply(self, &client, &namespace).await?;
        let mut names = Vec::new();
        for (name, key, content) in [(other.name(), "kubeconfig", &*kubeconfig)].iter().chain(more) {
            self.write_secret(home, name, key, content).await?;
            names.push(*name);
        }
        let mut install: Install = self.scene.install.clone();
        let own = [
            "cutover.enabled=true",
            &format!("cutover.secretNames={{{}}}", names.join(",")),
        ];
        install
            .set
            .extend(own.iter().chain(values).map(|&value| value.to_owned()));
        self.lab(home).install(&install, &self.scene.progress)
    }

    /// Writes a Secret into Lockkeeper's namespace.
    pub async fn write_secret(&self, home: Colour, name: &str, key: &str, content: &str) -> Result<()> {
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret",
            "metadata": {"name": name, "namespace": NAMESPACE}, "stringData": {key: content},
        });
        super::app::apply(self, &self.client(home).await?, &secret).await
    }

    /// Installs Lockkeeper in blue, with leave to use the DNS servers' key too.
    pub async fn install_with_dns(&self, dns: &Dns) -> Result<()> {
        self.install_in(Colour::Blue, &[(DNS_SECRET, "key", &dns.key)])
            .await
    }

    /// Makes a ClusterCutover.
    pub async fn begin(&self, name: &str, plan: &Plan) -> Result<Cutover<'_, 'a>> {
        let client = self.client(plan.home).await?;
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
    /// In whose cluster Lockkeeper lives.
    pub home: Colour,
    /// The Secret with the other's kubeconfig.
    pub secret: String,
    /// What moves the traffic.
    pub steers: Steers,
    /// What a loss of blue, and one of green, means after a few seconds: `Hold` or `GoBack`. As usual without it.
    pub when_lost: Option<[&'static str; 2]>,
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

/// What moves the traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Steers {
    /// The edge's HAProxy.
    Haproxy,
    /// The addresses of the shop's name.
    Dns,
    /// Routes of requests and of connections of the edge's Gateway, in Lockkeeper's own cluster.
    GatewayApi,
    /// Routes of every kind of the edge's Gateway, in a cluster that a kubeconfig leads to.
    Routes,
    /// The edge's HAProxy, and a Job.
    HaproxyAndJob,
}

impl Steers {
    fn spec(self) -> Value {
        match self {
            Self::Haproxy => {
                let (address, port) = RUNTIME_API;
                json!({"haproxy": {
                    "endpoints": [format!("{address}:{port}")], "backend": BACKEND,
                    "blue": ["blue"], "green": ["green"],
                }})
            }
            Self::HaproxyAndJob => {
                let mut both = Self::Haproxy.spec();
                if let Some(fields) = both.as_object_mut() {
                    fields.insert("job".to_owned(), steer::traffic());
                }
                both
            }
            Self::Dns => json!({"dns": {
                "name": dns::NAME, "zone": dns::ZONE,
                "primary": Server::Primary.address(), "servers": SERVERS.map(Server::address),
                "tsig": {"name": dns::KEY, "secret": {"name": DNS_SECRET}},
                "blue": applications(Colour::Blue), "green": applications(Colour::Green),
                "ttlSeconds": dns::TTL, "cutoverTtlSeconds": dns::CUTOVER_TTL,
            }}),
            Self::GatewayApi => routes(&json!({"thisCluster": true}), &[Kind::Http, Kind::Tcp]),
            Self::Routes => {
                let secret = json!({"kubeconfigSecret": {"name": gateway::SECRET}});
                routes(&secret, &Kind::ALL)
            }
        }
    }
}

fn routes(cluster: &Value, kinds: &[Kind]) -> Value {
    let named = |kind: &Kind| {
        let [_, kind, name] = kind.words();
        json!({"kind": kind, "namespace": gateway::NAMESPACE, "name": name})
    };
    json!({"gatewayAPI": {
        "cluster": cluster, "routes": kinds.iter().map(named).collect::<Vec<_>>(),
        "blue": {"name": "blue"}, "green": {"name": "green"},
    }})
}

/// Seconds until an API that does not answer counts as lost, where a plan says what that means.
const LOST_AFTER: u32 = 6;

/// Rounds of a gate that must fail in a row.
pub const FAILURES: u32 = 2;

impl Plan {
    fn spec(&self) -> Value {
        let steps: Vec<Value> = self
            .steps
            .iter()
            .map(|green| json!({"green": green, "soakSeconds": self.soak}))
            .collect();
        let access = |colour: Colour| match colour == self.home {
            true => json!({"thisCluster": true}),
            false => json!({"kubeconfigSecret": {"name": self.secret}}),
        };
        let mut spec = json!({
            "blue": access(Colour::Blue), "green": access(Colour::Green),
            "traffic": self.steers.spec(),
            "steps": steps,
            "gates": [{
                "name": "shop", "intervalSeconds": 1, "passes": 2, "failures": FAILURES,
                "http": {"url": self.gate, "requests": self.requests},
            }],
            "rollbackWindowSeconds": self.window,
        });
        if let (Some([blue, green]), Some(fields)) = (self.when_lost, spec.as_object_mut()) {
            let when_lost = json!({"afterSeconds": LOST_AFTER, "blue": blue, "green": green});
            fields.insert("whenLost".to_owned(), when_lost);
        }
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

    /// Begins to look at how many rounds of a gate failed in a row.
    #[must_use]
    pub fn failures_of(&self, gate: &'static str) -> Watch {
        let (api, name) = (self.api.clone(), self.name.clone());
        Watch::of(move || {
            let (api, name) = (api.clone(), name.clone());
            async move {
                let status = api.get(&name).await?.status.context("no status yet")?;
                let mut gates = status.gates.iter().filter(|g| g.name == gate && !g.passed);
                Ok(gates
                    .next()
                    .map_or(0, |g| u8::try_from(g.in_a_row).unwrap_or(u8::MAX)))
            }
        })
    }

    /// The object as it is now.
    pub async fn object(&self) -> Result<ClusterCutover> {
        Ok(self.api.get(&self.name).await?)
    }

    /// Waits until it is held, for this reason.
    pub async fn is_held(&self, reason: &str, limit: Duration) -> Result<ClusterCutoverStatus> {
        let what = format!("{} to be held as {reason}", self.name);
        let held = |status: &ClusterCutoverStatus| {
            status.state == CutoverState::Held
                && status.held.as_ref().is_some_and(|held| held.reason == reason)
        };
        self.reaches(&what, limit, held).await
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
    /// Begins to look at the edge's HAProxy.
    #[must_use]
    pub fn start() -> Self {
        Self::of(Proxy::green_share)
    }

    /// Begins to look at something else that is a small number.
    #[must_use]
    pub fn of<F>(look: impl Fn() -> F + Send + 'static) -> Self
    where
        F: Future<Output = Result<u8>> + Send,
    {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let book = Arc::clone(&seen);
        let task = tokio::spawn(async move {
            let mut ticks = tokio::time::interval(LOOK_EVERY);
            loop {
                ticks.tick().await;
                // An edge that does not answer has no other weights by that.
                let Ok(green) = look().await else {
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
        let seen = settled(&self.shares());
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

/// The shares without those in passing: the weights of two servers are set one after the other, so that a look may find
/// green between what it had and what it gets.
fn settled(shares: &[(Instant, u8)]) -> Vec<u8> {
    let in_passing = |at: usize| {
        let before = at.checked_sub(1).and_then(|before| shares.get(before));
        let (Some((_, before)), Some((from, share)), Some((until, next))) =
            (before, shares.get(at), shares.get(at + 1))
        else {
            return false;
        };
        let between = (before.min(next) < share) && (share < before.max(next));
        between && until.duration_since(*from) < PASSING
    };
    let all = shares.iter().enumerate();
    let kept = all.filter(|(at, _)| !in_passing(*at));
    kept.map(|(_, (_, share))| *share).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_in_passing_is_none_and_one_that_stays_or_lies_outside_is_one() {
        let now = Instant::now();
        let seen = |shares: &[(u64, u8)]| {
            let shares = shares.iter();
            settled(
                &shares
                    .map(|(ms, share)| (now + Duration::from_millis(*ms), *share))
                    .collect::<Vec<_>>(),
            )
        };
        assert_eq!(seen(&[(0, 50), (900, 60), (920, 75)]), [50, 75]);
        assert_eq!(seen(&[(0, 50), (900, 60), (1300, 75)]), [50, 60, 75]);
        assert_eq!(seen(&[(0, 50), (900, 80), (920, 75)]), [50, 80, 75]);
        assert_eq!(seen(&[(0, 50), (900, 60)]), [50, 60]);
    }
}
