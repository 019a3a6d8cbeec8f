//! The directory that a backup is restored in: on a disk of its own, with room, and gone afterwards.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::{ProofConfig, ProofError};
use crate::agent::host::{self, Host};

/// Beside two copies of the snapshot: etcd's log, 64 MB a file, and what an API server writes at its start.
const MARGIN: u64 = 256 * MIB;

const MIB: u64 = 1024 * 1024;

/// Where a proof happens.
#[derive(Clone, Debug)]
pub(super) struct Place {
    /// As this process reaches it.
    directory: PathBuf,
    /// As the host names it.
    on_host: PathBuf,
    host: Host,
    any_disk: bool,
}

impl Place {
    pub(super) fn new(host: &Host, config: &ProofConfig) -> Self {
        let on_host = config.work_directory.join("proof");
        Self {
            directory: host.reach(&on_host),
            on_host,
            host: host.clone(),
            any_disk: config.proof_on_etcd_disk,
        }
    }

    /// A file in it, as this process reaches it.
    pub(super) fn inside(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// The directory as the host names it.
    pub(super) fn on_host(&self) -> &Path {
        &self.on_host
    }

    /// Makes it, empty, where it may be and where there is room for a snapshot of so many bytes.
    ///
    /// `data`: etcd's data directory, as the host names it.
    pub(super) fn make(&self, data: &Path, size: u64) -> Result<(), ProofError> {
        self.clear()?;
        let made = |source| ProofError::File {
            path: self.directory.clone(),
            doing: "made",
            source,
        };
        host::create_directory(&self.directory).map_err(made)?;
        if !self.any_disk {
            self.on_another_disk(data)?;
        }
        let free = host::free_bytes(&self.directory).map_err(made)?;
        enough(&self.on_host, free, size)
    }

    /// Two bind mounts, and two volumes of one file system, have the device of the file system.
    fn on_another_disk(&self, data: &Path) -> Result<(), ProofError> {
        let device = |path: &Path| fs::metadata(path).map(|about| about.dev());
        let work = device(&self.directory).map_err(|source| ProofError::File {
            path: self.directory.clone(),
            doing: "looked at",
            source,
        })?;
        match device(&self.host.reach(data)) {
            Ok(of_etcd) if of_etcd != work => Ok(()),
            Ok(_) => Err(ProofError::SameDisk {
                work: self.on_host.clone(),
                data: data.to_owned(),
            }),
            Err(source) => Err(ProofError::DiskUnknown {
                work: self.on_host.clone(),
                data: data.to_owned(),
                source,
            }),
        }
    }

    pub(super) fn remove(&self, file: &Path) -> Result<(), ProofError> {
        fs::remove_file(file).map_err(|source| ProofError::File {
            path: file.to_owned(),
            doing: "removed",
            source,
        })
    }

    /// Removes it with all that is in it.
    pub(super) fn clear(&self) -> Result<(), ProofError> {
        host::remove_tree(&self.directory).map_err(|source| ProofError::File {
            path: self.directory.clone(),
            doing: "removed",
            source,
        })
    }
}

/// Whether `free` bytes are enough to prove a snapshot of `size` bytes.
fn enough(work: &Path, free: u64, size: u64) -> Result<(), ProofError> {
    let need = size.saturating_mul(2).saturating_add(MARGIN);
    if free >= need {
        return Ok(());
    }
    Err(ProofError::Space {
        work: work.to_owned(),
        free_mib: free / MIB,
        need_mib: need / MIB,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(root: &Path, any_disk: bool) -> Place {
        let host = Host::new(root, Path::new("/manifests"), Path::new("/state"));
        let config = ProofConfig {
            work_directory: "/work".into(),
            proof_on_etcd_disk: any_disk,
            proof_memory_mib: 1024,
            proof_cpu_millis: 1000,
        };
        Place::new(&host, &config)
    }

    #[test]
    fn the_disk_of_etcd_is_refused_unless_it_is_allowed_and_so_is_one_that_cannot_be_told() {
        let root = tempfile::tempdir().unwrap();
        let data = Path::new("/var/lib/etcd");
        let refused = place(root.path(), false).make(data, 1).unwrap_err();
        assert_eq!(refused.reason(), "DiskUnknown");
        fs::create_dir_all(root.path().join("var/lib/etcd")).unwrap();
        let refused = place(root.path(), false).make(data, 1).unwrap_err();
        assert_eq!(refused.reason(), "SameDisk");
        assert!(refused.to_string().contains("agent.workDirectory"), "{refused}");
        place(root.path(), true).make(data, 1).unwrap();
    }

    #[test]
    fn another_file_system_is_another_disk() {
        // A file system of its own wherever Linux runs.
        let root = tempfile::tempdir().unwrap();
        let there = place(root.path(), false);
        fs::create_dir_all(&there.directory).unwrap();
        let proc = Place {
            host: Host::new(Path::new("/"), Path::new("/m"), Path::new("/s")),
            ..there
        };
        proc.on_another_disk(Path::new("/proc")).unwrap();
    }

    #[test]
    fn it_begins_empty_and_nothing_is_left() {
        let root = tempfile::tempdir().unwrap();
        let place = place(root.path(), true);
        place.make(Path::new("/x"), 1).unwrap();
        fs::write(place.inside("half"), "of a killed agent").unwrap();
        place.make(Path::new("/x"), 1).unwrap();
        assert_eq!(fs::read_dir(&place.directory).unwrap().count(), 0);
        assert_eq!(fs::metadata(&place.directory).unwrap().mode() & 0o777, 0o700);
        place.clear().unwrap();
        place.clear().unwrap();
        assert!(!place.directory.exists());
    }

    #[test]
    fn room_is_needed_for_two_copies_and_some() {
        let work = Path::new("/work");
        enough(work, 256 * MIB + 200, 100).unwrap();
        let error = enough(work, 300 * MIB, 100 * MIB).unwrap_err();
        assert_eq!(error.reason(), "NoSpace");
        assert!(error.to_string().contains("456 MiB are needed"), "{error}");
    }
}
