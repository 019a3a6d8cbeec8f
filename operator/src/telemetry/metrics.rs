//! Metrics: few, with closed sets of labels, each saying how to read it.
//!
//! What comes in: facts. What goes out: the text of `/metrics`. May touch: `/proc/self`.
//!
//! Most are exported by the leader only: a follower has no opinion, so those series vanish when leading
//! ends, and no alert needs to know which pod leads. Their names are in `dashboards/metrics.txt`, which
//! dashboards and alerts are checked against.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use lockkeeper_crds::State;
use prometheus::core::Collector;
use prometheus::process_collector::ProcessCollector;
use prometheus::{
    GaugeVec, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};
use strum::{EnumIter, IntoEnumIterator as _, IntoStaticStr};

use crate::operator::gates::{Gate, GateRound, Outcome as GateOutcome};

/// What was reconciled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumIter, IntoStaticStr)]
pub enum Kind {
    /// A `ClusterVersion`.
    ClusterVersion,
    /// A `ControlPlaneNode`.
    ControlPlaneNode,
    /// An `EtcdBackup`.
    EtcdBackup,
    /// An `EtcdBackupStore`.
    EtcdBackupStore,
    /// All `EtcdBackupSchedule`s in one go.
    EtcdBackupSchedule,
    /// All `EtcdRestore`s in one go.
    EtcdRestore,
    /// A `ClusterCutover`.
    ClusterCutover,
}

/// How a reconcile ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumIter, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum Outcome {
    /// Something was written.
    Changed,
    /// Nothing to do.
    Unchanged,
    /// Somebody else wrote first; done again at once.
    Conflict,
    /// The API did not answer, or refused.
    ApiError,
    /// The object or a node makes no sense.
    Invalid,
}

/// How a cutover ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumIter, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum CutoverResult {
    /// Green has all traffic.
    Completed,
    /// Blue has.
    RolledBack,
}

/// What is told of a cutover.
#[derive(Clone, Copy, Debug)]
pub struct CutoverFigures {
    /// Green's share in percent, as the step has it.
    pub green_wanted: Option<i64>,
    /// Green's share in percent, as it is read.
    pub green_seen: Option<i64>,
    /// A person is wanted.
    pub held: bool,
    /// Requests of gates that failed.
    pub failed_requests: i64,
}

/// How a node stands in an upgrade.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumIter, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum NodeState {
    /// Its turn has not come.
    Pending,
    /// Being brought to the target.
    Upgrading,
    /// Runs the target.
    Done,
    /// Being returned.
    RollingBack,
    /// Not seen.
    Unknown,
}

/// How an upgrade ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumIter, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum UpgradeResult {
    /// At the target.
    Upgraded,
    /// As before.
    RolledBack,
    /// A person is needed.
    Failed,
}

/// Why a backup failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumIter, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum BackupFailure {
    /// The store cannot be reached, or refuses.
    Store,
    /// etcd cannot be read.
    Etcd,
    /// What was read back is not what was sent.
    Corrupt,
    /// Out of time.
    Deadline,
    /// Anything else.
    Other,
}

/// What is exported of a schedule. Moments are in seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScheduleFigures {
    /// When its newest recovery point was complete.
    pub last_success: Option<i64>,
    /// When a backup of it was last verified.
    pub last_verified: Option<i64>,
    /// When a backup of it was last drilled.
    pub last_drilled: Option<i64>,
    /// By when a backup should be proven as far as the spec asks; none where it asks for nothing.
    pub proof_overdue: Option<i64>,
    /// When its next backup begins; in the past when it is due.
    pub next: Option<i64>,
    /// When the next success is overdue; none while it is suspended.
    pub overdue: Option<i64>,
    /// Since the last success.
    pub consecutive_failures: i64,
    /// How many can be restored.
    pub recovery_points: i64,
}

