//! Makes the new data beside the data in use: fetch, check, restore. Touches nothing else.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use lockkeeper_crds::{CheckResult, RestoreLoss, RestoreMode, RestoreOrder, RestoredBackup};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::NO_GUARD;
use super::journal::Entry;
use super::keys;
use super::place::Folders;
use crate::agent::chore::{Chore, Mount};
use crate::agent::cri::Cri;
use crate::agent::etcd::EtcdMember;
use crate::agent::guard::Guard;
use crate::agent::host::{self, Host};

/// Beside the snapshot and the data made of it: etcd preallocates a write-ahead log, and lives on this disk.
const MARGIN: u64 = 256 * 1024 * 1024;

/// `etcdutl` maps the snapshot into memory; pages of a file are given back when memory is wanted.
const MEMORY: u64 = 512 * 1024 * 1024;

/// What the chore is called.
const CHORE: &str = "restore";

/// Fetches the order's backup, checks it, and writes the plain snapshot to a file; says what it is.
pub(crate) type Fetch = Arc<
    dyn Fn(RestoreOrder, PathBuf, CancellationToken) -> BoxFuture<'static, Result<RestoredBackup, String>>
        + Send
        + Sync,
>;

/// What came of it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Prepared {
    pub(crate) backup: RestoredBackup,
    /// Where this node was asked to count.
    pub(crate) loss: Option<RestoreLoss>,
}

/// What preparing takes.
#[derive(Clone)]
pub(crate) struct Workshop {
    pub(crate) host: Host,
    pub(crate) cri: Cri,
    pub(crate) member: Arc<EtcdMember>,
    pub(crate) fetch: Fetch,
}

/// One round, in a task of its own.
#[derive(Debug)]
pub(super) struct Round {
    pub(super) id: String,
    task: JoinHandle<Result<Prepared, String>>,
    cancel: CancellationToken,
}

impl Round {
    pub(super) fn begin(workshop: Workshop, guard: Guard, entry: &Entry) -> Self {
        let cancel = CancellationToken::new();
        let (token, entry) = (cancel.clone(), entry.clone());
        Self {
            id: entry.order.id.clone(),
            task: tokio::spawn(async move { prepare(&workshop, &guard, &entry, &token).await }),
            cancel,
        }
    }

    /// Its end, if it has come to one.
    pub(super) async fn ended(&mut self) -> Option<Result<Prepared, String>> {
        if !self.task.is_finished() {
            return None;
        }
        Some(
            (&mut self.task)
                .await
                .unwrap_or_else(|error| Err(format!("the preparation broke: {error}"))),
        )
    }

    /// Tells it to end, and waits until it has taken its pod off.
    pub(super) async fn close(mut self, limit: Duration) {
        self.cancel.cancel();
        if tokio::time::timeout(limit, &mut self.task).await.is_err() {
            tracing::warn!("a preparation is slow to end");
        }
    }
}

async fn prepare(
    workshop: &Workshop,
    guard: &Guard,
    entry: &Entry,
    cancel: &CancellationToken,
) -> Result<Prepared, String> {
    let in_place = entry.order.mode == RestoreMode::InPlace;
    if in_place && !guard.is_at_hand() {
        return Err(NO_GUARD.to_owned());
    }
    let data = entry.place.data.display();
    Folders::new(&workshop.host, &entry.place, &entry.order.id)
        .clear_earlier()
        .map_err(|error| format!("what earlier restores left below {data} cannot be removed: {error}"))?;
    let prepared = beside(workshop, entry, cancel).await?;
    // What is counted on in the middle of a restore is tried before it.
    if in_place && let (false, why) = rehearsed(guard, &workshop.cri, cancel).await {
        return Err(why);
    }
    Ok(prepared)
}

