//! What a cutover moves, and what moves it.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ClusterAccess;
use crate::LocalReference;

/// Shares of the traffic, in percent; together they are 100.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub struct Weights {
    /// Blue's.
    #[schemars(range(max = 100))]
    pub blue: u8,
    /// Green's.
    #[schemars(range(max = 100))]
    pub green: u8,
}

impl Weights {
    /// All of it is blue's.
    pub const BLUE: Self = Self { blue: 100, green: 0 };
    /// All of it is green's.
    pub const GREEN: Self = Self { blue: 0, green: 100 };

    /// Green's share, and the rest for blue; more than 100 is 100.
    #[must_use]
    pub const fn of_green(percent: u8) -> Self {
        let green = if percent > 100 { 100 } else { percent };
        Self {
            blue: 100 - green,
            green,
        }
    }
}

impl std::fmt::Display for Weights {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} % blue, {} % green", self.blue, self.green)
    }
}

/// What moves the traffic: one thing or several, which all get the same weights. A step is set when all of them say so.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.gatewayAPI) || has(self.haproxy) || has(self.dns) || has(self.externalDNS) || has(self.hook) || has(self.job)").message("spec.traffic must name what moves the traffic: gatewayAPI, haproxy, dns, externalDNS, hook or job"))]
pub struct Traffic {
    /// Routes of the Gateway API in a cluster at the edge.
    #[serde(default, rename = "gatewayAPI", skip_serializing_if = "Option::is_none")]
    pub gateway_api: Option<GatewayApiTraffic>,
    /// HAProxy in front of both clusters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub haproxy: Option<HaproxyTraffic>,
    /// A name in the DNS, whose addresses are changed by signed updates.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dns: Option<DnsTraffic>,
    /// Weighted records that external-dns publishes.
    #[serde(default, rename = "externalDNS", skip_serializing_if = "Option::is_none")]
    pub external_dns: Option<ExternalDnsTraffic>,
    /// Anything else, behind an HTTP endpoint of one's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hook: Option<HookTraffic>,
    /// Anything else, by Jobs of one's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<JobTraffic>,
}

impl Traffic {
    /// The Secrets in the operator's namespace that it names.
    #[must_use]
    pub fn secret_names(&self) -> Vec<&str> {
        let hook = self.hook.iter().filter_map(|hook| hook.token_secret.as_ref());
        let dns = self.dns.iter().map(|dns| &dns.tsig.secret);
        let gateway = self.gateway_api.iter().filter_map(|g| g.cluster.secret_name());
        let external = self.external_dns.iter().filter_map(|e| e.cluster.secret_name());
        let named = hook.chain(dns).map(|secret| secret.name.as_str());
        let job = self.job.iter().filter_map(|job| job.cluster.secret_name());
        named.chain(gateway).chain(external).chain(job).collect()
    }
}

/// Routes of the Gateway API (HTTPRoute, GRPCRoute, TLSRoute, TCPRoute) whose rules lead to a backend of each colour. Only
/// weights are changed, and only in rules that lead to both; a rule that leads to somebody else too is refused. A step
/// counts as set when every gateway that a route names has taken it, and is programmed.
///
/// Lists of rules have one owner in server-side apply: from the first step on it is the field manager
/// `lockkeeper-cutover`. Whatever applies the routes again, from Git for one, puts its own weights back: exempt
/// `spec.rules` there until the cutover has ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GatewayApiTraffic {
    /// The cluster in which the routes lie: that of the edge.
    pub cluster: ClusterAccess,
    /// The routes. All get the same weights.
    #[schemars(length(min = 1, max = 50))]
    pub routes: Vec<RouteRef>,
    /// Blue's backend, as the rules name it.
    pub blue: RouteBackend,
    /// Green's.
    pub green: RouteBackend,
    /// How long after a gateway said that it has taken a change the last of its proxies goes by it, in seconds: where
    /// its conditions tell of the control plane alone.
    #[serde(default)]
    #[schemars(range(max = 3600))]
    pub settles_in_seconds: u32,
}

