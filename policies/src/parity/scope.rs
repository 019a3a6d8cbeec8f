//! Which objects are compared.

use std::collections::BTreeSet;

use super::Kind;

/// A cluster's own: every one has them, each its own way. Compared when they are named.
const OWN_NAMESPACES: [&str; 3] = ["kube-node-lease", "kube-public", "kube-system"];

/// Kinds by group that are not compared unless they are named: records of what happens, what a controller makes of
/// other objects, and the machines themselves. `*` is every kind of the group.
const LEFT_OUT: [(&str, &str); 24] = [
    ("", "ComponentStatus"),
    ("", "Endpoints"),
    ("", "Event"),
    ("", "Node"),
    ("apps", "ControllerRevision"),
    ("certificates.k8s.io", "CertificateSigningRequest"),
    ("certificates.k8s.io", "PodCertificateRequest"),
    ("coordination.k8s.io", "*"),
    ("custom.metrics.k8s.io", "*"),
    ("discovery.k8s.io", "EndpointSlice"),
    ("events.k8s.io", "*"),
    ("external.metrics.k8s.io", "*"),
    ("internal.apiserver.k8s.io", "*"),
    // Of the control plane that each cluster has.
    ("lockkeeper.dev", "*"),
    ("metrics.k8s.io", "*"),
    ("networking.k8s.io", "IPAddress"),
    ("networking.k8s.io", "ServiceCIDR"),
    ("resource.k8s.io", "ResourceSlice"),
    ("storage.k8s.io", "CSINode"),
    ("storage.k8s.io", "CSIStorageCapacity"),
    ("storage.k8s.io", "VolumeAttachment"),
    ("storagemigration.k8s.io", "*"),
    ("authentication.k8s.io", "*"),
    ("authorization.k8s.io", "*"),
];

/// A kind as a person names it: `Deployment`, `deployments`, or either with its group, `deployments.apps`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct KindAsked(pub String);

impl KindAsked {
    /// Whether this kind, whose plural is given, is meant.
    #[must_use]
    pub fn means(&self, kind: &Kind, plural: &str) -> bool {
        let Self(asked) = self;
        let (name, group) = match asked.split_once('.') {
            Some((name, group)) => (name, Some(group)),
            None => (asked.as_str(), None),
        };
        let named = name.eq_ignore_ascii_case(&kind.kind) || name.eq_ignore_ascii_case(plural);
        named && group.is_none_or(|g| g.eq_ignore_ascii_case(&kind.group))
    }
}

/// What is to be equal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scope {
    /// Only these; empty: all but `kube-*`, the cluster's own.
    pub namespaces: BTreeSet<String>,
    /// Only these; empty: all that both clusters serve and that are not made by their own controllers.
    pub kinds: Vec<KindAsked>,
}

impl Scope {
    /// Whether a kind is compared.
    #[must_use]
    pub fn compares(&self, kind: &Kind, plural: &str) -> bool {
        if !self.kinds.is_empty() {
            return self.kinds.iter().any(|asked| asked.means(kind, plural));
        }
        let left =
            |(group, name): &&(&str, &str)| *group == kind.group && (*name == "*" || *name == kind.kind);
        !LEFT_OUT.iter().any(|l| left(&l))
    }

    /// Whether kinds of this API group are compared, as far as that is known without knowing them.
    #[must_use]
    pub fn concerns(&self, group: &str) -> bool {
        if self.kinds.is_empty() {
            return !LEFT_OUT.contains(&(group, "*"));
        }
        let groups = self
            .kinds
            .iter()
            .filter_map(|KindAsked(asked)| asked.split_once('.'));
        groups
            .into_iter()
            .any(|(_, asked)| asked.eq_ignore_ascii_case(group))
    }

    /// Whether an object of a compared kind is compared. `namespace` is empty for what lies in none.
    #[must_use]
    pub fn holds(&self, kind: &Kind, namespace: &str, name: &str) -> bool {
        let namespace = match (kind.group.as_str(), kind.kind.as_str()) {
            ("", "Namespace") => name,
            _ if namespace.is_empty() => return true,
            _ => namespace,
        };
        if self.namespaces.is_empty() {
            !OWN_NAMESPACES.contains(&namespace)
        } else {
            self.namespaces.contains(namespace)
        }
    }
}
