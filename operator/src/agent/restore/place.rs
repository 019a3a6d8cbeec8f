//! Where etcd's data lies on this node, and how it is exchanged: by renames within one file system, each of which
//! a power cut leaves done or undone.
//!
//! ```text
//! <data directory>/member                             in use
//! <data directory>/.lockkeeper/<id>/restored/member   the new data, until it is in use; again after an undo
//! <data directory>/.lockkeeper/<id>/before/member     the data of before, while the new is in use and after
//! ```

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use lockkeeper_policies::restore::Live;
use serde::{Deserialize, Serialize};

use crate::agent::host::{self, Host, read_limited};
use crate::agent::manifest;

/// A manifest is a few KiB.
const LARGEST: u64 = 10 * 1024 * 1024;

/// What the node's own etcd manifest says, as far as a restore cares. Paths are the host's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Place {
    /// `--data-dir`.
    pub(crate) data: PathBuf,
    /// Its image: that of the tools too.
    pub(crate) image: String,
    /// `--name`.
    pub(crate) name: String,
    /// `--peer-trusted-ca-file`, `--peer-cert-file`, `--peer-key-file`.
    pub(crate) peer_files: [PathBuf; 3],
}

/// Why a node cannot be restored as it is.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PlaceError {
    #[error("{path} cannot be read: {source}")]
    Read { path: String, source: io::Error },
    #[error("{path}: {problem}")]
    Manifest { path: String, problem: String },
    #[error(
        "{path} is not there as the agent sees it: is etcd's data directory mounted into it (the chart's agent.etcdDataDir)?"
    )]
    Data { path: String },
    #[error(
        "{path} belongs to user {uid}: Lockkeeper restores data of an etcd that runs as root, as kubeadm sets it up"
    )]
    Owner { path: String, uid: u32 },
}

impl Place {
    /// Reads etcd's manifest.
    pub(crate) fn read(host: &Host) -> Result<Self, PlaceError> {
        use std::os::unix::fs::MetadataExt as _;
        let path = host.manifests().join("etcd.yaml");
        let shown = path.display().to_string();
        let bytes = read_limited(&path, LARGEST).map_err(|source| PlaceError::Read {
            path: shown.clone(),
            source,
        })?;
        let problem = |problem: &str| PlaceError::Manifest {
            path: shown.clone(),
            problem: problem.to_owned(),
        };
        let (_, _, pod) = manifest::parse_pod(&path, &bytes).map_err(|e| problem(&e.to_string()))?;
        let container = manifest::container(&pod, "etcd").ok_or_else(|| problem("has no container etcd"))?;
        let image = container.get("image").and_then(serde_yaml::Value::as_str);
        let mut words = manifest::strings(container.get("command"));
        words.extend(manifest::strings(container.get("args")));
        let flag = |name: &str| {
            let value = manifest::flag(&words, name).map(str::to_owned);
            value.ok_or_else(|| problem(&format!("names no --{name}")))
        };
        let place = Self {
            data: flag("data-dir")?.into(),
            image: image.ok_or_else(|| problem("names no image"))?.to_owned(),
            name: flag("name")?,
            peer_files: [
                flag("peer-trusted-ca-file")?.into(),
                flag("peer-cert-file")?.into(),
                flag("peer-key-file")?.into(),
            ],
        };
        if manifest::flag(&words, "wal-dir").is_some_and(|dir| !dir.is_empty()) {
            return Err(problem(
                "has --wal-dir: Lockkeeper exchanges one data directory, and a write-ahead log elsewhere is not in it",
            ));
        }
        let member = host.reach(&place.data).join("member");
        let about = fs::metadata(&member).map_err(|_| PlaceError::Data {
            path: place.data.display().to_string(),
        })?;
        if about.uid() != 0 && host.root() == Path::new("/") {
            return Err(PlaceError::Owner {
                path: place.data.display().to_string(),
                uid: about.uid(),
            });
        }
        Ok(place)
    }
}

/// The folders of one restore.
#[derive(Clone, Debug)]
pub(crate) struct Folders {
    data: PathBuf,
    own: PathBuf,
}

impl Folders {
    pub(crate) fn new(host: &Host, place: &Place, id: &str) -> Self {
        let data = host.reach(&place.data);
        Self {
            own: data.join(".lockkeeper").join(id),
            data,
        }
    }

    /// As a container that has the data directory at its own path reaches it.
    pub(crate) fn inside(place: &Place, id: &str) -> PathBuf {
        place.data.join(".lockkeeper").join(id)
    }

    pub(crate) fn own(&self) -> &Path {
        &self.own
    }

    pub(crate) fn snapshot(&self) -> PathBuf {
        self.own.join("snapshot.db")
    }

    fn live_member(&self) -> PathBuf {
        self.data.join("member")
    }

    fn before(&self) -> PathBuf {
        self.own.join("before/member")
    }

    fn restored(&self) -> PathBuf {
        self.own.join("restored/member")
    }

    /// True when the new data lies beside the data in use.
    pub(crate) fn is_prepared(&self) -> bool {
        self.restored().is_dir()
    }

