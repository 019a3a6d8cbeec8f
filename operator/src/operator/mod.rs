//! The operator: observes the cluster, asks the planner, writes intent.
//!
//! What comes in: watches, and answers of API servers. What goes out: tickets, statuses, events, metrics.
//! May touch: the API. It holds no etcd key and touches no host.
//!
//! | room | what it does |
//! | --- | --- |
//! | [`run`] | telemetry, election, and the work between them |
//! | [`leader`] | one operator acts, the others wait |
//! | [`gates`] | is the control plane whole, asked of each API server |
//! | `conductor` | the loop: look, plan, do one thing, tell |
//! | `cache`, `freshness`, `gating` | what is looked at: objects, their age, rounds of gates |
//! | `wanted`, `sight` | from objects to what the planner is told; pure |
//! | `act` | doing what was decided; one object each |
//! | `status`, `tell` | what people and tools are told |
//! | `backups` | who takes a backup; pure |
//! | `schedules` | begins scheduled backups, lets old ones go |
//! | `cutovers` | moves traffic between clusters, where that is enabled |
//! | `restores` | begins restores, says the words, tells how they ended |

mod act;
mod backups;
mod cache;
mod conductor;
mod cutovers;
mod freshness;
pub mod gates;
mod gating;
pub mod leader;
mod restores;
mod run;
mod schedules;
mod sight;
mod status;
mod tell;
mod wanted;

pub use run::{Context, OperatorConfig, RunError, run};

use std::sync::Arc;
use std::time::Duration;

use tower::BoxError;

use leader::Leadership;

/// A pass lasts seconds; a loop that has not come round for so long hangs, and its kubelet restarts it.
const PASS_LIMIT: Duration = Duration::from_secs(180);

/// The leader's work, until its token is cancelled.
async fn work(context: Context, leadership: Leadership) -> Result<(), BoxError> {
    let cache = Arc::new(cache::Cache::start(&context.api.client(), &context.namespace));
    tokio::select! {
        () = leadership.token.cancelled() => return Ok(()),
        ready = cache.ready() => ready?,
    }
    let teller = tell::Teller {
        metrics: Arc::clone(&context.metrics),
        events: context.events.clone(),
        pulse: context.health.pulse("work", PASS_LIMIT),
    };
    let hands = act::Hands {
        api: context.api.clone(),
        namespace: context.namespace.clone(),
    };
    let scheduled = schedules::Teller {
        metrics: Arc::clone(&context.metrics),
        events: context.events.clone(),
        pulse: context.health.pulse("schedules", PASS_LIMIT),
    };
    let restored = restores::Teller {
        metrics: Arc::clone(&context.metrics),
        events: context.events.clone(),
        pulse: context.health.pulse("restores", PASS_LIMIT),
    };
    let restores = restores::Keeper::new(hands.clone(), Arc::clone(&cache), leadership.clone(), restored);
    let keeper = schedules::Keeper::new(hands.clone(), Arc::clone(&cache), leadership.clone(), scheduled);
    let conductor = conductor::Conductor::new(
        hands.clone(),
        cache,
        Arc::clone(&context.gates),
        leadership.clone(),
        teller,
    );
    let cutovers = context.cutovers.then(|| cutovers::Keeper {
        hands: hands.clone(),
        leadership: leadership.clone(),
        teller: cutovers::Teller {
            metrics: Arc::clone(&context.metrics),
            events: context.events.clone(),
        },
        pulse: context.health.pulse("cutovers", PASS_LIMIT),
    });
    let cutovers = async {
        if let Some(keeper) = cutovers {
            keeper.run().await;
        }
    };
    tokio::join!(conductor.run(), keeper.run(), restores.run(), cutovers);
    Ok(())
}
