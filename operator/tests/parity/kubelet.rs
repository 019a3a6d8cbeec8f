//! What a Job's controller and a kubelet would write.

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::json;

use crate::world::{Pair, Side};

/// `Complete` or `Failed`.
pub(crate) async fn ends(jobs: &Api<Job>, name: &str, condition: &str) {
    let now = now();
    let mut status = json!({"startTime": now, "conditions": []});
    let targets = if condition == "Complete" {
        "SuccessCriteriaMet"
    } else {
        "FailureTarget"
    };
    for kind in [targets, condition] {
        let of = json!({"type": kind, "status": "True", "reason": "BackoffLimitExceeded", "message": "it said no",
            "lastTransitionTime": now, "lastProbeTime": now});
        status["conditions"].as_array_mut().unwrap().push(of);
    }
    if condition == "Complete" {
        status["completionTime"] = json!(now);
    }
    let patch = Patch::Merge(json!({"status": status}));
    jobs.patch_status(name, &PatchParams::default(), &patch)
        .await
        .unwrap();
}

pub(crate) fn now() -> String {
    chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Secs, true)
}

/// Without it no pod is let in.
pub(crate) async fn account(pair: &Pair, side: Side, namespace: &str) {
    let accounts: Api<ServiceAccount> = Api::namespaced(pair.client(side), namespace);
    let default = serde_json::from_value(json!({"metadata": {"name": "default"}})).unwrap();
    let made = accounts.create(&PostParams::default(), &default).await;
    assert!(matches!(&made, Ok(_) | Err(kube::Error::Api(_))), "{made:?}");
}
