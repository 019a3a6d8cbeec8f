//! Writes that blue refuses for a while.
//!
//! Three objects in blue, by the cutover's own name: a `ValidatingAdmissionPolicy` that refuses, its binding to the frozen
//! namespaces, and a Job without pods that the policy takes for its egg timer. The Job's `activeDeadlineSeconds` is the
//! freeze's longest time: blue's own controller manager fails the Job then, and the policy refuses nothing for a failed
//! Job, nor for one that is gone. So a freeze ends by itself, whatever became of who set it.
//!
//! Whether it is in force is asked where it counts: by a creation that is tried and not made (`dryRun`).

use chrono::{DateTime, Utc};
use futures::future::try_join_all;
use k8s_openapi::api::admissionregistration::v1::{
    ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding,
};
use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, DeleteParams, PostParams};
use lockkeeper_crds::Freeze;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::clusters::Cluster;
use crate::api::ApiError;

/// What is tried and never made.
const PROBE: &str = "lockkeeper-freeze-probe";

/// Who goes on writing: what keeps the objects of a namespace true, and sweeps up after them.
const EXEMPT: &str = "request.userInfo.username.startsWith('system:kube-') || request.userInfo.username == 'system:apiserver' || request.userInfo.groups.exists(g, g in ['system:nodes', 'system:serviceaccounts:kube-system'])";

/// The freeze of one cutover.
pub(super) struct Freezer<'a> {
    blue: &'a Cluster,
    spec: &'a Freeze,
    /// Of all three objects.
    name: String,
    cutover: &'a str,
}

impl<'a> Freezer<'a> {
    /// `uid`: the cutover's.
    pub(super) fn new(blue: &'a Cluster, spec: &'a Freeze, cutover: &'a str, uid: &str) -> Self {
        let short: String = uid.chars().filter(char::is_ascii_alphanumeric).take(8).collect();
        Self {
            blue,
            spec,
            name: format!("lockkeeper-freeze-{short}"),
            cutover,
        }
    }

    /// Whether writes are refused in all of the namespaces.
    ///
    /// # Errors
    /// When a write cannot even be tried: there is no such namespace, or no right.
    pub(super) async fn is_there(&self) -> Result<bool, ApiError> {
        let namespaces = self.spec.namespaces.iter();
        let tried = try_join_all(namespaces.map(|namespace| self.refuses(namespace))).await?;
        Ok(tried.into_iter().all(|refused| refused))
    }

