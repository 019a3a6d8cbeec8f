//! What the protocol is told, and what it answers.

use chrono::{DateTime, TimeDelta, Utc};

/// One of the two clusters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, strum::Display)]
#[strum(serialize_all = "lowercase")]
pub enum Side {
    /// Where everything is at the beginning.
    Blue,
    /// Where it goes.
    Green,
}

/// A share of the traffic that green gets, and how long it is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Percent; the rest is blue's.
    pub green: u8,
    /// At least so long once the weights are seen; and at least until the old answers of a DNS have run out.
    pub soak: TimeDelta,
    /// It begins only when a person has promoted it.
    pub approval: bool,
}

/// What may be lost altogether before it goes back, even where no gate fails long enough by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Budget {
    /// Requests of gates that failed, over all.
    pub failed_requests: Option<u64>,
    /// Seconds in which a gate was failing, over all.
    pub failing_seconds: Option<u64>,
}

/// What was lost so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spent {
    /// Requests of gates that failed.
    pub failed_requests: u64,
    /// Seconds in which a gate was failing.
    pub failing_seconds: u64,
}

/// What happens when a cluster's API does not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenLost {
    /// Nothing moves until it answers again.
    Hold,
    /// The traffic goes back.
    GoBack,
}

/// The wish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Rising; the last has all.
    pub steps: Vec<Step>,
    /// Steps up to this share are approved by a person.
    pub promoted: u8,
    /// No step begins.
    pub paused: bool,
    /// Go back.
    pub abort: bool,
    /// See [`Budget`].
    pub budget: Budget,
    /// After the last step, how long blue stays as it is.
    pub window: TimeDelta,
    /// How long the weights may take to be seen where they were set.
    pub takes: TimeDelta,
    /// Until answers given before a change have run out: twice the TTL.
    pub settles: TimeDelta,
    /// A cluster that does not answer for so long is lost.
    pub lost_after: TimeDelta,
    /// What a loss of blue means.
    pub blue_lost: WhenLost,
    /// What a loss of green means.
    pub green_lost: WhenLost,
    /// Something must run in exactly one of the clusters, and is handed over before the last step.
    pub hand_over: bool,
    /// How long a hand-over may take.
    pub hand_over_limit: TimeDelta,
    /// Writes to blue are refused in the hand-over, for at most so long.
    pub freeze: Option<TimeDelta>,
}

/// Where a cutover stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    /// Nothing was touched yet.
    Checking,
    /// What runs once is stopped in blue and started in green.
    HandingOver,
    /// A step, by its place in the plan.
    Step(usize),
    /// Green has all; blue is kept as it is.
    Window,
    /// All goes back to blue.
    Back,
    /// An end: green has all.
    Completed,
    /// An end: blue has all.
    RolledBack,
}

impl Stage {
    /// True when nothing more will happen.
    #[must_use]
    pub const fn is_end(self) -> bool {
        matches!(self, Self::Completed | Self::RolledBack)
    }
}

/// What outlives a process: written before anything follows from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Where it stands.
    pub stage: Stage,
    /// Since when.
    pub since: DateTime<Utc>,
    /// When the weights of this stage were first seen.
    pub reached: Option<DateTime<Utc>>,
    /// The longest end of a freeze that may be in force.
    pub frozen_until: Option<DateTime<Utc>>,
    /// The hand-over has begun once: what runs once may be anywhere.
    pub handed: bool,
    /// The freeze was lifted after the hand-over: green may hold writes that blue has not.
    pub diverged: bool,
    /// What was lost.
    pub spent: Spent,
    /// Why it goes, or went, back.
    pub reason: String,
}

impl Memory {
    /// Before anything.
    #[must_use]
    pub const fn new(now: DateTime<Utc>) -> Self {
        Self {
            stage: Stage::Checking,
            since: now,
            reached: None,
            frozen_until: None,
            handed: false,
            diverged: false,
            spent: Spent {
                failed_requests: 0,
                failing_seconds: 0,
            },
            reason: String::new(),
        }
    }

    pub(super) fn at(&self, stage: Stage, now: DateTime<Utc>) -> Self {
        Self {
            stage,
            since: now,
            reached: None,
            ..self.clone()
        }
    }
}

