//! All that an etcd holds at a revision, so that two of them can be compared whole. Of values only hashes are kept, and
//! what differs is told by the key's name: some are Secrets.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use base64::Engine as _;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::cache::hex;
use crate::node::Node;

/// So many keys are named.
const NAMED: usize = 10;

/// What etcd tells of a key.
#[derive(Debug, Deserialize)]
struct Told {
    key: String,
    create_revision: i64,
    #[serde(flatten)]
    about: About,
    /// None of an empty one.
    #[serde(default)]
    value: String,
}

/// When and how often it was written, and which of etcd's leases it hangs on.
#[derive(Debug, PartialEq, Eq, Deserialize)]
struct About {
    mod_revision: i64,
    version: i64,
    #[serde(default)]
    lease: i64,
}

#[derive(Debug)]
struct Held {
    created: i64,
    about: About,
    sha256: String,
}

/// Every key, by its name.
#[derive(Debug)]
pub(super) struct Contents(BTreeMap<String, Held>);

impl Contents {
    /// What the member of this node holds at a revision, of its own data alone. 0: the newest.
    pub(super) fn of(node: &Node, revision: i64) -> Result<Self> {
        let at = format!("--rev={revision}");
        let words = ["get", "", "--prefix", "--consistency=s", "-w", "json", &at];
        let said = node.etcdctl(&words)?.output()?;
        if !said.success() {
            bail!(
                "etcd of {} does not tell what it holds at revision {revision}: {}",
                node.name(),
                said.stderr
            );
        }
        Self::told(&said.stdout)
    }

    fn told(json: &str) -> Result<Self> {
        #[derive(Deserialize)]
        struct Answer {
            kvs: Vec<Told>,
        }
        let answer: Answer = serde_json::from_str(json).context("etcdctl's answer")?;
        let keys = answer.kvs.into_iter().map(|told| {
            let key = base64::engine::general_purpose::STANDARD.decode(&told.key)?;
            let held = Held {
                created: told.create_revision,
                about: told.about,
                sha256: hex(&Sha256::digest(&told.value)),
            };
            Ok((key.escape_ascii().to_string(), held))
        });
        Ok(Self(keys.collect::<Result<_>>()?))
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// The keys below a prefix, and the revision at which each was made.
    pub(super) fn below<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = (&'a str, i64)> {
        let below = self.0.iter().filter(move |(key, _)| key.starts_with(prefix));
        below.map(|(key, held)| (key.as_str(), held.created))
    }

    /// Fails where `other` is not the same to the byte and the revision, and names the keys.
    pub(super) fn is_all_of(&self, other: &Self) -> Result<()> {
        let missing = self.0.keys().filter(|key| !other.0.contains_key(*key));
        let mut differs: Vec<String> = missing.map(|key| format!("{key} is missing")).collect();
        for (key, held) in &other.0 {
            let what = match self.0.get(key) {
                None => "was not there",
                Some(then) if then.sha256 != held.sha256 => "has another value",
                Some(then) if (then.created, &then.about) != (held.created, &held.about) => {
                    "has another revision, version or lease"
                }
                Some(_) => continue,
            };
            differs.push(format!("{key} {what}"));
        }
        if differs.is_empty() {
            return Ok(());
        }
        let named: Vec<&str> = differs.iter().take(NAMED).map(String::as_str).collect();
        bail!(
            "{} of {} keys differ: {}",
            differs.len(),
            self.len(),
            named.join(", ")
        )
    }
}

/// The revision that etcd has compacted up to.
pub(super) fn compacted(node: &Node) -> Result<i64> {
    #[derive(Deserialize)]
    struct Endpoint {
        #[serde(rename = "HashKV")]
        hash: Hash,
    }
    #[derive(Deserialize)]
    struct Hash {
        compact_revision: i64,
    }
    let said = node.etcdctl(&["endpoint", "hashkv", "-w", "json"])?.check()?;
    let told: Vec<Endpoint> = serde_json::from_str(&said).with_context(|| said.clone())?;
    let one = told.into_iter().next().context("no member tells its hash")?;
    Ok(one.hash.compact_revision)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn contents(all: &[(&str, i64, &str)]) -> Contents {
        let encode = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
        let kvs: Vec<Value> = all
            .iter()
            .map(|(key, changed, value)| {
                json!({"key": encode(key), "create_revision": 2, "mod_revision": changed, "version": 1,
                    "value": encode(value)})
            })
            .collect();
        Contents::told(&json!({"header": {}, "kvs": kvs, "count": kvs.len()}).to_string()).unwrap()
    }

    #[test]
    fn each_kind_of_difference_is_named_and_no_value_is_told() {
        let then = contents(&[("/a", 2, "secret"), ("/b", 3, "secret"), ("/c", 4, "secret")]);
        then.is_all_of(&then).unwrap();
        assert_eq!(then.below("/b").collect::<Vec<_>>(), [("/b", 2)]);
        let now = contents(&[("/b", 3, "other"), ("/c", 5, "secret"), ("/d", 6, "secret")]);
        let told = then.is_all_of(&now).unwrap_err().to_string();
        for says in [
            "4 of 3 keys differ",
            "/a is missing",
            "/b has another value",
            "/c has another revision",
            "/d was not there",
        ] {
            assert!(told.contains(says), "{says}: {told}");
        }
        assert!(!told.contains("secret") && !told.contains("other,"), "{told}");
    }
}
