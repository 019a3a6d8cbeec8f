//! Doing what was decided. Each function writes one object, checks its precondition again right before,
//! and has a deadline (that of [`ApiServers::within`]).

use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, Patch, PatchParams, PostParams};
use lockkeeper_crds as crds;
use lockkeeper_policies::{Component, KubernetesVersion, NodeName};
use serde_json::json;

use super::backups::ROLLBACK_FOR;
use super::sight::{component_out, image_at};
use crate::api::{ApiError, ApiServers};

/// Whose fields these are.
pub(super) const FIELD_MANAGER: &str = "lockkeeper-operator";
/// Holds a `ClusterVersion` until the step in hand has ended.
pub(super) const FINALIZER: &str = "lockkeeper.dev/in-flight";

/// Why something could not be done.
#[derive(Debug, thiserror::Error)]
pub(super) enum ActError {
    /// The API.
    #[error(transparent)]
    Api(Box<ApiError>),
    /// The object is not what was decided on: look again.
    #[error("{0}; looking again")]
    Changed(String),
    /// An image cannot be moved to another version.
    #[error(
        "{component} on {node}: the image {image:?} of its manifest has no tag to change; write it as repository:vX.Y.Z"
    )]
    Image {
        /// Which.
        component: Component,
        /// Where.
        node: NodeName,
        /// What stands there.
        image: String,
    },
    /// kubeadm's own ConfigMap cannot be understood.
    #[error(
        "ConfigMap kube-system/kubeadm-config: {0}; a later `kubeadm join` would bring in the old version: correct kubernetesVersion by hand"
    )]
    KubeadmConfig(String),
}

impl From<ApiError> for ActError {
    fn from(error: ApiError) -> Self {
        Self::Api(Box::new(error))
    }
}

/// Effects on the API, for one leadership.
#[derive(Clone)]
pub(super) struct Hands {
    pub(super) api: ApiServers,
    pub(super) namespace: String,
}

impl Hands {
    fn nodes(&self) -> Api<crds::ControlPlaneNode> {
        Api::all(self.api.client())
    }

    pub(super) fn backups(&self) -> Api<crds::EtcdBackup> {
        Api::namespaced(self.api.client(), &self.namespace)
    }

    fn versions(&self) -> Api<crds::ClusterVersion> {
        Api::all(self.api.client())
    }

    /// Writes the status of what was read: refused when it has been changed since.
    pub(super) async fn write_status(
        &self,
        object: &crds::ClusterVersion,
        status: crds::ClusterVersionStatus,
    ) -> Result<crds::ClusterVersion, ActError> {
        let mut next = object.clone();
        next.status = Some(status);
        let (params, api) = (PostParams::default(), self.versions());
        let call = api.replace_status("cluster", &params, &next);
        Ok(self
            .api
            .within("write the status of ClusterVersion cluster", call)
            .await?)
    }

    /// Sets or removes the finalizer; returns the object as it is then.
    pub(super) async fn hold(
        &self,
        object: &crds::ClusterVersion,
        hold: bool,
    ) -> Result<crds::ClusterVersion, ActError> {
        let mut kept: Vec<String> = object.metadata.finalizers.clone().unwrap_or_default();
        kept.retain(|f| f != FINALIZER);
        if hold {
            kept.push(FINALIZER.to_owned());
        }
        // With the version that was read: two writers of one list must not lose one another's entry.
        let patch =
            json!({"metadata": {"resourceVersion": object.metadata.resource_version, "finalizers": kept}});
        let (params, patch, api) = (PatchParams::default(), Patch::Merge(&patch), self.versions());
        let call = api.patch("cluster", &params, &patch);
        Ok(self
            .api
            .within("set the finalizer of ClusterVersion cluster", call)
            .await?)
    }

