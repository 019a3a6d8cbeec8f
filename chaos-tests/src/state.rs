//! What a lab has made, written down before it is made, so that `lab down` works from any half state.
//!
//! In: names and process identities. Out: one JSON file a lab. A process cannot be written down before it
//! exists; one that was started and not recorded is still found by its network namespace and its cgroup.

use std::fs::File;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use crate::cache::write_whole;
use crate::process::ProcessId;

/// Held while the state on disk is changed.
const STATE_LOCK: &str = "state.lock";

/// Held while the lab is brought up or down.
const LAB_LOCK: &str = "lab.lock";

/// How to bring a lab up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Options {
    /// The name that tells labs of one machine apart.
    pub name: String,
    /// How many control-plane nodes.
    pub nodes: u8,
    /// The version that kubeadm makes.
    pub kubernetes: String,
    /// The version of etcd.
    pub etcd: String,
    /// Versions whose images every node has too.
    pub also: Vec<String>,
    /// Paths inside the nodes that get a small disk of their own, in MiB, so that it can be filled.
    pub small_disks: Vec<(PathBuf, u32)>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            name: "lab".into(),
            nodes: 3,
            kubernetes: crate::recipes::START.into(),
            etcd: crate::recipes::ETCD.into(),
            also: Vec::new(),
            small_disks: Vec::new(),
        }
    }
}

/// How far a lab is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Phase {
    /// Being brought up; belongs to the process that does it.
    Starting,
    /// Up, and left running by the process that did it.
    Up,
}

/// Something that must be gone after `lab down`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "kind")]
pub enum Resource {
    /// A named network namespace.
    NetworkNamespace {
        /// Its name under /run/netns.
        name: String,
    },
    /// A process, with what it is for.
    Process {
        /// What runs, for example `haproxy` or `node cp1`.
        what: String,
        /// Which process.
        id: ProcessId,
    },
}

/// The content of the state file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct State {
    /// How the lab was asked for.
    pub options: Options,
    /// How far it is.
    pub phase: Phase,
    /// The process that the lab's life is tied to: a runner, or an `up` not yet finished.
    pub owner: Option<ProcessId>,
    /// Everything made.
    pub resources: Vec<Resource>,
}

impl State {
    /// The recorded process of this purpose, the latest one.
    #[must_use]
    pub fn process(&self, purpose: &str) -> Option<ProcessId> {
        self.resources.iter().rev().find_map(|resource| match resource {
            Resource::Process { what, id } if what == purpose => Some(*id),
            _ => None,
        })
    }

    /// Whether nothing alive stands behind this lab: its owner died, or the machine was restarted.
    #[must_use]
    pub fn stale(&self) -> bool {
        let owner_died = self.owner.is_some_and(|owner| !owner.alive());
        let any_alive = self
            .resources
            .iter()
            .any(|resource| matches!(resource, Resource::Process { id, .. } if id.alive()));
        owner_died || (self.owner.is_none() && !any_alive)
    }
}

/// The folder of one lab.
#[derive(Debug, Clone)]
pub struct Home {
    name: String,
    root: PathBuf,
}

impl Home {
    /// The folder of the lab with this name, under `LOCKKEEPER_LAB` (`/var/lib/lockkeeper-lab` without it).
    pub fn of(name: &str) -> Result<Self> {
        // The name goes into network namespaces, cgroups and file names.
        let allowed = |character: char| {
            character.is_ascii_lowercase() || character.is_ascii_digit() || character == '-'
        };
        if name.is_empty() || name.len() > 32 || !name.chars().all(allowed) || name.starts_with('-') {
            bail!("the name of a lab is 1 to 32 of a-z, 0-9 and `-`, not `{name}`");
        }
        Ok(Self {
            name: name.to_owned(),
            root: Self::base().join(name),
        })
    }

    /// The folder above all labs.
    #[must_use]
    pub fn base() -> PathBuf {
        std::env::var_os("LOCKKEEPER_LAB").map_or_else(|| "/var/lib/lockkeeper-lab".into(), PathBuf::from)
    }

    /// Every lab that has a folder.
    pub fn all() -> Result<Vec<Self>> {
        let Ok(entries) = std::fs::read_dir(Self::base()) else {
            return Ok(Vec::new());
        };
        let mut homes: Vec<Self> = entries
            .flatten()
            .filter(|entry| entry.path().is_dir())
            .filter_map(|entry| Self::of(&entry.file_name().to_string_lossy()).ok())
            .collect();
        homes.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(homes)
    }

    /// The lab's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A path inside the folder.
    #[must_use]
    pub fn path(&self, inside: &str) -> PathBuf {
        self.root.join(inside)
    }

    /// The folder.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The folder of a node.
    #[must_use]
    pub fn node(&self, node: &str) -> PathBuf {
        self.root.join("nodes").join(node)
    }

