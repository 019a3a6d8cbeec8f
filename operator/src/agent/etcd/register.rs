//! The restored etcd as the register of a restore: who is up, who is ready, what was decided.
//!
//! Keys lie outside of `/registry/`, so that no API server sees them: `/lockkeeper.dev/restore/<id>/…`. Each write is
//! one transaction with its condition in it; a read is linearizable, so a decision that was seen is final.

use std::collections::BTreeSet;
use std::time::Duration;

use etcd_client::{
    AlarmAction, AlarmType, Client, Compare, CompareOp, DeleteOptions, GetOptions, Txn, TxnOp, TxnOpResponse,
};
use lockkeeper_policies::NodeName;
use lockkeeper_policies::restore::{Decision, Register};

use super::{ANSWER, EtcdError, EtcdMember, alarms, within};

/// Below it everything that restores write.
pub(crate) const ROOT: &str = "/lockkeeper.dev/restore/";

/// API servers' entries of themselves, and every Lease: both tell of processes of the backup's time.
const STALE: [&str; 2] = ["/registry/masterleases/", "/registry/leases/"];

/// For deleting those.
const CLEANSE: Duration = Duration::from_secs(20);

/// For one page of keys.
const PAGE: Duration = Duration::from_secs(10);

/// A page of keys is some 100 KiB.
const PAGE_KEYS: i64 = 1000;

/// What one read of the register says.
#[derive(Clone, Debug)]
pub(crate) struct Reading {
    /// Of the cluster that answered, hexadecimal.
    pub(crate) cluster_id: String,
    /// etcd's revision.
    pub(crate) revision: i64,
    /// What stands there.
    pub(crate) register: Register,
}

/// What was taken out of the restored etcd.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cleansed {
    /// API servers' entries of themselves, and Leases.
    pub keys: i64,
    /// Alarms that were disarmed, with the member that each names.
    pub alarms: Vec<String>,
}

/// A key and when it was made and last changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KeySeen {
    pub(crate) key: Vec<u8>,
    pub(crate) create_revision: i64,
    pub(crate) mod_revision: i64,
}

fn key(id: &str, rest: &str) -> String {
    format!("{ROOT}{id}/{rest}")
}

/// True when nothing was decided.
fn undecided(id: &str) -> Compare {
    Compare::create_revision(key(id, "decision"), CompareOp::Equal, 0)
}

fn word(decision: Decision) -> &'static str {
    match decision {
        Decision::Commit => "commit",
        Decision::Undo => "undo",
    }
}

impl EtcdMember {
    /// Reads the register through this member, linearizably.
    ///
    /// # Errors
    /// When the member is absent, cannot be asked, or has no quorum.
    pub(crate) async fn register(&self, id: &str) -> Result<Reading, EtcdError> {
        let client = self.client().await?;
        let read = read(&client, id).await;
        if read.is_err() {
            self.forget();
        }
        read
    }

    /// A linearizable read through this member: the cluster's id and revision.
    ///
    /// # Errors
    /// When the member is absent, cannot be asked, or has no quorum.
    pub(crate) async fn whole(&self) -> Result<(String, i64), EtcdError> {
        let reading = self.register("none").await?;
        Ok((reading.cluster_id, reading.revision))
    }

    /// Writes that `node` is up, or ready, unless something was decided. True when it stands there now.
    ///
    /// # Errors
    /// As [`EtcdMember::register`]; it may then have been written all the same.
    pub(crate) async fn sign(&self, id: &str, what: Signature, node: &NodeName) -> Result<bool, EtcdError> {
        let put = TxnOp::put(key(id, &format!("{}/{node}", what.folder())), "1", None);
        let txn = Txn::new().when([undecided(id)]).and_then([put]);
        self.transact("sign", txn).await
    }

    /// Writes the decision unless there is one; a commit only if every one of `nodes` is ready.
    ///
    /// # Errors
    /// As [`EtcdMember::sign`].
    pub(crate) async fn propose(
        &self,
        id: &str,
        decision: Decision,
        nodes: &BTreeSet<NodeName>,
    ) -> Result<bool, EtcdError> {
        let mut conditions = vec![undecided(id)];
        if decision == Decision::Commit {
            conditions.extend(nodes.iter().map(|node| {
                let ready = key(id, &format!("{}/{node}", Signature::Ready.folder()));
                Compare::create_revision(ready, CompareOp::Greater, 0)
            }));
        }
        let put = TxnOp::put(key(id, "decision"), word(decision), None);
        self.transact("decide", Txn::new().when(conditions).and_then([put]))
            .await
    }

    async fn transact(&self, doing: &'static str, txn: Txn) -> Result<bool, EtcdError> {
        let client = self.client().await?;
        let answer = within(ANSWER, doing, client.kv_client().txn(txn)).await?;
        Ok(answer.succeeded())
    }

