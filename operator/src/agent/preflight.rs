//! The checks of one node before anything is changed: what only its own agent can see.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use lockkeeper_crds::{
    Check, CheckResult, Component, EtcdStatus, PreflightReport, PreflightRequest, Tristate,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::certificates;
use super::cri::Cri;
use super::directory::{self, Directory};
use super::etcd::EtcdMember;
use super::guard::Guard;
use super::host::Host;
use super::journal::{JournalState, JournalStore};
use super::manifest;
use super::rehearsal::Part;
use super::rehearse::rehearse;
use crate::store::{Reading, Store, StoreError};

/// A control-plane image is some 30 MB; a link that takes longer for it does not carry an upgrade.
const PULL: Duration = Duration::from_secs(300);

/// The store's own calls have deadlines; this one bounds them all.
const STORE: Duration = Duration::from_secs(60);

/// A certificate that ends within this stops an upgrade: a way back a few days later must still find it valid.
const BLOCK_WITHIN: TimeDelta = TimeDelta::days(7);

/// kubeadm renews certificates in an upgrade and Lockkeeper does not: a person should plan it.
const WARN_WITHIN: TimeDelta = TimeDelta::days(30);

/// What the checks need.
#[derive(Clone)]
pub(crate) struct Bench {
    pub(crate) host: Host,
    pub(crate) cri: Cri,
    pub(crate) guard: Guard,
    pub(crate) client: kube::Client,
    pub(crate) namespace: String,
    pub(crate) node: String,
    pub(crate) etcd: Arc<EtcdMember>,
}

/// The checks so far, told as they come.
struct Progress {
    report: PreflightReport,
    node: String,
    tell: watch::Sender<Option<PreflightReport>>,
}

impl Progress {
    fn add(&mut self, name: &str, (result, message): (CheckResult, String)) -> CheckResult {
        self.report.checks.push(Check {
            name: name.to_owned(),
            result,
            message,
            node: Some(self.node.clone()),
        });
        self.tell.send_replace(Some(self.report.clone()));
        result
    }
}

/// Makes every check of one request. When cancelled it ends early and is not done.
pub(crate) async fn run(
    bench: Bench,
    request: PreflightRequest,
    tell: watch::Sender<Option<PreflightReport>>,
    cancel: CancellationToken,
) {
    let mut progress = Progress {
        report: PreflightReport {
            id: request.id,
            rollout: request.rollout.clone(),
            done: false,
            checks: Vec::new(),
        },
        node: bench.node.clone(),
        tell,
    };
    progress.tell.send_replace(Some(progress.report.clone()));
    let checks = async {
        let directory = directory::scan(&bench.host);
        progress.add("Manifests", manifests(&bench.host, &directory));
        let (parts, images) = images(&bench, &directory, &request.target).await;
        let images = progress.add("Images", images);
        progress.add(
            "Certificates",
            certificates_check(&certificates::read(&bench.host), Utc::now()),
        );
        if let Some(store) = &request.store_ref {
            progress.add("Store", store_check(&bench, &store.name).await);
        }
        progress.add("Etcd", etcd_check(bench.etcd.observe().await.as_ref()));
        (directory, parts, images)
    };
    let (directory, parts, images) = tokio::select! {
        found = checks => found,
        () = cancel.cancelled() => return,
    };
    // Both heed the cancellation themselves, to clean up behind them.
    let rehearsal = async {
        if images != CheckResult::Pass {
            return (
                CheckResult::Unknown,
                "Not rehearsed: not every image is at hand (see the check Images).".to_owned(),
            );
        }
        let parts: Vec<_> = parts
            .iter()
            .filter_map(|(component, target_image)| {
                Some(Part {
                    component: *component,
                    manifest: directory.manifest(*component)?,
                    target_image: target_image.clone(),
                })
            })
            .collect();
        rehearse(&bench.host, &bench.cri, &directory, &parts, &bench.node, &cancel).await
    };
    let (verdict, guard) = tokio::join!(rehearsal, bench.guard.rehearse(&bench.cri, &cancel));
    if !cancel.is_cancelled() {
        progress.add("Guard", guard);
        progress.report.done = true;
        progress.add("Rehearsal", verdict);
    }
}

