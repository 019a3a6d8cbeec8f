//! A round that looks at objects of a cluster.

use kube::Client;
use kube::api::{Api, DynamicObject, ListParams};
use kube::core::GroupVersionKind;
use kube::discovery::{ApiCapabilities, ApiResource, Scope, oneshot};
use lockkeeper_crds::{CelGate, GateCluster};
use serde_json::Value;
use tokio::sync::OnceCell;

use super::expression::Expression;
use super::{Answer, Hindrance, Outcome, Reach};
use crate::api::{ApiError, ApiServers};
use crate::operator::cutovers::rights::{self, Objects, Right};

/// Objects that are asked for at a time.
const PAGE: u32 = 100;
/// More is not looked at: it would be neither cheap nor a question about something in particular.
const MOST: usize = 1000;
const LARGEST: usize = 16 << 20;

/// Asks for objects.
pub(super) struct Cel {
    spec: CelGate,
    expression: Expression,
    /// As the cluster calls the kind. It does not change.
    served: OnceCell<(ApiResource, ApiCapabilities)>,
}

/// What was found.
enum Found {
    One(Option<Value>),
    Many(Vec<Value>),
}

impl Cel {
    pub(super) fn new(spec: &CelGate) -> Self {
        Self {
            expression: Expression::new(&spec.expression),
            spec: spec.clone(),
            served: OnceCell::new(),
        }
    }

