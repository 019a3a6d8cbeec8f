use serde_json::{Value, json};

use super::testing::config_map;
use super::*;
use crate::api::testing::{Answer, client, ok, refused};
use lockkeeper_policies::parity::KindAsked;

/// As `/api` and `/apis` say it: groups, each with versions, each with a kind.
fn groups(all: &[(&str, &[&str], &str, &str)], freshness: &str) -> Value {
    let items = all.iter().map(|(group, versions, plural, kind)| {
        let versions = versions.iter().map(|version| {
            json!({"version": version, "freshness": freshness, "resources": [{
                "resource": plural, "responseKind": {"group": group, "kind": kind}, "scope": "Namespaced",
                "verbs": ["get", "list"]
            }]})
        });
        json!({"metadata": {"name": group}, "versions": versions.collect::<Vec<_>>()})
    });
    json!({"items": items.collect::<Vec<_>>()})
}

/// A cluster that serves ConfigMaps and one custom kind in these versions.
fn cluster(maps: Vec<Value>, versions: &'static [&'static str]) -> impl Fn(&str) -> Answer + Send + Sync {
    move |what| {
        let path = what.split('?').next().unwrap();
        match path {
            "/api" => ok(&groups(&[("", &["v1"], "configmaps", "ConfigMap")], "Current")),
            "/apis" if versions.is_empty() => ok(&json!({"items": []})),
            "/apis" => ok(&groups(&[("example.com", versions, "shops", "Shop")], "Current")),
            "/api/v1/configmaps" => ok(&json!({"metadata": {}, "items": maps})),
            _ if path.starts_with("/apis/example.com/") => {
                let shop = json!({"metadata": {"namespace": "shop", "name": "main"}, "spec": path.rsplit('/').nth(1)});
                ok(&json!({"metadata": {}, "items": [shop]}))
            }
            _ => {
                let name = path.strip_prefix("/api/v1/namespaces/shop/configmaps/").unwrap();
                let found = maps.iter().find(|m| m["metadata"]["name"] == name);
                found.map_or_else(|| refused(404, "NotFound"), ok)
            }
        }
    }
}

async fn compared(
    blue: impl Fn(&str) -> Answer + Send + Sync + 'static,
    green: impl Fn(&str) -> Answer + Send + Sync + 'static,
    wanted: &Wanted,
) -> Report {
    look(&client(blue).0, &client(green).0, wanted).await
}

fn of<'a>(report: &'a Report, kind: &str) -> &'a KindReport {
    report.kinds.iter().find(|k| k.kind.kind == kind).unwrap()
}

#[tokio::test(start_paused = true)]
async fn what_differs_is_counted_and_its_fields_are_named() {
    let blue = cluster(
        vec![config_map("a", "1"), config_map("b", "1"), config_map("c", "1")],
        &["v1"],
    );
    let green = cluster(
        vec![config_map("b", "2"), config_map("c", "1"), config_map("d", "1")],
        &["v1"],
    );
    let report = compared(blue, green, &Wanted::default()).await;
    let maps = of(&report, "ConfigMap");
    assert_eq!((maps.missing, maps.different, maps.extra), (1, 1, 1));
    let different = maps
        .findings
        .iter()
        .find(|f| f.outcome == Outcome::Different)
        .unwrap();
    assert_eq!(
        (different.name.as_str(), different.fields.as_slice()),
        ("b", ["data.value".to_owned()].as_slice())
    );
    assert!(report.is_known() && report.differs());
    assert_eq!(of(&report, "Shop").different, 0);
}

#[tokio::test(start_paused = true)]
async fn a_kind_is_read_in_a_version_that_both_serve() {
    let report = compared(
        cluster(vec![], &["v2", "v1"]),
        cluster(vec![], &["v1"]),
        &Wanted::default(),
    )
    .await;
    assert!(report.is_known() && !report.differs(), "{report:?}");
    let report = compared(
        cluster(vec![], &["v2"]),
        cluster(vec![], &["v1"]),
        &Wanted::default(),
    )
    .await;
    assert!(
        of(&report, "Shop")
            .unknown
            .as_deref()
            .unwrap()
            .contains("no version in common")
    );
    let report = compared(cluster(vec![], &["v2"]), cluster(vec![], &[]), &Wanted::default()).await;
    assert_eq!(of(&report, "Shop").missing, 1);
}

#[tokio::test(start_paused = true)]
async fn a_cluster_that_does_not_say_what_it_serves_is_unknown_and_not_empty() {
    let whole = || cluster(vec![config_map("a", "1")], &["v1"]);
    for away in [(500, "no".to_owned()), ok(&json!({})), ok(&json!({"items": []}))] {
        let answer = away.clone();
        let report = compared(whole(), move |_| answer.clone(), &Wanted::default()).await;
        assert!(
            !report.is_known() && !report.differs() && report.kinds.is_empty(),
            "{away:?}"
        );
        assert!(report.unknown[0].starts_with("green: "), "{report:?}");
    }
    let stale = |what: &str| match what {
        "/apis" => ok(&groups(&[("example.com", &["v1"], "shops", "Shop")], "Stale")),
        other => cluster(vec![config_map("a", "1")], &["v1"])(other),
    };
    let report = compared(whole(), stale, &Wanted::default()).await;
    assert!(!report.is_known());
    assert!(
        report.unknown[0].contains("example.com/v1 does not answer"),
        "{report:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_kind_that_nobody_serves_is_no_equality() {
    let wanted = Wanted {
        scope: Scope {
            kinds: vec![KindAsked("Deploymnet".to_owned())],
            ..Scope::default()
        },
        ..Wanted::default()
    };
    let report = compared(cluster(vec![], &["v1"]), cluster(vec![], &["v1"]), &wanted).await;
    assert!(!report.is_known());
    assert!(report.unknown[0].contains("Deploymnet"), "{report:?}");
}
