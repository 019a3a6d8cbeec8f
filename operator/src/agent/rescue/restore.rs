//! What goes before a restore from a backup: what would be lost, and the new data beside the data in use. The same
//! code as an `EtcdRestore`'s (`agent/restore`); nothing in use is touched.

use std::fmt::Display;
use std::path::Path;
use std::sync::Arc;

use chrono::Utc;
use lockkeeper_crds::{
    LocalReference, RestoreDeadlines, RestoreLoss, RestoreMember, RestoreMode, RestoreOrder, RestoreWord,
    RestoredBackup,
};
use lockkeeper_policies::NodeName;
use lockkeeper_policies::restore::Stage;
use tokio_util::sync::CancellationToken;

use super::super::chore;
use super::super::cri::Cri;
use super::super::etcd::EtcdMember;
use super::super::host::Host;
use super::super::restore as engine;
use super::book::Entry;
use super::data;
use super::ground::token;
use super::quorum::alone;
use super::start::{Begin, StartError, Tell, blank, refused};
use super::survey::{EtcdManifest, Survey};
use crate::store::{BackupKey, Identities, Manifest, Store};

/// Far above what was written since any backup, and an int64 holds billions of such steps.
const BUMP: i64 = 1_000_000_000;

/// Fetching and restoring: 8 GiB over a slow network.
const PREPARE_SECONDS: u32 = 3 * 3600;

/// A backup that a person chose.
#[derive(Clone, Debug)]
pub(crate) struct Chosen {
    pub(crate) store: Store,
    pub(crate) key: BackupKey,
    pub(crate) manifest: Manifest,
    pub(crate) keys: Identities,
}

impl Chosen {
    fn described(&self) -> RestoredBackup {
        engine::describe(&self.store, &self.key, &self.manifest)
    }
}

/// What must hold before a backup is restored on this node; tells what would be lost.
pub(super) async fn beginning(
    host: &Host,
    asked: &Begin,
    seen: &Survey,
    manifest: &EtcdManifest,
    tell: Tell<'_>,
) -> Result<Entry, StartError> {
    let Some(chosen) = &asked.backup else {
        return refused("name the backup: `lockkeeper rescue list` shows what there is");
    };
    if let Some(other) = seen.peers.iter().find(|peer| peer.quorum) {
        return refused(format!(
            "{} ({}) has a quorum: its data are newer than any backup. Bring this node back to it, `lockkeeper rescue rejoin --confirm {} --via {}`; to go back to a backup all the same, make an EtcdRestore, or run `lockkeeper rescue fence` on every other node first",
            other.name,
            other.peer_url,
            seen.cluster,
            super::host_of(&other.peer_url)
        ));
    }
    alone(seen, manifest)?;
    if manifest.pod.flag("wal-dir").is_some_and(|at| !at.is_empty()) {
        return refused(format!(
            "{} has --wal-dir: one data directory is exchanged, and a write-ahead log elsewhere is not in it. Take the flag out first",
            manifest.path.display()
        ));
    }
    let mut entry = blank(asked, seen, manifest);
    entry.aside = host.on_host(&data::aside_of(&host.reach(&entry.data), &entry.id));
    let backup = chosen.described();
    engine::suits(&order(&entry, manifest, chosen, 0), &backup).map_err(StartError::Refused)?;
    for line in prospect(host, seen, manifest, &entry, &backup, chosen).await {
        tell(&line);
    }
    entry.backup = Some(backup);
    Ok(entry)
}

/// What a person should know before the word is typed.
async fn prospect(
    host: &Host,
    seen: &Survey,
    manifest: &EtcdManifest,
    entry: &Entry,
    backup: &RestoredBackup,
    chosen: &Chosen,
) -> Vec<String> {
    let taken = chosen.manifest.started_at.0.strftime("%F %T UTC");
    let mut lines = vec![format!(
        "{}: taken {taken} on {}, etcd {}, revision {}, {} MiB",
        chosen.key.name(),
        chosen.manifest.node,
        backup.etcd_version,
        backup.revision,
        backup.size_bytes >> 20
    )];
    lines.push(match (&seen.data_bytes, &seen.standing) {
        (None, _) => format!(
            "There are no data of a member in {} now. Lost: whatever was written after {taken}",
            entry.data.display()
        ),
        (Some(_), Some(standing)) if format!("{:x}", standing.cluster_id) != backup.cluster_id => format!(
            "The etcd here is of another cluster ({:x}) than the backup ({}): one made anew, or restored since. Its data go aside to {}. Lost: whatever was written after {taken}",
            standing.cluster_id,
            backup.cluster_id,
            entry.aside.display()
        ),
        (Some(_), Some(_)) if seen.quorum => {
            let member = EtcdMember::by_copy(host.root(), &manifest.path, None);
            lost(&engine::count_loss(&member, backup).await, &taken, &entry.aside)
        }
        (Some(_), _) => format!(
            "etcd here does not answer ({}), so what would be lost cannot be counted: whatever was written after {taken}. Where a member's data are left, `lockkeeper rescue recover-quorum` loses nothing. The data here go aside to {}",
            seen.problem,
            entry.aside.display()
        ),
    });
    lines
}

