//! `lockkeeper rescue fence` and `lockkeeper rescue rejoin`.

use tokio_util::sync::CancellationToken;

use super::course::CourseArgs;
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
    /// The address of a member that has a quorum: HOST, HOST:PORT or a client URL [default: looked for in
    /// etcd.yaml's --initial-cluster].
    #[arg(long, value_name = "ADDRESS")]
    via: Option<String>,
    /// What may be interrupted; a learner that was added is removed by `--put-back`.
    #[command(flatten)]
    course: CourseArgs,
}

pub(super) async fn fence(args: FenceArgs, shutdown: &CancellationToken) -> Result<(), RescueError> {
    screen::as_root()?;
    let (host, cri) = (screen::host(&args.node), screen::cri(&args.node)?);
    let asked = Begin {
        until: Step::Fenced,
        ..Begin::of(Kind::Rejoin, args.confirm)
    };
    let entry = rescue::begin(&host, cri, &asked, &screen::tell, shutdown).await?;
    let text = "etcd and the API server of this node are off and stay so until `lockkeeper rescue rejoin` brings them back (or takes this back: --put-back).";
    screen::end(&entry, args.output, text)
}

pub(super) async fn run(args: RejoinArgs, shutdown: &CancellationToken) -> Result<(), RescueError> {
    let kind = Kind::Rejoin;
    let (host, _) = args.course.begin(kind)?;
    let asked = Begin {
        via: args.via,
        ..Begin::of(kind, args.course.confirm.clone())
    };
    let entry = args.course.go(&host, &asked, shutdown).await?;
    let done = format!(
        "{} is a voting member again. Its old data, if it had any, lie in {}; remove them once all is well.",
        entry.name,
        entry.aside.display()
    );
    let back = format!(
        "All is as it was before, but for the old member {}, which may have been removed from the list.",
        entry.name
    );
    args.course.end(&entry, &done, &back)
}
