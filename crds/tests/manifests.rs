//! The manifests that are checked in say what the types say.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::{fs, path::Path};

#[test]
fn checked_in_manifests_do_not_drift() {
    let dir = Path::new("manifests");
    let mut names = vec![];
    for crd in lockkeeper_crds::all() {
        let (name, want) = lockkeeper_crds::manifest(&crd).unwrap();
        let have = fs::read_to_string(dir.join(&name)).unwrap_or_default();
        assert!(
            have == want,
            "crds/manifests/{name} is out of date: run `make generate`"
        );
        names.push(name);
    }
    for entry in fs::read_dir(dir).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(names.contains(&name), "crds/manifests/{name} belongs to no type");
    }
}

#[test]
fn every_kind_has_a_status_subresource_and_a_short_name() {
    for crd in lockkeeper_crds::all() {
        let version = crd.spec.versions.first().unwrap();
        assert!(
            version.subresources.as_ref().unwrap().status.is_some(),
            "{}",
            crd.spec.names.kind
        );
        assert!(
            !crd.spec.names.short_names.as_ref().unwrap().is_empty(),
            "{}",
            crd.spec.names.kind
        );
    }
}
