//! What the lab builds: which Go modules at which version, which of their commands, and the images made of them.
//!
//! Each module lies in `modules/` with its `go.mod` and `go.sum`, so that what is built is pinned by hash.

use anyhow::{Result, bail};

/// The minor that a lab starts at.
pub const START: &str = "v1.35.4";
/// The minor that scenarios go to.
pub const TARGET: &str = "v1.36.3";
/// The etcd that every lab runs.
pub const ETCD: &str = "v3.6.6";
/// The sandbox image. The tag is the one kubeadm of [`START`] names.
pub const PAUSE: &str = "3.10.1";
/// The one that kubeadm of [`TARGET`] runs its health-check Job with.
pub const TARGET_PAUSE: &str = "3.10.2";

/// A Go module of ours that pins what is built.
#[derive(Debug, Clone, Copy)]
pub struct Module {
    /// The folder under `modules/`.
    pub name: &'static str,
    /// Its `go.mod`.
    pub go_mod: &'static str,
    /// Its `go.sum`.
    pub go_sum: &'static str,
    /// Its `tools.go`.
    pub tools: &'static str,
}

macro_rules! module {
    ($name:literal) => {
        Module {
            name: $name,
            go_mod: include_str!(concat!("../modules/", $name, "/go.mod")),
            go_sum: include_str!(concat!("../modules/", $name, "/go.sum")),
            tools: include_str!(concat!("../modules/", $name, "/tools.go")),
        }
    };
}

/// Something to build.
#[derive(Debug, Clone, Copy)]
pub struct Recipe {
    /// What it is, as the folder in the cache names it.
    pub what: &'static str,
    /// Its version, with the leading `v`.
    pub version: &'static str,
    /// The module that pins it.
    pub module: Module,
    /// The binaries: file name and Go package.
    pub commands: &'static [(&'static str, &'static str)],
    /// Files of modules that are kept beside the binaries: the module, and the path in it.
    pub files: &'static [(&'static str, &'static str)],
    /// Whether the version is set in Kubernetes' own variables; without it kubeadm and the skew checks
    /// see v0.0.0.
    pub kubernetes_version: bool,
    /// How long a first build takes on two cores.
    pub cold: &'static str,
}

/// Everything the lab can build. The lists of commands are no longer than what is used: a target needs no
/// kubelet and no kube-proxy, because neither kubeadm nor Lockkeeper replaces them here.
pub const RECIPES: &[Recipe] = &[
    Recipe {
        what: "kubernetes",
        version: START,
        module: module!("kubernetes-1.35"),
        commands: &[
            ("kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver"),
            (
                "kube-controller-manager",
                "k8s.io/kubernetes/cmd/kube-controller-manager",
            ),
            ("kube-scheduler", "k8s.io/kubernetes/cmd/kube-scheduler"),
            ("kubelet", "k8s.io/kubernetes/cmd/kubelet"),
            ("kubeadm", "k8s.io/kubernetes/cmd/kubeadm"),
            ("kubectl", "k8s.io/kubernetes/cmd/kubectl"),
            ("kube-proxy", "k8s.io/kubernetes/cmd/kube-proxy"),
        ],
        files: &[],
        kubernetes_version: true,
        cold: "about 10 minutes",
    },
    Recipe {
        what: "kubernetes",
        version: TARGET,
        module: module!("kubernetes-1.36"),
        commands: &[
            ("kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver"),
            (
                "kube-controller-manager",
                "k8s.io/kubernetes/cmd/kube-controller-manager",
            ),
            ("kube-scheduler", "k8s.io/kubernetes/cmd/kube-scheduler"),
            ("kubeadm", "k8s.io/kubernetes/cmd/kubeadm"),
            ("kubectl", "k8s.io/kubernetes/cmd/kubectl"),
        ],
        files: &[],
        kubernetes_version: true,
        cold: "about 8 minutes",
    },
    Recipe {
        what: "etcd",
        version: ETCD,
        module: module!("etcd-3.6"),
        commands: &[
            ("etcd", "go.etcd.io/etcd/server/v3"),
            ("etcdctl", "go.etcd.io/etcd/etcdctl/v3"),
            ("etcdutl", "go.etcd.io/etcd/etcdutl/v3"),
        ],
        files: &[],
        kubernetes_version: false,
        cold: "about a minute and a half",
    },
    Recipe {
        what: "versitygw",
        version: "v1.8.0",
        module: module!("versitygw"),
        commands: &[("versitygw", "github.com/versity/versitygw/cmd/versitygw")],
        files: &[],
        kubernetes_version: false,
        cold: "about 2 minutes",
    },
    Recipe {
        what: "helm",
        version: "v4.3.1",
        module: module!("helm"),
        commands: &[("helm", "helm.sh/helm/v4/cmd/helm")],
        files: &[],
        kubernetes_version: false,
        cold: "about 4 minutes",
    },
];

