//! The data directory: copied aside, moved aside, put back. Each may be killed in the middle and done again.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use super::super::host;

/// What lies in etcd's data directory.
const MEMBER: &str = "member";

/// More than this must stay free after a copy: the journal and etcd's own log go on.
const MARGIN: u64 = 256 * 1024 * 1024;

/// Why the data could not be copied or moved.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DataError {
    #[error("{doing} {path}: {source}")]
    Io {
        doing: &'static str,
        path: String,
        source: io::Error,
    },
    #[error(
        "{needed} MiB are needed for a copy of {data}, and {free} MiB are free at {at}: make room, or name another place by --copy-to DIR"
    )]
    Space {
        needed: u64,
        free: u64,
        data: String,
        at: String,
    },
    #[error("the copy {0} is not as large as what was copied: remove it and run the same command again")]
    Short(String),
}

fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DataError {
    let path = path.display().to_string();
    move |source| DataError::Io { doing, path, source }
}

/// Whether a member's data lie there.
pub(crate) fn is_there(directory: &Path) -> bool {
    directory.join(MEMBER).is_dir()
}

/// Bytes of a member's data.
pub(crate) fn size(directory: &Path) -> Result<u64, DataError> {
    let mut total = 0;
    walk(&directory.join(MEMBER), &mut |_, about| total += about.len())
        .map_err(failed("cannot measure", directory))?;
    Ok(total)
}

fn walk(directory: &Path, see: &mut impl FnMut(&Path, &fs::Metadata)) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let about = fs::symlink_metadata(&path)?;
        if about.is_dir() {
            walk(&path, see)?;
        } else {
            see(&path, &about);
        }
    }
    Ok(())
}

/// Whether a copy fits.
pub(crate) fn room(data: &Path, at: &Path) -> Result<(), DataError> {
    let needed = size(data)?.saturating_add(MARGIN);
    let there = host::existing(at);
    let free = host::free_bytes(there).map_err(failed("cannot measure the space at", there))?;
    if needed <= free {
        return Ok(());
    }
    Err(DataError::Space {
        needed: needed >> 20,
        free: free >> 20,
        data: data.display().to_string(),
        at: there.display().to_string(),
    })
}

/// Copies the member's data from one directory into another, whole or not at all.
pub(crate) fn copy(from: &Path, into: &Path) -> Result<(), DataError> {
    let partial = into.join(".member.lockkeeper");
    make(into).map_err(failed("cannot make", into))?;
    host::remove_tree(&partial).map_err(failed("cannot remove", &partial))?;
    copy_all(&from.join(MEMBER), &partial).map_err(failed("cannot copy to", into))?;
    let (mut original, mut copied) = (0, 0);
    walk(&from.join(MEMBER), &mut |_, about| original += about.len())
        .map_err(failed("cannot measure", from))?;
    walk(&partial, &mut |_, about| copied += about.len()).map_err(failed("cannot measure", &partial))?;
    if original != copied {
        return Err(DataError::Short(partial.display().to_string()));
    }
    host::step().map_err(failed("cannot copy to", into))?;
    rename(&partial, &into.join(MEMBER))
}

/// Throws a copy away.
pub(crate) fn discard(aside: &Path) -> Result<(), DataError> {
    let copy = aside.join(MEMBER);
    host::remove_tree(&copy).map_err(failed("cannot remove", &copy))
}

/// Replaces the member's data in a directory by a copy of those that lie aside.
pub(crate) fn put_back(aside: &Path, data: &Path) -> Result<(), DataError> {
    if !is_there(aside) {
        return Ok(());
    }
    let changed = data.join(MEMBER);
    host::step().map_err(failed("cannot remove", &changed))?;
    // What is removed came from this very copy.
    host::remove_tree(&changed).map_err(failed("cannot remove", &changed))?;
    copy(aside, data)
}

/// Moves a member's data from one directory into another, within a file system.
pub(crate) fn shift(from: &Path, into: &Path) -> Result<(), DataError> {
    make(into).map_err(failed("cannot make", into))?;
    host::step().map_err(failed("cannot move", from))?;
    rename(&from.join(MEMBER), &into.join(MEMBER))
}

