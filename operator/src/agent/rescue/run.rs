//! Look, decide, act, until the rescue has come as far as it was to come. Every act may be repeated after a crash.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio_util::sync::CancellationToken;

use super::super::flags;
use super::super::host::{self, Host, read_limited};
use super::super::manifest::{self, ManifestError};
use super::super::ticket::FileSeen;
use super::book::{Age, Book, BookError, Bridge, Entry, Kind, Part, Step};
use super::data::{self, DataError};
use super::ground::{Ground, Quiet};
use super::steps::{Act, PartSeen, Seen, decide};

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(500);

/// Larger manifests the kubelet does not read either.
const LARGEST: u64 = 10 * 1024 * 1024;

/// Why a rescue stopped on its way.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RunError {
    #[error(transparent)]
    Book(#[from] BookError),
    #[error(transparent)]
    Data(#[from] DataError),
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    #[error("{path} cannot be written: {source}")]
    Write { path: String, source: io::Error },
    #[error("{0}")]
    Stop(String),
    #[error("interrupted; the journal says where it stands, and the same command goes on from there")]
    Interrupted,
}

/// One rescue on one node.
pub(crate) struct Runner<'a, G> {
    pub(crate) host: &'a Host,
    pub(crate) ground: &'a G,
    pub(crate) book: Book,
    pub(crate) entry: Entry,
    pub(crate) quiet: Quiet,
    /// Told what is waited for and what is begun.
    pub(crate) tell: &'a (dyn Fn(&str) + Sync),
}

impl<'a, G: Ground> Runner<'a, G> {
    pub(crate) fn new(host: &'a Host, ground: &'a G, entry: Entry, tell: &'a (dyn Fn(&str) + Sync)) -> Self {
        Self {
            host,
            ground,
            book: Book::new(host.clone()),
            entry,
            quiet: Quiet::default(),
            tell,
        }
    }

    /// Goes on until `until`, an end, or something that a person must look at.
    pub(crate) async fn run(&mut self, until: Step, shutdown: &CancellationToken) -> Result<(), RunError> {
        let mut told = String::new();
        while !shutdown.is_cancelled() {
            let seen = self.look(Utc::now()).await;
            let act = decide(&self.entry, until, &seen, Utc::now());
            match act {
                Act::Rest => return Ok(self.book.settle()?),
                Act::Stop(why) => return Err(RunError::Stop(why)),
                Act::Wait(why) => {
                    if !why.is_empty() && why != told {
                        (self.tell)(&format!("  waiting: {why}"));
                        told = why;
                    }
                    tokio::select! {
                        () = tokio::time::sleep(PAUSE) => {}
                        () = shutdown.cancelled() => {}
                    }
                }
                act => {
                    if let Some(why) = self.perform(act, Utc::now()).await? {
                        if why != told {
                            (self.tell)(&format!("  waiting: {why}"));
                            told = why;
                        }
                        tokio::time::sleep(PAUSE).await;
                    }
                }
            }
        }
        Err(RunError::Interrupted)
    }

    /// Everything that the present step asks about.
    pub(crate) async fn look(&mut self, now: DateTime<Utc>) -> Seen {
        let not_asked = || Err("not asked".to_owned());
        let step = self.entry.step;
        let api = self.part(Part::Api, now).await;
        let etcd = self.part(Part::Etcd, now).await;
        let local = match step {
            Step::Forcing | Step::Unforcing | Step::Booting | Step::StartingApi | Step::Unbridging => {
                self.ground.local(&self.entry).await
            }
            _ => not_asked(),
        };
        let via = match (self.entry.kind, step) {
            (
                Kind::Rejoin,
                Step::Removing | Step::Adding | Step::Joining | Step::Promoting | Step::PuttingBack,
            ) => self.ground.via(&self.entry).await,
            _ => not_asked(),
        };
        let api_ready = match step {
            Step::StartingApi | Step::Unbridging if self.entry.api.is_some() => {
                self.ground.api_ready(&self.entry).await
            }
            _ => Ok(()),
        };
        let alive = match step {
            Step::Copying | Step::Placing => self.ground.alive(&self.entry).await,
            _ => Vec::new(),
        };
        Seen {
            api,
            api_ready,
            etcd,
            local,
            via,
            data: data::is_there(&self.host.reach(&self.entry.data)),
            aside: data::is_there(&self.host.reach(&self.entry.aside)),
            alive,
            restored: self.restored().is_some_and(|at| data::is_there(&at)),
            cleansed: match step {
                Step::Cleansing => self.ground.is_cleansed(&self.entry).await,
                _ => Ok(false),
            },
            kubelet: self.ground.kubelet().await,
        }
    }

