//! The life of a ticket, decided: what is seen goes in, the one next act comes out. No clock, no disk, no API.
//!
//! ```text
//! (none) --> Applying --> Starting --> Ready --> Confirmed
//!    |           |            |          |
//!    v           +------------+----------+--> Undoing --> Undone
//! Refused
//! ```
//!
//! The rules, each a branch below: a change is announced before it is made; only files whose bytes are ours are
//! written; nothing but the operator's word, given before or after, makes a change permanent; what is withdrawn, late or crashing is
//! undone without the API; `Undoing` is never turned round and never given up.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, TimeDelta, Utc};
use lockkeeper_crds::{Change, Component, Ticket, TicketState, Tristate, Unconfirmed, Verdict};

use super::journal::{Entry, FileRecord, Journal, JournalState};

/// A process that ended so often since the change will not come up: the kubelet's pauses are 10, 20, 40 s, so a
/// third end says more than waiting for the deadline would.
const CRASHES: usize = 3;

/// A controller manager or scheduler reports its version through an endpoint that needs the API to authorise the
/// question. While the API is away it is taken as running after so long: the image and its start are known.
const VERSION_PATIENCE: TimeDelta = TimeDelta::seconds(20);

/// The kubelet looks every 20 s at the latest, and a process has 30 s to end: who still stands after this is kept.
const STUCK: TimeDelta = TimeDelta::seconds(90);

/// When old bytes come back before the kubelet has looked, it never restarts anything. It looks every 20 s at the
/// latest (facts.md 5.1, `fileCheckFrequency`) and at once when told by inotify; 10 s of quiet tell the two apart
/// where inotify works, and a wrong guess only ends the ticket while the old process is being restarted.
const QUIET: TimeDelta = TimeDelta::seconds(10);

/// A manifest file, as far as a ticket cares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum FileSeen {
    Hash(String),
    Absent,
    Unknown(String),
}

/// The newest running container of a component.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RunningSeen {
    /// The container's.
    pub(crate) id: String,
    /// Since when it takes no new connection, having taken some before: it was told to end.
    pub(crate) closed_at: Option<DateTime<Utc>>,
    /// Every reference that is known to name its image.
    pub(crate) images: BTreeSet<String>,
    pub(crate) created_at: DateTime<Utc>,
    pub(crate) version: Option<String>,
    pub(crate) ready: Tristate,
    /// Why it is not ready or could not be asked.
    pub(crate) message: String,
}

/// The newest container of a component, running or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NewestSeen {
    /// The UID of its pod.
    pub(crate) pod: String,
    pub(crate) created_at: DateTime<Utc>,
}

/// A container of a component that has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ExitSeen {
    pub(crate) created_at: DateTime<Utc>,
    pub(crate) code: i32,
    /// The last thing it wrote.
    pub(crate) last_line: String,
}

/// One component on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ComponentSeen {
    pub(crate) file: FileSeen,
    /// What is wrong with its manifest.
    pub(crate) problems: Vec<String>,
    pub(crate) running: Option<RunningSeen>,
    pub(crate) newest: Option<NewestSeen>,
    pub(crate) exits: Vec<ExitSeen>,
}

/// This node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct NodeSeen {
    pub(crate) components: BTreeMap<Component, ComponentSeen>,
    /// Whether the images that the ticket names are on this node.
    pub(crate) images: BTreeMap<String, Tristate>,
    /// The guard looks: there is no agent, so the kubelet has not got anything from an API since it started.
    pub(crate) alone: bool,
}

/// The UIDs of the pods that run now.
pub(crate) type Pods = BTreeMap<Component, String>;

/// The one next thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Journal the ticket as `Applying`, the old and new manifests beside it.
    Accept(Ticket, Pods),
    /// Journal it as `Refused`: nothing was touched.
    Refuse(Ticket, String),
    /// Put the component's new manifest in place.
    WriteNew(Component),
    /// Journal `Starting`.
    MarkStarting,
    /// Journal `Ready`.
    MarkReady(String),
    /// Journal `Confirmed`.
    MarkConfirmed(String),
    /// Journal `Undoing`.
    BeginUndo(String),
    /// Put the component's old manifest back.
    WriteOld(Component),
    /// Put it back under this pod's UID.
    WriteBridge(Component, String),
    /// Journal `Undone`.
    MarkUndone(String),
    /// Nothing now; why.
    Wait(String),
}

