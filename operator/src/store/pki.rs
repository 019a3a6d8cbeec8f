//! The node's PKI beside a snapshot: a small tar, packed and always encrypted. A restore on new machines needs it.
//!
//! [`archive`] makes it, [`Store::fetch_pki`] brings it back as files with their modes and owners, and [`place`] puts
//! those on a disk. What comes out of a tar is not trusted: a path that leads out of its root is refused, and so is
//! what is no plain file.

use std::io::{Read, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Component, Path, PathBuf};

use tokio_util::sync::CancellationToken;

use super::fetch::plain;
use super::pack::Unreadable;
use super::{BackupKey, Failure, Identities, Manifest, Store, StoreError};

/// All of it, packed or not. kubeadm's are under 64 KiB; this leaves room for many a certificate, and bounds memory.
pub const MOST_BYTES: u64 = 4 * 1024 * 1024;

/// Files in it.
pub const MOST_FILES: usize = 512;

/// One file of a node.
#[derive(Clone, PartialEq, Eq)]
pub struct PkiFile {
    /// Below the root directory, without a leading `/`: `etc/kubernetes/pki/sa.key`.
    pub path: PathBuf,
    /// Permissions, as `chmod` takes them.
    pub mode: u32,
    /// User id.
    pub owner: u32,
    /// Group id.
    pub group: u32,
    /// What it holds: secrets, most of them.
    pub content: Vec<u8>,
}

impl std::fmt::Debug for PkiFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PkiFile")
            .field("path", &self.path)
            .field("mode", &format_args!("{:o}", self.mode))
            .field("bytes", &self.content.len())
            .finish_non_exhaustive()
    }
}

/// Why files do not become an archive, or an archive files.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// Not what we write.
    #[error("the archive of the PKI {0}: it was not made by Lockkeeper, or was damaged")]
    Archive(String),
    /// A file of it.
    #[error("{path} cannot be written: {source}")]
    File {
        /// On this machine.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// A tar of these files.
///
/// # Errors
/// When they are too many or too large.
pub fn archive(files: &[PkiFile]) -> Result<Vec<u8>, PkiError> {
    let total: u64 = files.iter().map(|f| f.content.len() as u64).sum();
    if files.len() > MOST_FILES || total > MOST_BYTES {
        let count = files.len();
        return Err(PkiError::Archive(format!(
            "would hold {count} files of {total} bytes, more than {MOST_FILES} or {MOST_BYTES}"
        )));
    }
    let failed = |e: std::io::Error| PkiError::Archive(format!("cannot be made: {e}"));
    let mut tar = tar::Builder::new(Vec::new());
    for file in files {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Regular);
        header.set_size(file.content.len() as u64);
        header.set_mode(file.mode & 0o777);
        header.set_uid(file.owner.into());
        header.set_gid(file.group.into());
        header.set_mtime(0);
        let added = tar.append_data(&mut header, &file.path, file.content.as_slice());
        added.map_err(failed)?;
    }
    tar.into_inner().map_err(failed)
}

/// The files of a tar that [`archive`] made.
///
/// # Errors
/// When an entry is no plain file, its path leads out of the root, or it is too much.
pub fn extract(tar: &[u8]) -> Result<Vec<PkiFile>, PkiError> {
    let failed = |e: std::io::Error| PkiError::Archive(format!("cannot be read: {e}"));
    let mut files = vec![];
    let mut archive = tar::Archive::new(tar);
    for entry in archive.entries().map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let path = entry.path().map_err(failed)?.into_owned();
        let refuse = |why: &str| PkiError::Archive(format!("holds {}, {why}", path.display()));
        if entry.header().entry_type() != tar::EntryType::Regular {
            return Err(refuse("which is no plain file"));
        }
        let plain = |c: Component<'_>| matches!(c, Component::Normal(_));
        if path.as_os_str().is_empty() || !path.components().all(plain) {
            return Err(refuse("which leads out of its root"));
        }
        if files.len() >= MOST_FILES {
            return Err(refuse("and too many before it"));
        }
        let header = entry.header();
        let (mode, owner, group) = (header.mode(), header.uid(), header.gid());
        let small = |id: std::io::Result<u64>| -> Result<u32, PkiError> {
            u32::try_from(id.map_err(failed)?).map_err(|_| refuse("whose owner is no user"))
        };
        let mut file = PkiFile {
            mode: mode.map_err(failed)? & 0o777,
            owner: small(owner)?,
            group: small(group)?,
            content: vec![],
            path: path.clone(),
        };
        entry
            .take(MOST_BYTES)
            .read_to_end(&mut file.content)
            .map_err(failed)?;
        files.push(file);
    }
    Ok(files)
}

