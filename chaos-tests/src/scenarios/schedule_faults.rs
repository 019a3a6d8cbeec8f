//! A backup every minute, the newest two kept: while the leading operator is killed, while both are away, while the
//! store refuses. No slot is doubled or, but for the time without any operator, missed; the bucket holds what the
//! status says and what is not the schedule's.
//!
//! Seen failing: with an engine that begins every missed slot in its order, "of the slots that passed meanwhile more than
//! one was begun".

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use chrono::{TimeDelta, Utc};
use futures::FutureExt;
use kube::api::{DeleteParams, ListParams};
use lockkeeper_crds::{EtcdBackupScheduleStatus, RETAIN_ANNOTATION, Strategy};
use serde_json::json;

use super::backup_schedule::stage::Stage;
use super::backup_schedule::watcher::{Watcher, consecutive, slot};
use super::backup_schedule::{MINUTE, NAME};
use super::{Scenario, Suite};
use crate::lockkeeper::Keeper;
use crate::s3_proxy::Mode;
use crate::scene::{Look, Scene};

/// The scenario.
pub(super) const SCENARIO: Scenario = Scenario {
    name: "schedule-faults",
    about: "a backup every minute: operators killed and away, a store that refuses; the bucket holds what is told",
    suite: Suite::Chaos,
    minutes: 14,
    lab: super::three_nodes,
    leaves_clean: true,
    play: |scene| play(scene).boxed_local(),
};

async fn play(scene: &Scene) -> Result<String> {
    let keeper = Keeper::at_start(scene, Strategy::default()).await?;
    let stage = Stage::set(scene, &keeper).await?;
    stage.schedule(&json!({})).await?;
    let watcher = Watcher::start(&stage);

    let begun = stage.three(&watcher).await?;
    stage.bucket_is_as_told().await?;
    scene.say(format_args!("begun so far: {begun}"));

    let killed = kill_leaders(&stage, &keeper).await?;
    let slots = watcher.so_far()?;
    consecutive(&slots)?;
    scene.say(format_args!("killed {killed} leaders; begun {}", slots.len()));

    let kept = stage.retain().await?;
    away(&stage, &watcher).await?;

    let told = refused(&stage).await?;
    stage.bucket_is_as_told().await?;
    let there = stage.own().await?;
    ensure!(
        there.contains_key(&kept),
        "{kept} was retained, and let go: {there:?}"
    );
    watcher.close()?;
    stage.clear(&kept).await?;
    Ok(format!(
        "{} backups begun over {killed} kills; {told}",
        slots.len()
    ))
}

/// Kills the leader around three slots, at random moments before and after them.
async fn kill_leaders(stage: &Stage<'_>, keeper: &Keeper<'_>) -> Result<usize> {
    let mut killed = 0;
    for round in 0..3 {
        let second = Utc::now().timestamp().rem_euclid(60);
        // From two seconds before to three after the slot.
        let wait = u64::try_from(58 - second).unwrap_or(60) * 1000 + stage.scene.below(5000);
        tokio::time::sleep(Duration::from_millis(wait)).await;
        let node = keeper.leader_node().await?;
        stage.scene.lab.kill(&node, "operator")?;
        killed += 1;
        stage.scene.say(format_args!(
            "round {round}: killed the leader on {node} at {}",
            Utc::now().format("%H:%M:%S%.3f")
        ));
        // The kubelet starts it again, or the other one leads: the slot is begun in any case.
        let since = Utc::now() - TimeDelta::seconds(3);
        let reached = |s: &EtcdBackupScheduleStatus| {
            s.last_success_time
                .as_ref()
                .is_some_and(|t| t.0.as_second() > since.timestamp())
        };
        stage
            .status("a backup after the kill", MINUTE * 3, reached)
            .await?;
    }
    Ok(killed)
}

