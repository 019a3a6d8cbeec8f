//! Puts the rehearsal pod on, watches how its processes fare, and takes it off again, whatever happens.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use lockkeeper_crds::CheckResult;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::chore;
use super::cri::{CONTAINER_NAME, Container, Cri, CriError, EXITED, POD_NAME, RUNNING};
use super::directory::{Directory, REHEARSAL};
use super::host::{self, Host, read_limited};
use super::logs;
use super::rehearsal::{self, Cast, Part, Role};
use super::time::from_nanos;

/// The kubelet looks every 20 s at the latest, then starts six containers.
const START_LIMIT: Duration = Duration::from_secs(60);

/// Whoever gets so far has read its flags and files: failures were measured at 0.03 to 0.15 s.
const GOOD_AFTER: TimeDelta = TimeDelta::seconds(5);

/// How long the pod may take to go.
const GONE_LIMIT: Duration = Duration::from_secs(30);

/// How often the runtime is asked meanwhile.
const PAUSE: Duration = Duration::from_millis(500);

/// A scheduler's configuration is a few KiB.
const LARGEST_CONFIG: u64 = 1024 * 1024;

/// How one container fared.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Fate {
    /// Not started yet.
    Pending,
    Good,
    /// It ended at once, with this reason.
    Failed(String),
}