    /// Log files of the lab's own programs.
    #[must_use]
    pub fn log(&self, what: &str) -> PathBuf {
        self.root.join("log").join(format!("{what}.log"))
    }

    /// The name of a network namespace of this lab.
    #[must_use]
    pub fn namespace(&self, of: &str) -> String {
        format!("lk-{}-{of}", self.name)
    }

    /// Reads the state; `None` where there is no lab.
    pub fn read(&self) -> Result<Option<State>> {
        let path = self.path("state.json");
        match std::fs::read(&path) {
            Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes).with_context(|| {
                format!(
                    "{} is damaged; `lab down --name {}` cleans what can be found",
                    path.display(),
                    self.name
                )
            })?)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    /// Writes the state, whole.
    pub fn write(&self, state: &State) -> Result<()> {
        write_whole(&self.path("state.json"), &serde_json::to_vec_pretty(state)?)
    }

    /// Changes the state on disk. The callers hold the lock or are the lab's only owner.
    pub fn change(&self, change: impl FnOnce(&mut State)) -> Result<State> {
        let _guard = self.lock_file(STATE_LOCK, FlockOperation::LockExclusive)?;
        let mut state = self
            .read()?
            .with_context(|| format!("there is no lab `{}`", self.name))?;
        change(&mut state);
        self.write(&state)?;
        Ok(state)
    }

    /// Writes down something that is about to be made, or was just started.
    pub fn record(&self, resource: Resource) -> Result<()> {
        self.change(|state| {
            if !state.resources.contains(&resource) {
                state.resources.push(resource);
            }
        })?;
        Ok(())
    }

    /// Takes the lab for bringing it up or down. The lock ends with the process, however it ends.
    pub fn lock(&self) -> Result<File> {
        self.lock_file(LAB_LOCK, FlockOperation::NonBlockingLockExclusive).with_context(|| {
            format!("another process is bringing the lab `{}` up or down; wait for it, or choose another --name", self.name)
        })
    }

    /// Gives the lock back for good: its files go too, since there is no lab any more.
    pub fn forget(&self, lock: File) {
        for kind in [STATE_LOCK, LAB_LOCK] {
            // What stays is an empty file.
            let _ = std::fs::remove_file(self.lock_path(kind));
        }
        drop(lock);
    }

    /// The lock lies beside the folder: the folder itself goes away with the lab.
    fn lock_path(&self, kind: &str) -> PathBuf {
        Self::base().join(format!(".{}.{kind}", self.name))
    }

    fn lock_file(&self, kind: &str, operation: FlockOperation) -> Result<File> {
        std::fs::create_dir_all(Self::base())?;
        let path = self.lock_path(kind);
        loop {
            let file = File::options()
                .create(true)
                .truncate(false)
                .write(true)
                .open(&path)?;
            rustix::fs::flock(&file, operation)?;
            // Whoever had it may have removed it meanwhile: a lock on such a file keeps nobody out.
            let there = std::fs::metadata(&path).map(|m| m.ino()).ok();
            if there == Some(file.metadata()?.ino()) {
                return Ok(file);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(owner: Option<ProcessId>, resources: Vec<Resource>) -> State {
        State {
            options: Options::default(),
            phase: Phase::Up,
            owner,
            resources,
        }
    }

    fn dead() -> ProcessId {
        ProcessId {
            pid: std::process::id(),
            started: 1,
        }
    }

    #[test]
    fn a_state_survives_the_disk() {
        let resources = vec![
            Resource::NetworkNamespace {
                name: "lk-lab-fabric".into(),
            },
            Resource::Process {
                what: "haproxy".into(),
                id: ProcessId::own(),
            },
        ];
        let before = state(Some(ProcessId::own()), resources);
        let after: State = serde_json::from_str(&serde_json::to_string(&before).unwrap()).unwrap();
        assert_eq!(before, after);
    }

    #[test]
    fn a_lab_is_stale_when_nothing_alive_stands_behind_it() {
        let alive = Resource::Process {
            what: "haproxy".into(),
            id: ProcessId::own(),
        };
        let gone = Resource::Process {
            what: "haproxy".into(),
            id: dead(),
        };
        assert!(!state(None, vec![alive.clone()]).stale(), "left up");
        assert!(state(None, vec![gone]).stale(), "machine restarted");
        assert!(state(Some(dead()), vec![alive]).stale(), "runner killed");
        assert!(!state(Some(ProcessId::own()), vec![]).stale(), "just begun");
    }

    #[test]
    fn a_name_that_would_not_fit_a_namespace_is_refused() {
        assert!(Home::of("run-12").is_ok());
        for bad in ["", "../x", "Lab", "-x", "a b"] {
            assert!(Home::of(bad).is_err(), "{bad}");
        }
    }
}
