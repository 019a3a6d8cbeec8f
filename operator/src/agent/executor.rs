//! Does what [`super::ticket::decide`] says: journal first, then the file.
//!
//! Every act checks its precondition again on the disk and is idempotent, so it may be repeated after a crash at
//! any point.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use chrono::{DateTime, TimeDelta, Utc};
use lockkeeper_crds::{Component, Ticket, TicketState, TicketStatus};

use super::guard::Guard;
use super::host::{self, Host, read_limited};
use super::journal::{Bridge, Entry, FileRecord, Journal, JournalError, JournalState, JournalStore};
use super::manifest::{self, ManifestError};
use super::ticket::{Action, Pods};
use super::time::to_api;

/// Larger manifests the kubelet does not read either.
const LARGEST: u64 = 10 * 1024 * 1024;

/// What stood in the way of an act; it is tried again at the next look.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExecutorError {
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error("{path} cannot be written: {source}")]
    Manifest { path: String, source: io::Error },
    #[error("the guard's manifest cannot be put on or taken off ({0}): without it no API server is changed")]
    Guard(io::Error),
}

/// Why a ticket cannot be prepared; it is refused.
#[derive(Debug, thiserror::Error)]
enum PrepareError {
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    #[error("{path} cannot be read: {source}")]
    Read { path: String, source: io::Error },
    #[error("{path} changed while the ticket was taken up")]
    Changed { path: String },
    #[error("{path} already asks for {image}: there is nothing to change")]
    Same { path: String, image: String },
}

/// A ticket's records, and the old and new bytes of each manifest.
type Prepared = (Vec<FileRecord>, BTreeMap<Component, (Vec<u8>, Vec<u8>)>);

/// The hand that writes.
#[derive(Debug)]
pub(crate) struct Executor {
    host: Host,
    store: JournalStore,
    state: JournalState,
    guard: Guard,
    /// A guard was put on, by this process or the one before.
    guarded: bool,
    /// A restore needs the guard too.
    restoring: bool,
    /// Why it waits.
    note: String,
}

impl Executor {
    pub(crate) fn open(host: Host, guard: Guard) -> Self {
        let store = JournalStore::new(host.clone());
        let state = store.load();
        Self {
            host,
            store,
            state,
            guarded: guard.is_on(),
            restoring: false,
            guard,
            note: String::new(),
        }
    }

    /// Reads the journal again: another process may have written it.
    pub(crate) fn reload(&mut self) {
        self.state = self.store.load();
        self.guarded = self.guard.is_on();
        self.note.clear();
    }

    pub(crate) fn journal(&self) -> &JournalState {
        &self.state
    }

    /// A restore goes on, which needs the guard, or none does.
    pub(crate) fn mind_restore(&mut self, restoring: bool) {
        self.restoring = restoring;
    }

    /// Why it waits; empty when there is nothing to wait for.
    pub(crate) fn note(&self) -> &str {
        &self.note
    }

    pub(crate) fn status(&self) -> Option<TicketStatus> {
        let entry = self.state.entry()?;
        let message = if entry.is_live() && !self.note.is_empty() {
            &self.note
        } else {
            &entry.message
        };
        Some(TicketStatus {
            number: entry.ticket.number,
            state: entry.state,
            since: to_api(entry.since),
            deadline: entry.deadline().map(to_api),
            message: message.clone(),
        })
    }

    /// Performs one act. True when something was done, and the next thing is to be decided at once.
    pub(crate) fn perform(&mut self, action: Action, now: DateTime<Utc>) -> Result<bool, ExecutorError> {
        let result = self.act(action, now);
        match &result {
            Ok(true) => self.note.clear(),
            Ok(false) => {}
            Err(error) => self.note = error.to_string(),
        }
        result
    }