/// Rehearses. Always leaves the manifest directory without the rehearsal's manifest, also when cancelled.
pub(crate) async fn rehearse(
    host: &Host,
    cri: &Cri,
    directory: &Directory,
    parts: &[Part<'_>],
    node: &str,
    cancel: &CancellationToken,
) -> (CheckResult, String) {
    let (text, cast) = match prepare(host, directory, parts) {
        Ok(prepared) => prepared,
        Err(why) => return (CheckResult::Unknown, why),
    };
    // Seconds are enough of a margin: no earlier rehearsal ends and begins within one.
    let begun = Utc::now();
    let path = host.manifests().join(REHEARSAL);
    let fates = match host::replace(&path, text.as_bytes(), 0o600) {
        Ok(()) => {
            tokio::select! {
                fates = watch(host, cri, &cast, begun) => fates,
                () = cancel.cancelled() => Err("it was cancelled".to_owned()),
            }
        }
        Err(error) => Err(format!("{} cannot be written: {error}", path.display())),
    };
    let cleared = clear(host);
    if let Err(error) = cleared {
        return (
            CheckResult::Block,
            format!("{} cannot be removed ({error}): remove it", path.display()),
        );
    }
    let gone = chore::gone(cri, is_ours, GONE_LIMIT).await;
    match fates {
        Err(why) => (CheckResult::Unknown, format!("Not rehearsed on {node}: {why}.")),
        Ok(fates) => {
            let (result, message) = verdict(&fates, &cast, parts, node);
            if gone || result != CheckResult::Pass {
                (result, message)
            } else {
                (
                    CheckResult::Warn,
                    format!("{message} The rehearsal's containers are slow to go; the kubelet removes them."),
                )
            }
        }
    }
}

/// Removes what a rehearsal puts on the host; also what one left that was interrupted.
pub(crate) fn clear(host: &Host) -> io::Result<()> {
    host::remove(&host.manifests().join(REHEARSAL))?;
    host::remove_tree(&host.state().join("rehearsal"))
}

fn prepare(host: &Host, directory: &Directory, parts: &[Part<'_>]) -> Result<(String, Cast), String> {
    let files = host.state().join("rehearsal");
    let failed = |error: io::Error| format!("{} cannot be written: {error}", files.display());
    host::create_directory(host.state()).map_err(failed)?;
    host::create_directory(&files).map_err(failed)?;
    // Readable by whatever user the components run as; there is no secret in it.
    host::replace(
        &files.join(rehearsal::KUBECONFIG_FILE),
        rehearsal::KUBECONFIG.as_bytes(),
        0o644,
    )
    .map_err(failed)?;
    let scheduler = directory.manifest(lockkeeper_crds::Component::KubeScheduler);
    if let Some(path) = scheduler.and_then(|m| m.flag("config")) {
        let shown = |why: String| format!("kube-scheduler's --config {path} cannot be read: {why}");
        let bytes = read_limited(&host.reach(Path::new(path)), LARGEST_CONFIG)
            .map_err(|e| shown(format!("{e} (is it mounted into the agent?)")))?;
        let text = String::from_utf8(bytes).map_err(|e| shown(e.to_string()))?;
        let harmless = rehearsal::scheduler_config(&text).map_err(|e| e.to_string())?;
        host::replace(
            &files.join(rehearsal::SCHEDULER_CONFIG_FILE),
            harmless.as_bytes(),
            0o644,
        )
        .map_err(failed)?;
    }
    // The directory itself is the agent's; containers reach it by its path on the host.
    open_to_all(&files).map_err(failed)?;
    let on_host = host.on_host(&files);
    let mark = Utc::now().timestamp_nanos_opt().unwrap_or_default().to_string();
    rehearsal::render(parts, &on_host.to_string_lossy(), &mark).map_err(|e| e.to_string())
}

fn open_to_all(directory: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(directory, fs::Permissions::from_mode(0o755))
}

async fn watch(
    host: &Host,
    cri: &Cri,
    cast: &Cast,
    begun: DateTime<Utc>,
) -> Result<BTreeMap<String, Fate>, String> {
    let limit = Instant::now() + START_LIMIT;
    let mut fates: BTreeMap<String, Fate> = cast.keys().map(|n| (n.clone(), Fate::Pending)).collect();
    loop {
        let mut trouble = None;
        match look(host, cri, &mut fates, begun).await {
            Ok(()) if fates.values().all(|f| *f != Fate::Pending) => return Ok(fates),
            Ok(()) => {}
            Err(error) => trouble = Some(error.to_string()),
        }
        if Instant::now() >= limit {
            return trouble.map_or(Ok(fates), Err);
        }
        sleep(PAUSE).await;
    }
}

async fn look(
    host: &Host,
    cri: &Cri,
    fates: &mut BTreeMap<String, Fate>,
    begun: DateTime<Utc>,
) -> Result<(), CriError> {
    let containers = cri.containers().await?;
    let now = Utc::now();
    for container in containers
        .iter()
        .filter(|c| is_ours(c) && from_nanos(c.created_at) >= begun)
    {
        let Some(fate) = fates
            .get_mut(container.label(CONTAINER_NAME))
            .filter(|f| **f == Fate::Pending)
        else {
            continue;
        };
        if container.state != RUNNING && container.state != EXITED {
            continue;
        }
        let Some(status) = cri.container(&container.id).await? else {
            continue;
        };
        let lived = if status.state == EXITED {
            from_nanos(status.finished_at) - from_nanos(status.started_at)
        } else {
            now - from_nanos(status.started_at)
        };
        if lived >= GOOD_AFTER {
            *fate = Fate::Good;
        } else if status.state == EXITED {
            let said = logs::reason(&host.reach(Path::new(&status.log_path)));
            let said = chore::last_words(&status, &said);
            *fate = if status.exit_code == 0 || rehearsal::is_expected_end(&said) {
                Fate::Good
            } else {
                Fate::Failed(format!("exit code {}: {said}", status.exit_code))
            };
        }
    }
    Ok(())
}

fn is_ours(container: &Container) -> bool {
    container.label(POD_NAME).starts_with(rehearsal::POD)
}

fn verdict(
    fates: &BTreeMap<String, Fate>,
    cast: &Cast,
    parts: &[Part<'_>],
    node: &str,
) -> (CheckResult, String) {
    let (mut failed, mut pending) = (Vec::new(), Vec::new());
    for (name, fate) in fates {
        let Some((component, role)) = cast.get(name) else {
            continue;
        };
        let image = parts
            .iter()
            .find(|p| p.component == *component)
            .map_or("", |p| match role {
                Role::Target => p.target_image.as_str(),
                Role::Rollback => p.manifest.image.as_str(),
            });
        match fate {
            Fate::Good => {}
            Fate::Pending => pending.push(format!("{component} ({image})")),
            Fate::Failed(why) => failed.push(match role {
                Role::Target => format!(
                    "{image} does not start with the flags of {component}.yaml on {node}: {why}. Correct the flag or file in that manifest, which the running version must take too."
                ),
                Role::Rollback => format!(
                    "The way back would not start: {image} with the flags of {component}.yaml on {node}: {why}. Correct that manifest."
                ),
            }),
        }
    }
    if !failed.is_empty() {
        return (CheckResult::Block, failed.join(" "));
    }
    if !pending.is_empty() {
        return (
            CheckResult::Unknown,
            format!(
                "Not rehearsed on {node}: {} did not come up within {} s. Look into the kubelet's log there for the pod {}; it needs the pod network.",
                pending.join(", "),
                START_LIMIT.as_secs(),
                rehearsal::POD
            ),
        );
    }
    (
        CheckResult::Pass,
        format!("The target binaries, and those to go back to, start with the flags of {node}."),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::manifest;
    use lockkeeper_crds::Component;

    fn told(fate: Fate, role: Role) -> (CheckResult, String) {
        let bytes = b"kind: Pod\nmetadata: {name: kube-scheduler, namespace: kube-system}\nspec: {containers: [{name: kube-scheduler, image: 'r/kube-scheduler:v1.35.4', command: [kube-scheduler]}]}\n";
        let manifest = manifest::parse(Path::new("x"), Component::KubeScheduler, bytes).unwrap();
        let parts = [Part {
            component: Component::KubeScheduler,
            manifest: &manifest,
            target_image: "r/kube-scheduler:v1.36.3".to_owned(),
        }];
        let cast = Cast::from([("c".to_owned(), (Component::KubeScheduler, role))]);
        verdict(&BTreeMap::from([("c".to_owned(), fate)]), &cast, &parts, "cp1")
    }

    #[test]
    fn a_failure_blocks_and_names_component_node_manifest_and_reason() {
        let (result, message) = told(
            Fate::Failed("exit code 1: unrecognized feature gate: X".to_owned()),
            Role::Target,
        );
        assert_eq!(result, CheckResult::Block);
        for part in [
            "kube-scheduler.yaml",
            "cp1",
            "v1.36.3",
            "unrecognized feature gate: X",
        ] {
            assert!(message.contains(part), "{message}");
        }
        let (result, message) = told(Fate::Failed("exit code 1".to_owned()), Role::Rollback);
        assert_eq!(result, CheckResult::Block);
        assert!(message.starts_with("The way back would not start"), "{message}");
    }

    #[test]
    fn what_never_started_is_unknown() {
        assert_eq!(told(Fate::Pending, Role::Target).0, CheckResult::Unknown);
        assert_eq!(told(Fate::Good, Role::Target).0, CheckResult::Pass);
    }

    #[test]
    fn nothing_of_a_rehearsal_is_left() {
        let root = tempfile::tempdir().unwrap();
        let host = Host::new(root.path(), Path::new("/manifests"), Path::new("/state"));
        fs::create_dir_all(host.manifests()).unwrap();
        fs::create_dir_all(host.state().join("rehearsal")).unwrap();
        fs::write(host.manifests().join(REHEARSAL), "stale").unwrap();
        clear(&host).unwrap();
        clear(&host).unwrap();
        assert_eq!(fs::read_dir(host.manifests()).unwrap().count(), 0);
    }
}
