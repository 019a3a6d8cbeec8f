//! The etcd member on this node.
//!
//! | | |
//! | --- | --- |
//! | comes in | the member's static-pod manifest, its client certificates, its answers |
//! | goes out | [`EtcdStatus`] for the node's status; a [`Snapshot`] for a backup |
//! | may touch | those files, read-only; the one endpoint of this one member |
//!
//! Every call has a deadline: an etcd that hangs never hangs the agent.

mod error;
mod host;
pub(crate) mod members;
pub(crate) mod peers;
mod register;
mod snapshot;
pub(crate) mod wal;

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use etcd_client::{
    AlarmAction, AlarmOptions, AlarmType, Certificate, Channel, Client, GetOptions, Identity, StatusResponse,
    TlsOptions,
};
use lockkeeper_crds::{self as crds, EtcdStatus, Tristate};
use tonic::transport::Endpoint;

use crate::api::chain;
use crate::store::KeyHash;

pub use error::EtcdError;
pub use register::Cleansed;
pub(crate) use register::{KeySeen, Reading, Signature};
pub use snapshot::{Origin, Snapshot, SnapshotError, TrailerCheck};

use error::explain;
use host::{Stamp, Target};

/// For one answer. A healthy member answers in milliseconds; one that takes longer has lost its leader, its
/// disk or its processor (an election takes 1 s by default), and a status that waits helps nobody.
const ANSWER: Duration = Duration::from_millis(2500);

/// For the TCP and TLS handshake, on the same machine.
const CONNECT: Duration = Duration::from_secs(2);

/// What may be on its way to a reader that keeps a pace, in seconds of that pace. Little: while etcd streams at full speed
/// its runtime looks for other requests every 10 ms only, and in between when it has sent all that it may.
const AHEAD: f64 = 0.002;

/// The least that may be on its way, in bytes: eight of etcd's messages. With two, a gigabyte had not come after
/// minutes.
const LEAST_AHEAD: u32 = 256 * 1024;

/// The most: what a stream may have by default.
const MOST_AHEAD: u32 = 2 * 1024 * 1024;

/// For the files. Even a disk may hang.
const FILES: Duration = Duration::from_secs(2);

/// Until a snapshot's first message is on its way: etcd commits its pending writes before.
const SNAPSHOT_BEGINS: Duration = Duration::from_secs(20);

/// HashKV walks over all keys.
const HASH: Duration = Duration::from_secs(60);

/// The largest database, in bytes, whose keys are hashed for a backup: etcd holds a lock over it in which no write is
/// committed, so the limit is low; what is larger is compared by its own hash when it is restored.
const HASHED: i64 = 256 * 1024 * 1024;

/// For that hash.
const HASHED_WITHIN: Duration = Duration::from_secs(10);

/// Counting walks over the index, in memory: a million keys in well under a second.
const COUNT: Duration = Duration::from_secs(10);

/// As `etcdctl endpoint health` reads it. It need not exist.
const HEALTH_KEY: &str = "health";

/// The etcd member on this node, as seen from its host.
///
/// # Guarantees
/// * Every method returns within its deadlines, whatever etcd does.
/// * Changes of the manifest and of the certificates are followed at the next call.
pub struct EtcdMember {
    root: PathBuf,
    manifest: PathBuf,
    address: Option<String>,
    cached: Mutex<Cached>,
}

impl std::fmt::Debug for EtcdMember {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EtcdMember")
            .field("root", &self.root)
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

#[derive(Default)]
struct Cached {
    target: Option<(Stamp, Target)>,
    client: Option<(Credentials, Client)>,
}

/// Of what a client was made. Another one, another client.
#[derive(Clone, PartialEq, Eq)]
struct Credentials {
    target: Target,
    files: Vec<(PathBuf, Option<Stamp>)>,
}

impl EtcdMember {
    /// The member whose manifest lies in `<root>/etc/kubernetes/manifests/etcd.yaml`. `root` is `/` where the
    /// host's paths are mounted at their own places. Reads nothing yet.
    ///
    /// `address` (`host:port`, or a URL) is asked instead of the endpoint that the manifest names.
    #[must_use]
    pub fn from_host(root: &Path, address: Option<&str>) -> Self {
        Self {
            root: root.to_owned(),
            manifest: host::manifest_path(root),
            address: address.map(str::to_owned),
            cached: Mutex::default(),
        }
    }

    /// Where the host's files are.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The same by a copy of the manifest: while the manifest itself is off.
    pub(crate) fn by_copy(root: &Path, manifest: &Path, address: Option<&str>) -> Self {
        Self {
            manifest: manifest.to_owned(),
            ..Self::from_host(root, address)
        }
    }

