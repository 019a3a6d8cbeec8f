//! `EtcdBackupSchedule`: snapshots by the clock, and how long they are kept.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use crate::{LocalReference, Proof};

/// When a snapshot is taken, and which are kept.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[kube(
    group = "lockkeeper.dev",
    version = "v1alpha1",
    kind = "EtcdBackupSchedule",
    plural = "etcdbackupschedules",
    shortname = "ebs",
    category = "lockkeeper",
    namespaced,
    status = "EtcdBackupScheduleStatus",
    derive = "PartialEq",
    doc = "Takes snapshots of etcd by the clock, and lets the old ones go.",
    validation = Rule::new("self.metadata.name.size() <= 63").message("metadata.name is longer than 63 characters: it is a label's value on each of the schedule's backups, which can be no longer; choose a shorter name"),
    printcolumn(name = "Schedule", type_ = "string", json_path = ".spec.schedule"),
    printcolumn(name = "Suspend", type_ = "boolean", json_path = ".spec.suspend"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Last-Success", type_ = "date", json_path = ".status.lastSuccessTime"),
    printcolumn(name = "Last-Verified", type_ = "date", json_path = ".status.lastVerifiedTime"),
    printcolumn(name = "Next", type_ = "string", json_path = ".status.nextScheduleTime"),
    printcolumn(name = "Points", type_ = "integer", json_path = ".status.recoveryPoints.count", description = "backups that can be restored"),
    printcolumn(name = "Failures", type_ = "integer", json_path = ".status.consecutiveFailures", description = "since the last success"),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.message"),
    printcolumn(name = "Zone", type_ = "string", json_path = ".spec.timeZone", priority = 1),
    printcolumn(name = "Last-Drilled", type_ = "date", json_path = ".status.lastDrilledTime", priority = 1),
    printcolumn(name = "Oldest", type_ = "date", json_path = ".status.recoveryPoints.oldest", priority = 1),
    printcolumn(name = "Prune-Next", type_ = "integer", json_path = ".status.pruneNextCount", description = "how many go when the next backup has succeeded", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp", priority = 1)
)]
#[serde(rename_all = "camelCase")]
pub struct EtcdBackupScheduleSpec {
    /// The store, in the same namespace.
    pub store_ref: LocalReference,

    /// Minute, hour, day of month, month, day of week, as cron has them: `0 3 * * *` is every day at three.
    #[x_kube(validation = Rule::new("self.matches('^[0-9A-Za-z*,/-]+( +[0-9A-Za-z*,/-]+){4}$')").message("spec.schedule is no cron line of five fields: write minute, hour, day of month, month and day of week, e.g. '0 3 * * *'"))]
    #[schemars(length(min = 9, max = 256))]
    pub schedule: String,

    /// The IANA name of the time zone in which `schedule` and the calendar of `retention` are meant.
    #[serde(default = "default_time_zone")]
    #[x_kube(validation = Rule::new("self.matches('^[A-Za-z][A-Za-z0-9_+-]*(/[A-Za-z0-9_+-]+)*$') && self != 'Local'").message("spec.timeZone is no name of the IANA database: write one, e.g. 'Europe/Berlin', or 'UTC'"))]
    #[schemars(length(min = 2, max = 64))]
    pub time_zone: String,

    /// True: no backup is begun and none is let go. When it is false again and a slot has passed meanwhile, one
    /// backup is taken at once.
    #[serde(default)]
    pub suspend: bool,

    /// Seconds after which a slot that could not be begun is passed over. Absent: it is begun however late, and
    /// of several that were missed the newest only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 10, max = 31_536_000))]
    pub starting_deadline_seconds: Option<u32>,

    /// A backup begins up to so many seconds after its slot: always the same for one slot of one schedule, so
    /// that many clusters do not come to one bucket at once. Keep it below the time between two slots.
    #[serde(default)]
    #[schemars(range(min = 0, max = 21_600))]
    pub jitter_seconds: u32,

    /// Seconds that each backup may take.
    #[serde(default = "crate::backup::default_deadline")]
    #[schemars(range(min = 10, max = 86400))]
    pub deadline_seconds: u32,

    /// How far each backup is proven: see `spec.proof` of an `EtcdBackup`.
    #[serde(default)]
    pub proof: Proof,

    /// Now and then one backup is proven further than the others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drill: Option<Drill>,

    /// What is stored beside each snapshot. `PKI` needs a store with `spec.encryption`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1))]
    pub include: Vec<crate::Include>,

    /// Which backups are kept. Absent: the newest 7, and the newest of 7 days, 4 weeks and 6 months.
    #[serde(default = "default_retention")]
    pub retention: Retention,
}

