//! The agent is killed in every state of a ticket, on the way up and on the way back.
//!
//! Seen failing: with an agent that takes the scheduler's manifest away for 2 s when it finds a ticket in hand,
//! "cp2 was without kube-scheduler.yaml".

use anyhow::Result;
use futures::FutureExt;

use super::struck::{self, Blow};
use super::{Scenario, Suite};
use crate::scene::Scene;

/// The scenario.
pub(super) const SCENARIO: Scenario = Scenario {
    name: "agent-killed",
    about: "the agent is killed in every state of a ticket, up and back: never a node without its manifests",
    suite: Suite::Chaos,
    minutes: 15,
    lab: super::three_nodes,
    leaves_clean: false,
    play: |scene| play(scene).boxed_local(),
};

async fn play(scene: &Scene) -> Result<String> {
    struck::play(scene, Blow::KillAgent).await
}
