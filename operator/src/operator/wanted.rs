//! From a `ClusterVersion` to what the planner is told of it: the wish, and the memory.
//!
//! Pure. What the schema already refuses (a version that is none) is met again here as an error, since
//! an object may be older than its schema.

use chrono::{DateTime, Utc};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use lockkeeper_crds as crds;
use lockkeeper_policies::version::NotAVersion;
use lockkeeper_policies::{InHand, KubernetesVersion, Mode, NodeName, Phase, Rollout, Wanted};

/// Why an object cannot be understood.
#[derive(Debug, thiserror::Error)]
pub(super) enum UnderstandError {
    /// `spec.version`.
    #[error("ClusterVersion cluster: spec.version: {0}")]
    Version(#[source] NotAVersion),
    /// `status.rollout`, which is the operator's own: somebody has edited it.
    #[error(
        "ClusterVersion cluster: status.rollout.{field} was edited and cannot be read: {source}; remove status.rollout to begin anew"
    )]
    Memory {
        /// Which field.
        field: &'static str,
        /// Why.
        #[source]
        source: NotAVersion,
    },
}

/// The wish. `store_exists`: the named `EtcdBackupStore` is there.
pub(super) fn wanted(object: &crds::ClusterVersion, store_exists: bool) -> Result<Wanted, UnderstandError> {
    let spec = &object.spec;
    Ok(Wanted {
        version: spec.version.parse().map_err(UnderstandError::Version)?,
        mode: match spec.mode {
            crds::Mode::Apply => Mode::Apply,
            crds::Mode::Preflight => Mode::Preflight,
        },
        paused: spec.paused,
        retry: spec.retry,
        backup_required: spec.backup.required,
        backup_possible: store_exists,
        backup_accepted: spec.backup.accept_within_minutes.is_some(),
        rollback_automatic: spec.rollback.automatic,
        gate_passes: spec.strategy.gate_passes,
        gate_failures: spec.strategy.gate_failures,
        deleting: object.metadata.deletion_timestamp.is_some(),
    })
}

/// The memory, or `None` where no rollout is remembered.
pub(super) fn memory(object: &crds::ClusterVersion) -> Result<Option<Rollout>, UnderstandError> {
    let Some(kept) = object.status.as_ref().and_then(|s| s.rollout.as_ref()) else {
        return Ok(None);
    };
    let version = |field: &'static str, text: &str| -> Result<KubernetesVersion, UnderstandError> {
        text.parse()
            .map_err(|source| UnderstandError::Memory { field, source })
    };
    Ok(Some(Rollout {
        id: kept.id.clone(),
        source: version("source", &kept.source)?,
        target: version("target", &kept.target)?,
        phase: phase_in(kept.phase),
        retry: kept.retry,
        reason: kept.reason.clone(),
        failed_backups: kept.failed_backups,
        backup_failed_at: kept.backup_failed_at.as_ref().and_then(chrono_time),
        accepted: kept.accepted_backup.clone(),
        preflight_id: kept.preflight_id,
        preflight_at: kept.preflight_at.as_ref().and_then(chrono_time),
        order: kept.order.iter().map(|n| NodeName::from(n.as_str())).collect(),
        in_hand: kept.in_hand.as_ref().map(|t| InHand {
            node: t.node.as_str().into(),
            number: t.number,
            forward: t.forward,
        }),
    }))
}

/// The memory as it is kept. What the planner does not know of is taken over from `before`.
pub(super) fn kept(
    rollout: &Rollout,
    before: Option<&crds::Rollout>,
    now: &Time,
    ready_nodes: u32,
) -> crds::Rollout {
    let before = before.filter(|b| b.id == rollout.id);
    crds::Rollout {
        id: rollout.id.clone(),
        source: rollout.source.to_string(),
        target: rollout.target.to_string(),
        phase: phase_out(rollout.phase),
        retry: rollout.retry,
        started_at: before.map_or_else(|| now.clone(), |b| b.started_at.clone()),
        ended_at: match before.and_then(|b| b.ended_at.clone()) {
            Some(ended) => Some(ended),
            None => rollout.phase.is_end().then(|| now.clone()),
        },
        reason: rollout.reason.clone(),
        backup: (rollout.phase != Phase::Preflight || rollout.failed_backups > 0)
            .then(|| rollout.backup_name()),
        failed_backups: rollout.failed_backups,
        backup_failed_at: rollout.backup_failed_at.and_then(kube_time),
        accepted_backup: rollout.accepted.clone(),
        ready_nodes: before.map_or(ready_nodes, |b| b.ready_nodes),
        preflight_id: rollout.preflight_id,
        preflight_at: rollout.preflight_at.and_then(kube_time),
        order: rollout.order.iter().map(ToString::to_string).collect(),
        in_hand: rollout.in_hand.as_ref().map(|t| crds::InHand {
            node: t.node.to_string(),
            number: t.number,
            forward: t.forward,
        }),
    }
}

