//! Builds Go modules into the cache, one after another and niced: the machine has other work.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::cache::{Cache, short_hash, write_whole};
use crate::process::Run;
use crate::progress::{Progress, spoken};
use crate::recipes::Recipe;
use crate::require;

/// Kubernetes 1.36 and helm 4 name a Go of this minor in their `go` lines.
const GO_MINOR: u32 = 26;

/// What a build did.
#[derive(Debug)]
pub struct Built {
    /// What, with its version.
    pub what: String,
    /// How long it took; `None` if it was there.
    pub took: Option<Duration>,
}

/// Builds what is missing and returns what was done.
pub fn all(cache: &Cache, recipes: &[&Recipe], progress: &Progress) -> Result<Vec<Built>> {
    let mut done = Vec::new();
    for recipe in recipes {
        let what = format!("{} {}", recipe.what, recipe.version);
        if present(cache, recipe) {
            done.push(Built { what, took: None });
            continue;
        }
        let _lock = cache.lock(&format!("{}-{}", recipe.what, recipe.version))?;
        // Another process may have built it while this one waited for the lock.
        if present(cache, recipe) {
            done.push(Built { what, took: None });
            continue;
        }
        let began = Instant::now();
        progress.say(format_args!(
            "building {what} ({} the first time on 2 cores)",
            recipe.cold
        ));
        build(cache, recipe).with_context(|| format!("cannot build {what}"))?;
        let took = began.elapsed();
        progress.say(format_args!("built {what} in {}", spoken(took)));
        done.push(Built {
            what,
            took: Some(took),
        });
    }
    Ok(done)
}

/// The binaries of a recipe, which must have been built.
pub fn binary(cache: &Cache, recipe: &Recipe, name: &str) -> Result<PathBuf> {
    let path = cache.binaries(recipe.what, recipe.version).join(name);
    if path.is_file() {
        return Ok(path);
    }
    bail!("{} is missing: run `lab build`", path.display())
}

fn key(recipe: &Recipe) -> String {
    let commands: Vec<&str> = recipe.commands.iter().map(|(_, package)| *package).collect();
    let commands = commands.join(" ");
    let go = [recipe.module.go_mod, recipe.module.go_sum, &*commands];
    let files = recipe.files.iter().map(|(_, path)| *path);
    short_hash(go.into_iter().chain(files).map(str::as_bytes))
}

/// Present means: built from the same go.mod and go.sum, to the end. The mark is written last.
fn present(cache: &Cache, recipe: &Recipe) -> bool {
    let dir = cache.binaries(recipe.what, recipe.version);
    std::fs::read_to_string(dir.join(".built-from")).is_ok_and(|mark| mark == key(recipe))
        && recipe.commands.iter().all(|(name, _)| dir.join(name).is_file())
        && files(cache, recipe).iter().all(|path| path.is_file())
}

/// Where the files of a recipe lie.
pub fn files(cache: &Cache, recipe: &Recipe) -> Vec<PathBuf> {
    let dir = cache.binaries(recipe.what, recipe.version);
    let names = recipe
        .files
        .iter()
        .filter_map(|(_, path)| Path::new(path).file_name());
    names.map(|name| dir.join(name)).collect()
}

fn build(cache: &Cache, recipe: &Recipe) -> Result<()> {
    go_is_new_enough()?;
    let source = cache.source(recipe.module.name);
    write_whole(&source.join("go.mod"), recipe.module.go_mod.as_bytes())?;
    write_whole(&source.join("go.sum"), recipe.module.go_sum.as_bytes())?;
    write_whole(&source.join("tools.go"), recipe.module.tools.as_bytes())?;
    let dir = cache.binaries(recipe.what, recipe.version);
    std::fs::create_dir_all(&dir)?;
    let log = cache
        .root()
        .join("src")
        .join(format!("{}.log", recipe.module.name));
    let _ = std::fs::remove_file(&log);
    let flags = linker_flags(recipe);
    // Beside first: a binary that is running or half written is never what the cache holds.
    let fresh = tempfile::tempdir_in(&dir)?;
    for (output, packages) in invocations(recipe) {
        Run::new("nice")
            .args(["-n", "10", "go", "build", "-trimpath", "-ldflags", &flags, "-o"])
            .arg(fresh.path().join(output))
            .args(packages)
            .env("CGO_ENABLED", "0")
            .env("GOFLAGS", "-mod=readonly -buildvcs=false")
            .env("GOTOOLCHAIN", "local")
            .dir(&source)
            .log(&log)
            .limit(Duration::from_secs(45 * 60))
            .check()?;
    }
    for (name, _) in recipe.commands {
        std::fs::rename(fresh.path().join(name), dir.join(name))?;
    }
    for ((module, path), kept) in recipe.files.iter().zip(files(cache, recipe)) {
        // What go has downloaded it has compared with go.sum.
        let folder = Run::new("go")
            .args(["list", "-m", "-f", "{{.Dir}}", module])
            .env("GOFLAGS", "-mod=readonly")
            .env("GOTOOLCHAIN", "local")
            .dir(&source)
            .check()?;
        write_whole(&kept, &std::fs::read(Path::new(folder.trim()).join(path))?)?;
    }
    write_whole(&dir.join(".built-from"), key(recipe).as_bytes())
}

