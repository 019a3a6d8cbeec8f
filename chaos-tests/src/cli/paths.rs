//! `lab env`, `lab bin-dir`: where the built programs lie, for tests that call them without a lab.

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::build;
use crate::cache::Cache;
use crate::progress::Progress;
use crate::recipes::{self, ETCD, EXTERNAL_DNS, Recipe, START};

/// Lines for a shell's `eval`. `real`: with what only the tests with real parts need.
pub(super) fn env(real: bool) -> Result<String> {
    let cache = Cache::open()?;
    let mut wanted = vec![
        ("ETCD", recipes::recipe("etcd", ETCD)?, "etcd"),
        (
            "KUBE_APISERVER",
            recipes::recipe("kubernetes", START)?,
            "kube-apiserver",
        ),
        ("KUBECTL", recipes::recipe("kubernetes", START)?, "kubectl"),
        ("HELM", recipes::only("helm")?, "helm"),
    ];
    if real {
        wanted.push(("EXTERNAL_DNS", &EXTERNAL_DNS, "external-dns"));
    }
    let recipes: Vec<_> = wanted.iter().map(|(_, recipe, _)| *recipe).collect();
    make(&cache, &recipes)?;
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
