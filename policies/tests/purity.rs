//! The rules know no client, no runtime and no clock of their own: neither by themselves nor by what
//! they depend on.
#![allow(missing_docs, clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};

/// Packages of the lock file, each with what it depends on.
fn packages(lock: &str) -> BTreeMap<String, Vec<String>> {
    let mut all: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for block in lock.split("[[package]]").skip(1) {
        let name = block
            .lines()
            .find_map(|l| l.strip_prefix("name = "))
            .unwrap()
            .trim_matches('"');
        let needs = block.lines().filter_map(|l| l.strip_prefix(" \"")).map(|l| {
            l.trim_end_matches(['"', ','])
                .split(' ')
                .next()
                .unwrap()
                .trim_end_matches('"')
                .to_owned()
        });
        all.entry(name.to_owned()).or_default().extend(needs);
    }
    all
}

#[test]
fn the_rules_depend_on_no_client_and_no_runtime() {
    // Tests run in their package's folder; a path from the build would be another checkout's in a shared cache.
    let lock = std::fs::read_to_string("../Cargo.lock").unwrap();
    let all = packages(&lock);
    // proptest, insta and what they need stand in the lock file as well; none of them is a runtime either.
    let mut seen = BTreeSet::new();
    let mut next = vec!["lockkeeper-policies".to_owned()];
    while let Some(name) = next.pop() {
        if seen.insert(name.clone()) {
            next.extend(all.get(&name).into_iter().flatten().cloned());
        }
    }
    assert!(seen.contains("semver"), "the closure was not followed: {seen:?}");
    for banned in [
        "kube",
        "kube-client",
        "tokio",
        "hyper",
        "reqwest",
        "tonic",
        "object_store",
        "etcd-client",
    ] {
        assert!(!seen.contains(banned), "lockkeeper-policies depends on {banned}");
    }
}