/// The same, and what earlier restores left stays where it is.
pub(crate) async fn beside(
    workshop: &Workshop,
    entry: &Entry,
    cancel: &CancellationToken,
) -> Result<Prepared, String> {
    let (order, place) = (&entry.order, &entry.place);
    let folders = Folders::new(&workshop.host, place, &order.id);
    let failed =
        |what: &str, error: std::io::Error| format!("{what} below {}: {error}", place.data.display());
    folders
        .clear()
        .and_then(|()| host::create_directory(folders.own()))
        .map_err(|e| failed("no room can be made for the restored data", e))?;
    let snapshot = folders.snapshot();
    let backup = tokio::select! {
        fetched = (workshop.fetch)(order.clone(), snapshot.clone(), cancel.clone()) => fetched?,
        () = cancel.cancelled() => return Err("interrupted".to_owned()),
    };
    let size = fs::metadata(&snapshot)
        .map_err(|e| failed("the fetched snapshot cannot be looked at", e))?
        .len();
    // Others write to this disk too: once more, now that the snapshot lies there.
    let free = folders
        .free_bytes()
        .map_err(|e| failed("free space is not known", e))?;
    room(free, size, &place.data)?;
    suits(entry, &backup)?;
    let said = restore(workshop, entry, cancel).await?;
    tracing::info!(restore = order.name, said, "restored beside the data in use");
    let directory = folders.own().join("restored");
    if !folders.is_prepared() {
        return Err(format!(
            "etcdutl ended well, and {} is not there",
            directory.display()
        ));
    }
    sync_all(&directory).map_err(|e| failed("the restored data cannot be made durable", e))?;
    fs::remove_file(&snapshot).map_err(|e| failed("the fetched snapshot cannot be removed", e))?;
    if let (RestoreMode::NewDirectory, Some(directory)) = (order.mode, &order.directory) {
        let to = workshop.host.reach(Path::new(directory));
        leave(folders.own(), &to)
            .map_err(|e| format!("the restored data cannot be put to {directory}: {e}"))?;
    }
    let mut loss = None;
    if order.counts {
        let counted = keys::count_loss(&workshop.member, &backup).await;
        if let Some(why) = &counted.uncounted {
            tracing::warn!(why, "what would be lost cannot be counted");
        }
        loss = Some(counted);
    }
    Ok(Prepared { backup, loss })
}

/// Before anything is written: room for a snapshot of this size, and for what is made of it.
pub(super) fn room_for(size: u64, into: &Path) -> Result<(), String> {
    let directory = into.parent().unwrap_or(into);
    let free = host::free_bytes(directory)
        .map_err(|e| format!("free space at {} is not known: {e}", directory.display()))?;
    room(free, size.saturating_mul(2), directory)
}

/// Whether so much, and the margin, is free.
fn room(free: u64, size: u64, at: &Path) -> Result<(), String> {
    let wanted = size.saturating_add(MARGIN);
    if free >= wanted {
        return Ok(());
    }
    Err(format!(
        "{} has {free} bytes free, and {wanted} are needed beside the data in use: make room on this node's disk",
        at.display()
    ))
}

/// Whether the guard starts on this node.
async fn rehearsed(guard: &Guard, cri: &Cri, cancel: &CancellationToken) -> (bool, String) {
    let (result, told) = guard.rehearse(cri, cancel).await;
    (result == CheckResult::Pass, told)
}

/// Whether a backup may be restored here at all.
pub(crate) fn suits(entry: &Entry, backup: &RestoredBackup) -> Result<(), String> {
    let order = &entry.order;
    if backup.cluster_id != order.cluster_id && !order.allow_other_cluster {
        return Err(format!(
            "the backup is of etcd cluster {}, and this is {}: it is another cluster's, or of before an earlier restore; if it is meant all the same, set spec.allowOtherCluster in a new EtcdRestore",
            backup.cluster_id, order.cluster_id
        ));
    }
    let tag = entry.place.image.rsplit_once(':').map_or("", |(_, tag)| tag);
    if let (Some(here), Some(there)) = (minor(tag), minor(&backup.etcd_version))
        && here != there
    {
        return Err(format!(
            "the backup was taken from etcd {}, and this node runs {}: restore it with etcd of the same minor version",
            backup.etcd_version, entry.place.image
        ));
    }
    Ok(())
}

