//! Two inventories of one kind, side by side.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use serde::Serialize;

pub use crate::cutover::Side;

use super::{Kind, KindAsked, Record};

/// How many findings of one sort are named for a kind; all are counted.
pub const SAMPLE: usize = 10;

/// What a cluster has of a kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listed {
    /// All of it, in any order.
    Known(Vec<Record>),
    /// It could not be listed: it may have anything.
    Unknown(String),
    /// It does not serve the kind: it has none.
    Absent,
}

/// A difference that a person has seen and accepts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acceptance {
    /// The object's kind.
    pub kind: KindAsked,
    /// Empty for what lies in no namespace.
    pub namespace: String,
    /// The object's name.
    pub name: String,
    /// Why it is fine.
    pub reason: String,
}

impl std::fmt::Display for Acceptance {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}/{}", self.kind.0, self.namespace, self.name)
    }
}

/// What is wrong with an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, strum::Display)]
#[serde(rename_all = "camelCase")]
pub enum Outcome {
    /// In blue alone.
    #[strum(serialize = "missing")]
    Missing,
    /// In both, and not the same.
    #[strum(serialize = "different")]
    Different,
    /// In both, and in green it does not do what it is there for.
    #[strum(serialize = "not ready")]
    NotReady,
    /// In green alone. It hinders nothing.
    #[strum(serialize = "extra")]
    Extra,
}

/// An object, and what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// Empty for what lies in no namespace.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// What is wrong.
    pub outcome: Outcome,
    /// Of a difference: the fields, once they were looked at. Never what stands in them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub fields: Vec<String>,
    /// Of one that is not ready: why.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub why: String,
    /// Of one that is accepted: for what reason.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub accepted: String,
}

/// What became of a kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct KindReport {
    /// The kind, with its group.
    #[serde(serialize_with = "as_text")]
    pub kind: Kind,
    /// As in its path.
    #[serde(skip)]
    pub plural: String,
    /// Objects of it in blue that are compared.
    pub blue: usize,
    /// And in green.
    pub green: usize,
    /// In blue alone.
    pub missing: usize,
    /// In both, and not the same.
    pub different: usize,
    /// In both, and not ready in green.
    pub not_ready: usize,
    /// In green alone.
    pub extra: usize,
    /// Why nothing can be said of this kind; the counts say nothing then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unknown: Option<String>,
    /// A sample of what is wrong: of each sort the first [`SAMPLE`] by namespace and name.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub findings: Vec<Finding>,
    /// All that is accepted; the counts leave it out.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub accepted: Vec<Finding>,
}

fn as_text<S: serde::Serializer>(kind: &Kind, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(kind)
}

/// What became of all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// By kind.
    pub kinds: Vec<KindReport>,
    /// What could not be told, beyond single kinds.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unknown: Vec<String>,
    /// Acceptances that met no difference: a typing error, or not needed any more.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unused: Vec<String>,
}

impl Report {
    /// Of all kinds, in order of their names.
    #[must_use]
    pub fn new(mut kinds: Vec<KindReport>, unknown: Vec<String>, accepted: &[Acceptance]) -> Self {
        kinds.sort_by(|a, b| (&a.kind.kind, &a.kind.group).cmp(&(&b.kind.kind, &b.kind.group)));
        let met = |a: &Acceptance| {
            let of = |f: &Finding| f.namespace == a.namespace && f.name == a.name;
            let mut meant = kinds.iter().filter(|k| a.kind.means(&k.kind, &k.plural));
            // Of what is unknown it cannot be said that there is no difference.
            meant.any(|k| k.unknown.is_some() || k.accepted.iter().any(of))
        };
        let unused = accepted.iter().filter(|a| !met(a)).map(ToString::to_string);
        Self {
            unused: unused.collect(),
            kinds,
            unknown,
        }
    }

    /// The counts of all kinds of which they are known.
    #[must_use]
    pub fn sum(&self) -> KindReport {
        let mut sum = KindReport::default();
        for kind in self.kinds.iter().filter(|k| k.unknown.is_none()) {
            sum.blue += kind.blue;
            sum.green += kind.green;
            sum.missing += kind.missing;
            sum.different += kind.different;
            sum.not_ready += kind.not_ready;
            sum.extra += kind.extra;
        }
        sum
    }

    /// All that could not be told, and why.
    #[must_use]
    pub fn whys(&self) -> Vec<String> {
        let of_kinds = self
            .kinds
            .iter()
            .filter_map(|k| Some(format!("{}: {}", k.kind, k.unknown.as_ref()?)));
        of_kinds.chain(self.unknown.iter().cloned()).collect()
    }

    /// Whether anything is missing, different or not ready. What is unknown may be so too.
    #[must_use]
    pub fn differs(&self) -> bool {
        let sum = self.sum();
        sum.missing + sum.different + sum.not_ready > 0
    }

    /// Whether all could be told.
    #[must_use]
    pub fn is_known(&self) -> bool {
        self.unknown.is_empty() && self.kinds.iter().all(|k| k.unknown.is_none())
    }
}

