//! What the outside sees: logs, metrics, health, events.
//!
//! What comes in: facts, from the other rooms. What goes out: lines, an HTTP port, Event objects.
//! May touch: its own port; creates Events. Nothing here can fail its caller.

pub mod events;
pub mod health;
pub mod http;
pub mod logs;
pub mod metrics;

pub use events::{Publisher, Reason};
pub use health::{Health, Pulse};
pub use logs::LogFormat;
pub use metrics::Metrics;