/// A route.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RouteRef {
    /// Its kind.
    #[serde(default)]
    pub kind: RouteKind,
    /// Its namespace.
    #[schemars(length(min = 1, max = 63))]
    pub namespace: String,
    /// Its name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// The kinds of routes that have weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[allow(clippy::enum_variant_names)] // As the Gateway API names them.
pub enum RouteKind {
    /// Of HTTP requests.
    #[default]
    #[serde(rename = "HTTPRoute")]
    HttpRoute,
    /// Of gRPC calls.
    #[serde(rename = "GRPCRoute")]
    GrpcRoute,
    /// Of TLS connections.
    #[serde(rename = "TLSRoute")]
    TlsRoute,
    /// Of TCP connections.
    #[serde(rename = "TCPRoute")]
    TcpRoute,
}

impl std::fmt::Display for RouteKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::HttpRoute => "HTTPRoute",
            Self::GrpcRoute => "GRPCRoute",
            Self::TlsRoute => "TLSRoute",
            Self::TcpRoute => "TCPRoute",
        })
    }
}

/// A backend, as a route's `backendRefs` name it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RouteBackend {
    /// Its name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Its namespace. Absent: the route's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub namespace: Option<String>,
    /// Its kind.
    #[serde(default = "backend_kind")]
    #[schemars(length(min = 1, max = 63))]
    pub kind: String,
    /// Its API group; empty for Services.
    #[serde(default)]
    #[schemars(length(max = 253))]
    pub group: String,
}

fn backend_kind() -> String {
    "Service".to_owned()
}

/// HAProxy, told its servers' weights by its runtime API.
///
/// A reload of HAProxy forgets them and begins with those of its configuration: `load-server-state-from-file` keeps
/// them, and so does a configuration that is changed along.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HaproxyTraffic {
    /// The runtime API (`stats socket … level admin`) of *every* HAProxy of the edge: `host:port`, or the path of a
    /// socket in the operator's pod. It knows no password: let nobody else reach it.
    #[schemars(
        length(min = 1, max = 16),
        inner(regex(pattern = r"^(/[^ ;]+|[^ /;]+:[0-9]{1,5})$"), length(max = 253))
    )]
    pub endpoints: Vec<String>,
    /// The backend that has the servers of both colours. It must `balance roundrobin`, which alone keeps to weights
    /// exactly and lets them be changed.
    #[schemars(regex(pattern = r"^[A-Za-z0-9_.:-]+$"), length(max = 253))]
    pub backend: String,
    /// Blue's servers in the backend. They share blue's part in proportion to the weights of the configuration.
    #[schemars(
        length(min = 1, max = 64),
        inner(regex(pattern = r"^[A-Za-z0-9_.:-]+$"), length(max = 253))
    )]
    pub blue: Vec<String>,
    /// Green's servers in the backend.
    #[schemars(
        length(min = 1, max = 64),
        inner(regex(pattern = r"^[A-Za-z0-9_.:-]+$"), length(max = 253))
    )]
    pub green: Vec<String>,
    /// What becomes of the connections that a colour without a share still has. With `mode http` each request is
    /// given to a server of its own and the question does not arise.
    #[serde(default)]
    pub kept_connections: KeptConnections,
}

/// What becomes of the connections that a colour without a share still has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum KeptConnections {
    /// They stay until one end closes them.
    #[default]
    Leave,
    /// They are closed at once, with whatever is under way on them: for `mode tcp` and connections that never end,
    /// such as watches of a Kubernetes API.
    Close,
}