    /// Asks a node's agent for attention and for checks.
    pub(super) async fn ask(
        &self,
        node: &str,
        attentive: bool,
        preflight: Option<&crds::PreflightRequest>,
    ) -> Result<(), ActError> {
        let patch = json!({"spec": {"attentive": attentive, "preflight": preflight}});
        let (params, patch, api) = (PatchParams::default(), Patch::Merge(&patch), self.nodes());
        self.api
            .within(
                format!("ask the agent of {node}"),
                api.patch(node, &params, &patch),
            )
            .await?;
        Ok(())
    }

    /// Makes the snapshot's object. One that is there already is what was wanted.
    pub(super) async fn take_snapshot(
        &self,
        name: &str,
        store: &crds::LocalReference,
        proof: crds::Proof,
    ) -> Result<(), ActError> {
        let metadata = json!({"labels": {ROLLBACK_FOR: "cluster"}});
        let spec = json!({"storeRef": store, "deadlineSeconds": SNAPSHOT_SECONDS, "proof": proof});
        self.create_backup(name, metadata, spec).await
    }

    /// Makes an `EtcdBackup`, with more metadata than its name. One that is there already is what was wanted.
    pub(super) async fn create_backup(
        &self,
        name: &str,
        mut metadata: serde_json::Value,
        spec: serde_json::Value,
    ) -> Result<(), ActError> {
        if let Some(metadata) = metadata.as_object_mut() {
            metadata.insert("name".to_owned(), json!(name));
            metadata.insert("namespace".to_owned(), json!(self.namespace));
        }
        let backup = json!({
            "apiVersion": "lockkeeper.dev/v1alpha1", "kind": "EtcdBackup", "metadata": metadata, "spec": spec,
        });
        let api: Api<kube::api::DynamicObject> = Api::namespaced_with(
            self.api.client(),
            &self.namespace,
            &kube::api::ApiResource::erase::<crds::EtcdBackup>(&()),
        );
        let object = serde_json::from_value(backup).map_err(|e| ActError::Changed(e.to_string()))?;
        let params = PostParams {
            field_manager: Some(FIELD_MANAGER.to_owned()),
            ..PostParams::default()
        };
        match self
            .api
            .within(format!("create EtcdBackup {name}"), api.create(&params, &object))
            .await
        {
            Err(error) if error.is_conflict() => Ok(()),
            other => Ok(other.map(|_| ())?),
        }
    }

    /// Sets a backup's finalizers, unless it was changed since it was read.
    pub(super) async fn hold_backup(
        &self,
        backup: &crds::EtcdBackup,
        finalizers: &[String],
    ) -> Result<(), ActError> {
        let name = backup.metadata.name.as_deref().unwrap_or_default();
        let patch = json!({
            "metadata": {"resourceVersion": backup.metadata.resource_version, "finalizers": finalizers},
        });
        let (params, patch, api) = (PatchParams::default(), Patch::Merge(&patch), self.backups());
        let what = format!("set the finalizer of EtcdBackup {name}");
        match self.api.within(what, api.patch(name, &params, &patch)).await {
            Err(error) if error.is_conflict() => {
                Err(ActError::Changed(format!("EtcdBackup {name} was changed")))
            }
            other => Ok(other.map(drop)?),
        }
    }

    /// Names the node that takes a backup.
    pub(super) async fn assign(
        &self,
        backup: &str,
        node: &str,
        now: &impl serde::Serialize,
    ) -> Result<(), ActError> {
        let patch = json!({"status": {"node": node, "assignedAt": now, "message": format!("given to the agent of {node}")}});
        self.patch_backup(backup, &patch).await
    }

    /// Ends a backup whose agent cannot.
    pub(super) async fn fail_backup(
        &self,
        backup: &str,
        status: &crds::EtcdBackupStatus,
    ) -> Result<(), ActError> {
        self.patch_backup(backup, &json!({"status": status})).await
    }

    pub(super) async fn patch_backup(&self, backup: &str, patch: &serde_json::Value) -> Result<(), ActError> {
        let (params, patch, api) = (PatchParams::default(), Patch::Merge(patch), self.backups());
        let what = format!("write the status of EtcdBackup {backup}");
        self.api
            .within(what, api.patch_status(backup, &params, &patch))
            .await?;
        Ok(())
    }