fn lost(loss: &RestoreLoss, taken: &impl Display, aside: &Path) -> String {
    let samples = if loss.samples.is_empty() {
        String::new()
    } else {
        format!(" (among them {})", loss.samples.join(", "))
    };
    let writes = loss
        .revisions
        .map_or_else(String::new, |count| format!(" {count} writes:"));
    let keys = match (&loss.uncounted, loss.created, loss.changed) {
        (None, Some(created), Some(changed)) => {
            format!("{created} keys made since{samples}, {changed} changed since")
        }
        (why, ..) => format!(
            "whatever was written after {taken}; which keys that is could not be counted ({})",
            why.as_deref().unwrap_or("no reason is known")
        ),
    };
    format!(
        "Lost will be{writes} {keys}. The data here go aside to {}",
        aside.display()
    )
}

/// Fetches, checks and restores the backup beside the data in use. The caller holds the claim.
pub(super) async fn prepare(
    host: &Host,
    cri: &Cri,
    chosen: &Chosen,
    manifest: &EtcdManifest,
    mut entry: Entry,
    tell: Tell<'_>,
    cancel: &CancellationToken,
) -> Result<Entry, StartError> {
    let member = Arc::new(EtcdMember::by_copy(host.root(), &manifest.path, None));
    let workshop = engine::Workshop {
        host: host.clone(),
        cri: cri.clone(),
        member: member.clone(),
        fetch: engine::by_hand(chosen.store.clone(), chosen.keys.clone()),
    };
    chore::clear(host)
        .and_then(|()| forget_earlier(&host.reach(&entry.data)))
        .map_err(|error| {
            StartError::Refused(format!("what an earlier command left cannot be removed: {error}"))
        })?;
    // No watch may find the future that it waits for.
    let present = member.whole().await.map_or(0, |(_, revision)| revision);
    let order = order(&entry, manifest, chosen, present);
    tell(&format!(
        "It is fetched, checked, and restored beside the data in use by etcdutl of {}; nothing is stopped yet",
        manifest.pod.image
    ));
    let made = engine::beside(&workshop, &order, cancel)
        .await
        .map_err(|why| StartError::Refused(format!("nothing was changed: {why}")))?;
    entry.restored = Some(engine::Folders::inside(&order.place, &order.order.id).join("restored"));
    entry.backup = Some(made.backup);
    Ok(entry)
}

/// Removes what restores that were killed on the way left beside the data: it comes from the backup again.
fn forget_earlier(data: &Path) -> std::io::Result<()> {
    let entries = match std::fs::read_dir(data.join(".lockkeeper")) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(&token("")) {
            std::fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

/// The order that an operator would give to this node, as the only one. `present`: etcd's revision now, or 0.
fn order(entry: &Entry, manifest: &EtcdManifest, chosen: &Chosen, present: i64) -> engine::Entry {
    let now = Utc::now();
    let order = RestoreOrder {
        id: token(&entry.id),
        name: token(&entry.id),
        mode: RestoreMode::InPlace,
        word: RestoreWord::Prepare,
        store: LocalReference {
            name: chosen.store.name().to_owned(),
        },
        key: chosen.key.manifest.to_string(),
        sha256: chosen.manifest.sha256.clone(),
        // A cluster whose etcd was made anew has another id; the cluster's name is what a person confirms.
        allow_other_cluster: true,
        members: vec![RestoreMember {
            node: entry.name.clone(),
            name: entry.name.clone(),
            peer_urls: entry.peer_url.clone(),
        }],
        bump_revision: present.saturating_add(BUMP),
        cluster_id: String::new(),
        directory: None,
        deadlines: RestoreDeadlines {
            prepare_seconds: PREPARE_SECONDS,
            ..RestoreDeadlines::default()
        },
        counts: false,
    };
    engine::Entry {
        order,
        node: NodeName::from(entry.name.as_str()),
        place: engine::Place {
            data: entry.data.clone(),
            image: manifest.pod.image.clone(),
            name: entry.name.clone(),
            peer_files: Default::default(),
        },
        stage: Stage::Preparing,
        since: now,
        deadline: now,
        message: String::new(),
        manifests: Default::default(),
        backup: None,
        loss: None,
        report: None,
        revision_after: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_killed_restore_of_ours_left_is_forgotten() {
        let data = tempfile::tempdir().unwrap();
        forget_earlier(data.path()).unwrap();
        for name in ["rescue-1/restored", "an-etcd-restore/before/member"] {
            std::fs::create_dir_all(data.path().join(".lockkeeper").join(name)).unwrap();
        }
        std::fs::create_dir_all(data.path().join("member")).unwrap();
        forget_earlier(data.path()).unwrap();
        let own = data.path().join(".lockkeeper");
        assert!(!own.join("rescue-1").exists());
        assert!(own.join("an-etcd-restore/before/member").exists());
        assert!(data.path().join("member").exists());
    }

    #[test]
    fn the_loss_is_a_sentence_with_what_goes_and_where_the_old_data_are() {
        let loss = RestoreLoss {
            revisions: Some(12),
            created: Some(3),
            changed: Some(2),
            samples: vec!["/registry/configmaps/default/x".to_owned()],
            ..RestoreLoss::default()
        };
        let aside = Path::new("/var/lib/etcd.before-1");
        let told = lost(&loss, &"yesterday", aside);
        for part in [
            "12 writes",
            "3 keys",
            "/registry/configmaps/default/x",
            "2 changed",
            "etcd.before-1",
        ] {
            assert!(told.contains(part), "{part}: {told}");
        }
        let half = RestoreLoss {
            uncounted: Some("not done within 60 s".to_owned()),
            created: None,
            changed: None,
            ..loss
        };
        let told = lost(&half, &"yesterday", aside);
        assert_eq!(
            told,
            "Lost will be 12 writes: whatever was written after yesterday; which keys that is could not be counted (not done within 60 s). The data here go aside to /var/lib/etcd.before-1"
        );
    }
}
