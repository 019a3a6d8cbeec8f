//! Doing what was decided. Each deed checks its precondition again and may be repeated after a crash at any point.

use std::fs;
use std::io;

use chrono::{DateTime, TimeDelta, Utc};
use lockkeeper_crds::{RestoreMode, RestoreReport};
use lockkeeper_policies::restore::{Act, Part, Stage};

use super::journal::Entry;
use super::keys;
use super::place::Folders;
use super::{AFTERWARDS_LIMIT, ARMED_LIMIT, EngineError, LARGEST, Restorer, disk};
use crate::agent::etcd::Signature;
use crate::agent::host::{self, read_limited};
use crate::agent::manifest;

impl Restorer {
    pub(super) async fn perform(&mut self, entry: &Entry, act: Act) -> Result<(), EngineError> {
        let (host, id) = (&self.tools.host, entry.order.id.as_str());
        let folders = Folders::new(host, &entry.place, id);
        let member = &self.tools.member;
        match act {
            Act::Wait(_) => {}
            Act::Mark(stage, why) => self.enter(entry, stage, why).await?,
            Act::TakeOff(part) => self.take_off(entry, part)?,
            Act::PutOn(part) => self.put_on(entry, part)?,
            Act::SwapIn => {
                folders.swap_in().map_err(disk("the data cannot be exchanged"))?;
                tracing::info!(restore = entry.order.name, "the restored data is in place");
            }
            Act::SwapOut => {
                folders.swap_out().map_err(disk("the data cannot be exchanged"))?;
                tracing::info!(restore = entry.order.name, "the data of before is back in place");
            }
            Act::SignUp => drop(member.sign(id, Signature::Up, &entry.node).await?),
            Act::SignReady => drop(member.sign(id, Signature::Ready, &entry.node).await?),
            Act::Cleanse => {
                let done = member.cleanse(id).await?;
                let mut next = entry.clone();
                let report = next.report.get_or_insert_with(RestoreReport::default);
                report.cleansed = report.cleansed.max(done.keys);
                report.disarmed.extend(done.alarms);
                self.save(next)?;
            }
            Act::Propose(decision) => {
                let written = member.propose(id, decision, &entry.nodes()).await?;
                tracing::info!(?decision, written, "proposed");
            }
        }
        Ok(())
    }

    /// What goes with entering a stage, then the stage.
    pub(super) async fn enter(
        &mut self,
        entry: &Entry,
        stage: Stage,
        why: String,
    ) -> Result<(), EngineError> {
        let mut next = entry.clone();
        match stage {
            Stage::Armed => {
                // What was there when it was prepared may have been taken from the agent since.
                if !self.is_guarded() {
                    return Err(EngineError::NoGuard);
                }
                if entry.order.counts {
                    self.list_keys(entry, "before").await;
                }
            }
            Stage::Going => {
                for part in Part::ALL {
                    let bytes = self
                        .manifest(part)
                        .map_err(disk(format!("{part}.yaml cannot be read")))?;
                    self.store.keep(&entry.order.id, part, &bytes)?;
                    next.manifests.insert(part, manifest::hash(&bytes));
                }
            }
            Stage::Done => {
                next.revision_after = self.register(entry).await.map(|r| r.revision);
                self.complete_report(&mut next).await;
            }
            _ => {}
        }
        self.mark(&next, stage, why)
    }

    pub(super) fn mark(&mut self, entry: &Entry, stage: Stage, why: String) -> Result<(), EngineError> {
        let now = Utc::now();
        // Why it goes back is the reason that it went back, too.
        let keeps = stage == Stage::Undone && why.is_empty();
        let next = Entry {
            stage,
            since: now,
            deadline: deadline(entry, stage, now),
            message: if keeps { entry.message.clone() } else { why },
            ..entry.clone()
        };
        let clears = stage
            .is_end()
            .then(|| Folders::new(&self.tools.host, &entry.place, &entry.order.id));
        self.save(next)?;
        if let Some(folders) = clears
            && let Err(error) = folders.clear()
        {
            // Cleared before the next restore at the latest.
            tracing::warn!(%error, "what was prepared is not removed");
        }
        Ok(())
    }