    /// Asks the member how it and its cluster are. None when there is no etcd manifest on this node: the
    /// cluster's etcd is external, or the member was taken away.
    ///
    /// `healthy` is `True` if a linearizable read through this member succeeded just now, `False` if the member
    /// was asked and did not, `Unknown` if it could not be asked (its manifest or its certificates are at
    /// fault). Takes 10 s at most.
    pub async fn observe(&self) -> Option<EtcdStatus> {
        let client = match self.client().await {
            Ok(client) => client,
            Err(EtcdError::NoMember { .. }) => return None,
            Err(e) => {
                return Some(EtcdStatus {
                    message: e.to_string(),
                    ..EtcdStatus::default()
                });
            }
        };
        // First, and on the same connection: what the member list says afterwards is at least this new. The
        // client knows no linearizable member list.
        let read = linearizable_read(&client).await;
        let mut seen = match &read {
            Ok(_) => EtcdStatus {
                healthy: Tristate::True,
                ..EtcdStatus::default()
            },
            Err(e) => EtcdStatus {
                healthy: Tristate::False,
                message: e.to_string(),
                ..EtcdStatus::default()
            },
        };
        if read.is_err() {
            self.forget();
        }
        let (status, alarms, members) = tokio::join!(status(&client), alarms(&client), members(&client));
        for failed in [
            status.as_ref().err(),
            alarms.as_ref().err(),
            members.as_ref().err(),
        ]
        .into_iter()
        .flatten()
        {
            tracing::debug!(error = %failed, "etcd answered in part");
            if seen.message.is_empty() {
                seen.message = failed.to_string();
            }
        }
        // Without a quorum alarms cannot be listed, but each member's status names those that it knows.
        seen.alarms =
            alarms.unwrap_or_else(|_| status.as_ref().map(|s| s.errors().to_vec()).unwrap_or_default());
        seen.members = members.unwrap_or_default();
        if let Ok(status) = status {
            fill(&mut seen, &status);
        }
        Some(seen)
    }

    /// Begins to stream a snapshot of this member, after a linearizable read through it.
    ///
    /// On a connection of its own, so that a slow reader of it does not hold up [`EtcdMember::observe`]. `pace`: the most
    /// bytes a second that will be read, so that no more is sent ahead than that takes.
    ///
    /// # Errors
    /// When the member is absent, cannot be asked, or cannot read linearizably: what it holds may then be old.
    pub async fn snapshot(&self, pace: Option<u64>) -> Result<Snapshot, EtcdError> {
        let (target, files) = self.target().await?;
        let client = connect(&target, &files, ahead(pace)).await?;
        let revision = linearizable_read(&client).await?;
        let status = status(&client).await?;
        let header = status.header();
        let origin = Origin {
            revision,
            cluster_id: id(header.map(etcd_client::ResponseHeader::cluster_id)),
            member_id: id(header.map(etcd_client::ResponseHeader::member_id)),
            etcd_version: status.version().to_owned(),
            storage_version: Some(status.storage_version().to_owned()).filter(|v| !v.is_empty()),
            keys: count(&client, revision).await,
            hash_kv: match status.db_size() {
                0..=HASHED => hash_kv(&client, revision, HASHED_WITHIN).await.ok(),
                _ => None,
            },
        };
        let mut maintenance = client.maintenance_client();
        let stream = within(SNAPSHOT_BEGINS, "begin a snapshot", maintenance.snapshot()).await?;
        Ok(Snapshot::new(origin, stream))
    }

    /// The revision that it is at, by a linearizable read.
    ///
    /// # Errors
    /// When the member is absent, cannot be asked, or cannot read linearizably.
    pub async fn revision(&self) -> Result<i64, EtcdError> {
        linearizable_read(&self.client().await?).await
    }

    /// How many keys begin with `prefix` at `revision` (0: the newest); with an empty prefix, all.
    ///
    /// # Errors
    /// When the member is absent, cannot be asked, or has compacted that revision away.
    pub async fn count(&self, prefix: &str, revision: i64) -> Result<i64, EtcdError> {
        let options = GetOptions::new().with_count_only().with_revision(revision);
        let options = match prefix {
            "" => options.with_all_keys(),
            _ => options.with_prefix(),
        };
        let client = self.client().await?;
        let mut kv = client.kv_client();
        let answer = within(COUNT, "count its keys", kv.get(prefix, Some(options))).await?;
        Ok(answer.count())
    }

    /// Takes every alarm off.
    ///
    /// # Errors
    /// When the member is absent, cannot be asked, or does not answer.
    pub async fn disarm(&self) -> Result<(), EtcdError> {
        let client = self.client().await?;
        let mut maintenance = client.maintenance_client();
        let listed = maintenance.alarm(AlarmAction::Get, AlarmType::None, None);
        let listed = within(ANSWER, "list its alarms", listed).await?;
        for alarm in listed.alarms() {
            let mut options = AlarmOptions::new();
            options.with_member(alarm.member_id());
            let disarmed = maintenance.alarm(AlarmAction::Deactivate, alarm.alarm(), Some(options));
            within(ANSWER, "take an alarm off", disarmed).await?;
        }
        Ok(())
    }

