//! What a rescue has promised on this node, on its disk, before it acts; and the mark that agent and guard heed.
//!
//! `rescue/journal.json` in the state directory holds the one rescue of this node and where it stands;
//! `rescue/ID/` the manifests as they were, and as they are to be.

use std::fs;
use std::io;
use std::path::PathBuf;

use chrono::{DateTime, Utc};
use lockkeeper_crds::RestoredBackup;
use serde::{Deserialize, Serialize};

use super::super::host::{self, Host};
use super::super::manifest;

const FORMAT: u32 = 1;

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Kind {
    /// On the one node that is left.
    RecoverQuorum,
    /// On a node that lost its data.
    Rejoin,
    /// On the first node, from a backup, where no member is left.
    Restore,
}

impl Kind {
    /// As it is called on the command line.
    pub(crate) fn command(self) -> &'static str {
        match self {
            Self::RecoverQuorum => "recover-quorum",
            Self::Rejoin => "rejoin",
            Self::Restore => "restore",
        }
    }
}

/// Where it stands: what is being made true. In the order of the deeds; each is journalled before it is begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) enum Step {
    /// The API server's manifest is taken off and its container ends.
    StoppingApi,
    /// The same of etcd.
    StoppingEtcd,
    /// Both are off; `rescue rejoin` goes on. A place to rest.
    Fenced,
    /// The data directory is copied.
    Copying,
    /// etcd runs with `--force-new-cluster`.
    Forcing,
    /// etcd runs without it again.
    Unforcing,
    /// The old member of this name is removed, on the survivor.
    Removing,
    /// The old data are moved aside.
    MovingAside,
    /// The restored data go into their place.
    Placing,
    /// etcd starts on them, as the only member.
    Booting,
    /// What tells of the backup's time is taken out.
    Cleansing,
    /// This node is added as a learner, on the survivor.
    Adding,
    /// etcd starts as that learner and catches up.
    Joining,
    /// It is made a voting member, on the survivor.
    Promoting,
    /// The API server's manifest is back and it becomes ready.
    StartingApi,
    /// The kubelet has its API again: a manifest under another pod's UID is replaced by the plain one.
    Unbridging,
    /// Data and manifests are put back as they were.
    PuttingBack,
    /// It ended well.
    Done,
    /// It ended as it began.
    PutBack,
}

impl Step {
    pub(crate) fn is_end(self) -> bool {
        matches!(self, Self::Done | Self::PutBack)
    }
}

/// One of the two manifests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) enum Part {
    /// `kube-apiserver.yaml`.
    Api,
    /// `etcd.yaml`.
    Etcd,
}

impl Part {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Api => "kube-apiserver",
            Self::Etcd => "etcd",
        }
    }

    /// The kubelet reads it here.
    pub(crate) fn path(self, host: &Host) -> PathBuf {
        host.manifests().join(format!("{}.yaml", self.name()))
    }
}

/// Which of a manifest's copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) enum Age {
    /// As it was.
    Old,
    /// With the flags of the rescue.
    New,
}

impl Age {
    fn name(self) -> &'static str {
        match self {
            Self::Old => "old",
            Self::New => "new",
        }
    }
}

/// etcd's manifest under the UID of the pod that the kubelet keeps (see `agent/ticket`, the bridge).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Bridge {
    pub(crate) of: Age,
    pub(crate) pod: String,
    /// SHA-256 of the bytes.
    pub(crate) hash: String,
}