    /// Saves the journal with this entry; only then is it true.
    pub(super) fn save(&mut self, entry: Entry) -> Result<(), EngineError> {
        let Ok(journal) = &self.journal else {
            return Ok(());
        };
        let next = journal.with(entry);
        self.store.save(&next)?;
        if let Some(entry) = &next.entry {
            tracing::info!(restore = entry.order.name, stage = ?entry.stage, message = entry.message, "restore");
        }
        self.journal = Ok(next);
        Ok(())
    }

    fn manifest_path(&self, part: Part) -> std::path::PathBuf {
        self.tools.host.manifests().join(format!("{part}.yaml"))
    }

    fn manifest(&self, part: Part) -> io::Result<Vec<u8>> {
        read_limited(&self.manifest_path(part), LARGEST)
    }

    /// Takes a manifest out of the kubelet's directory. Somebody's edit since the beginning is kept, not lost.
    pub(super) fn take_off(&mut self, entry: &Entry, part: Part) -> Result<(), EngineError> {
        let path = self.manifest_path(part);
        let bytes = self.manifest(part).map_err(disk(path.display().to_string()))?;
        let hash = manifest::hash(&bytes);
        if entry.manifests.get(&part) != Some(&hash) {
            self.store.keep(&entry.order.id, part, &bytes)?;
            let mut next = entry.clone();
            next.manifests.insert(part, hash);
            self.save(next)?;
        }
        host::remove(&path).map_err(disk(path.display().to_string()))?;
        tracing::info!(%part, "taken off");
        Ok(())
    }

    /// Puts a manifest back to the byte: the kubelet then takes it for the same pod.
    pub(super) fn put_on(&self, entry: &Entry, part: Part) -> Result<(), EngineError> {
        let path = self.manifest_path(part);
        if path.exists() {
            return Ok(());
        }
        let bytes = self.store.kept(entry, part)?;
        host::replace(&path, &bytes, 0o600).map_err(disk(path.display().to_string()))?;
        tracing::info!(%part, "put back");
        Ok(())
    }

    fn keys_file(&self, entry: &Entry, age: &str) -> std::path::PathBuf {
        let own = self.tools.host.state().join("restores").join(&entry.order.id);
        own.join(format!("keys.{age}"))
    }

    /// For the report only: a restore does not fail for it.
    async fn list_keys(&self, entry: &Entry, age: &str) {
        let path = self.keys_file(entry, age);
        let made = path.parent().map(host::create_directory);
        if let Some(Err(error)) = made {
            tracing::warn!(%error, "the keys cannot be listed");
        } else if let Err(error) = keys::list(&self.tools.member, &path).await {
            tracing::warn!(error, "the keys cannot be listed");
            let _ = fs::remove_file(&path);
        }
    }

    async fn complete_report(&self, entry: &mut Entry) {
        if entry.order.mode != RestoreMode::InPlace {
            return;
        }
        let mut report = entry.report.take().unwrap_or_default();
        let own = Folders::inside(&entry.place, &entry.order.id);
        report.kept_at = own.join("before").display().to_string();
        let (before, after) = (self.keys_file(entry, "before"), self.keys_file(entry, "after"));
        if before.exists() {
            self.list_keys(entry, "after").await;
            match keys::compare(&before, &after) {
                Ok(found) => {
                    report = RestoreReport {
                        cleansed: report.cleansed,
                        disarmed: report.disarmed,
                        kept_at: report.kept_at,
                        ..found
                    };
                }
                Err(error) => tracing::warn!(%error, "what changed cannot be told"),
            }
            for path in [before, after] {
                let _ = fs::remove_file(path);
            }
        }
        entry.report = Some(report);
    }
}

fn deadline(entry: &Entry, stage: Stage, now: DateTime<Utc>) -> DateTime<Utc> {
    let seconds = |s: u32| TimeDelta::seconds(s.into());
    let limits = &entry.order.deadlines;
    match stage {
        Stage::Preparing => now + seconds(limits.prepare_seconds),
        Stage::Prepared => now + seconds(limits.confirm_seconds),
        Stage::Armed => now + ARMED_LIMIT,
        Stage::Going => now + seconds(limits.ready_seconds),
        // The time until all are ready is one.
        Stage::Ready => entry.deadline,
        Stage::Committed => now + AFTERWARDS_LIMIT,
        Stage::Undoing | Stage::Done | Stage::Undone | Stage::Dropped => now,
    }
}