/// A name in the DNS. Plain addresses have no weights: a share is the part that a colour has of the addresses that are
/// published, and clients pick among these. With one address each there is 0 and 100 and nothing between; with two of
/// blue and two of green there are 0, 33, 50, 67 and 100. A step between these is refused before anything begins.
///
/// The TTL is lowered first, and the old one waited out. Clients that keep an answer beyond its TTL are beyond reach.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.cutoverTtlSeconds <= self.ttlSeconds").message("spec.traffic.dns.cutoverTtlSeconds must not be above ttlSeconds: it is the lower one, for the time of the cutover"))]
pub struct DnsTraffic {
    /// The name that clients ask for.
    #[schemars(
        regex(pattern = r"^([A-Za-z0-9_*]([A-Za-z0-9_-]*[A-Za-z0-9_])?\.)+[A-Za-z0-9-]+\.?$"),
        length(max = 253)
    )]
    pub name: String,
    /// The zone that it belongs to.
    #[schemars(
        regex(pattern = r"^([A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?\.)*[A-Za-z0-9-]+\.?$"),
        length(max = 253)
    )]
    pub zone: String,
    /// The server that takes updates: `host:port`. It is asked by TCP, as all are.
    #[schemars(regex(pattern = r"^[^ /;]+:[0-9]{1,5}$"), length(max = 253))]
    pub primary: String,
    /// Every server whose answers clients may get, `host:port`; the primary too, if it is no hidden one. Weights are
    /// set when all of them say so.
    #[schemars(
        length(min = 1, max = 16),
        inner(regex(pattern = r"^[^ /;]+:[0-9]{1,5}$"), length(max = 253))
    )]
    pub servers: Vec<String>,
    /// The key that signs the updates.
    pub tsig: Tsig,
    /// Blue's addresses, all IPv4 or all IPv6 as green's are.
    #[schemars(length(min = 1, max = 32), inner(length(max = 45)))]
    pub blue: Vec<String>,
    /// Green's addresses.
    #[schemars(length(min = 1, max = 32), inner(length(max = 45)))]
    pub green: Vec<String>,
    /// The record's TTL before and after the cutover, in seconds.
    #[schemars(range(min = 1, max = 86400))]
    pub ttl_seconds: u32,
    /// The record's TTL while the cutover is under way, in seconds. Each step takes twice as long at least.
    #[serde(default = "default_cutover_ttl")]
    #[schemars(range(min = 1, max = 3600))]
    pub cutover_ttl_seconds: u32,
}

fn default_cutover_ttl() -> u32 {
    30
}

/// A key for signed updates (RFC 8945).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Tsig {
    /// Its name, as the server knows it.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[A-Za-z0-9_.-]+$"))]
    pub name: String,
    /// What it signs with.
    #[serde(default)]
    pub algorithm: TsigAlgorithm,
    /// A Secret in the operator's namespace whose key `key` holds it in base64, as key files do.
    pub secret: LocalReference,
}

/// What a key signs with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum TsigAlgorithm {
    /// HMAC with SHA-256.
    #[default]
    HmacSha256,
    /// HMAC with SHA-384.
    HmacSha384,
    /// HMAC with SHA-512.
    HmacSha512,
}

/// A `DNSEndpoint` of external-dns with one weighted record of each colour for a name, or for several, told apart by
/// their `setIdentifier`. Only weights are changed. A name that has a record of somebody else too is refused.
///
/// A step counts as set when external-dns has read it (`status.observedGeneration`); what the provider answers by then
/// cannot be read by anybody, so `settlesInSeconds` must cover the provider's own delay and the records' TTL.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ExternalDnsTraffic {
    /// The cluster in which the object lies.
    pub cluster: ClusterAccess,
    /// Its namespace.
    #[schemars(length(min = 1, max = 63))]
    pub namespace: String,
    /// Its name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// The `setIdentifier` of blue's records.
    #[schemars(length(min = 1, max = 128))]
    pub blue: String,
    /// Of green's.
    #[schemars(length(min = 1, max = 128))]
    pub green: String,
    /// What the provider calls a weight among `providerSpecific`. external-dns drops what bears another provider's name
    /// before the `/`.
    #[serde(default = "weight_property")]
    #[schemars(length(min = 1, max = 253))]
    pub weight_property: String,
    /// How long after external-dns has read a change the last client heeds it, in seconds: the provider's own delay and
    /// the records' TTL. Each step takes twice as long at least.
    #[serde(default = "external_dns_settles")]
    #[schemars(range(max = 172_800))]
    pub settles_in_seconds: u32,
}

fn weight_property() -> String {
    "aws/weight".to_owned()
}

const fn external_dns_settles() -> u32 {
    120
}