/// What is where a file goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub enum There {
    /// Nothing.
    Absent,
    /// The same, with its mode and owner.
    Same,
    /// The same content, with another mode or owner.
    OtherMode,
    /// Something else.
    Differs,
}

/// Looks at where a file goes below `root`.
///
/// # Errors
/// When what is there cannot be read.
pub fn compare(file: &PkiFile, root: &Path) -> std::io::Result<There> {
    let at = root.join(&file.path);
    let about = match std::fs::symlink_metadata(&at) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(There::Absent),
        about => about?,
    };
    if !about.is_file() || about.len() != file.content.len() as u64 || std::fs::read(&at)? != file.content {
        return Ok(There::Differs);
    }
    let is = (about.permissions().mode() & 0o777, about.uid(), about.gid());
    Ok(if is == (file.mode, file.owner, file.group) {
        There::Same
    } else {
        There::OtherMode
    })
}

/// Copies what is where a file goes below `root` to below `aside`, with its mode and owner, for its owner alone to reach.
///
/// # Errors
/// When it cannot be read or copied; a directory is refused.
pub fn keep_aside(file: &PkiFile, root: &Path, aside: &Path) -> Result<(), PkiError> {
    let at = root.join(&file.path);
    let copied = || {
        let about = std::fs::metadata(&at)?;
        let copy = PkiFile {
            path: file.path.clone(),
            mode: about.permissions().mode() & 0o777,
            owner: about.uid(),
            group: about.gid(),
            content: std::fs::read(&at)?,
        };
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(aside)?;
        Ok(copy)
    };
    let copy = copied().map_err(|source| PkiError::File {
        path: at.clone(),
        source,
    })?;
    place(&[copy], aside)
}

/// Writes the files below `root`, each beside its place first and then renamed, with their modes and owners.
/// Directories that are missing are made with mode 0755, as kubeadm makes them.
///
/// # Errors
/// With the first that cannot be written; a directory on the way that is a symbolic link is refused.
pub fn place(files: &[PkiFile], root: &Path) -> Result<(), PkiError> {
    for file in files {
        let target = root.join(&file.path);
        place_one(file, root, &target).map_err(|source| PkiError::File { path: target, source })?;
    }
    Ok(())
}

fn place_one(file: &PkiFile, root: &Path, target: &Path) -> std::io::Result<()> {
    let refuse = || std::io::Error::other("a directory on the way is a symbolic link");
    let mut directory = root.to_owned();
    for part in file.path.parent().unwrap_or(Path::new("")).components() {
        directory.push(part);
        match std::fs::symlink_metadata(&directory) {
            Ok(meta) if meta.is_dir() => {}
            Ok(_) => return Err(refuse()),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                std::fs::create_dir(&directory)?;
                std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(0o755))?;
            }
            Err(e) => return Err(e),
        }
    }
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    let beside = directory.join(format!(".{name}.part"));
    match std::fs::remove_file(&beside) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let mut options = std::fs::OpenOptions::new();
    let mut written = options.write(true).create_new(true).mode(0o600).open(&beside)?;
    written.write_all(&file.content)?;
    std::os::unix::fs::fchown(&written, Some(file.owner), Some(file.group))?;
    written.set_permissions(std::fs::Permissions::from_mode(file.mode))?;
    written.sync_all()?;
    std::fs::rename(&beside, target)?;
    std::fs::File::open(&directory)?.sync_all()
}

impl Store {
    /// The files of the node whose PKI is stored with the backup at `key`; none when it is not.
    ///
    /// Nothing of them is on a disk: [`place`] does that.
    ///
    /// # Errors
    /// As [`Store::fetch`].
    pub async fn fetch_pki(
        &self,
        manifest: &Manifest,
        key: &BackupKey,
        keys: &Identities,
        cancel: &CancellationToken,
    ) -> Result<Option<Vec<PkiFile>>, StoreError> {
        self.belongs(manifest, key)?;
        let Some(object) = manifest.pki.clone() else {
            return Ok(None);
        };
        let location = key.object(&object.name);
        let uri = self.uri(&location);
        if let Some(encrypted) = &object.encrypted {
            keys.fit(encrypted, &uri).map_err(|f| self.failure(f))?;
        }
        if object.stored.size > 2 * MOST_BYTES || object.plain.size > 2 * MOST_BYTES {
            return Err(self.failure(Failure::Damaged {
                location: uri,
                detail: format!("{} bytes are no PKI", object.stored.size),
            }));
        }
        let (wanted, keys) = (object.clone(), keys.clone());
        let open = move |pieces| {
            let mut tar = vec![];
            plain(pieces, &wanted, &keys, |data| {
                tar.extend_from_slice(data);
                Ok(())
            })?;
            extract(&tar).map_err(|e| Unreadable::Content(e.to_string()).into())
        };
        self.bring(&location, &object, open, cancel).await.map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, mode: u32) -> PkiFile {
        let ids = (
            rustix::process::getuid().as_raw(),
            rustix::process::getgid().as_raw(),
        );
        PkiFile {
            path: path.into(),
            mode,
            owner: ids.0,
            group: ids.1,
            content: format!("content of {path}").into_bytes(),
        }
    }