    async fn part(&mut self, part: Part, now: DateTime<Utc>) -> PartSeen {
        let path = part.path(self.host);
        let file = match read_limited(&path, LARGEST) {
            Ok(bytes) => FileSeen::Hash(manifest::hash(&bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => FileSeen::Absent,
            Err(error) => FileSeen::Unknown(format!("{} cannot be read: {error}", path.display())),
        };
        match self.ground.containers(part).await {
            Ok(found) => PartSeen {
                file,
                quiet_since: self.quiet.note(part, found.running.is_some(), now),
                running: found.running,
                last_pod: found.last_pod,
                last_made: found.last_made,
                last_words: found.last_words,
            },
            // A runtime that cannot be asked shows nothing to be off.
            Err(why) => PartSeen {
                file: FileSeen::Unknown(why),
                running: None,
                last_pod: None,
                last_made: None,
                quiet_since: None,
                last_words: String::new(),
            },
        }
    }

    /// Does one thing. Returns why it is to be tried again a little later.
    pub(crate) async fn perform(&mut self, act: Act, now: DateTime<Utc>) -> Result<Option<String>, RunError> {
        match act {
            Act::Go(step, message) => self.go(step, message, now)?,
            Act::TakeOff(part) => {
                let path = part.path(self.host);
                host::step()
                    .and_then(|()| host::remove(&path))
                    .map_err(|source| RunError::Write {
                        path: path.display().to_string(),
                        source,
                    })?;
                (self.tell)(&format!("  {} is taken off", path.display()));
            }
            Act::RestartKubelet => {
                (self.tell)("  the kubelet starts nothing: its process is ended, to be started anew");
                return Ok(self.ground.restart_kubelet().await.err().or_else(|| {
                    Some("the kubelet is started anew (systemd does so after 10 s)".to_owned())
                }));
            }
            Act::End(id) => return Ok(self.ground.end(&id).await.err()),
            Act::Write(part, age) => self.write(part, age)?,
            Act::Bridge(age, pod) => self.bridge(age, &pod)?,
            Act::Copy => self.in_background("copying the data", data::copy).await?,
            Act::Recopy => {
                data::discard(&self.host.reach(&self.entry.aside))?;
                self.go(Step::Copying, self.entry.message.clone(), now)?;
            }
            Act::PutDataBack => self.put_data_back(now).await?,
            Act::MoveAside => {
                self.in_background("moving the old data aside", data::shift)
                    .await?
            }
            Act::MoveStray => {
                let (data, aside) = (self.host.reach(&self.entry.data), self.aside());
                off_the_runtime(move || data::shift(&data, &data::stray_of(&aside))).await?;
            }
            Act::Place => {
                let (data, restored) = (self.host.reach(&self.entry.data), self.restored());
                let restored = restored.ok_or_else(|| {
                    RunError::Stop("the journal does not say where the restored data are".to_owned())
                })?;
                off_the_runtime(move || data::shift(&restored, &data)).await?;
                (self.tell)("  the restored data are in their place");
            }
            Act::Cleanse => match self.ground.cleanse(&self.entry).await {
                Ok(done) => (self.tell)(&format!("  {done}")),
                Err(why) => return Ok(Some(why)),
            },
            Act::Remove(id) => return Ok(self.ground.remove(&self.entry, id).await.err()),
            Act::AddLearner => return Ok(self.ground.add_learner(&self.entry).await.err()),
            Act::Adopt(id, members) => self.adopt(id, &members, now)?,
            Act::Promote(id) => return Ok(self.ground.promote(&self.entry, id).await.err()),
            Act::Wait(_) | Act::Stop(_) | Act::Rest => {}
        }
        Ok(None)
    }

    fn go(&mut self, step: Step, message: String, now: DateTime<Utc>) -> Result<(), RunError> {
        let touches = matches!(step, Step::Forcing | Step::MovingAside);
        let next = Entry {
            step,
            since: now,
            touched: self.entry.touched || touches,
            message,
            ..self.entry.clone()
        };
        if step.is_end() {
            self.clear();
        }
        self.journal(next)?;
        if step == Step::PuttingBack {
            (self.tell)(&format!("{}: {}", sentence(step), self.entry.message));
        } else {
            (self.tell)(sentence(step));
        }
        Ok(())
    }

    fn aside(&self) -> PathBuf {
        self.host.reach(&self.entry.aside)
    }

    fn restored(&self) -> Option<PathBuf> {
        self.entry.restored.as_ref().map(|at| self.host.reach(at))
    }

    /// Removes what was restored and is not used: it comes from the backup again. What cannot be removed is so
    /// before the next restore.
    fn clear(&self) {
        if let Some(own) = self.restored().as_deref().and_then(Path::parent) {
            let _ = std::fs::remove_dir_all(own);
        }
    }

    /// Saves the journal with this entry; only then is it true.
    fn journal(&mut self, entry: Entry) -> Result<(), RunError> {
        self.book.save(&entry)?;
        self.entry = entry;
        Ok(())
    }

    fn bytes(&self, part: Part, age: Age) -> Result<Vec<u8>, RunError> {
        let hash = match (part, age) {
            (Part::Api, _) => self.entry.api.as_ref(),
            (Part::Etcd, Age::Old) => Some(&self.entry.etcd),
            (Part::Etcd, Age::New) => self.entry.etcd_new.as_ref(),
        };
        let hash = hash.ok_or_else(|| {
            RunError::Stop(format!(
                "the journal names no manifest of {} to write",
                part.name()
            ))
        })?;
        Ok(self.book.kept(&self.entry.id, part, age, hash)?)
    }

    fn write(&self, part: Part, age: Age) -> Result<(), RunError> {
        let bytes = self.bytes(part, age)?;
        self.put(part, &bytes)?;
        let path = part.path(self.host);
        let how = match (self.entry.kind, part, age) {
            (Kind::RecoverQuorum, Part::Etcd, Age::New) => "is on, with --force-new-cluster",
            (_, _, Age::New) => "is on, with its new --initial-cluster",
            _ => "is on as it was",
        };
        (self.tell)(&format!("  {} {how}", path.display()));
        Ok(())
    }

    fn put(&self, part: Part, bytes: &[u8]) -> Result<(), RunError> {
        let path = part.path(self.host);
        // 0600 as kubeadm writes them; an existing file keeps its own.
        host::replace(&path, bytes, 0o600).map_err(|source| RunError::Write {
            path: path.display().to_string(),
            source,
        })
    }

    fn bridge(&mut self, age: Age, pod: &str) -> Result<(), RunError> {
        let path = Part::Etcd.path(self.host);
        let bytes = manifest::with_uid(&path, &self.bytes(Part::Etcd, age)?, pod)?;
        let mut next = self.entry.clone();
        let bridge = Bridge {
            of: age,
            pod: pod.to_owned(),
            hash: manifest::hash(&bytes),
        };
        if !next.bridges.contains(&bridge) {
            next.bridges.push(bridge);
            self.journal(next)?;
        }
        self.put(Part::Etcd, &bytes)?;
        (self.tell)(
            "  the kubelet has heard of no API since it started and keeps etcd's former pod: the manifest goes on under that pod's UID",
        );
        Ok(())
    }

    async fn in_background(
        &self,
        what: &'static str,
        work: fn(&Path, &Path) -> Result<(), DataError>,
    ) -> Result<(), RunError> {
        let (from, into) = (
            self.host.reach(&self.entry.data),
            self.host.reach(&self.entry.aside),
        );
        let megabytes = data::size(&from).unwrap_or(0) >> 20;
        (self.tell)(&format!("  {what} ({megabytes} MiB) to {}", into.display()));
        off_the_runtime(move || work(&from, &into)).await
    }

    async fn put_data_back(&mut self, now: DateTime<Utc>) -> Result<(), RunError> {
        let (aside, data) = (
            self.host.reach(&self.entry.aside),
            self.host.reach(&self.entry.data),
        );
        (self.tell)(&format!("  the data as they were go back to {}", data.display()));
        let (kind, restored) = (self.entry.kind, self.restored().unwrap_or_default());
        off_the_runtime(move || match kind {
            Kind::RecoverQuorum => data::put_back(&aside, &data),
            Kind::Rejoin => data::move_back(&aside, &data),
            Kind::Restore => data::take_back(&restored, &aside, &data),
        })
        .await?;
        let next = Entry {
            touched: false,
            since: now,
            ..self.entry.clone()
        };
        self.journal(next)
    }

    fn adopt(&mut self, id: u64, members: &str, now: DateTime<Utc>) -> Result<(), RunError> {
        let path = Part::Etcd.path(self.host);
        let old = self.bytes(Part::Etcd, Age::Old)?;
        let edits = [
            ("initial-cluster", Some(members)),
            ("initial-cluster-state", Some("existing")),
        ];
        let new = flags::with_flags(&path, &old, &edits)?;
        let hash = self.book.keep(&self.entry.id, Part::Etcd, Age::New, &new)?;
        let next = Entry {
            learner: Some(id),
            etcd_new: Some(hash),
            step: Step::Joining,
            since: now,
            ..self.entry.clone()
        };
        self.journal(next)?;
        (self.tell)(&format!("{} (learner {id:x})", sentence(Step::Joining)));
        Ok(())
    }
}

async fn off_the_runtime(
    work: impl FnOnce() -> Result<(), DataError> + Send + 'static,
) -> Result<(), RunError> {
    // In tests the power is cut on the thread that does it.
    if cfg!(test) {
        return Ok(work()?);
    }
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => Ok(done?),
        Err(error) => Err(RunError::Stop(format!("the copy broke: {error}"))),
    }
}

/// What is begun, for the person who watches.
pub(crate) fn sentence(step: Step) -> &'static str {
    match step {
        Step::StoppingApi => "The API server of this node is taken off",
        Step::StoppingEtcd => "etcd of this node is taken off",
        Step::Fenced => "This node is fenced: API server and etcd are off",
        Step::Copying => "A safety copy of the data directory",
        Step::Forcing => "etcd starts as a cluster of its own",
        Step::Unforcing => "etcd is started again without the flag",
        Step::Removing => "The old member of this node is removed from the list",
        Step::MovingAside => "The old data go aside",
        Step::Placing => "The restored data go into their place",
        Step::Booting => "etcd starts on the restored data, as the only member",
        Step::Cleansing => "What tells of the backup's time is taken out",
        Step::Adding => "This node is added as a learner",
        Step::Joining => "etcd starts as the learner",
        Step::Promoting => "The learner catches up and becomes a voting member",
        Step::StartingApi => "The API server comes back",
        Step::Unbridging => "The kubelet has an API again: etcd's manifest loses the UID of the former pod",
        Step::PuttingBack => "All is put back as it was",
        Step::Done => "Done",
        Step::PutBack => "Put back as it was",
    }
}

#[cfg(test)]
#[path = "run_tests.rs"]
mod tests;
