//! Doing what was decided of schedules and their backups: one object each, refused when it was changed since.

use chrono::{DateTime, SecondsFormat, Utc};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions};
use lockkeeper_crds as crds;
use serde_json::json;

use crate::operator::act::{ActError, Hands};

impl Hands {
    fn schedules(&self) -> Api<crds::EtcdBackupSchedule> {
        Api::namespaced(self.api.client(), &self.namespace)
    }

    /// A schedule's backups as the API knows them now, not as a watch last told.
    pub(super) async fn list_backups(&self, schedule: &str) -> Result<Vec<crds::EtcdBackup>, ActError> {
        let params = ListParams::default().labels(&format!("{}={schedule}", crds::SCHEDULE_LABEL));
        let api = self.backups();
        let what = format!("list the backups of EtcdBackupSchedule {schedule}");
        Ok(self.api.within(what, api.list(&params)).await?.items)
    }

    /// A schedule as the API knows it now; `None` when it is gone.
    pub(super) async fn read_schedule(
        &self,
        name: &str,
    ) -> Result<Option<crds::EtcdBackupSchedule>, ActError> {
        let api = self.schedules();
        Ok(self
            .api
            .within(format!("read EtcdBackupSchedule {name}"), api.get_opt(name))
            .await?)
    }

    /// Makes the backup of a slot. One that is there already is what was wanted: its name is the slot's.
    pub(super) async fn begin_backup(
        &self,
        schedule: &crds::EtcdBackupSchedule,
        name: &str,
    ) -> Result<(), ActError> {
        // No owner reference: whoever deletes a schedule has not asked for its backups to be deleted.
        let metadata = json!({
            "labels": {crds::SCHEDULE_LABEL: schedule.metadata.name},
            "finalizers": [crds::STORED_FINALIZER],
        });
        let spec = json!({
            "storeRef": schedule.spec.store_ref,
            "deadlineSeconds": schedule.spec.deadline_seconds,
            "include": schedule.spec.include,
            "proof": schedule.spec.proof,
        });
        self.create_backup(name, metadata, spec).await
    }

    /// Asks for more proof of a backup, unless it was changed since it was read. The backup remembers for which slot.
    pub(super) async fn raise_proof(
        &self,
        backup: &crds::EtcdBackup,
        proof: crds::Proof,
        slot: DateTime<Utc>,
    ) -> Result<(), ActError> {
        let name = backup.metadata.name.as_deref().unwrap_or_default();
        let slot = slot.to_rfc3339_opts(SecondsFormat::Secs, true);
        let patch = json!({
            "metadata": {
                "resourceVersion": backup.metadata.resource_version,
                "annotations": {crds::DRILL_ANNOTATION: slot},
            },
            "spec": {"proof": proof},
        });
        let (params, patch, api) = (PatchParams::default(), Patch::Merge(&patch), self.backups());
        let what = format!("raise spec.proof of EtcdBackup {name}");
        Ok(self
            .api
            .within(what, api.patch(name, &params, &patch))
            .await
            .map(drop)?)
    }

    /// Writes the status of what was read: refused when it has been changed since.
    pub(super) async fn write_schedule(
        &self,
        object: &crds::EtcdBackupSchedule,
        status: crds::EtcdBackupScheduleStatus,
    ) -> Result<(), ActError> {
        let name = object.metadata.name.as_deref().unwrap_or_default();
        let mut next = object.clone();
        next.status = Some(status);
        let (params, api) = (PostParams::default(), self.schedules());
        let call = api.replace_status(name, &params, &next);
        self.api
            .within(format!("write the status of EtcdBackupSchedule {name}"), call)
            .await?;
        Ok(())
    }

    /// Deletes a backup, unless it was changed since it was read: a person may just have retained it.
    pub(super) async fn delete_backup(&self, backup: &crds::EtcdBackup) -> Result<(), ActError> {
        let name = backup.metadata.name.as_deref().unwrap_or_default();
        let params = DeleteParams {
            preconditions: Some(Preconditions {
                uid: backup.metadata.uid.clone(),
                resource_version: backup.metadata.resource_version.clone(),
            }),
            ..DeleteParams::default()
        };
        let api = self.backups();
        match self
            .api
            .within(format!("delete EtcdBackup {name}"), api.delete(name, &params))
            .await
        {
            Err(error) if error.is_not_found() => Ok(()),
            Err(error) if error.is_conflict() => {
                Err(ActError::Changed(format!("EtcdBackup {name} was changed")))
            }
            other => Ok(other.map(drop)?),
        }
    }

    /// Takes our finalizer off a backup, unless it was changed since it was read.
    pub(super) async fn let_go(&self, backup: &crds::EtcdBackup) -> Result<(), ActError> {
        let name = backup.metadata.name.as_deref().unwrap_or_default();
        let mut kept = backup.metadata.finalizers.clone().unwrap_or_default();
        kept.retain(|f| f != crds::STORED_FINALIZER);
        let patch =
            json!({"metadata": {"resourceVersion": backup.metadata.resource_version, "finalizers": kept}});
        let (params, patch, api) = (PatchParams::default(), Patch::Merge(&patch), self.backups());
        let what = format!("take the finalizer off EtcdBackup {name}");
        match self.api.within(what, api.patch(name, &params, &patch)).await {
            Err(error) if error.is_not_found() => Ok(()),
            other => Ok(other.map(drop)?),
        }
    }

    /// Writes parts of a backup's status, unless it was changed since it was read.
    pub(super) async fn tell_backup(
        &self,
        backup: &crds::EtcdBackup,
        status: serde_json::Value,
    ) -> Result<(), ActError> {
        let name = backup.metadata.name.as_deref().unwrap_or_default();
        let patch =
            json!({"metadata": {"resourceVersion": backup.metadata.resource_version}, "status": status});
        self.patch_backup(name, &patch).await
    }
}
