//! What the commands that may be interrupted have in common: confirmed, gone on with, taken back.

use super::{NodeArgs, Output, RescueError, screen};
use crate::agent::Host;
use crate::agent::rescue::{self, Begin, Entry, Kind, Step};
use tokio_util::sync::CancellationToken;

/// Of a command that may be interrupted.
#[derive(Debug, clap::Args)]
pub(super) struct CourseArgs {
    /// The cluster's name, typed to confirm (the controller manager's --cluster-name; `journal` shows it).
    #[arg(long, value_name = "NAME")]
    pub(super) confirm: Option<String>,
    /// Goes on with what is in hand; so does the command without it.
    #[arg(long, conflicts_with = "put_back")]
    resume: bool,
    /// Puts data and manifests back as they were.
    #[arg(long)]
    pub(super) put_back: bool,
    /// How the result is written.
    #[arg(long, short, value_enum, default_value_t)]
    output: Output,
    /// Where things lie on this node.
    #[command(flatten)]
    pub(super) node: NodeArgs,
}

impl CourseArgs {
    /// This node, and whether a rescue of this kind is in hand on it, as `--resume` wants.
    pub(super) fn begin(&self, kind: Kind) -> Result<(Host, bool), RescueError> {
        screen::as_root()?;
        let host = screen::host(&self.node);
        let is_in_hand = rescue::is_in_hand(&host, kind)?;
        if self.resume && !is_in_hand {
            return Err(RescueError::Refused(format!(
                "--resume: no `lockkeeper rescue {}` is in hand on this node; begin one with --confirm NAME",
                kind.command()
            )));
        }
        Ok((host, is_in_hand))
    }

    /// Brings it to an end: that which was asked for, or back.
    pub(super) async fn go(
        &self,
        host: &Host,
        asked: &Begin,
        shutdown: &CancellationToken,
    ) -> Result<Entry, RescueError> {
        let cri = screen::cri(&self.node)?;
        Ok(if self.put_back {
            rescue::put_back(host, cri, asked.kind, &screen::tell, shutdown).await?
        } else {
            rescue::begin(host, cri, asked, &screen::tell, shutdown).await?
        })
    }

    /// Tells the end. One that went back by itself is an error.
    pub(super) fn end(&self, entry: &Entry, done: &str, back: &str) -> Result<(), RescueError> {
        let is_done = entry.step == Step::Done;
        let back = format!("{back} {}", entry.message);
        screen::end(entry, self.output, if is_done { done } else { &back })?;
        if is_done || self.put_back {
            return Ok(());
        }
        Err(RescueError::Refused(entry.message.clone()))
    }
}
