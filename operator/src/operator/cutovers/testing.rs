//! A cutover to try things on.

use lockkeeper_crds as crds;

/// Two steps, one gate.
pub(super) fn object() -> crds::ClusterCutover {
    let text = r#"
apiVersion: lockkeeper.dev/v1alpha1
kind: ClusterCutover
metadata: {name: shop, uid: u-1, generation: 1}
spec:
  blue: {thisCluster: true}
  green: {kubeconfigSecret: {name: green}}
  traffic:
    haproxy: {endpoints: ["10.0.0.5:9999"], backend: shop, blue: [blue-1], green: [green-1]}
  steps: [{green: 25, soakSeconds: 10}, {green: 100, soakSeconds: 10}]
  gates: [{name: shop, http: {url: "http://shop.example.com/"}}]
  rollbackWindowSeconds: 60
"#;
    serde_yaml::from_str(text).unwrap()
}