/// A new rollout's memory. The id holds the second of its beginning, so that it is never used again.
pub(super) fn begun(
    source: KubernetesVersion,
    target: KubernetesVersion,
    order: &[NodeName],
    retry: i64,
    now: DateTime<Utc>,
) -> Rollout {
    let id = format!("{}-{:x}", target.to_string().replace('.', "-"), now.timestamp());
    Rollout::begun(id, source, target, order.to_vec(), retry)
}

const fn phase_in(phase: crds::Phase) -> Phase {
    match phase {
        crds::Phase::Preflight => Phase::Preflight,
        crds::Phase::Snapshot => Phase::Snapshot,
        crds::Phase::Forward => Phase::Forward,
        crds::Phase::Back => Phase::Back,
        crds::Phase::Completed => Phase::Completed,
        crds::Phase::RolledBack => Phase::RolledBack,
        crds::Phase::Failed => Phase::Failed,
        crds::Phase::Superseded => Phase::Superseded,
    }
}

const fn phase_out(phase: Phase) -> crds::Phase {
    match phase {
        Phase::Preflight => crds::Phase::Preflight,
        Phase::Snapshot => crds::Phase::Snapshot,
        Phase::Forward => crds::Phase::Forward,
        Phase::Back => crds::Phase::Back,
        Phase::Completed => crds::Phase::Completed,
        Phase::RolledBack => crds::Phase::RolledBack,
        Phase::Failed => crds::Phase::Failed,
        Phase::Superseded => crds::Phase::Superseded,
    }
}

/// The API's time as the rules' time; whole seconds, as the API keeps them.
pub(super) fn chrono_time(time: &Time) -> Option<DateTime<Utc>> {
    DateTime::from_timestamp(time.0.as_second(), 0)
}

/// The rules' time as the API's.
pub(super) fn kube_time(time: DateTime<Utc>) -> Option<Time> {
    Timestamp::from_second(time.timestamp()).ok().map(Time)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn time_survives_both_ways(second in 0i64..10_000_000_000) {
            let time = DateTime::from_timestamp(second, 0).unwrap();
            prop_assert_eq!(chrono_time(&kube_time(time).unwrap()), Some(time));
        }

        #[test]
        fn memory_survives_being_kept(minor in 30u32..40, failed in 0u32..5, number in 1i64..9, forward: bool, accepted: bool) {
            let now = DateTime::from_timestamp(1_700_000_000, 0).unwrap();
            let v = |minor| KubernetesVersion { minor, patch: 3 };
            let mut rollout = begun(v(minor), v(minor + 1), &["cp1".into(), "cp2".into()], 2, now);
            rollout.failed_backups = failed;
            rollout.backup_failed_at = (failed > 2).then_some(now);
            rollout.accepted = accepted.then(|| "nightly-20261101-0300".to_owned());
            rollout.phase = Phase::Forward;
            rollout.preflight_at = Some(now);
            rollout.in_hand = Some(InHand { node: "cp2".into(), number, forward });
            let mut object = crds::ClusterVersion::new("cluster", serde_json::from_value(serde_json::json!({"version": "v1.36.3"})).unwrap());
            object.status = Some(crds::ClusterVersionStatus {
                rollout: Some(kept(&rollout, None, &kube_time(now).unwrap(), 3)),
                ..Default::default()
            });
            prop_assert_eq!(memory(&object).unwrap(), Some(rollout));
        }
    }

    #[test]
    fn a_version_that_is_none_names_its_field() {
        let spec = serde_json::from_value(serde_json::json!({"version": "latest"})).unwrap();
        let error = wanted(&crds::ClusterVersion::new("cluster", spec), true).unwrap_err();
        assert!(error.to_string().contains("spec.version"), "{error}");
    }
}
