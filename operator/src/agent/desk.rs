//! One preflight at a time, never beside a ticket.

use std::time::Duration;

use lockkeeper_crds::{PreflightReport, PreflightRequest};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::preflight::{self, Bench};

/// A cancelled round takes its manifest off at once; more than that the agent's end does not wait for.
const CLOSING: Duration = Duration::from_secs(10);

/// Starts, cancels and remembers preflights.
pub(crate) struct Desk {
    bench: Bench,
    report: watch::Sender<Option<PreflightReport>>,
    round: Option<Round>,
}

struct Round {
    /// What it answers; none for a round that must be made again.
    asked: Option<PreflightRequest>,
    cancel: CancellationToken,
    task: Option<JoinHandle<()>>,
}

impl Desk {
    pub(crate) fn new(bench: Bench) -> Self {
        let (report, _) = watch::channel(None);
        Self {
            bench,
            report,
            round: None,
        }
    }

    pub(crate) fn reports(&self) -> watch::Receiver<Option<PreflightReport>> {
        self.report.subscribe()
    }

    /// Brings the round in hand in line with the request.
    ///
    /// `known` is the report that stands in the API: a round that was done before the agent was restarted is
    /// not made again. `busy`: a ticket is in hand, and its node is not to be burdened or looked at.
    pub(crate) fn attend(
        &mut self,
        request: Option<&PreflightRequest>,
        known: Option<&PreflightReport>,
        busy: bool,
    ) {
        let Some(request) = request else { return };
        if let Some(round) = &mut self.round {
            let over = round.task.as_ref().is_none_or(JoinHandle::is_finished);
            if busy && !over {
                round.cancel.cancel();
                // Not done, so it begins again when the ticket has ended.
                round.asked = None;
                return;
            }
            if round.asked.as_ref() == Some(request) {
                return;
            }
        } else if let Some(done) =
            known.filter(|report| report.id == request.id && report.rollout == request.rollout && report.done)
        {
            self.report.send_replace(Some(done.clone()));
            self.round = Some(Round {
                asked: Some(request.clone()),
                cancel: CancellationToken::new(),
                task: None,
            });
            return;
        }
        if busy {
            return;
        }
        self.begin(request.clone());
    }

    fn begin(&mut self, request: PreflightRequest) {
        let former = self.round.take().and_then(|round| {
            round.cancel.cancel();
            round.task
        });
        let cancel = CancellationToken::new();
        let (bench, report, token) = (self.bench.clone(), self.report.clone(), cancel.clone());
        let asked = Some(request.clone());
        let task = tokio::spawn(async move {
            if let Some(former) = former {
                // It takes its own rehearsal off before this one begins.
                let _ = former.await;
            }
            preflight::run(bench, request, report, token).await;
        });
        self.round = Some(Round {
            asked,
            cancel,
            task: Some(task),
        });
    }

    /// Cancels what is in hand and waits, within bounds, until it has cleaned up.
    pub(crate) async fn close(&mut self) {
        if let Some(round) = self.round.take() {
            round.cancel.cancel();
            if let Some(task) = round.task {
                let _ = tokio::time::timeout(CLOSING, task).await;
            }
        }
    }
}
