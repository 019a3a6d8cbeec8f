//! Leader election: one operator acts, the others wait.
//!
//! What comes in: a client and the work. What goes out: the work runs while, and only while, this process
//! holds the lease. May touch: one Lease in the operator's namespace; ends the process when the work
//! outlives the lease.
//!
//! | file | what |
//! | --- | --- |
//! | `election` | the decisions; pure |
//! | `lease` | to and from the Lease object |
//! | here | requests, waiting, and the work |

mod election;
mod lease;

#[cfg(test)]
mod tests;

use std::future::Future;
use std::hash::{BuildHasher as _, Hasher as _};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::BoxStream;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, PostParams};
use kube::runtime::watcher;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tower::BoxError;

pub use election::{Decision, Election, Identity, Next, Observed, Record, Timing, decide};

use crate::api::{ApiError, Endpoints, within};

/// The lease's name.
pub const LEASE: &str = "lockkeeper-operator";

/// The process ends with this when its work did not stop in time (`EX_SOFTWARE`).
pub const EXIT_WORK_OUTLIVED_LEASE: i32 = 70;

/// On shutdown the work may finish what it has in hand, for this long; the lease is renewed meanwhile.
/// Below the 30 s that a pod has by default until SIGKILL.
const FAREWELL: Duration = Duration::from_secs(20);