    fn act(&mut self, action: Action, now: DateTime<Utc>) -> Result<bool, ExecutorError> {
        match action {
            Action::Wait(why) => {
                self.note = why;
                self.tend_guard()?;
                return Ok(false);
            }
            Action::Accept(ticket, pods) => self.accept(ticket, &pods, now)?,
            Action::Refuse(ticket, why) => self.refuse(ticket, why, now)?,
            Action::WriteNew(component) => self.write(component, TicketState::Applying)?,
            Action::WriteOld(component) => self.write(component, TicketState::Undoing)?,
            Action::WriteBridge(component, pod) => self.bridge(component, &pod)?,
            Action::MarkStarting => self.mark(TicketState::Starting, String::new(), now)?,
            Action::MarkReady(message) => self.mark(TicketState::Ready, message, now)?,
            Action::MarkConfirmed(why) => {
                self.mark(TicketState::Confirmed, why, now)?;
                self.store.prune();
            }
            Action::BeginUndo(why) => self.begin_undo(&why, now),
            Action::MarkUndone(why) => {
                self.mark(TicketState::Undone, why, now)?;
                self.store.prune();
            }
        }
        Ok(true)
    }

    fn accept(&mut self, ticket: Ticket, pods: &Pods, now: DateTime<Utc>) -> Result<(), ExecutorError> {
        let (files, copies) = match self.prepare(&ticket, pods) {
            Ok(prepared) => prepared,
            Err(why) => return self.refuse(ticket, why.to_string(), now),
        };
        if Guard::is_needed_for(&ticket) {
            self.guard.put_on().map_err(ExecutorError::Guard)?;
            self.guarded = true;
        }
        self.store.save_copies(ticket.number, &copies)?;
        let entry = Entry {
            state: TicketState::Applying,
            since: now,
            applied_at: now,
            ready_deadline: after(now, ticket.ready_seconds),
            confirm_deadline: None,
            files,
            message: String::new(),
            ticket,
        };
        self.journal_entry(entry)
    }

    /// Puts the guard on again where it is gone too early, and takes it off once nothing is left to guard.
    fn tend_guard(&mut self) -> Result<(), ExecutorError> {
        let JournalState::Known(_) = &self.state else {
            return Ok(());
        };
        let done = match self.state.live() {
            Some(entry) if Guard::is_needed_for(&entry.ticket) && !self.guard.is_on() => self.guard.put_on(),
            None if self.guarded && !self.restoring => self.guard.take_off(),
            _ => return Ok(()),
        };
        done.map_err(ExecutorError::Guard)?;
        self.guarded = self.state.live().is_some();
        Ok(())
    }

    fn prepare(&self, ticket: &Ticket, pods: &Pods) -> Result<Prepared, PrepareError> {
        let mut files = Vec::new();
        let mut copies = BTreeMap::new();
        for change in &ticket.changes {
            let path = self.host.manifest(change.component);
            let shown = || path.display().to_string();
            let old = read_limited(&path, LARGEST).map_err(|source| PrepareError::Read {
                path: shown(),
                source,
            })?;
            let old_hash = manifest::hash(&old);
            if old_hash != change.manifest_hash {
                return Err(PrepareError::Changed { path: shown() });
            }
            let old_image = manifest::parse(&path, change.component, &old)?.image;
            let new = manifest::with_image(&path, change.component, &old, &change.image)?;
            if new == old {
                return Err(PrepareError::Same {
                    path: shown(),
                    image: old_image,
                });
            }
            files.push(FileRecord {
                component: change.component,
                old_hash,
                new_hash: manifest::hash(&new),
                old_image,
                new_image: change.image.clone(),
                old_pod: pods.get(&change.component).cloned(),
                bridges: Vec::new(),
            });
            copies.insert(change.component, (old, new));
        }
        Ok((files, copies))
    }

    fn refuse(&mut self, ticket: Ticket, why: String, now: DateTime<Utc>) -> Result<(), ExecutorError> {
        self.journal_entry(Entry {
            state: TicketState::Refused,
            since: now,
            applied_at: now,
            ready_deadline: now,
            confirm_deadline: None,
            files: Vec::new(),
            message: why,
            ticket,
        })
    }

    /// Saves the journal with this entry; only then is it true.
    fn journal_entry(&mut self, entry: Entry) -> Result<(), ExecutorError> {
        let JournalState::Known(journal) = &self.state else {
            // `decide` waits while the journal is broken; nothing is written over it here either.
            return Ok(());
        };
        let next = Journal {
            format: journal.format,
            last_number: journal.last_number.max(entry.ticket.number),
            entry: Some(entry),
        };
        self.store.save(&next)?;
        if let Some(entry) = &next.entry {
            tracing::info!(ticket = entry.ticket.number, state = ?entry.state, message = %entry.message, "ticket");
        }
        self.state = JournalState::Known(next);
        Ok(())
    }

