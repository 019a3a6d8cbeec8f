use super::*;
use proptest::prelude::*;
use std::path::PathBuf;

const KUBEADM: &str = include_str!("testdata/kube-apiserver.yaml");
const NEW: &str = "registry.k8s.io/kube-apiserver:v1.36.3";

fn path() -> PathBuf {
    PathBuf::from("/etc/kubernetes/manifests/kube-apiserver.yaml")
}

fn changed(text: &str) -> Result<String, ManifestError> {
    with_image(&path(), Component::KubeApiserver, text.as_bytes(), NEW)
        .map(|bytes| String::from_utf8(bytes).unwrap())
}

fn pod(container: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: kube-apiserver, namespace: kube-system}}\nspec:\n  containers:\n{container}"
    )
}

#[test]
fn of_a_kubeadm_manifest_only_the_tag_changes() {
    let new = changed(KUBEADM).unwrap();
    assert_eq!(
        new,
        KUBEADM.replace("kube-apiserver:v1.35.4", "kube-apiserver:v1.36.3")
    );
    let parsed = parse(&path(), Component::KubeApiserver, new.as_bytes()).unwrap();
    assert_eq!(parsed.image, NEW);
    assert_eq!(parsed.flag("secure-port"), Some("6443"));
}

#[test]
fn quotes_comments_order_and_line_ends_stay() {
    for (line, wanted) in [
        (
            "  - image: \"r/a:v1\" # keep me\n    name: kube-apiserver\n",
            "  - image: \"registry.k8s.io/kube-apiserver:v1.36.3\" # keep me\n    name: kube-apiserver\n",
        ),
        (
            "  - name: kube-apiserver\n    image:   'r/a:v1'\r\n",
            "  - name: kube-apiserver\n    image:   'registry.k8s.io/kube-apiserver:v1.36.3'\r\n",
        ),
        (
            "  - name: kube-apiserver\n    \"image\": r/a:v1",
            "  - name: kube-apiserver\n    \"image\": registry.k8s.io/kube-apiserver:v1.36.3",
        ),
    ] {
        assert_eq!(changed(&pod(line)).unwrap(), pod(wanted));
    }
}

#[test]
fn another_container_with_the_same_image_stays() {
    let text = pod(
        "  - name: side\n    image: r/a:v1\n    args: [\"image: r/a:v1\"]\n  - name: kube-apiserver\n    args:\n    - |\n      image: r/a:v1\n    image: r/a:v1\n  - image: r/a:v1\n    name: last\n",
    );
    let new = changed(&text).unwrap();
    assert_eq!(new.matches(NEW).count(), 1);
    let document: Value = serde_yaml::from_str(&new).unwrap();
    for name in ["side", "last"] {
        assert_eq!(
            container(&document, name).unwrap()["image"],
            Value::from("r/a:v1")
        );
    }
}

#[test]
fn what_cannot_be_changed_says_so_and_how_out() {
    for (text, part) in [
        (pod("  - name: kube-apiserver\n    image: r/a@sha256:0123\n"), "pinned by digest"),
        (pod("  - {name: kube-apiserver, image: r/a:v1}\n"), "block style"),
        (pod("  - name: kube-apiserver\n    image: &i r/a:v1\n"), "without anchors"),
        (pod("  - name: other\n    image: r/a:v1\n"), "no container kube-apiserver"),
        ("kind: Pod\nmetadata: {name: x}\n".to_owned(), "pod default/x instead of kube-system/kube-apiserver"),
        ("kind: [".to_owned(), "not valid YAML"),
        (
            "{\"kind\": \"Pod\", \"metadata\": {\"name\": \"kube-apiserver\", \"namespace\": \"kube-system\"}, \"spec\": {\"containers\": [{\"name\": \"kube-apiserver\", \"image\": \"r/a:v1\"}]}}".to_owned(),
            "JSON",
        ),
        (String::new(), "not a Pod"),
    ] {
        let error = changed(&text).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
        assert!(error.contains("kube-apiserver.yaml"), "{error}");
    }
}

