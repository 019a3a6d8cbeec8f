//! A containerd store with all images of a lab, imported once a machine. Each node gets it as hard links, which
//! costs no time and lets all nodes share the binaries in memory. Layers are never written again: an overlay
//! copies a file before it changes it. Only the databases are real copies.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::Signal;

use crate::cache::{Cache, short_hash};
use crate::process::{Run, last_lines, start_daemon};
use crate::progress::Progress;

/// The store that holds these images; made at the first call.
pub fn with_images(cache: &Cache, tars: &[PathBuf], progress: &Progress) -> Result<PathBuf> {
    let names: Vec<String> = tars
        .iter()
        .map(|tar| tar.to_string_lossy().into_owned())
        .collect();
    let seed = cache.seed(&short_hash(names.iter().map(String::as_bytes)));
    if seed.is_dir() {
        return Ok(seed);
    }
    let _lock = cache.lock("seed")?;
    if seed.is_dir() {
        return Ok(seed);
    }
    clear_unfinished(cache);
    progress.say(format_args!(
        "importing {} images into a containerd store (once a machine)",
        tars.len()
    ));
    let fresh = tempfile::tempdir_in(cache.root().join("containerd"))?;
    import(fresh.path(), tars)?;
    let made = fresh.keep();
    std::fs::rename(made.join("root"), &seed).with_context(|| format!("cannot make {}", seed.display()))?;
    let _ = std::fs::remove_dir_all(&made);
    Ok(seed)
}

/// What a killed process began. Nobody else is at it: the lock is held.
fn clear_unfinished(cache: &Cache) {
    let Ok(entries) = std::fs::read_dir(cache.root().join("containerd")) else {
        return;
    };
    for entry in entries
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(".tmp"))
    {
        let _ = std::fs::remove_dir_all(entry.path());
    }
}

fn import(dir: &Path, tars: &[PathBuf]) -> Result<()> {
    // A socket's path may be at most 108 bytes long, so not in the cache folder.
    let run = tempfile::tempdir_in("/run")?;
    let socket = run.path().join("containerd.sock");
    let config = dir.join("config.toml");
    let text = format!(
        "version = 2\nroot = \"{}\"\nstate = \"{}\"\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
         [grpc]\n  address = \"{}\"\n",
        dir.join("root").display(),
        run.path().join("state").display(),
        socket.display()
    );
    std::fs::write(&config, text)?;
    let log = dir.join("containerd.log");
    // Unpacking mounts things for a moment; the machine shall not see it.
    let daemon = start_daemon(
        &[
            "unshare",
            "--mount",
            "--propagation",
            "private",
            "--",
            "containerd",
            "-c",
            &config.to_string_lossy(),
        ],
        &log,
    )?;
    let result = import_all(&socket, tars, || daemon.alive())
        .with_context(|| format!("containerd's last words: {}", last_lines(&log, 10)));
    daemon.signal(Signal::TERM);
    if !daemon.gone_within(Duration::from_secs(20)) {
        daemon.signal(Signal::KILL);
        bail!("containerd did not end within 20 s after importing the images");
    }
    result
}

fn import_all(socket: &Path, tars: &[PathBuf], alive: impl Fn() -> bool) -> Result<()> {
    let ctr = |words: &[&str]| {
        Run::new("ctr")
            .arg("-a")
            .arg(socket)
            .args(["-n", "k8s.io"])
            .args(words)
            .limit(Duration::from_secs(300))
    };
    let began = Instant::now();
    while !ctr(&["version"]).output()?.success() {
        if !alive() || began.elapsed() > Duration::from_secs(30) {
            bail!("containerd did not answer within 30 s");
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    for tar in tars {
        ctr(&["images", "import", &tar.to_string_lossy()]).check()?;
    }
    Ok(())
}

/// Puts a store onto a node's disk.
pub fn plant(seed: &Path, target: &Path) -> Result<()> {
    let linked = Run::new("cp").arg("-al").arg(seed).arg(target).output()?;
    if !linked.success() {
        // Another file system has no hard links to this one.
        let _ = std::fs::remove_dir_all(target);
        return Run::new("cp")
            .arg("-a")
            .arg(seed)
            .arg(target)
            .limit(Duration::from_secs(300))
            .check()
            .map(drop);
    }
    own_databases(target)
}

/// Replaces each linked database by a copy, so that no node writes into another's.
fn own_databases(dir: &Path) -> Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        // What lies in a snapshot is an image's content and not containerd's.
        if path.is_dir() && !path.ends_with("snapshots") {
            own_databases(&path)?;
        } else if path.extension().is_some_and(|extension| extension == "db") {
            let copy = path.with_extension("db-copy");
            std::fs::copy(&path, &copy)?;
            std::fs::rename(&copy, &path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_planted_store_shares_layers_and_owns_its_databases() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().unwrap();
        let seed = dir.path().join("seed");
        std::fs::create_dir_all(seed.join("x.bolt")).unwrap();
        std::fs::create_dir_all(seed.join("x.overlayfs/snapshots/1/fs")).unwrap();
        std::fs::write(seed.join("x.bolt/meta.db"), "db").unwrap();
        std::fs::write(seed.join("x.overlayfs/snapshots/1/fs/etcd"), "layer").unwrap();
        let node = dir.path().join("node");
        plant(&seed, &node).unwrap();
        let inode = |path: &str| {
            (
                seed.join(path).metadata().unwrap().ino(),
                node.join(path).metadata().unwrap().ino(),
            )
        };
        let (layer, linked) = inode("x.overlayfs/snapshots/1/fs/etcd");
        assert_eq!(layer, linked);
        let (database, copied) = inode("x.bolt/meta.db");
        assert_ne!(database, copied);
        assert_eq!(std::fs::read(node.join("x.bolt/meta.db")).unwrap(), b"db");
    }
}
