//! What a scenario works with: a lab that is up, clients whose connections are made in its network, waits that
//! say what they wait for, and randomness that a seed repeats.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use futures::FutureExt;
use futures::future::LocalBoxFuture;
use k8s_openapi::api::core::v1::Node as KubeNode;
use kube::api::{Api, ListParams};
use object_store::aws::AmazonS3;
use rand::SeedableRng;
use rand::rngs::StdRng;

use crate::fabric::{self, BUCKET, S3Keys};
use crate::install::Install;
use crate::lab::Lab;
use crate::network::{self, FABRIC};
use crate::progress::Progress;

/// How often a wait looks. Rarely enough not to be a load on the cluster that is watched.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// What one look saw.
#[derive(Debug)]
pub enum Look<T> {
    /// It holds; here is what came of it.
    Done(T),
    /// Not yet, and what was seen instead.
    NotYet(String),
}

/// A running scenario.
#[derive(Debug)]
pub struct Scene {
    /// The lab it plays in.
    pub lab: Lab,
    /// How to install Lockkeeper.
    pub install: Install,
    /// The clock and the voice of the run.
    pub progress: Progress,
    /// What the run's randomness began with.
    pub seed: u64,
    random: Mutex<StdRng>,
}

impl Scene {
    /// A scene in a lab that is up.
    #[must_use]
    pub fn new(lab: Lab, install: Install, seed: u64, progress: Progress) -> Self {
        Self {
            lab,
            install,
            progress,
            seed,
            random: Mutex::new(StdRng::seed_from_u64(seed)),
        }
    }

    /// Plays on a thread inside the nodes' network: every connection that `play` makes, on whatever thread of
    /// its runtime, is made there.
    pub fn play<T: Send>(
        &self,
        play: impl for<'a> FnOnce(&'a Scene) -> LocalBoxFuture<'a, Result<T>> + Send,
    ) -> Result<T> {
        let namespace = self.lab.home().namespace(FABRIC);
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                network::move_thread_into(&namespace)?;
                let runtime = tokio::runtime::Builder::new_multi_thread()
                    .worker_threads(2)
                    .enable_all()
                    .build()?;
                let result = runtime.block_on(std::panic::AssertUnwindSafe(play(self)).catch_unwind());
                runtime.shutdown_timeout(Duration::from_secs(5));
                result.unwrap_or_else(|_| bail!("the scenario panicked; its words are above"))
            });
            thread
                .join()
                .unwrap_or_else(|_| bail!("the scenario's thread panicked"))
        })
    }

    /// Says what happens now.
    pub fn say(&self, what: impl std::fmt::Display) {
        self.progress.say(format_args!("  {what}"));
    }

    /// A random number below a bound, the same in every run with this seed.
    pub fn below(&self, bound: u64) -> u64 {
        use rand::Rng;
        self.random
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .random_range(0..bound.max(1))
    }

    /// The chart anew, as a person would, with some values set otherwise, each `key=value`.
    pub fn set(&self, values: Vec<String>) -> Result<()> {
        let install = Install {
            binary: None,
            chart: self.install.chart.clone(),
            set: values,
        };
        self.lab.install(&install, &self.progress)
    }

    /// A Kubernetes client as the cluster's admin, through the load balancer.
    pub async fn client(&self) -> Result<kube::Client> {
        client(&self.lab.kubeconfig(None)).await
    }

    /// The same, straight at the API server of one node.
    pub async fn client_at(&self, node: &str) -> Result<kube::Client> {
        self.lab.node(node)?;
        client(&self.lab.kubeconfig(Some(node))).await
    }

    /// A client as this kubeconfig says.
    pub async fn client_by(&self, kubeconfig: &Path) -> Result<kube::Client> {
        client(kubeconfig).await
    }

    /// The bucket of the lab's S3 server, through the proxy that faults act on.
    pub fn store(&self) -> Result<AmazonS3> {
        let keys = S3Keys::of(self.lab.home())?;
        object_store::aws::AmazonS3Builder::new()
            .with_endpoint(fabric::s3_endpoint())
            .with_region("us-east-1")
            .with_bucket_name(BUCKET)
            .with_access_key_id(keys.access)
            .with_secret_access_key(keys.secret)
            .with_allow_http(true)
            .build()
            .context("cannot make a client of the S3 server")
    }

    /// Waits until a look is done. A look that fails counts as "not yet": in a lab the API may be away.
    ///
    /// # Errors
    /// The time is over; the error says what was seen last.
    pub async fn wait_for<T, F>(&self, what: &str, limit: Duration, mut look: impl FnMut() -> F) -> Result<T>
    where
        F: Future<Output = Result<Look<T>>>,
    {
        let began = Instant::now();
        let mut told = String::new();
        loop {
            crate::interrupt::check()?;
            let left = limit.saturating_sub(began.elapsed());
            let seen = match tokio::time::timeout(left.max(LOOK_EVERY), look()).await {
                Ok(Ok(Look::Done(value))) => return Ok(value),
                Ok(Ok(Look::NotYet(seen))) => one_line(&seen),
                Ok(Err(error)) => one_line(&format!("{error:#}")),
                Err(_) => "no answer".into(),
            };
            if seen != told {
                self.say(format_args!("waiting for {what}: {seen}"));
                told = seen;
            }
            if began.elapsed() > limit {
                bail!("waited {} s for {what}; seen last: {told}", limit.as_secs());
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Waits until every API server says that it is ready, and every node is Ready.
    pub async fn wait_until_whole(&self, limit: Duration) -> Result<()> {
        for node in self.lab.nodes() {
            let client = self.client_at(node.name()).await?;
            self.wait_for(&format!("the API server of {}", node.name()), limit, || async {
                let request = http::Request::get("/readyz").body(Vec::new())?;
                let answer = client.request_text(request).await?;
                Ok(if answer == "ok" {
                    Look::Done(())
                } else {
                    Look::NotYet(answer)
                })
            })
            .await?;
        }
        let nodes: Api<KubeNode> = Api::all(self.client().await?);
        let wanted = self.lab.nodes().len();
        self.wait_for("every node to be Ready", limit, || async {
            let found = nodes.list(&ListParams::default()).await?;
            let ready = found.items.iter().filter(|node| is_ready(node)).count();
            Ok(if ready == wanted {
                Look::Done(())
            } else {
                Look::NotYet(format!("{ready} of {wanted}"))
            })
        })
        .await
    }

    /// A path for files of this scene.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.lab.home().path("scene").join(name)
    }
}

/// An API server that starts answers with a page; a line of it tells enough.
fn one_line(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default();
    match line.char_indices().nth(160) {
        Some((at, _)) => format!("{}…", line.get(..at).unwrap_or(line)),
        None => line.to_owned(),
    }
}

fn is_ready(node: &KubeNode) -> bool {
    node.status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten())
        .any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// A client that would rather look again than hang on a server that is gone.
pub(crate) async fn client(kubeconfig: &Path) -> Result<kube::Client> {
    let kubeconfig = kube::config::Kubeconfig::read_from(kubeconfig)?;
    let mut config = kube::Config::from_custom_kubeconfig(kubeconfig, &Default::default()).await?;
    config.connect_timeout = Some(Duration::from_secs(5));
    config.read_timeout = Some(Duration::from_secs(15));
    config.write_timeout = Some(Duration::from_secs(15));
    kube::Client::try_from(config).context("cannot make a Kubernetes client")
}
