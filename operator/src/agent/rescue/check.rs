//! Whether etcd takes a snapshot: restored into a directory of its own by `etcdutl` of this node's etcd image.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::super::chore::{self, Chore, Mount};
use super::super::cri::Cri;
use super::super::host::{self, Host};
use super::book::Book;
use super::start;
use super::survey;

/// 8 GiB, the largest etcd that is supported, is written in a few minutes on a slow disk.
const LIMIT: Duration = Duration::from_secs(1800);

/// Where the chore finds the directory of the snapshot.
const INSIDE: &str = "/scratch";

/// What `etcdutl snapshot status -w json` tells.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Verified {
    pub(crate) hash: u32,
    pub(crate) revision: i64,
    #[serde(rename = "totalKey")]
    pub(crate) keys: i64,
    #[serde(rename = "totalSize")]
    pub(crate) size: i64,
}

/// Whether twice the snapshot's size is free where it is unpacked.
pub(crate) fn room(scratch: &Path, size: u64) -> Result<(), String> {
    let there = host::existing(scratch);
    let free = host::free_bytes(there).map_err(|e| format!("{}: {e}", there.display()))?;
    let needed = size.saturating_mul(2);
    if free >= needed {
        return Ok(());
    }
    Err(format!(
        "{} MiB are needed to unpack it twice, and {} MiB are free at {}: name another place by --scratch DIR",
        needed >> 20,
        free >> 20,
        there.display()
    ))
}

/// Restores the snapshot and reads its head.
///
/// # Errors
/// A sentence: what etcdutl said, or why it could not be run.
pub(crate) async fn verify(
    host: &Host,
    cri: &Cri,
    file: &Path,
    tell: &(dyn Fn(&str) + Sync),
    cancel: &CancellationToken,
) -> Result<Verified, String> {
    let image = survey::etcd_manifest(host)?.pod.image;
    let (Some(directory), Some(name)) = (file.parent(), file.file_name()) else {
        return Err(format!("{} is no file's path", file.display()));
    };
    let book = Book::new(host.clone());
    let was_marked = super::in_hand(host).is_some();
    let _claim = start::claim(host, &book, cancel)
        .await
        .map_err(|e| e.to_string())?;
    let restored = directory.join("restored");
    let run = |words: &[&str]| {
        let mut command = vec!["etcdutl".to_owned(), "snapshot".to_owned()];
        command.extend(words.iter().map(|word| (*word).to_owned()));
        Chore {
            name: "verify".to_owned(),
            image: image.clone(),
            command,
            mounts: vec![Mount {
                host: directory.to_owned(),
                inside: PathBuf::from(INSIDE),
                read_only: false,
            }],
            host_network: true,
            ..Chore::default()
        }
    };
    let inside = format!("{INSIDE}/{}", name.to_string_lossy());
    let work = async {
        chore::clear(host).map_err(|e| e.to_string())?;
        host::remove_tree(&restored).map_err(|e| format!("{}: {e}", restored.display()))?;
        tell(&format!(
            "etcdutl of {image} restores it into a directory of its own"
        ));
        let into = format!("--data-dir={INSIDE}/restored");
        run(&["restore", &inside, &into])
            .run(host, cri, LIMIT, cancel)
            .await
            .map_err(|e| e.to_string())?;
        tell("etcdutl reads what was restored");
        let database = format!("{INSIDE}/restored/member/snap/db");
        let said = run(&["status", &database, "-w", "json"])
            .run(host, cri, LIMIT, cancel)
            .await
            .map_err(|e| e.to_string())?;
        status(&said)
    };
    let verified = work.await;
    let cleared =
        host::remove_tree(&restored).map_err(|e| format!("{} cannot be removed: {e}", restored.display()));
    if !was_marked {
        book.unmark().map_err(|e| e.to_string())?;
    }
    cleared.and(verified)
}

/// The last line that is the status.
fn status(said: &str) -> Result<Verified, String> {
    let found = said.lines().rev().find_map(|line| {
        let json = line.get(line.find('{')?..)?;
        serde_json::from_str::<Verified>(json).ok()
    });
    match found {
        Some(verified) if verified.keys > 0 => Ok(verified),
        Some(_) => Err("it has no keys: it is of an etcd in which nothing was".to_owned()),
        None => Err(format!("etcdutl did not tell what it is: {}", said.trim())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_is_found_behind_the_logs_marks() {
        let said = "2026-11-21T15:00:00Z stdout F {\"hash\":3,\"revision\":42,\"totalKey\":17,\"totalSize\":4096,\"version\":\"3.6.0\"}\n";
        let verified = status(said).unwrap();
        assert_eq!((verified.revision, verified.keys), (42, 17));
        let empty = "{\"hash\":3,\"revision\":1,\"totalKey\":0,\"totalSize\":4096}";
        assert!(status(empty).unwrap_err().contains("no keys"));
        assert!(status("panic").unwrap_err().contains("panic"));
    }
}
