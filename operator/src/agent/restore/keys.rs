//! What a restore loses and what it brings back, by etcd's own keys: no values are read.
//!
//! The keys of right before are kept in a file, in order and a line each, so that two lists of any length are
//! compared with the memory of two lines.

use std::cmp::Ordering;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, BufWriter, Write as _};
use std::path::Path;
use std::time::Duration;

use lockkeeper_crds::{RestoreLoss, RestoreReport, RestoredBackup};

use crate::agent::etcd::{EtcdMember, KeySeen};

/// So many keys are named.
const SAMPLES: usize = 10;

/// For a walk over all keys; 1 M keys are some 200 MB on the local line.
const WALK: Duration = Duration::from_secs(60);

/// What only says that something lives is not worth a sample.
const CHATTER: [&str; 4] = [
    "/registry/events/",
    "/registry/leases/",
    "/registry/masterleases/",
    "/lockkeeper.dev/",
];

fn is_chatter(key: &str) -> bool {
    CHATTER.iter().any(|prefix| key.starts_with(prefix))
}

/// A key as a line: what is not plain text is escaped.
fn line(key: &[u8]) -> String {
    key.escape_ascii().to_string()
}

/// Counts what a restore of this backup would lose now. What cannot be counted is told as that: it is no reason not to
/// restore, and a person is to know of it.
pub(crate) async fn count_loss(member: &EtcdMember, backup: &RestoredBackup) -> RestoreLoss {
    let mut loss = RestoreLoss {
        since: backup.taken_at.clone(),
        ..RestoreLoss::default()
    };
    let (cluster_id, revision) = match member.whole().await {
        Ok(read) => read,
        Err(error) => {
            loss.uncounted = Some(error.to_string());
            return loss;
        }
    };
    loss.revision = Some(revision);
    // A restore gives a cluster a new identity.
    loss.revisions = (cluster_id == backup.cluster_id).then(|| (revision - backup.revision).max(0));
    let mut tally = Tally::default();
    let walk = member.each_key(|seen| {
        tally.weigh(&seen, backup.revision);
        Ok(())
    });
    let walked = tokio::time::timeout(WALK, walk).await;
    tally.end(
        &mut loss,
        walked
            .map_err(|_| late())
            .and_then(|w| w.map_err(|e| e.to_string())),
    );
    loss
}

fn late() -> String {
    format!("not done within {} s", WALK.as_secs())
}

/// Keys that were seen to be made and changed since the backup.
#[derive(Debug, Default)]
struct Tally {
    created: i64,
    changed: i64,
    samples: Vec<String>,
}

impl Tally {
    fn weigh(&mut self, seen: &KeySeen, revision: i64) {
        if seen.create_revision > revision {
            self.created += 1;
            let key = line(&seen.key);
            if self.samples.len() < SAMPLES && !is_chatter(&key) {
                self.samples.push(key);
            }
        } else if seen.mod_revision > revision {
            self.changed += 1;
        }
    }

    /// Half a count is none, but worth a word.
    fn end(self, loss: &mut RestoreLoss, walked: Result<(), String>) {
        loss.samples = self.samples;
        match walked {
            Ok(()) => (loss.created, loss.changed) = (Some(self.created), Some(self.changed)),
            Err(why) => {
                loss.uncounted = Some(format!(
                    "{why}; until then {} keys made since were seen, and {} changed",
                    self.created, self.changed
                ));
            }
        }
    }
}

/// Writes all keys to a file.
pub(super) async fn list(member: &EtcdMember, to: &Path) -> Result<(), String> {
    let failed = |error: io::Error| format!("{}: {error}", to.display());
    let mut file = BufWriter::new(File::create(to).map_err(failed)?);
    let walk = member.each_key(|seen| writeln!(file, "{}", line(&seen.key)));
    match tokio::time::timeout(WALK, walk).await {
        Ok(walked) => walked.map_err(|e| e.to_string())?,
        Err(_) => return Err(late()),
    }
    file.flush().map_err(failed)
}