    /// Which data etcd would take. The data of before is in exactly one of its two places.
    pub(crate) fn live(&self) -> Live {
        let there = |path: &Path| match fs::symlink_metadata(path) {
            Ok(about) => Ok(about.is_dir()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(format!("{} cannot be looked at: {error}", path.display())),
        };
        match (there(&self.live_member()), there(&self.before())) {
            (Ok(true), Ok(false)) => Live::Old,
            (Ok(true), Ok(true)) => Live::New,
            (Ok(false), Ok(true)) => Live::Neither,
            (Ok(false), Ok(false)) => Live::Unknown(format!(
                "neither {} nor {} is there: somebody has moved etcd's data; put it back at the first of the two",
                self.live_member().display(),
                self.before().display()
            )),
            (Err(why), _) | (_, Err(why)) => Live::Unknown(why),
        }
    }

    /// The new data into its place, the old one aside. Goes on where it was interrupted.
    pub(crate) fn swap_in(&self) -> io::Result<()> {
        if self.live() == Live::Old {
            // Nothing is moved before what is to come is there.
            fs::metadata(self.restored())?;
            host::create_directory(&self.own.join("before"))?;
            host::rename(&self.live_member(), &self.before())?;
        }
        if self.live() == Live::Neither {
            host::rename(&self.restored(), &self.live_member())?;
        }
        Ok(())
    }

    /// The old data back into its place, the new one aside.
    pub(crate) fn swap_out(&self) -> io::Result<()> {
        if self.live() == Live::New {
            host::create_directory(&self.own.join("restored"))?;
            host::rename(&self.live_member(), &self.restored())?;
        }
        if self.live() == Live::Neither {
            host::rename(&self.before(), &self.live_member())?;
        }
        Ok(())
    }

    /// Removes what a restore that has ended needs no more: all but the data of before, where that is aside.
    pub(crate) fn clear(&self) -> io::Result<()> {
        host::remove(&self.snapshot())?;
        host::remove_tree(&self.own.join("restored"))?;
        if !self.before().exists() {
            host::remove_tree(&self.own)?;
        }
        Ok(())
    }

    /// Removes what earlier restores left beside the data, the data of before them too. Only while nothing of it
    /// can be needed: before a restore begins, and for none whose data of before is not in use.
    pub(crate) fn clear_earlier(&self) -> io::Result<()> {
        let Some(all) = self.own.parent() else {
            return Ok(());
        };
        let entries = match fs::read_dir(all) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries?,
        };
        if !self.live_member().is_dir() {
            return Ok(());
        }
        for entry in entries {
            let path = entry?.path();
            if path != self.own {
                host::remove_tree(&path)?;
            }
        }
        Ok(())
    }

    /// Bytes that are free where the data lies.
    pub(crate) fn free_bytes(&self) -> io::Result<u64> {
        host::free_bytes(&self.data)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::host::power;

    fn node() -> (tempfile::TempDir, Folders) {
        let root = tempfile::tempdir().unwrap();
        let host = Host::new(root.path(), Path::new("/manifests"), Path::new("/state"));
        let place = Place {
            data: "/var/lib/etcd".into(),
            image: "etcd".to_owned(),
            name: "cp1".to_owned(),
            peer_files: [PathBuf::new(), PathBuf::new(), PathBuf::new()],
        };
        let folders = Folders::new(&host, &place, "id");
        fs::create_dir_all(folders.live_member()).unwrap();
        fs::write(folders.live_member().join("data"), "old").unwrap();
        fs::create_dir_all(folders.restored()).unwrap();
        fs::write(folders.restored().join("data"), "new").unwrap();
        (root, folders)
    }

    fn data(folders: &Folders) -> String {
        fs::read_to_string(folders.live_member().join("data")).unwrap_or_default()
    }

    #[test]
    fn cut_anywhere_an_exchange_goes_on_to_its_end_and_back() {
        for cut in 1..20 {
            let (_root, folders) = node();
            power::set(Some(cut));
            let first = folders.swap_in();
            power::set(None);
            assert!(first.is_err() || data(&folders) == "new");
            folders.swap_in().unwrap();
            assert_eq!((folders.live(), data(&folders).as_str()), (Live::New, "new"));
            power::set(Some(cut));
            let first = folders.swap_out();
            power::set(None);
            assert!(first.is_err() || data(&folders) == "old");
            folders.swap_out().unwrap();
            assert_eq!((folders.live(), data(&folders).as_str()), (Live::Old, "old"));
            assert!(folders.is_prepared(), "the new data is kept aside");
        }
    }

    #[test]
    fn a_cut_exchange_can_be_taken_back_from_the_middle() {
        for cut in 1..8 {
            let (_root, folders) = node();
            power::set(Some(cut));
            let _ = folders.swap_in();
            power::set(None);
            folders.swap_out().unwrap();
            assert_eq!((folders.live(), data(&folders).as_str()), (Live::Old, "old"));
        }
    }

    #[test]
    fn without_new_data_nothing_is_moved_and_clearing_spares_the_data_of_before() {
        let (_root, folders) = node();
        folders.swap_in().unwrap();
        folders.clear().unwrap();
        assert!(folders.before().join("data").exists());
        folders.swap_out().unwrap();
        folders.clear().unwrap();
        assert!(!folders.own.exists());
        assert!(folders.swap_in().is_err());
        assert_eq!(data(&folders), "old");
    }
}
