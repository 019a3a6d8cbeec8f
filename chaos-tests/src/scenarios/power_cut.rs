//! The whole node loses its power in every state of a ticket, on the way up and on the way back, and gets it
//! back five seconds later.
//!
//! Seen failing: without the guard, and with a guard that writes the old manifest and no bridge: the node never
//! gets its API server back.

use anyhow::Result;
use futures::FutureExt;

use super::struck::{self, Blow};
use super::{Scenario, Suite};
use crate::scene::Scene;

/// The scenario.
pub(super) const SCENARIO: Scenario = Scenario {
    name: "power-cut",
    about: "the node loses its power in every state of a ticket, up and back: never without its manifests",
    suite: Suite::Chaos,
    minutes: 20,
    lab: super::three_nodes,
    leaves_clean: false,
    play: |scene| play(scene).boxed_local(),
};

async fn play(scene: &Scene) -> Result<String> {
    struck::play(scene, Blow::CutPower).await
}
