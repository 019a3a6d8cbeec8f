//! The store's conditions, written when one of them changes and only then.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, Patch, PatchParams};
use lockkeeper_crds::{EtcdBackupStore, Tristate, condition, set_condition};

use super::open::read;
use super::{Failure, StoreError};

const AVAILABLE: &str = "Available";
const REACHABLE: &str = "Reachable";
const WRITABLE: &str = "Writable";
const CONDITIONAL_PUT: &str = "ConditionalPut";
const CLOCK_IN_SYNC: &str = "ClockInSync";

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
    let Some(conditions) = changed(&store, outcome, &Time(Timestamp::now())) else {
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

/// What one outcome says of each. What was not come to is Unknown.
fn verdicts(outcome: Result<(), &StoreError>) -> [(&'static str, Tristate); 5] {
    use Tristate::{False, True, Unknown};
    let (available, [reachable, writable, conditional, clock]) = match outcome.map_err(StoreError::failure) {
        Ok(()) => (True, [True; 4]),
        Err(Failure::Unreachable { .. } | Failure::TimedOut { .. }) => {
            (False, [False, Unknown, Unknown, Unknown])
        }
        // S3 looks at the clock before at anything else.
        Err(Failure::ClockSkew { .. }) => (False, [True, Unknown, Unknown, False]),
        Err(Failure::ConditionalPut { .. }) => (False, [True, True, False, True]),
        // Never asked.
        Err(
            Failure::Missing { .. } | Failure::Secret { .. } | Failure::Key { .. } | Failure::Spec { .. },
        ) => (False, [Unknown; 4]),
        Err(_) => (False, [True, False, Unknown, True]),
    };
    [
        (AVAILABLE, available),
        (REACHABLE, reachable),
        (WRITABLE, writable),
        (CONDITIONAL_PUT, conditional),
        (CLOCK_IN_SYNC, clock),
    ]
}

fn changed(store: &EtcdBackupStore, outcome: Result<(), &StoreError>, now: &Time) -> Option<Vec<Condition>> {
    let (reason, message) = match outcome {
        Ok(()) => (
            "Writable",
            "written, read back, guarded by a conditional put, and deleted".to_owned(),
        ),
        Err(e) => (e.reason(), e.to_string()),
    };
    let generation = store.metadata.generation;
    let mut conditions = store
        .status
        .as_ref()
        .map(|s| s.conditions.clone())
        .unwrap_or_default();
    let mut any = false;
    for (kind, verdict) in verdicts(outcome) {
        let (reason, message) = match verdict {
            Tristate::Unknown => ("NotTried", "something before it failed; see Available"),
            Tristate::True if kind != AVAILABLE => ("Tried", "tried, and found so"),
            _ => (reason, message.as_str()),
        };
        let new = condition(kind, verdict, reason, message, generation, now.clone());
        let same = conditions.iter().any(|old| {
            // Not the message: it may hold a duration, and would be written anew each time.
            (&old.type_, &old.status, &old.reason, old.observed_generation)
                == (&new.type_, &new.status, &new.reason, new.observed_generation)
        });
        if !same {
            any = true;
            set_condition(&mut conditions, new);
        }
    }
    any.then_some(conditions)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::connect::tests::spec;

    #[test]
    fn availability_is_written_on_change_only() {
        let mut store = EtcdBackupStore::new("main", spec("http://x"));
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

        let first = changed(&store, Ok(()), &at(1)).expect("nothing is there yet");
        store.status.get_or_insert_default().conditions = first;
        assert_eq!(changed(&store, Ok(()), &at(2)), None);
        let down = changed(&store, Err(&timed_out("after 5 s")), &at(3)).expect("it went away");
        store.status.get_or_insert_default().conditions = down;
        assert_eq!(changed(&store, Err(&timed_out("after 6 s")), &at(4)), None);
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
        let of = |kind: &str| {
            let all = &store.status.as_ref().unwrap().conditions;
            all.iter().find(|c| c.type_ == kind).unwrap().status.clone()
        };
        assert_eq!([of("Reachable"), of("Writable")], ["False", "Unknown"]);
        store.metadata.generation = Some(2);
        assert!(
            changed(&store, Err(&timed_out("after 6 s")), &at(5)).is_some(),
            "the spec changed"
        );
    }
}
