//! The operator: observes the cluster, asks the planner, writes intent.
//!
//! | room | what it does |
//! | --- | --- |
//! | [`run`] | telemetry, election, and the work between them |
//! | [`leader`] | one operator acts, the others wait |
//! | [`gates`] | is the control plane whole, asked of each API server |

pub mod gates;
pub mod leader;
mod run;

pub use run::{Context, OperatorConfig, RunError, run};

use tower::BoxError;

use leader::Leadership;

/// The leader's work, until its token is cancelled.
async fn work(context: Context, leadership: Leadership) -> Result<(), BoxError> {
    tracing::info!(
        namespace = context.namespace,
        epoch = leadership.epoch,
        "no work is built in yet"
    );
    leadership.token.cancelled().await;
    Ok(())
}
