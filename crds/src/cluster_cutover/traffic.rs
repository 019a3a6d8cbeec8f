//! What a cutover moves, and what moves it.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

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

/// What moves the traffic.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.haproxy)").message("spec.traffic must name what moves the traffic: set spec.traffic.haproxy"))]
pub struct Traffic {
    /// HAProxy in front of both clusters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub haproxy: Option<HaproxyTraffic>,
}

impl Traffic {
    /// The Secrets in the operator's namespace that it names.
    #[must_use]
    pub const fn secret_names(&self) -> Vec<&str> {
        Vec::new()
    }
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
