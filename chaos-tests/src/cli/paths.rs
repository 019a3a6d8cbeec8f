//! `lab env`, `lab bin-dir`: where the built programs lie, for tests that call them without a lab.

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::build;
use crate::cache::Cache;
use crate::progress::Progress;
use crate::recipes::{self, ETCD, Recipe, START};

/// Lines for a shell's `eval`.
pub(super) fn env() -> Result<String> {
    let cache = Cache::open()?;
    let wanted = [
        ("ETCD", recipes::recipe("etcd", ETCD)?, "etcd"),
        (
            "KUBE_APISERVER",
            recipes::recipe("kubernetes", START)?,
            "kube-apiserver",
        ),
        ("KUBECTL", recipes::recipe("kubernetes", START)?, "kubectl"),
        ("HELM", recipes::only("helm")?, "helm"),
    ];
    make(&cache, &wanted.map(|(_, recipe, _)| recipe))?;
    let mut text = String::new();
    for (name, recipe, program) in wanted {
        let path = build::binary(&cache, recipe, program)?;
        text.push_str(&format!("export {name}='{}'\n", path.display()));
    }
    Ok(text)
}

/// A folder with links to what the store's tests call.
pub(super) fn bin_dir() -> Result<PathBuf> {
    let cache = Cache::open()?;
    let (etcd, versitygw) = (recipes::recipe("etcd", ETCD)?, recipes::only("versitygw")?);
    make(&cache, &[etcd, versitygw])?;
    let folder = cache.root().join("tools/store-test");
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    for recipe in [etcd, versitygw] {
        for (program, _) in recipe.commands {
            let link = folder.join(program);
            let _ = std::fs::remove_file(&link);
            std::os::unix::fs::symlink(build::binary(&cache, recipe, program)?, &link)
                .with_context(|| format!("cannot link {}", link.display()))?;
        }
    }
    Ok(folder)
}

fn make(cache: &Cache, recipes: &[&'static Recipe]) -> Result<()> {
    crate::interrupt::listen()?;
    let mut recipes = recipes.to_vec();
    recipes.dedup_by_key(|recipe| (recipe.what, recipe.version));
    build::all(cache, &recipes, &Progress::start()).map(drop)
}