    async fn refuses(&self, namespace: &str) -> Result<bool, ApiError> {
        let api: Api<ConfigMap> = Api::namespaced(self.blue.api.client(), namespace);
        let mut probe = ConfigMap::default();
        probe.metadata.name = Some(PROBE.to_owned());
        let params = PostParams {
            dry_run: true,
            ..PostParams::default()
        };
        let what = format!("try a write to namespace {namespace} of blue");
        match self.blue.api.within(what, api.create(&params, &probe)).await {
            Ok(_) => Ok(false),
            // Its words, and not another one's right to refuse.
            Err(error) if error.to_string().contains(&self.name) => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Refuses writes until then, and begins nothing that has ended.
    pub(super) async fn begin(&self, until: DateTime<Utc>, now: DateTime<Utc>) -> Result<(), String> {
        let seconds = (until - now).num_seconds();
        if seconds < 1 {
            return Ok(());
        }
        let me = self.me().await?;
        let policies: Api<ValidatingAdmissionPolicy> = Api::all(self.blue.api.client());
        // The timer first: without it the policy refuses nothing.
        self.create(self.jobs(), &self.timer(seconds)).await?;
        self.create(policies, &self.policy(&me)).await?;
        let bindings: Api<ValidatingAdmissionPolicyBinding> = Api::all(self.blue.api.client());
        self.create(bindings, &self.binding()).await
    }

    /// Lets writes through again.
    pub(super) async fn end(&self) -> Result<(), String> {
        let bindings: Api<ValidatingAdmissionPolicyBinding> = Api::all(self.blue.api.client());
        let policies: Api<ValidatingAdmissionPolicy> = Api::all(self.blue.api.client());
        // All are tried: each of them alone lets writes through.
        let told = [
            self.delete(bindings).await,
            self.delete(policies).await,
            self.delete(self.jobs()).await,
        ];
        told.into_iter().collect()
    }

    fn jobs(&self) -> Api<Job> {
        // A policy's parameter may lie anywhere; here it is seen by those whom it concerns.
        let namespace = self.spec.namespaces.first().map_or("default", String::as_str);
        Api::namespaced(self.blue.api.client(), namespace)
    }

    async fn me(&self) -> Result<String, String> {
        let api: Api<SelfSubjectReview> = Api::all(self.blue.api.client());
        let (params, review) = (PostParams::default(), SelfSubjectReview::default());
        let answer = self
            .blue
            .api
            .within("ask blue who we are", api.create(&params, &review))
            .await;
        let user = answer
            .map_err(|e| e.to_string())?
            .status
            .and_then(|s| s.user_info);
        user.and_then(|u| u.username)
            .ok_or_else(|| "blue does not say who we are".to_owned())
    }

    /// It may be there already: what was begun goes on.
    async fn create<K>(&self, api: Api<K>, object: &Value) -> Result<(), String>
    where
        K: kube::Resource + serde::Serialize + DeserializeOwned + Clone + std::fmt::Debug,
    {
        let object: K = serde_json::from_value(object.clone()).map_err(|e| e.to_string())?;
        let (what, params) = (format!("make {} in blue", self.name), PostParams::default());
        match self.blue.api.within(what, api.create(&params, &object)).await {
            Err(error) if !error.is_conflict() => Err(error.to_string()),
            Ok(_) | Err(_) => Ok(()),
        }
    }

    async fn delete<K>(&self, api: Api<K>) -> Result<(), String>
    where
        K: DeserializeOwned + Clone + std::fmt::Debug,
    {
        let (what, params) = (
            format!("delete {} in blue", self.name),
            DeleteParams::background(),
        );
        match self.blue.api.within(what, api.delete(&self.name, &params)).await {
            Err(error) if !error.is_not_found() => Err(error.to_string()),
            Ok(_) | Err(_) => Ok(()),
        }
    }

    fn timer(&self, seconds: i64) -> Value {
        json!({
            "apiVersion": "batch/v1", "kind": "Job", "metadata": self.metadata(),
            "spec": {
                "parallelism": 0, "activeDeadlineSeconds": seconds, "ttlSecondsAfterFinished": 0,
                "template": {"spec": {
                    "restartPolicy": "Never",
                    "containers": [{"name": "none", "image": "lockkeeper.dev/never-started"}],
                }},
            },
        })
    }

    fn policy(&self, me: &str) -> Value {
        let me = json!(me).to_string();
        let ours = format!("request.userInfo.username == {me} && request.name != '{PROBE}'");
        json!({
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy",
            "metadata": self.metadata(),
            "spec": {
                "failurePolicy": "Ignore",
                "paramKind": {"apiVersion": "batch/v1", "kind": "Job"},
                "matchConstraints": {"resourceRules": [{
                    "apiGroups": ["*"], "apiVersions": ["*"], "operations": ["CREATE", "UPDATE", "DELETE"],
                    "resources": ["*", "*/scale"], "scope": "Namespaced",
                }]},
                "matchConditions": [
                    {"name": "not-the-control-plane", "expression": format!("!({EXEMPT})")},
                    {"name": "not-lockkeeper", "expression": format!("!({ours})")},
                ],
                "validations": [{
                    "expression": "has(params.status) && has(params.status.conditions) && params.status.conditions.exists(c, c.type in ['Failed', 'FailureTarget'] && c.status == 'True')",
                    "message": format!("writes to this namespace are refused while ClusterCutover {} hands over to another cluster: try again in a moment, there", self.cutover),
                }],
            },
        })
    }

    fn binding(&self) -> Value {
        let namespace = self.spec.namespaces.first().map_or("default", String::as_str);
        json!({
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicyBinding",
            "metadata": self.metadata(),
            "spec": {
                "policyName": self.name, "validationActions": ["Deny"],
                "paramRef": {"name": self.name, "namespace": namespace, "parameterNotFoundAction": "Allow"},
                "matchResources": {"namespaceSelector": {"matchExpressions": [{
                    "key": "kubernetes.io/metadata.name", "operator": "In", "values": self.spec.namespaces,
                }]}},
            },
        })
    }

    fn metadata(&self) -> Value {
        json!({
            "name": self.name,
            "labels": {"app.kubernetes.io/managed-by": "lockkeeper"},
            "annotations": {"lockkeeper.dev/cutover": self.cutover},
        })
    }
}
