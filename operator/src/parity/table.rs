//! A report as text for a person. Pure.

use std::fmt::Write as _;

use lockkeeper_policies::parity::{KindReport, Outcome, Report};

/// The page; with `extra`, what is in green alone is named too.
pub(super) fn page(report: &Report, extra: bool) -> String {
    let mut out = String::new();
    // Writing into a String cannot fail.
    let _infallible = counts(&mut out, report)
        .and_then(|()| findings(&mut out, report, extra))
        .and_then(|()| accepted(&mut out, report))
        .and_then(|()| unknown(&mut out, report))
        .and_then(|()| verdict(&mut out, report, extra));
    out
}

fn counts(out: &mut String, report: &Report) -> std::fmt::Result {
    let shown: Vec<_> = report
        .kinds
        .iter()
        .filter(|k| k.blue + k.green > 0 || k.unknown.is_some())
        .map(|k| (k.kind.to_string(), k))
        .collect();
    let wide = shown.iter().map(|(name, _)| name.len()).max().unwrap_or(0).max(4);
    writeln!(
        out,
        "{:wide$}  {:>7}  {:>7}  {:>7}  {:>9}  {:>9}  {:>7}",
        "KIND", "BLUE", "GREEN", "MISSING", "DIFFERENT", "NOT READY", "EXTRA"
    )?;
    for (name, kind) in &shown {
        if kind.unknown.is_some() {
            writeln!(
                out,
                "{name:wide$}  {:>7}  {:>7}  {:>7}  {:>9}  {:>9}  {:>7}",
                "?", "?", "?", "?", "?", "?"
            )?;
            continue;
        }
        row(out, name, wide, kind)?;
    }
    row(out, "all", wide, &report.sum())
}

fn row(out: &mut String, name: &str, wide: usize, k: &KindReport) -> std::fmt::Result {
    writeln!(
        out,
        "{name:wide$}  {:>7}  {:>7}  {:>7}  {:>9}  {:>9}  {:>7}",
        k.blue, k.green, k.missing, k.different, k.not_ready, k.extra
    )
}

fn findings(out: &mut String, report: &Report, extra: bool) -> std::fmt::Result {
    let mut first = true;
    for kind in &report.kinds {
        let counted = [
            (Outcome::Missing, kind.missing),
            (Outcome::Different, kind.different),
            (Outcome::NotReady, kind.not_ready),
            (Outcome::Extra, if extra { kind.extra } else { 0 }),
        ];
        for (outcome, count) in counted.into_iter().filter(|(_, count)| *count > 0) {
            if std::mem::take(&mut first) {
                writeln!(out)?;
            }
            let named: Vec<_> = kind.findings.iter().filter(|f| f.outcome == outcome).collect();
            for finding in &named {
                writeln!(
                    out,
                    "{:9}  {}{}",
                    outcome.to_string(),
                    finding.object(&kind.kind),
                    finding.detail()
                )?;
            }
            let more = count.saturating_sub(named.len());
            if more > 0 {
                writeln!(
                    out,
                    "{:9}  … and {more} more of {}",
                    outcome.to_string(),
                    kind.kind
                )?;
            }
        }
    }
    Ok(())
}

fn accepted(out: &mut String, report: &Report) -> std::fmt::Result {
    for kind in &report.kinds {
        for finding in &kind.accepted {
            writeln!(
                out,
                "accepted   {} ({}{}): {}",
                finding.object(&kind.kind),
                finding.outcome,
                finding.detail(),
                finding.accepted
            )?;
        }
    }
    for unused in &report.unused {
        writeln!(
            out,
            "unused     {unused} is accepted, and there is no such difference"
        )?;
    }
    Ok(())
}

fn unknown(out: &mut String, report: &Report) -> std::fmt::Result {
    report
        .whys()
        .iter()
        .try_for_each(|why| writeln!(out, "unknown    {why}"))
}

fn verdict(out: &mut String, report: &Report, extra: bool) -> std::fmt::Result {
    let differs = report.differs() || (extra && report.sum().extra > 0);
    let text = match (differs, report.is_known()) {
        (true, true) => "Green does not have all that blue has.",
        (true, false) => "Green does not have all that blue has, and not everything could be told.",
        (false, true) => "Green has all that blue has.",
        (false, false) => "Whether green has all that blue has could not be told.",
    };
    writeln!(out, "\n{text}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use lockkeeper_policies::parity::{Acceptance, Finding, Kind, KindAsked};

    fn finding(outcome: Outcome, name: &str) -> Finding {
        Finding::new("shop", name, outcome)
    }

    #[test]
    fn a_report_in_a_page() {
        let mut different = finding(Outcome::Different, "settings");
        different.fields = vec!["data[\"a.b\"]".to_owned(), "metadata.labels.app".to_owned()];
        let mut not_ready = finding(Outcome::NotReady, "web");
        not_ready.why = "1 of 2 replicas are ready".to_owned();
        let mut fine = finding(Outcome::Missing, "region");
        fine.accepted = "green is in another region".to_owned();
        let maps = KindReport {
            kind: Kind::new("", "ConfigMap"),
            blue: 5000,
            green: 4989,
            missing: 12,
            different: 1,
            extra: 2,
            findings: vec![
                finding(Outcome::Missing, "a"),
                different,
                finding(Outcome::Extra, "new"),
            ],
            accepted: vec![fine],
            ..KindReport::default()
        };
        let deployments = KindReport {
            kind: Kind::new("apps", "Deployment"),
            blue: 3,
            green: 3,
            not_ready: 1,
            findings: vec![not_ready],
            ..KindReport::default()
        };
        let secrets = KindReport {
            kind: Kind::new("", "Secret"),
            unknown: Some("green: secrets cannot be listed: forbidden".to_owned()),
            ..KindReport::default()
        };
        let none = KindReport {
            kind: Kind::new("batch", "Job"),
            ..KindReport::default()
        };
        let typed_wrongly = Acceptance {
            kind: KindAsked("ConfigMap".to_owned()),
            namespace: "shop".to_owned(),
            name: "regoin".to_owned(),
            reason: "x".to_owned(),
        };
        let why = vec!["blue: the API x.example.com/v1 does not answer".to_owned()];
        let report = Report::new(vec![secrets, maps, none, deployments], why, &[typed_wrongly]);
        insta::assert_snapshot!(page(&report, true));
        assert!(!page(&report, false).contains("shop/new"));
        assert!(page(&Report::default(), false).ends_with("\nGreen has all that blue has.\n"));
    }
}