/// Decides the one next thing.
///
/// `desired` is the last ticket that the API told of, or none.
pub(crate) fn decide(
    journal: &JournalState,
    desired: Option<&Ticket>,
    seen: &NodeSeen,
    now: DateTime<Utc>,
) -> Action {
    match journal {
        JournalState::Broken(why) => Action::Wait(why.clone()),
        JournalState::Known(journal) => match journal.entry.as_ref().filter(|e| e.is_live()) {
            Some(entry) => advance(entry, desired, seen, now),
            None => consider(journal, desired, seen),
        },
    }
}

fn consider(journal: &Journal, desired: Option<&Ticket>, seen: &NodeSeen) -> Action {
    let Some(ticket) = desired.filter(|t| t.number > journal.last_number) else {
        return Action::Wait(String::new());
    };
    let refuse = |why: String| Action::Refuse(ticket.clone(), why);
    match ticket.verdict {
        Verdict::Pending => {}
        Verdict::Withdrawn => return refuse("It was withdrawn before it began.".to_owned()),
        Verdict::Confirmed => {
            return refuse(
                "It says Confirmed although this node never began it: issue a new ticket.".to_owned(),
            );
        }
    }
    let components: BTreeSet<_> = ticket.changes.iter().map(|c| c.component).collect();
    if components.is_empty() || components.len() != ticket.changes.len() {
        return refuse("Its list of changes is empty or names a component twice.".to_owned());
    }
    let mut waits = Vec::new();
    for change in &ticket.changes {
        match precondition(change, seen) {
            Precondition::Holds => {}
            Precondition::Fails(why) => return refuse(why),
            Precondition::Unknown(why) => waits.push(why),
        }
    }
    if waits.is_empty() {
        let pods = seen
            .components
            .iter()
            .filter_map(|(component, there)| Some((*component, there.newest.as_ref()?.pod.clone())))
            .collect();
        Action::Accept(ticket.clone(), pods)
    } else {
        Action::Wait(format!("Ticket {} waits: {}", ticket.number, waits.join("; ")))
    }
}

enum Precondition {
    Holds,
    Fails(String),
    Unknown(String),
}

fn precondition(change: &Change, seen: &NodeSeen) -> Precondition {
    let component = change.component;
    let Some(there) = seen.components.get(&component) else {
        return Precondition::Unknown(format!("{component} has not been looked at yet"));
    };
    match &there.file {
        FileSeen::Unknown(why) => return Precondition::Unknown(why.clone()),
        FileSeen::Absent => return Precondition::Fails(format!("The manifest of {component} is missing.")),
        FileSeen::Hash(hash) if *hash != change.manifest_hash => {
            return Precondition::Fails(format!(
                "The manifest of {component} is not the one that the ticket was planned against (SHA-256 {hash} instead of {}): it was edited meanwhile.",
                change.manifest_hash
            ));
        }
        FileSeen::Hash(_) => {}
    }
    if let Some(problem) = there.problems.first() {
        return Precondition::Fails(problem.clone());
    }
    match seen.images.get(&change.image).copied().unwrap_or_default() {
        Tristate::True => Precondition::Holds,
        Tristate::False => Precondition::Fails(format!(
            "The image {} is not on this node: pull it, or run the preflight again, which does.",
            change.image
        )),
        Tristate::Unknown => Precondition::Unknown(format!(
            "the container runtime could not be asked for the image {}",
            change.image
        )),
    }
}

fn advance(entry: &Entry, desired: Option<&Ticket>, seen: &NodeSeen, now: DateTime<Utc>) -> Action {
    let same = desired.filter(|t| t.number == entry.ticket.number);
    if entry.state != TicketState::Undoing
        && let Some(ticket) = same.filter(|t| t.verdict == Verdict::Withdrawn)
    {
        let why = ticket.reason.as_deref().unwrap_or("no reason given");
        return Action::BeginUndo(format!("The operator withdrew it: {why}"));
    }
    match entry.state {
        TicketState::Applying => applying(entry, seen, now),
        TicketState::Starting => starting(entry, seen, now),
        TicketState::Ready => ready(entry, same, seen, now),
        TicketState::Undoing => undoing(entry, seen, now),
        TicketState::Confirmed | TicketState::Undone | TicketState::Refused => Action::Wait(String::new()),
    }
}

