//! What no look from time to time would see: two backups at once, and one slot twice.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use chrono::{NaiveDateTime, TimeDelta};
use kube::api::ListParams;
use lockkeeper_crds::{EtcdBackup, SCHEDULE_LABEL};
use tokio::task::JoinHandle;

use super::NAME;
use super::stage::Stage;

/// The slot in a name.
pub(in crate::scenarios) fn slot(name: &str) -> Option<NaiveDateTime> {
    NaiveDateTime::parse_from_str(name.strip_prefix(NAME)?.strip_prefix('-')?, "%Y%m%d-%H%M").ok()
}

/// Fails where a minute was left out.
pub(in crate::scenarios) fn consecutive(names: &BTreeSet<String>) -> Result<()> {
    let slots: Vec<NaiveDateTime> = names.iter().filter_map(|n| slot(n)).collect();
    for (one, next) in slots.iter().zip(slots.iter().skip(1)) {
        ensure!(
            *next - *one == TimeDelta::minutes(1),
            "between {one} and {next} a slot was missed"
        );
    }
    Ok(())
}

/// Looks at the schedule's backups twice a second: two at once, or one name twice, fails the scenario.
pub(in crate::scenarios) struct Watcher {
    task: JoinHandle<()>,
    seen: Arc<Mutex<Seen>>,
}

#[derive(Default)]
struct Seen {
    uids: BTreeMap<String, String>,
    broken: Vec<String>,
}

impl Watcher {
    pub(in crate::scenarios) fn start(stage: &Stage<'_>) -> Self {
        let seen: Arc<Mutex<Seen>> = Arc::default();
        let (backups, shared) = (stage.backups.clone(), Arc::clone(&seen));
        let task = tokio::spawn(async move {
            loop {
                let params = ListParams::default().labels(&format!("{SCHEDULE_LABEL}={NAME}"));
                if let Ok(list) = backups.list(&params).await {
                    shared
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .look(&list.items);
                }
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        });
        Self { task, seen }
    }

    /// The names of all that were begun so far.
    pub(in crate::scenarios) fn so_far(&self) -> Result<BTreeSet<String>> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(broken) = seen.broken.first() {
            bail!("{broken}");
        }
        Ok(seen.uids.keys().cloned().collect())
    }

    pub(in crate::scenarios) fn close(self) -> Result<()> {
        self.so_far().map(drop)
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Seen {
    fn look(&mut self, backups: &[EtcdBackup]) {
        let named = |b: &EtcdBackup| Some((b.metadata.name.clone()?, b.metadata.uid.clone()?));
        let mut going = Vec::new();
        for backup in backups {
            let Some((name, uid)) = named(backup).filter(|(name, _)| slot(name).is_some()) else {
                continue;
            };
            if !backup.is_finished() && backup.metadata.deletion_timestamp.is_none() {
                going.push(name.clone());
            }
            if *self.uids.entry(name.clone()).or_insert_with(|| uid.clone()) != uid {
                self.broken.push(format!("{name} was made twice"));
            }
        }
        if going.len() > 1 {
            self.broken.push(format!("at once: {}", going.join(", ")));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenarios::backup_schedule::BY_HAND;
    use serde_json::json;

    fn backup(name: &str, uid: &str, finished: bool) -> EtcdBackup {
        let status = if finished {
            json!({"completedAt": "2026-11-01T00:00:00Z"})
        } else {
            json!({})
        };
        serde_json::from_value(json!({
            "apiVersion": "lockkeeper.dev/v1alpha1", "kind": "EtcdBackup", "metadata": {"name": name, "uid": uid},
            "spec": {"storeRef": {"name": "default"}}, "status": status,
        }))
        .unwrap()
    }

    #[test]
    fn a_doubled_slot_and_two_at_once_are_seen() {
        let one = backup("every-minute-20261101-0000", "a", true);
        let next = backup("every-minute-20261101-0001", "b", false);
        let mut seen = Seen::default();
        seen.look(&[one.clone(), next.clone(), backup(BY_HAND, "c", false)]);
        assert_eq!(seen.broken, [""; 0]);
        seen.look(&[backup("every-minute-20261101-0000", "z", true)]);
        assert_eq!(seen.broken, ["every-minute-20261101-0000 was made twice"]);
        seen.look(&[next, backup("every-minute-20261101-0002", "d", false)]);
        assert!(seen.broken[1].starts_with("at once"), "{:?}", seen.broken);
    }

    #[test]
    fn a_minute_that_was_left_out_is_seen() {
        let names = |minutes: &[u32]| {
            minutes
                .iter()
                .map(|m| format!("{NAME}-20261101-00{m:02}"))
                .collect()
        };
        consecutive(&names(&[58, 59])).unwrap();
        assert!(consecutive(&names(&[1, 2, 4])).is_err());
    }
}
