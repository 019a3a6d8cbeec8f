//! What a cutover must be allowed to do, and whether the credentials that it has allow it. Asks; changes nothing.

use std::borrow::Cow;
use std::collections::BTreeSet;

use futures::future::try_join_all;
use k8s_openapi::api::authorization::v1::{
    NonResourceAttributes, ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use kube::api::{Api, PostParams};
use lockkeeper_crds as crds;
use lockkeeper_crds::{RouteKind, SingletonKind};
use lockkeeper_policies::cutover::Side;

use crate::api::{ApiError, ApiServers};

/// Something that must be allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Right {
    Objects(Objects),
    /// To read a path of the API server that is no object's.
    Path(&'static str),
}

/// Of objects; a subresource is written as a role has it, `clustercutovers/status`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Objects {
    verb: &'static str,
    group: Cow<'static, str>,
    resource: Cow<'static, str>,
    namespace: Option<String>,
    name: Option<String>,
}

impl Objects {
    /// To all of them, everywhere.
    pub(super) fn to(
        verb: &'static str,
        group: impl Into<Cow<'static, str>>,
        resource: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self {
            verb,
            group: group.into(),
            resource: resource.into(),
            namespace: None,
            name: None,
        }
    }

    pub(super) fn within(mut self, namespace: &str) -> Self {
        self.namespace = Some(namespace.to_owned());
        self
    }

    pub(super) fn named(mut self, name: &str) -> Self {
        self.name = Some(name.to_owned());
        self
    }
}

impl From<Objects> for Right {
    fn from(objects: Objects) -> Self {
        Self::Objects(objects)
    }
}

/// What is done in blue or in green: each is asked whether it is ready, what it runs, which cluster it is and what its
/// nodes offer; what runs once is stopped and started, and who else would do so is looked up; writes to blue are refused.
/// What a gate needs it asks for itself.
pub(super) fn of_cluster(side: Side, spec: &crds::ClusterCutoverSpec) -> Vec<Right> {
    let mut all = of_either();
    for one in &spec.singletons {
        for right in of_singleton(one) {
            // What is left of several is asked of one namespace.
            if !all.contains(&right) {
                all.push(right);
            }
        }
    }
    if spec.capacity.at_least_percent > 0 {
        all.push(Objects::to("list", "", "nodes").into());
    }
    if let (Side::Blue, Some(freeze)) = (side, &spec.freeze) {
        all.extend(of_freeze(freeze));
    }
    all
}

fn of_singleton(one: &crds::Singleton) -> Vec<Right> {
    let (group, resource) = match one.kind {
        SingletonKind::CronJob => ("batch", "cronjobs"),
        SingletonKind::Deployment => ("apps", "deployments"),
        SingletonKind::StatefulSet => ("apps", "statefulsets"),
    };
    let what_is_left = match one.kind {
        SingletonKind::CronJob => Objects::to("list", "batch", "jobs"),
        SingletonKind::Deployment | SingletonKind::StatefulSet => Objects::to("list", "", "pods"),
    };
    let scaled = (one.kind != SingletonKind::CronJob)
        .then(|| Objects::to("list", "autoscaling", "horizontalpodautoscalers"));
    let all = [
        Objects::to("get", group, resource).named(&one.name),
        Objects::to("patch", group, resource).named(&one.name),
        what_is_left,
    ];
    let all = all.into_iter().chain(scaled);
    all.map(|right| right.within(&one.namespace).into()).collect()
}

fn of_freeze(freeze: &crds::Freeze) -> Vec<Right> {
    let group = "admissionregistration.k8s.io";
    let (policies, bindings) = ("validatingadmissionpolicies", "validatingadmissionpolicybindings");
    let mut all = vec![
        Objects::to("create", group, policies),
        Objects::to("delete", group, policies),
        Objects::to("create", group, bindings),
        Objects::to("delete", group, bindings),
        // Whoever names a Job as a policy's parameter must be able to read all of them.
        Objects::to("get", "batch", "jobs"),
    ];
    if let Some(first) = freeze.namespaces.first() {
        let timer = ["create", "delete"].map(|verb| Objects::to(verb, "batch", "jobs").within(first));
        all.extend(timer);
    }
    let probes = freeze.namespaces.iter();
    all.extend(probes.map(|namespace| Objects::to("create", "", "configmaps").within(namespace)));
    all.into_iter().map(Right::from).collect()
}

/// Weights are set in routes, and their gateways are asked whether they go by them. `gateways`: namespace and name of
/// each that a route names.
pub(super) fn of_routes(
    traffic: &crds::GatewayApiTraffic,
    gateways: &BTreeSet<(String, String)>,
) -> Vec<Right> {
    let group = "gateway.networking.k8s.io";
    let routes = traffic.routes.iter().flat_map(|route| {
        let resource = match route.kind {
            RouteKind::HttpRoute => "httproutes",
            RouteKind::GrpcRoute => "grpcroutes",
            RouteKind::TlsRoute => "tlsroutes",
            RouteKind::TcpRoute => "tcproutes",
        };
        let to = |verb| {
            Objects::to(verb, group, resource)
                .within(&route.namespace)
                .named(&route.name)
        };
        [to("get"), to("patch")]
    });
    let gateways = gateways.iter().map(|(namespace, name)| {
        Objects::to("get", group, "gateways")
            .within(namespace)
            .named(name)
    });
    routes.chain(gateways).map(Right::from).collect()
}

