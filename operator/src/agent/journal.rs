//! What the agent has promised, on the node's own disk, before it acts.
//!
//! `journal.json` holds the last ticket and where it stands; `tickets/NUMBER/` holds the old and the new bytes of
//! each manifest that it changes. Both are written beside and renamed over, file and directory fsynced, so a
//! power cut leaves the former journal or the new one. With it the agent finishes or undoes a change with no API.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::PathBuf;

use chrono::{DateTime, Utc};
use lockkeeper_crds::{Component, Ticket, TicketState};
use serde::{Deserialize, Serialize};

use super::host::{self, Host};
use super::manifest;

/// Copies of so many tickets are kept, for a person who wants to see what was changed.
const KEPT: usize = 5;

/// Freed when the disk is full, so that the way back can still be written: two manifests and a journal.
const RESERVE: usize = 256 * 1024;

/// What a change does to one manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FileRecord {
    pub(crate) component: Component,
    /// SHA-256 of the bytes before.
    pub(crate) old_hash: String,
    /// SHA-256 of the bytes after.
    pub(crate) new_hash: String,
    pub(crate) old_image: String,
    pub(crate) new_image: String,
    /// UID of the pod that ran before, where it was seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) old_pod: Option<String>,
    /// What was put in between on a way back that the kubelet cannot go in one step, the last one last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) bridges: Vec<Bridge>,
}

impl FileRecord {
    /// The bridge that a file of this hash is.
    pub(crate) fn bridge(&self, hash: &str) -> Option<&Bridge> {
        self.bridges.iter().find(|bridge| bridge.hash == hash)
    }

    /// True for what stood there before and for whatever the agent put there since; all else is somebody's.
    pub(crate) fn knows(&self, hash: &str) -> bool {
        hash == self.old_hash || hash == self.new_hash || self.bridge(hash).is_some()
    }
}

/// The old manifest under the UID of the pod that is to go; see [`super::ticket`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Bridge {
    /// That UID.
    pub(crate) pod: String,
    /// SHA-256 of the bytes.
    pub(crate) hash: String,
}

/// A ticket and where it stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) ticket: Ticket,
    pub(crate) state: TicketState,
    pub(crate) since: DateTime<Utc>,
    /// When the change was announced; a process started for it is younger.
    pub(crate) applied_at: DateTime<Utc>,
    /// Wall clock, not monotonic: a deadline must outlive the agent and a reboot of the node. A clock that is
    /// set back makes the wait longer, never the change permanent: only the operator's word does that.
    pub(crate) ready_deadline: DateTime<Utc>,
    /// Set once it is ready. Wall clock for the same reason.
    pub(crate) confirm_deadline: Option<DateTime<Utc>>,
    pub(crate) files: Vec<FileRecord>,
    pub(crate) message: String,
}

impl Entry {
    pub(crate) fn is_live(&self) -> bool {
        !self.state.is_end()
    }

    /// When the agent acts by itself.
    pub(crate) fn deadline(&self) -> Option<DateTime<Utc>> {
        match self.state {
            TicketState::Applying | TicketState::Starting => Some(self.ready_deadline),
            TicketState::Ready => self.confirm_deadline,
            _ => None,
        }
    }
}

/// The journal's content.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Journal {
    /// Of this format.
    pub(crate) format: u32,
    /// Tickets up to this number are never taken up again.
    pub(crate) last_number: i64,
    /// The last ticket.
    pub(crate) entry: Option<Entry>,
}

/// The journal as it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum JournalState {
    Known(Journal),
    /// It cannot be read, and what to do. No ticket is taken up.
    Broken(String),
}

impl JournalState {
    pub(crate) fn entry(&self) -> Option<&Entry> {
        match self {
            Self::Known(journal) => journal.entry.as_ref(),
            Self::Broken(_) => None,
        }
    }

    pub(crate) fn live(&self) -> Option<&Entry> {
        self.entry().filter(|e| e.is_live())
    }
}

const FORMAT: u32 = 1;