fn file(seen: &NodeSeen, component: Component) -> FileSeen {
    seen.components.get(&component).map_or_else(
        || FileSeen::Unknown("not looked at yet".to_owned()),
        |c| c.file.clone(),
    )
}

/// The sentence when somebody else changed a manifest in the middle of a ticket.
fn meddled(component: Component, what: &str) -> String {
    format!("Somebody else {what} the manifest of {component} in the middle of the change.")
}

fn applying(entry: &Entry, seen: &NodeSeen, now: DateTime<Utc>) -> Action {
    if now >= entry.ready_deadline {
        return Action::BeginUndo(not_ready_in_time(entry, seen));
    }
    if seen.alone {
        // Onwards is the agent's way; the guard only knows the way back.
        return Action::Wait("The agent is waited for.".to_owned());
    }
    for record in &entry.files {
        match file(seen, record.component) {
            FileSeen::Hash(hash) if hash == record.new_hash => {}
            FileSeen::Hash(hash) if hash == record.old_hash => return Action::WriteNew(record.component),
            FileSeen::Hash(_) => return Action::BeginUndo(meddled(record.component, "edited")),
            FileSeen::Absent => return Action::BeginUndo(meddled(record.component, "removed")),
            FileSeen::Unknown(why) => return Action::Wait(why),
        }
    }
    Action::MarkStarting
}

/// The first file that is no longer as the ticket left it.
fn disturbed(entry: &Entry, seen: &NodeSeen) -> Option<String> {
    entry
        .files
        .iter()
        .find_map(|record| match file(seen, record.component) {
            FileSeen::Hash(hash) if hash == record.new_hash => None,
            FileSeen::Hash(_) => Some(meddled(record.component, "edited")),
            FileSeen::Absent => Some(meddled(record.component, "removed")),
            FileSeen::Unknown(_) => None,
        })
}

fn crash_loop(entry: &Entry, seen: &NodeSeen) -> Option<String> {
    let api_too = entry
        .files
        .iter()
        .any(|r| r.component == Component::KubeApiserver);
    entry.files.iter().find_map(|record| {
        // A controller manager and a scheduler end by themselves while there is no API; when this very ticket
        // restarts the API server, their ends say nothing about them.
        if api_too && record.component != Component::KubeApiserver {
            return None;
        }
        let exits = seen
            .components
            .get(&record.component)?
            .exits
            .iter()
            .filter(|e| e.created_at > entry.applied_at);
        let last = exits.clone().max_by_key(|e| e.created_at)?;
        let count = exits.count();
        (count >= CRASHES).then(|| {
            let said = match last.last_line.as_str() {
                "" => String::new(),
                line => format!(": {line}"),
            };
            format!(
                "{} ended {count} times after the change, last with exit code {}{said}",
                record.component, last.code
            )
        })
    })
}

fn not_ready_in_time(entry: &Entry, seen: &NodeSeen) -> String {
    let missing = missing(entry, seen, entry.ready_deadline);
    format!(
        "Not ready within {} s: {}",
        entry.ticket.ready_seconds,
        if missing.is_empty() {
            "too late".to_owned()
        } else {
            missing.join("; ")
        }
    )
}

fn starting(entry: &Entry, seen: &NodeSeen, now: DateTime<Utc>) -> Action {
    if let Some(why) = disturbed(entry, seen).or_else(|| crash_loop(entry, seen)) {
        return Action::BeginUndo(why);
    }
    // Readiness before the deadline: a node that slept past it, and is ready, has nothing to undo.
    let missing = missing(entry, seen, now);
    if missing.is_empty() {
        Action::MarkReady(ready_message(entry, seen))
    } else if now >= entry.ready_deadline {
        Action::BeginUndo(not_ready_in_time(entry, seen))
    } else {
        Action::Wait(format!("Waiting: {}", missing.join("; ")))
    }
}

/// What still lacks until every changed component runs, is the right one, and is ready.
fn missing(entry: &Entry, seen: &NodeSeen, now: DateTime<Utc>) -> Vec<String> {
    entry
        .files
        .iter()
        .filter_map(|record| missing_of(entry, record, seen, now))
        .collect()
}