/// Metrics could not be set up: a programming error that a test rules out.
#[derive(Debug, thiserror::Error)]
#[error("metrics: {0}")]
pub struct MetricsError(#[from] prometheus::Error);

/// Every metric of this process, in a registry of its own.
pub struct Metrics {
    registry: Registry,
    names: BTreeSet<String>,
    leader: IntGauge,
    epoch: IntGaugeVec,
    reconcile_total: IntCounterVec,
    reconcile_duration: HistogramVec,
    upgrade_state: IntGaugeVec,
    upgrade_in_progress: IntGaugeVec,
    upgrade_nodes: IntGaugeVec,
    step_deadline: IntGaugeVec,
    step_started: IntGaugeVec,
    upgrades_total: IntCounterVec,
    rollbacks_total: IntCounter,
    agent_last_report: IntGaugeVec,
    gate_result: IntGaugeVec,
    backup_last_success: IntGaugeVec,
    backup_failures: IntCounterVec,
    schedule_last_success: IntGaugeVec,
    schedule_last_verified: IntGaugeVec,
    schedule_last_drilled: IntGaugeVec,
    schedule_proof_overdue: IntGaugeVec,
    schedule_next: IntGaugeVec,
    schedule_overdue: IntGaugeVec,
    schedule_failures: IntGaugeVec,
    schedule_points: IntGaugeVec,
    store_available: IntGaugeVec,
    restore_in_progress: IntGaugeVec,
    cutover_green: IntGaugeVec,
    cutover_held: IntGaugeVec,
    cutover_failed: IntGaugeVec,
    cutovers_total: IntCounterVec,
    longest_outage: GaugeVec,
    certificate_expiry: IntGaugeVec,
    certificates: Mutex<BTreeMap<String, BTreeSet<String>>>,
}

impl Metrics {
    /// `role`: `operator` or `agent`.
    ///
    /// # Errors
    /// When a name or label is not one that Prometheus allows, which a test rules out.
    #[expect(clippy::too_many_lines, reason = "a list, one entry a metric")]
    pub fn new(role: &str) -> Result<Self, MetricsError> {
        let mut r = Register::default();
        let build = r.gauges(
            "lockkeeper_build_info",
            "Always 1; its labels say which version and role of Lockkeeper this is. Two versions for long: a rollout of Lockkeeper is stuck.",
            &["version", "role"],
        )?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION"), role]).set(1);
        let leader = IntGauge::new(
            "lockkeeper_leader",
            "1 while this process leads. The sum over all pods is 1, or 0 for up to 30 s after a leader died; 0 for minutes: nothing moves (LockkeeperOperatorDown).",
        )?;
        r.add(leader.clone())?;
        let metrics = Self {
            leader,
            epoch: r.gauges(
                "lockkeeper_leader_epoch",
                "leaseTransitions of the leader's lease. A rise: leadership changed hands. Leader only.",
                &[],
            )?,
            reconcile_total: r.counters(
                "lockkeeper_reconcile_total",
                "Reconciles by kind and outcome. A rising share of api_error or invalid means that it cannot do its work.",
                &["kind", "outcome"],
            )?,
            reconcile_duration: r.histograms(
                "lockkeeper_reconcile_duration_seconds",
                "How long a reconcile takes. Seconds mean that an API server answers slowly.",
                &["kind"],
            )?,
            upgrade_state: r.gauges(
                "lockkeeper_upgrade_state",
                "1 for the state of the ClusterVersion, 0 for every other. Blocked, Failed or RolledBack want a person (LockkeeperUpgradeRolledBack, LockkeeperUpgradeStalled). Leader only.",
                &["state"],
            )?,
            upgrade_in_progress: r.gauges(
                "lockkeeper_upgrade_in_progress",
                "1 from the snapshot until an end, pauses included. Mutes warnings about a control plane that is being restarted on purpose (LockkeeperUpgradeInProgress). Leader only.",
                &[],
            )?,
            upgrade_nodes: r.gauges(
                "lockkeeper_upgrade_nodes",
                "Control-plane nodes by how they stand in the upgrade. More than one upgrading or rolling_back must never be. Leader only.",
                &["state"],
            )?,
            step_deadline: r.gauges(
                "lockkeeper_upgrade_step_deadline_timestamp_seconds",
                "When the agent takes the step in hand back by itself; absent without a step. In the past while an upgrade is in progress: LockkeeperUpgradeStalled. Leader only.",
                &[],
            )?,
            step_started: r.gauges(
                "lockkeeper_upgrade_step_started_timestamp_seconds",
                "When the step in hand began; absent without a step. See the alert LockkeeperUpgradeStalled. Leader only.",
                &[],
            )?,
            upgrades_total: r.counters(
                "lockkeeper_upgrades_total",
                "Upgrades that ended, by result. Use increase(): it begins at 0 with every process.",
                &["result"],
            )?,
            rollbacks_total: IntCounter::new(
                "lockkeeper_rollbacks_total",
                "Rollbacks that began, by themselves or by a person. An increase: LockkeeperUpgradeRolledBack.",
            )?,
            agent_last_report: r.gauges(
                "lockkeeper_agent_last_report_timestamp_seconds",
                "When the operator last saw an agent's report rise, by the operator's clock. 5 minutes ago: LockkeeperAgentLost. Leader only.",
                &["node"],
            )?,
            gate_result: r.gauges(
                "lockkeeper_gate_result",
                "1: the gate passed when it was last asked; 0: it failed or could not be seen. Asked during upgrades only, and absent otherwise. node is empty for a gate of the whole cluster. Leader only.",
                &["gate", "node"],
            )?,
            backup_last_success: r.gauges(
                "lockkeeper_backup_last_success_timestamp_seconds",
                "When the newest backup was read back with its hash equal. Too long ago: LockkeeperNoRecentBackup. Absent: there is none. Leader only.",
                &[],
            )?,
            backup_failures: r.counters(
                "lockkeeper_backup_failures_total",
                "Backups of upgrades and schedules that failed, by reason. An increase with an upgrade waiting for its snapshot: see the EtcdBackup's message.",
                &["reason"],
            )?,
            schedule_last_success: r.gauges(
                "lockkeeper_backup_schedule_last_success_timestamp_seconds",
                "When the newest recovery point of an EtcdBackupSchedule was complete. Absent: it has none. Leader only.",
                &["schedule"],
            )?,
            schedule_last_verified: r.gauges(
                "lockkeeper_backup_schedule_last_verified_timestamp_seconds",
                "When a backup of an EtcdBackupSchedule was last restored, booted and read. Absent: never. Leader only.",
                &["schedule"],
            )?,
            schedule_last_drilled: r.gauges(
                "lockkeeper_backup_schedule_last_drilled_timestamp_seconds",
                "When the Secrets of a backup of an EtcdBackupSchedule were last read through an API server. Absent: never. Leader only.",
                &["schedule"],
            )?,
            schedule_proof_overdue: r.gauges(
                "lockkeeper_backup_schedule_proof_overdue_timestamp_seconds",
                "By when a backup should be proven as far as spec.proof and spec.drill ask. In the past: LockkeeperBackupNeverVerified. Absent where they ask for nothing, and while suspended. Leader only.",
                &["schedule"],
            )?,
            schedule_next: r.gauges(
                "lockkeeper_backup_schedule_next_timestamp_seconds",
                "When the next backup of an EtcdBackupSchedule begins; in the past while it is due and cannot begin. Absent while suspended. Leader only.",
                &["schedule"],
            )?,
            schedule_overdue: r.gauges(
                "lockkeeper_backup_schedule_overdue_timestamp_seconds",
                "By when the slot after the last success should have become a success. In the past: LockkeeperNoRecentBackup. Absent while suspended. Leader only.",
                &["schedule"],
            )?,
            schedule_failures: r.gauges(
                "lockkeeper_backup_schedule_consecutive_failures",
                "Failed backups of an EtcdBackupSchedule since its last success, ten at the most. 2 or more: LockkeeperBackupFailing. Leader only.",
                &["schedule"],
            )?,
            schedule_points: r.gauges(
                "lockkeeper_backup_schedule_recovery_points",
                "Backups of an EtcdBackupSchedule that can be restored. Falling to 1: its retention keeps too little, or none succeeds. Leader only.",
                &["schedule"],
            )?,
            store_available: r.gauges(
                "lockkeeper_store_available",
                "1: the store could be written, read and deleted from when last tried. 0 for 15 minutes: LockkeeperStoreUnavailable. Leader only.",
                &["store"],
            )?,
            restore_in_progress: r.gauges(
                "lockkeeper_restore_in_progress",
                "1 while an EtcdRestore has begun and not ended; no upgrade goes on meanwhile, and in place the control plane goes down. For an hour: LockkeeperRestoreInProgress. Leader only.",
                &[],
            )?,
            cutover_green: r.gauges(
                "lockkeeper_cutover_green_percent",
                "Green's share of the traffic of a ClusterCutover that has not ended: as the step has it (wanted), and as it is read where it is set (seen; absent while it cannot be read). The two apart for longer than twice the TTL: see the object's status. Leader only.",
                &["cutover", "of"],
            )?,
            cutover_held: r.gauges(
                "lockkeeper_cutover_held",
                "1 while a ClusterCutover that has not ended is Held or Blocked: a person is wanted (LockkeeperCutoverHeld). Leader only.",
                &["cutover"],
            )?,
            cutover_failed: r.gauges(
                "lockkeeper_cutover_failed_requests",
                "Requests of gates that failed from the first step of a ClusterCutover on; spec.budget.failedRequests is the limit. Leader only.",
                &["cutover"],
            )?,
            cutovers_total: r.counters(
                "lockkeeper_cutovers_total",
                "ClusterCutovers that ended, by result. An increase of rolled_back: LockkeeperCutoverRolledBack. Use increase(): it begins at 0 with every process.",
                &["result"],
            )?,
            longest_outage: r.floats(
                "lockkeeper_probe_longest_outage_seconds",
                "The longest time in the rollout under way or last ended in which no API server was ready, as the operator's gates saw it, at most once a second. Leader only.",
                &[],
            )?,
            certificate_expiry: r.gauges(
                "lockkeeper_certificate_expiry_timestamp_seconds",
                "End of validity of a control-plane certificate on a node's disk; cert is its path. In less than 14 days: LockkeeperCertificateExpiring. Leader only.",
                &["node", "cert"],
            )?,
            certificates: Mutex::default(),
            registry: r.registry.clone(),
            names: BTreeSet::new(),
        };
        r.add(metrics.rollbacks_total.clone())?;
        r.add(ProcessCollector::for_self())?;
        metrics.begin_counters();
        Ok(Self {
            names: r.names,
            ..metrics
        })
    }

    /// A counter that appears with its first increment shows no increase: each begins at 0.
    fn begin_counters(&self) {
        for kind in Kind::iter() {
            for outcome in Outcome::iter() {
                self.reconcile_total
                    .with_label_values::<&str>(&[kind.into(), outcome.into()]);
            }
        }
        for result in UpgradeResult::iter() {
            self.upgrades_total.with_label_values(&[<&str>::from(result)]);
        }
        for result in CutoverResult::iter() {
            self.cutovers_total.with_label_values(&[<&str>::from(result)]);
        }
        for reason in BackupFailure::iter() {
            self.backup_failures.with_label_values(&[<&str>::from(reason)]);
        }
    }

    /// Whether a restore has begun and not ended.
    pub fn restoring(&self, in_hand: bool) {
        set(&self.restore_in_progress, in_hand.into());
    }

    /// Leading began (`Some(epoch)`) or ended. With its end, what only a leader knows vanishes.
    pub fn leading(&self, epoch: Option<i32>) {
        self.leader.set(i64::from(epoch.is_some()));
        if let Some(epoch) = epoch {
            set(&self.epoch, epoch.into());
            return;
        }
        for gauges in [
            &self.epoch,
            &self.upgrade_state,
            &self.upgrade_in_progress,
            &self.upgrade_nodes,
            &self.step_deadline,
            &self.step_started,
            &self.agent_last_report,
            &self.gate_result,
            &self.backup_last_success,
            &self.schedule_last_success,
            &self.schedule_last_verified,
            &self.schedule_last_drilled,
            &self.schedule_proof_overdue,
            &self.schedule_next,
            &self.schedule_overdue,
            &self.schedule_failures,
            &self.schedule_points,
            &self.store_available,
            &self.restore_in_progress,
            &self.cutover_green,
            &self.cutover_held,
            &self.cutover_failed,
            &self.certificate_expiry,
        ] {
            gauges.reset();
        }
        self.longest_outage.reset();
    }

    /// A reconcile ended.
    pub fn reconciled(&self, kind: Kind, outcome: Outcome, took: Duration) {
        self.reconcile_total
            .with_label_values::<&str>(&[kind.into(), outcome.into()])
            .inc();
        self.reconcile_duration
            .with_label_values(&[<&str>::from(kind)])
            .observe(took.as_secs_f64());
    }

    /// The state of the `ClusterVersion`.
    pub fn upgrade_state(&self, state: State) {
        for each in STATES {
            self.upgrade_state
                .with_label_values(&[state_name(each)])
                .set(i64::from(each == state));
        }
        let in_progress = matches!(
            state,
            State::BackingUp | State::Rolling | State::RollingBack | State::Paused
        );
        set(&self.upgrade_in_progress, i64::from(in_progress));
    }

    /// How many nodes stand how.
    pub fn upgrade_nodes(&self, count: impl Fn(NodeState) -> usize) {
        for state in NodeState::iter() {
            self.upgrade_nodes
                .with_label_values(&[<&str>::from(state)])
                .set(i64::try_from(count(state)).unwrap_or(i64::MAX));
        }
    }

    /// The step in hand: when it began and when its agent takes it back, in seconds since 1970.
    pub fn step(&self, started: Option<i64>, deadline: Option<i64>) {
        set_or_remove(&self.step_started, started);
        set_or_remove(&self.step_deadline, deadline);
    }

    /// An upgrade ended.
    pub fn upgrade_ended(&self, result: UpgradeResult) {
        self.upgrades_total
            .with_label_values(&[<&str>::from(result)])
            .inc();
    }

    /// A rollback began.
    pub fn rollback_began(&self) {
        self.rollbacks_total.inc();
    }

    /// An agent's report rose, at this time of the operator's clock.
    pub fn agent_reported(&self, node: &str, at: i64) {
        self.agent_last_report.with_label_values(&[node]).set(at);
    }

    /// The gates were asked.
    pub fn gates(&self, round: &GateRound) {
        for result in &round.results {
            let node = result.node.as_deref().unwrap_or_default();
            self.gate_result
                .with_label_values(&[result.gate.name(), node])
                .set(i64::from(result.outcome == GateOutcome::Pass));
        }
        self.longest_outage(round.longest_outage);
    }

    /// The gates are not asked any more: their last verdicts say nothing about now.
    pub fn gates_rest(&self) {
        self.gate_result.reset();
    }

    /// The longest outage of the rollout.
    pub fn longest_outage(&self, outage: Duration) {
        self.longest_outage
            .with_label_values(&[] as &[&str])
            .set(outage.as_secs_f64());
    }

    /// The newest good backup, in seconds since 1970.
    pub fn backup_succeeded(&self, at: Option<i64>) {
        set_or_remove(&self.backup_last_success, at);
    }

    /// A backup failed.
    pub fn backup_failed(&self, reason: BackupFailure) {
        self.backup_failures
            .with_label_values(&[<&str>::from(reason)])
            .inc();
    }

    /// A schedule; `None`: it is gone.
    pub fn schedule(&self, name: &str, figures: Option<ScheduleFigures>) {
        for (gauges, value) in [
            (&self.schedule_last_success, figures.and_then(|f| f.last_success)),
            (
                &self.schedule_last_verified,
                figures.and_then(|f| f.last_verified),
            ),
            (&self.schedule_last_drilled, figures.and_then(|f| f.last_drilled)),
            (
                &self.schedule_proof_overdue,
                figures.and_then(|f| f.proof_overdue),
            ),
            (&self.schedule_next, figures.and_then(|f| f.next)),
            (&self.schedule_overdue, figures.and_then(|f| f.overdue)),
            (&self.schedule_failures, figures.map(|f| f.consecutive_failures)),
            (&self.schedule_points, figures.map(|f| f.recovery_points)),
        ] {
            match value {
                Some(value) => gauges.with_label_values(&[name]).set(value),
                // Only fails when there is no such series.
                None => drop(gauges.remove_label_values(&[name])),
            }
        }
    }

    /// A store, as `namespace/name`, could be used or not; `None`: it is gone.
    pub fn store(&self, store: &str, available: Option<bool>) {
        match available {
            Some(available) => self
                .store_available
                .with_label_values(&[store])
                .set(i64::from(available)),
            // Only fails when there is no such series.
            None => drop(self.store_available.remove_label_values(&[store])),
        }
    }

    /// A cutover; `None`: it has ended or is gone.
    pub fn cutover(&self, name: &str, figures: Option<CutoverFigures>) {
        for (gauges, labels, value) in [
            (
                &self.cutover_green,
                &[name, "wanted"][..],
                figures.and_then(|f| f.green_wanted),
            ),
            (
                &self.cutover_green,
                &[name, "seen"],
                figures.and_then(|f| f.green_seen),
            ),
            (&self.cutover_held, &[name], figures.map(|f| f.held.into())),
            (&self.cutover_failed, &[name], figures.map(|f| f.failed_requests)),
        ] {
            match value {
                Some(value) => gauges.with_label_values(labels).set(value),
                // Only fails when there is no such series.
                None => drop(gauges.remove_label_values(labels)),
            }
        }
    }

    /// A cutover ended.
    pub fn cutover_ended(&self, result: CutoverResult) {
        self.cutovers_total
            .with_label_values(&[<&str>::from(result)])
            .inc();
    }

    /// All certificates of a node: path and end of validity, in seconds since 1970.
    pub fn certificates<'a>(&self, node: &str, certificates: impl IntoIterator<Item = (&'a str, i64)>) {
        let mut known = self.certificates.lock().unwrap_or_else(PoisonError::into_inner);
        let before = known.remove(node).unwrap_or_default();
        let mut now = BTreeSet::new();
        for (path, not_after) in certificates {
            self.certificate_expiry
                .with_label_values(&[node, path])
                .set(not_after);
            now.insert(path.to_owned());
        }
        for gone in before.difference(&now) {
            let _ = self
                .certificate_expiry
                .remove_label_values(&[node, gone.as_str()]);
        }
        known.insert(node.to_owned(), now);
    }

    /// A node is gone.
    pub fn forget_node(&self, node: &str) {
        self.certificates(node, []);
        let _ = self.agent_last_report.remove_label_values(&[node]);
        for gate in Gate::iter() {
            let _ = self.gate_result.remove_label_values(&[gate.name(), node]);
        }
    }

    /// The text of `/metrics`.
    ///
    /// # Errors
    /// When a metric cannot be written as text, which a test rules out.
    pub fn encode(&self) -> Result<String, MetricsError> {
        let text = TextEncoder::new().encode_to_string(&self.registry.gather())?;
        Ok(text)
    }

    /// The name of every series that can appear.
    #[must_use]
    pub const fn names(&self) -> &BTreeSet<String> {
        &self.names
    }
}