/// Why the journal could not be written or a copy not be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JournalError {
    #[error("the journal {path} cannot be written ({source}): nothing is changed before it can be")]
    Write { path: String, source: io::Error },
    #[error("the copy {path} cannot be read: {source}")]
    Copy { path: String, source: io::Error },
    #[error("the copy {path} is not what the journal says it is (another SHA-256): it is not used")]
    Altered { path: String },
}

/// The journal's place on disk.
#[derive(Clone, Debug)]
pub(crate) struct JournalStore {
    host: Host,
}

impl JournalStore {
    pub(crate) fn new(host: Host) -> Self {
        Self { host }
    }

    fn path(&self) -> PathBuf {
        self.host.state().join("journal.json")
    }

    fn tickets(&self) -> PathBuf {
        self.host.state().join("tickets")
    }

    fn copy(&self, number: i64, component: Component, age: &str) -> PathBuf {
        self.tickets()
            .join(number.to_string())
            .join(format!("{component}.{age}.yaml"))
    }

    /// Reads the journal. A missing one is a new node's; one that cannot be understood is never guessed at.
    pub(crate) fn load(&self) -> JournalState {
        let path = self.path();
        let broken = |why: String| JournalState::Broken(self.broken_sentence(&why));
        match fs::read(&path) {
            Ok(bytes) => match serde_json::from_slice::<Journal>(&bytes) {
                Ok(journal) if journal.format == FORMAT => JournalState::Known(journal),
                Ok(journal) => broken(format!("its format is {}, not {FORMAT}", journal.format)),
                Err(error) => broken(error.to_string()),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => JournalState::Known(Journal {
                format: FORMAT,
                // Folders of tickets outlive a journal that was removed: their numbers stay used.
                last_number: self.numbers().last().copied().unwrap_or(0),
                entry: None,
            }),
            Err(error) => broken(error.to_string()),
        }
    }

    fn broken_sentence(&self, why: &str) -> String {
        let newest = self.numbers().last().copied();
        let copies = newest.map_or_else(
            || "There are no copies of manifests beside it.".to_owned(),
            |n| {
                format!(
                    "The manifests as they were before the last ticket are in {}.",
                    self.tickets().join(n.to_string()).display()
                )
            },
        );
        format!(
            "The journal {} cannot be understood ({why}), so no ticket is taken up. {copies} Compare them with {}, put back what must be put back, then remove the journal file.",
            self.path().display(),
            self.host.manifests().display()
        )
    }

    fn numbers(&self) -> Vec<i64> {
        let mut numbers: Vec<i64> = fs::read_dir(self.tickets())
            .map(|all| {
                all.flatten()
                    .filter_map(|entry| entry.file_name().to_str().and_then(|n| n.parse().ok()))
                    .collect()
            })
            .unwrap_or_default();
        numbers.sort_unstable();
        numbers
    }

    /// Writes the journal durably.
    pub(crate) fn save(&self, journal: &Journal) -> Result<(), JournalError> {
        let path = self.path();
        let failed = |source| JournalError::Write {
            path: path.display().to_string(),
            source,
        };
        let bytes = serde_json::to_vec_pretty(journal).map_err(|e| failed(io::Error::other(e)))?;
        host::create_directory(self.host.state()).map_err(failed)?;
        match host::replace(&path, &bytes, 0o600) {
            Ok(()) => Ok(()),
            Err(first) => {
                // A full disk must not stand in the way back.
                if fs::remove_file(self.reserve()).is_err() {
                    return Err(failed(first));
                }
                host::replace(&path, &bytes, 0o600).map_err(failed)
            }
        }
    }

    fn reserve(&self) -> PathBuf {
        self.host.state().join("reserve")
    }

    /// Puts the old and the new bytes of a ticket's manifests on disk, and room for the way back beside them.
    pub(crate) fn save_copies(
        &self,
        number: i64,
        copies: &BTreeMap<Component, (Vec<u8>, Vec<u8>)>,
    ) -> Result<(), JournalError> {
        let directory = self.tickets().join(number.to_string());
        let failed = |source| JournalError::Write {
            path: directory.display().to_string(),
            source,
        };
        host::create_directory(self.host.state()).map_err(failed)?;
        host::create_directory(&self.tickets()).map_err(failed)?;
        host::create_directory(&directory).map_err(failed)?;
        for (component, (old, new)) in copies {
            host::replace(&self.copy(number, *component, "old"), old, 0o600).map_err(failed)?;
            host::replace(&self.copy(number, *component, "new"), new, 0o600).map_err(failed)?;
        }
        // Not zeros: some file systems store those in no space at all.
        let filler = vec![0x5a; RESERVE];
        host::replace(&self.reserve(), &filler, 0o600).map_err(failed)
    }

    /// The old bytes of a ticket's manifest, checked against the journal's hash.
    pub(crate) fn old(&self, entry: &Entry, record: &FileRecord) -> Result<Vec<u8>, JournalError> {
        self.checked(
            &self.copy(entry.ticket.number, record.component, "old"),
            &record.old_hash,
        )
    }

    /// The new bytes of a ticket's manifest, checked against the journal's hash.
    pub(crate) fn new_bytes(&self, entry: &Entry, record: &FileRecord) -> Result<Vec<u8>, JournalError> {
        self.checked(
            &self.copy(entry.ticket.number, record.component, "new"),
            &record.new_hash,
        )
    }

    fn checked(&self, path: &std::path::Path, hash: &str) -> Result<Vec<u8>, JournalError> {
        let shown = || path.display().to_string();
        let bytes = fs::read(path).map_err(|source| JournalError::Copy {
            path: shown(),
            source,
        })?;
        if manifest::hash(&bytes) == hash {
            Ok(bytes)
        } else {
            Err(JournalError::Altered { path: shown() })
        }
    }

    /// Removes the copies of all but the last tickets.
    pub(crate) fn prune(&self) {
        let numbers = self.numbers();
        for number in numbers.iter().rev().skip(KEPT) {
            // Housekeeping only: what stays is tried again after the next ticket.
            let _ = fs::remove_dir_all(self.tickets().join(number.to_string()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn store() -> (tempfile::TempDir, JournalStore) {
        let root = tempfile::tempdir().unwrap();
        let host = Host::new(root.path(), Path::new("/manifests"), Path::new("/state"));
        (root, JournalStore::new(host))
    }

    #[test]
    fn a_new_node_has_an_empty_journal_and_a_saved_one_is_read_back() {
        let (_root, store) = store();
        let JournalState::Known(mut journal) = store.load() else {
            panic!("broken")
        };
        assert_eq!(journal.last_number, 0);
        journal.last_number = 7;
        store.save(&journal).unwrap();
        assert_eq!(store.load(), JournalState::Known(journal));
    }

    #[test]
    fn a_truncated_journal_is_refused_and_the_copies_are_named() {
        let (root, store) = store();
        store
            .save_copies(
                3,
                &BTreeMap::from([(Component::KubeApiserver, (b"a".to_vec(), b"b".to_vec()))]),
            )
            .unwrap();
        fs::write(root.path().join("state/journal.json"), "{\"format\": 1, \"last").unwrap();
        let JournalState::Broken(sentence) = store.load() else {
            panic!("taken for good")
        };
        assert!(sentence.contains("tickets/3"), "{sentence}");
        fs::write(root.path().join("state/journal.json"), "").unwrap();
        assert!(matches!(store.load(), JournalState::Broken(_)));
    }

    #[test]
    fn the_numbers_of_a_removed_journal_stay_used() {
        let (_root, store) = store();
        for number in 1..=9 {
            store.save_copies(number, &BTreeMap::new()).unwrap();
        }
        store.prune();
        assert_eq!(store.numbers(), vec![5, 6, 7, 8, 9]);
        let JournalState::Known(journal) = store.load() else {
            panic!("broken")
        };
        assert_eq!(journal.last_number, 9);
    }

    #[test]
    fn an_altered_copy_is_not_used() {
        let (root, store) = store();
        let copies = BTreeMap::from([(Component::KubeApiserver, (b"a".to_vec(), b"b".to_vec()))]);
        store.save_copies(3, &copies).unwrap();
        let path = root.path().join("state/tickets/3/kube-apiserver.old.yaml");
        assert_eq!(store.checked(&path, &manifest::hash(b"a")).unwrap(), b"a");
        assert!(matches!(
            store.checked(&path, "other"),
            Err(JournalError::Altered { .. })
        ));
    }
}
