//! Every rule of Lockkeeper as a pure function of values.
//!
//! What comes in: what is wanted ([`Wanted`]), what is remembered ([`Rollout`]) and what is seen
//! ([`Cluster`]). What goes out: the one next thing to do ([`Action`]) and a [`Report`] of why.
//! May touch: nothing. There is no client, no runtime and no clock here; time comes in as a value.
//!
//! | room | rules |
//! | --- | --- |
//! | [`version`] | versions that cannot be malformed |
//! | [`facts`] | what is known of each release, as data with its sources |
//! | [`model`] | what the planner is told |
//! | [`skew`] | which versions may run side by side |
//! | [`quorum`] | whether etcd bears a node's absence |
//! | [`preflight`] | what is checked before anything is changed |
//! | [`plan`] | the one next thing |
//! | [`report`] | why, in words |
//! | [`schedule`] | when a scheduled backup is due |
//! | [`retention`] | which backups of a schedule are kept |
//! | [`mod@accept`] | which backup may stand for an upgrade's own snapshot |
//! | [`restore`] | how the nodes restore etcd together, with no API |
//! | [`cutover`] | how traffic and duty go from one cluster to another, and back |
//! | [`parity`] | whether the other cluster has what the first one has |

pub mod accept;
pub mod cutover;
pub mod facts;
pub mod model;
pub mod parity;
pub mod plan;
pub mod preflight;
pub mod quorum;
pub mod report;
pub mod restore;
pub mod retention;
pub mod schedule;
pub mod skew;
pub mod version;

pub use model::{
    Backup, Check, Cluster, Component, Count, Etcd, InHand, Member, Mode, Node, NodeName, Phase,
    PreflightView, Rollout, Running, Seen, TicketState, TicketView, Verdict, Wanted,
};
pub use plan::{Action, plan};
pub use report::{Held, Report, State, WayBack};
pub use version::{EtcdVersion, KubernetesVersion};