const STATES: [State; 11] = [
    State::Unknown,
    State::Idle,
    State::Preflight,
    State::Blocked,
    State::Preflighted,
    State::BackingUp,
    State::Rolling,
    State::RollingBack,
    State::Paused,
    State::RolledBack,
    State::Failed,
];

/// As in the status.
const fn state_name(state: State) -> &'static str {
    match state {
        State::Unknown => "Unknown",
        State::Idle => "Idle",
        State::Preflight => "Preflight",
        State::Blocked => "Blocked",
        State::Preflighted => "Preflighted",
        State::BackingUp => "BackingUp",
        State::Rolling => "Rolling",
        State::RollingBack => "RollingBack",
        State::Paused => "Paused",
        State::RolledBack => "RolledBack",
        State::Failed => "Failed",
    }
}

/// A gauge without labels that can be absent is a vector with none.
fn set(gauges: &IntGaugeVec, value: i64) {
    gauges.with_label_values(&[] as &[&str]).set(value);
}

fn set_or_remove(gauges: &IntGaugeVec, value: Option<i64>) {
    match value {
        Some(value) => set(gauges, value),
        None => gauges.reset(),
    }
}

/// Buckets for requests to an API server and a few of them in a row.
const BUCKETS: [f64; 9] = [0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 3.0, 10.0];

