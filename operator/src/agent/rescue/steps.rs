//! The one next act of a rescue: what is journalled and what is seen go in. No clock, no disk, no etcd.
//!
//! ```text
//! recover-quorum: StoppingApi > StoppingEtcd > Copying > Forcing > Unforcing > StartingApi [> Unbridging] > Done
//! rejoin:         StoppingApi > StoppingEtcd > Fenced > Removing > MovingAside > Adding > Joining > Promoting
//!                 > StartingApi [> Unbridging] > Done
//! restore:        StoppingApi > StoppingEtcd > MovingAside > Placing > Booting > Cleansing > StartingApi
//!                 [> Unbridging] > Done
//! either:         ... > PuttingBack > PutBack
//! ```
//!
//! The rules: a deed is journalled before it is begun and may be done again; only manifests whose bytes are ours or
//! were there before are written over; nothing is forced before a whole copy of the data lies beside them; what
//! fails before the API server's return is put back (recover-quorum, restore) or left fenced for another try (rejoin).

use chrono::{DateTime, TimeDelta, Utc};

use super::super::etcd::members::Listed;
use super::super::ticket::FileSeen;
use super::book::{Age, Entry, Kind, Part, Step};
pub(crate) use super::sight::{Act, PartSeen, Running, Seen};

/// The kubelet ends a removed pod at once; what still stands after this is ended through the runtime. A kubelet
/// that has got nothing from an API since it started takes no pod away at all (see `agent/ticket`).
const GRACE: TimeDelta = TimeDelta::seconds(10);

/// So long nothing may run before a component counts as off: the kubelet starts again what it has not yet taken off.
const QUIET: TimeDelta = TimeDelta::seconds(4);

/// A kubelet looks every 20 s at the latest (facts.md 5.1), and stands still for some 34 s when an API server without
/// its etcd leaves the deletion of a mirror pod unanswered (seen in the lab). One that starts nothing in this time
/// keeps another pod.
const UNNOTICED: TimeDelta = TimeDelta::seconds(60);

/// A kubelet asks its API server again within seconds.
const HEARS: TimeDelta = TimeDelta::seconds(20);

/// What the kubelet means to replace it ends within this.
const STAYS: TimeDelta = TimeDelta::seconds(15);

/// A component starts within seconds, on a slow kubelet a minute; an etcd of 8 GiB reads its data for another two.
const START: TimeDelta = TimeDelta::minutes(6);

/// A learner gets all data first, over the network.
const CATCH_UP: TimeDelta = TimeDelta::minutes(60);

/// The survivor may just be started anew.
const ANSWER: TimeDelta = TimeDelta::minutes(2);

/// Decides. `until` is the step to rest at, [`Step::Done`] for all of it.
pub(crate) fn decide(entry: &Entry, until: Step, seen: &Seen, now: DateTime<Utc>) -> Act {
    let context = Context { entry, seen, now };
    if entry.step.is_end() || (entry.step == Step::Fenced && until == Step::Fenced) {
        return Act::Rest;
    }
    match entry.step {
        Step::StoppingApi => context.off(Part::Api, Step::StoppingEtcd),
        Step::StoppingEtcd => context.off(
            Part::Etcd,
            match entry.kind {
                Kind::RecoverQuorum => Step::Copying,
                Kind::Rejoin => Step::Fenced,
                Kind::Restore => Step::MovingAside,
            },
        ),
        Step::Fenced => context.go(Step::Removing),
        Step::Copying => context.kept_off().unwrap_or_else(|| context.copying()),
        Step::Forcing => context.forcing(),
        Step::Unforcing => context.unforcing(),
        Step::Removing => context.kept_off().unwrap_or_else(|| context.removing()),
        Step::MovingAside => context.kept_off().unwrap_or_else(|| context.moving_aside()),
        Step::Placing => context.kept_off().unwrap_or_else(|| context.placing()),
        Step::Booting => context.booting(),
        Step::Cleansing => context.cleansing(),
        Step::Adding => context.kept_off().unwrap_or_else(|| context.adding()),
        Step::Joining => context.joining(),
        Step::Promoting => context.promoting(),
        Step::StartingApi => context.starting_api(),
        Step::Unbridging => context.unbridging(),
        Step::PuttingBack => context.putting_back(),
        Step::Done | Step::PutBack => Act::Rest,
    }
}

