//! What a restore would lose, and how a person is told of it before the word is typed. Pure.

use lockkeeper_crds as crds;

use super::sight::Sight;

/// As far as it is known. A node counts it; where its member could not be read, there is still since when, and what the
/// API says of etcd.
pub(super) fn known(sight: &Sight<'_>, id: &str) -> Option<crds::RestoreLoss> {
    let counts = |o: &&crds::RestoreOrder| o.id == id && o.counts;
    let counting = sight
        .nodes
        .iter()
        .find_map(|(name, node)| Some((name, node, node.order.filter(counts)?)));
    let Some((name, node, order)) = counting else {
        return sight.nodes.values().find_map(|n| n.of(id)?.loss.clone());
    };
    let progress = node.of(id)?;
    // Until it has prepared, it may count yet.
    let backup = progress.backup.as_ref()?;
    let mut loss = progress.loss.clone().unwrap_or_else(|| crds::RestoreLoss {
        since: backup.taken_at.clone(),
        uncounted: Some("its agent does not say why".to_owned()),
        ..crds::RestoreLoss::default()
    });
    loss.uncounted = loss.uncounted.map(|why| format!("{name}: {why}"));
    if loss.revision.is_none() && sight.revision > 0 {
        loss.revision = Some(sight.revision);
        let same = order.cluster_id == backup.cluster_id;
        loss.revisions = same.then(|| (sight.revision - backup.revision).max(0));
    }
    Some(loss)
}

/// What a person is to read, or to weigh, before the word is typed.
pub(super) fn to_weigh(loss: Option<&crds::RestoreLoss>) -> String {
    let Some(loss) = loss else {
        return "nothing is known of what will be lost but that it is whatever was written since the backup; if that will do,".to_owned();
    };
    let Some(why) = &loss.uncounted else {
        return "read status.loss, then".to_owned();
    };
    let since = loss.since.as_ref().map_or_else(
        || "the backup".to_owned(),
        |at| at.0.strftime("%F %T UTC").to_string(),
    );
    let writes = loss
        .revisions
        .map_or_else(String::new, |count| format!(", {count} writes"));
    format!(
        "what will be lost is known in part only: whatever was written since {since}{writes}; which keys that is could not be counted ({why}); if that will do,"
    )
}