fn missing_of(entry: &Entry, record: &FileRecord, seen: &NodeSeen, now: DateTime<Utc>) -> Option<String> {
    let component = record.component;
    let wanted = &entry
        .ticket
        .changes
        .iter()
        .find(|c| c.component == component)?
        .version;
    let Some(running) = seen
        .components
        .get(&component)
        .and_then(|c| c.running.as_ref())
        .filter(|r| r.images.contains(&record.new_image) && r.created_at > entry.applied_at)
    else {
        return Some(format!("{component} does not run {} yet", record.new_image));
    };
    if running.ready != Tristate::True {
        return Some(format!("{component} is not ready ({})", running.message));
    }
    match &running.version {
        Some(version) if same_version(version, wanted) => None,
        Some(version) => Some(format!("{component} reports version {version}, not {wanted}")),
        None if component != Component::KubeApiserver && now - running.created_at >= VERSION_PATIENCE => None,
        None => Some(format!(
            "{component} has not told its version yet ({})",
            running.message
        )),
    }
}

fn same_version(one: &str, other: &str) -> bool {
    one.trim_start_matches('v') == other.trim_start_matches('v')
}

fn ready_message(entry: &Entry, seen: &NodeSeen) -> String {
    let silent: Vec<_> = entry
        .files
        .iter()
        .filter(|record| {
            seen.components
                .get(&record.component)
                .and_then(|c| c.running.as_ref())
                .is_some_and(|r| r.version.is_none())
        })
        .map(|record| record.component.name())
        .collect();
    if silent.is_empty() {
        "Ready; waits for confirmation.".to_owned()
    } else {
        format!(
            "Ready; waits for confirmation. {} could not be asked for the version; image, start and readiness are as wanted.",
            silent.join(" and ")
        )
    }
}

fn ready(entry: &Entry, same: Option<&Ticket>, seen: &NodeSeen, now: DateTime<Utc>) -> Action {
    // Confirmation and deadline in the same look: the gates have passed, and the first one journalled wins.
    if same.is_some_and(|t| t.verdict == Verdict::Confirmed) {
        return Action::MarkConfirmed("Confirmed.".to_owned());
    }
    let kept = entry.ticket.unconfirmed == Unconfirmed::Keep;
    // What is itself the way back is not left for what it leads away from.
    if let Some(why) = crash_loop(entry, seen).filter(|_| !kept) {
        return Action::BeginUndo(why);
    }
    let late = format!(
        "Not confirmed within {} s of being ready",
        entry.ticket.confirm_seconds
    );
    match entry.confirm_deadline {
        Some(deadline) if now < deadline => Action::Wait(entry.message.clone()),
        _ if kept => Action::MarkConfirmed(format!("{late}; kept, as the ticket says.")),
        _ => Action::BeginUndo(format!("{late}.")),
    }
}

fn undoing(entry: &Entry, seen: &NodeSeen, now: DateTime<Utc>) -> Action {
    let mut left_alone = Vec::new();
    let mut waits = Vec::new();
    for record in &entry.files {
        let there = file(seen, record.component);
        let is = |hash: &str| matches!(&there, FileSeen::Hash(found) if found == hash);
        let (bridged, known) = match &there {
            FileSeen::Unknown(why) => {
                waits.push(why.clone());
                continue;
            }
            // Nobody's.
            FileSeen::Absent => (None, true),
            FileSeen::Hash(hash) => (record.bridge(hash), record.knows(hash)),
        };
        if !known {
            left_alone.push(record.component.name());
        } else if let Some(pod) = stuck(entry, record, is(&record.old_hash), seen, now)
            && bridged.is_none_or(|bridge| bridge.pod != pod)
        {
            return Action::WriteBridge(record.component, pod.to_owned());
        } else if is(&record.old_hash) {
            waits.extend(not_back(entry, record, seen, now));
        } else if bridged.is_some() && (seen.alone || !is_ready(record, seen)) {
            waits.push(format!(
                "{} runs the old version under the new one's pod until the agent is back",
                record.component
            ));
        } else {
            // Ours, or nobody's: a node without its manifest is what must never be left behind.
            return Action::WriteOld(record.component);
        }
    }
    let why = &entry.message;
    if !waits.is_empty() {
        return Action::Wait(format!("{why} Going back: {}", waits.join("; ")));
    }
    if left_alone.is_empty() {
        Action::MarkUndone(why.clone())
    } else {
        Action::MarkUndone(format!(
            "{why} The manifest of {} was edited by somebody else and left as it is.",
            left_alone.join(" and of ")
        ))
    }
}

