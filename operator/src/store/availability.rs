//! The store's condition `Available`, written when it changes and only then.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, Patch, PatchParams};
use lockkeeper_crds::{EtcdBackupStore, Tristate, condition, set_condition};

use super::{StoreError, read};

const AVAILABLE: &str = "Available";

/// Says on the `EtcdBackupStore` how the last probe or backup fared there. True when something was written.
///
/// One read, and one write if the status or its reason differs from what is there.
///
/// # Errors
/// When the API fails. A store that does not exist is not an error: there is nothing to write on.
pub async fn publish_availability(
    client: &kube::Client,
    namespace: &str,
    name: &str,
    outcome: Result<(), &StoreError>,
) -> Result<bool, StoreError> {
    let fail = |failure| StoreError::new(name, failure);
    let stores: Api<EtcdBackupStore> = Api::namespaced(client.clone(), namespace);
    let Some(store) = read("EtcdBackupStore", stores.get_opt(name))
        .await
        .map_err(fail)?
    else {
        return Ok(false);
    };
    let Some(conditions) = changed(&store, outcome, Time(Timestamp::now())) else {
        return Ok(false);
    };
    // With the resource version: another writer's change is not overwritten. It will be seen next time.
    let patch = serde_json::json!({
        "metadata": { "resourceVersion": store.metadata.resource_version },
        "status": { "observedGeneration": store.metadata.generation, "conditions": conditions },
    });
    let (params, patch) = (PatchParams::default(), Patch::Merge(&patch));
    read(
        "EtcdBackupStore's status",
        stores.patch_status(name, &params, &patch),
    )
    .await
    .map_err(fail)?;
    Ok(true)
}

fn changed(store: &EtcdBackupStore, outcome: Result<(), &StoreError>, now: Time) -> Option<Vec<Condition>> {
    let (status, reason, message) = match outcome {
        Ok(()) => (
            Tristate::True,
            "Writable",
            "written, read back and deleted".to_owned(),
        ),
        Err(e) => (Tristate::False, e.reason(), e.to_string()),
    };
    let generation = store.metadata.generation;
    let new = condition(AVAILABLE, status, reason, &message, generation, now);
    let mut conditions = store
        .status
        .as_ref()
        .map(|s| s.conditions.clone())
        .unwrap_or_default();
    let same = conditions.iter().any(|old| {
        // Not the message: it may hold a duration, and would be written anew each time.
        (&old.type_, &old.status, &old.reason, old.observed_generation)
            == (&new.type_, &new.status, &new.reason, new.observed_generation)
    });
    if same {
        return None;
    }
    set_condition(&mut conditions, new);
    Some(conditions)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Failure, connect::tests::s3};

    #[test]
    fn availability_is_written_on_change_only() {
        let mut store = EtcdBackupStore::new(
            "main",
            lockkeeper_crds::EtcdBackupStoreSpec { s3: s3("http://x") },
        );
        store.metadata.generation = Some(1);
        let at = |s| Time(Timestamp::from_second(s).unwrap());
        let timed_out = |detail: &str| {
            let detail = detail.to_owned();
            StoreError::new(
                "main",
                Failure::TimedOut {
                    endpoint: "x".to_owned(),
                    doing: "write",
                    detail,
                },
            )
        };

        let first = changed(&store, Ok(()), at(1)).expect("nothing is there yet");
        store.status.get_or_insert_default().conditions = first;
        assert_eq!(changed(&store, Ok(()), at(2)), None);
        let down = changed(&store, Err(&timed_out("after 5 s")), at(3)).expect("it went away");
        store.status.get_or_insert_default().conditions = down;
        assert_eq!(changed(&store, Err(&timed_out("after 6 s")), at(4)), None);
        let condition = &store.status.as_ref().unwrap().conditions[0];
        assert_eq!(
            (condition.status.as_str(), condition.reason.as_str()),
            ("False", "TimedOut")
        );
        assert!(
            condition.message.contains("spec.s3.endpoint"),
            "{}",
            condition.message
        );
        store.metadata.generation = Some(2);
        assert!(
            changed(&store, Err(&timed_out("after 6 s")), at(5)).is_some(),
            "the spec changed"
        );
    }
}