/// Compares two lists.
pub(super) fn compare(before: &Path, after: &Path) -> io::Result<RestoreReport> {
    let lines = |path: &Path| io::Result::Ok(BufReader::new(File::open(path)?).lines());
    let (mut old, mut new) = (lines(before)?, lines(after)?);
    let mut report = RestoreReport::default();
    let (mut a, mut b) = (old.next().transpose()?, new.next().transpose()?);
    loop {
        let order = match (&a, &b) {
            (None, None) => return Ok(report),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(a), Some(b)) => a.cmp(b),
        };
        if order.is_lt() {
            count(&mut report.gone, &mut report.gone_samples, a.as_deref());
        }
        if order.is_gt() {
            count(&mut report.came_back, &mut report.came_back_samples, b.as_deref());
        }
        if order.is_le() {
            a = old.next().transpose()?;
        }
        if order.is_ge() {
            b = new.next().transpose()?;
        }
    }
}

fn count(number: &mut i64, samples: &mut Vec<String>, key: Option<&str>) {
    let Some(key) = key.filter(|k| !k.starts_with("/lockkeeper.dev/")) else {
        return;
    };
    *number += 1;
    if samples.len() < SAMPLES && !is_chatter(key) {
        samples.push(key.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use k8s_openapi::jiff::Timestamp;

    use super::*;

    fn file(directory: &Path, name: &str, keys: &[&str]) -> std::path::PathBuf {
        let path = directory.join(name);
        std::fs::write(&path, keys.iter().map(|k| format!("{k}\n")).collect::<String>()).unwrap();
        path
    }

    #[test]
    fn two_lists_are_compared_line_by_line() {
        let root = tempfile::tempdir().unwrap();
        let before = file(
            root.path(),
            "a",
            &["/registry/a", "/registry/b", "/registry/leases/x"],
        );
        let after = file(
            root.path(),
            "b",
            &[
                "/lockkeeper.dev/restore/x",
                "/registry/b",
                "/registry/c",
                "/registry/d",
            ],
        );
        let report = compare(&before, &after).unwrap();
        assert_eq!((report.gone, report.came_back), (2, 2));
        assert_eq!(report.gone_samples, ["/registry/a"]);
        assert_eq!(report.came_back_samples, ["/registry/c", "/registry/d"]);
    }

    #[test]
    fn keys_made_and_changed_since_are_told_apart_and_half_a_count_is_none() {
        let tally = || {
            let mut tally = Tally::default();
            for (key, made, changed) in [
                ("/registry/a", 5, 5),
                ("/registry/b", 5, 20),
                ("/registry/c", 11, 12),
                ("/registry/events/d", 30, 30),
            ] {
                let seen = KeySeen {
                    key: key.into(),
                    create_revision: made,
                    mod_revision: changed,
                };
                tally.weigh(&seen, 10);
            }
            tally
        };
        let mut loss = RestoreLoss::default();
        tally().end(&mut loss, Ok(()));
        assert_eq!(
            (loss.created, loss.changed, &loss.uncounted),
            (Some(2), Some(1), &None)
        );
        assert_eq!(loss.samples, ["/registry/c"]);
        let mut loss = RestoreLoss::default();
        tally().end(&mut loss, Err(late()));
        assert_eq!((loss.created, loss.changed), (None, None));
        let why = loss.uncounted.unwrap();
        assert!(why.contains("60 s") && why.contains("2 keys made"), "{why}");
    }

    #[tokio::test]
    async fn where_etcd_cannot_be_read_there_is_still_since_when_and_why_no_more() {
        let root = tempfile::tempdir().unwrap();
        let backup = RestoredBackup {
            taken_at: Some(Time(Timestamp::from_second(1_763_700_000).unwrap())),
            ..super::super::testing::backup()
        };
        let loss = count_loss(&EtcdMember::from_host(root.path(), None), &backup).await;
        assert_eq!(loss.since, backup.taken_at);
        assert_eq!((loss.revision, loss.revisions, loss.created), (None, None, None));
        assert!(loss.uncounted.is_some());
    }
}
