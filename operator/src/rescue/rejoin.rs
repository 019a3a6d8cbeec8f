//! `lockkeeper rescue fence` and `lockkeeper rescue rejoin`.

use tokio_util::sync::CancellationToken;

use super::{NodeArgs, Output, RescueError, screen};
use crate::agent::rescue::{self, Begin, Kind, Step};

/// Of `lockkeeper rescue fence`.
#[derive(Debug, clap::Args)]
pub struct FenceArgs {
    /// The cluster's name, typed to confirm (the controller manager's --cluster-name; `journal` shows it).
    #[arg(long, value_name = "NAME")]
    confirm: Option<String>,
    /// How the result is written.
    #[arg(long, short, value_enum, default_value_t)]
    output: Output,
    /// Where things lie on this node.
    #[command(flatten)]
    node: NodeArgs,
}

/// Of `lockkeeper rescue rejoin`.
#[derive(Debug, clap::Args)]
pub struct RejoinArgs {
    /// The cluster's name, typed to confirm (the controller manager's --cluster-name; `journal` shows it).
    #[arg(long, value_name = "NAME")]
    confirm: Option<String>,
    /// The address of a member that has a quorum: HOST, HOST:PORT or a client URL [default: looked for in
    /// etcd.yaml's --initial-cluster].
    #[arg(long, value_name = "ADDRESS")]
    via: Option<String>,
    /// Goes on with what is in hand; so does the command without it.
    #[arg(long, conflicts_with = "put_back")]
    resume: bool,
    /// Puts old data and manifests back as they were; a learner that was added is removed.
    #[arg(long)]
    put_back: bool,
    /// How the result is written.
    #[arg(long, short, value_enum, default_value_t)]
    output: Output,
    /// Where things lie on this node.
    #[command(flatten)]
    node: NodeArgs,
}

pub(super) async fn fence(args: FenceArgs, shutdown: &CancellationToken) -> Result<(), RescueError> {
    screen::as_root()?;
    let (host, cri) = (screen::host(&args.node), screen::cri(&args.node)?);
    let asked = Begin {
        kind: Kind::Rejoin,
        until: Step::Fenced,
        confirm: args.confirm,
        via: None,
        copy_to: None,
    };
    let entry = rescue::begin(&host, cri, &asked, &screen::tell, shutdown).await?;
    let text = "etcd and the API server of this node are off and stay so until `lockkeeper rescue rejoin` brings them back (or takes this back: --put-back).";
    screen::end(&entry, args.output, text)
}

pub(super) async fn run(args: RejoinArgs, shutdown: &CancellationToken) -> Result<(), RescueError> {
    screen::as_root()?;
    let (host, cri) = (screen::host(&args.node), screen::cri(&args.node)?);
    let kind = Kind::Rejoin;
    if args.resume && !rescue::is_in_hand(&host, kind)? {
        return Err(RescueError::Refused(
            "--resume: no `lockkeeper rescue rejoin` is in hand on this node; begin one with --confirm NAME"
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
            via: args.via,
            copy_to: None,
        };
        rescue::begin(&host, cri, &asked, &screen::tell, shutdown).await?
    };
    let text = if entry.step == Step::Done {
        format!(
            "{} is a voting member again. Its old data, if it had any, lie in {}; remove them once all is well.",
            entry.name,
            entry.aside.display()
        )
    } else {
        format!(
            "All is as it was before, but for the old member {}, which may have been removed from the list. {}",
            entry.name, entry.message
        )
    };
    screen::end(&entry, args.output, &text)
}
