//! `lockkeeper rescue journal`: what this node has and what is in hand on it.

use std::fmt::Write as _;
use std::io::Write as _;

use super::{NodeArgs, Output, RescueError, screen};
use crate::agent::rescue::survey::{CHOICE, Survey};
use crate::agent::rescue::view::{self, View};

/// Of `lockkeeper rescue journal`.
#[derive(Debug, clap::Args)]
pub struct JournalArgs {
    /// How it is written.
    #[arg(long, short, value_enum, default_value_t)]
    output: Output,
    /// Where things lie on this node.
    #[command(flatten)]
    node: NodeArgs,
}

pub(super) async fn run(args: &JournalArgs) -> Result<(), RescueError> {
    screen::as_root()?;
    let view = view::of(&screen::host(&args.node)).await;
    let text = match args.output {
        Output::Text => page(&view),
        Output::Json => serde_json::to_string_pretty(&view).map_err(std::io::Error::from)?,
    };
    Ok(writeln!(std::io::stdout(), "{}", text.trim_end())?)
}

/// The page for a person.
fn page(view: &View) -> String {
    let mut out = String::new();
    line(&mut out, "Manifests", "");
    for manifest in &view.manifests {
        line(&mut out, &format!("  {}", manifest.file), &manifest.state);
    }
    for problem in &view.problems {
        line(&mut out, "  problem", problem);
    }
    line(&mut out, "Ticket", &view.ticket);
    line(&mut out, "Guard", &view.guard);
    line(&mut out, "EtcdRestore", &view.restore);
    line(&mut out, "Rescue", &view.rescue);
    for copy in &view.copies {
        line(&mut out, "  copy", copy);
    }
    match &view.etcd {
        Ok(etcd) => member(&mut out, etcd),
        Err(why) => line(&mut out, "etcd", why),
    }
    line(&mut out, "Next", &view.next);
    out
}

fn member(out: &mut String, etcd: &Survey) {
    line(out, "Cluster", &etcd.cluster);
    let version = etcd.version.as_deref().unwrap_or("of unknown version");
    line(
        out,
        "etcd",
        &format!("{} ({}), {version}", etcd.member, etcd.peer_url),
    );
    let size = etcd.data_bytes.map_or_else(
        || "no data of a member".to_owned(),
        |bytes| format!("{} MiB", bytes >> 20),
    );
    line(
        out,
        "  data",
        &format!("{}: {size}", etcd.data_directory.display()),
    );
    if let Some(log) = &etcd.log {
        line(
            out,
            "  log on disk",
            &format!(
                "ends with term {0}, index {1} (committed: {2}); elsewhere: --beside {0}/{1}",
                log.term, log.index, log.committed
            ),
        );
    }
    match &etcd.standing {
        Some(standing) => line(
            out,
            "  running",
            &format!(
                "term {}, index {}, member {:x} of cluster {:x}, {}",
                standing.term,
                standing.index,
                standing.member_id,
                standing.cluster_id,
                if standing.leader.is_some() {
                    "with a leader"
                } else {
                    "without a leader"
                }
            ),
        ),
        None => line(
            out,
            "  running",
            "it answers no client (after a start it does so only with a quorum)",
        ),
    }
    let quorum = if etcd.quorum {
        "yes: a linearizable read succeeds".to_owned()
    } else {
        format!("no: {}", etcd.problem)
    };
    line(out, "  quorum", &quorum);
    for listed in &etcd.members {
        let name = if listed.name.is_empty() {
            "(not started)"
        } else {
            &listed.name
        };
        let kind = if listed.learner { "learner" } else { "voting" };
        line(
            out,
            "  member",
            &format!("{name} {:x} {kind} {}", listed.id, listed.peer_urls.join(",")),
        );
    }
    for peer in &etcd.peers {
        let state = if peer.alive {
            "answers".to_owned()
        } else {
            format!("does not answer ({})", peer.problem)
        };
        line(out, "  peer", &format!("{} {} {state}", peer.name, peer.peer_url));
    }
    if !etcd.quorum {
        line(out, "  choice", CHOICE);
    }
}

fn line(out: &mut String, name: &str, value: &str) {
    // Writing to a string cannot fail.
    let _ = writeln!(out, "{}", format!("{name:<32}{value}").trim_end());
}