    /// Takes out of the restored etcd what tells of the backup's time: alarms of lacking space, API servers'
    /// entries of themselves, Leases; and what other restores wrote.
    ///
    /// # Errors
    /// When the member is absent, cannot be asked, has no quorum, or has the alarm CORRUPT; it is done again then.
    pub async fn cleanse(&self, id: &str) -> Result<Cleansed, EtcdError> {
        let client = self.client().await?;
        let mut done = Cleansed::default();
        let mut maintenance = client.maintenance_client();
        let listed = maintenance.alarm(AlarmAction::Get, AlarmType::None, None);
        let listed = within(ANSWER, "list its alarms", listed).await?;
        for alarm in listed.alarms().iter().filter(|a| a.alarm() == AlarmType::Nospace) {
            // The member it names is one of the backup's time; etcd takes its id all the same (facts.md 3.2).
            let mut options = etcd_client::AlarmOptions::new();
            options.with_member(alarm.member_id());
            let disarm = maintenance.alarm(AlarmAction::Deactivate, AlarmType::Nospace, Some(options));
            within(ANSWER, "disarm an alarm", disarm).await?;
            done.alarms.push(format!("NOSPACE on {:x}", alarm.member_id()));
        }
        let all = || DeleteOptions::new().with_prefix();
        let own = key(id, "");
        let others = [
            // From the root to this restore, and from its end to the root's.
            TxnOp::delete(ROOT, Some(DeleteOptions::new().with_range(own.clone()))),
            TxnOp::delete(end(&own), Some(DeleteOptions::new().with_range(end(ROOT)))),
        ];
        let mut operations: Vec<TxnOp> = STALE
            .iter()
            .map(|prefix| TxnOp::delete(*prefix, Some(all())))
            .collect();
        operations.extend(others);
        operations.push(TxnOp::put(key(id, "cleansed"), "1", None));
        let txn = Txn::new().when([undecided(id)]).and_then(operations);
        let answer = within(CLEANSE, "clear stale entries", client.kv_client().txn(txn)).await?;
        let deleted = answer.op_responses().into_iter().take(STALE.len());
        done.keys = deleted
            .map(|response| match response {
                TxnOpResponse::Delete(deleted) => deleted.deleted(),
                _ => 0,
            })
            .sum();
        Ok(done)
    }

    /// Goes through all keys, in order, a page at a time. Serializable: it burdens no other member.
    ///
    /// # Errors
    /// When the member is absent or cannot be asked, or `each` fails.
    pub(crate) async fn each_key(
        &self,
        mut each: impl FnMut(KeySeen) -> std::io::Result<()>,
    ) -> Result<(), EtcdError> {
        let client = self.client().await?;
        let mut kv = client.kv_client();
        let mut from = vec![0_u8];
        loop {
            let options = GetOptions::new()
                .with_from_key()
                .with_keys_only()
                .with_serializable()
                .with_limit(PAGE_KEYS);
            let mut page = within(PAGE, "list its keys", kv.get(from.clone(), Some(options))).await?;
            let more = page.more();
            for seen in page.take_kvs() {
                from = seen.key().to_vec();
                let seen = KeySeen {
                    key: from.clone(),
                    create_revision: seen.create_revision(),
                    mod_revision: seen.mod_revision(),
                };
                each(seen).map_err(|source| EtcdError::File {
                    path: "the list of keys".into(),
                    source,
                })?;
            }
            if !more {
                return Ok(());
            }
            // The next key there can be.
            from.push(0);
        }
    }
}

/// What a node signs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Signature {
    Up,
    Ready,
}

impl Signature {
    const fn folder(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Ready => "ready",
        }
    }
}

/// The first key after all that begin with this.
fn end(prefix: &str) -> Vec<u8> {
    let mut bytes = prefix.as_bytes().to_vec();
    // No prefix of ours ends in 0xff.
    if let Some(last) = bytes.last_mut() {
        *last += 1;
    }
    bytes
}

async fn read(client: &Client, id: &str) -> Result<Reading, EtcdError> {
    let prefix = key(id, "");
    let get = GetOptions::new().with_prefix();
    let mut kv = client.kv_client();
    let answer = within(ANSWER, "read linearizably", kv.get(prefix.clone(), Some(get))).await?;
    let mut register = Register::default();
    for pair in answer.kvs() {
        let name = String::from_utf8_lossy(pair.key()).into_owned();
        let Some(name) = name.strip_prefix(&prefix) else {
            continue;
        };
        match name.split_once('/') {
            Some(("up", node)) => {
                register.up.insert(NodeName::from(node));
            }
            Some(("ready", node)) => {
                register.ready.insert(NodeName::from(node));
            }
            _ if name == "cleansed" => register.cleansed = true,
            _ if name == "decision" => {
                register.decision = match pair.value() {
                    b"commit" => Some(Decision::Commit),
                    // Whatever else stands there, it is no commit.
                    _ => Some(Decision::Undo),
                };
            }
            _ => {}
        }
    }
    register.corrupt = alarms(client).await?.iter().any(|a| a.starts_with("CORRUPT"));
    let header = answer.header();
    Ok(Reading {
        cluster_id: super::id(header.map(etcd_client::ResponseHeader::cluster_id)),
        revision: header.map_or(0, etcd_client::ResponseHeader::revision),
        register,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_prefix_is_behind_all_its_keys() {
        assert!(end(ROOT) > format!("{ROOT}zzz").into_bytes());
        assert!(
            end(ROOT) < b"/lockkeeper.dev/restorf".to_vec()
                || end(ROOT) == b"/lockkeeper.dev/restore0".to_vec()
        );
        assert_eq!(key("a", "decision"), "/lockkeeper.dev/restore/a/decision");
    }
}