fn manifests(host: &Host, directory: &Directory) -> (CheckResult, String) {
    let mut sentences: Vec<_> = directory.problems.iter().map(|p| p.sentence.clone()).collect();
    if let JournalState::Broken(why) = JournalStore::new(host.clone()).load() {
        sentences.push(why);
    }
    for component in Component::ALL {
        // What a ticket would ask of the file, asked now.
        if let Some(present) = directory.manifest(component)
            && present.image.contains('@')
        {
            sentences.push(format!(
                "{component}.yaml: the image {} is pinned by digest, so a version alone cannot replace it: write it as repository:tag",
                present.image
            ));
        }
    }
    if sentences.is_empty() {
        (
            CheckResult::Pass,
            format!("{} holds exactly what it should.", host.manifests().display()),
        )
    } else {
        (CheckResult::Block, sentences.join(" "))
    }
}

type Targets = Vec<(Component, String)>;

async fn images(bench: &Bench, directory: &Directory, target: &str) -> (Targets, (CheckResult, String)) {
    let mut targets = Vec::new();
    let (mut pulled, mut missing) = (Vec::new(), Vec::new());
    for component in Component::ALL {
        let Some(present) = directory.manifest(component) else {
            missing.push(format!(
                "{component}: its manifest gives no image (see the check Manifests)"
            ));
            continue;
        };
        let Some(wanted) = manifest::with_tag(&present.image, target) else {
            missing.push(format!("{component}: {} is pinned by digest", present.image));
            continue;
        };
        // The old one too: it is the way back.
        for image in [&wanted, &present.image] {
            match at_hand(&bench.cri, image).await {
                Ok(true) => pulled.push(image.clone()),
                Ok(false) => {}
                Err(why) => missing.push(format!("{image}: {why}")),
            }
        }
        targets.push((component, wanted));
    }
    let verdict = if !missing.is_empty() {
        (
            CheckResult::Block,
            format!(
                "Not on node {} and not to be had: {}. Load the images into its container runtime, or make their registry reachable for it.",
                bench.node,
                missing.join("; ")
            ),
        )
    } else if pulled.is_empty() {
        (
            CheckResult::Pass,
            format!(
                "Images of {target}, and those to go back to, are on node {}.",
                bench.node
            ),
        )
    } else {
        (CheckResult::Pass, format!("Pulled: {}.", pulled.join(", ")))
    };
    (targets, verdict)
}

/// True when it had to be pulled.
async fn at_hand(cri: &Cri, image: &str) -> Result<bool, String> {
    match cri.image(image).await {
        Ok(Some(_)) => Ok(false),
        Ok(None) => {
            cri.pull(image, PULL).await.map_err(|e| e.to_string())?;
            Ok(true)
        }
        Err(error) => Err(error.to_string()),
    }
}

fn certificates_check(found: &certificates::Certificates, now: DateTime<Utc>) -> (CheckResult, String) {
    let ending = |within: TimeDelta| -> Vec<String> {
        found
            .ends
            .iter()
            .filter(|(_, end)| **end - now < within)
            .map(|(path, end)| format!("{} ends {}", path.display(), end.format("%Y-%m-%d %H:%M UTC")))
            .collect()
    };
    let (soon, later) = (ending(BLOCK_WITHIN), ending(WARN_WITHIN));
    if !soon.is_empty() {
        return (
            CheckResult::Block,
            format!(
                "{}: renew first (`kubeadm certs renew all`, then restart the components).",
                soon.join(", ")
            ),
        );
    }
    let mut warnings = later;
    warnings.extend(found.unreadable.iter().map(|why| format!("cannot read {why}")));
    if !warnings.is_empty() {
        return (CheckResult::Warn, format!("{}.", warnings.join(", ")));
    }
    match found.ends.values().min() {
        Some(end) => (
            CheckResult::Pass,
            format!("All valid, the first to end on {}.", end.format("%Y-%m-%d")),
        ),
        None => (
            CheckResult::Unknown,
            "No certificate was found under /etc/kubernetes: is it mounted into the agent?".to_owned(),
        ),
    }
}