/// Weights are set in records.
pub(super) fn of_records(traffic: &crds::ExternalDnsTraffic) -> Vec<Right> {
    let to = |verb| {
        Objects::to(verb, "externaldns.k8s.io", "dnsendpoints")
            .within(&traffic.namespace)
            .named(&traffic.name)
    };
    ["get", "patch"].map(|verb| to(verb).into()).into()
}

/// What is done in the cluster in which the Jobs run that move the traffic.
pub(super) fn of_traffic_job(traffic: &crds::JobTraffic) -> Vec<Right> {
    let jobs = ["create", "list", "delete"].map(|verb| Objects::to(verb, "batch", "jobs"));
    let all = jobs.into_iter().chain([Objects::to("list", "", "pods")]);
    all.map(|right| right.within(&traffic.namespace).into()).collect()
}

fn of_either() -> Vec<Right> {
    vec![
        Right::Path("/readyz"),
        Right::Path("/version"),
        Objects::to("get", "", "namespaces").named("kube-system").into(),
    ]
}

/// What is done in the operator's own cluster, by its own credentials: its memory is written and held, and the Secrets
/// that the spec names are read.
pub(super) fn of_operator(namespace: &str, spec: &crds::ClusterCutoverSpec) -> Vec<Right> {
    let own = [("patch", "clustercutovers"), ("update", "clustercutovers/status")];
    let own = own.map(|(verb, resource)| Objects::to(verb, "lockkeeper.dev", resource));
    let secrets = spec.secret_names().into_iter();
    let secrets = secrets.map(|name| Objects::to("get", "", "secrets").within(namespace).named(name));
    own.into_iter().chain(secrets).map(Right::from).collect()
}

/// Those of the rights that our credentials lack there. `whose`: the cluster, for a person.
pub(super) async fn lacking(api: &ApiServers, whose: &str, rights: &[Right]) -> Result<Vec<Right>, ApiError> {
    let reviews: Api<SelfSubjectAccessReview> = Api::all(api.client());
    let reviews = &reviews;
    let asked = rights.iter().map(async |right| {
        let what = format!("ask {whose} what may be done there");
        let (params, review) = (PostParams::default(), right.review());
        let answer = api.within(what, reviews.create(&params, &review)).await?;
        Ok::<_, ApiError>((!is_allowed(&answer)).then(|| right.clone()))
    });
    Ok(try_join_all(asked).await?.into_iter().flatten().collect())
}

/// What is not said to be allowed is not.
fn is_allowed(answer: &SelfSubjectAccessReview) -> bool {
    answer.status.as_ref().is_some_and(|status| status.allowed)
}

impl Right {
    fn review(&self) -> SelfSubjectAccessReview {
        let mut spec = SelfSubjectAccessReviewSpec::default();
        match self {
            Self::Path(path) => {
                spec.non_resource_attributes = Some(NonResourceAttributes {
                    path: Some((*path).to_owned()),
                    verb: Some("get".to_owned()),
                });
            }
            Self::Objects(objects) => {
                let mut words = objects.resource.splitn(2, '/').map(str::to_owned);
                spec.resource_attributes = Some(ResourceAttributes {
                    verb: Some(objects.verb.to_owned()),
                    group: Some(objects.group.to_string()),
                    resource: words.next(),
                    subresource: words.next(),
                    namespace: objects.namespace.clone(),
                    name: objects.name.clone(),
                    ..ResourceAttributes::default()
                });
            }
        }
        SelfSubjectAccessReview {
            spec,
            ..SelfSubjectAccessReview::default()
        }
    }
}

