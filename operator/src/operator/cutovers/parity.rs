//! Whether green has what blue has, asked again and again before the first step.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use lockkeeper_crds as crds;
use lockkeeper_crds::{CheckResult, ParityOutcome};
use lockkeeper_policies::parity::{Acceptance, KindAsked, Report, Scope, one_line};
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout};

use super::ground::Ground;
use crate::operator::wanted::kube_time;
use crate::parity::{Wanted, look};

/// Between two comparisons at least; and so many times as long as the last one took, so that a large cluster is not
/// read all the time while a person makes up her mind.
const EVERY: Duration = Duration::from_secs(30);
const REST: u32 = 10;
/// Five minutes for 100,000 objects and more.
const LIMIT: Duration = Duration::from_secs(300);
/// Lines in the status, and their length.
const LINES: usize = 20;
const LINE: usize = 300;

/// What is said before the first comparison has ended.
pub(super) const BEING_COMPARED: &str = "the clusters are being compared";

/// Compares until it is dropped.
pub(super) struct Parity {
    last: Arc<Mutex<Option<Last>>>,
    asking: AbortHandle,
}

/// The last comparison.
#[derive(Clone)]
struct Last {
    at: DateTime<Utc>,
    report: Report,
}

impl Drop for Parity {
    fn drop(&mut self) {
        self.asking.abort();
    }
}

impl Parity {
    /// Begins to compare, once both clusters can be asked. The bell rings after each comparison.
    pub(super) fn new(
        spec: &crds::CutoverParity,
        singletons: &[crds::Singleton],
        ground: &Ground,
        bell: Arc<Notify>,
    ) -> Option<Self> {
        let (Ok(blue), Ok(green)) = (&ground.blue, &ground.green) else {
            return None;
        };
        let (blue, green) = (blue.api.client(), green.api.client());
        let wanted = wanted(spec, singletons);
        let last = Arc::new(Mutex::new(None));
        let told = Arc::clone(&last);
        let asking = tokio::spawn(async move {
            loop {
                let began = Instant::now();
                let report = timeout(LIMIT, look(&blue, &green, &wanted)).await;
                let report = report.unwrap_or_else(|_| {
                    let why = format!("it was not compared within {} s", LIMIT.as_secs());
                    Report::new(Vec::new(), vec![why], &[])
                });
                let at = Utc::now();
                *told.lock().unwrap_or_else(PoisonError::into_inner) = Some(Last { at, report });
                bell.notify_one();
                tokio::time::sleep(EVERY.max(began.elapsed().saturating_mul(REST))).await;
            }
        });
        Some(Self {
            last,
            asking: asking.abort_handle(),
        })
    }

    fn last(&self) -> Option<Last> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What the status says of it.
    pub(super) fn status(&self) -> Option<crds::ParityStatus> {
        let Last { at, report } = self.last()?;
        status(&report, at)
    }

    /// Whether it hinders the beginning; none before the first comparison has ended.
    pub(super) fn check(&self) -> Option<(CheckResult, String)> {
        Some(check(&self.last()?.report))
    }
}

/// What runs once is stopped in green, and differs by that.
fn wanted(spec: &crds::CutoverParity, singletons: &[crds::Singleton]) -> Wanted {
    let accepted = spec.accepted.iter().map(|a| Acceptance {
        kind: KindAsked(a.kind.clone()),
        namespace: a.namespace.clone(),
        name: a.name.clone(),
        reason: a.reason.clone(),
    });
    let stopped = singletons.iter().map(|s| Acceptance {
        kind: KindAsked(s.kind.to_string()),
        namespace: s.namespace.clone(),
        name: s.name.clone(),
        reason: "it runs in one of the clusters only".to_owned(),
    });
    Wanted {
        scope: Scope {
            namespaces: spec.namespaces.iter().cloned().collect(),
            kinds: spec.kinds.iter().cloned().map(KindAsked).collect(),
        },
        selector: spec.selector.clone(),
        accepted: accepted.chain(stopped).collect(),
    }
}

fn outcome(report: &Report) -> ParityOutcome {
    if report.differs() {
        ParityOutcome::Different
    } else if report.is_known() {
        ParityOutcome::Equal
    } else {
        ParityOutcome::Unknown
    }
}