async fn store_check(bench: &Bench, name: &str) -> (CheckResult, String) {
    let probe = async {
        let store = Store::open(&bench.client, &bench.namespace, name).await?;
        store.probe().await?;
        let off = store.clock().filter(Reading::is_off);
        Ok::<_, StoreError>(off.map(|read| read.told(&bench.node, store.endpoint())))
    };
    match tokio::time::timeout(STORE, probe).await {
        Ok(Ok(Some(clocks))) => (
            CheckResult::Warn,
            format!(
                "EtcdBackupStore {name} works, but the clocks differ. {clocks}: set the wrong one by NTP."
            ),
        ),
        Ok(Ok(None)) => (
            CheckResult::Pass,
            format!("EtcdBackupStore {name}: takes an object, gives it back, and honours a conditional put."),
        ),
        Ok(Err(error)) => (CheckResult::Block, error.to_string()),
        Err(_) => (
            CheckResult::Block,
            format!(
                "EtcdBackupStore {name} did not answer within {} s: is its server up, and reachable from node {}?",
                STORE.as_secs(),
                bench.node
            ),
        ),
    }
}

fn etcd_check(status: Option<&EtcdStatus>) -> (CheckResult, String) {
    let Some(status) = status else {
        return (
            CheckResult::Pass,
            "This node has no etcd member of its own.".to_owned(),
        );
    };
    match status.healthy {
        Tristate::Unknown => {
            return (
                CheckResult::Unknown,
                format!("The local member could not be asked: {}", status.message),
            );
        }
        Tristate::False => {
            return (
                CheckResult::Block,
                format!("The local member is not healthy: {}", status.message),
            );
        }
        Tristate::True => {}
    }
    if !status.alarms.is_empty() {
        return (
            CheckResult::Block,
            format!(
                "etcd has raised alarms: {}. Remove the cause, then `etcdctl alarm disarm`.",
                status.alarms.join(", ")
            ),
        );
    }
    let learners: Vec<_> = status
        .members
        .iter()
        .filter(|m| m.learner)
        .map(|m| m.id.clone())
        .collect();
    if learners.is_empty() {
        (
            CheckResult::Pass,
            "A linearizable read through the local member succeeded; no alarm, no learner.".to_owned(),
        )
    } else {
        (
            CheckResult::Block,
            format!(
                "Members without a vote: {}. Promote or remove them first.",
                learners.join(", ")
            ),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::time::from_seconds;
    use std::collections::BTreeMap;
    use std::path::PathBuf;

    #[test]
    fn certificates_block_in_their_last_week_and_warn_in_their_last_month() {
        let now = from_seconds(1_763_700_000);
        let found = |days| certificates::Certificates {
            ends: BTreeMap::from([(PathBuf::from("/etc/x.crt"), now + TimeDelta::days(days))]),
            unreadable: Vec::new(),
        };
        for (days, result) in [
            (-1, CheckResult::Block),
            (6, CheckResult::Block),
            (29, CheckResult::Warn),
            (300, CheckResult::Pass),
        ] {
            let (found, message) = certificates_check(&found(days), now);
            assert_eq!(found, result, "{message}");
        }
        let none = certificates::Certificates {
            ends: BTreeMap::new(),
            unreadable: Vec::new(),
        };
        assert_eq!(certificates_check(&none, now).0, CheckResult::Unknown);
    }

    #[test]
    fn an_unasked_member_is_unknown_and_an_alarm_blocks() {
        let mut status = EtcdStatus::default();
        assert_eq!(etcd_check(Some(&status)).0, CheckResult::Unknown);
        status.healthy = Tristate::True;
        assert_eq!(etcd_check(Some(&status)).0, CheckResult::Pass);
        status.alarms = vec!["NOSPACE on 1".to_owned()];
        assert_eq!(etcd_check(Some(&status)).0, CheckResult::Block);
        assert_eq!(etcd_check(None).0, CheckResult::Pass);
    }
}
