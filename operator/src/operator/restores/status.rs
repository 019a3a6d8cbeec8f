//! From a plan to the status that people and tools read. Pure.

use lockkeeper_crds::{
    self as crds, RestoreMode, RestoreStage, RestoreState, Tristate, condition, set_condition,
};

use super::loss;
use super::plan::{NOT_WHOLE, Plan};
use super::sight::Sight;

/// The status to write.
pub(super) fn build(sight: &Sight<'_>, plan: &Plan) -> crds::EtcdRestoreStatus {
    let object = sight.object;
    let before = object.status.clone().unwrap_or_default();
    let began = plan.state != RestoreState::Validating;
    let uid = object.metadata.uid.clone();
    let mut status = crds::EtcdRestoreStatus {
        observed_generation: object.metadata.generation,
        state: plan.state,
        message: plan.message.clone(),
        id: before.id.clone().or(uid.filter(|_| began)),
        started_at: before
            .started_at
            .clone()
            .or_else(|| began.then(|| sight.now.clone())),
        completed_at: before
            .completed_at
            .clone()
            .or_else(|| plan.state.is_end().then(|| sight.now.clone())),
        ..before
    };
    if object.spec.mode == RestoreMode::InPlace && began {
        status.confirm_with = status.confirm_with.take().or_else(|| sight.cluster_name.clone());
    }
    if plan.state == RestoreState::Arming && status.safety_backup.is_none() {
        let (name, id) = (object.metadata.name.as_deref(), status.id.as_deref());
        status.safety_backup = Some(safety_name(name.unwrap_or_default(), id.unwrap_or_default()));
    }
    if began {
        take_in(&mut status, sight);
    }
    conditions(&mut status, sight, plan);
    status
}

/// The name of the `EtcdBackup` of the state right before: of the restore's name and id, which the nodes know too.
pub(super) fn safety_name(restore: &str, id: &str) -> String {
    let head = |text: &str, most| text.chars().take(most).collect::<String>();
    let name = head(restore, 200);
    format!("before-{}-{}", name.trim_end_matches(['.', '-']), head(id, 8))
}

/// What the nodes say.
pub(super) fn take_in(status: &mut crds::EtcdRestoreStatus, sight: &Sight<'_>) {
    let Some(id) = status.id.clone() else { return };
    let mut nodes = Vec::new();
    for (name, node) in &sight.nodes {
        let progress = node.of(&id);
        let takes_part = progress.is_some() || node.order.is_some_and(|o| o.id == id);
        if let Some(progress) = progress {
            status.backup = status.backup.take().or_else(|| progress.backup.clone());
            status.revision_after = status.revision_after.or(progress.revision_after);
            // The node that counts knows more than where the data is kept.
            let fuller = |r: &crds::RestoreReport| r.gone + r.came_back + r.cleansed;
            let better = progress
                .report
                .as_ref()
                .filter(|_| progress.stage == RestoreStage::Done);
            if let Some(report) = better
                && status
                    .report
                    .as_ref()
                    .is_none_or(|old| fuller(report) > fuller(old))
            {
                status.report = Some(report.clone());
            }
        }
        if takes_part || sight.object.spec.mode == RestoreMode::InPlace {
            nodes.push(crds::RestoreNode {
                node: name.clone(),
                stage: progress.map(|p| p.stage),
                message: progress.map(|p| p.message.clone()).unwrap_or_default(),
            });
        }
    }
    status.nodes = nodes;
    status.loss = status.loss.take().or_else(|| loss::known(sight, &id));
    let counted_at = status.loss.as_ref().and_then(|l| l.revision);
    status.revision_before = counted_at.or(status.revision_before);
}

fn conditions(status: &mut crds::EtcdRestoreStatus, sight: &Sight<'_>, plan: &Plan) {
    let state = plan.state;
    let of = |yes: bool| if yes { Tristate::True } else { Tristate::False };
    let whole = state == RestoreState::Completed && plan.reason != NOT_WHOLE;
    let succeeded = match state {
        RestoreState::Completed => of(whole),
        RestoreState::Failed | RestoreState::Undone => Tristate::False,
        _ => Tristate::Unknown,
    };
    let confirmed = matches!(
        state,
        RestoreState::Arming | RestoreState::Restoring | RestoreState::Undone
    ) || sight.object.spec.confirm.is_some()
        && sight.object.spec.confirm == status.confirm_with;
    let validated = state != RestoreState::Validating;
    let ended_badly = state.is_end() && !whole;
    // A person is wanted.
    let stalled = ended_badly
        || matches!(
            state,
            RestoreState::AwaitingConfirmation | RestoreState::Validating
        );
    let moves = matches!(
        state,
        RestoreState::Preparing | RestoreState::Arming | RestoreState::Restoring
    );
    let mut all = vec![
        ("Succeeded", succeeded),
        ("Validated", of(validated)),
        ("Ready", of(whole)),
        ("Reconciling", of(moves)),
        ("Stalled", of(stalled)),
    ];
    if sight.object.spec.mode == RestoreMode::InPlace {
        all.push(("Confirmed", of(confirmed)));
    }
    let generation = sight.object.metadata.generation;
    for (type_, value) in all {
        let new = condition(
            type_,
            value,
            plan.reason,
            &plan.message,
            generation,
            sight.now.clone(),
        );
        set_condition(&mut status.conditions, new);
    }
}
