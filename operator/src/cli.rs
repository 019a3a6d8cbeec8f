//! The command line: what it takes, and which room does it.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use tokio_util::sync::CancellationToken;

use crate::agent::{self, AgentConfig};
use crate::operator::{self, OperatorConfig};
use crate::parity::{self, ParityArgs};
use crate::rescue::{self, RescueArgs};
use crate::telemetry::LogFormat;
use crate::view::{self, StatusArgs};

/// Upgrades the control plane of a self-managed Kubernetes cluster, one gate at a time, and brings it back
/// when a gate does not pass.
#[derive(Debug, Parser)]
#[command(name = "lockkeeper", version, max_term_width = 110)]
#[command(after_help = "\
Examples:
  Follow an upgrade to its end:
    lockkeeper status --watch
  In the cluster, as the chart runs them:
    lockkeeper operator
    lockkeeper agent
  On a control-plane node when there is no API server left:
    lockkeeper rescue journal
  Before the traffic goes to another cluster: what does it lack?
    lockkeeper parity --blue-kubeconfig old.conf --green-kubeconfig new.conf
  The operator from a desk, against the cluster of a kubeconfig:
    lockkeeper operator --kubeconfig ~/.kube/config --namespace lockkeeper-system --identity my-desk

Environment:
  LOCKKEEPER_LOG  what is logged, e.g. info, or lockkeeper=debug,kube=info [default: warn,lockkeeper=info]")]
pub struct Cli {
    /// How log lines look.
    #[arg(
        long,
        value_enum,
        default_value_t,
        global = true,
        env = "LOCKKEEPER_LOG_FORMAT"
    )]
    pub log_format: LogFormat,
    /// What to be.
    #[command(subcommand)]
    pub command: Command,
}

/// What to be.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Observes the cluster, plans, and tells the agents what to do. One of several replicas leads.
    #[command(after_help = "\
Examples:
  lockkeeper operator --namespace lockkeeper-system --metrics-address 0.0.0.0:9464
  curl http://localhost:9464/metrics")]
    Operator(OperatorArgs),
    /// Makes its own control-plane node match what the operator asks, and undoes what is not confirmed.
    #[command(after_help = "\
Examples:
  lockkeeper agent --node-name cp-1")]
    Agent(AgentArgs),
    /// Undoes a step on its own node when the agent cannot be started; a static pod that the agent puts on and
    /// takes off. Takes the agent's flags.
    #[command(after_help = "\
Examples:
  By hand on a node, after the agent's DaemonSet is gone in the middle of a step:
    lockkeeper guard --node-name cp-1")]
    Guard(AgentConfig),
    /// A control plane without any API server: from a shell on its nodes, as root.
    Rescue(RescueArgs),
    /// Shows where an upgrade stands.
    Status(StatusArgs),
    /// Compares two clusters: what is missing, different or not ready in green (the new one) of what blue has.
    Parity(ParityArgs),
    /// Prints the version.
    Version,
}

/// Of `lockkeeper operator`.
#[derive(Debug, Args)]
pub struct OperatorArgs {
    /// Where its Leases, stores and backups lie [default: the namespace of its service account].
    #[arg(long, env = "POD_NAMESPACE", value_parser = label)]
    pub namespace: Option<String>,
    /// A name that no other process has at the same time; the pod's. A new process with the name of the
    /// leader takes over without a wait [default: a random one, which waits].
    #[arg(long, env = "POD_NAME", value_parser = label)]
    pub identity: Option<String>,
    /// Where /metrics, /healthz and /readyz are served.
    #[arg(long, default_value = "0.0.0.0:9464", env = "METRICS_ADDRESS")]
    pub metrics_address: SocketAddr,
    /// A kubeconfig, outside a cluster.
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Look after ClusterCutovers too. It needs rights that the chart gives with cutover.enabled.
    #[arg(long, env = "LOCKKEEPER_CUTOVERS")]
    pub cutovers: bool,
}

/// Of `lockkeeper agent`.
#[derive(Debug, Args)]
pub struct AgentArgs {
    /// What it may touch.
    #[command(flatten)]
    pub config: AgentConfig,
    /// Where /metrics, /healthz and /readyz are served. The agent is on the node's own network: by default
    /// only the node itself can ask.
    #[arg(long, default_value = "127.0.0.1:9465", env = "METRICS_ADDRESS")]
    pub metrics_address: SocketAddr,
}

/// A name as Kubernetes allows it: what reaches further is refused here, with the flag's name.
pub(crate) fn label(text: &str) -> Result<String, String> {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
    let ends = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    if text.len() > 253
        || !text.chars().all(allowed)
        || !ends(text.chars().next())
        || !ends(text.chars().last())
    {
        return Err("a name has lower-case letters, digits, '-' and '.', and begins and ends with one of the first two".to_owned());
    }
    Ok(text.to_owned())
}

impl Cli {
    /// Does what the command says, until it is done or `shutdown`. Returns the exit code.
    ///
    /// # Errors
    /// A sentence for a person.
    pub async fn run(self, shutdown: CancellationToken) -> anyhow::Result<u8> {
        match self.command {
            Command::Operator(args) => {
                operator::run(
                    OperatorConfig {
                        namespace: args.namespace,
                        identity: args.identity,
                        metrics_address: args.metrics_address,
                        kubeconfig: args.kubeconfig,
                        cutovers: args.cutovers,
                    },
                    shutdown,
                )
                .await?;
            }
            Command::Agent(args) => {
                agent::serve(args.config, args.metrics_address, shutdown).await?;
            }
            Command::Guard(config) => agent::guard(config, shutdown).await?,
            Command::Rescue(args) => return Ok(rescue::run(args, shutdown).await?),
            Command::Status(args) => return Ok(view::run(args, shutdown).await?),
            Command::Parity(args) => return Ok(parity::run(args, shutdown).await?),
            Command::Version => {
                use std::io::Write as _;
                writeln!(std::io::stdout(), "lockkeeper v{}", env!("CARGO_PKG_VERSION"))?;
            }
        }
        Ok(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_name_that_kubernetes_would_refuse_is_refused_with_the_flag() {
        let error = Cli::try_parse_from(["lockkeeper", "operator", "--namespace", "Kube_System"])
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("--namespace") && error.contains("lower-case"),
            "{error}"
        );
    }

    #[test]
    fn an_agent_without_a_node_says_which_flag_it_wants() {
        let error = Cli::try_parse_from(["lockkeeper", "agent"])
            .unwrap_err()
            .to_string();
        assert!(error.contains("--node-name"), "{error}");
    }
}