#[derive(Default)]
struct Register {
    registry: Registry,
    names: BTreeSet<String>,
}

impl Register {
    fn add(&mut self, collector: impl Collector + 'static) -> Result<(), prometheus::Error> {
        for description in collector.desc() {
            self.names.insert(description.fq_name.clone());
        }
        self.registry.register(Box::new(collector))
    }

    fn gauges(&mut self, name: &str, help: &str, labels: &[&str]) -> Result<IntGaugeVec, prometheus::Error> {
        let gauges = IntGaugeVec::new(Opts::new(name, help), labels)?;
        self.add(gauges.clone())?;
        Ok(gauges)
    }

    fn floats(&mut self, name: &str, help: &str, labels: &[&str]) -> Result<GaugeVec, prometheus::Error> {
        let gauges = GaugeVec::new(Opts::new(name, help), labels)?;
        self.add(gauges.clone())?;
        Ok(gauges)
    }

    fn counters(
        &mut self,
        name: &str,
        help: &str,
        labels: &[&str],
    ) -> Result<IntCounterVec, prometheus::Error> {
        let counters = IntCounterVec::new(Opts::new(name, help), labels)?;
        self.add(counters.clone())?;
        Ok(counters)
    }

    fn histograms(
        &mut self,
        name: &str,
        help: &str,
        labels: &[&str],
    ) -> Result<HistogramVec, prometheus::Error> {
        let options = HistogramOpts::new(name, help).buckets(BUCKETS.to_vec());
        let histograms = HistogramVec::new(options, labels)?;
        self.registry.register(Box::new(histograms.clone()))?;
        for suffix in ["bucket", "count", "sum"] {
            self.names.insert(format!("{name}_{suffix}"));
        }
        Ok(histograms)
    }
}

#[cfg(test)]
#[path = "metrics_tests.rs"]
mod tests;
