//! What is answered, and what is done for it, by what was found. Pure.
//!
//! * Nothing sets while something else does: a `set` is made when no other is there, nor any pod of one that has not ended.
//! * What was read counts until something is set: whatever tells of the time before is removed before a `set` is made, so
//!   that it cannot be taken for news when the `set` is gone.

use chrono::{DateTime, TimeDelta, Utc};
use lockkeeper_crds::Weights;

use super::made::{Action, Ended, Found, Made, Mark};
use crate::traffic::TrafficError;

/// Between a failure and the next try: an API that is at its limit is not helped by more.
const PAUSE: TimeDelta = TimeDelta::seconds(5);
/// After its time the cluster ends it; a controller that does not within so long is not at work.
const GRACE: TimeDelta = TimeDelta::seconds(30);

/// Something to do, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Deed {
    /// Have one go, and be there until its pods are gone too.
    End(Made),
    /// Have one go.
    Remove(Made),
    Make(Mark),
}

/// What follows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Next<T> {
    pub(super) deeds: Vec<Deed>,
    /// What is answered when all was done.
    pub(super) answer: Result<T, TrafficError>,
}

impl<T> Next<T> {
    const fn only(answer: Result<T, TrafficError>) -> Self {
        Self {
            deeds: Vec::new(),
            answer,
        }
    }
}

/// What is the same for all of one driver.
#[derive(Clone, Debug)]
pub(super) struct Terms {
    /// What they move, for a person.
    pub(super) target: String,
    /// A hash of what they are made from.
    pub(super) template: String,
    pub(super) timeout: TimeDelta,
    pub(super) read_every: TimeDelta,
}

impl Terms {
    /// The weights, as they were read a moment ago. `how`: what to make when it is time to read anew; a `check` also says
    /// whether they can be set, and then only checks are listened to.
    pub(super) fn ask(&self, how: Action, found: &Found, now: DateTime<Utc>) -> Next<Weights> {
        if let Some(setting) = self.setting(found, now) {
            return Next::only(Err(setting));
        }
        let last = self.last(found, |action| how == Action::Get || action == Action::Check);
        let age = last.map(|(_, ended)| now - ended.at);
        let known = match last {
            Some((job, ended)) => match &ended.told {
                Ok(weights) if age < Some(self.read_every + self.timeout) => Some(Ok(*weights)),
                Ok(_) => None,
                Err(why) => Some(Err(self.failed(job, why))),
            },
            None => None,
        };
        let enough = match known {
            Some(Ok(_)) => self.read_every,
            _ => PAUSE,
        };
        if let Some(known) = known.clone()
            && age < Some(enough)
        {
            return Next::only(known);
        }
        let asking = found.jobs.iter().rev().find(|job| job.ended.is_none());
        if let Some(job) = asking {
            return Next::only(known.unwrap_or_else(|| Err(self.at_work(job, now))));
        }
        let mark = self.mark(found, how);
        let at_work = self.work(format!("a Job {how}"));
        let mut deeds = self.clearing(found, true);
        deeds.push(Deed::Make(mark));
        Next {
            deeds,
            answer: known.unwrap_or(Err(at_work)),
        }
    }

    /// Sets them, or goes on with it. That they are set is told by [`Terms::ask`] only.
    pub(super) fn set(&self, wanted: Weights, found: &Found, now: DateTime<Utc>) -> Next<()> {
        let action = Action::Set(wanted);
        if let Some(setting) = self.setting(found, now) {
            let setting_jobs = || {
                let jobs = found.jobs.iter();
                jobs.filter(|job| job.ended.is_none() && job.mark.action.is_set())
            };
            let is_wanted = |job: &Made| !job.leaves && self.is_ours(job) && job.mark.action == action;
            let uid = setting_jobs().next().map(|job| job.uid.as_str());
            let of_it = found.pods.iter().all(|pod| Some(pod.job.as_str()) == uid);
            if setting_jobs().count() == 1 && setting_jobs().all(is_wanted) && of_it {
                return Next::only(Ok(()));
            }
            let ends = setting_jobs().filter(|job| !job.leaves);
            return Next {
                deeds: ends.cloned().map(Deed::End).collect(),
                answer: Err(setting),
            };
        }
        if let Some((job, ended)) = self.last(found, |_| true) {
            let age = now - ended.at;
            match &ended.told {
                Ok(weights) if *weights == wanted && age < self.read_every => return Next::only(Ok(())),
                Err(why) if job.mark.action == action && age < PAUSE => {
                    return Next::only(Err(self.failed(job, why)));
                }
                _ => {}
            }
        }
        let reading = found.jobs.iter().filter(|job| job.ended.is_none() && !job.leaves);
        let mut deeds: Vec<Deed> = reading.cloned().map(Deed::Remove).collect();
        deeds.extend(self.clearing(found, false));
        deeds.push(Deed::Make(self.mark(found, action)));
        Next {
            deeds,
            answer: Ok(()),
        }
    }

