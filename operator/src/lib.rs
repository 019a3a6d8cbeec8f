//! The `lockkeeper` binary as a library: effects, no rules (those are in `lockkeeper-policies`).
//!
//! | room | what it does | may touch |
//! | --- | --- | --- |
//! | [`operator`] | observes the cluster, asks the planner, writes intent | the API |
//! | [`agent`] | makes its own node match the intent | this host, its etcd member, its own object |
//! | [`store`] | backups in an object store | the object store |
//! | [`rescue`] | the same hands from a shell, with no API | this host, its etcd members, the object store |
//! | [`traffic`] | the weights of two clusters' traffic, set and read back | load balancers, by their own interfaces |
//! | [`parity`] | whether one cluster has what another has | two APIs, reading only |
//! | [`api`] | a Kubernetes client that outlives any one API server | API servers |
//! | `jobs` | Jobs made from a template of the user's, for gates and for traffic | nothing |
//! | [`view`] | an upgrade on the screen | the API, reading only |
//! | [`telemetry`] | logs, metrics, health endpoints, events | its own port |

/// Of the static binary's C library, every large buffer that is freed goes back to the kernel and is fetched anew, and all
/// threads share one lock: it costs a backup two fifths of its time (BENCHMARKS.md).
#[global_allocator]
static MEMORY: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

pub mod agent;
pub mod api;
mod backoff;
pub mod cli;
mod jobs;
pub mod operator;
pub mod parity;
pub mod rescue;
pub mod shutdown;
pub mod store;
pub mod telemetry;
pub mod traffic;
mod trust;
pub mod view;
