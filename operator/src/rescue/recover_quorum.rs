//! `lockkeeper rescue recover-quorum`.

use std::path::PathBuf;

use tokio_util::sync::CancellationToken;

use super::RescueError;
use super::course::CourseArgs;
use crate::agent::rescue::{self, Begin, Copies, CopyEnd, Kind};

/// Of `lockkeeper rescue recover-quorum`.
#[derive(Debug, clap::Args)]
pub struct RecoverQuorumArgs {
    /// Where the safety copy of the data goes [default: below the state directory].
    #[arg(long, value_name = "DIR")]
    copy_to: Option<PathBuf>,
    /// Where the log of another node's data ends, as `journal` shows it there; once for each node that has data left.
    /// Refused when one of them is newer than this node's.
    #[arg(long, value_name = "TERM/INDEX", conflicts_with = "only_copy")]
    beside: Vec<CopyEnd>,
    /// No other node has data of a member left.
    #[arg(long)]
    only_copy: bool,
    /// What may be interrupted.
    #[command(flatten)]
    course: CourseArgs,
}

pub(super) async fn run(args: RecoverQuorumArgs, shutdown: &CancellationToken) -> Result<(), RescueError> {
    let kind = Kind::RecoverQuorum;
    let (host, _) = args.course.begin(kind)?;
    let asked = Begin {
        copy_to: args.copy_to,
        copies: match (args.only_copy, args.beside) {
            (true, _) => Copies::Absent,
            (false, ends) if ends.is_empty() => Copies::Unsaid,
            (false, ends) => Copies::Known(ends),
        },
        ..Begin::of(kind, args.course.confirm.clone())
    };
    let entry = args.course.go(&host, &asked, shutdown).await?;
    let done = format!(
        "{} has its quorum again, as the only member, with all its data. Bring the other nodes back one after another: on each, `lockkeeper rescue rejoin --confirm NAME --via {}`. The safety copy {} may be removed once all is well.",
        entry.name,
        rescue::host_of(&entry.peer_url),
        entry.aside.display()
    );
    args.course.end(&entry, &done, "All is as it was before.")
}
