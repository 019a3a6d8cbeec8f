//! What an agent writes into the status of an `EtcdBackup`.
//!
//! Each write carries the resource version that it was decided upon: a verdict of another writer (the operator
//! gave the backup up; a person deleted it) is never overwritten.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt as _;
use kube::api::{Api, Patch, PatchParams};
use lockkeeper_crds::{
    Artifact, EtcdBackup, EtcdBackupStatus, Findings, Proof, Tried, Tristate, condition, set_condition,
};
use tokio_util::sync::CancellationToken;

use super::take::TakeError;
use crate::store::Manifest;

/// Longest that one call of the API may take.
const API_LIMIT: Duration = Duration::from_secs(10);

/// Between two tries to write an end while the API is away. It may well be: upgrades are what backups are for.
const RETRY: Duration = Duration::from_secs(5);

/// How often the word of a proof is tried to be written: it took minutes, and is made again otherwise.
const PROOF_TRIES: u32 = 12;

const SUCCEEDED: &str = "Succeeded";
const STORED: &str = "Stored";
const DELETED: &str = "Deleted";

/// What became of a write.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Written {
    /// It is there.
    Yes,
    /// Somebody else changed the object meanwhile.
    Conflict,
    /// The object is gone.
    Gone,
}

/// One `EtcdBackup`, and the means to write its status.
pub(super) struct Report {
    api: Api<EtcdBackup>,
    pub(super) backup: EtcdBackup,
}

impl Report {
    /// Reads the object as it is now.
    pub(super) async fn read(api: &Api<EtcdBackup>, name: &str) -> Result<Option<Self>, String> {
        let backup = within(api.get_opt(name)).await?;
        Ok(backup.map(|backup| Self {
            api: api.clone(),
            backup,
        }))
    }

    pub(super) fn status(&self) -> EtcdBackupStatus {
        self.backup.status.clone().unwrap_or_default()
    }

    pub(super) fn name(&self) -> String {
        self.backup.name_any()
    }

    /// True when this node's agent has to do something about it.
    pub(super) fn ours(backup: &EtcdBackup, node: &str) -> bool {
        backup.metadata.deletion_timestamp.is_none()
            && !backup.is_handed_back()
            && backup
                .status
                .as_ref()
                .is_some_and(|s| s.node.as_deref() == Some(node) && s.completed_at.is_none())
    }

    /// Begins.
    pub(super) async fn claim(&mut self) -> Result<Written, String> {
        let mut conditions = self.status().conditions;
        let message = "begun";
        set_condition(
            &mut conditions,
            self.condition(SUCCEEDED, Tristate::Unknown, "Running", message),
        );
        self.write(serde_json::json!({
            "startedAt": Time(Timestamp::now()),
            "streamedBytes": 0,
            "message": message,
            "conditions": conditions,
        }))
        .await
    }

    /// How far it is. What fails here is not worth a word: the next one, or the end, says more.
    pub(super) async fn progress(&mut self, bytes: u64) {
        let message = format!("{} MiB streamed", bytes / (1024 * 1024));
        match self
            .write(serde_json::json!({ "streamedBytes": bytes, "message": message }))
            .await
        {
            Ok(Written::Conflict) => {
                let name = self.name();
                if let Ok(Some(fresh)) = Self::read(&self.api, &name).await
                    && fresh.status().completed_at.is_none()
                {
                    self.backup = fresh.backup;
                }
            }
            Ok(Written::Yes | Written::Gone) => {}
            Err(error) => tracing::debug!(%error, "the progress of a backup could not be written"),
        }
    }

    /// Writes the end, however long the API is away, until `cancel`. False when it is not written: cancelled,
    /// the object gone, or somebody else's end already there.
    pub(super) async fn finish(self, end: &Result<Artifact, TakeError>, cancel: &CancellationToken) -> bool {
        self.settle(|report| report.end(end), cancel).await
    }

    /// Writes what its manifest says, of one that lay in the store already; in the same way.
    pub(super) async fn adopted(self, artifact: &Artifact, manifest: &Manifest, cancel: &CancellationToken) {
        let write = |report: &Self| {
            let mut status = report.end(&Ok(artifact.clone()));
            if let Some(status) = status.as_object_mut() {
                status.insert("startedAt".to_owned(), serde_json::json!(manifest.started_at));
                status.insert("completedAt".to_owned(), serde_json::json!(manifest.completed_at));
            }
            status
        };
        self.settle(write, cancel).await;
    }

    /// Says that what it stored is gone. Nothing is written twice.
    pub(super) async fn gone(&mut self, message: &str) -> Result<Written, String> {
        let mut conditions = self.status().conditions;
        set_condition(
            &mut conditions,
            self.condition(STORED, Tristate::False, "Gone", message),
        );
        self.write(serde_json::json!({ "message": message, "conditions": conditions }))
            .await
    }

    /// Gives it back to the operator, since this node's member cannot be read; in the same way. `status.node` stays:
    /// no agent may change it, and that it is among `tried` says that the operator shall.
    pub(super) async fn hand_back(self, node: &str, why: &TakeError, cancel: &CancellationToken) -> bool {
        let write = |report: &Self| {
            let mut tried = report.status().tried;
            tried.push(Tried {
                node: node.to_owned(),
                reason: why.reason().to_owned(),
                message: why.to_string(),
            });
            serde_json::json!({
                "startedAt": null, "streamedBytes": null, "tried": tried,
                "message": format!("{node}: {why}; another member is asked"),
            })
        };
        self.settle(write, cancel).await
    }