struct Context<'a> {
    entry: &'a Entry,
    seen: &'a Seen,
    now: DateTime<Utc>,
}

impl Context<'_> {
    fn go(&self, step: Step) -> Act {
        Act::Go(step, self.entry.message.clone())
    }

    fn back(&self, why: String) -> Act {
        Act::Go(Step::PuttingBack, why)
    }

    fn late(&self, limit: TimeDelta) -> bool {
        self.now - self.entry.since >= limit
    }

    fn part(&self, part: Part) -> &PartSeen {
        match part {
            Part::Api => &self.seen.api,
            Part::Etcd => &self.seen.etcd,
        }
    }

    /// True for what was there before and for whatever the rescue put there.
    fn knows(&self, part: Part, hash: &str) -> bool {
        match part {
            Part::Api => self.entry.api.as_deref() == Some(hash),
            Part::Etcd => self.entry.knows(hash),
        }
    }

    fn foreign(&self, part: Part) -> Act {
        Act::Stop(format!(
            "somebody else edited {0}.yaml in the middle of the rescue: compare it with the copies that `lockkeeper rescue journal` names, put one of them back, and run `lockkeeper rescue {1}` again",
            part.name(),
            self.entry.kind.command()
        ))
    }

    /// The act that keeps a component off; none when it is off.
    fn down(&self, part: Part) -> Option<Act> {
        let there = self.part(part);
        match &there.file {
            FileSeen::Hash(hash) if self.knows(part, hash) => return Some(Act::TakeOff(part)),
            FileSeen::Hash(_) => return Some(self.foreign(part)),
            FileSeen::Unknown(why) => return Some(Act::Wait(why.clone())),
            FileSeen::Absent => {}
        }
        if let Some(running) = &there.running {
            return Some(if self.late(GRACE) {
                Act::End(running.id.clone())
            } else {
                Act::Wait(format!("{} ends", part.name()))
            });
        }
        let quiet = there.quiet_since.is_some_and(|since| self.now - since >= QUIET);
        (!quiet).then(|| Act::Wait(format!("{} has ended and must stay so", part.name())))
    }

    fn off(&self, part: Part, next: Step) -> Act {
        self.down(part).unwrap_or_else(|| self.go(next))
    }

    /// What is off stays off.
    fn kept_off(&self) -> Option<Act> {
        [Part::Api, Part::Etcd]
            .into_iter()
            .find_map(|part| self.down(part))
    }

    fn copying(&self) -> Act {
        if !self.seen.data && !self.seen.aside {
            return self.back(format!(
                "there are no data of a member in {}",
                self.entry.data.display()
            ));
        }
        if !self.seen.aside {
            return Act::Copy;
        }
        // A kubelet that was late started it once more while its data were copied.
        if self
            .seen
            .etcd
            .last_made
            .is_some_and(|made| made >= self.entry.since)
        {
            return Act::Recopy;
        }
        match self.seen.alive.first() {
            Some(alive) => self.back(format!(
                "{alive} answers: run `lockkeeper rescue fence` on that node, then this again"
            )),
            None => self.go(Step::Forcing),
        }
    }

    /// Brings etcd's manifest of this age on, also past a kubelet that keeps another pod. None when it is on and
    /// has been noticed.
    fn bring_on(&self, age: Age) -> Option<Act> {
        let there = &self.seen.etcd;
        let hash = match &there.file {
            FileSeen::Unknown(why) => return Some(Act::Wait(why.clone())),
            FileSeen::Absent => return Some(Act::Write(Part::Etcd, age)),
            FileSeen::Hash(hash) => hash,
        };
        if !self.entry.knows(hash) {
            return Some(self.foreign(Part::Etcd));
        }
        if !self.entry.is(hash, age) {
            return Some(Act::Write(Part::Etcd, age));
        }
        let forced = age == Age::New && self.entry.kind == Kind::RecoverQuorum;
        if let Some(running) = &there.running {
            let meant = running.created_at >= self.entry.since && running.forced.is_none_or(|f| f == forced);
            // The kubelet restarts no container for a flag when the pod's UID is the same: it hashes name and
            // image only (`pickFieldsToHash` in pkg/kubelet/container/helpers.go). Ended, it starts as it now is.
            let stays = self.now - running.created_at.max(self.entry.since) >= STAYS;
            return (!meant && stays).then(|| Act::End(running.id.clone()));
        }
        let bridged = self.entry.bridge(hash);
        if let Some(act) = self.wake_kubelet() {
            return Some(act);
        }
        if self.fresh_kubelet_idles()
            && let Some(pod) = &there.last_pod
            && bridged.is_none_or(|bridge| bridge.pod != *pod)
        {
            return Some(Act::Bridge(age, pod.clone()));
        }
        None
    }

    /// A kubelet that starts nothing in this time keeps another pod, or pauses for minutes after so many failures.
    /// Started anew it does neither; containers go on meanwhile.
    fn wake_kubelet(&self) -> Option<Act> {
        let old = self.seen.kubelet.is_some_and(|began| began < self.entry.since);
        (old && self.late(UNNOTICED)).then_some(Act::RestartKubelet)
    }

    /// Not even a new one starts it.
    fn fresh_kubelet_idles(&self) -> bool {
        // For the moment in which there is none, as if it had begun when it was to be ended.
        let began = self.seen.kubelet.unwrap_or(self.entry.since + UNNOTICED);
        self.now - began.max(self.entry.since) >= UNNOTICED
    }

    /// The last words of an etcd that was started in this step.
    fn said(&self) -> &str {
        let etcd = &self.seen.etcd;
        let of_this_step = etcd.last_made.is_some_and(|made| made >= self.entry.since);
        if of_this_step { &etcd.last_words } else { "" }
    }

    /// The local member runs so, agrees with itself, and is alone.
    fn alone(&self, forced: bool) -> Result<(), String> {
        let Some(running) = &self.seen.etcd.running else {
            return Err(match self.said() {
                "" => "etcd does not run yet: is the kubelet running?".to_owned(),
                words => format!("etcd does not run yet; its last process said: {words}"),
            });
        };
        if running.created_at < self.entry.since || running.forced.is_some_and(|f| f != forced) {
            return Err("etcd still runs as before".to_owned());
        }
        let members = self.seen.local.as_ref().map_err(Clone::clone)?;
        match members.as_slice() {
            [one] if one.name == self.entry.name => Ok(()),
            all => Err(format!(
                "etcd lists {} members instead of itself alone",
                all.len()
            )),
        }
    }

    fn forcing(&self) -> Act {
        if let Some(act) = self.down(Part::Api).or_else(|| self.bring_on(Age::New)) {
            return self.in_time(act, START);
        }
        match self.alone(true) {
            Ok(()) => self.go(Step::Unforcing),
            Err(why) => self.in_time(Act::Wait(why), START),
        }
    }

    fn unforcing(&self) -> Act {
        if let Some(act) = self.down(Part::Api).or_else(|| self.bring_on(Age::Old)) {
            return self.in_time(act, START);
        }
        match self.alone(false) {
            Ok(()) => self.go(Step::StartingApi),
            Err(why) => self.in_time(Act::Wait(why), START),
        }
    }

    /// Waits within bounds; then the data and the manifests are put back.
    fn in_time(&self, act: Act, limit: TimeDelta) -> Act {
        match act {
            Act::Wait(why) if self.late(limit) => {
                self.back(format!("not done within {} s: {why}", limit.num_seconds()))
            }
            act => act,
        }
    }

    /// Waits within bounds; then a person looks.
    fn patiently(&self, why: String, limit: TimeDelta) -> Act {
        if self.late(limit) {
            Act::Stop(format!(
                "not done within {} s: {why}. What stands in the way removed, the same command goes on from here",
                limit.num_seconds()
            ))
        } else {
            Act::Wait(why)
        }
    }

    fn via(&self) -> Result<&[Listed], Act> {
        self.seen
            .via
            .as_deref()
            .map_err(|why| self.patiently(format!("the survivor: {why}"), ANSWER))
    }

    fn is_mine(&self, member: &Listed) -> bool {
        member.name == self.entry.name || member.peer_urls.contains(&self.entry.peer_url)
    }

    fn removing(&self) -> Act {
        match self.via() {
            Err(act) => act,
            Ok(members) => match members.iter().find(|member| self.is_mine(member)) {
                Some(old) => Act::Remove(old.id),
                None => self.go(Step::MovingAside),
            },
        }
    }

    fn moving_aside(&self) -> Act {
        match self.entry.kind {
            Kind::Restore if self.seen.aside || !self.seen.data => self.go(Step::Placing),
            _ if self.seen.data => Act::MoveAside,
            _ => self.go(Step::Adding),
        }
    }

    fn placing(&self) -> Act {
        // Another member that came back meanwhile has newer data than any backup.
        if let Some(alive) = self.seen.alive.first() {
            return self.back(format!(
                "{alive} answers: run `lockkeeper rescue fence` on that node, then this again"
            ));
        }
        match (self.seen.data, self.seen.restored) {
            (true, true) => Act::MoveStray,
            (false, true) => Act::Place,
            (true, false) => self.go(Step::Booting),
            (false, false) => self.back("the restored data are gone from etcd's disk".to_owned()),
        }
    }

    fn booting(&self) -> Act {
        if let Some(act) = self.down(Part::Api).or_else(|| self.bring_on(Age::Old)) {
            return self.in_time(act, START);
        }
        match self.alone(false) {
            Ok(()) => self.go(Step::Cleansing),
            Err(why) => self.in_time(Act::Wait(why), START),
        }
    }

    fn cleansing(&self) -> Act {
        if let Some(act) = self.down(Part::Api) {
            return self.in_time(act, ANSWER);
        }
        match &self.seen.cleansed {
            Ok(true) => self.go(Step::StartingApi),
            Ok(false) => Act::Cleanse,
            Err(why) => self.in_time(Act::Wait(why.clone()), ANSWER),
        }
    }

    fn adding(&self) -> Act {
        let members = match self.via() {
            Err(act) => return act,
            Ok(members) => members,
        };
        if let Some(mine) = members.iter().find(|member| self.is_mine(member)) {
            return Act::Adopt(mine.id, initial_cluster(members, mine.id, &self.entry.name));
        }
        match members.iter().find(|member| member.learner) {
            Some(other) => self.patiently(
                format!(
                    "{} is a learner still, and members come back one at a time: wait for its `lockkeeper rescue rejoin`, or remove it (`etcdctl member remove {:x}`)",
                    if other.name.is_empty() { "another member" } else { &other.name },
                    other.id
                ),
                ANSWER,
            ),
            None => Act::AddLearner,
        }
    }

    fn joining(&self) -> Act {
        if let Some(act) = self.down(Part::Api).or_else(|| self.bring_on(Age::New)) {
            return act;
        }
        let members = match self.via() {
            Err(act) => return act,
            Ok(members) => members,
        };
        let Some(mine) = self
            .entry
            .learner
            .and_then(|id| members.iter().find(|m| m.id == id))
        else {
            return self.lost();
        };
        if self.seen.etcd.running.is_some() && !mine.name.is_empty() {
            return self.go(Step::Promoting);
        }
        let said = match self.said() {
            "" => String::new(),
            words => format!("; its last process said: {words}"),
        };
        self.patiently(format!("etcd has not joined yet{said}"), START)
    }

    fn lost(&self) -> Act {
        Act::Stop(
            "the learner that was added for this node is no longer listed: somebody removed it. Take this rescue back (`lockkeeper rescue rejoin --put-back`), then begin again".to_owned(),
        )
    }

    fn promoting(&self) -> Act {
        let members = match self.via() {
            Err(act) => return act,
            Ok(members) => members,
        };
        match self
            .entry
            .learner
            .and_then(|id| members.iter().find(|m| m.id == id))
        {
            None => self.lost(),
            Some(mine) if !mine.learner => self.go(Step::StartingApi),
            Some(_) if self.late(CATCH_UP) => {
                self.patiently("the learner is not in sync with its leader".to_owned(), CATCH_UP)
            }
            Some(mine) => Act::Promote(mine.id),
        }
    }

    fn starting_api(&self) -> Act {
        match (&self.entry.api, &self.seen.api.file) {
            (None, _) => {}
            (Some(_), FileSeen::Absent) => return Act::Write(Part::Api, Age::Old),
            (Some(_), FileSeen::Unknown(why)) => return Act::Wait(why.clone()),
            (Some(_), FileSeen::Hash(hash)) if !self.knows(Part::Api, hash) => {
                return self.foreign(Part::Api);
            }
            (Some(_), FileSeen::Hash(_)) => {
                if self.seen.api.running.is_none()
                    && let Some(act) = self.wake_kubelet()
                {
                    return act;
                }
                if let Err(why) = &self.seen.api_ready {
                    return self.patiently(format!("the API server is not ready: {why}"), START);
                }
            }
        }
        if let Err(why) = &self.seen.local {
            return self.patiently(why.clone(), START);
        }
        if self.bridge_on().is_some() {
            self.go(Step::Unbridging)
        } else {
            self.go(Step::Done)
        }
    }

    /// The bridge that stands in the manifest directory.
    fn bridge_on(&self) -> Option<&super::book::Bridge> {
        match &self.seen.etcd.file {
            FileSeen::Hash(hash) => self.entry.bridge(hash),
            _ => None,
        }
    }

    fn unbridging(&self) -> Act {
        // The API server is ready; the kubelet hears of it a little later.
        if self.bridge_on().is_some() {
            return if self.late(HEARS) {
                Act::Write(
                    Part::Etcd,
                    match self.entry.kind {
                        Kind::RecoverQuorum | Kind::Restore => Age::Old,
                        Kind::Rejoin => Age::New,
                    },
                )
            } else {
                Act::Wait("the kubelet hears of its API again".to_owned())
            };
        }
        let anew = self
            .seen
            .etcd
            .running
            .as_ref()
            .is_some_and(|running| running.created_at >= self.entry.since);
        match (&self.seen.local, &self.seen.api_ready) {
            (Ok(_), Ok(())) if anew => self.go(Step::Done),
            // Under the same UID nothing is started anew; nor does anything hang on it.
            (Ok(_), Ok(())) if self.late(HEARS + UNNOTICED) => self.go(Step::Done),
            _ => self.patiently(
                "etcd is started anew under its plain manifest".to_owned(),
                START * 2,
            ),
        }
    }

    fn putting_back(&self) -> Act {
        if self.entry.touched {
            if let Some(act) = self.kept_off() {
                return act;
            }
            return match (self.entry.learner, &self.seen.via) {
                (Some(id), Ok(members)) if members.iter().any(|m| m.id == id && m.learner) => Act::Remove(id),
                (Some(_), Err(why)) => self.patiently(format!("the survivor: {why}"), ANSWER),
                _ => Act::PutDataBack,
            };
        }
        for part in [Part::Etcd, Part::Api] {
            let wanted = part == Part::Etcd || self.entry.api.is_some();
            match &self.part(part).file {
                FileSeen::Absent if wanted => return Act::Write(part, Age::Old),
                FileSeen::Unknown(why) => return Act::Wait(why.clone()),
                FileSeen::Hash(hash)
                    if part == Part::Etcd && self.entry.knows(hash) && *hash != self.entry.etcd =>
                {
                    return Act::Write(part, Age::Old);
                }
                _ => {}
            }
        }
        self.go(Step::PutBack)
    }
}

/// `--initial-cluster` for a member that is about to start: every member's name and peer URLs, its own included.
fn initial_cluster(members: &[Listed], own: u64, name: &str) -> String {
    let pairs: Vec<String> = members
        .iter()
        .flat_map(|member| {
            let name = if member.id == own { name } else { &member.name };
            member.peer_urls.iter().map(move |url| format!("{name}={url}"))
        })
        .collect();
    pairs.join(",")
}

#[cfg(test)]
#[path = "steps_tests.rs"]
mod tests;
