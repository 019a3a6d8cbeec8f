//! The store's conditions, written when one of them changes and only then.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, Patch, PatchParams};
use lockkeeper_crds::{EtcdBackupStore, Tristate, condition, set_condition};

use super::open::read;
use super::{Failure, Reading, Store, StoreError};

const AVAILABLE: &str = "Available";
const REACHABLE: &str = "Reachable";
const WRITABLE: &str = "Writable";
const CONDITIONAL_PUT: &str = "ConditionalPut";
const CLOCK_IN_SYNC: &str = "ClockInSync";
const KEEPS_VERSIONS: &str = "KeepsVersions";

/// Of [`Failure::ClockSkew`], and of a clock that is off and not refused yet.
const CLOCK_SKEW: &str = "ClockSkew";

/// How a store fared.
#[derive(Clone, Copy, Debug)]
pub struct Fared<'a> {
    /// The node that used it.
    pub node: &'a str,
    /// How the last probe or backup ended.
    pub outcome: Result<(), &'a StoreError>,
    /// Where its server is, and what that said of the time; none when it said nothing.
    pub clock: Option<(&'a str, Reading)>,
    /// Whether what is deleted stays in it as an older version.
    pub versions: Tristate,
}

impl<'a> Fared<'a> {
    /// With what `store` has heard of its server; none where it could not be opened.
    #[must_use]
    pub fn of(node: &'a str, outcome: Result<(), &'a StoreError>, store: Option<&'a Store>) -> Self {
        Self {
            node,
            outcome,
            clock: store.and_then(|store| Some((store.endpoint(), store.clock()?))),
            versions: store.map(Store::keeps_versions).unwrap_or_default(),
        }
    }
}

/// Says on the `EtcdBackupStore` how it fared. True when something was written.
///
/// One read, and one write if the status or its reason differs from what is there.
///
/// # Errors
/// When the API fails. A store that does not exist is not an error: there is nothing to write on.
pub async fn publish_availability(
    client: &kube::Client,
    namespace: &str,
    name: &str,
    fared: &Fared<'_>,
) -> Result<bool, StoreError> {
    let fail = |failure| StoreError::new(name, failure);
    let stores: Api<EtcdBackupStore> = Api::namespaced(client.clone(), namespace);
    let Some(store) = read("EtcdBackupStore", || stores.get_opt(name))
        .await
        .map_err(fail)?
    else {
        return Ok(false);
    };
    let Some(conditions) = changed(&store, fared, &Time(Timestamp::now())) else {
        return Ok(false);
    };
    // With the resource version: another writer's change is not overwritten. It will be seen next time.
    let patch = serde_json::json!({
        "metadata": { "resourceVersion": store.metadata.resource_version },
        "status": { "observedGeneration": store.metadata.generation, "conditions": conditions },
    });
    let (params, patch) = (PatchParams::default(), Patch::Merge(&patch));
    read("EtcdBackupStore's status", || {
        stores.patch_status(name, &params, &patch)
    })
    .await
    .map_err(fail)?;
    Ok(true)
}

