//! What is built once a machine: binaries, image tars, seeded containerd stores. Outside the checkout, keyed by
//! version and by the hash of what went in, so that a second run costs nothing.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::fs::FlockOperation;
use sha2::{Digest, Sha256};

/// The cache folder.
#[derive(Debug, Clone)]
pub struct Cache {
    root: PathBuf,
}

impl Cache {
    /// The folder named by `LOCKKEEPER_CACHE`, `/var/cache/lockkeeper` without it.
    pub fn open() -> Result<Self> {
        let root = std::env::var_os("LOCKKEEPER_CACHE")
            .map_or_else(|| "/var/cache/lockkeeper".into(), PathBuf::from);
        for dir in ["bin", "img", "src", "containerd"] {
            std::fs::create_dir_all(root.join(dir)).with_context(|| {
                format!(
                    "cannot make {}; set LOCKKEEPER_CACHE to a folder that can be written",
                    root.display()
                )
            })?;
        }
        Ok(Self { root })
    }

    /// The folder itself.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Waits until no other process makes the same thing. The lock ends with the process.
    pub fn lock(&self, what: &str) -> Result<File> {
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(self.root.join(format!("src/.{what}.lock")))?;
        while let Err(error) = rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            if error != rustix::io::Errno::WOULDBLOCK {
                return Err(error.into());
            }
            crate::interrupt::check()?;
            std::thread::sleep(Duration::from_millis(200));
        }
        Ok(file)
    }

    /// Where the binaries of something lie, for example of `kubernetes` `v1.35.4`.
    #[must_use]
    pub fn binaries(&self, what: &str, version: &str) -> PathBuf {
        self.root.join("bin").join(format!("{what}-{version}"))
    }

    /// The tar of an image.
    #[must_use]
    pub fn image(&self, name: &str, tag: &str) -> PathBuf {
        self.root.join("img").join(format!("{name}-{tag}.tar"))
    }

    /// The folder a Go module is written into to be built.
    #[must_use]
    pub fn source(&self, module: &str) -> PathBuf {
        self.root.join("src").join(module)
    }

    /// A containerd store with these images in it.
    #[must_use]
    pub fn seed(&self, key: &str) -> PathBuf {
        self.root.join("containerd").join(key)
    }
}

/// The first 16 hexadecimal digits of a SHA-256, enough to tell inputs apart.
#[must_use]
pub fn short_hash<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hex(&hash.finalize()).chars().take(16).collect()
}

/// Bytes in hexadecimal.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Writes a whole file by renaming a finished one into place.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let parent = path.parent().context("a path without a folder")?;
    std::fs::create_dir_all(parent)?;
    let mut file = tempfile::NamedTempFile::new_in(parent)?;
    std::io::Write::write_all(&mut file, bytes)?;
    file.as_file().sync_all()?;
    file.persist(path)
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_tells_the_same_bytes_cut_elsewhere_apart() {
        assert_ne!(
            short_hash([b"ab".as_slice(), b"c"]),
            short_hash([b"a".as_slice(), b"bc"])
        );
        assert_eq!(short_hash([b"ab".as_slice()]).len(), 16);
    }
}