/// A known difference blocks, and so does what is unknown: it is not equality.
fn check(report: &Report) -> (CheckResult, String) {
    let sum = report.sum();
    match outcome(report) {
        ParityOutcome::Equal => (
            CheckResult::Pass,
            format!("green has all {} objects of blue that are compared", sum.blue),
        ),
        ParityOutcome::Different => {
            let first = lines(report).into_iter().next().unwrap_or_default();
            let text = format!(
                "of {} objects of blue {} are missing in green, {} differ, {} are not ready; first: {first}. Apply them \
                 there, or accept them in spec.parity.accepted of a new ClusterCutover; status.parity and `lockkeeper parity` name them",
                sum.blue, sum.missing, sum.different, sum.not_ready
            );
            (CheckResult::Block, text)
        }
        ParityOutcome::Unknown => {
            let why = report.whys().into_iter().next().unwrap_or_default();
            (
                CheckResult::Unknown,
                format!("it is not known whether green has what blue has: {why}"),
            )
        }
    }
}

fn lines(report: &Report) -> Vec<String> {
    let all = report
        .kinds
        .iter()
        .flat_map(|k| k.findings.iter().map(move |f| (k, f)));
    all.filter_map(|(k, f)| one_line(k, f))
        .take(LINES)
        .map(short)
        .collect()
}

fn short(line: String) -> String {
    if line.chars().count() <= LINE {
        return line;
    }
    line.chars().take(LINE - 1).chain(['…']).collect()
}

fn status(report: &Report, at: DateTime<Utc>) -> Option<crds::ParityStatus> {
    let sum = report.sum();
    let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
    Some(crds::ParityStatus {
        compared_at: kube_time(at)?,
        outcome: outcome(report),
        blue: count(sum.blue),
        green: count(sum.green),
        missing: count(sum.missing),
        different: count(sum.different),
        not_ready: count(sum.not_ready),
        extra: count(sum.extra),
        accepted: count(report.kinds.iter().map(|k| k.accepted.len()).sum()),
        sample: lines(report),
        unknown: report.whys().into_iter().take(LINES).map(short).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use lockkeeper_policies::parity::{Finding, Kind, KindReport, Outcome};

    fn finding(outcome: Outcome, name: &str) -> Finding {
        Finding::new("shop", name, outcome)
    }

    fn kind(missing: usize, unknown: Option<&str>) -> KindReport {
        let mut findings: Vec<_> = (0..missing)
            .map(|i| finding(Outcome::Missing, &format!("c{i}")))
            .collect();
        findings.push(finding(Outcome::Extra, "new"));
        KindReport {
            kind: Kind::new("", "ConfigMap"),
            blue: 40,
            green: 40,
            missing,
            extra: 1,
            unknown: unknown.map(str::to_owned),
            findings,
            ..KindReport::default()
        }
    }

    #[test]
    fn it_hinders_while_anything_is_missing_or_not_known() {
        let of = |kinds: Vec<KindReport>| check(&Report::new(kinds, vec![], &[]));
        assert_eq!(of(vec![kind(0, None)]).0, CheckResult::Pass);
        let (result, text) = of(vec![kind(2, None)]);
        assert_eq!(result, CheckResult::Block);
        assert!(
            text.contains("2 are missing in green") && text.contains("ConfigMap shop/c0"),
            "{text}"
        );
        let (result, text) = of(vec![kind(0, None), kind(0, Some("green: forbidden"))]);
        assert_eq!(result, CheckResult::Unknown);
        assert!(text.contains("green: forbidden"), "{text}");
    }

    #[test]
    fn the_status_counts_all_and_names_some() {
        let mut many = kind(50, Some("green: x"));
        many.unknown = None;
        let report = Report::new(
            vec![many, kind(0, Some("green: x"))],
            vec!["blue: y".to_owned()],
            &[],
        );
        let told = status(&report, DateTime::from_timestamp(1_763_700_000, 0).unwrap()).unwrap();
        assert_eq!(
            (told.outcome, told.missing, told.extra),
            (ParityOutcome::Different, 50, 1)
        );
        assert_eq!(told.sample.len(), LINES);
        assert!(
            told.sample.iter().all(|line| !line.contains("new")),
            "extra is only counted"
        );
        assert_eq!(told.unknown, ["ConfigMap: green: x", "blue: y"]);
    }
}