    #[test]
    fn files_come_back_with_their_modes_and_owners() {
        let files = [
            file("etc/kubernetes/pki/sa.key", 0o600),
            file("etc/kubernetes/pki/ca.crt", 0o644),
        ];
        let back = extract(&archive(&files).unwrap()).unwrap();
        assert_eq!(back, files);
        let root = tempfile::tempdir().unwrap();
        place(&back, root.path()).unwrap();
        place(&back, root.path()).unwrap();
        for file in &files {
            let at = root.path().join(&file.path);
            assert_eq!(std::fs::read(&at).unwrap(), file.content);
            assert_eq!(
                std::fs::metadata(&at).unwrap().permissions().mode() & 0o777,
                file.mode
            );
        }
        let printed = format!("{files:?}");
        assert!(
            printed.contains("sa.key") && !printed.contains("content of"),
            "{printed}"
        );
    }

    #[test]
    fn what_is_there_is_told_and_kept_aside_before_it_is_written_over() {
        let (root, aside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let key = file("etc/kubernetes/pki/sa.key", 0o600);
        let at = root.path().join(&key.path);
        assert_eq!(compare(&key, root.path()).unwrap(), There::Absent);
        place(std::slice::from_ref(&key), root.path()).unwrap();
        assert_eq!(compare(&key, root.path()).unwrap(), There::Same);
        std::fs::set_permissions(&at, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert_eq!(compare(&key, root.path()).unwrap(), There::OtherMode);
        std::fs::write(&at, "another key").unwrap();
        assert_eq!(compare(&key, root.path()).unwrap(), There::Differs);
        keep_aside(&key, root.path(), &aside.path().join("kept")).unwrap();
        place(std::slice::from_ref(&key), root.path()).unwrap();
        let kept = aside.path().join("kept").join(&key.path);
        assert_eq!(std::fs::read(&kept).unwrap(), b"another key");
        assert_eq!(
            std::fs::metadata(&kept).unwrap().permissions().mode() & 0o777,
            0o644
        );
        assert_eq!(compare(&key, root.path()).unwrap(), There::Same);
        std::fs::remove_file(&at).unwrap();
        std::os::unix::fs::symlink(&kept, &at).unwrap();
        assert_eq!(compare(&key, root.path()).unwrap(), There::Differs);
    }

    #[test]
    fn what_leads_out_of_its_root_is_refused() {
        let hostile = |path: &[u8], kind: tar::EntryType| {
            let mut header = tar::Header::new_gnu();
            // Past the crate's own check.
            header.as_old_mut().name[..path.len()].copy_from_slice(path);
            header.set_entry_type(kind);
            header.set_size(1);
            header.set_mode(0o644);
            header.set_uid(0);
            header.set_gid(0);
            header.set_cksum();
            let mut tar = tar::Builder::new(Vec::new());
            tar.append(&header, &b"x"[..]).unwrap();
            tar.into_inner().unwrap()
        };
        for (path, kind, says) in [
            ("../etc/shadow", tar::EntryType::Regular, "leads out of its root"),
            (
                "etc/../../shadow",
                tar::EntryType::Regular,
                "leads out of its root",
            ),
            ("/etc/shadow", tar::EntryType::Regular, "leads out of its root"),
            ("etc/link", tar::EntryType::Symlink, "no plain file"),
            ("etc/hard", tar::EntryType::Link, "no plain file"),
            ("etc/device", tar::EntryType::Block, "no plain file"),
        ] {
            let told = extract(&hostile(path.as_bytes(), kind)).unwrap_err().to_string();
            assert!(told.contains(says), "{path}: {told}");
        }
        let root = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(outside.path(), root.path().join("etc")).unwrap();
        let told = place(&[file("etc/x", 0o600)], root.path())
            .unwrap_err()
            .to_string();
        assert!(told.contains("symbolic link"), "{told}");
        assert!(std::fs::read_dir(outside.path()).unwrap().next().is_none());
    }
}