    const fn variable(&self) -> &'static str {
        match self.spec.name {
            Some(_) => "object",
            None => "objects",
        }
    }

    /// The expression, the kind and the right to read it.
    pub(super) async fn check(&self, reach: &Reach) -> Result<(), Hindrance> {
        let checked = self.expression.check(self.variable()).await;
        checked.map_err(|why| Hindrance::block(format!("correct cel.expression: {why}")))?;
        let cluster = self.spec.cluster;
        let api = reach.cluster(cluster).map_err(Hindrance::unknown)?;
        let resource = self.resource(&api).await?;
        let verb = if self.spec.name.is_some() { "get" } else { "list" };
        let mut right = Objects::to(verb, resource.group.clone(), resource.plural.clone());
        if let Some(namespace) = &self.spec.namespace {
            right = right.within(namespace);
        }
        if let Some(name) = &self.spec.name {
            right = right.named(name);
        }
        allowed(&api, cluster, &[right.into()]).await
    }

    pub(super) async fn round(&self, reach: &Reach) -> Answer {
        let found = match self.look(reach).await {
            Ok(found) => found,
            Err(why) => return Answer::unknown(why),
        };
        let (kind, cluster) = (&self.spec.kind, self.spec.cluster);
        let (count, evaluated) = match found {
            Found::One(None) => {
                let name = self.spec.name.as_deref().unwrap_or_default();
                return Answer::new(Outcome::Failed, format!("there is no {kind} {name} in {cluster}"));
            }
            Found::Many(all) if all.is_empty() && !self.spec.may_be_empty => {
                return Answer::new(Outcome::Failed, format!("there is no such {kind} in {cluster}"));
            }
            Found::One(Some(one)) => (1, self.expression.evaluate(self.variable(), one).await),
            Found::Many(all) => (
                all.len(),
                self.expression.evaluate(self.variable(), Value::Array(all)).await,
            ),
        };
        let of = format!("{count} {kind} of {cluster}");
        match evaluated {
            Ok(true) => Answer::new(Outcome::Passed, format!("the expression is true of {of}")),
            Ok(false) => Answer::new(Outcome::Failed, format!("the expression is false of {of}")),
            Err(why) => Answer::unknown(format!("the expression says nothing of {of}: {why}")),
        }
    }

    /// All of it, or why it is not known.
    async fn look(&self, reach: &Reach) -> Result<Found, String> {
        let api = reach.cluster(self.spec.cluster)?;
        let resource = self.resource(&api).await.map_err(|Hindrance(_, why)| why)?;
        let objects = self.objects(api.client(), resource);
        let (kind, cluster) = (&self.spec.kind, self.spec.cluster);
        if let Some(name) = &self.spec.name {
            let what = format!("read {kind} {name} of {cluster}");
            let found = api.within(what, objects.get_opt(name)).await;
            let found = found.map_err(|e| e.to_string())?;
            return Ok(Found::One(found.as_ref().map(value).transpose()?));
        }
        let mut params = ListParams::default().limit(PAGE);
        params.label_selector.clone_from(&self.spec.label_selector);
        let (mut all, mut size) = (Vec::new(), 0);
        loop {
            let what = format!("list {kind} of {cluster}");
            let page = api.within(what, objects.list(&params)).await;
            let page = page.map_err(|e| e.to_string())?;
            for object in &page.items {
                let object = value(object)?;
                size += object.to_string().len();
                all.push(object);
            }
            let next = more(&page.metadata);
            if all.len() > MOST || size > LARGEST || (all.len() == MOST && next.is_some()) {
                return Err(format!(
                    "there are more than {MOST} {kind} in {cluster}, or more than {} MiB: narrow it by namespace or labelSelector",
                    LARGEST >> 20
                ));
            }
            match next {
                Some(token) => params = params.continue_token(&token),
                None => return Ok(Found::Many(all)),
            }
        }
    }

    fn objects(&self, client: Client, resource: &ApiResource) -> Api<DynamicObject> {
        match &self.spec.namespace {
            Some(namespace) => Api::namespaced_with(client, namespace, resource),
            None => Api::all_with(client, resource),
        }
    }

    async fn resource(&self, api: &ApiServers) -> Result<&ApiResource, Hindrance> {
        let (kind, cluster) = (&self.spec.kind, self.spec.cluster);
        let asked = || async {
            let (group, version) = self
                .spec
                .api_version
                .rsplit_once('/')
                .unwrap_or(("", &self.spec.api_version));
            let gvk = GroupVersionKind::gvk(group, version, kind);
            let what = format!("learn what {cluster} calls {kind} of {}", self.spec.api_version);
            let client = api.client();
            let found = api.within(what, oneshot::pinned_kind(&client, &gvk)).await;
            found.map_err(|error| match &error {
                ApiError::Unreachable { source, .. } if !matches!(source, kube::Error::Discovery(_)) => {
                    Hindrance::unknown(error.to_string())
                }
                ApiError::Late { .. } => Hindrance::unknown(error.to_string()),
                _ => Hindrance::block(format!("{error}: correct cel.apiVersion and cel.kind")),
            })
        };
        let (resource, capabilities) = self.served.get_or_try_init(asked).await?;
        match (&capabilities.scope, &self.spec.namespace, &self.spec.name) {
            (Scope::Cluster, Some(_), _) => Err(Hindrance::block(format!(
                "{kind} lies in no namespace: leave cel.namespace out"
            ))),
            (Scope::Namespaced, None, Some(_)) => Err(Hindrance::block(format!(
                "{kind} lies in a namespace: set cel.namespace"
            ))),
            _ => Ok(resource),
        }
    }
}

/// Whether our credentials suffice for what a gate does there.
pub(super) async fn allowed(
    api: &ApiServers,
    cluster: GateCluster,
    needed: &[Right],
) -> Result<(), Hindrance> {
    let missing = rights::lacking(api, &cluster.to_string(), needed).await;
    let missing = missing.map_err(|e| Hindrance::unknown(e.to_string()))?;
    if missing.is_empty() {
        return Ok(());
    }
    let missing: Vec<String> = missing.iter().map(ToString::to_string).collect();
    let text = missing.join(", nor ");
    Err(Hindrance::block(format!(
        "the credentials for {cluster} may not {text}: give them that right there"
    )))
}

fn value(object: &DynamicObject) -> Result<Value, String> {
    serde_json::to_value(object).map_err(|e| e.to_string())
}

/// A list that was cut goes on there.
fn more(of: &kube::core::ListMeta) -> Option<String> {
    of.continue_.clone().filter(|token| !token.is_empty())
}