    fn mark(&mut self, state: TicketState, message: String, now: DateTime<Utc>) -> Result<(), ExecutorError> {
        let Some(entry) = self.state.live() else {
            return Ok(());
        };
        let confirm_deadline = match state {
            TicketState::Ready => Some(after(now, entry.ticket.confirm_seconds)),
            _ => entry.confirm_deadline,
        };
        let entry = Entry {
            state,
            since: now,
            confirm_deadline,
            message,
            ..entry.clone()
        };
        self.journal_entry(entry)
    }

    /// Going back is announced too, but not stopped by a disk that takes no announcement: after a crash the same
    /// reasons lead here again, and the old bytes are already on the disk.
    fn begin_undo(&mut self, why: &str, now: DateTime<Utc>) {
        let Err(error) = self.mark(TicketState::Undoing, why.to_owned(), now) else {
            return;
        };
        tracing::error!(%error, "going back without a journal entry");
        if let JournalState::Known(journal) = &mut self.state
            && let Some(entry) = journal.entry.as_mut().filter(|e| e.is_live())
        {
            entry.state = TicketState::Undoing;
            entry.since = now;
            entry.message = format!("{why} (not journalled: {error})");
        }
    }

    /// Puts the old manifest in place under another pod's UID; announced first, as every change.
    fn bridge(&mut self, component: Component, pod: &str) -> Result<(), ExecutorError> {
        let Some(entry) = self.state.live().filter(|e| e.state == TicketState::Undoing) else {
            return Ok(());
        };
        let mut entry = entry.clone();
        let path = self.host.manifest(component);
        let failed = |source| ExecutorError::Manifest {
            path: path.display().to_string(),
            source,
        };
        let Some(record) = entry.files.iter().find(|r| r.component == component) else {
            return Ok(());
        };
        let old = self.store.old(&entry, record)?;
        let bytes = manifest::with_uid(&path, &old, pod).map_err(|error| failed(io::Error::other(error)))?;
        let present = present(&path).map_err(failed)?;
        if present.is_some_and(|hash| !record.knows(&hash)) {
            return Ok(());
        }
        let bridge = Bridge {
            pod: pod.to_owned(),
            hash: manifest::hash(&bytes),
        };
        for record in entry.files.iter_mut().filter(|r| r.component == component) {
            record.bridges.push(bridge.clone());
        }
        self.journal_entry(entry)?;
        host::replace(&path, &bytes, 0o600).map_err(failed)?;
        tracing::info!(%component, pod, "old manifest written under the pod that the kubelet keeps");
        Ok(())
    }

    /// Puts a manifest in place, unless the file has become somebody else's since it was looked at.
    fn write(&self, component: Component, state: TicketState) -> Result<(), ExecutorError> {
        let Some(entry) = self.state.live().filter(|e| e.state == state) else {
            return Ok(());
        };
        let Some(record) = entry.files.iter().find(|r| r.component == component) else {
            return Ok(());
        };
        let path = self.host.manifest(component);
        let failed = |source| ExecutorError::Manifest {
            path: path.display().to_string(),
            source,
        };
        let present = present(&path).map_err(failed)?;
        let going_back = state == TicketState::Undoing;
        let ours = match present.as_deref() {
            None => going_back,
            Some(hash) if going_back => hash != record.old_hash && record.knows(hash),
            Some(hash) => hash == record.old_hash,
        };
        if !ours {
            return Ok(());
        }
        let bytes = if going_back {
            self.store.old(entry, record)?
        } else {
            self.store.new_bytes(entry, record)?
        };
        // 0600 as kubeadm writes them; an existing file keeps its own.
        host::replace(&path, &bytes, 0o600).map_err(failed)?;
        tracing::info!(%component, going_back, "manifest written");
        Ok(())
    }
}

/// The hash of a manifest that is there.
fn present(path: &Path) -> io::Result<Option<String>> {
    match read_limited(path, LARGEST) {
        Ok(bytes) => Ok(Some(manifest::hash(&bytes))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn after(now: DateTime<Utc>, seconds: u32) -> DateTime<Utc> {
    now + TimeDelta::seconds(i64::from(seconds))
}

#[cfg(test)]
#[path = "executor_tests.rs"]
mod tests;