/// A drill: at each slot the newest recovery point is proven further.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.proof != 'Stored'").message("spec.drill.proof is Stored, which every backup is: write Verified or Drilled, or leave spec.drill out").field_path(".proof"))]
pub struct Drill {
    /// Minute, hour, day of month, month, day of week, in the schedule's time zone: `0 5 * * 0` is every Sunday
    /// at five. Slots that were missed become one.
    #[x_kube(validation = Rule::new("self.matches('^[0-9A-Za-z*,/-]+( +[0-9A-Za-z*,/-]+){4}$')").message("spec.drill.schedule is no cron line of five fields: write minute, hour, day of month, month and day of week, e.g. '0 5 * * 0'"))]
    #[schemars(length(min = 9, max = 256))]
    pub schedule: String,
    /// `Verified` or `Drilled`.
    #[serde(default = "drilled")]
    pub proof: Proof,
}

const fn drilled() -> Proof {
    Proof::Drilled
}

fn default_time_zone() -> String {
    "UTC".to_owned()
}

fn default_retention() -> Retention {
    Retention {
        keep_last: 7,
        keep_daily: 7,
        keep_weekly: 4,
        keep_monthly: 6,
        ..Retention::default()
    }
}

/// Which backups are kept: those that any of these rules keeps, and in any case the newest one that was read
/// back, the newest that was verified and the newest that was drilled. They are applied after each success; `status.pruneNext` says beforehand what will go. The annotation
/// `lockkeeper.dev/retain` keeps a backup for ever.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.keepLast + self.keepHourly + self.keepDaily + self.keepWeekly + self.keepMonthly + self.keepYearly > 0 || has(self.keepWithin)").message("spec.retention keeps nothing: set one of keepLast, keepHourly, keepDaily, keepWeekly, keepMonthly, keepYearly or keepWithin, or leave retention out"))]
pub struct Retention {
    /// So many of the newest.
    #[serde(default)]
    #[schemars(range(min = 0, max = 1000))]
    pub keep_last: u32,
    /// The newest of so many hours that have one.
    #[serde(default)]
    #[schemars(range(min = 0, max = 1000))]
    pub keep_hourly: u32,
    /// The newest of so many days that have one.
    #[serde(default)]
    #[schemars(range(min = 0, max = 1000))]
    pub keep_daily: u32,
    /// The newest of so many weeks that have one, Monday to Sunday.
    #[serde(default)]
    #[schemars(range(min = 0, max = 1000))]
    pub keep_weekly: u32,
    /// The newest of so many months that have one.
    #[serde(default)]
    #[schemars(range(min = 0, max = 1000))]
    pub keep_monthly: u32,
    /// The newest of so many years that have one.
    #[serde(default)]
    #[schemars(range(min = 0, max = 1000))]
    pub keep_yearly: u32,
    /// All that are at most so much older than the newest: hours, days or weeks, e.g. `36h`, `30d`, `8w`. Not
    /// older than now: while no backup succeeds, none is let go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self.matches('^[1-9][0-9]{0,4}[hdw]$')").message("spec.retention.keepWithin is no duration: write hours, days or weeks, e.g. '36h', '30d' or '8w'"))]
    #[schemars(length(max = 6))]
    pub keep_within: Option<String>,
}

/// How it goes. Made anew from the backups whenever it is lost, `prunedFor` and `lastMissedTime` aside.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EtcdBackupScheduleStatus {
    /// The `metadata.generation` that this status answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// One line.
    #[serde(default)]
    pub message: String,
    /// The backup that is going on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active: Option<String>,
    /// The newest slot that a backup was begun for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_schedule_time: Option<Time>,
    /// When the newest recovery point was complete.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_success_time: Option<Time>,
    /// When the newest failure ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_failure_time: Option<Time>,
    /// The newest slot that was passed over, since its starting deadline was over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_missed_time: Option<Time>,
    /// When the next backup begins, jitter included. In the past: it is due, and the message says what it waits
    /// for. Absent while suspended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_schedule_time: Option<Time>,
    /// When a backup of this schedule was last verified.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_verified_time: Option<Time>,
    /// When a backup of this schedule was last drilled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_drilled_time: Option<Time>,
    /// The newest slot of `spec.drill` that a backup was chosen for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_drill_slot: Option<Time>,
    /// When the next drill begins. In the past: it waits for a recovery point. Absent while suspended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_drill_time: Option<Time>,
    /// Failures since the last success, of the ten failed backups that are kept.
    #[serde(default)]
    pub consecutive_failures: u32,
    /// The backups that can be restored.
    #[serde(default)]
    pub recovery_points: RecoveryPoints,
    /// What goes when the next backup has succeeded, the oldest first: the first 20 of them.
    #[serde(default)]
    pub prune_next: Vec<String>,
    /// How many go then.
    #[serde(default)]
    pub prune_next_count: u32,
    /// The slot of the success that `retention` was last applied after.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pruned_for: Option<Time>,
    /// `Ready` (the newest backup that ended was stored), `Reconciling` (one is going on), `Stalled` (a person is
    /// needed).
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    #[serde(default)]
    pub conditions: Vec<Condition>,
}

/// The backups of a schedule that can be restored.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RecoveryPoints {
    /// How many.
    pub count: u32,
    /// The oldest one's slot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oldest: Option<Time>,
    /// The newest one's slot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub newest: Option<Time>,
    /// Bytes of their snapshot files, all together.
    pub bytes: i64,
}
