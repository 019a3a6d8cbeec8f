//! Writes container images: a docker-archive tar of one layer, as `ctr images import` reads it.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use crate::cache::hex;

/// One thing in the layer.
#[derive(Debug, Clone)]
enum Entry {
    File { path: String, source: PathBuf },
    Link { path: String, target: String },
}

/// An image to write.
#[derive(Debug, Clone)]
pub struct Image {
    reference: String,
    entrypoint: Vec<String>,
    entries: Vec<Entry>,
}

impl Image {
    /// An image that will be known by this reference.
    pub fn new(reference: impl Into<String>) -> Self {
        Self {
            reference: reference.into(),
            entrypoint: Vec::new(),
            entries: Vec::new(),
        }
    }

    /// The command that runs where a pod names none.
    #[must_use]
    pub fn entrypoint(mut self, words: &[&str]) -> Self {
        self.entrypoint = words.iter().map(|word| (*word).to_owned()).collect();
        self
    }

    /// A file of the machine at a path of the image, executable by everyone.
    #[must_use]
    pub fn file(mut self, source: impl Into<PathBuf>, path: impl Into<String>) -> Self {
        self.entries.push(Entry::File {
            path: path.into(),
            source: source.into(),
        });
        self
    }

    /// A symbolic link.
    #[must_use]
    pub fn link(mut self, path: impl Into<String>, target: impl Into<String>) -> Self {
        self.entries.push(Entry::Link {
            path: path.into(),
            target: target.into(),
        });
        self
    }

    /// Writes the archive, whole or not at all. The same inputs give the same bytes.
    pub fn write(&self, out: &Path) -> Result<()> {
        let parent = out
            .parent()
            .context("an image needs a folder to be written into")?;
        std::fs::create_dir_all(parent)?;
        let mut layer = Hashing {
            inner: tempfile::NamedTempFile::new_in(parent)?,
            hash: Sha256::new(),
            size: 0,
        };
        self.write_layer(&mut layer)?;
        let digest = hex(&layer.hash.finalize());
        let config = serde_json::to_vec(&self.config(&digest))?;
        let config_name = format!("{}.json", hex(&Sha256::digest(&config)));
        let layer_name = format!("{digest}/layer.tar");
        let manifest = serde_json::to_vec(&serde_json::json!([{
            "Config": config_name, "RepoTags": [self.reference], "Layers": [layer_name],
        }]))?;

        let file = tempfile::NamedTempFile::new_in(parent)?;
        let mut archive = tar::Builder::new(io::BufWriter::new(file));
        append(&mut archive, &config_name, config.len() as u64, config.as_slice())?;
        append(
            &mut archive,
            &layer_name,
            layer.size,
            File::open(layer.inner.path())?,
        )?;
        append(
            &mut archive,
            "manifest.json",
            manifest.len() as u64,
            manifest.as_slice(),
        )?;
        let file = archive
            .into_inner()?
            .into_inner()
            .map_err(io::IntoInnerError::into_error)?;
        file.persist(out)
            .with_context(|| format!("cannot write {}", out.display()))?;
        Ok(())
    }

    fn config(&self, layer: &str) -> serde_json::Value {
        let entrypoint = (!self.entrypoint.is_empty()).then_some(&self.entrypoint);
        serde_json::json!({
            "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
            "os": "linux",
            "config": {
                "Entrypoint": entrypoint,
                "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            },
            "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{layer}")]},
            "history": [{"created": "1970-01-01T00:00:00Z", "comment": "lockkeeper lab"}],
        })
    }

    fn write_layer(&self, out: &mut impl Write) -> Result<()> {
        let mut archive = tar::Builder::new(out);
        let mut folders = BTreeSet::new();
        folder(&mut archive, &mut folders, Path::new("tmp"), 0o1777)?;
        for entry in &self.entries {
            let (Entry::File { path, .. } | Entry::Link { path, .. }) = entry;
            let path = Path::new(path.trim_start_matches('/'));
            if let Some(parent) = path.parent() {
                folder(&mut archive, &mut folders, parent, 0o755)?;
            }
            match entry {
                Entry::File { source, .. } => {
                    let file =
                        File::open(source).with_context(|| format!("cannot read {}", source.display()))?;
                    let mut header = header(tar::EntryType::Regular, 0o755, file.metadata()?.len());
                    archive.append_data(&mut header, path, file)?;
                }
                Entry::Link { target, .. } => {
                    let mut header = header(tar::EntryType::Symlink, 0o777, 0);
                    archive.append_link(&mut header, path, target)?;
                }
            }
        }
        archive.finish()?;
        Ok(())
    }
}

