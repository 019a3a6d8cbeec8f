//! What pods run, whatever the tag says.

use super::*;

#[test]
fn a_tag_that_has_moved_is_seen_in_what_pods_run() {
    let pod = |image: &str, digest: &str| {
        let id = if digest.is_empty() {
            String::new()
        } else {
            format!("mirror.example.com/web@{digest}")
        };
        json!({
            "metadata": {"name": "web-x", "namespace": "shop", "ownerReferences": [{"apiVersion": "apps/v1", "controller": true}]},
            "spec": {"containers": [{"name": "web", "image": image}], "initContainers": [{"name": "init", "image": "init:1"}]},
            "status": {
                "containerStatuses": [{"name": "web", "image": "whatever", "imageID": id}],
                "initContainerStatuses": [{"name": "init", "imageID": "x@sha256:ff"}]
            }
        })
    };
    let of = |pods: &[Value]| {
        let (kind, scope) = (kind("", "Pod"), Scope::default());
        let mut recorder = Recorder {
            kind: &kind,
            scope: &scope,
            keyed: Keyed::new(&KEY),
            images: Images::default(),
        };
        for pod in pods {
            assert_eq!(
                recorder.record(pod.clone()).unwrap(),
                None,
                "a ReplicaSet's pod is not compared itself"
            );
        }
        recorder.images
    };
    let accepted = |name: &str| Acceptance {
        kind: KindAsked("Image".to_owned()),
        namespace: "shop".to_owned(),
        name: name.to_owned(),
        reason: "rebuilt".to_owned(),
    };
    let blue = of(&[
        pod("r.example.com/web:1", "sha256:aa"),
        pod("r.example.com/web:1", "sha256:aa"),
    ]);
    for (green, different) in [
        (pod("r.example.com/web:1", "sha256:aa"), 0),
        (pod("r.example.com/web:1", "sha256:bb"), 1),
        // Another image is a difference of its Deployment, and one that does not run yet is not ready.
        (pod("r.example.com/web:2", "sha256:bb"), 0),
        (pod("r.example.com/web:1", ""), 0),
    ] {
        let report = compare_images(&blue, &of(std::slice::from_ref(&green)), &[]).unwrap();
        assert_eq!(report.different, different, "{green}");
    }
    let green = of(&[pod("r.example.com/web:1", "sha256:bb")]);
    let report = compare_images(&blue, &green, &[]).unwrap();
    assert_eq!(
        report.findings[0].why,
        "runs as sha256:aa in blue, sha256:bb in green"
    );
    let all = [accepted("r.example.com/web:1")];
    let report = compare_images(&blue, &green, &all).unwrap();
    assert_eq!((report.different, report.accepted.len()), (0, 1));
    assert!(Report::new(vec![report], vec![], &all).unused.is_empty());
    assert_eq!(compare_images(&blue, &of(&[]), &[]), None);
}
