//! The Lease object: to and from what the election needs.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;

use super::{LEASE, Record, Timing};

/// `None` when there is nothing to compare-and-swap against; the object then counts as absent, and
/// creating it fails for as long as that is so.
pub(super) fn read(lease: &Lease) -> Option<Record> {
    let version = lease.metadata.resource_version.clone()?;
    let spec = lease.spec.clone().unwrap_or_default();
    Some(Record {
        holder: spec.holder_identity.filter(|holder| !holder.is_empty()),
        version,
        duration: Duration::from_secs(
            spec.lease_duration_seconds
                .map_or(0, |s| s.max(0).unsigned_abs().into()),
        ),
        transitions: spec.lease_transitions.unwrap_or(0),
    })
}

/// Times in it are for people; nobody decides by them.
pub(super) fn held(
    namespace: &str,
    holder: &str,
    replacing: Option<&str>,
    transitions: i32,
    timing: &Timing,
) -> Lease {
    let now = MicroTime(Timestamp::now());
    Lease {
        metadata: metadata(namespace, replacing),
        spec: Some(LeaseSpec {
            holder_identity: Some(holder.to_owned()),
            lease_duration_seconds: i32::try_from(timing.lease.as_secs()).ok(),
            renew_time: Some(now),
            lease_transitions: Some(transitions),
            ..LeaseSpec::default()
        }),
    }
}

/// The same without a holder. A PUT clears what it leaves out; the epoch stays.
pub(super) fn released(namespace: &str, record: &Record, timing: &Timing) -> Lease {
    let mut lease = held(namespace, "", Some(&record.version), record.transitions, timing);
    if let Some(spec) = &mut lease.spec {
        spec.holder_identity = None;
    }
    lease
}

fn metadata(namespace: &str, version: Option<&str>) -> ObjectMeta {
    ObjectMeta {
        name: Some(LEASE.to_owned()),
        namespace: Some(namespace.to_owned()),
        resource_version: version.map(str::to_owned),
        labels: Some([("app.kubernetes.io/managed-by".to_owned(), "lockkeeper".to_owned())].into()),
        ..ObjectMeta::default()
    }
}