impl KindReport {
    /// A difference was looked at closely. No fields: by now there is none.
    pub fn explain(&mut self, namespace: &str, name: &str, fields: Vec<String>) {
        let at = self
            .findings
            .iter()
            .position(|f| f.outcome == Outcome::Different && f.namespace == namespace && f.name == name);
        let Some(at) = at else { return };
        if fields.is_empty() {
            self.findings.remove(at);
            self.different = self.different.saturating_sub(1);
        } else if let Some(finding) = self.findings.get_mut(at) {
            finding.fields = fields;
        }
    }
}

/// A finding in a line; none for what hinders nothing.
#[must_use]
pub fn one_line(kind: &KindReport, finding: &Finding) -> Option<String> {
    (finding.outcome != Outcome::Extra).then(|| {
        format!(
            "{} {}{}",
            finding.outcome,
            finding.object(&kind.kind),
            finding.detail()
        )
    })
}

impl Finding {
    /// Nothing is known of it yet but what is wrong.
    #[must_use]
    pub fn new(namespace: impl Into<String>, name: impl Into<String>, outcome: Outcome) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
            outcome,
            fields: Vec::new(),
            why: String::new(),
            accepted: String::new(),
        }
    }

    /// The object, as a person calls it.
    #[must_use]
    pub fn object(&self, kind: &Kind) -> String {
        if self.namespace.is_empty() {
            format!("{kind} {}", self.name)
        } else {
            format!("{kind} {}/{}", self.namespace, self.name)
        }
    }

    /// Fields or reason, after a colon; empty where there is neither.
    #[must_use]
    pub fn detail(&self) -> String {
        if !self.fields.is_empty() {
            return format!(": {}", self.fields.join(", "));
        }
        if self.why.is_empty() {
            String::new()
        } else {
            format!(": {}", self.why)
        }
    }
}

/// What green lacks of what blue has, of one kind.
///
/// # Guarantees
/// * The order of either list does not count.
/// * Where one of them is unknown, nothing is said: unknown is neither empty nor equal.
#[must_use]
pub fn compare(
    kind: &Kind,
    plural: &str,
    blue: Listed,
    green: Listed,
    accepted: &[Acceptance],
) -> KindReport {
    let mut report = KindReport {
        kind: kind.clone(),
        plural: plural.to_owned(),
        ..KindReport::default()
    };
    let (blue, green) = match (records(blue, Side::Blue), records(green, Side::Green)) {
        (Ok(blue), Ok(green)) => (blue, green),
        (blue, green) => {
            let why: Vec<_> = [blue.err(), green.err()].into_iter().flatten().collect();
            report.unknown = Some(why.join("; "));
            return report;
        }
    };
    (report.blue, report.green) = (blue.len(), green.len());
    let accepted: BTreeMap<_, _> = accepted
        .iter()
        .filter(|a| a.kind.means(kind, plural))
        .map(|a| ((a.namespace.as_str(), a.name.as_str()), a.reason.as_str()))
        .collect();
    let (mut blue, mut green) = (blue.iter().peekable(), green.iter().peekable());
    loop {
        let order = match (blue.peek(), green.peek()) {
            (None, None) => break,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(b), Some(g)) => (&b.namespace, &b.name).cmp(&(&g.namespace, &g.name)),
        };
        let b = if order.is_le() { blue.next() } else { None };
        let g = if order.is_ge() { green.next() } else { None };
        note(&mut report, b, g, &accepted);
    }
    report
}

fn records(listed: Listed, side: Side) -> Result<Vec<Record>, String> {
    match listed {
        Listed::Known(mut all) => {
            all.sort_unstable_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
            Ok(all)
        }
        Listed::Absent => Ok(Vec::new()),
        Listed::Unknown(why) => Err(format!("{side}: {why}")),
    }
}

fn note(
    report: &mut KindReport,
    blue: Option<&Record>,
    green: Option<&Record>,
    accepted: &BTreeMap<(&str, &str), &str>,
) {
    let mut add = |record: &Record, outcome, why: &str| {
        let reason = accepted.get(&(&*record.namespace, &*record.name));
        let finding = || Finding {
            why: why.to_owned(),
            accepted: reason.copied().unwrap_or_default().to_owned(),
            ..Finding::new(&*record.namespace, &*record.name, outcome)
        };
        if reason.is_some() && outcome != Outcome::Extra {
            report.accepted.push(finding());
            return;
        }
        let count = match outcome {
            Outcome::Missing => &mut report.missing,
            Outcome::Different => &mut report.different,
            Outcome::NotReady => &mut report.not_ready,
            Outcome::Extra => &mut report.extra,
        };
        *count += 1;
        if *count <= SAMPLE {
            report.findings.push(finding());
        }
    };
    match (blue, green) {
        (Some(blue), None) => add(blue, Outcome::Missing, ""),
        (None, Some(green)) => add(green, Outcome::Extra, ""),
        (Some(blue), Some(green)) => {
            if blue.digest != green.digest {
                add(green, Outcome::Different, "");
            }
            if let Some(why) = &green.not_ready {
                add(green, Outcome::NotReady, why);
            }
        }
        (None, None) => {}
    }
}
