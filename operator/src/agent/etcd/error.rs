//! What goes wrong with the local member, as sentences.

use std::path::PathBuf;
use std::time::Duration;

use super::SnapshotError;

/// Why the local member could not be asked, or what it answered.
#[derive(Debug, thiserror::Error)]
pub enum EtcdError {
    /// External etcd: not this node's business.
    #[error("there is no etcd manifest at {path}: this node runs no member")]
    NoMember {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// The manifest exists and is of no use.
    #[error("the etcd manifest {path} {problem}")]
    Manifest {
        /// On this machine.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A file cannot be read.
    #[error("{path} cannot be read: {source}")]
    File {
        /// On this machine.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// None of the known client certificates exists.
    #[error("there is no client certificate for etcd: neither {} exists with its key", list(.looked_for))]
    NoCertificate {
        /// On this machine.
        looked_for: Vec<PathBuf>,
    },
    /// The endpoint or the certificates are unusable.
    #[error("no connection to etcd at {endpoint} can be prepared: {problem}")]
    Client {
        /// The member's.
        endpoint: String,
        /// What the client says.
        problem: String,
    },
    /// No answer.
    #[error("etcd did not {doing} within {} s", limit.as_secs_f32())]
    TimedOut {
        /// What was asked.
        doing: &'static str,
        /// How long it was waited for.
        limit: Duration,
    },
    /// It answered with an error, or could not be reached.
    #[error("etcd could not {doing}: {problem}")]
    Failed {
        /// What was asked.
        doing: &'static str,
        /// One line.
        problem: String,
    },
    /// What it streamed is no snapshot.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
}

fn list(paths: &[PathBuf]) -> String {
    let paths: Vec<_> = paths.iter().map(|p| p.display().to_string()).collect();
    paths.join(" nor ")
}

impl EtcdError {
    /// Here, not there.
    pub(super) fn broken(problem: &str) -> Self {
        Self::Failed {
            doing: "stream a snapshot",
            problem: problem.to_owned(),
        }
    }

    pub(super) fn asked(doing: &'static str, e: &etcd_client::Error) -> Self {
        Self::Failed {
            doing,
            problem: explain(e),
        }
    }
}

/// One line: what the server said, or the deepest reason why it said nothing.
pub(super) fn explain(e: &etcd_client::Error) -> String {
    let (text, mut reason) = match e {
        etcd_client::Error::GRpcStatus(status) => {
            (status.message().to_owned(), std::error::Error::source(status))
        }
        etcd_client::Error::TransportError(e) => (e.to_string(), std::error::Error::source(e)),
        other => (other.to_string(), None),
    };
    while let Some(deeper) = reason.and_then(std::error::Error::source) {
        reason = Some(deeper);
    }
    match reason.map(ToString::to_string) {
        Some(reason) if !text.contains(&reason) => format!("{text} ({reason})"),
        _ => text,
    }
}
