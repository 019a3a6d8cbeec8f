//! `ClusterCutover`: two clusters, and the traffic that moves from one to the other.

mod traffic;

pub use traffic::*;
