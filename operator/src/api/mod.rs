//! A Kubernetes client that outlives any one API server.
//!
//! What comes in: the pod's service account (or a kubeconfig) and the addresses of API servers.
//! What goes out: [`kube::Client`]s. May touch: API servers.
//!
//! | file | what |
//! | --- | --- |
//! | `address` | `host:port` |
//! | `endpoints` | which servers, in which order, and what is remembered of each |
//! | `connect` | dials the first that answers; connections that notice when their server is gone |
//! | `call` | one request, with an end to its patience |
//! | `kubeconfig` | another cluster's, from a text that somebody else wrote |
//! | `within` | the limit on every call, and the error for a person |

mod address;
mod call;
mod connect;
mod endpoints;
mod kubeconfig;
mod within;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fmt::Display;
use std::future::Future;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use kube::client::ConfigExt as _;
use kube::client::retry::RetryPolicy;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use rustls::pki_types::ServerName;
use tower::ServiceBuilder;
use tower::retry::RetryLayer;

pub use address::{Address, AddressError};
pub use call::{CallError, chain, explain};
pub use connect::NobodyAnswers;
pub use endpoints::{Endpoints, FAILURE_MEMORY};
pub use within::{ApiError, CALL_LIMIT, within};

/// In the certificate of every API server that kubeadm makes, and in those that it makes for itself; so
/// one name verifies any of them, at whatever address.
pub const SERVER_NAME: &str = "kubernetes.default.svc";

/// Until a server that took a request is given up. Lockkeeper asks for small things; the slowest is a
/// write that waits for etcd to elect a leader (some 3 s).
pub const ANSWER_LIMIT: Duration = Duration::from_secs(8);

/// As [`ANSWER_LIMIT`], for the clients that ask one server how it is.
pub const PROBE_LIMIT: Duration = Duration::from_millis(2500);

/// Idle connections are kept no longer than this: a dead one among them costs a request.
const POOL_IDLE: Duration = Duration::from_secs(30);
const POOL_SIZE: usize = 4;