/// Leading ended in a way that this process should not outlive.
#[derive(Debug, thiserror::Error)]
pub enum LeaderError {
    /// The work said so.
    #[error("the leader's work ended: {0}")]
    Work(#[source] BoxError),
    /// The work panicked.
    #[error("the leader's work panicked: {0}")]
    Panicked(#[source] tokio::task::JoinError),
    /// The lease was lost and the work did not stop.
    #[error("the lease was lost and the work did not end within {} s", .0.as_secs())]
    Outlived(Duration),
}

/// That this process leads, for as long as `token` lives.
#[derive(Clone, Debug)]
pub struct Leadership {
    /// Rises each time the lease changes hands. Written along with what the leader writes, it tells a
    /// later leader's writes from an earlier one's.
    pub epoch: i32,
    /// Cancelled when leading ends; the work then stops within [`Timing::stop_within`].
    pub token: CancellationToken,
    until: watch::Receiver<Instant>,
}

/// This process does not lead any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this process does not lead any more: its lease could not be renewed in time")]
pub struct NotLeading;

impl Leadership {
    /// Call it right before a write: a process that was stopped and woke again learns here that its time
    /// is over, before any timer has told it.
    ///
    /// # Errors
    /// When the lease was last renewed too long ago.
    pub fn check(&self) -> Result<(), NotLeading> {
        if self.token.is_cancelled() || Instant::now() >= *self.until.borrow() {
            return Err(NotLeading);
        }
        Ok(())
    }

    /// For tests of the work itself: leads for ever.
    #[cfg(test)]
    #[must_use]
    pub fn for_test() -> Self {
        let (_, until) = watch::channel(Instant::now() + Duration::from_secs(86400));
        Self {
            epoch: 1,
            token: CancellationToken::new(),
            until,
        }
    }
}

/// Told whenever leading begins (`Some(epoch)`) and ends.
pub type Observer = Arc<dyn Fn(Option<i32>) + Send + Sync>;

/// A candidate for the lease.
pub struct Candidate {
    api: Api<Lease>,
    endpoints: Endpoints,
    namespace: String,
    election: Election,
    timing: Timing,
    observer: Observer,
    exit: Arc<dyn Fn(i32) + Send + Sync>,
    /// For people who read the lease.
    acquired: Option<MicroTime>,
}

/// `{replica}`, and a word that no other process shares.
#[must_use]
pub fn identity(replica: &str) -> Identity {
    Identity::new(replica, random_word())
}

/// 16 hexadecimal digits that nobody else has.
#[must_use]
pub fn random_word() -> String {
    // RandomState is seeded from the system's randomness.
    let mut hasher = std::hash::RandomState::new().build_hasher();
    hasher.write_u32(std::process::id());
    format!("{:016x}", hasher.finish())
}

impl Candidate {
    /// `me` from [`identity`]; `endpoints` for error messages only.
    #[must_use]
    pub fn new(
        client: kube::Client,
        endpoints: Endpoints,
        namespace: &str,
        me: Identity,
        observer: Observer,
    ) -> Self {
        let timing = Timing::default();
        Self {
            api: Api::namespaced(client, namespace),
            endpoints,
            namespace: namespace.to_owned(),
            election: Election::new(me, timing),
            timing,
            observer,
            exit: Arc::new(|code| std::process::exit(code)),
            acquired: None,
        }
    }

    /// Runs `work` whenever this process leads, until `shutdown` or until the work ends by itself.
    ///
    /// # Guarantees
    /// * `work` begins after the lease was taken, and its token is cancelled at the latest
    ///   [`Timing::renew_deadline`] after the last renewal was sent.
    /// * A work that runs on [`Timing::stop_within`] after that takes the process with it.
    /// * Lost leadership is no error: once the work has ended, the process stands for election again.
    /// * On shutdown the lease is released after the work has ended, so another takes over at once.
    ///
    /// # Errors
    /// When the work failed, panicked, or outlived the lease.
    pub async fn run<F, W>(mut self, shutdown: CancellationToken, work: F) -> Result<(), LeaderError>
    where
        F: Fn(Leadership) -> W,
        W: Future<Output = Result<(), BoxError>> + Send + 'static,
    {
        while self.campaign(&shutdown).await {
            let ended = self.lead(&shutdown, &work).await;
            (self.observer)(None);
            match ended {
                Ok(Ended::Lost) => self.election.stepped_down(),
                Ok(Ended::ByItself) => {
                    self.release().await;
                    break;
                }
                Err(error) => {
                    if !matches!(error, LeaderError::Outlived(_)) {
                        self.release().await;
                    }
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Follows until the lease is ours (true) or `shutdown` (false).
    async fn campaign(&mut self, shutdown: &CancellationToken) -> bool {
        let mut news: Option<News> = None;
        loop {
            if self.election.leads_until().is_some() {
                return true;
            }
            let acted = tokio::select! {
                biased;
                () = shutdown.cancelled() => return false,
                acted = self.step(&mut news) => acted,
            };
            if let Err(error) = acted {
                tracing::warn!(%error, "cannot take part in the election of the leader; trying again");
            }
        }
    }

    async fn step(&mut self, news: &mut Option<News>) -> Result<(), ApiError> {
        match self.election.next(Instant::now()) {
            Next::Look => self.look().await,
            write @ Next::Write { .. } => self.write(&write).await,
            Next::StepDown => {
                self.election.stepped_down();
                Ok(())
            }
            Next::Wait { until } => {
                // Opened when there is somebody to follow, not before.
                let stream = news.get_or_insert_with(|| changes(self.api.clone()));
                tokio::select! {
                    () = sleep_until(until) => {}
                    change = stream.next() => match change {
                        Some(lease) => self.election.saw(Instant::now(), lease.as_ref().and_then(lease::read)),
                        None => *news = None,
                    },
                }
                Ok(())
            }
        }
    }

    async fn look(&mut self) -> Result<(), ApiError> {
        let what = format!("read Lease {}/{LEASE}", self.namespace);
        let seen = within(
            self.timing.call_limit,
            what,
            &self.endpoints,
            self.api.get_opt(LEASE),
        )
        .await;
        match seen {
            Ok(lease) => {
                self.election
                    .saw(Instant::now(), lease.as_ref().and_then(lease::read));
                Ok(())
            }
            Err(error) => {
                self.election.had_no_answer(Instant::now());
                Err(error)
            }
        }
    }

    async fn write(&mut self, next: &Next) -> Result<(), ApiError> {
        let Next::Write {
            replacing,
            transitions,
            acquiring,
        } = next
        else {
            return Ok(());
        };
        let holder = self.election.me().holder();
        if *acquiring {
            self.acquired = Some(MicroTime(Timestamp::now()));
        }
        let mut lease = lease::held(
            &self.namespace,
            &holder,
            replacing.as_deref(),
            *transitions,
            &self.timing,
        );
        if let Some(spec) = &mut lease.spec {
            spec.acquire_time.clone_from(&self.acquired);
        }
        let verb = if *acquiring { "take" } else { "renew" };
        let what = format!("{verb} Lease {}/{LEASE}", self.namespace);
        let sent_at = Instant::now();
        let params = PostParams::default();
        let written = if replacing.is_some() {
            within(
                self.timing.call_limit,
                what,
                &self.endpoints,
                self.api.replace(LEASE, &params, &lease),
            )
            .await
        } else {
            within(
                self.timing.call_limit,
                what,
                &self.endpoints,
                self.api.create(&params, &lease),
            )
            .await
        };
        match written.map(|lease| lease::read(&lease)) {
            Ok(Some(record)) => {
                self.election.wrote(sent_at, Instant::now(), record);
                Ok(())
            }
            // A server that answers with a Lease without a spec is none that can be relied on.
            Ok(None) => {
                self.election.had_no_answer(Instant::now());
                Ok(())
            }
            Err(error) if error.is_conflict() || error.is_not_found() => {
                self.election.lost_the_race(Instant::now());
                Ok(())
            }
            Err(error) => {
                self.election.had_no_answer(Instant::now());
                Err(error)
            }
        }
    }

    async fn lead<F, W>(&mut self, shutdown: &CancellationToken, work: &F) -> Result<Ended, LeaderError>
    where
        F: Fn(Leadership) -> W,
        W: Future<Output = Result<(), BoxError>> + Send + 'static,
    {
        let epoch = self.election.epoch();
        let deadline = self.election.leads_until().unwrap_or_else(Instant::now);
        let (renewed, until) = watch::channel(deadline);
        let token = CancellationToken::new();
        tracing::info!(epoch, "leading");
        (self.observer)(Some(epoch));
        let leadership = Leadership {
            epoch,
            token: token.clone(),
            until,
        };
        let task = Task(tokio::spawn(work(leadership)));
        let ended = self.keep(shutdown, &token, task, &renewed).await;
        token.cancel();
        ended
    }

    /// Renews while the task runs.
    async fn keep(
        &mut self,
        shutdown: &CancellationToken,
        token: &CancellationToken,
        mut task: Task,
        renewed: &watch::Sender<Instant>,
    ) -> Result<Ended, LeaderError> {
        let farewell = async {
            shutdown.cancelled().await;
            token.cancel();
            sleep(FAREWELL).await;
        };
        tokio::pin!(farewell);
        loop {
            let Some(deadline) = self.election.leads_until() else {
                return self.lose(token, task).await;
            };
            renewed.send_replace(deadline);
            tokio::select! {
                biased;
                ended = &mut task.0 => return finished(ended),
                () = sleep_until(deadline) => self.election.stepped_down(),
                () = &mut farewell => {
                    tracing::warn!("the work did not end within {} s of the request to shut down", FAREWELL.as_secs());
                    return self.lose(token, task).await;
                }
                acted = self.renew() => if let Err(error) = acted {
                    tracing::warn!(%error, "cannot renew the leader's lease; trying again");
                },
            }
        }
    }

    async fn renew(&mut self) -> Result<(), ApiError> {
        match self.election.next(Instant::now()) {
            Next::Look => self.look().await,
            write @ Next::Write { .. } => self.write(&write).await,
            Next::Wait { until } => {
                sleep_until(until).await;
                Ok(())
            }
            Next::StepDown => {
                self.election.stepped_down();
                Ok(())
            }
        }
    }

    async fn lose(&self, token: &CancellationToken, mut task: Task) -> Result<Ended, LeaderError> {
        token.cancel();
        tracing::error!("the leader's lease is lost; stopping its work");
        match timeout(self.timing.stop_within, &mut task.0).await {
            Ok(Err(error)) => Err(LeaderError::Panicked(error)),
            Ok(Ok(ended)) => {
                if let Err(error) = ended {
                    tracing::info!(%error, "the work stopped");
                }
                Ok(Ended::Lost)
            }
            Err(_) => {
                let error = LeaderError::Outlived(self.timing.stop_within);
                tracing::error!(%error, "ending this process, so that two never act at once");
                (self.exit)(EXIT_WORK_OUTLIVED_LEASE);
                Err(error)
            }
        }
    }

    /// Empties the lease, so that another takes it at once. Failing at that costs the other a wait.
    async fn release(&mut self) {
        let Some(record) = self.election.record().cloned() else {
            return;
        };
        if record.holder.as_deref() != Some(self.election.me().holder().as_str()) {
            return;
        }
        let lease = lease::released(&self.namespace, &record, &self.timing);
        let what = format!("release Lease {}/{LEASE}", self.namespace);
        let params = PostParams::default();
        let call = self.api.replace(LEASE, &params, &lease);
        match within(self.timing.call_limit, what, &self.endpoints, call).await {
            Ok(_) => tracing::info!("the leader's lease is released"),
            Err(error) => tracing::warn!(%error, "another takes over when the lease expires"),
        }
    }
}

/// Takes part in the election and runs `work` while leading; see [`Candidate::run`].
///
/// # Errors
/// See [`Candidate::run`].
pub async fn run_while_leader<F, W>(
    candidate: Candidate,
    shutdown: CancellationToken,
    work: F,
) -> Result<(), LeaderError>
where
    F: Fn(Leadership) -> W,
    W: Future<Output = Result<(), BoxError>> + Send + 'static,
{
    candidate.run(shutdown, work).await
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    ByItself,
    Lost,
}

fn finished(ended: Result<Result<(), BoxError>, tokio::task::JoinError>) -> Result<Ended, LeaderError> {
    match ended {
        Ok(Ok(())) => Ok(Ended::ByItself),
        Ok(Err(error)) => Err(LeaderError::Work(error)),
        Err(error) => Err(LeaderError::Panicked(error)),
    }
}

/// Aborted when dropped: the work never outlives the candidate.
struct Task(JoinHandle<Result<(), BoxError>>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

type News = BoxStream<'static, Option<Lease>>;

/// The lease each time it changes; `None` when it is gone. Errors are waited out: the lease duration
/// runs meanwhile, and a write against a version that is not the newest is refused.
fn changes(api: Api<Lease>) -> News {
    let config = watcher::Config::default().fields(&format!("metadata.name={LEASE}"));
    watcher(api, config)
        .filter_map(|event| async {
            match event {
                Ok(watcher::Event::Apply(lease) | watcher::Event::InitApply(lease)) => Some(Some(lease)),
                Ok(watcher::Event::Delete(_)) => Some(None),
                Ok(watcher::Event::Init | watcher::Event::InitDone) => None,
                Err(error) => {
                    tracing::debug!(error = %crate::api::chain(&error), "watch of the leader's lease");
                    sleep(Duration::from_secs(2)).await;
                    None
                }
            }
        })
        .boxed()
}