fn folder(
    archive: &mut tar::Builder<impl Write>,
    made: &mut BTreeSet<PathBuf>,
    path: &Path,
    mode: u32,
) -> Result<()> {
    if path.as_os_str().is_empty() || !made.insert(path.to_owned()) {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        folder(archive, made, parent, 0o755)?;
    }
    archive.append_data(&mut header(tar::EntryType::Directory, mode, 0), path, io::empty())?;
    Ok(())
}

fn header(kind: tar::EntryType, mode: u32, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header
}

fn append(archive: &mut tar::Builder<impl Write>, name: &str, size: u64, data: impl io::Read) -> Result<()> {
    archive.append_data(&mut header(tar::EntryType::Regular, 0o644, size), name, data)?;
    Ok(())
}

struct Hashing {
    inner: tempfile::NamedTempFile,
    hash: Sha256,
    size: u64,
}

impl Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.inner.write_all(bytes)?;
        self.hash.update(bytes);
        self.size += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn entries(bytes: &[u8]) -> Vec<(String, Vec<u8>)> {
        let mut archive = tar::Archive::new(bytes);
        archive
            .entries()
            .unwrap()
            .map(|entry| {
                let mut entry = entry.unwrap();
                let mut content = Vec::new();
                entry.read_to_end(&mut content).unwrap();
                (entry.path().unwrap().to_string_lossy().into_owned(), content)
            })
            .collect()
    }

    #[test]
    fn the_layer_is_named_by_its_hash_and_holds_the_files() {
        let dir = tempfile::tempdir().unwrap();
        let binary = dir.path().join("binary");
        std::fs::write(&binary, "a program").unwrap();
        let out = dir.path().join("image.tar");
        let image = Image::new("example.dev/x:1")
            .entrypoint(&["/usr/local/bin/x"])
            .file(&binary, "/usr/local/bin/x")
            .link("/bin/y", "/usr/local/bin/x");
        image.write(&out).unwrap();

        let bytes = std::fs::read(&out).unwrap();
        let outer = entries(&bytes);
        let manifest: serde_json::Value =
            serde_json::from_slice(&outer.iter().find(|(name, _)| name == "manifest.json").unwrap().1)
                .unwrap();
        assert_eq!(manifest[0]["RepoTags"][0], "example.dev/x:1");
        let layer_name = manifest[0]["Layers"][0].as_str().unwrap();
        let layer = &outer.iter().find(|(name, _)| name == layer_name).unwrap().1;
        assert!(layer_name.starts_with(&hex(&Sha256::digest(layer))));
        let config_name = manifest[0]["Config"].as_str().unwrap();
        let config: serde_json::Value =
            serde_json::from_slice(&outer.iter().find(|(name, _)| name == config_name).unwrap().1).unwrap();
        assert_eq!(config["config"]["Entrypoint"][0], "/usr/local/bin/x");
        let inner = entries(layer);
        assert!(inner.contains(&("usr/local/bin/x".into(), b"a program".to_vec())));
        assert!(inner.iter().any(|(name, _)| name.trim_end_matches('/') == "tmp"));

        image.write(&dir.path().join("again.tar")).unwrap();
        assert_eq!(
            bytes,
            std::fs::read(dir.path().join("again.tar")).unwrap(),
            "not reproducible"
        );
    }
}