/// Moves the old data back from aside; what came in their place since was got from another member.
pub(crate) fn move_back(aside: &Path, data: &Path) -> Result<(), DataError> {
    if !is_there(aside) {
        return Ok(());
    }
    let newer = data.join(MEMBER);
    host::step().map_err(failed("cannot remove", &newer))?;
    host::remove_tree(&newer).map_err(failed("cannot remove", &newer))?;
    shift(aside, data)
}

/// Takes restored data out of their place again, and moves the old data back, if there were any. What was restored
/// goes where it waited, what is neither goes aside too; nothing is removed.
pub(crate) fn take_back(restored: &Path, aside: &Path, data: &Path) -> Result<(), DataError> {
    match (is_there(data), is_there(restored), is_there(aside)) {
        // It was placed.
        (true, false, _) => shift(data, restored)?,
        // A late etcd's own.
        (true, true, true) => shift(data, &stray_of(aside))?,
        // The old ones, never moved; or none at all.
        (true, true, false) | (false, ..) => {}
    }
    if is_there(aside) && !is_there(data) {
        shift(aside, data)?;
    }
    Ok(())
}

/// Where data go that a late etcd made after the old ones were moved.
pub(crate) fn stray_of(aside: &Path) -> PathBuf {
    let name = aside.file_name().unwrap_or_default().to_string_lossy();
    aside.with_file_name(format!("{name}-late"))
}

/// A place for old data beside the new: the same file system also where the directory is a mount of its own.
pub(crate) fn aside_of(data: &Path, id: &str) -> PathBuf {
    let name = data
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let sibling = data.with_file_name(format!("{name}.before-{id}"));
    let device = |path: &Path| fs::metadata(path).map(|about| about.dev()).ok();
    if data.parent().and_then(device) == device(data) {
        sibling
    } else {
        data.join(format!("before-{id}"))
    }
}

fn make(directory: &Path) -> io::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
}

fn rename(from: &Path, to: &Path) -> Result<(), DataError> {
    host::rename(from, to).map_err(failed("cannot rename to", to))
}

fn copy_all(from: &Path, to: &Path) -> io::Result<()> {
    make(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (path, target) = (entry.path(), to.join(entry.file_name()));
        let about = fs::symlink_metadata(&path)?;
        if about.is_dir() {
            copy_all(&path, &target)?;
        } else if about.is_file() {
            host::step()?;
            fs::copy(&path, &target)?;
            let file = File::open(&target)?;
            std::os::unix::fs::fchown(&file, Some(about.uid()), Some(about.gid()))?;
            file.sync_all()?;
        }
    }
    let about = fs::metadata(from)?;
    fs::set_permissions(to, fs::Permissions::from_mode(about.mode() & 0o7777))?;
    std::os::unix::fs::chown(to, Some(about.uid()), Some(about.gid()))?;
    File::open(to)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(at: &Path, text: &str) {
        fs::create_dir_all(at.join("member/snap")).unwrap();
        fs::write(at.join("member/snap/db"), text).unwrap();
    }

    fn text(at: &Path) -> String {
        fs::read_to_string(at.join("member/snap/db")).unwrap()
    }

    #[test]
    fn a_copy_is_whole_and_put_back_leaves_it_where_it_is() {
        let root = tempfile::tempdir().unwrap();
        let (data, aside) = (root.path().join("etcd"), root.path().join("copy"));
        member(&data, "before");
        room(&data, &aside).unwrap();
        // Left by one that was killed.
        fs::create_dir_all(aside.join(".member.lockkeeper/half")).unwrap();
        copy(&data, &aside).unwrap();
        member(&data, "forced");
        put_back(&aside, &data).unwrap();
        assert_eq!((text(&data), text(&aside)), ("before".into(), "before".into()));
        assert_eq!(fs::read_dir(&data).unwrap().count(), 1);
    }

    #[test]
    fn old_data_are_moved_to_a_place_of_the_same_file_system() {
        let root = tempfile::tempdir().unwrap();
        let data = root.path().join("etcd");
        member(&data, "old");
        let aside = aside_of(&data, "1");
        assert_eq!(aside, root.path().join("etcd.before-1"));
        shift(&data, &aside).unwrap();
        assert!(!is_there(&data) && text(&aside) == "old");
    }
}
