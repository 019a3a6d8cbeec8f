//! What comes next for one `EtcdRestore`. Pure.
//!
//! The status is the operator's journal: a state is written before anything follows from it, so that an operator
//! that is killed, or another one, goes on from there. What is to be done follows from the state that stands there
//! and from what the nodes say, and each deed writes one object.

use lockkeeper_crds as crds;
use lockkeeper_crds::{RestoreMode, RestoreStage, RestoreState, RestoreWord};

use super::loss;
use super::sight::{NodeSight, Sight, members};

/// The revision is raised beyond the present one by at least so much: writes between this look and the restore.
const MARGIN: i64 = 10_000_000;

/// The reason of a restore whose data stays, and after which something of a control plane did not come up.
pub(super) const NOT_WHOLE: &str = "NotWhole";

/// One thing to do.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Deed {
    /// Give this node the order, or a further word on it.
    Give(String, Box<crds::RestoreOrder>),
    /// Make the `EtcdBackup` of the state right before.
    Backup(String, crds::LocalReference),
}

/// What follows from a look.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Plan {
    /// The state to be in, with a sentence.
    pub(super) state: RestoreState,
    pub(super) message: String,
    /// Short and stable: why it waits or ended.
    pub(super) reason: &'static str,
    /// To be done in the state that stands there already.
    pub(super) deeds: Vec<Deed>,
}

fn stay(state: RestoreState, reason: &'static str, message: impl Into<String>) -> Plan {
    Plan {
        state,
        message: message.into(),
        reason,
        deeds: vec![],
    }
}

/// The end where every node keeps the restored data. Of a restore in place a node that is done says only what is not up.
pub(super) fn kept<'a>(said: impl Iterator<Item = (&'a String, &'a crds::RestoreProgress)>) -> Plan {
    let lame = said.filter(|(_, progress)| !progress.message.is_empty());
    let lame: Vec<String> = lame.map(|(name, p)| format!("{name}: {}", p.message)).collect();
    if lame.is_empty() {
        let message = "the restored data runs on every node";
        return stay(RestoreState::Completed, "Restored", message);
    }
    stay(
        RestoreState::Completed,
        NOT_WHOLE,
        format!(
            "the restored data stays on every node, and not all of the control plane is up on it; {}",
            lame.join("; ")
        ),
    )
}

/// Plans the next thing.
pub(super) fn plan(sight: &Sight<'_>) -> Plan {
    let status = sight.object.status.clone().unwrap_or_default();
    let in_hand = InHand {
        id: status.id.clone().unwrap_or_default(),
        sight,
        status: &status,
    };
    match status.state {
        RestoreState::Validating => in_hand.validate(),
        RestoreState::Preparing => in_hand.prepare(),
        RestoreState::AwaitingConfirmation => in_hand.await_confirmation(),
        RestoreState::Arming => in_hand.arm(),
        RestoreState::Restoring => in_hand.see_through(),
        state => stay(state, "Ended", status.message.clone()),
    }
}

pub(super) struct InHand<'a> {
    id: String,
    pub(super) sight: &'a Sight<'a>,
    status: &'a crds::EtcdRestoreStatus,
}

