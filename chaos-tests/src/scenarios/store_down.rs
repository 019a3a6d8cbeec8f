//! The object store refuses, hangs, then cuts every upload: no snapshot, no upgrade, and nothing in the bucket that
//! could be taken for one.
//!
//! Seen failing: a planner that goes on without a snapshot ("it settled as Completed, not Blocked").

use std::time::Duration;

use anyhow::{Result, ensure};
use futures::FutureExt;
use lockkeeper_crds::{CheckResult, ClusterVersionStatus, EtcdBackup, State, Strategy};

use super::{Scenario, Suite};
use crate::lockkeeper::{Keeper, as_before, manifests, published_backups, runs};
use crate::recipes::{START, TARGET};
use crate::s3_proxy::Mode;
use crate::scene::{Look, Scene};

/// The scenario.
pub(super) const SCENARIO: Scenario = Scenario {
    name: "store-down",
    about: "S3 refuses, hangs, cuts: the upgrade waits and says why; it starts once the store is back",
    suite: Suite::Quick,
    minutes: 3,
    lab: super::three_nodes,
    leaves_clean: true,
    play: |scene| play(scene).boxed_local(),
};

const MINUTE: Duration = Duration::from_secs(60);
/// Small objects go through, a snapshot does not.
const CUT: u64 = 100_000;

async fn play(scene: &Scene) -> Result<String> {
    let keeper = Keeper::at_start(scene, Strategy::default()).await?;
    let before = manifests(&scene.lab)?;
    let played = faults(scene, &keeper).await;
    scene.lab.s3(Mode::Pass)?;
    let said = played?;
    ensure!(
        manifests(&scene.lab)? == before,
        "a manifest was changed without a snapshot"
    );

    let stored = |s: &ClusterVersionStatus| {
        s.state == State::Rolling
            && s.snapshot
                .as_ref()
                .is_some_and(|snapshot| snapshot.stored_at.is_some())
    };
    keeper
        .reaches("the upgrade to start by itself", MINUTE * 8, stored)
        .await?;
    let published = published_backups(scene).await?;
    ensure!(
        !published.is_empty(),
        "it started without a snapshot in the bucket"
    );
    keeper.back_to_start().await?;
    runs(scene, START).await?;
    as_before(&scene.lab, &before)?;
    Ok(said)
}

async fn faults(scene: &Scene, keeper: &Keeper<'_>) -> Result<String> {
    scene.say("S3: refuses");
    scene.lab.s3(Mode::Refuse)?;
    let known: Vec<String> = keeper.backups().await?.iter().map(name).collect();
    keeper.bump(TARGET).await?;
    let status = keeper.settles("Blocked", MINUTE * 5).await?;
    let refused = store_check(&status)?;
    scene.say(&refused);
    let asked = status.rollout.map_or(0, |rollout| rollout.preflight_id);

    scene.say("S3: hangs");
    scene.lab.s3(Mode::Hang)?;
    // The round under way may have met the refusal still: the one after it has not.
    let again = |s: &ClusterVersionStatus| {
        s.state == State::Blocked && s.rollout.as_ref().is_some_and(|r| r.preflight_id >= asked + 2)
    };
    let status = keeper
        .reaches("two more rounds of checks", MINUTE * 8, again)
        .await?;
    scene.say(store_check(&status)?);

    scene.say(format_args!("S3: cuts every connection after {CUT} bytes"));
    // What earlier scenarios in this lab left does not count.
    scene.lab.s3(Mode::Pass)?;
    let published = published_backups(scene).await?;
    scene.lab.s3(Mode::CutAfter { bytes: CUT })?;
    let why = scene
        .wait_for("a snapshot to fail", MINUTE * 10, || async {
            let status = keeper.status().await?;
            let went_ahead = status.state == State::Rolling;
            let backups = keeper.backups().await?;
            let mut fresh = backups.iter().filter(|backup| !known.contains(&name(backup)));
            Ok(match fresh.find_map(failure) {
                Some(why) => Look::Done(Ok(why)),
                None if went_ahead => Look::Done(Err("it went ahead without a snapshot")),
                None => Look::NotYet(format!("{:?}: {}", status.state, status.summary)),
            })
        })
        .await?
        .map_err(anyhow::Error::msg)?;
    scene.say(format_args!("the snapshot failed: {why}"));
    let status = keeper.status().await?;
    ensure!(status.state != State::Rolling, "it went ahead without a snapshot");
    // Asked while it still cuts, which a list is too small for: the next attempt may succeed once it does not.
    let after = published_backups(scene).await?;
    scene.lab.s3(Mode::Pass)?;
    ensure!(
        after == published,
        "half a snapshot counts as a backup: {after:?}"
    );
    Ok(refused)
}

fn name(backup: &EtcdBackup) -> String {
    backup.metadata.name.clone().unwrap_or_default()
}

/// Why a backup failed, if it did.
fn failure(backup: &EtcdBackup) -> Option<String> {
    let status = backup.status.as_ref()?;
    let condition = status
        .conditions
        .iter()
        .find(|c| c.type_ == "Succeeded" && c.status == "False")?;
    Some(condition.message.clone())
}

fn store_check(status: &ClusterVersionStatus) -> Result<String> {
    let check = status
        .preflight
        .iter()
        .find(|check| check.name == "Store" && check.result >= CheckResult::Unknown);
    match check {
        Some(check) => Ok(check.message.clone()),
        None => anyhow::bail!("no check Store stops it: {:?}", status.preflight),
    }
}