    /// Issues a ticket. The manifests it is planned against are those of the report at this moment.
    pub(super) async fn issue(&self, node: &NodeName, ticket: crds::Ticket) -> Result<(), ActError> {
        self.change_node(
            node,
            &format!("issue ticket {} on {node}", ticket.number),
            |spec, last| {
                if last >= ticket.number {
                    return Err(ActError::Changed(format!(
                        "ticket {} on {node} is out already",
                        ticket.number
                    )));
                }
                spec.ticket = Some(ticket);
                Ok(())
            },
        )
        .await
    }

    /// Uses up a number without a ticket.
    pub(super) async fn void(&self, node: &NodeName, number: i64) -> Result<(), ActError> {
        self.change_node(
            node,
            &format!("give up ticket {number} of {node}"),
            |spec, last| {
                if last >= number {
                    return Err(ActError::Changed(format!(
                        "ticket {number} on {node} is out already"
                    )));
                }
                spec.voided = number;
                Ok(())
            },
        )
        .await
    }

    /// Says the word on a ticket that has none yet.
    pub(super) async fn say(
        &self,
        node: &NodeName,
        number: i64,
        verdict: crds::Verdict,
        reason: Option<String>,
    ) -> Result<(), ActError> {
        self.change_node(
            node,
            &format!("say {verdict:?} on ticket {number} of {node}"),
            |spec, _| {
                let ticket = spec
                    .ticket
                    .as_mut()
                    .filter(|t| t.number == number && t.verdict == crds::Verdict::Pending);
                let ticket = ticket
                    .ok_or_else(|| ActError::Changed(format!("ticket {number} on {node} has its word")))?;
                ticket.verdict = verdict;
                ticket.reason = reason;
                Ok(())
            },
        )
        .await
    }

    /// Reads a node's object, changes its spec, and writes it unless it was changed in between.
    async fn change_node(
        &self,
        node: &NodeName,
        what: &str,
        change: impl FnOnce(&mut crds::ControlPlaneNodeSpec, i64) -> Result<(), ActError>,
    ) -> Result<(), ActError> {
        let api = self.nodes();
        let mut object = self
            .api
            .within(format!("read ControlPlaneNode {node}"), api.get(node.as_ref()))
            .await?;
        let told = object
            .status
            .as_ref()
            .and_then(|s| s.ticket.as_ref())
            .map_or(0, |t| t.number);
        let given = object.spec.ticket.as_ref().map_or(0, |t| t.number);
        let last = given.max(told).max(object.spec.voided);
        change(&mut object.spec, last)?;
        let params = PostParams {
            field_manager: Some(FIELD_MANAGER.to_owned()),
            ..PostParams::default()
        };
        match self
            .api
            .within(what, api.replace(node.as_ref(), &params, &object))
            .await
        {
            Err(error) if error.is_conflict() => {
                Err(ActError::Changed(format!("ControlPlaneNode {node} was changed")))
            }
            other => Ok(other.map(|_| ())?),
        }
    }

    /// The version that `kubeadm join` would bring in; `None` where there is no such ConfigMap.
    pub(super) async fn kubeadm_version(
        &self,
    ) -> Result<Option<Result<KubernetesVersion, String>>, ActError> {
        let api: Api<ConfigMap> = Api::namespaced(self.api.client(), "kube-system");
        let found = self
            .api
            .within(
                "read ConfigMap kube-system/kubeadm-config",
                api.get_opt("kubeadm-config"),
            )
            .await?;
        Ok(found.and_then(|map| kubeadm::version(map.data?.get(kubeadm::KEY)?)))
    }