/// An HTTP endpoint that knows how to move the traffic of a load balancer which Lockkeeper does not know.
///
/// - `GET url` answers 200 and `{"blue": 75, "green": 25}`: what is set, read at the load balancer itself and not what
///   was asked for last. Any other answer says that the weights are unknown.
/// - `PUT url` with such a body sets these weights and answers 2xx; set twice is set once. It may answer before they
///   are set: `GET` is asked until it tells them.
/// - `PUT url?dryRun=true` answers as `PUT` would and changes nothing.
///
/// Each must answer within 4 s. Redirects are not followed.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.tokenSecret) || self.url.startsWith('https://')").message("spec.traffic.hook.url must begin with https:// where a tokenSecret is named: anything else sends the token in the clear"))]
pub struct HookTraffic {
    /// The endpoint; one URL is one target.
    #[schemars(regex(pattern = r"^https?://[^ ?#@]+$"), length(max = 2048))]
    pub url: String,
    /// A Secret in the operator's namespace whose key `token` goes along as `Authorization: Bearer …`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_secret: Option<LocalReference>,
    /// Certificates in PEM that the endpoint's is signed with, for one of one's own CA. Absent: the image's own set of
    /// public ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 65536))]
    pub ca_bundle: Option<String>,
    /// How long after a change the last client heeds it, in seconds: twice the TTL where names are cached.
    #[serde(default)]
    #[schemars(range(max = 172_800))]
    pub settles_in_seconds: u32,
}

/// Jobs that know how to move the traffic of a load balancer which Lockkeeper does not know: one is made from `template` each
/// time that weights are set or read.
///
/// What a Job is to do stands in the environment of its containers, as `LOCKKEEPER_ACTION`:
///
/// - `set`: set `LOCKKEEPER_BLUE` and `LOCKKEEPER_GREEN` (percent). Set twice is set once.
/// - `get`: change nothing.
/// - `check`, before anything begins: change nothing, and fail where `set` could not be done.
///
/// Each ends with exit code 0, and one of its containers leaves `{"blue": 75, "green": 25}` as its termination message
/// (`/dev/termination-log`): what is set by then, read at the load balancer itself and not what was asked for. Anything else says
/// that the weights are unknown; a Job that failed is made again after some seconds.
///
/// One works at a time. A `get` or a `check` is told to end as soon as something is to be set. So is a `set` when something else
/// is, and its pods are waited for until they have ended: nothing old is ever set after something new. A way back takes as long as
/// that and a Job together, not an instant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct JobTraffic {
    /// The cluster in which they run.
    pub cluster: ClusterAccess,
    /// In which namespace. Whoever may make Jobs there may use its ServiceAccounts and Secrets: give them one of their own.
    #[schemars(
        length(min = 1, max = 63),
        regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
    )]
    pub namespace: String,
    /// What they move, in a word. They are named after it, and bear it as their label `lockkeeper.dev/traffic`; a name in a
    /// namespace is one target.
    #[schemars(
        length(min = 1, max = 40),
        regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
    )]
    pub name: String,
    /// The Job, as in a `CronJob`'s `jobTemplate`: `metadata` with labels and annotations, and `spec`.
    #[schemars(schema_with = "super::job_template")]
    pub template: serde_json::Value,
    /// Seconds that one may take altogether (`activeDeadlineSeconds`), the pulling of its image included. A step has so much
    /// longer to be seen.
    #[serde(default = "job_traffic_timeout")]
    #[schemars(range(min = 5, max = 3600))]
    pub timeout_seconds: u32,
    /// Seconds after which what was read last is read anew.
    #[serde(default = "job_traffic_read_every")]
    #[schemars(range(min = 10, max = 3600))]
    pub read_every_seconds: u32,
    /// How long after a change the last client heeds it, in seconds: twice the TTL where names are cached.
    #[serde(default)]
    #[schemars(range(max = 172_800))]
    pub settles_in_seconds: u32,
}

const fn job_traffic_timeout() -> u32 {
    60
}

const fn job_traffic_read_every() -> u32 {
    30
}
