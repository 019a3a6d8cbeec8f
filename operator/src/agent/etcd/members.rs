//! Who belongs to the cluster, and changes of it: what a rescue needs when no API server answers.

use super::{ANSWER, EtcdError, EtcdMember, linearizable_read, status, within};

/// Adding, removing and promoting wait for the quorum to apply them.
const CHANGE: std::time::Duration = std::time::Duration::from_secs(10);

/// A member as etcd lists it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Listed {
    #[serde(serialize_with = "hexadecimal")]
    pub(crate) id: u64,
    /// Empty for one that was added and has not been started.
    pub(crate) name: String,
    pub(crate) peer_urls: Vec<String>,
    pub(crate) client_urls: Vec<String>,
    pub(crate) learner: bool,
}

fn hexadecimal<S: serde::Serializer>(id: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{id:x}"))
}

/// A member's own word on where it stands; it answers without a quorum.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Standing {
    #[serde(serialize_with = "hexadecimal")]
    pub(crate) cluster_id: u64,
    #[serde(serialize_with = "hexadecimal")]
    pub(crate) member_id: u64,
    pub(crate) version: String,
    pub(crate) term: u64,
    /// Committed.
    pub(crate) index: u64,
    pub(crate) applied: u64,
    /// None: it knows no leader.
    pub(crate) leader: Option<u64>,
    pub(crate) learner: bool,
    pub(crate) size: i64,
}

impl EtcdMember {
    /// Every member, as the one that is asked knows them; needs no quorum.
    pub(crate) async fn members(&self) -> Result<Vec<Listed>, EtcdError> {
        let client = self.client().await?;
        let mut cluster = client.cluster_client();
        let answer = within(ANSWER, "list its members", cluster.member_list()).await?;
        Ok(listed(answer.members()))
    }

    /// How the member stands; needs no quorum.
    pub(crate) async fn standing(&self) -> Result<Standing, EtcdError> {
        let client = self.client().await?;
        let told = status(&client).await?;
        let header = told.header();
        Ok(Standing {
            cluster_id: header.map_or(0, etcd_client::ResponseHeader::cluster_id),
            member_id: header.map_or(0, etcd_client::ResponseHeader::member_id),
            version: told.version().to_owned(),
            term: told.raft_term(),
            index: told.raft_index(),
            applied: told.raft_applied_index(),
            leader: Some(told.leader()).filter(|id| *id != 0),
            learner: told.is_learner(),
            size: told.db_size(),
        })
    }

    /// A read that the quorum agrees to; returns the revision.
    pub(crate) async fn agrees(&self) -> Result<i64, EtcdError> {
        let client = self.client().await?;
        let read = linearizable_read(&client).await;
        if read.is_err() {
            self.forget();
        }
        read
    }

    /// Adds a learner with this peer URL, and returns its id.
    pub(crate) async fn add_learner(&self, peer_url: &str) -> Result<u64, EtcdError> {
        let client = self.client().await?;
        let mut cluster = client.cluster_client();
        let options = etcd_client::MemberAddOptions::new().with_is_learner();
        let call = cluster.member_add([peer_url.to_owned()], Some(options));
        let answer = within(CHANGE, "add a learner", call).await?;
        Ok(answer.member().map_or(0, etcd_client::Member::id))
    }

    /// Removes a member.
    pub(crate) async fn remove_member(&self, id: u64) -> Result<(), EtcdError> {
        let client = self.client().await?;
        let mut cluster = client.cluster_client();
        within(CHANGE, "remove a member", cluster.member_remove(id))
            .await
            .map(drop)
    }

    /// Makes a learner a voting member; etcd refuses while it is not in sync.
    pub(crate) async fn promote(&self, id: u64) -> Result<(), EtcdError> {
        let client = self.client().await?;
        let mut cluster = client.cluster_client();
        within(CHANGE, "promote the learner", cluster.member_promote(id))
            .await
            .map(drop)
    }
}

fn listed(members: &[etcd_client::Member]) -> Vec<Listed> {
    let mut all: Vec<Listed> = members
        .iter()
        .map(|member| Listed {
            id: member.id(),
            name: member.name().to_owned(),
            peer_urls: member.peer_urls().to_vec(),
            client_urls: member.client_urls().to_vec(),
            learner: member.is_learner(),
        })
        .collect();
    all.sort_by(|a, b| (&a.name, a.id).cmp(&(&b.name, b.id)));
    all
}