/// As a person writes it into a role.
impl std::fmt::Display for Right {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Objects {
            verb,
            group,
            resource,
            namespace,
            name,
        } = match self {
            Self::Path(path) => return write!(f, "get {path}"),
            Self::Objects(objects) => objects,
        };
        write!(f, "{verb} {resource}")?;
        if !group.is_empty() {
            write!(f, " of {group}")?;
        }
        match (namespace, name) {
            (Some(namespace), Some(name)) => write!(f, " {namespace}/{name}"),
            (None, Some(name)) => write!(f, " {name}"),
            (Some(namespace), None) => write!(f, " in namespace {namespace}"),
            (None, None) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operator::cutovers::testing::object;
    use k8s_openapi::api::authorization::v1::SubjectAccessReviewStatus;

    fn texts(rights: &[Right]) -> Vec<String> {
        rights.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn every_secret_that_is_named_must_be_readable() {
        let mut spec = object().spec;
        assert_eq!(
            texts(&of_operator("lockkeeper-system", &spec)),
            [
                "patch clustercutovers of lockkeeper.dev",
                "update clustercutovers/status of lockkeeper.dev",
                "get secrets lockkeeper-system/green",
            ]
        );
        let hook =
            serde_json::json!({"hook": {"url": "https://lb.example.com/", "tokenSecret": {"name": "lb"}}});
        spec.traffic = serde_json::from_value(hook).unwrap();
        spec.blue =
            serde_json::from_value(serde_json::json!({"kubeconfigSecret": {"name": "blue"}})).unwrap();
        assert_eq!(
            texts(&of_operator("ns", &spec)[2..]),
            ["get secrets ns/blue", "get secrets ns/green", "get secrets ns/lb"]
        );
    }

    #[test]
    fn the_question_is_about_exactly_the_right() {
        let [_, status, secret] = &of_operator("ns", &object().spec)[..] else {
            panic!("three rights")
        };
        let asked = status.review().spec.resource_attributes.unwrap();
        assert_eq!(
            [asked.verb, asked.group, asked.resource, asked.subresource].map(Option::unwrap),
            ["update", "lockkeeper.dev", "clustercutovers", "status"]
        );
        let asked = secret.review().spec.resource_attributes.unwrap();
        assert_eq!(asked.subresource, None);
        assert_eq!(
            [asked.verb, asked.resource, asked.namespace, asked.name].map(Option::unwrap),
            ["get", "secrets", "ns", "green"]
        );
        let asked = of_either()[0].review().spec;
        assert_eq!(asked.resource_attributes, None);
        assert_eq!(
            asked.non_resource_attributes.unwrap().path.as_deref(),
            Some("/readyz")
        );
    }

    #[test]
    fn a_freeze_is_for_blue_to_allow_and_what_runs_once_for_both() {
        let mut spec = object().spec;
        let nodes = Right::from(Objects::to("list", "", "nodes"));
        assert!(of_cluster(Side::Green, &spec).contains(&nodes));
        spec.capacity.at_least_percent = 0;
        assert_eq!(of_cluster(Side::Green, &spec), of_either());
        spec.singletons = vec![crds::Singleton {
            kind: SingletonKind::CronJob,
            namespace: "shop".to_owned(),
            name: "nightly".to_owned(),
        }];
        spec.freeze = Some(crds::Freeze {
            namespaces: vec!["shop".to_owned()],
            longest_seconds: 60,
        });
        let green = texts(&of_cluster(Side::Green, &spec));
        let blue = texts(&of_cluster(Side::Blue, &spec));
        assert!(blue.starts_with(&green));
        assert_eq!(
            green[green.len() - 3..],
            [
                "get cronjobs of batch shop/nightly",
                "patch cronjobs of batch shop/nightly",
                "list jobs of batch in namespace shop",
            ]
        );
        assert!(blue.contains(&"create configmaps in namespace shop".to_owned()));
    }

    #[test]
    fn the_edge_must_let_its_routes_be_set_and_its_gateways_be_read() {
        let traffic = serde_json::json!({
            "cluster": {"thisCluster": true}, "blue": {"name": "blue"}, "green": {"name": "green"},
            "routes": [{"namespace": "shop", "name": "web"}, {"kind": "TCPRoute", "namespace": "shop", "name": "db"}],
        });
        let traffic = serde_json::from_value(traffic).unwrap();
        let gateways = BTreeSet::from([("edge".to_owned(), "public".to_owned())]);
        let group = "of gateway.networking.k8s.io";
        assert_eq!(
            texts(&of_routes(&traffic, &gateways)),
            [
                format!("get httproutes {group} shop/web"),
                format!("patch httproutes {group} shop/web"),
                format!("get tcproutes {group} shop/db"),
                format!("patch tcproutes {group} shop/db"),
                format!("get gateways {group} edge/public"),
            ]
        );
    }

    #[test]
    fn records_must_be_read_and_set() {
        let traffic = serde_json::json!({
            "cluster": {"thisCluster": true}, "namespace": "edge", "name": "shop", "blue": "blue", "green": "green",
        });
        let traffic = serde_json::from_value(traffic).unwrap();
        assert_eq!(
            texts(&of_records(&traffic)),
            [
                "get dnsendpoints of externaldns.k8s.io edge/shop",
                "patch dnsendpoints of externaldns.k8s.io edge/shop",
            ]
        );
    }

    #[test]
    fn jobs_that_move_traffic_are_made_found_and_removed_and_their_pods_are_read() {
        let traffic = serde_json::json!({
            "cluster": {"thisCluster": true}, "namespace": "edge", "name": "shop", "template": {"spec": {}},
        });
        assert_eq!(
            texts(&of_traffic_job(&serde_json::from_value(traffic).unwrap())),
            [
                "create jobs of batch in namespace edge",
                "list jobs of batch in namespace edge",
                "delete jobs of batch in namespace edge",
                "list pods in namespace edge",
            ]
        );
    }

    #[test]
    fn silence_is_no_leave() {
        let mut answer = SelfSubjectAccessReview::default();
        assert!(!is_allowed(&answer));
        for allowed in [false, true] {
            answer.status = Some(SubjectAccessReviewStatus {
                allowed,
                ..SubjectAccessReviewStatus::default()
            });
            assert_eq!(is_allowed(&answer), allowed);
        }
    }
}