/// A rescue and where it stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    /// The names of its copies begin with it.
    pub(crate) id: String,
    pub(crate) kind: Kind,
    pub(crate) step: Step,
    pub(crate) since: DateTime<Utc>,
    pub(crate) begun: DateTime<Utc>,
    /// Why it turned back, or what is to be said of its end.
    #[serde(default)]
    pub(crate) message: String,
    /// SHA-256 of the API server's manifest; none where the node had none.
    pub(crate) api: Option<String>,
    /// SHA-256 of etcd's manifest as it was.
    pub(crate) etcd: String,
    /// And as it is to be for a while (`--force-new-cluster`) or from now on (rejoined); none until that is known.
    #[serde(default)]
    pub(crate) etcd_new: Option<String>,
    #[serde(default)]
    pub(crate) bridges: Vec<Bridge>,
    /// The member's.
    pub(crate) name: String,
    pub(crate) peer_url: String,
    /// On the host.
    pub(crate) data: PathBuf,
    /// Where the data are copied or moved to, on the host.
    pub(crate) aside: PathBuf,
    /// Name and peer URL of every other member, as they were known before anything was stopped.
    #[serde(default)]
    pub(crate) peers: Vec<(String, String)>,
    /// The survivor's client URL, for a rejoin.
    #[serde(default)]
    pub(crate) via: Option<String>,
    /// Where the restored data lie until they go into their place, on the host.
    #[serde(default)]
    pub(crate) restored: Option<PathBuf>,
    /// What they are.
    #[serde(default)]
    pub(crate) backup: Option<RestoredBackup>,
    /// The learner that was added.
    #[serde(default)]
    pub(crate) learner: Option<u64>,
    /// The data are not as they were any more.
    #[serde(default)]
    pub(crate) touched: bool,
}

impl Entry {
    pub(crate) fn is_live(&self) -> bool {
        !self.step.is_end()
    }

    /// Whether a file of this hash is etcd's manifest of this age, itself or as a bridge. Both ages may be the same
    /// to the byte: a node that joined last has the flags of a rejoin already.
    pub(crate) fn is(&self, hash: &str, age: Age) -> bool {
        let plain = match age {
            Age::Old => Some(self.etcd.as_str()),
            Age::New => self.etcd_new.as_deref(),
        };
        plain == Some(hash) || self.bridge(hash).is_some_and(|bridge| bridge.of == age)
    }

    /// True for what was there before and for whatever the rescue put there since; all else is somebody's.
    pub(crate) fn knows(&self, hash: &str) -> bool {
        self.is(hash, Age::Old) || self.is(hash, Age::New)
    }

    /// The bridge that a file of this hash is.
    pub(crate) fn bridge(&self, hash: &str) -> Option<&Bridge> {
        self.bridges.iter().find(|bridge| bridge.hash == hash)
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct File {
    format: u32,
    entry: Option<Entry>,
}

/// Why the journal could not be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BookError {
    #[error("{path} cannot be written ({source}): nothing is changed before it can be")]
    Write { path: String, source: io::Error },
    #[error("{path} cannot be read: {source}")]
    Read { path: String, source: io::Error },
    #[error(
        "{path} cannot be understood ({why}): compare the copies beside it with the manifest directory, put back what must be put back, then remove this file"
    )]
    Broken { path: String, why: String },
    #[error("the copy {path} is not what the journal says it is (another SHA-256): it is not used")]
    Altered { path: String },
}

/// The journal's place on disk.
#[derive(Clone, Debug)]
pub(crate) struct Book {
    host: Host,
}

impl Book {
    pub(crate) fn new(host: Host) -> Self {
        Self { host }
    }

    pub(crate) fn directory(&self) -> PathBuf {
        self.host.state().join("rescue")
    }

    fn path(&self) -> PathBuf {
        self.directory().join("journal.json")
    }

    /// Where the copies of a rescue lie.
    pub(crate) fn copies(&self, id: &str) -> PathBuf {
        self.directory().join(id)
    }

    /// The copy of a manifest.
    pub(crate) fn copy(&self, id: &str, part: Part, age: Age) -> PathBuf {
        self.copies(id)
            .join(format!("{}.{}.yaml", part.name(), age.name()))
    }

