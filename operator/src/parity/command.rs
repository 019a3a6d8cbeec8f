//! `lockkeeper parity`: two kubeconfigs in, a table and an exit code out.

use std::io::Write as _;
use std::path::PathBuf;

use k8s_openapi::api::core::v1::Namespace;
use kube::{Api, Client};
use lockkeeper_policies::parity::{Acceptance, KindAsked, Report, Scope};
use tokio_util::sync::CancellationToken;

use super::{Wanted, look, table};
use crate::api::{ApiServers, SetupError};

const EQUAL: u8 = 0;
const DIFFERENT: u8 = 1;
const NOT_TOLD: u8 = 2;

/// Of `lockkeeper parity`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Objects are compared without what a cluster makes by itself: status, UIDs, addresses, node names, tokens, and what a
built-in controller makes of other objects. An image that names its digest is that digest; and where an image runs in
both clusters, what its pods run is compared too, whatever the tag says (kind Image). Contents are hashed with a key made for this one comparison; of what differs
the fields are named, and never what stands in them. By default: every kind that can be listed but events, leases,
nodes, endpoints and their like, in every namespace but kube-*.

It needs the right to list and get what is compared, in both clusters. What cannot be listed is unknown, not empty.

Exit codes: 0 green has all that blue has, 1 something is missing, different or not ready, 2 that could not be told.
With both differences and things unknown it is 1.

Examples:
  Everything:
    lockkeeper parity --blue-kubeconfig old.conf --green-kubeconfig new.conf
  Two contexts of one kubeconfig, one application:
    lockkeeper parity --blue-context old --green-context new -n shop -n shop-jobs -l app.kubernetes.io/part-of=shop
  Only some kinds, for a script:
    lockkeeper parity --blue-kubeconfig old.conf --green-kubeconfig new.conf --kind Deployment --kind secrets -o json
  A difference that is meant:
    lockkeeper parity … --accept 'ConfigMap/shop/region=green is in another region' --accept 'StorageClass//fast=renamed'")]
