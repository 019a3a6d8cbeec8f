//! Where things lie on the host, and how a file is written so that a power cut leaves the old one or the new.
//!
//! The `DaemonSet` mounts the host's directories at their own paths, so the root is `/`; tests put another one.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown};
use std::path::{Path, PathBuf};

use lockkeeper_crds::Component;

/// Paths of one control-plane node.
#[derive(Clone, Debug)]
pub(crate) struct Host {
    root: PathBuf,
    manifests: PathBuf,
    state: PathBuf,
}

impl Host {
    pub(crate) fn new(root: &Path, manifests: &Path, state: &Path) -> Self {
        Self {
            root: root.to_owned(),
            manifests: under(root, manifests),
            state: under(root, state),
        }
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// The kubelet's static pod directory.
    pub(crate) fn manifests(&self) -> &Path {
        &self.manifests
    }

    pub(crate) fn manifest(&self, component: Component) -> PathBuf {
        self.manifests.join(format!("{component}.yaml"))
    }

    /// The agent's own directory: journal, copies of manifests, files for a rehearsal.
    pub(crate) fn state(&self) -> &Path {
        &self.state
    }

    /// `/etc/kubernetes`.
    pub(crate) fn kubernetes(&self) -> PathBuf {
        self.root.join("etc/kubernetes")
    }

    /// A path as the host names it, as this process reaches it.
    pub(crate) fn reach(&self, path: &Path) -> PathBuf {
        under(&self.root, path)
    }

    /// A path as this process reaches it, as the host names it.
    pub(crate) fn on_host(&self, path: &Path) -> PathBuf {
        under(Path::new("/"), path.strip_prefix(&self.root).unwrap_or(path))
    }
}

/// A path of the host under the directory where the host's root is mounted.
pub(crate) fn under(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

/// Reads a file of at most `limit` bytes.
pub(crate) fn read_limited(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("larger than {limit} bytes"),
        ));
    }
    Ok(bytes)
}

/// Replaces `path` by `bytes` in one rename(2), durably.
///
/// The temporary file is a dot-file in the same directory: the kubelet reads every other file whatever its
/// suffix (facts.md 5.1), and a rename within a directory is atomic, so at no moment is there no file or half
/// a file. Mode and owner are those of the file that is replaced, or `mode` for a new one.
pub(crate) fn replace(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a file's path"));
    };
    let mut dotted = std::ffi::OsString::from(".");
    dotted.push(name);
    dotted.push(".lockkeeper");
    let temporary = directory.join(dotted);
    let result = step()
        .and_then(|()| write_new(&temporary, path, bytes, mode))
        .and_then(|()| step())
        .and_then(|()| fs::rename(&temporary, path))
        .and_then(|()| step())
        .and_then(|()| sync_directory(directory));
    if result.is_err() && step().is_ok() {
        // Best effort: a dot-file is harmless, and the next attempt begins with removing it.
        let _ = fs::remove_file(&temporary);
    }
    result
}

/// A point at which a test may cut the power.
#[cfg(not(test))]
#[allow(clippy::unnecessary_wraps)] // the test's twin fails
pub(crate) fn step() -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
pub(crate) fn step() -> io::Result<()> {
    power::step()
}

/// Cuts the power after so many steps, for this thread.
#[cfg(test)]
pub(crate) mod power {
    use std::cell::Cell;
    use std::io;

    thread_local!(static LEFT: Cell<Option<u32>> = const { Cell::new(None) });

    /// None: never.
    pub(crate) fn set(steps: Option<u32>) {
        LEFT.set(steps);
    }

    pub(crate) fn is_cut() -> bool {
        LEFT.get() == Some(0)
    }

    pub(super) fn step() -> io::Result<()> {
        match LEFT.get() {
            None => Ok(()),
            Some(0) => Err(io::Error::other("the power is cut")),
            Some(n) => {
                LEFT.set(Some(n - 1));
                if n == 1 {
                    Err(io::Error::other("the power is cut"))
                } else {
                    Ok(())
                }
            }
        }
    }
}

fn write_new(temporary: &Path, model: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    match fs::remove_file(temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(temporary)?;
    if let Ok(old) = fs::metadata(model) {
        let own = file.metadata()?;
        if (own.uid(), own.gid()) != (old.uid(), old.gid()) {
            fchown(&file, Some(old.uid()), Some(old.gid()))?;
        }
        file.set_permissions(fs::Permissions::from_mode(old.mode() & 0o7777))?;
    }
    file.write_all(bytes)?;
    file.sync_all()
}

/// Removes a file durably; one that is not there is not missed.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Ok(()) => path.parent().map_or(Ok(()), sync_directory),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Removes a directory with all that is in it; one that is not there is not missed.
pub(crate) fn remove_tree(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// A rename that a power cut leaves done or undone.
pub(crate) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    step()?;
    fs::rename(from, to)?;
    step()?;
    for directory in [to.parent(), from.parent()].into_iter().flatten() {
        sync_directory(directory)?;
    }
    step()
}

/// The first directory that is there already: the path itself or one above it.
pub(crate) fn existing(path: &Path) -> &Path {
    path.ancestors()
        .find(|path| path.is_dir())
        .unwrap_or(Path::new("/"))
}

/// Bytes that are free for this process where a directory lies.
pub(crate) fn free_bytes(directory: &Path) -> io::Result<u64> {
    let about = rustix::fs::statvfs(directory)?;
    Ok(about.f_bavail.saturating_mul(about.f_frsize))
}

/// Makes a rename or removal in a directory durable.
fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// Creates a directory of the agent's own, readable by nobody else, and makes it durable in its parent.
pub(crate) fn create_directory(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    path.parent().map_or(Ok(()), sync_directory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replaced_file_keeps_its_mode_and_leaves_nothing_beside_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("kube-apiserver.yaml");
        fs::write(&path, "old").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        fs::write(
            directory.path().join(".kube-apiserver.yaml.lockkeeper"),
            "left by a crash",
        )
        .unwrap();
        replace(&path, b"new", 0o600).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o640);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn paths_of_the_host_are_reached_under_the_root() {
        let host = Host::new(
            Path::new("/r"),
            Path::new("/etc/kubernetes/manifests"),
            Path::new("/var/lib/lockkeeper"),
        );
        assert_eq!(
            host.manifest(Component::KubeScheduler),
            Path::new("/r/etc/kubernetes/manifests/kube-scheduler.yaml")
        );
        assert_eq!(
            host.reach(Path::new("/var/log/pods/x")),
            Path::new("/r/var/log/pods/x")
        );
    }
}