/// Nobody operates for three minutes; of the slots that pass meanwhile the newest alone is caught up with.
async fn away(stage: &Stage<'_>, watcher: &Watcher) -> Result<()> {
    stage.scale(0)?;
    stage
        .scene
        .wait_for("the operators to be gone", MINUTE * 2, || async {
            let operators = ListParams::default().labels("app.kubernetes.io/component=operator");
            let left = stage.pods.list(&operators).await?.items.len();
            Ok(if left == 0 {
                Look::Done(())
            } else {
                Look::NotYet(format!("{left} left"))
            })
        })
        .await?;
    let from = Utc::now();
    stage.scene.say("no operator for three minutes");
    tokio::time::sleep(MINUTE * 3).await;
    let until = Utc::now();
    stage.scale(2)?;
    // Slots are begun in their order: with one of after that, no older one is to come.
    let caught_up = |s: &EtcdBackupScheduleStatus| {
        s.last_schedule_time
            .as_ref()
            .is_some_and(|t| t.0.as_second() > until.timestamp())
    };
    stage
        .status("a slot of after that to be begun", MINUTE * 4, caught_up)
        .await?;
    let passed = |name: &String| slot(name).is_some_and(|s| s > from.naive_utc() && s <= until.naive_utc());
    let made: Vec<String> = watcher.so_far()?.into_iter().filter(passed).collect();
    ensure!(
        made.len() <= 1,
        "of the slots that passed meanwhile more than one was begun: {made:?}"
    );
    Ok(())
}

/// The store refuses: what was deleted waits and says why, a backup fails, and no recovery point is let go.
async fn refused(stage: &Stage<'_>) -> Result<String> {
    let going = stage
        .status("two recovery points", MINUTE * 3, |s| {
            s.active.is_none() && s.recovery_points.count >= 2
        })
        .await?;
    // Far from a slot, so that none succeeds in between.
    let second = u64::try_from(Utc::now().timestamp().rem_euclid(60)).unwrap_or(0);
    tokio::time::sleep(Duration::from_secs((85 - second) % 60)).await;
    let going = stage.schedules.get(NAME).await?.status.unwrap_or(going);
    stage.scene.lab.s3(Mode::Refuse)?;
    let before = going.recovery_points.count;
    let own = stage.own().await?;
    let oldest = own.iter().find(|(_, b)| b.is_proven() && !b.is_retained());
    let (deleted, _) = oldest.context("nothing there to delete")?;
    stage.backups.delete(deleted, &DeleteParams::default()).await?;
    let why = stage
        .scene
        .wait_for(
            "the deleted backup to say why it cannot go",
            MINUTE * 4,
            || async {
                let backup = stage.backups.get(deleted).await?;
                let conditions = backup.status.map(|s| s.conditions).unwrap_or_default();
                let told = conditions
                    .into_iter()
                    .find(|c| c.type_ == "Deleted" && c.status == "False");
                Ok(told.map_or_else(|| Look::NotYet("nothing said".into()), |c| Look::Done(c.message)))
            },
        )
        .await?;
    ensure!(why.contains(RETAIN_ANNOTATION), "no way out is named: {why}");
    let failed = |s: &EtcdBackupScheduleStatus| s.consecutive_failures >= 1;
    let status = stage.status("a backup to fail", MINUTE * 5, failed).await;
    let points = stage
        .schedules
        .get(NAME)
        .await?
        .status
        .map_or(0, |s| s.recovery_points.count);
    stage.scene.lab.s3(Mode::Pass)?;
    let failing = status?;
    ensure!(
        points == before - 1,
        "{before} recovery points, one of them deleted, and then {points}"
    );
    ensure!(
        failing
            .conditions
            .iter()
            .any(|c| c.type_ == "Ready" && c.status == "False"),
        "it fails and is Ready"
    );
    stage
        .scene
        .wait_for("the deleted backup to go", MINUTE * 6, || async {
            Ok(match stage.backups.get_opt(deleted).await? {
                None => Look::Done(()),
                Some(_) => Look::NotYet("it is there".into()),
            })
        })
        .await?;
    stage
        .status("a success", MINUTE * 4, |s| s.consecutive_failures == 0)
        .await?;
    Ok(failing.message)
}