    /// The hash of all keys up to `revision` (0: the newest). etcd walks over all of them: not for every
    /// minute.
    ///
    /// # Errors
    /// When the member is absent, cannot be asked, or has compacted that revision away.
    pub async fn hash_kv(&self, revision: i64) -> Result<KeyHash, EtcdError> {
        hash_kv(&self.client().await?, revision, HASH).await
    }

    /// A client made of what lies on the disk now.
    async fn client(&self) -> Result<Client, EtcdError> {
        let (target, files) = self.target().await?;
        let credentials = credentials(&target, &files).await?;
        if let Some((made_of, client)) = &self.cached().client
            && *made_of == credentials
        {
            return Ok(client.clone());
        }
        let client = connect(&target, &files, MOST_AHEAD).await?;
        self.cached().client = Some((credentials, client.clone()));
        Ok(client)
    }

    fn forget(&self) {
        self.cached().client = None;
    }

    fn cached(&self) -> std::sync::MutexGuard<'_, Cached> {
        // What lies inside is replaced as a whole: a panic elsewhere cannot leave it half done.
        self.cached
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Where and with what to ask, from the manifest as it is now.
    async fn target(&self) -> Result<(Target, Vec<PathBuf>), EtcdError> {
        let path = self.manifest.clone();
        let stamp = file(&path, Stamp::of(&path))
            .await?
            .ok_or_else(|| EtcdError::NoMember { path: path.clone() })?;
        let known = self.cached().target.clone().filter(|(of, _)| *of == stamp);
        let target = match known {
            Some((_, target)) => target,
            None => {
                let text = file(&path, tokio::fs::read_to_string(&path)).await?;
                let target = host::target(&text, &self.root, self.address.as_deref())?;
                self.cached().target = Some((stamp, target.clone()));
                target
            }
        };
        let files = match &target.files {
            None => Vec::new(),
            Some(tls) => {
                let mut files = vec![tls.ca.clone()];
                files.extend(pair(tls).await?);
                files
            }
        };
        Ok((target, files))
    }
}

/// The first pair of which both files exist.
async fn pair(tls: &host::TlsFiles) -> Result<[PathBuf; 2], EtcdError> {
    for (certificate, key) in &tls.pairs {
        let certificate_there = file(certificate, Stamp::of(certificate)).await?.is_some();
        if certificate_there && file(key, Stamp::of(key)).await?.is_some() {
            return Ok([certificate.clone(), key.clone()]);
        }
    }
    Err(EtcdError::NoCertificate {
        looked_for: tls
            .pairs
            .iter()
            .map(|(certificate, _)| certificate.clone())
            .collect(),
    })
}

async fn credentials(target: &Target, files: &[PathBuf]) -> Result<Credentials, EtcdError> {
    let mut stamps = Vec::with_capacity(files.len());
    for path in files {
        stamps.push((path.clone(), file(path, Stamp::of(path)).await?));
    }
    Ok(Credentials {
        target: target.clone(),
        files: stamps,
    })
}

/// What may be on its way to a reader of so many bytes a second.
fn ahead(pace: Option<u64>) -> u32 {
    let ahead = pace.map_or(f64::INFINITY, |pace| pace as f64 * AHEAD);
    // Saturates.
    (ahead as u32).clamp(LEAST_AHEAD, MOST_AHEAD)
}

/// `ahead`: the most that the member may have on its way to us, in bytes.
async fn connect(target: &Target, files: &[PathBuf], ahead: u32) -> Result<Client, EtcdError> {
    let fail = |problem: String| EtcdError::Client {
        endpoint: target.endpoint.clone(),
        problem,
    };
    let endpoint = Endpoint::from_shared(target.endpoint.clone()).map_err(|e| fail(chain(&e)))?;
    let mut endpoint = endpoint
        .connect_timeout(CONNECT)
        .initial_stream_window_size(ahead)
        .initial_connection_window_size(ahead);
    if let [ca, certificate, key] = files {
        let ca = file(ca, tokio::fs::read(ca)).await?;
        let certificate = file(certificate, tokio::fs::read(certificate)).await?;
        let key = file(key, tokio::fs::read(key)).await?;
        let tls = TlsOptions::new()
            .ca_certificate(Certificate::from_pem(ca))
            .identity(Identity::from_pem(certificate, key));
        endpoint = endpoint.tls_config(tls).map_err(|e| fail(chain(&e)))?;
    }
    let connecting = Client::from_channel(Channel::Tonic(endpoint.connect_lazy()), None);
    connecting.await.map_err(|e| fail(explain(&e)))
}

async fn file<T>(path: &Path, work: impl Future<Output = std::io::Result<T>>) -> Result<T, EtcdError> {
    let fail = |source| EtcdError::File {
        path: path.to_owned(),
        source,
    };
    match tokio::time::timeout(FILES, work).await {
        Ok(done) => done.map_err(fail),
        Err(_) => Err(fail(std::io::ErrorKind::TimedOut.into())),
    }
}

async fn within<T>(
    limit: Duration,
    doing: &'static str,
    call: impl Future<Output = Result<T, etcd_client::Error>>,
) -> Result<T, EtcdError> {
    match tokio::time::timeout(limit, call).await {
        Ok(answer) => answer.map_err(|e| EtcdError::asked(doing, &e)),
        Err(_) => Err(EtcdError::TimedOut { doing, limit }),
    }
}

/// The revision that a linearizable read through this member saw.
async fn linearizable_read(client: &Client) -> Result<i64, EtcdError> {
    let doing = "read linearizably";
    let mut kv = client.kv_client();
    let get = kv.get(HEALTH_KEY, Some(GetOptions::new().with_keys_only()));
    match tokio::time::timeout(ANSWER, get).await {
        Ok(Ok(answer)) => Ok(answer.header().map_or(0, etcd_client::ResponseHeader::revision)),
        Ok(Err(e)) => Err(EtcdError::asked(doing, &e)),
        Err(_) => Err(EtcdError::TimedOut { doing, limit: ANSWER }),
    }
}

/// 0 for `revision`: the newest.
async fn hash_kv(client: &Client, revision: i64, limit: Duration) -> Result<KeyHash, EtcdError> {
    let mut maintenance = client.maintenance_client();
    let answer = within(limit, "hash its keys", maintenance.hash_kv(revision)).await?;
    Ok(KeyHash {
        hash: answer.hash(),
        revision: answer.hash_revision(),
        compact_revision: answer.compact_version(),
    })
}

/// How many keys there are at `revision`. From the member's own index: no other one is asked.
async fn count(client: &Client, revision: i64) -> Option<i64> {
    let mut kv = client.kv_client();
    let options = GetOptions::new()
        .with_all_keys()
        .with_count_only()
        .with_serializable()
        .with_revision(revision);
    let answer = within(COUNT, "count its keys", kv.get("", Some(options))).await;
    answer.ok().map(|answer| answer.count())
}

async fn status(client: &Client) -> Result<StatusResponse, EtcdError> {
    within(ANSWER, "tell its status", client.maintenance_client().status()).await
}

async fn alarms(client: &Client) -> Result<Vec<String>, EtcdError> {
    let mut maintenance = client.maintenance_client();
    let listed = maintenance.alarm(AlarmAction::Get, AlarmType::None, None);
    let answer = within(ANSWER, "list its alarms", listed).await?;
    let alarms = answer.alarms().iter().filter_map(|alarm| {
        let kind = match alarm.alarm() {
            AlarmType::None => return None,
            AlarmType::Nospace => "NOSPACE",
            AlarmType::Corrupt => "CORRUPT",
        };
        Some(format!("{kind} on {:x}", alarm.member_id()))
    });
    Ok(alarms.collect())
}

async fn members(client: &Client) -> Result<Vec<crds::EtcdMember>, EtcdError> {
    let mut cluster = client.cluster_client();
    let answer = within(ANSWER, "list its members", cluster.member_list()).await?;
    let mut members: Vec<_> = answer
        .members()
        .iter()
        .map(|member| crds::EtcdMember {
            id: format!("{:x}", member.id()),
            name: member.name().to_owned(),
            learner: member.is_learner(),
            peer_urls: member.peer_urls().to_vec(),
        })
        .collect();
    // etcd's order may change from answer to answer, and a changed status is written.
    members.sort_by(|a, b| a.id.cmp(&b.id));
    Ok(members)
}

fn fill(seen: &mut EtcdStatus, status: &StatusResponse) {
    let signed = |number: u64| i64::try_from(number).ok();
    if let Some(header) = status.header() {
        seen.cluster_id = Some(format!("{:x}", header.cluster_id()));
        seen.member_id = Some(format!("{:x}", header.member_id()));
    }
    seen.version = Some(status.version().to_owned()).filter(|v| !v.is_empty());
    // 0: it knows none.
    seen.leader_id = Some(status.leader())
        .filter(|id| *id != 0)
        .map(|id| format!("{id:x}"));
    seen.raft_term = signed(status.raft_term());
    seen.raft_index = signed(status.raft_index());
    seen.raft_applied_index = signed(status.raft_applied_index());
    seen.db_size_bytes = Some(status.db_size());
}

fn id(number: Option<u64>) -> String {
    number.map(|id| format!("{id:x}")).unwrap_or_default()
}

#[cfg(test)]
mod tests;