/// `3.6` of `v3.6.6-0`.
fn minor(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.trim_start_matches('v').split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// Puts the restored data where it was asked for. Nothing that is there is overwritten.
fn leave(own: &Path, to: &Path) -> std::io::Result<()> {
    if to.exists() {
        return Err(std::io::Error::new(
            std::io::ErrorKind::AlreadyExists,
            "something is there already: name a path that does not exist",
        ));
    }
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::rename(own.join("restored"), to)
}

/// `etcdutl snapshot restore`, in the node's own etcd image.
async fn restore(workshop: &Workshop, entry: &Entry, cancel: &CancellationToken) -> Result<String, String> {
    let (order, place) = (&entry.order, &entry.place);
    let own = Folders::inside(place, &order.id);
    let chore = Chore {
        name: CHORE.to_owned(),
        image: place.image.clone(),
        command: command(entry, &own)?,
        mounts: vec![Mount::same(place.data.clone(), false)],
        // It needs none; but this one a node always has.
        host_network: true,
        memory_limit: Some(MEMORY),
        ..Chore::default()
    };
    let limit = Duration::from_secs(order.deadlines.prepare_seconds.into());
    chore
        .run(&workshop.host, &workshop.cri, limit, cancel)
        .await
        .map_err(|error| format!("the backup cannot be restored: {error}"))
}

fn command(entry: &Entry, own: &Path) -> Result<Vec<String>, String> {
    let order = &entry.order;
    let me = order.members.iter().find(|m| m.node == entry.node.as_ref());
    let me = me.ok_or_else(|| format!("the order names no member for {}", entry.node))?;
    if me.name != entry.place.name {
        return Err(format!(
            "the order calls this node's member {}, and etcd.yaml calls it {}",
            me.name, entry.place.name
        ));
    }
    let all = order.members.iter().flat_map(|m| {
        let urls = m.peer_urls.split(',');
        urls.map(move |url| format!("{}={url}", m.name))
    });
    let path = |name: &str| own.join(name).display().to_string();
    Ok([
        "etcdutl".to_owned(),
        "snapshot".to_owned(),
        "restore".to_owned(),
        path("snapshot.db"),
        format!("--data-dir={}", path("restored")),
        format!("--name={}", me.name),
        format!("--initial-cluster={}", all.collect::<Vec<_>>().join(",")),
        format!("--initial-cluster-token={}", order.id),
        format!("--initial-advertise-peer-urls={}", me.peer_urls),
        format!("--bump-revision={}", order.bump_revision),
        "--mark-compacted".to_owned(),
    ]
    .into())
}

/// What etcdutl wrote is on the disk before anything counts on it.
fn sync_all(directory: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync_all(&entry.path())?;
        } else {
            fs::File::open(entry.path())?.sync_all()?;
        }
    }
    fs::File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::super::testing::entry;
    use super::*;

    #[test]
    fn every_member_is_restored_as_itself_into_one_cluster() {
        let entry = entry("cp2", 3);
        let words = command(&entry, Path::new("/var/lib/etcd/.lockkeeper/id")).unwrap();
        assert_eq!(&words[..3], ["etcdutl", "snapshot", "restore"]);
        for word in [
            "--name=cp2",
            "--initial-cluster=cp1=https://10.0.0.1:2380,cp2=https://10.0.0.2:2380,cp3=https://10.0.0.3:2380",
            "--initial-cluster-token=the-id",
            "--initial-advertise-peer-urls=https://10.0.0.2:2380",
            "--bump-revision=1000000000",
            "--mark-compacted",
            "--data-dir=/var/lib/etcd/.lockkeeper/id/restored",
        ] {
            assert!(words.iter().any(|w| w == word), "{word} is not in {words:?}");
        }
    }

    #[test]
    fn another_minor_and_another_cluster_are_refused_by_name() {
        let mut entry = entry("cp1", 1);
        let mut backup = super::super::testing::backup();
        suits(&entry, &backup).unwrap();
        backup.etcd_version = "3.5.21".to_owned();
        assert!(suits(&entry, &backup).unwrap_err().contains("3.5.21"));
        backup = super::super::testing::backup();
        backup.cluster_id = "beef".to_owned();
        assert!(suits(&entry, &backup).unwrap_err().contains("allowOtherCluster"));
        entry.order.allow_other_cluster = true;
        suits(&entry, &backup).unwrap();
    }

    #[test]
    fn a_disk_without_room_is_named_with_what_is_wanted() {
        room(MARGIN + 10, 10, Path::new("/var/lib/etcd")).unwrap();
        let told = room(MARGIN + 9, 10, Path::new("/var/lib/etcd")).unwrap_err();
        assert!(
            told.contains("/var/lib/etcd has 268435465 bytes free, and 268435466 are needed"),
            "{told}"
        );
    }

    #[test]
    fn a_member_of_another_name_is_refused() {
        let mut entry = entry("cp2", 3);
        entry.place.name = "else".to_owned();
        assert!(
            command(&entry, Path::new("/x"))
                .unwrap_err()
                .contains("etcd.yaml")
        );
    }

    #[test]
    fn nothing_is_overwritten() {
        let root = tempfile::tempdir().unwrap();
        let own = root.path().join("own");
        fs::create_dir_all(own.join("restored")).unwrap();
        assert!(leave(&own, root.path()).is_err());
        leave(&own, &root.path().join("a/b")).unwrap();
        assert!(root.path().join("a/b").is_dir());
    }
}