    /// Writes the version into kubeadm's ConfigMap, and changes nothing else in it.
    pub(super) async fn write_kubeadm_version(&self, version: KubernetesVersion) -> Result<(), ActError> {
        let api: Api<ConfigMap> = Api::namespaced(self.api.client(), "kube-system");
        let mut map = self
            .api
            .within(
                "read ConfigMap kube-system/kubeadm-config",
                api.get("kubeadm-config"),
            )
            .await?;
        let text = map.data.as_mut().and_then(|d| d.get_mut(kubeadm::KEY));
        let text = text.ok_or_else(|| ActError::KubeadmConfig(format!("it has no {}", kubeadm::KEY)))?;
        *text = kubeadm::with_version(text, version).map_err(ActError::KubeadmConfig)?;
        let params = PostParams {
            field_manager: Some(FIELD_MANAGER.to_owned()),
            ..PostParams::default()
        };
        let what = "write ConfigMap kube-system/kubeadm-config";
        self.api
            .within(what, api.replace("kubeadm-config", &params, &map))
            .await?;
        Ok(())
    }
}

/// 30 min: a snapshot that an upgrade waits for. 1.2 GB took 12 s in the lab; the largest etcd is 8 GiB.
pub(super) const SNAPSHOT_SECONDS: u32 = 1800;

/// The changes of a step, against the manifests that the node reports now.
pub(super) fn changes(
    node: &NodeName,
    report: Option<&crds::ControlPlaneNode>,
    components: &[Component],
    version: KubernetesVersion,
) -> Result<Vec<crds::Change>, ActError> {
    let gone = |c: &Component| ActError::Changed(format!("{c} on {node} is not in its report"));
    let seen = report
        .and_then(|r| r.status.as_ref())
        .map(|s| s.components.as_slice())
        .unwrap_or_default();
    components
        .iter()
        .map(|component| {
            let wire = component_out(*component);
            let status = seen
                .iter()
                .find(|c| c.component == wire)
                .ok_or_else(|| gone(component))?;
            let (Some(hash), Some(image)) = (&status.manifest_hash, &status.manifest_image) else {
                return Err(gone(component));
            };
            let to = image_at(image, version).ok_or_else(|| ActError::Image {
                component: *component,
                node: node.clone(),
                image: image.clone(),
            })?;
            Ok(crds::Change {
                component: wire,
                manifest_hash: hash.clone(),
                image: to,
                version: version.to_string(),
            })
        })
        .collect()
}

/// kubeadm's ClusterConfiguration, of which one line is ours to change.
mod kubeadm {
    use lockkeeper_policies::KubernetesVersion;

    /// Where it lies in the ConfigMap.
    pub(super) const KEY: &str = "ClusterConfiguration";
    const FIELD: &str = "kubernetesVersion:";

    /// The version it names, or why that is none.
    pub(super) fn version(text: &str) -> Option<Result<KubernetesVersion, String>> {
        let line = text.lines().find_map(|l| l.strip_prefix(FIELD))?;
        Some(
            line.trim()
                .trim_matches(['"', '\''])
                .parse()
                .map_err(|e| format!("{e}")),
        )
    }

    /// The same text with another version; comments and order stay.
    pub(super) fn with_version(text: &str, version: KubernetesVersion) -> Result<String, String> {
        let mut found = 0;
        let mut lines: Vec<String> = Vec::new();
        for line in text.lines() {
            if line.starts_with(FIELD) {
                found += 1;
                lines.push(format!("{FIELD} {version}"));
            } else {
                lines.push(line.to_owned());
            }
        }
        if found != 1 {
            return Err(format!(
                "ClusterConfiguration has {found} lines that begin with {FIELD}, and one is expected"
            ));
        }
        let end = if text.ends_with('\n') { "\n" } else { "" };
        Ok(lines.join("\n") + end)
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn only_the_version_changes() {
            let text = "apiServer: {}\nkubernetesVersion: v1.35.4\nnetworking:\n  kubernetesVersion: no\n";
            let v = KubernetesVersion { minor: 36, patch: 3 };
            let after = with_version(text, v).unwrap();
            assert_eq!(after, text.replace("v1.35.4", "v1.36.3"));
            assert_eq!(version(&after), Some(Ok(v)));
            assert!(with_version("apiServer: {}\n", v).is_err());
            assert!(version("kubernetesVersion: stable\n").unwrap().is_err());
        }
    }
}
