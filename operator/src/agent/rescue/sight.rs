//! What a rescue sees and the one next thing it does: values only.

use chrono::{DateTime, Utc};

use super::super::etcd::members::Listed;
use super::super::ticket::FileSeen;
use super::book::{Age, Part, Step};

/// A running container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Running {
    pub(crate) id: String,
    pub(crate) pod: String,
    pub(crate) created_at: DateTime<Utc>,
    /// Whether its process was started with `--force-new-cluster`; none when its command line cannot be read.
    pub(crate) forced: Option<bool>,
}

/// One of the two components.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PartSeen {
    pub(crate) file: FileSeen,
    pub(crate) running: Option<Running>,
    /// The pod of its newest container, running or not.
    pub(crate) last_pod: Option<String>,
    /// When its newest container was made.
    pub(crate) last_made: Option<DateTime<Utc>>,
    /// Since when none was seen running.
    pub(crate) quiet_since: Option<DateTime<Utc>>,
    /// What its last process said at its end.
    pub(crate) last_words: String,
}

/// Everything a decision rests on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) api: PartSeen,
    /// Or why it is not ready.
    pub(crate) api_ready: Result<(), String>,
    pub(crate) etcd: PartSeen,
    /// The local member agrees with its quorum, and whom it lists; or why not.
    pub(crate) local: Result<Vec<Listed>, String>,
    /// The survivor's list, after it agreed with its quorum; or why not.
    pub(crate) via: Result<Vec<Listed>, String>,
    /// The data directory holds a member.
    pub(crate) data: bool,
    /// A whole copy of it, or the old data, lies aside.
    pub(crate) aside: bool,
    /// The restored data wait beside it.
    pub(crate) restored: bool,
    /// What tells of the backup's time was taken out of the local etcd; or why it cannot be.
    pub(crate) cleansed: Result<bool, String>,
    /// Other members that answer although they must not.
    pub(crate) alive: Vec<String>,
    /// When the kubelet's process began; none when there is none.
    pub(crate) kubelet: Option<DateTime<Utc>>,
}

/// The one next thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Act {
    /// Journal this step.
    Go(Step, String),
    /// End the kubelet's process; whoever supervises it starts it again.
    RestartKubelet,
    /// Take the manifest off.
    TakeOff(Part),
    /// End a container through the runtime.
    End(String),
    /// Put a manifest in place.
    Write(Part, Age),
    /// Put etcd's in place under this pod's UID.
    Bridge(Age, String),
    /// Copy the data directory aside.
    Copy,
    /// Throw a copy away that etcd may have written under, and begin the step anew.
    Recopy,
    /// Put the copied or moved data back.
    PutDataBack,
    /// Move the old data aside.
    MoveAside,
    /// Move data aside that a late etcd made where there were none.
    MoveStray,
    /// Move the restored data into their place.
    Place,
    /// Take out of etcd what tells of the backup's time.
    Cleanse,
    /// Remove this member, on the survivor.
    Remove(u64),
    /// Add this node as a learner, on the survivor.
    AddLearner,
    /// Journal the learner and the manifest with which it starts.
    Adopt(u64, String),
    /// Make the learner a voting member.
    Promote(u64),
    /// Nothing now; why.
    Wait(String),
    /// It cannot go on by itself; why and what a person does.
    Stop(String),
    /// It has come as far as it was to come.
    Rest,
}
