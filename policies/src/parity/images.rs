//! What the images of running pods are: a tag may mean one thing in blue and another in green.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::Kind;
use super::compare::{Acceptance, Finding, KindReport, Outcome, SAMPLE};

/// What a person calls them in an acceptance: `Image/NAMESPACE/IMAGE`.
const KIND: &str = "Image";

/// By namespace and image, as the pods' specs name it: the digests that its containers run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Images(BTreeMap<(String, String), BTreeSet<String>>);

impl Images {
    /// Takes note of a pod. Containers that do not run yet have none, and some runtimes tell no digest.
    pub(super) fn note(&mut self, namespace: &str, pod: &Value) {
        let all = |at: &str| pod.pointer(at).and_then(Value::as_array).into_iter().flatten();
        let text = |value: &Value, member: &str| value.get(member).and_then(Value::as_str).map(str::to_owned);
        for (specs, statuses) in [
            ("/spec/containers", "/status/containerStatuses"),
            ("/spec/initContainers", "/status/initContainerStatuses"),
        ] {
            for status in all(statuses) {
                let name = text(status, "name");
                let image = all(specs)
                    .find(|c| text(c, "name") == name)
                    .and_then(|c| text(c, "image"));
                let id = text(status, "imageID").and_then(|id| Some(id.rsplit_once('@')?.1.to_owned()));
                if let (Some(image), Some(digest)) = (image, id) {
                    self.0
                        .entry((namespace.to_owned(), image))
                        .or_default()
                        .insert(digest);
                }
            }
        }
    }
}

/// The images that run in both clusters, and not as the same; none where no image runs in both.
#[must_use]
pub fn compare_images(blue: &Images, green: &Images, accepted: &[Acceptance]) -> Option<KindReport> {
    let kind = Kind::new("", KIND);
    let mut report = KindReport {
        plural: "images".to_owned(),
        ..KindReport::default()
    };
    let both = blue
        .0
        .iter()
        .filter_map(|(key, b)| Some((key, b, green.0.get(key)?)));
    for ((namespace, image), b, g) in both {
        report.blue += 1;
        report.green += 1;
        if b == g {
            continue;
        }
        let names = |all: &BTreeSet<String>| all.iter().cloned().collect::<Vec<_>>().join(", ");
        let reason = accepted
            .iter()
            .find(|a| a.kind.means(&kind, &report.plural) && a.namespace == *namespace && a.name == *image);
        let finding = Finding {
            why: format!("runs as {} in blue, {} in green", names(b), names(g)),
            accepted: reason.map(|a| a.reason.clone()).unwrap_or_default(),
            ..Finding::new(namespace, image, Outcome::Different)
        };
        if reason.is_some() {
            report.accepted.push(finding);
            continue;
        }
        report.different += 1;
        if report.different <= SAMPLE {
            report.findings.push(finding);
        }
    }
    (report.blue > 0).then_some(KindReport { kind, ..report })
}