const GATEWAY_API: &str = "sigs.k8s.io/gateway-api";

/// A Gateway's control plane, with the CRDs that it needs. Built for those scenarios alone that want one.
pub const CONTOUR: Recipe = Recipe {
    what: "contour",
    version: "v1.33.8",
    module: module!("contour"),
    commands: &[("contour", "github.com/projectcontour/contour/cmd/contour")],
    files: &[
        (
            "github.com/projectcontour/contour",
            "examples/contour/01-crds.yaml",
        ),
        (
            GATEWAY_API,
            "config/crd/experimental/gateway.networking.k8s.io_backendtlspolicies.yaml",
        ),
        (
            GATEWAY_API,
            "config/crd/experimental/gateway.networking.k8s.io_gatewayclasses.yaml",
        ),
        (
            GATEWAY_API,
            "config/crd/experimental/gateway.networking.k8s.io_gateways.yaml",
        ),
        (
            GATEWAY_API,
            "config/crd/experimental/gateway.networking.k8s.io_grpcroutes.yaml",
        ),
        (
            GATEWAY_API,
            "config/crd/experimental/gateway.networking.k8s.io_httproutes.yaml",
        ),
        (
            GATEWAY_API,
            "config/crd/experimental/gateway.networking.k8s.io_referencegrants.yaml",
        ),
        (
            GATEWAY_API,
            "config/crd/experimental/gateway.networking.k8s.io_tcproutes.yaml",
        ),
        (
            GATEWAY_API,
            "config/crd/experimental/gateway.networking.k8s.io_tlsroutes.yaml",
        ),
    ],
    kubernetes_version: false,
    cold: "about 4 minutes",
};

/// Publishes DNS records from objects, with their CRD. Built for the tests with real parts alone.
pub const EXTERNAL_DNS: Recipe = Recipe {
    what: "external-dns",
    version: "v0.21.0",
    module: module!("external-dns"),
    commands: &[("external-dns", "sigs.k8s.io/external-dns")],
    files: &[(
        "sigs.k8s.io/external-dns",
        "config/crd/standard/dnsendpoints.externaldns.k8s.io.yaml",
    )],
    kubernetes_version: false,
    cold: "about 10 minutes",
};

/// The recipe of something at a version.
pub fn recipe(what: &str, version: &str) -> Result<&'static Recipe> {
    if let Some(found) = RECIPES
        .iter()
        .find(|recipe| recipe.what == what && recipe.version == version)
    {
        return Ok(found);
    }
    let known: Vec<&str> = RECIPES
        .iter()
        .filter(|recipe| recipe.what == what)
        .map(|recipe| recipe.version)
        .collect();
    bail!("the lab has no {what} {version}; it knows {}", known.join(", "))
}

/// The recipe of the only version of something.
pub fn only(what: &str) -> Result<&'static Recipe> {
    match RECIPES.iter().find(|recipe| recipe.what == what) {
        Some(found) => Ok(found),
        None => bail!("the lab builds no {what}"),
    }
}

/// Whether a version can be started from: it needs a kubelet and kube-proxy.
pub fn can_start(version: &str) -> Result<()> {
    let found = recipe("kubernetes", version)?;
    if found.commands.iter().any(|(name, _)| *name == "kubelet") {
        return Ok(());
    }
    bail!(
        "{version} is a target, not a start: the lab builds no kubelet for it; use --kubernetes {START} --also {version}"
    )
}

/// The tag under which kubeadm asks for etcd: `v3.6.6` is `3.6.6-0`.
#[must_use]
pub fn etcd_tag(version: &str) -> String {
    format!("{}-0", version.trim_start_matches('v'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_module_requires_what_its_recipe_says() {
        for recipe in RECIPES.iter().chain([&CONTOUR, &EXTERNAL_DNS]) {
            assert!(
                recipe.module.go_mod.contains(recipe.version),
                "{} {}",
                recipe.what,
                recipe.version
            );
            for (_, package) in recipe.commands {
                assert!(
                    recipe.module.tools.contains(package),
                    "{package} is not in {}",
                    recipe.module.name
                );
            }
            for (module, _) in recipe.files {
                assert!(
                    recipe.module.go_mod.contains(&format!("\n\t{module} v")),
                    "{module}"
                );
            }
        }
    }

    #[test]
    fn an_unknown_version_names_the_known_ones() {
        let error = recipe("kubernetes", "v1.2.3").unwrap_err().to_string();
        assert!(error.contains("v1.35.4, v1.36.3"), "{error}");
    }

    #[test]
    fn a_target_cannot_be_started_from() {
        assert!(can_start(START).is_ok());
        assert!(can_start(TARGET).unwrap_err().to_string().contains("--also"));
    }
}