    /// The last rescue of this node; none where there was none.
    pub(crate) fn load(&self) -> Result<Option<Entry>, BookError> {
        let path = self.path();
        let shown = || path.display().to_string();
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => {
                return Err(BookError::Read {
                    path: shown(),
                    source,
                });
            }
        };
        let broken = |why: String| BookError::Broken { path: shown(), why };
        let file: File = serde_json::from_slice(&bytes).map_err(|e| broken(e.to_string()))?;
        if file.format != FORMAT {
            return Err(broken(format!("its format is {}, not {FORMAT}", file.format)));
        }
        Ok(file.entry)
    }

    /// Writes the journal durably. A live one is marked as in hand first, and an ended one unmarked afterwards.
    pub(crate) fn save(&self, entry: &Entry) -> Result<(), BookError> {
        let path = self.path();
        let failed = |source| BookError::Write {
            path: path.display().to_string(),
            source,
        };
        host::create_directory(self.host.state()).map_err(failed)?;
        host::create_directory(&self.directory()).map_err(failed)?;
        if entry.is_live() {
            self.mark().map_err(failed)?;
        }
        let file = File {
            format: FORMAT,
            entry: Some(entry.clone()),
        };
        let bytes = serde_json::to_vec_pretty(&file).map_err(|e| failed(io::Error::other(e)))?;
        host::replace(&path, &bytes, 0o600).map_err(failed)?;
        if !entry.is_live() {
            self.unmark().map_err(failed)?;
        }
        Ok(())
    }

    /// Puts a copy of a manifest on disk and returns its SHA-256.
    pub(crate) fn keep(&self, id: &str, part: Part, age: Age, bytes: &[u8]) -> Result<String, BookError> {
        let path = self.copy(id, part, age);
        let failed = |source| BookError::Write {
            path: path.display().to_string(),
            source,
        };
        host::create_directory(self.host.state()).map_err(failed)?;
        host::create_directory(&self.directory()).map_err(failed)?;
        host::create_directory(&self.copies(id)).map_err(failed)?;
        host::replace(&path, bytes, 0o600).map_err(failed)?;
        Ok(manifest::hash(bytes))
    }

    /// A copy's bytes, checked against the journal's hash.
    pub(crate) fn kept(&self, id: &str, part: Part, age: Age, hash: &str) -> Result<Vec<u8>, BookError> {
        let path = self.copy(id, part, age);
        let shown = || path.display().to_string();
        let bytes = fs::read(&path).map_err(|source| BookError::Read {
            path: shown(),
            source,
        })?;
        if manifest::hash(&bytes) == hash {
            Ok(bytes)
        } else {
            Err(BookError::Altered { path: shown() })
        }
    }

    /// Takes the mark off where the journal says that all has ended: one that was killed right then left it.
    pub(crate) fn settle(&self) -> Result<(), BookError> {
        match self.load()? {
            Some(entry) if !entry.is_live() => self.unmark().map_err(|source| BookError::Write {
                path: mark_of(&self.host).display().to_string(),
                source,
            }),
            _ => Ok(()),
        }
    }

    /// Marks a rescue as in hand: agent and guard let go of the claim and do nothing.
    pub(crate) fn mark(&self) -> io::Result<()> {
        host::create_directory(self.host.state())?;
        host::create_directory(&self.directory())?;
        let path = mark_of(&self.host);
        if path.exists() {
            return Ok(());
        }
        host::replace(
            &path,
            b"a `lockkeeper rescue` is in hand; its journal lies beside this file\n",
            0o600,
        )
    }

    /// Lets agent and guard act again.
    pub(crate) fn unmark(&self) -> io::Result<()> {
        host::remove(&mark_of(&self.host))
    }
}

fn mark_of(host: &Host) -> PathBuf {
    host.state().join("rescue/in-hand")
}

/// The mark, where a rescue is in hand on this node.
pub(crate) fn in_hand(host: &Host) -> Option<PathBuf> {
    Some(mark_of(host)).filter(|path| path.exists())
}
