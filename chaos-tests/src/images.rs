//! Which images the lab has, and how each is made of what was built.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::cache::{Cache, short_hash};
use crate::image::Image;
use crate::process::Run;
use crate::recipes::{PAUSE, TARGET_PAUSE, etcd_tag, recipe};
use crate::{build, require};

/// The registry that kubeadm names. Nothing is ever pulled from it.
const REGISTRY: &str = "registry.k8s.io";
/// The reference of our own image.
pub const LOCKKEEPER: &str = "lockkeeper.dev/lockkeeper:dev";
const PAUSE_SOURCE: &str = include_str!("../images/pause.c");
/// The three that an upgrade replaces.
pub const CONTROL_PLANE: [&str; 3] = ["kube-apiserver", "kube-controller-manager", "kube-scheduler"];

/// Makes the images of a lab that are not in the cache, and returns all their tars.
pub fn for_lab(cache: &Cache, kubernetes: &str, etcd: &str, also: &[String]) -> Result<Vec<PathBuf>> {
    let mut tars = vec![
        pause(cache, PAUSE)?,
        pause(cache, TARGET_PAUSE)?,
        etcd_image(cache, etcd)?,
        kube_proxy(cache, kubernetes)?,
    ];
    for version in std::iter::once(kubernetes).chain(also.iter().map(String::as_str)) {
        for component in CONTROL_PLANE {
            tars.push(control_plane(cache, component, version)?);
        }
    }
    tars.sort();
    tars.dedup();
    Ok(tars)
}

/// An image under the reference that kubeadm and Lockkeeper would ask for, whose binary is any file: a target
/// that never gets ready, or dies at once.
pub fn broken_target(out: &Path, component: &str, version: &str, binary: &Path) -> Result<()> {
    one_binary(component, version, binary).write(out)
}

/// Our own image, from a binary of ours.
pub fn lockkeeper(out: &Path, binary: &Path) -> Result<()> {
    program(out, LOCKKEEPER, "lockkeeper", binary)
}

/// An image that runs one program; its libraries come along if it is not static.
pub fn program(out: &Path, reference: &str, name: &str, binary: &Path) -> Result<()> {
    let inside = format!("/usr/local/bin/{name}");
    let image = Image::new(reference).entrypoint(&[&inside]);
    let image = libraries(&[binary.to_owned()])?
        .into_iter()
        .fold(image, |image, path| image.file(path.clone(), path));
    image.file(binary, inside).write(out)
}

fn one_binary(component: &str, version: &str, binary: &Path) -> Image {
    Image::new(format!("{REGISTRY}/{component}:{version}"))
        .file(binary, format!("/usr/local/bin/{component}"))
}

/// Writes an image unless the cache has one made of the same binaries.
fn cached(
    cache: &Cache,
    name: &str,
    tag: &str,
    key: &str,
    make: impl FnOnce() -> Result<Image>,
) -> Result<PathBuf> {
    let tar = cache.image(name, &format!("{tag}-{key}"));
    if !tar.is_file() {
        make()?
            .write(&tar)
            .with_context(|| format!("cannot make the image of {name} {tag}"))?;
    }
    Ok(tar)
}

fn stamp(paths: &[PathBuf]) -> Result<String> {
    let mut stamps = Vec::new();
    for path in paths {
        let about = std::fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?;
        let modified = about
            .modified()?
            .duration_since(std::time::UNIX_EPOCH)?
            .as_nanos();
        stamps.push(format!("{} {} {modified}", path.display(), about.len()));
    }
    Ok(short_hash([stamps.join("\n").as_bytes()]))
}

/// The reference under which a component's image is known.
#[must_use]
pub fn reference(component: &str, version: &str) -> String {
    format!("{REGISTRY}/{component}:{version}")
}

/// The tar of a control-plane component's image, made if it is not there.
pub fn control_plane(cache: &Cache, component: &str, version: &str) -> Result<PathBuf> {
    let binary = build::binary(cache, recipe("kubernetes", version)?, component)?;
    cached(
        cache,
        component,
        version,
        &stamp(std::slice::from_ref(&binary))?,
        || Ok(one_binary(component, version, &binary)),
    )
}