    async fn settle(
        mut self,
        status: impl Fn(&Self) -> serde_json::Value,
        cancel: &CancellationToken,
    ) -> bool {
        let name = self.name();
        loop {
            match self.write(status(&self)).await {
                Ok(Written::Yes) => return true,
                Ok(Written::Gone) => return false,
                Ok(Written::Conflict) => match Self::read(&self.api, &name).await {
                    Ok(Some(fresh)) if fresh.status().completed_at.is_none() => {
                        self = fresh;
                        continue;
                    }
                    Ok(_) => return false,
                    Err(error) => tracing::warn!(backup = %name, %error, "its end could not be written yet"),
                },
                Err(error) => tracing::warn!(backup = %name, %error, "its end could not be written yet"),
            }
            tokio::select! {
                () = tokio::time::sleep(RETRY) => {}
                () = cancel.cancelled() => return false,
            }
        }
    }

    /// Whether what it stored is gone, of an object that waits for that. Nothing is written twice.
    pub(super) async fn deleted(
        &mut self,
        gone: Tristate,
        reason: &str,
        message: &str,
    ) -> Result<Written, String> {
        let mut conditions = self.status().conditions;
        let new = self.condition(DELETED, gone, reason, message);
        // Not the message: it may hold a duration.
        let same = |c: &Condition| (&c.type_, &c.status, &c.reason) == (&new.type_, &new.status, &new.reason);
        if conditions.iter().any(same) {
            return Ok(Written::Yes);
        }
        set_condition(&mut conditions, new);
        self.write(serde_json::json!({ "message": message, "conditions": conditions }))
            .await
    }

    /// How far its proof has come. Nothing is written twice, and a word of another writer is not lost.
    pub(super) async fn proof(
        &mut self,
        level: Proof,
        reached: Tristate,
        reason: &str,
        message: &str,
        findings: Option<&Findings>,
    ) -> Result<Written, String> {
        let name = self.name();
        let mut tries = 0;
        loop {
            let mut conditions = self.status().conditions;
            let new = self.condition(level.name(), reached, reason, message);
            let same =
                |c: &Condition| (&c.type_, &c.status, &c.reason) == (&new.type_, &new.status, &new.reason);
            if conditions.iter().any(same) {
                return Ok(Written::Yes);
            }
            set_condition(&mut conditions, new);
            let mut status = serde_json::json!({ "message": message, "conditions": conditions });
            if let (Some(findings), Some(status)) = (findings, status.as_object_mut()) {
                status.insert("findings".to_owned(), serde_json::json!(findings));
            }
            tries += 1;
            match self.write(status).await {
                Ok(Written::Conflict) if tries < PROOF_TRIES => {}
                Err(_) if tries < PROOF_TRIES => tokio::time::sleep(RETRY).await,
                other => return other,
            }
            match Self::read(&self.api, &name).await {
                Ok(Some(fresh)) if fresh.backup.metadata.uid == self.backup.metadata.uid => {
                    self.backup = fresh.backup
                }
                Ok(_) => return Ok(Written::Gone),
                Err(error) => tracing::debug!(%error, "a backup cannot be read"),
            }
        }
    }

    fn end(&self, end: &Result<Artifact, TakeError>) -> serde_json::Value {
        let mut conditions = self.status().conditions;
        let now = Time(Timestamp::now());
        match end {
            Ok(artifact) => {
                let message = format!("{} bytes at {}", artifact.size_bytes, artifact.uri);
                let stored = "read back, size and SHA-256 equal";
                set_condition(
                    &mut conditions,
                    self.condition(STORED, Tristate::True, "ReadBack", stored),
                );
                set_condition(
                    &mut conditions,
                    self.condition(SUCCEEDED, Tristate::True, "Stored", &message),
                );
                serde_json::json!({
                    "completedAt": now,
                    "streamedBytes": artifact.size_bytes,
                    "message": message,
                    "artifact": artifact,
                    "conditions": conditions,
                })
            }
            Err(e) => {
                let message = e.to_string();
                set_condition(
                    &mut conditions,
                    self.condition(SUCCEEDED, Tristate::False, e.reason(), &message),
                );
                serde_json::json!({
                    "completedAt": now,
                    "message": message,
                    "conditions": conditions,
                })
            }
        }
    }

    fn condition(&self, type_: &str, status: Tristate, reason: &str, message: &str) -> Condition {
        let generation = self.backup.metadata.generation;
        condition(type_, status, reason, message, generation, Time(Timestamp::now()))
    }

    async fn write(&mut self, status: serde_json::Value) -> Result<Written, String> {
        let name = self.name();
        let patch = Patch::Merge(serde_json::json!({
            "metadata": {
                "resourceVersion": self.backup.metadata.resource_version,
                // Another object of the same name is not ours to write on.
                "uid": self.backup.metadata.uid,
            },
            "status": status,
        }));
        let params = PatchParams::default();
        let call = self.api.patch_status(&name, &params, &patch);
        match tokio::time::timeout(API_LIMIT, call).await {
            Ok(Ok(backup)) => {
                self.backup = backup;
                Ok(Written::Yes)
            }
            Ok(Err(kube::Error::Api(status))) if status.code == 409 => Ok(Written::Conflict),
            Ok(Err(kube::Error::Api(status))) if status.code == 404 => Ok(Written::Gone),
            Ok(Err(e)) => Err(e.to_string()),
            Err(_) => Err(no_answer()),
        }
    }
}

/// An API call, with its deadline and its error as a line of text for the log.
pub(super) async fn within<T>(call: impl Future<Output = kube::Result<T>>) -> Result<T, String> {
    match tokio::time::timeout(API_LIMIT, call).await {
        Ok(answer) => answer.map_err(|e| e.to_string()),
        Err(_) => Err(no_answer()),
    }
}

fn no_answer() -> String {
    format!("the API did not answer within {} s", API_LIMIT.as_secs())
}