    /// Something that sets weights and has not ended, whoever asked for it.
    fn setting(&self, found: &Found, now: DateTime<Utc>) -> Option<TrafficError> {
        let mut jobs = found.jobs.iter();
        if let Some(job) = jobs.find(|job| job.ended.is_none() && job.mark.action.is_set()) {
            return Some(self.at_work(job, now));
        }
        let pod = found.pods.first()?;
        Some(self.work(format!(
            "pod {} on {}, which {}, has not ended; it is waited for",
            pod.name, pod.node, pod.mark.action
        )))
    }

    /// The last that has ended of those that do what is accepted and were made from the same template; none where one of
    /// another has set something since.
    fn last<'a>(&self, found: &'a Found, accepted: impl Fn(Action) -> bool) -> Option<(&'a Made, &'a Ended)> {
        let jobs = found.jobs.iter().rev().filter(|job| accepted(job.mark.action));
        let mut ended = jobs.filter_map(|job| Some((job, job.ended.as_ref()?)));
        let last = ended.find(|(job, _)| self.is_ours(job) || job.mark.action.is_set());
        last.filter(|(job, _)| self.is_ours(job))
    }

    fn is_ours(&self, job: &Made) -> bool {
        job.mark.template == self.template
    }

    fn mark(&self, found: &Found, action: Action) -> Mark {
        let numbers = found.jobs.iter().map(|job| job.mark.number);
        let numbers = numbers.chain(found.pods.iter().map(|pod| pod.mark.number));
        Mark {
            number: numbers.max().unwrap_or(0) + 1,
            action,
            template: self.template.clone(),
        }
    }

    /// Of those that have ended the last that failed is kept for its logs, and the last that told something where that still
    /// counts; where it does not, none that told something is, whatever it was made from.
    fn clearing(&self, found: &Found, counts: bool) -> Vec<Deed> {
        let ended = || {
            let jobs = found.jobs.iter().rev();
            jobs.filter_map(|job| Some((job, job.ended.as_ref()?.told.is_ok())))
        };
        let last = |well: bool| {
            let mut ended = ended();
            let last = ended.find(|(job, told)| *told == well && self.is_ours(job));
            last.map(|(job, _)| &job.uid)
        };
        let kept = [last(true).filter(|_| counts), last(false)];
        let old = ended()
            .filter(|(job, told)| (self.is_ours(job) || *told && !counts) && !kept.contains(&Some(&job.uid)));
        old.map(|(job, _)| Deed::Remove(job.clone())).collect()
    }

    fn at_work(&self, job: &Made, now: DateTime<Utc>) -> TrafficError {
        let Made { name, mark, .. } = job;
        if job.leaves {
            return self.work(format!(
                "Job {name}, which {}, was told to end; its pods are waited for",
                mark.action
            ));
        }
        if now - job.asked > self.timeout + GRACE {
            return TrafficError::Refused {
                target: self.target.clone(),
                detail: format!(
                    "Job {name}, which {}, has not ended in its time, and was not ended either",
                    mark.action
                ),
            };
        }
        self.work(format!("Job {name} {}", mark.action))
    }

    fn work(&self, detail: String) -> TrafficError {
        TrafficError::AtWork {
            target: self.target.clone(),
            detail,
        }
    }

    fn failed(&self, job: &Made, why: &str) -> TrafficError {
        TrafficError::Refused {
            target: self.target.clone(),
            detail: format!("Job {}, which {}, {why}", job.name, job.mark.action),
        }
    }
}

#[cfg(test)]
#[path = "next_tests.rs"]
mod tests;