fn etcd_image(cache: &Cache, version: &str) -> Result<PathBuf> {
    let built = recipe("etcd", version)?;
    let tag = etcd_tag(version);
    let binaries = ["etcd", "etcdctl", "etcdutl"]
        .map(|name| build::binary(cache, built, name))
        .into_iter()
        .collect::<Result<Vec<_>>>()?;
    cached(cache, "etcd", &tag, &stamp(&binaries)?, || {
        let image = Image::new(format!("{REGISTRY}/etcd:{tag}"));
        Ok(binaries.iter().fold(image, |image, binary| {
            let name = binary
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            image.file(binary, format!("/usr/local/bin/{name}"))
        }))
    })
}

fn pause(cache: &Cache, tag: &str) -> Result<PathBuf> {
    cached(
        cache,
        "pause",
        tag,
        &short_hash([PAUSE_SOURCE.as_bytes()]),
        || {
            Ok(Image::new(format!("{REGISTRY}/pause:{tag}"))
                .file(pause_binary(cache)?, "/pause")
                .entrypoint(&["/pause"]))
        },
    )
}

/// A program that starts, takes any flags, waits for a signal and does nothing else: the sandbox's, and as an
/// API server one that never becomes ready.
pub fn pause_binary(cache: &Cache) -> Result<PathBuf> {
    let dir = cache.source("pause");
    std::fs::create_dir_all(&dir)?;
    let source = dir.join("pause.c");
    let built = dir.join("pause");
    if !built.is_file() || std::fs::read(&source).ok().as_deref() != Some(PAUSE_SOURCE.as_bytes()) {
        std::fs::write(&source, PAUSE_SOURCE)?;
        Run::new("cc")
            .args(["-O2", "-static", "-o", "pause", "pause.c"])
            .dir(&dir)
            .check()?;
    }
    Ok(built)
}

/// kube-proxy calls iptables and nft. They come from the machine's own packages, with the libraries that `ldd`
/// names and the extensions that iptables loads by itself.
fn kube_proxy(cache: &Cache, version: &str) -> Result<PathBuf> {
    let proxy = build::binary(cache, recipe("kubernetes", version)?, "kube-proxy")?;
    let program =
        |name: &str| require::find(name).with_context(|| format!("{name} is missing: run `make setup`"));
    let iptables = program("iptables")?.canonicalize()?;
    let nft = program("nft")?.canonicalize()?;
    cached(
        cache,
        "kube-proxy",
        version,
        &stamp(&[proxy.clone(), iptables.clone(), nft.clone()])?,
        || {
            let mut needs: Vec<PathBuf> = vec![iptables.clone(), nft.clone()];
            needs.extend(extensions()?);
            let mut image = Image::new(format!("{REGISTRY}/kube-proxy:{version}"))
                .file(&proxy, "/usr/local/bin/kube-proxy");
            for path in libraries(&needs)? {
                image = image.file(path.clone(), path);
            }
            for path in &needs {
                image = image.file(path, path.to_string_lossy());
            }
            for name in [
                "iptables",
                "iptables-save",
                "iptables-restore",
                "ip6tables",
                "ip6tables-save",
                "ip6tables-restore",
            ] {
                image = image.link(format!("/usr/local/bin/{name}"), iptables.to_string_lossy());
            }
            Ok(image)
        },
    )
}

/// The shared objects that iptables opens by name.
fn extensions() -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for dir in std::fs::read_dir("/usr/lib")?
        .flatten()
        .map(|entry| entry.path().join("xtables"))
        .filter(|dir| dir.is_dir())
    {
        found.extend(std::fs::read_dir(dir)?.flatten().map(|entry| entry.path()));
    }
    found.sort();
    Ok(found)
}

/// Every library these files need, by the path the loader will look at.
fn libraries(files: &[PathBuf]) -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    for file in files {
        // Ends with an error for a static binary, which needs nothing.
        let said = Run::new("ldd").arg(file).output()?;
        found.extend(said.stdout.lines().filter_map(library));
    }
    Ok(found)
}

fn library(line: &str) -> Option<String> {
    let (before, _) = line.trim().split_once(" (0x")?;
    let path = before.split_once("=> ").map_or(before, |(_, path)| path).trim();
    path.starts_with('/').then(|| path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ldd_is_read_in_all_its_forms() {
        assert_eq!(
            library("\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)").as_deref(),
            Some("/lib/x86_64-linux-gnu/libc.so.6")
        );
        assert_eq!(
            library("\t/lib64/ld-linux-x86-64.so.2 (0x00007f)").as_deref(),
            Some("/lib64/ld-linux-x86-64.so.2")
        );
        assert_eq!(library("\tlinux-vdso.so.1 (0x00007ffe)"), None);
        assert_eq!(library("\tnot a dynamic executable"), None);
    }
}