#[test]
fn an_image_that_is_no_reference_is_refused() {
    for image in [
        "",
        "x",
        "r/a:",
        ":v1",
        "r/a:v1 # x",
        "host:5000/a",
        "r/a@sha256:00",
        "-r:v1",
        "r/a:v1\n",
    ] {
        let result = with_image(&path(), Component::KubeApiserver, KUBEADM.as_bytes(), image);
        assert!(matches!(result, Err(ManifestError::Image { .. })), "{image:?}");
    }
}

#[test]
fn flags_are_read_as_kubernetes_reads_them() {
    let words: Vec<String> = ["kube-apiserver", "--a_b=1", "--c", "2", "--a-b=3", "-d=4"]
        .map(str::to_owned)
        .to_vec();
    assert_eq!(flag(&words, "a-b"), Some("3"));
    assert_eq!(flag(&words, "c"), Some("2"));
    assert_eq!(flag(&words, "d"), None);
}

#[test]
fn a_tag_is_put_on_the_same_repository() {
    assert_eq!(with_tag("r:5000/a/b:v1", "v2").as_deref(), Some("r:5000/a/b:v2"));
    assert_eq!(with_tag("r:5000/a/b", "v2").as_deref(), Some("r:5000/a/b:v2"));
    assert_eq!(with_tag("a@sha256:00", "v2"), None);
}

fn scalar() -> impl Strategy<Value = String> {
    "[ -~]{0,24}"
}

prop_compose! {
    /// A manifest with several containers, comments, block scalars and hostile strings.
    fn manifests()(
        before in proptest::collection::vec(("[a-z]{1,8}", scalar()), 0..3),
        after in proptest::collection::vec(("[a-z]{1,8}", scalar()), 0..3),
        flags in proptest::collection::vec(scalar(), 0..6),
        comment in "[ -~]{0,30}",
        quote in 0..3usize,
        image_first in any::<bool>(),
        tag in "v1\\.3[0-9]\\.[0-9]{1,2}",
    ) -> String {
        let side = |(name, text): &(String, String)| format!(
            "  - name: s{name}\n    image: registry.k8s.io/kube-apiserver:{tag}\n    args:\n    - {}\n    - |-\n      image: registry.k8s.io/kube-apiserver:{tag}\n",
            serde_json::to_string(text).unwrap()
        );
        let image = ["", "'", "\""].map(|q| format!("image: {q}registry.k8s.io/kube-apiserver:{tag}{q} # {comment}"))[quote].clone();
        let (first, second) = if image_first {
            (image, "name: kube-apiserver".to_owned())
        } else {
            ("name: kube-apiserver".to_owned(), image)
        };
        let flags: String = flags.iter().map(|f| format!("    - {}\n", serde_json::to_string(f).unwrap())).collect();
        let command = if flags.is_empty() { String::new() } else { format!("    command:\n{flags}") };
        pod(&format!(
            "{}  - {first}\n{command}    {second}\n{}",
            before.iter().map(side).collect::<String>(),
            after.iter().map(side).collect::<String>(),
        ))
    }
}

proptest! {
    #[test]
    fn only_the_image_of_the_component_changes(text in manifests()) {
        let new = changed(&text).unwrap();
        let (old_document, new_document): (Value, Value) =
            (serde_yaml::from_str(&text).unwrap(), serde_yaml::from_str(&new).unwrap());
        let lines = |t: &str| t.lines().map(str::to_owned).collect::<Vec<_>>();
        let differing = lines(&text).iter().zip(lines(&new)).filter(|(a, b)| **a != *b).count();
        prop_assert!(differing <= 1);
        prop_assert_eq!(lines(&text).len(), lines(&new).len());
        prop_assert_eq!(container(&new_document, "kube-apiserver").unwrap()["image"].clone(), Value::from(NEW));
        prop_assert_eq!(expected_document(&new_document, "kube-apiserver", "x:y"), expected_document(&old_document, "kube-apiserver", "x:y"));
    }

    #[test]
    fn whatever_the_bytes_nothing_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = with_image(&path(), Component::KubeApiserver, &bytes, NEW);
    }
}
