//! What the metrics show, and the list of their names.

use super::*;

fn value(metrics: &Metrics, series: &str) -> Option<f64> {
    metrics
        .encode()
        .unwrap()
        .lines()
        .find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok())
}

/// `UPDATE_METRICS=1 cargo test -p lockkeeper metrics` writes the file anew.
#[test]
fn the_list_of_names_that_dashboards_are_checked_against_is_up_to_date() {
    let path = "../dashboards/metrics.txt";
    let names: String = Metrics::new("operator")
        .unwrap()
        .names()
        .iter()
        .map(|name| format!("{name}\n"))
        .collect();
    if std::env::var_os("UPDATE_METRICS").is_some() {
        std::fs::create_dir_all(std::path::Path::new(path).parent().unwrap()).unwrap();
        std::fs::write(path, &names).unwrap();
    }
    assert_eq!(
        std::fs::read_to_string(path).unwrap_or_default(),
        names,
        "dashboards/metrics.txt is out of date: UPDATE_METRICS=1 cargo test -p lockkeeper metrics"
    );
}

#[test]
fn every_metric_of_ours_says_how_to_read_it() {
    for family in Metrics::new("operator").unwrap().registry.gather() {
        if family.name().starts_with("lockkeeper_") {
            assert!(family.help().len() > 40, "{}: {}", family.name(), family.help());
        }
    }
}

#[test]
fn what_only_a_leader_knows_vanishes_when_leading_ends() {
    let metrics = Metrics::new("operator").unwrap();
    let series = r#"lockkeeper_upgrade_state{state="Rolling"}"#;
    assert_eq!(value(&metrics, "lockkeeper_leader"), Some(0.0));
    assert_eq!(value(&metrics, series), None);
    metrics.leading(Some(7));
    metrics.upgrade_state(State::Rolling);
    metrics.step(Some(1), Some(2));
    assert_eq!(value(&metrics, "lockkeeper_leader_epoch"), Some(7.0));
    assert_eq!(value(&metrics, series), Some(1.0));
    assert_eq!(
        value(&metrics, r#"lockkeeper_upgrade_state{state="Idle"}"#),
        Some(0.0)
    );
    assert_eq!(value(&metrics, "lockkeeper_upgrade_in_progress"), Some(1.0));
    assert_eq!(
        value(&metrics, "lockkeeper_upgrade_step_deadline_timestamp_seconds"),
        Some(2.0)
    );
    metrics.step(None, None);
    assert_eq!(
        value(&metrics, "lockkeeper_upgrade_step_deadline_timestamp_seconds"),
        None
    );
    metrics.upgrade_ended(UpgradeResult::Upgraded);
    metrics.leading(None);
    assert_eq!(value(&metrics, series), None);
    assert_eq!(value(&metrics, "lockkeeper_leader"), Some(0.0));
    // Counters stay: a reset one would read as an increase.
    assert_eq!(
        value(&metrics, r#"lockkeeper_upgrades_total{result="upgraded"}"#),
        Some(1.0)
    );
}

#[test]
fn a_node_that_is_gone_leaves_no_series() {
    let metrics = Metrics::new("operator").unwrap();
    metrics.certificates("n1", [("/pki/a.crt", 10), ("/pki/b.crt", 20)]);
    metrics.certificates("n1", [("/pki/a.crt", 11)]);
    metrics.agent_reported("n1", 5);
    let a = r#"lockkeeper_certificate_expiry_timestamp_seconds{cert="/pki/a.crt",node="n1"}"#;
    assert_eq!(value(&metrics, a), Some(11.0));
    assert_eq!(value(&metrics, &a.replace("a.crt", "b.crt")), None);
    metrics.forget_node("n1");
    assert!(!metrics.encode().unwrap().contains("n1"));
}

#[test]
fn a_schedule_that_is_gone_leaves_no_series() {
    let metrics = Metrics::new("operator").unwrap();
    let figures = ScheduleFigures {
        last_success: Some(5),
        last_verified: Some(4),
        last_drilled: None,
        proof_overdue: Some(20),
        next: Some(9),
        overdue: None,
        consecutive_failures: 0,
        recovery_points: 2,
    };
    metrics.schedule("nightly", Some(figures));
    let next = r#"lockkeeper_backup_schedule_next_timestamp_seconds{schedule="nightly"}"#;
    let overdue = r#"lockkeeper_backup_schedule_overdue_timestamp_seconds{schedule="nightly"}"#;
    assert_eq!(
        (value(&metrics, next), value(&metrics, overdue)),
        (Some(9.0), None)
    );
    metrics.schedule(
        "nightly",
        Some(ScheduleFigures {
            next: None,
            ..figures
        }),
    );
    assert_eq!(value(&metrics, next), None);
    metrics.schedule("nightly", None);
    assert!(!metrics.encode().unwrap().contains("nightly"));
}

#[test]
fn counters_begin_at_zero() {
    let metrics = Metrics::new("operator").unwrap();
    assert_eq!(value(&metrics, "lockkeeper_rollbacks_total"), Some(0.0));
    assert_eq!(
        value(&metrics, r#"lockkeeper_backup_failures_total{reason="corrupt"}"#),
        Some(0.0)
    );
}