impl InHand<'_> {
    pub(super) fn spec(&self) -> &crds::EtcdRestoreSpec {
        &self.sight.object.spec
    }

    /// The nodes that take part, by name.
    pub(super) fn parties(&self) -> Vec<(&String, &NodeSight<'_>)> {
        let all = self.sight.nodes.iter();
        match self.spec().mode {
            RestoreMode::InPlace => all.collect(),
            _ => {
                let wanted = self.spec().node.as_ref();
                all.filter(|(name, _)| wanted.is_none_or(|w| w == *name))
                    .take(1)
                    .collect()
            }
        }
    }

    pub(super) fn store(&self) -> Option<crds::LocalReference> {
        let of_backup = || self.sight.backup.map(|b| b.spec.store_ref.clone());
        self.spec().store_ref.clone().or_else(of_backup)
    }

    /// Where the backup lies, as it was given. What a URI means in the store, only who opens the store can say.
    fn key(&self) -> Option<String> {
        let from = &self.spec().from;
        let given = from.key.as_ref().or(from.uri.as_ref());
        given.or(self.artifact().map(|a| &a.manifest_uri)).cloned()
    }

    fn artifact(&self) -> Option<&crds::Artifact> {
        self.sight.backup?.status.as_ref()?.artifact.as_ref()
    }

    fn validate(&self) -> Plan {
        if self.spec().confirm.is_some() {
            return stay(
                RestoreState::Failed,
                "ConfirmedUnseen",
                "nothing was touched; spec.confirm was given before status.loss was shown: make a new EtcdRestore without it, read what will be lost, then confirm",
            );
        }
        match self.obstacle() {
            Some((reason, why)) => stay(RestoreState::Validating, reason, why),
            None => stay(
                RestoreState::Preparing,
                "Preparing",
                "the nodes fetch, check and restore the backup beside the data in use",
            ),
        }
    }

    /// The order for a node as it is first given.
    fn order(&self, node: &str) -> Result<crds::RestoreOrder, String> {
        let missing = |what: &str| format!("{what} is not known any more");
        let sight = self.sight;
        let etcd = sight.nodes.get(node).and_then(|n| n.etcd);
        let cluster_id = etcd.and_then(|e| e.cluster_id.clone());
        Ok(crds::RestoreOrder {
            id: self.id.clone(),
            name: sight.object.metadata.name.clone().unwrap_or_default(),
            mode: self.spec().mode,
            word: RestoreWord::Prepare,
            store: self.store().ok_or_else(|| missing("the store"))?,
            key: self.key().ok_or_else(|| missing("where the backup lies"))?,
            sha256: self.artifact().map(|a| a.sha256.clone()).unwrap_or_default(),
            allow_other_cluster: self.spec().allow_other_cluster,
            members: members(&sight.nodes)?,
            bump_revision: self.bump(),
            cluster_id: cluster_id.ok_or_else(|| missing("the id of the etcd cluster"))?,
            directory: self.spec().directory.clone(),
            deadlines: self.spec().deadlines.clone(),
            counts: self.parties().first().is_some_and(|(name, _)| *name == node),
        })
    }

    /// All nodes get the same: that of an order that is out, or as much as the present revision asks for. The
    /// backup's own revision is taken for 0, which costs nothing of an int64.
    fn bump(&self) -> i64 {
        let out = self.sight.nodes.values().filter_map(|n| n.order);
        let out = out.filter(|o| o.id == self.id).map(|o| o.bump_revision).next();
        out.unwrap_or_else(|| {
            self.spec()
                .bump_revision
                .max(self.sight.revision.saturating_add(MARGIN))
        })
    }

    /// A node that has given up, and why.
    fn dropped(&self) -> Option<String> {
        self.parties().iter().find_map(|(name, node)| {
            let progress = node.of(&self.id)?;
            (progress.stage == RestoreStage::Dropped).then(|| format!("{name}: {}", progress.message))
        })
    }

    /// The first node that is not in one of these stages, and what it says.
    fn not_in(&self, stages: &[RestoreStage]) -> Option<String> {
        self.parties()
            .iter()
            .find_map(|(name, node)| match node.of(&self.id) {
                Some(progress) if stages.contains(&progress.stage) => None,
                Some(progress) => Some(format!("{name}: {:?}: {}", progress.stage, progress.message)),
                None => Some(format!("{name} has not answered")),
            })
    }

    fn prepare(&self) -> Plan {
        if let Some(why) = self.dropped() {
            return stay(
                RestoreState::Failed,
                "NotPrepared",
                format!("nothing was touched; {why}"),
            );
        }
        let mut plan = stay(RestoreState::Preparing, "Preparing", "");
        for (name, node) in self.parties() {
            if node.order.is_some_and(|o| o.id == self.id) || node.of(&self.id).is_some() {
                continue;
            }
            match self.order(name) {
                Ok(order) => plan.deeds.push(Deed::Give(name.clone(), Box::new(order))),
                Err(why) => return stay(RestoreState::Preparing, "Members", why),
            }
        }
        if let Some(waits) = self.not_in(&[RestoreStage::Prepared, RestoreStage::Done]) {
            plan.message = waits;
            return plan;
        }
        if self.spec().mode != RestoreMode::InPlace {
            return stay(
                RestoreState::Completed,
                "Tried",
                "the backup can be fetched, checked and restored; nothing was touched",
            );
        }
        let hashes = self
            .parties()
            .into_iter()
            .filter_map(|(_, n)| n.of(&self.id)?.backup.as_ref());
        let mut hashes: Vec<&str> = hashes.map(|b| b.sha256.as_str()).collect();
        hashes.dedup();
        if hashes.len() != 1 {
            return stay(
                RestoreState::Failed,
                "BackupChanged",
                "nothing was touched; the nodes have fetched different backups from one place: was it overwritten meanwhile?",
            );
        }
        stay(
            RestoreState::AwaitingConfirmation,
            "AwaitingConfirmation",
            format!(
                "every node has the restored data beside the data in use; {} set spec.confirm to {:?}",
                loss::to_weigh(loss::known(self.sight, &self.id).as_ref()),
                self.status.confirm_with.as_deref().unwrap_or_default()
            ),
        )
    }

    fn await_confirmation(&self) -> Plan {
        let state = RestoreState::AwaitingConfirmation;
        if let Some(why) = self.dropped() {
            return stay(
                RestoreState::Failed,
                "NotConfirmed",
                format!("nothing was touched; {why}"),
            );
        }
        let wanted = self.status.confirm_with.as_deref().unwrap_or_default();
        match self.spec().confirm.as_deref() {
            Some(said) if said == wanted => stay(RestoreState::Arming, "Confirmed", "confirmed"),
            Some(said) => stay(
                RestoreState::Failed,
                "WrongConfirmation",
                format!(
                    "nothing was touched; spec.confirm says {said:?} and not {wanted:?}: is this the right cluster? Make a new EtcdRestore"
                ),
            ),
            None => stay(state, "AwaitingConfirmation", self.status.message.clone()),
        }
    }

    fn arm(&self) -> Plan {
        let state = RestoreState::Arming;
        if let Some(why) = self.dropped() {
            return stay(
                RestoreState::Failed,
                "NotArmed",
                format!("nothing was touched; {why}"),
            );
        }
        if let Some((reason, why)) = self.busy().or_else(|| self.unguarded()) {
            return stay(state, reason, why);
        }
        let name = self.status.safety_backup.clone().unwrap_or_default();
        match (self.sight.safety, self.store()) {
            (None, Some(store)) => {
                let mut plan = stay(
                    state,
                    "SafetyBackup",
                    format!("the present state is stored as {name}"),
                );
                plan.deeds.push(Deed::Backup(name, store));
                return plan;
            }
            (Some(backup), _) if !backup.is_finished() => {
                return stay(
                    state,
                    "SafetyBackup",
                    format!("waits for EtcdBackup {name} of the present state"),
                );
            }
            // A store that cannot be written to does not stop a restore from it; each node keeps its data aside.
            _ => {}
        }
        let mut plan = stay(state, "Arming", "");
        plan.deeds = self.words(RestoreWord::Arm);
        match self.not_in(&[RestoreStage::Armed]) {
            Some(waits) => plan.message = waits,
            None => {
                return stay(
                    RestoreState::Restoring,
                    "Restoring",
                    "the control plane goes down on every node and comes up on the restored data",
                );
            }
        }
        plan
    }

    /// What is to be said to whom, so that all have heard this word.
    fn words(&self, word: RestoreWord) -> Vec<Deed> {
        let parties = self.parties().into_iter();
        parties
            .filter_map(|(name, node)| {
                let order = node.order.filter(|o| o.id == self.id && o.word != word)?;
                let order = crds::RestoreOrder {
                    word,
                    ..order.clone()
                };
                Some(Deed::Give(name.clone(), Box::new(order)))
            })
            .collect()
    }

    fn see_through(&self) -> Plan {
        let mut plan = stay(RestoreState::Restoring, "Restoring", "");
        plan.deeds = self.words(RestoreWord::Go);
        if self.not_in(&[RestoreStage::Done]).is_none() {
            let said = self.parties().into_iter();
            return kept(said.filter_map(|(name, node)| Some((name, node.of(&self.id)?))));
        }
        let back = [RestoreStage::Undone, RestoreStage::Dropped];
        let Some(waits) = self.not_in(&back) else {
            return stay(RestoreState::Undone, "Undone", self.why_undone());
        };
        plan.message = waits;
        plan
    }

    /// The reason of the node that knew one, rather than of those that followed it.
    fn why_undone(&self) -> String {
        let said = self.parties().into_iter().filter_map(|(name, node)| {
            let message = node.of(&self.id)?.message.as_str();
            (!message.is_empty()).then_some((name, message))
        });
        let follows = |m: &str| m.contains("another node decided") || m.contains("has gone back");
        let said: Vec<_> = said.collect();
        let first = said.iter().find(|(_, m)| !follows(m)).or(said.first());
        let why = first
            .map(|(name, m)| format!("; {name}: {m}"))
            .unwrap_or_default();
        format!("the data of before runs on every node again{why}")
    }
}