/// What one outcome says of each. What was not come to is Unknown.
fn verdicts(outcome: Result<(), &StoreError>) -> [(&'static str, Tristate); 4] {
    use Tristate::{False, True, Unknown};
    let (available, [reachable, writable, conditional]) = match outcome.map_err(StoreError::failure) {
        Ok(()) => (True, [True; 3]),
        Err(Failure::Unreachable { .. } | Failure::Untrusted { .. } | Failure::TimedOut { .. }) => {
            (False, [False, Unknown, Unknown])
        }
        // A server looks at the clock before at anything else.
        Err(Failure::ClockSkew { .. }) => (False, [True, Unknown, Unknown]),
        Err(Failure::ConditionalPut { .. }) => (False, [True, True, False]),
        // Never asked.
        Err(
            Failure::Missing { .. }
            | Failure::Secret { .. }
            | Failure::Key { .. }
            | Failure::Spec { .. }
            | Failure::NoIdentity { .. },
        ) => (False, [Unknown; 3]),
        Err(_) => (False, [True, False, Unknown]),
    };
    [
        (AVAILABLE, available),
        (REACHABLE, reachable),
        (WRITABLE, writable),
        (CONDITIONAL_PUT, conditional),
    ]
}

/// What the answers say of the two clocks, whatever else came of them.
fn clock(fared: &Fared<'_>) -> (Tristate, &'static str, String) {
    let refused = fared.outcome.err().filter(|e| e.reason() == CLOCK_SKEW);
    match (refused, fared.clock) {
        (Some(error), _) => (Tristate::False, CLOCK_SKEW, error.to_string()),
        (None, Some((endpoint, read))) if read.is_off() => (
            Tristate::False,
            CLOCK_SKEW,
            format!(
                "{}: set the wrong one by NTP; at 15 minutes S3 and Azure refuse every request, and Google before that",
                read.told(fared.node, endpoint)
            ),
        ),
        (None, Some(_)) => (
            Tristate::True,
            "Tried",
            "the Date of its answers is this node's, to a minute".to_owned(),
        ),
        (None, None) => (
            Tristate::Unknown,
            "NoDate",
            "nothing has answered with a Date; a directory does not".to_owned(),
        ),
    }
}

/// Neither is better; one must know.
fn versions(fared: &Fared<'_>) -> (Tristate, &'static str, String) {
    let (reason, message) = match (fared.versions, fared.outcome) {
        (Tristate::True, _) => (
            "Versioned",
            "what is deleted stays in the bucket as an older version: let its lifecycle end those (NoncurrentVersionExpiration, ExpiredObjectDeleteMarker), or it grows for ever",
        ),
        (Tristate::False, _) => ("NotVersioned", "what is deleted is gone"),
        (Tristate::Unknown, Ok(())) => (
            "NotTold",
            "the server does not say: should the bucket keep versions, let its lifecycle end them",
        ),
        (Tristate::Unknown, Err(_)) => ("NotTried", "something before it failed; see Available"),
    };
    (fared.versions, reason, message.to_owned())
}

fn changed(store: &EtcdBackupStore, fared: &Fared<'_>, now: &Time) -> Option<Vec<Condition>> {
    let (reason, message) = match fared.outcome {
        Ok(()) if fared.versions == Tristate::True => (
            "Writable",
            "written, read back, and guarded by a conditional put".to_owned(),
        ),
        Ok(()) => (
            "Writable",
            "written, read back, guarded by a conditional put, and deleted".to_owned(),
        ),
        Err(e) => (e.reason(), e.to_string()),
    };
    let told = verdicts(fared.outcome).map(|(kind, verdict)| {
        let (reason, message) = match verdict {
            Tristate::Unknown => ("NotTried", "something before it failed; see Available"),
            Tristate::True if kind != AVAILABLE => ("Tried", "tried, and found so"),
            _ => (reason, message.as_str()),
        };
        (kind, verdict, reason, message.to_owned())
    });
    let beside = [(CLOCK_IN_SYNC, clock(fared)), (KEEPS_VERSIONS, versions(fared))];
    let beside = beside.map(|(kind, (verdict, reason, message))| (kind, verdict, reason, message));
    let told = told.into_iter().chain(beside);
    let generation = store.metadata.generation;
    let mut conditions = store
        .status
        .as_ref()
        .map(|s| s.conditions.clone())
        .unwrap_or_default();
    let mut any = false;
    for (kind, verdict, reason, message) in told {
        let new = condition(kind, verdict, reason, &message, generation, now.clone());
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
    use crate::store::Kind;
    use crate::store::connect::tests::spec;

    fn fared(outcome: Result<(), &StoreError>) -> Fared<'_> {
        Fared {
            node: "cp1",
            outcome,
            clock: None,
            versions: Tristate::Unknown,
        }
    }

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
                    kind: Kind::S3,
                    endpoint: "x".to_owned(),
                    doing: "write",
                    detail,
                },
            )
        };

        let first = changed(&store, &fared(Ok(())), &at(1)).expect("nothing is there yet");
        store.status.get_or_insert_default().conditions = first;
        assert_eq!(changed(&store, &fared(Ok(())), &at(2)), None);
        let down = changed(&store, &fared(Err(&timed_out("after 5 s"))), &at(3)).expect("it went away");
        store.status.get_or_insert_default().conditions = down;
        assert_eq!(
            changed(&store, &fared(Err(&timed_out("after 6 s"))), &at(4)),
            None
        );
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
            changed(&store, &fared(Err(&timed_out("after 6 s"))), &at(5)).is_some(),
            "the spec changed"
        );
    }
    #[test]
    fn a_clock_that_drifts_is_told_before_the_server_refuses() {
        let mut store = EtcdBackupStore::new("main", spec("http://x"));
        let now = Time(Timestamp::UNIX_EPOCH);
        let read = |ahead| Reading {
            here: chrono::DateTime::UNIX_EPOCH,
            there: chrono::DateTime::UNIX_EPOCH + ahead,
            ahead,
        };
        let skewed = StoreError::new(
            "main",
            Failure::ClockSkew {
                endpoint: "x".to_owned(),
                detail: "HTTP 403".to_owned(),
            },
        );
        let off = chrono::TimeDelta::seconds(61);
        for (outcome, ahead, verdict) in [
            (Ok(()), Some(off), ["True", "False", "ClockSkew"]),
            (Ok(()), Some(chrono::TimeDelta::zero()), ["True", "True", "Tried"]),
            (Ok(()), None, ["True", "Unknown", "NoDate"]),
            (Err(&skewed), None, ["False", "False", "ClockSkew"]),
        ] {
            let fared = Fared {
                node: "cp1",
                outcome,
                clock: ahead.map(|ahead| ("https://s3.example", read(ahead))),
                versions: Tristate::Unknown,
            };
            store.status.get_or_insert_default().conditions = vec![];
            let told = changed(&store, &fared, &now).unwrap();
            let of = |kind: &str| told.iter().find(|c| c.type_ == kind).unwrap();
            let (available, clock) = (of(AVAILABLE), of(CLOCK_IN_SYNC));
            assert_eq!([&available.status, &clock.status, &clock.reason], verdict);
            if ahead == Some(off) {
                for says in [
                    "cp1 has 1970",
                    "https://s3.example has 1970-01-01 00:01:01",
                    "NTP",
                ] {
                    assert!(clock.message.contains(says), "{}", clock.message);
                }
            }
        }
    }
}