/// No client could be made.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// Neither in a pod nor with a kubeconfig.
    #[error(
        "no way to an API server: {0}; run in a pod with a service account, or name a kubeconfig with --kubeconfig"
    )]
    InCluster(#[source] kube::config::InClusterError),
    /// The kubeconfig cannot be read or lacks something.
    #[error("the kubeconfig {path} is of no use: {source}")]
    Kubeconfig {
        /// Where it lies.
        path: String,
        /// What is wrong with it.
        #[source]
        source: kube::config::KubeconfigError,
    },
    /// A kubeconfig of somebody else reaches beyond its text.
    #[error("the kubeconfig in the Secret asks for {0}")]
    Foreign(&'static str),
    /// The server's URL is not one that can be used.
    #[error("the API server's URL {url} is of no use: {why}; write https://host:port")]
    Url {
        /// The URL.
        url: String,
        /// What is wrong with it.
        why: String,
    },
    /// Certificates, keys, tokens, the server's name.
    #[error("cannot prepare TLS or credentials: {0}")]
    Credentials(#[source] Box<kube::Error>),
    /// The server's name.
    #[error("tls-server-name {name:?} is no name: {source}")]
    ServerName {
        /// As written.
        name: String,
        /// Why not.
        #[source]
        source: rustls::pki_types::InvalidDnsNameError,
    },
}

/// The API servers of the cluster that this process works in. Cheap to clone.
///
/// # Guarantees
/// * A request goes to any server that answers; which, decides [`Endpoints`].
/// * A server that leaves a request unanswered for [`ANSWER_LIMIT`] is given up: its connections end,
///   watches included, and the next request goes to another.
/// * All connections are with one server: they end [`ANSWER_LIMIT`] after another one has answered, watches too. So
///   whoever asks something now and then notices for all of them that a server hangs.
/// * A node that was powered off is noticed on every connection within 15 s (keepalive, TCP user timeout).
/// * 429, 503 and 504 are tried again twice within half a second, not for minutes as kube does.
///
/// # Caveats
/// A stopped process whose kernel still acknowledges is noticed by requests only: a watch alone learns of
/// it after 300 s. Who watches must also ask something now and then.
#[derive(Clone)]
pub struct ApiServers {
    shared: Arc<Shared>,
}

struct Shared {
    config: Config,
    tls: Arc<rustls::ClientConfig>,
    name: ServerName<'static>,
    endpoints: Endpoints,
    client: Client,
    bound: Mutex<HashMap<Address, Client>>,
}

impl ApiServers {
    /// From a kubeconfig when one is named, else from the pod's service account. `first` goes before
    /// every other address: an agent's own node.
    ///
    /// # Errors
    /// When there are no usable credentials. It does not connect: an API that is away is no error here.
    pub async fn connect(kubeconfig: Option<&Path>, first: Option<Address>) -> Result<Self, SetupError> {
        let config = match kubeconfig {
            None => Config::incluster().map_err(SetupError::InCluster)?,
            Some(path) => from_file(path).await.map_err(|source| SetupError::Kubeconfig {
                path: path.display().to_string(),
                source,
            })?,
        };
        Self::from_config(config, first)
    }

    /// From kube's configuration; the host in its URL becomes the last address to try.
    ///
    /// # Errors
    /// When the URL, the certificates or the credentials cannot be used.
    pub fn from_config(mut config: Config, first: Option<Address>) -> Result<Self, SetupError> {
        let last = address_of(&config.cluster_url)?;
        let name = config
            .tls_server_name
            .clone()
            .unwrap_or_else(|| SERVER_NAME.to_owned());
        config.cluster_url = with_host(&config.cluster_url, SERVER_NAME)?;
        let name =
            ServerName::try_from(name.clone()).map_err(|source| SetupError::ServerName { name, source })?;
        let mut tls = config
            .rustls_client_config()
            .map_err(|error| SetupError::Credentials(Box::new(error)))?;
        // One request a connection: a server that hangs then costs that request, not all of them.
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        let tls = Arc::new(tls);
        let endpoints = Endpoints::new(first, Some(last));
        let client = build(&config, &tls, &name, endpoints.clone(), Patience::Enduring)?;
        Ok(Self {
            shared: Arc::new(Shared {
                config,
                tls,
                name,
                endpoints,
                client,
                bound: Mutex::default(),
            }),
        })
    }

    /// A client for any server that answers.
    #[must_use]
    pub fn client(&self) -> Client {
        self.shared.client.clone()
    }

    /// A client for exactly this server: no fallback, no retry, [`PROBE_LIMIT`]. Kept for the next time.
    ///
    /// # Errors
    /// When the credentials have become unusable.
    pub fn client_for(&self, address: &Address) -> Result<Client, SetupError> {
        let shared = &self.shared;
        let mut bound = shared.bound.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = bound.get(address) {
            return Ok(client.clone());
        }
        let client = build(
            &shared.config,
            &shared.tls,
            &shared.name,
            Endpoints::only(address.clone()),
            Patience::Probing,
        )?;
        bound.insert(address.clone(), client.clone());
        Ok(client)
    }

    /// The servers, to be updated as they are learned.
    #[must_use]
    pub fn endpoints(&self) -> &Endpoints {
        &self.shared.endpoints
    }

    /// The namespace that the service account or the kubeconfig's context names.
    #[must_use]
    pub fn default_namespace(&self) -> &str {
        &self.shared.config.default_namespace
    }

    /// Awaits one call for at most [`CALL_LIMIT`]. `what` completes the sentence "could not …".
    ///
    /// # Errors
    /// [`ApiError`], with `what` and the servers in it.
    pub async fn within<T>(
        &self,
        what: impl Display,
        call: impl Future<Output = Result<T, kube::Error>>,
    ) -> Result<T, ApiError> {
        within(CALL_LIMIT, what, &self.shared.endpoints, call).await
    }
}

async fn from_file(path: &Path) -> Result<Config, kube::config::KubeconfigError> {
    let kubeconfig = Kubeconfig::read_from(path)?;
    Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await
}

fn address_of(url: &http::Uri) -> Result<Address, SetupError> {
    let refuse = |why: String| SetupError::Url {
        url: url.to_string(),
        why,
    };
    if url.scheme_str() != Some("https") {
        return Err(refuse("it is not https".to_owned()));
    }
    let host = url.host().ok_or_else(|| refuse("it names no host".to_owned()))?;
    Address::new(host, url.port_u16().unwrap_or(443)).map_err(|error| refuse(error.to_string()))
}

/// The same URL with another host: hyper keeps its pool by host, and ours stands for all servers.
fn with_host(url: &http::Uri, host: &str) -> Result<http::Uri, SetupError> {
    let path = url.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
    http::Uri::builder()
        .scheme("https")
        .authority(host)
        .path_and_query(path)
        .build()
        .map_err(|error| SetupError::Url {
            url: url.to_string(),
            why: error.to_string(),
        })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Patience {
    /// For work: two quick retries on 429, 503 and 504.
    Enduring,
    /// For gates, which want to know what the server itself says.
    Probing,
}

fn build(
    config: &Config,
    tls: &Arc<rustls::ClientConfig>,
    name: &ServerName<'static>,
    endpoints: Endpoints,
    patience: Patience,
) -> Result<Client, SetupError> {
    let credentials = |error| SetupError::Credentials(Box::new(error));
    let http = HttpClient::builder(TokioExecutor::new())
        .pool_idle_timeout(POOL_IDLE)
        .pool_max_idle_per_host(POOL_SIZE)
        .pool_timer(TokioTimer::new())
        .build(connect::Dialer::new(
            endpoints.clone(),
            Arc::clone(tls),
            name.clone(),
        ));
    let retry = (patience == Patience::Enduring)
        .then(|| RetryPolicy::new(Duration::from_millis(100), Duration::from_millis(400), 2, false).ok())
        .flatten()
        .map(RetryLayer::new);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(retry)
        .option_layer(config.auth_layer().map_err(credentials)?)
        .layer(config.extra_headers_layer().map_err(credentials)?)
        .service(call::Caller {
            http,
            endpoints,
            limit: match patience {
                Patience::Enduring => ANSWER_LIMIT,
                Patience::Probing => PROBE_LIMIT,
            },
        });
    Ok(Client::new(service, config.default_namespace.clone()))
}
