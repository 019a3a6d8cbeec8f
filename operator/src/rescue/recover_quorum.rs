//! `lockkeeper rescue recover-quorum`.

use std::path::PathBuf;

use tokio_util::sync::CancellationToken;

use super::{NodeArgs, Output, RescueError, screen};
use crate::agent::rescue::{self, Begin, Kind, Step};

/// Of `lockkeeper rescue recover-quorum`.
#[derive(Debug, clap::Args)]
pub struct RecoverQuorumArgs {
    /// The cluster's name, typed to confirm (the controller manager's --cluster-name; `journal` shows it).
    #[arg(long, value_name = "NAME")]
    confirm: Option<String>,
    /// Where the safety copy of the data goes [default: below the state directory].
    #[arg(long, value_name = "DIR")]
    copy_to: Option<PathBuf>,
    /// Goes on with what is in hand; so does the command without it.
    #[arg(long, conflicts_with = "put_back")]
    resume: bool,
    /// Puts data and manifests back as they were.
    #[arg(long)]
    put_back: bool,
    /// How the result is written.
    #[arg(long, short, value_enum, default_value_t)]
    output: Output,
    /// Where things lie on this node.
    #[command(flatten)]
    node: NodeArgs,
}

pub(super) async fn run(args: RecoverQuorumArgs, shutdown: &CancellationToken) -> Result<(), RescueError> {
    screen::as_root()?;
    let (host, cri) = (screen::host(&args.node), screen::cri(&args.node)?);
    let kind = Kind::RecoverQuorum;
    if args.resume && !rescue::is_in_hand(&host, kind)? {
        return Err(RescueError::Refused(
            "--resume: no `lockkeeper rescue recover-quorum` is in hand on this node; begin one with --confirm NAME"
                .to_owned(),
        ));
    }
    let entry = if args.put_back {
        rescue::put_back(&host, cri, kind, &screen::tell, shutdown).await?
    } else {
        let asked = Begin {
            kind,
            until: Step::Done,
            confirm: args.confirm,
            via: None,
            copy_to: args.copy_to,
        };
        rescue::begin(&host, cri, &asked, &screen::tell, shutdown).await?
    };
    let aside = entry.aside.display();
    let text = if entry.step == Step::Done {
        format!(
            "{} has its quorum again, as the only member, with all its data. Bring the other nodes back one after another: on each, `lockkeeper rescue rejoin --confirm NAME --via {}`. The safety copy {aside} may be removed once all is well.",
            entry.name,
            rescue::host_of(&entry.peer_url)
        )
    } else {
        format!("All is as it was before. {}", entry.message)
    };
    screen::end(&entry, args.output, &text)?;
    if entry.step == Step::PutBack && !args.put_back {
        return Err(RescueError::Refused(entry.message.clone()));
    }
    Ok(())
}
