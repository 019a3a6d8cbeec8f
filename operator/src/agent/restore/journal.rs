//! What this node has promised about restores, on its own disk, before it acts: `restore.json` beside the tickets'
//! journal, written beside and renamed over like that one.
//!
//! A restore takes the API's memory back, but not this file: ids that stand in it are never obeyed again.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::PathBuf;

use chrono::{DateTime, Utc};
use lockkeeper_crds::{RestoreLoss, RestoreOrder, RestoreReport, RestoredBackup};
use lockkeeper_policies::NodeName;
use lockkeeper_policies::restore::{Part, Stage, Standing};
use serde::{Deserialize, Serialize};

use super::place::Place;
use crate::agent::host::{self, Host};

const FORMAT: u32 = 1;

/// So many ids of ended restores are remembered; a backup brings back the orders of its own time only.
const REMEMBERED: usize = 200;

/// A restore and where it stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) order: RestoreOrder,
    /// This node.
    pub(crate) node: NodeName,
    pub(crate) place: Place,
    pub(crate) stage: Stage,
    pub(crate) since: DateTime<Utc>,
    /// Wall clock: it must outlive the agent and a reboot. Safety does not rest on it.
    pub(crate) deadline: DateTime<Utc>,
    pub(crate) message: String,
    /// SHA-256 of each manifest as it was when the restore began; the bytes lie beside.
    #[serde(default)]
    pub(crate) manifests: BTreeMap<Part, String>,
    #[serde(default)]
    pub(crate) backup: Option<RestoredBackup>,
    #[serde(default)]
    pub(crate) loss: Option<RestoreLoss>,
    #[serde(default)]
    pub(crate) report: Option<RestoreReport>,
    #[serde(default)]
    pub(crate) revision_after: Option<i64>,
}

impl Entry {
    pub(crate) fn is_live(&self) -> bool {
        !self.stage.is_end()
    }

    pub(crate) fn nodes(&self) -> BTreeSet<NodeName> {
        let members = self.order.members.iter();
        members.map(|m| NodeName::from(m.node.as_str())).collect()
    }

    pub(crate) fn standing<'a>(&'a self, nodes: &'a BTreeSet<NodeName>) -> Standing<'a> {
        Standing {
            node: &self.node,
            nodes,
            stage: self.stage,
            deadline: self.deadline,
        }
    }
}

/// The journal's content.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Journal {
    format: u32,
    /// Ids that were obeyed, the last one last.
    #[serde(default)]
    pub(crate) known: Vec<String>,
    /// The last restore.
    #[serde(default)]
    pub(crate) entry: Option<Entry>,
}

impl Journal {
    pub(crate) fn live(&self) -> Option<&Entry> {
        self.entry.as_ref().filter(|e| e.is_live())
    }

    /// True when this id is never to be taken up: it was, or is.
    pub(crate) fn knows(&self, id: &str) -> bool {
        self.known.iter().any(|known| known == id)
    }

    /// With another entry, whose id is remembered from now on.
    pub(crate) fn with(&self, entry: Entry) -> Self {
        let mut known = self.known.clone();
        if !self.knows(&entry.order.id) {
            known.push(entry.order.id.clone());
        }
        let surplus = known.len().saturating_sub(REMEMBERED);
        known.drain(..surplus);
        Self {
            format: FORMAT,
            known,
            entry: Some(entry),
        }
    }
}

/// Why it could not be read or written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JournalError {
    #[error("the journal of restores {path} cannot be written ({source}): nothing is done before it can be")]
    Write { path: String, source: io::Error },
    #[error("the copy {path} of a manifest cannot be kept or read: {source}")]
    Copy { path: String, source: io::Error },
    #[error(
        "the copy {path} is not what the journal says it is (another SHA-256): put the manifest back by hand"
    )]
    Altered { path: String },
}

/// Its place on disk.
#[derive(Clone, Debug)]
pub(crate) struct JournalStore {
    host: Host,
}

impl JournalStore {
    pub(crate) fn new(host: Host) -> Self {
        Self { host }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.host.state().join("restore.json")
    }

    fn copy(&self, id: &str, part: Part) -> PathBuf {
        self.host
            .state()
            .join("restores")
            .join(id)
            .join(format!("{part}.yaml"))
    }

    /// Reads it. A missing one is a new node's; one that cannot be understood is never guessed at: a sentence.
    pub(crate) fn load(&self) -> Result<Journal, String> {
        let path = self.path();
        let broken = |why: String| {
            format!(
                "The journal of restores {} cannot be understood ({why}), so no restore is begun or gone on with. The manifests as they were before the last one are in {}; the data of before, where it was put aside, is in .lockkeeper below etcd's data directory. Put back what must be put back, then remove the journal file.",
                path.display(),
                self.host.state().join("restores").display()
            )
        };
        match fs::read(&path) {
            Ok(bytes) => match serde_json::from_slice::<Journal>(&bytes) {
                Ok(journal) if journal.format == FORMAT => Ok(journal),
                Ok(journal) => Err(broken(format!("its format is {}, not {FORMAT}", journal.format))),
                Err(error) => Err(broken(error.to_string())),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Journal {
                format: FORMAT,
                ..Journal::default()
            }),
            Err(error) => Err(broken(error.to_string())),
        }
    }

    /// Writes it durably.
    pub(crate) fn save(&self, journal: &Journal) -> Result<(), JournalError> {
        let path = self.path();
        let failed = |source| JournalError::Write {
            path: path.display().to_string(),
            source,
        };
        let bytes = serde_json::to_vec_pretty(journal).map_err(|e| failed(io::Error::other(e)))?;
        host::create_directory(self.host.state()).map_err(failed)?;
        host::replace(&path, &bytes, 0o600).map_err(failed)
    }

    /// Keeps a manifest's bytes, durably.
    pub(crate) fn keep(&self, id: &str, part: Part, bytes: &[u8]) -> Result<(), JournalError> {
        let path = self.copy(id, part);
        let failed = |source| JournalError::Copy {
            path: path.display().to_string(),
            source,
        };
        for directory in path
            .ancestors()
            .skip(1)
            .take(2)
            .collect::<Vec<_>>()
            .into_iter()
            .rev()
        {
            host::create_directory(directory).map_err(failed)?;
        }
        host::replace(&path, bytes, 0o600).map_err(failed)
    }

    /// A manifest's bytes as kept, checked against the journal.
    pub(crate) fn kept(&self, entry: &Entry, part: Part) -> Result<Vec<u8>, JournalError> {
        let path = self.copy(&entry.order.id, part);
        let shown = || path.display().to_string();
        let bytes = fs::read(&path).map_err(|source| JournalError::Copy {
            path: shown(),
            source,
        })?;
        if entry.manifests.get(&part) == Some(&crate::agent::manifest::hash(&bytes)) {
            Ok(bytes)
        } else {
            Err(JournalError::Altered { path: shown() })
        }
    }
}