/// The weights as they are read at their source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Weights {
    /// Not every source could be read.
    Unknown(String),
    /// They are being set or read, and will be known: which is at work. As unknown, but nobody has to do anything.
    NotYet(String),
    /// Green's share at each source.
    Known(Vec<u8>),
}

impl Weights {
    /// Every source says this share, and there is one.
    #[must_use]
    pub fn are(&self, green: u8) -> bool {
        matches!(self, Self::Known(all) if !all.is_empty() && all.iter().all(|w| *w == green))
    }
}

/// In which direction something was stopped. A stop leaves this mark with a new version of the object, so that a
/// start which was decided on an older look is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fence {
    /// Of the way to green.
    Forward,
    /// Of the way back.
    Back,
}

/// What runs once, in one of the clusters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Duty {
    /// Could not be seen: not stopped, and not running.
    Unknown(String),
    /// It is to run, and does.
    Running,
    /// It is to run.
    Starting,
    /// It is not to run; something of it is still there.
    Stopping,
    /// It is not to run, and nothing of it is there.
    Stopped(Option<Fence>),
}

/// A gate's rounds since the stage began, or since its weights were seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gate {
    /// Its name.
    pub name: String,
    /// Rounds that passed one after the other, up to now, since the weights were seen.
    pub passes: u32,
    /// So many are wanted.
    pub passes_wanted: u32,
    /// Rounds that failed one after the other, up to now, since the stage began.
    pub failures: u32,
    /// So many are too many.
    pub failures_limit: u32,
    /// What the last round found.
    pub message: String,
}

/// A check that must pass before anything is touched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Obstacle {
    /// A sentence with the way out.
    pub message: String,
    /// It is being looked at for the first time: nobody has to do anything about it yet.
    pub pending: bool,
}

/// What is seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The traffic.
    pub weights: Weights,
    /// What stands in the way of a beginning; looked at in [`Stage::Checking`] only.
    pub obstacles: Vec<Obstacle>,
    /// From when on a change of the weights is heeded in time, since a longer TTL was lowered and has run out; none:
    /// that was not done yet. Looked at in [`Stage::Checking`] only.
    pub ready_at: Option<DateTime<Utc>>,
    /// Each gate that counts in this stage.
    pub gates: Vec<Gate>,
    /// Since when blue's API does not answer.
    pub blue_lost: Option<DateTime<Utc>>,
    /// Since when green's API does not answer.
    pub green_lost: Option<DateTime<Utc>>,
    /// What runs once, in blue.
    pub blue: Duty,
    /// What runs once, in green.
    pub green: Duty,
    /// Whether a freeze is there; `None`: unknown.
    pub frozen: Option<bool>,
    /// What was lost up to now.
    pub spent: Spent,
}

/// Why nothing is done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// Short and stable.
    pub reason: Reason,
    /// A sentence.
    pub message: String,
}

/// Why nothing is done, in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, strum::Display)]
pub enum Reason {
    /// It has ended.
    Ended,
    /// What must hold for a beginning is being looked at.
    Looking,
    /// Something stands in the way of a beginning.
    Blocked,
    /// What is heeded too late has been made shorter, and runs out.
    Preparing,
    /// A person has to promote.
    AwaitingApproval,
    /// `spec.paused`.
    Paused,
    /// The weights are looked at for a while.
    Soaking,
    /// Gates have not passed often enough.
    GatesPending,
    /// A cluster does not answer.
    ClusterLost,
    /// The traffic cannot be read.
    TrafficUnknown,
    /// The weights are being set or read.
    AtWork,
    /// Somebody else has set the weights.
    WeightsChanged,
    /// What runs once is being handed over.
    HandingOver,
    /// Going back would lose writes; a person decides.
    GreenDiverged,
    /// Blue is kept as it is.
    RollbackWindow,
    /// It goes back.
    RollingBack,
}

/// The one next act.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    /// Nothing, and why.
    Wait(Held),
    /// Write this down.
    Mark(Memory),
    /// Make what moves the traffic ready for changes, and remember from when on it is.
    Prepare,
    /// Give green this share at every source.
    Set(u8),
    /// Stop what runs once there, with this mark.
    Stop(Side, Fence),
    /// Start what runs once there, unless it was changed since it was seen.
    Start(Side),
    /// Refuse writes to blue until then.
    Freeze(DateTime<Utc>),
    /// Refuse them no longer.
    Thaw,
}