/// What `go build` is called with: all packages at once where Go names the binaries as we do, so that one links
/// while another compiles; one by one otherwise.
fn invocations(recipe: &Recipe) -> Vec<(&'static str, Vec<&'static str>)> {
    if recipe
        .commands
        .iter()
        .all(|(name, package)| package.rsplit('/').next() == Some(*name))
    {
        return vec![("", recipe.commands.iter().map(|(_, package)| *package).collect())];
    }
    recipe
        .commands
        .iter()
        .map(|(name, package)| (*name, vec![*package]))
        .collect()
}

fn linker_flags(recipe: &Recipe) -> String {
    let mut flags = "-s -w".to_owned();
    if recipe.kubernetes_version {
        let mut parts = recipe.version.trim_start_matches('v').split('.');
        let (major, minor) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        for package in ["k8s.io/component-base/version", "k8s.io/client-go/pkg/version"] {
            let version = recipe.version;
            flags.push_str(&format!(
                " -X {package}.gitVersion={version} -X {package}.gitMajor={major} -X {package}.gitMinor={minor} -X {package}.gitTreeState=clean"
            ));
        }
    }
    flags
}

fn go_is_new_enough() -> Result<()> {
    let way = "install Go from https://go.dev/dl into /usr/local/go and put /usr/local/go/bin on the PATH, or run `make setup` \
               (Debian's own package is older)";
    if require::find("go").is_none() {
        bail!("go is missing: {way}");
    }
    let said = Run::new("go")
        .arg("version")
        .env("GOTOOLCHAIN", "local")
        .check()?;
    match go_minor(&said) {
        Some(minor) if minor >= GO_MINOR => Ok(()),
        _ => bail!(
            "Go 1.{GO_MINOR} or newer is needed, here is `{}`: {way}",
            said.trim()
        ),
    }
}

fn go_minor(version: &str) -> Option<u32> {
    let (_, rest) = version.split_once("go1.")?;
    rest.chars()
        .take_while(char::is_ascii_digit)
        .collect::<String>()
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipes::{RECIPES, START, recipe};

    #[test]
    fn the_minor_of_go_is_read_from_its_own_words() {
        assert_eq!(go_minor("go version go1.26.8 linux/amd64"), Some(26));
        assert_eq!(go_minor("go version devel"), None);
    }

    #[test]
    fn what_was_built_before_recipes_had_files_is_still_known() {
        let etcd = crate::recipes::only("etcd").unwrap();
        let packages: Vec<&str> = etcd.commands.iter().map(|(_, package)| *package).collect();
        let parts = [etcd.module.go_mod, etcd.module.go_sum, &packages.join(" ")];
        assert_eq!(key(etcd), short_hash(parts.map(str::as_bytes)));
    }

    #[test]
    fn binaries_whose_names_go_would_not_choose_are_built_one_by_one() {
        assert_eq!(invocations(recipe("kubernetes", START).unwrap()).len(), 1);
        assert_eq!(invocations(crate::recipes::only("etcd").unwrap()).len(), 3);
    }

    #[test]
    fn kubernetes_carries_its_version_and_others_do_not() {
        assert!(linker_flags(recipe("kubernetes", START).unwrap()).contains("gitVersion=v1.35.4"));
        assert_eq!(
            linker_flags(RECIPES.iter().find(|r| r.what == "etcd").unwrap()),
            "-s -w"
        );
    }
}
