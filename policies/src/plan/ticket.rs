//! What becomes of the ticket in hand: issued, confirmed, withdrawn, released.

use super::next::{Next, Planner};
use super::{Action, steps};
use crate::model::{Count, InHand, Phase, Rollout, TicketState, Verdict};
use crate::quorum;

impl Planner<'_> {
    /// A ticket is reserved, and perhaps out.
    pub(super) fn in_hand(&self, rollout: &Rollout, ticket: &InHand) -> Next {
        let Some(node) = self.cluster.nodes.get(&ticket.node) else {
            let message = format!(
                "node {} is gone from the cluster with ticket {} on it",
                ticket.node, ticket.number
            );
            return match self.cluster.nodes.is_empty() {
                true => Next::Hold("NotSeen", "no control-plane node can be seen".to_owned()),
                false => Next::Do(Action::Release { then: None }, message),
            };
        };
        let Some(view) = node.ticket.as_ref().filter(|t| t.number == ticket.number) else {
            return self.issue(rollout, ticket, node.last_number);
        };
        if let Some(state) = view.state.filter(|s| s.is_end()) {
            return self.release(rollout, ticket, state, &view.message);
        }
        if view.verdict != Verdict::Pending {
            return Next::Hold("AgentWorking", format!("{}: {}", ticket.node, view.message));
        }
        let set_back =
            self.wish_changed(rollout) && self.wanted.version == rollout.source && !self.wanted.deleting;
        if ticket.forward && (rollout.phase == Phase::Back || set_back) {
            let reason = self.wish_reason(rollout);
            return Next::Do(
                Action::Withdraw {
                    ticket: ticket.clone(),
                    reason: reason.clone(),
                },
                reason,
            );
        }
        if let Some(why) = &node.stale {
            return Next::Hold("AgentLost", format!("{}: {why}", ticket.node));
        }
        if view.state != Some(TicketState::Ready) {
            let message = if view.message.is_empty() {
                "its agent has not taken the ticket up yet"
            } else {
                &view.message
            };
            return Next::Hold("AgentWorking", format!("{}: {message}", ticket.node));
        }
        self.judge(ticket)
    }

    /// The step is ready: keep it, take it back, or look again.
    fn judge(&self, ticket: &InHand) -> Next {
        let closed = Count::default();
        let gates = if ticket.forward {
            &self.cluster.gates
        } else {
            self.cluster.node_gates.get(&ticket.node).unwrap_or(&closed)
        };
        // The way back is never withdrawn: what would follow is the version that is being taken away.
        if ticket.forward && gates.failures >= self.wanted.gate_failures {
            let reason = format!(
                "{} gate rounds in a row failed: {}",
                gates.failures,
                gates.failing.clone().unwrap_or_default()
            );
            return Next::Do(
                Action::Withdraw {
                    ticket: ticket.clone(),
                    reason: reason.clone(),
                },
                reason,
            );
        }
        if let Some(hold) = self.gates_closed(gates) {
            return hold;
        }
        if ticket.forward
            && let Err(why) = quorum::healthy(self.cluster)
        {
            return Next::Hold("GatesNotPassed", why);
        }
        Next::Do(
            Action::Confirm(ticket.clone()),
            format!("the gates passed on {}", ticket.node),
        )
    }

    /// The ticket is reserved and not out: issue it if it may still be, else give it up.
    fn issue(&self, rollout: &Rollout, ticket: &InHand, last_number: i64) -> Next {
        if last_number >= ticket.number {
            let why = format!("ticket {} on {} is given up", ticket.number, ticket.node);
            return Next::Do(Action::Release { then: None }, why);
        }
        let give_up = |why: String| Next::Do(Action::Void(ticket.clone()), why);
        let version = if ticket.forward {
            rollout.target
        } else {
            rollout.source
        };
        let wish_gone = ticket.forward && (self.wish_changed(rollout) || rollout.phase != Phase::Forward);
        if wish_gone || self.wanted.deleting || (ticket.forward && self.wanted.paused) {
            return give_up("not issued: the wish has changed".to_owned());
        }
        let left = steps::remaining(self.cluster, &rollout.order, version);
        let Some(step) = left.into_iter().find(|s| s.node == ticket.node) else {
            return give_up(format!("{} needs nothing any more", ticket.node));
        };
        if ticket.forward
            && let Some(hold) = self.no_snapshot()
        {
            return hold;
        }
        match steps::may_take(self.cluster, rollout, &step) {
            Err((_, why)) => give_up(why),
            Ok(()) => {
                let why = step.to_string();
                Next::Do(
                    Action::Issue {
                        number: ticket.number,
                        step,
                    },
                    why,
                )
            }
        }
    }

    fn release(&self, rollout: &Rollout, ticket: &InHand, state: TicketState, message: &str) -> Next {
        let failed = state != TicketState::Confirmed;
        let then = match (failed, ticket.forward, rollout.phase) {
            (true, true, Phase::Forward) => {
                let phase = if self.wanted.rollback_automatic || self.wish_changed(rollout) {
                    Phase::Back
                } else {
                    Phase::Failed
                };
                Some((phase, format!("{}: {message}", ticket.node)))
            }
            (true, false, _) => Some((
                Phase::Failed,
                format!("{} could not be returned: {message}", ticket.node),
            )),
            _ => None,
        };
        Next::Do(Action::Release { then }, format!("{}: {message}", ticket.node))
    }
}
