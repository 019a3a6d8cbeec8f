//! What a cutover must be allowed to do, and whether the credentials that it has allow it. Asks; changes nothing.

use futures::future::try_join_all;
use k8s_openapi::api::authorization::v1::{
    NonResourceAttributes, ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use kube::api::{Api, PostParams};
use lockkeeper_crds as crds;

use crate::api::{ApiError, ApiServers};

/// Something that must be allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Right {
    /// Of objects; a subresource is written as a role has it, `clustercutovers/status`.
    Objects {
        verb: &'static str,
        group: &'static str,
        resource: &'static str,
        namespace: Option<String>,
        name: Option<String>,
    },
    /// To read a path of the API server that is no object's.
    Path(&'static str),
}

/// What is asked of blue and of green: whether each is ready, what it runs, and which cluster it is.
pub(super) fn of_clusters() -> Vec<Right> {
    vec![
        Right::Path("/readyz"),
        Right::Path("/version"),
        Right::Objects {
            verb: "get",
            group: "",
            resource: "namespaces",
            namespace: None,
            name: Some("kube-system".to_owned()),
        },
    ]
}

/// What is done in the operator's own cluster, by its own credentials: its memory is written and held, and the Secrets
/// that the spec names are read.
pub(super) fn of_operator(namespace: &str, spec: &crds::ClusterCutoverSpec) -> Vec<Right> {
    let own = |verb, resource| Right::Objects {
        verb,
        group: "lockkeeper.dev",
        resource,
        namespace: None,
        name: None,
    };
    let secrets = spec.secret_names().into_iter().map(|name| Right::Objects {
        verb: "get",
        group: "",
        resource: "secrets",
        namespace: Some(namespace.to_owned()),
        name: Some(name.to_owned()),
    });
    [
        own("patch", "clustercutovers"),
        own("update", "clustercutovers/status"),
    ]
    .into_iter()
    .chain(secrets)
    .collect()
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
            Self::Objects {
                verb,
                group,
                resource,
                namespace,
                name,
            } => {
                let mut words = resource.splitn(2, '/').map(str::to_owned);
                spec.resource_attributes = Some(ResourceAttributes {
                    verb: Some((*verb).to_owned()),
                    group: Some((*group).to_owned()),
                    resource: words.next(),
                    subresource: words.next(),
                    namespace: namespace.clone(),
                    name: name.clone(),
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
        let (verb, group, resource, namespace, name) = match self {
            Self::Path(path) => return write!(f, "get {path}"),
            Self::Objects {
                verb,
                group,
                resource,
                namespace,
                name,
            } => (verb, group, resource, namespace, name),
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
        let asked = of_clusters()[0].review().spec;
        assert_eq!(asked.resource_attributes, None);
        assert_eq!(
            asked.non_resource_attributes.unwrap().path.as_deref(),
            Some("/readyz")
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