/// The container of an API server that is being replaced and has had its time for requests in flight.
///
/// Told to end, an API server closes its port, finishes its requests and then waits for its watches, which do not
/// end by themselves; the kubelet kills it after the pod's grace period, 30 s with kubeadm (facts.md 4.1). All that
/// while its node's kubelet, controller manager and scheduler have no API server. Only one that has closed its port
/// is meant: before that the kubelet may not have seen the new manifest yet, and would start the old one again.
pub(crate) fn outstayed<'a>(entry: &Entry, seen: &'a NodeSeen, now: DateTime<Utc>) -> Option<&'a str> {
    let component = Component::KubeApiserver;
    let record = entry.files.iter().find(|r| r.component == component)?;
    let (leaving, wanted_hash) = match entry.state {
        TicketState::Starting => (&record.old_image, &record.new_hash),
        TicketState::Undoing => (&record.new_image, &record.old_hash),
        _ => return None,
    };
    if !matches!(file(seen, component), FileSeen::Hash(hash) if hash == *wanted_hash) {
        return None;
    }
    let running = seen.components.get(&component)?.running.as_ref()?;
    let drained = running.closed_at? + TimeDelta::seconds(i64::from(entry.ticket.drain_seconds));
    (running.images.contains(leaving) && now >= drained).then_some(running.id.as_str())
}

/// The pod of an API server that the kubelet cannot let go.
///
/// A kubelet that has got nothing from an API since it started takes no pod away, since it cannot know whether the API
/// wants it (`deletePod`: "sources aren't ready"). The old manifest makes another static pod of the same name, since
/// a static pod's UID is a hash of its content, and two of one name it does not start. So a kubelet that booted into a
/// bad API server keeps it, whatever the manifest says by then, and never gets an API. It does change a pod's container
/// in its place: the old manifest goes on under the UID of the pod that is there, the bridge. Once there is an API the
/// old bytes follow.
fn stuck<'a>(
    entry: &Entry,
    record: &FileRecord,
    old_is_back: bool,
    seen: &'a NodeSeen,
    now: DateTime<Utc>,
) -> Option<&'a str> {
    let old_pod = record.old_pod.as_ref()?;
    if record.component != Component::KubeApiserver {
        return None;
    }
    let newest = seen.components.get(&record.component)?.newest.as_ref()?;
    let stays = newest.created_at > entry.applied_at && newest.pod != *old_pod;
    let late = old_is_back && record.bridges.is_empty() && now - entry.since >= STUCK;
    (stays && (seen.alone || late)).then_some(newest.pod.as_str())
}

fn is_ready(record: &FileRecord, seen: &NodeSeen) -> bool {
    seen.components
        .get(&record.component)
        .and_then(|c| c.running.as_ref())
        .is_some_and(|r| r.images.contains(&record.old_image) && r.ready == Tristate::True)
}

fn not_back(entry: &Entry, record: &FileRecord, seen: &NodeSeen, now: DateTime<Utc>) -> Option<String> {
    let component = record.component;
    let Some(running) = seen
        .components
        .get(&component)
        .and_then(|c| c.running.as_ref())
        .filter(|r| r.images.contains(&record.old_image))
    else {
        return Some(format!("{component} does not run {} yet", record.old_image));
    };
    let newest = seen.components.get(&component).and_then(|c| c.newest.as_ref());
    if record
        .bridges
        .iter()
        .any(|b| newest.is_some_and(|n| n.pod == b.pod))
    {
        return Some(format!("{component} still runs in the new one's pod"));
    }
    // Either the kubelet started it anew since, or it never noticed the change and never stopped it.
    if running.created_at <= entry.since && now - entry.since < QUIET {
        return Some(format!("{component} has not been started anew yet"));
    }
    (running.ready != Tristate::True).then(|| format!("{component} is not ready ({})", running.message))
}

#[cfg(test)]
#[path = "ticket_tests.rs"]
mod tests;
