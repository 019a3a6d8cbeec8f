//! Whole clusters: nothing is missed, and nothing is made up.

use proptest::prelude::*;

use super::*;

/// What is not known.
fn unknown() -> Listed {
    Listed::Unknown("forbidden".to_owned())
}

fn config_map(namespace: &str, name: &str, value: &str) -> Value {
    json!({"metadata": {"namespace": namespace, "name": name}, "data": {"value": value}})
}

fn listed(objects: &[Value]) -> Listed {
    let kind = kind("", "ConfigMap");
    Listed::Known(objects.iter().filter_map(|o| record(&kind, o)).collect())
}

fn compared(blue: Listed, green: Listed, accepted: &[Acceptance]) -> KindReport {
    compare(&kind("", "ConfigMap"), "configmaps", blue, green, accepted)
}

#[test]
fn what_cannot_be_listed_is_unknown_and_neither_empty_nor_equal() {
    let some = listed(&[config_map("shop", "a", "1")]);
    for (blue, green) in [
        (unknown(), some.clone()),
        (some.clone(), unknown()),
        (unknown(), unknown()),
    ] {
        let report = compared(blue, green, &[]);
        assert!(report.unknown.as_deref().unwrap().contains("forbidden"));
        assert_eq!((report.missing, report.extra), (0, 0));
        let whole = Report::new(vec![report], vec![], &[]);
        assert!(!whole.is_known() && !whole.differs());
    }
    // A kind that is not served is known to have no objects.
    assert_eq!(compared(some.clone(), Listed::Absent, &[]).missing, 1);
    assert_eq!(compared(Listed::Absent, some, &[]).extra, 1);
}

#[test]
fn a_difference_is_accepted_by_name_with_its_reason_and_no_other_is() {
    let blue = [
        config_map("shop", "a", "1"),
        config_map("shop", "b", "1"),
        config_map("other", "a", "1"),
    ];
    let green = [config_map("shop", "b", "2")];
    let accepted = |kind: &str, namespace: &str, name: &str| Acceptance {
        kind: KindAsked(kind.to_owned()),
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        reason: "known".to_owned(),
    };
    let report = compared(
        listed(&blue),
        listed(&green),
        &[
            accepted("configmap", "shop", "a"),
            accepted("ConfigMap", "shop", "b"),
        ],
    );
    assert_eq!(
        (report.missing, report.different, report.accepted.len()),
        (1, 0, 2)
    );
    assert!(report.accepted.iter().all(|f| f.accepted == "known"));
    assert_eq!(report.findings[0].namespace, "other");
    let report = compared(
        listed(&blue),
        listed(&green),
        &[accepted("Secret", "shop", "a"), accepted("ConfigMap", "", "b")],
    );
    assert_eq!(
        (report.missing, report.different, report.accepted.len()),
        (2, 1, 0)
    );
    let all = [
        accepted("configmaps", "shop", "a"),
        accepted("ConfigMap", "shop", "c"),
        accepted("ConfigMaps.apps", "shop", "a"),
    ];
    let whole = Report::new(vec![compared(listed(&blue), listed(&green), &all)], vec![], &all);
    assert_eq!(whole.unused, ["ConfigMap/shop/c", "ConfigMaps.apps/shop/a"]);
    let whole = Report::new(vec![compared(unknown(), unknown(), &all)], vec![], &all[..2]);
    assert!(whole.unused.is_empty(), "of what is unknown nothing can be said");
}

#[test]
fn a_difference_that_is_gone_when_it_is_looked_at_closely_is_none() {
    let (blue, green) = (config_map("shop", "a", "1"), config_map("shop", "a", "2"));
    let mut report = compared(listed(&[blue]), listed(&[green]), &[]);
    report.explain("shop", "a", vec!["data.value".to_owned()]);
    assert_eq!(report.findings[0].fields, ["data.value"]);
    report.explain("shop", "a", vec![]);
    assert_eq!((report.different, report.findings.len()), (0, 0));
}

#[test]
fn all_are_counted_and_a_sample_is_named() {
    let blue: Vec<_> = (0..100)
        .map(|i| config_map("shop", &format!("c{i:03}"), "1"))
        .collect();
    let report = compared(listed(&blue), listed(&[]), &[]);
    assert_eq!((report.missing, report.findings.len()), (100, SAMPLE));
}

fn inventory() -> impl Strategy<Value = Vec<(String, String, String)>> {
    prop::collection::btree_map(("[ab]", "[a-z]{1,3}"), "[a-z]{0,3}", 0..30)
        .prop_map(|all| all.into_iter().map(|((ns, name), v)| (ns, name, v)).collect())
}

fn objects(all: &[(String, String, String)]) -> Vec<Value> {
    all.iter().map(|(ns, name, v)| config_map(ns, name, v)).collect()
}

proptest! {
    #[test]
    fn a_cluster_equals_itself_in_whatever_order_it_is_listed(
        all in inventory().prop_flat_map(|all| (Just(all.clone()), Just(all).prop_shuffle())),
    ) {
        let (blue, green) = all;
        let report = compared(listed(&objects(&blue)), listed(&objects(&green)), &[]);
        prop_assert_eq!((report.blue, report.green), (blue.len(), blue.len()));
        let whole = Report::new(vec![report], vec![], &[]);
        prop_assert!(whole.is_known() && !whole.differs());
    }

    #[test]
    fn each_single_change_is_found_and_nothing_else(all in inventory(), at in any::<prop::sample::Index>(), change in 0..3) {
        prop_assume!(!all.is_empty());
        let at = at.index(all.len());
        let mut green = all.clone();
        let (namespace, name, _) = all[at].clone();
        let outcome = match change {
            0 => { green.remove(at); Outcome::Missing }
            1 => { green[at].2.push('!'); Outcome::Different }
            _ => { green.push(("a".to_owned(), "new-one".to_owned(), String::new())); Outcome::Extra }
        };
        let report = compared(listed(&objects(&all)), listed(&objects(&green)), &[]);
        prop_assert_eq!(report.findings.len(), 1);
        let found = &report.findings[0];
        prop_assert_eq!(found.outcome, outcome);
        if change < 2 {
            prop_assert_eq!((&found.namespace, &found.name), (&namespace, &name));
        }
    }
}
