//! Why traffic could not be moved or seen, as sentences that name the target and the way out.

use crate::api::ApiError;

/// What stands in the way of a driver. No field ever holds a Secret's content.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // Each sentence says what its fields are.
pub enum TrafficError {
    #[error("{field} {problem}")]
    Spec { field: &'static str, problem: String },
    #[error("{target} cannot be reached: bring it back, or correct spec.traffic ({detail})")]
    Unreachable { target: String, detail: String },
    #[error("{target} does not obey: {detail}")]
    Refused { target: String, detail: String },
    #[error("{target} is at work: {detail}")]
    AtWork { target: String, detail: String },
    #[error("{target} answers what cannot be understood: {detail}")]
    Garbled { target: String, detail: String },
    #[error("{target} cannot be steered: {problem}")]
    Unfit { target: String, problem: String },
    #[error(
        "{target} has {what}, which is neither blue's nor green's: name it in spec.traffic, or take it out"
    )]
    Stranger { target: String, what: String },
    #[error("{target} has nothing of {colour} that can take traffic: {problem}")]
    NoneUp {
        target: String,
        colour: &'static str,
        problem: String,
    },
    #[error("the weights are unknown, since parts of the target differ: {detail}")]
    Differ {
        detail: String,
        /// Green's share in each part, all of which were read.
        greens: Vec<u8>,
    },
}

impl TrafficError {
    /// What an error of a cluster's API means for what is steered there.
    pub(super) fn of_api(target: &str, error: &ApiError) -> Self {
        let (target, detail) = (target.to_owned(), error.to_string());
        if error.is_unanswered() {
            Self::Unreachable { target, detail }
        } else {
            Self::Refused { target, detail }
        }
    }

    /// Nobody knows yet, and nobody has to do anything.
    #[must_use]
    pub const fn is_at_work(&self) -> bool {
        matches!(self, Self::AtWork { .. })
    }

    /// Short and stable, for a condition's reason and a metric's label.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Spec { .. } => "SpecInvalid",
            Self::Unreachable { .. } => "TrafficUnreachable",
            Self::Refused { .. } => "TrafficRefused",
            Self::AtWork { .. } => "TrafficAtWork",
            Self::Garbled { .. } => "TrafficGarbled",
            Self::Unfit { .. } => "TrafficUnfit",
            Self::Stranger { .. } => "TrafficStranger",
            Self::NoneUp { .. } => "TrafficNoneUp",
            Self::Differ { .. } => "TrafficDiffers",
        }
    }
}
