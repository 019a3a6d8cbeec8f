//! What gates reach besides the network: clusters and Secrets, as they are known now.

use std::collections::BTreeMap;
use std::sync::Arc;

use lockkeeper_crds::GateCluster;

use crate::api::ApiServers;
use crate::operator::cutovers::clusters::Link;
use crate::operator::cutovers::ground::Contents;

/// The clusters and the Secrets of one cutover.
#[derive(Clone)]
pub(in crate::operator::cutovers) struct Reach {
    pub(in crate::operator::cutovers) blue: Result<Link, String>,
    pub(in crate::operator::cutovers) green: Result<Link, String>,
    /// That in which the object lies.
    pub(in crate::operator::cutovers) own: ApiServers,
    pub(in crate::operator::cutovers) secrets: Arc<Contents>,
}

impl Reach {
    /// A cluster; it must answer, and be the one that the cutover began with.
    pub(super) fn cluster(&self, which: GateCluster) -> Result<ApiServers, String> {
        let link = match which {
            GateCluster::This => return Ok(self.own.clone()),
            GateCluster::Blue => &self.blue,
            GateCluster::Green => &self.green,
        };
        let link = link.as_ref().map_err(Clone::clone)?;
        let health = link.health();
        if !health.asked {
            return Err(format!("the API of {which} was not asked yet"));
        }
        match health.lost {
            Some(_) => Err(format!("the API of {which} does not answer: {}", health.message)),
            None => Ok(link.api.clone()),
        }
    }

    /// A key of a Secret as text, without the line's end that editors leave.
    pub(super) fn secret(&self, name: &str, key: &str) -> Result<String, String> {
        let content: &BTreeMap<String, Vec<u8>> = match self.secrets.get(name) {
            Some(Ok(content)) => content,
            Some(Err(why)) => return Err(why.clone()),
            None => return Err(format!("Secret {name} was not read")),
        };
        let bytes = content
            .get(key)
            .ok_or_else(|| format!("Secret {name} has no key `{key}`"))?;
        let text = std::str::from_utf8(bytes).map(str::trim).unwrap_or_default();
        if text.is_empty() {
            return Err(format!("key `{key}` of Secret {name} holds no text"));
        }
        Ok(text.to_owned())
    }
}