pub struct ParityArgs {
    /// The kubeconfig of the cluster that everything is in now.
    #[arg(long, value_name = "FILE", env = "KUBECONFIG")]
    blue_kubeconfig: PathBuf,
    /// Which of its contexts [default: the current one].
    #[arg(long, value_name = "NAME")]
    blue_context: Option<String>,
    /// The kubeconfig of the cluster that is to have it all.
    #[arg(long, value_name = "FILE", env = "KUBECONFIG")]
    green_kubeconfig: PathBuf,
    /// Which of its contexts [default: the current one].
    #[arg(long, value_name = "NAME")]
    green_context: Option<String>,
    /// Only this namespace, and what lies in none; may be given again.
    #[arg(long, short, value_parser = crate::cli::label)]
    namespace: Vec<String>,
    /// Only this kind: Deployment, deployments or deployments.apps; may be given again.
    #[arg(long)]
    kind: Vec<String>,
    /// Only what bears these labels, as kubectl takes them.
    #[arg(long, short = 'l', value_name = "LABELS")]
    selector: Option<String>,
    /// A difference that is fine, and why: KIND/NAMESPACE/NAME=REASON, KIND//NAME=REASON for what lies in no namespace;
    /// may be given again.
    #[arg(long, value_name = "OBJECT=REASON", value_parser = acceptance)]
    accept: Vec<Acceptance>,
    /// What green has and blue has not is a difference too.
    #[arg(long)]
    extra: bool,
    /// What is printed.
    #[arg(long, short, value_enum, default_value_t)]
    output: Output,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
enum Output {
    /// For a person.
    #[default]
    Table,
    /// For a program.
    Json,
}

/// Why nothing was compared.
#[derive(Debug, thiserror::Error)]
pub enum ParityError {
    /// The screen.
    #[error("cannot write to the screen: {0}")]
    Screen(#[from] std::io::Error),
    /// The report as JSON.
    #[error("cannot print the report: {0}")]
    Json(#[from] serde_json::Error),
}

/// Compares, prints, and returns the exit code.
///
/// # Errors
/// Only when the outcome cannot be printed. Whatever keeps it from comparing is said, and is exit code 2.
pub async fn run(args: ParityArgs, shutdown: CancellationToken) -> Result<u8, ParityError> {
    let told = tokio::select! {
        () = shutdown.cancelled() => return Ok(130),
        told = tell(&args) => told,
    };
    let report = match told {
        Ok(report) => report,
        Err(why) => {
            writeln!(std::io::stderr(), "lockkeeper: {why}")?;
            return Ok(NOT_TOLD);
        }
    };
    let mut out = std::io::stdout().lock();
    match args.output {
        Output::Table => write!(out, "{}", table::page(&report, args.extra))?,
        Output::Json => {
            serde_json::to_writer_pretty(&mut out, &report)?;
            writeln!(out)?;
        }
    }
    out.flush()?;
    Ok(code(&report, args.extra))
}

/// A known difference outweighs what is unknown: it is not equal, whatever that may be.
fn code(report: &Report, extra_counts: bool) -> u8 {
    if report.differs() || (extra_counts && report.sum().extra > 0) {
        DIFFERENT
    } else if report.is_known() {
        EQUAL
    } else {
        NOT_TOLD
    }
}

async fn tell(args: &ParityArgs) -> Result<Report, String> {
    let of = |colour: &'static str| move |error: SetupError| format!("{colour}: {error}");
    let blue = ApiServers::of_person(&args.blue_kubeconfig, args.blue_context.as_deref()).await;
    let blue = blue.map_err(of("blue"))?.client();
    let green = ApiServers::of_person(&args.green_kubeconfig, args.green_context.as_deref()).await;
    let green = green.map_err(of("green"))?.client();
    let (blue_uid, green_uid) = tokio::join!(uid(&blue), uid(&green));
    if blue_uid.is_some() && blue_uid == green_uid {
        return Err(
            "both kubeconfigs lead to the same cluster, which is equal to itself: correct one of them"
                .to_owned(),
        );
    }
    let wanted = Wanted {
        scope: Scope {
            namespaces: args.namespace.iter().cloned().collect(),
            kinds: args.kind.iter().cloned().map(KindAsked).collect(),
        },
        selector: args.selector.clone(),
        accepted: args.accept.clone(),
    };
    Ok(look(&blue, &green, &wanted).await)
}

/// Tells a cluster from every other; none where it may not be read, or not now: the lists will say why.
async fn uid(client: &Client) -> Option<String> {
    let api: Api<Namespace> = Api::all(client.clone());
    let read = tokio::time::timeout(crate::api::CALL_LIMIT, api.get("kube-system"));
    read.await.ok()?.ok()?.metadata.uid
}

fn acceptance(text: &str) -> Result<Acceptance, String> {
    let form = "write KIND/NAMESPACE/NAME=REASON, or KIND//NAME=REASON for what lies in no namespace";
    let (object, reason) = text.split_once('=').ok_or(form)?;
    // An image's name has slashes of its own.
    let parts: Vec<_> = object.splitn(3, '/').collect();
    let [kind, namespace, name] = parts.as_slice() else {
        return Err(form.to_owned());
    };
    if kind.is_empty() || name.is_empty() {
        return Err(form.to_owned());
    }
    if reason.trim().is_empty() {
        return Err("say why it is fine, after the =".to_owned());
    }
    Ok(Acceptance {
        kind: KindAsked((*kind).to_owned()),
        namespace: (*namespace).to_owned(),
        name: (*name).to_owned(),
        reason: reason.trim().to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use lockkeeper_policies::parity::KindReport;

    #[test]
    fn an_acceptance_names_one_object_and_a_reason() {
        let found = acceptance("StorageClass//fast=the new driver = better").unwrap();
        assert_eq!((found.namespace.as_str(), found.name.as_str()), ("", "fast"));
        assert_eq!(found.reason, "the new driver = better");
        let found = acceptance("Image/shop/r.example.com/web:1=rebuilt").unwrap();
        assert_eq!(found.name, "r.example.com/web:1");
        for bad in [
            "ConfigMap/shop/a",
            "ConfigMap/a=b",
            "/shop/a=b",
            "ConfigMap/shop/=b",
            "ConfigMap/shop/a= ",
        ] {
            assert!(acceptance(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_exit_code_says_equal_only_of_what_was_seen() {
        let report = |missing, extra, unknown: bool| {
            let kind = KindReport {
                missing,
                extra,
                ..KindReport::default()
            };
            let unknown = if unknown { vec!["x".to_owned()] } else { vec![] };
            Report::new(vec![kind], unknown, &[])
        };
        assert_eq!(code(&report(0, 0, false), false), EQUAL);
        assert_eq!(code(&report(0, 0, true), false), NOT_TOLD);
        assert_eq!(code(&report(1, 0, true), false), DIFFERENT);
        assert_eq!(code(&report(0, 3, false), false), EQUAL);
        assert_eq!(code(&report(0, 3, false), true), DIFFERENT);
    }
}
