//! The rehearsal pod: the target binaries, and the ones that would be gone back to, with the node's own flags,
//! where they can hurt nothing.
//!
//! Unknown flags, removed or locked gates and files that do not parse end such a process in under a second,
//! before it speaks to etcd or an API server (facts.md 4.8; tried with v1.36.3: 0.03 to 0.15 s). What keeps it
//! harmless: a network of its own, so nothing that it opens can collide; an etcd and an API server that do not
//! exist; a kubeconfig without credentials; host paths read-only; no ServiceAccount.

use std::collections::BTreeMap;

use lockkeeper_crds::Component;
use serde_yaml::{Mapping, Value};

use super::manifest::{self, Manifest, is_flag};

/// The pod's name in its manifest; the kubelet appends the node's.
pub(crate) const POD: &str = "lockkeeper-rehearsal";

/// Nothing listens there: port 1 of the pod's own loopback.
pub(crate) const NOWHERE: &str = "https://127.0.0.1:1";

/// Where the pod finds the files that are made for it.
const FILES: &str = "/lockkeeper-rehearsal";

/// Where the pod may write.
const SCRATCH: &str = "/lockkeeper-scratch";

pub(crate) const KUBECONFIG_FILE: &str = "kubeconfig";
pub(crate) const SCHEDULER_CONFIG_FILE: &str = "scheduler-config.yaml";

/// A kubeconfig that leads nowhere and holds no credential: with it no rehearsal can win an election or change
/// an object, whatever else fails.
pub(crate) const KUBECONFIG: &str = "apiVersion: v1
kind: Config
clusters:
- name: nowhere
  cluster: {server: \"https://127.0.0.1:1\", insecure-skip-tls-verify: true}
contexts:
- name: nowhere
  context: {cluster: nowhere, user: nobody}
current-context: nowhere
users:
- name: nobody
  user: {}
";

/// Which binary a container tries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Role {
    /// The one to come.
    Target,
    /// The one to go back to.
    Rollback,
}

impl Role {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Target => "target",
            Self::Rollback => "rollback",
        }
    }
}

/// What is rehearsed of one component.
#[derive(Clone, Debug)]
pub(crate) struct Part<'a> {
    pub(crate) component: Component,
    pub(crate) manifest: &'a Manifest,
    pub(crate) target_image: String,
}

/// Why a component cannot be rehearsed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RehearsalError {
    #[error(
        "{0}.yaml: the first word of spec.containers[].command is not {0} itself, so its flags cannot be made harmless: write the binary as the first word and each flag as a word of its own"
    )]
    Command(Component),
    #[error("the scheduler's --config file cannot be used: {0}")]
    SchedulerConfig(String),
    #[error("the rehearsal's manifest cannot be written as YAML: {0}")]
    Yaml(String),
}

/// A container's name and what it tries.
pub(crate) type Cast = BTreeMap<String, (Component, Role)>;

/// Renders the pod. `files` is the host directory with the kubeconfig; `mark` makes each rehearsal a pod of its own
/// for the kubelet, which never starts the containers of an ended pod again.
pub(crate) fn render(parts: &[Part<'_>], files: &str, mark: &str) -> Result<(String, Cast), RehearsalError> {
    let mut volumes = Volumes::default();
    volumes.add(host_path(files));
    let scratch = volumes.add(parse("emptyDir: {}"));
    let (mut containers, mut cast, mut groups) = (Vec::new(), Cast::new(), Vec::new());
    for part in parts {
        let spec = part.manifest.document.get("spec");
        let own = spec
            .and_then(|s| s.get("securityContext"))
            .and_then(|s| s.get("supplementalGroups"));
        for group in own.and_then(Value::as_sequence).into_iter().flatten() {
            if !groups.contains(group) {
                groups.push(group.clone());
            }
        }
        for role in [Role::Target, Role::Rollback] {
            let name = format!("{}-{}", part.component, role.name());
            containers.push(container(part, role, &name, &mut volumes, &scratch)?);
            cast.insert(name, (part.component, role));
        }
    }
    let mut pod = parse(
        "{apiVersion: v1, kind: Pod, metadata: {name: lockkeeper-rehearsal, namespace: kube-system, labels: {app.kubernetes.io/name: lockkeeper-rehearsal}}, spec: {restartPolicy: Never, terminationGracePeriodSeconds: 1, automountServiceAccountToken: false, enableServiceLinks: false, dnsPolicy: Default, priorityClassName: system-node-critical}}",
    );
    if let Some(metadata) = pod.get_mut("metadata").and_then(Value::as_mapping_mut) {
        let mut annotations = Mapping::new();
        annotations.insert("lockkeeper.dev/rehearsal".into(), mark.into());
        metadata.insert("annotations".into(), annotations.into());
    }
    if let Some(spec) = pod.get_mut("spec").and_then(Value::as_mapping_mut) {
        if !groups.is_empty() {
            let mut context = Mapping::new();
            context.insert("supplementalGroups".into(), Value::Sequence(groups));
            spec.insert("securityContext".into(), context.into());
        }
        spec.insert("containers".into(), Value::Sequence(containers));
        spec.insert("volumes".into(), Value::Sequence(volumes.0));
    }
    let text = serde_yaml::to_string(&pod).map_err(|e| RehearsalError::Yaml(e.to_string()))?;
    Ok((text, cast))
}

/// Only text written in this file.
fn parse(yaml: &str) -> Value {
    serde_yaml::from_str(yaml).unwrap_or(Value::Null)
}

fn host_path(path: &str) -> Value {
    let mut inner = Mapping::new();
    inner.insert("path".into(), path.into());
    let mut volume = Mapping::new();
    volume.insert("hostPath".into(), inner.into());
    volume.into()
}

/// The pod's volumes; equal ones of several manifests become one, under a name of its own.
#[derive(Default)]
struct Volumes(Vec<Value>);

impl Volumes {
    fn add(&mut self, mut volume: Value) -> String {
        let nameless = |v: &Value| {
            let mut v = v.clone();
            if let Some(fields) = v.as_mapping_mut() {
                fields.remove("name");
            }
            v
        };
        let wanted = nameless(&volume);
        let known = self.0.iter().find(|v| nameless(v) == wanted);
        if let Some(name) = known.and_then(|v| v.get("name")).and_then(Value::as_str) {
            return name.to_owned();
        }
        let name = format!("v{}", self.0.len());
        if let Some(fields) = volume.as_mapping_mut() {
            fields.insert("name".into(), name.as_str().into());
        }
        self.0.push(volume);
        name
    }
}

fn container(
    part: &Part<'_>,
    role: Role,
    name: &str,
    volumes: &mut Volumes,
    scratch: &str,
) -> Result<Value, RehearsalError> {
    let component = part.component;
    let document = &part.manifest.document;
    let real = manifest::container(document, component.name()).cloned();
    let Some(Value::Mapping(real)) = real else {
        return Err(RehearsalError::Command(component));
    };
    let mut made = Mapping::new();
    let image = match role {
        Role::Target => &part.target_image,
        Role::Rollback => &part.manifest.image,
    };
    made.insert("name".into(), name.into());
    made.insert("image".into(), image.as_str().into());
    made.insert("imagePullPolicy".into(), "IfNotPresent".into());
    let words = rewrite(component, role, &part.manifest.arguments)?;
    made.insert(
        "command".into(),
        Value::Sequence(words.into_iter().map(Value::String).collect()),
    );
    for field in ["env", "workingDir"] {
        if let Some(value) = real.get(field) {
            made.insert(field.into(), value.clone());
        }
    }
    let mut mounts = vec![mount("v0", FILES, true), mount(scratch, SCRATCH, false)];
    for its in real
        .get("volumeMounts")
        .and_then(Value::as_sequence)
        .into_iter()
        .flatten()
    {
        mounts.extend(harmless_mount(document, its, volumes));
    }
    made.insert("volumeMounts".into(), Value::Sequence(mounts));
    if let Some(context) = security_context(document, &real) {
        made.insert("securityContext".into(), context);
    }
    Ok(Value::Mapping(made))
}

fn mount(volume: &str, path: &str, read_only: bool) -> Value {
    let mut made = Mapping::new();
    made.insert("name".into(), volume.into());
    made.insert("mountPath".into(), path.into());
    if read_only {
        made.insert("readOnly".into(), true.into());
    }
    made.into()
}

/// The mount with its volume; read-only unless the volume lives and dies with the pod.
fn harmless_mount(pod: &Value, its: &Value, volumes: &mut Volumes) -> Option<Value> {
    let named = its.get("name")?;
    let volume = pod
        .get("spec")?
        .get("volumes")?
        .as_sequence()?
        .iter()
        .find(|v| v.get("name") == Some(named))?;
    let mut made = Mapping::new();
    made.insert("name".into(), volumes.add(volume.clone()).into());
    for field in ["mountPath", "subPath"] {
        if let Some(value) = its.get(field) {
            made.insert(field.into(), value.clone());
        }
    }
    if volume.get("emptyDir").is_none() {
        made.insert("readOnly".into(), true.into());
    }
    Some(made.into())
}

/// The container's security context, and what it would inherit from its own pod.
fn security_context(pod: &Value, real: &Mapping) -> Option<Value> {
    let mut context = real
        .get("securityContext")
        .and_then(Value::as_mapping)
        .cloned()
        .unwrap_or_default();
    let inherited = pod
        .get("spec")
        .and_then(|s| s.get("securityContext"))
        .and_then(Value::as_mapping);
    for field in [
        "runAsUser",
        "runAsGroup",
        "runAsNonRoot",
        "seccompProfile",
        "seLinuxOptions",
        "appArmorProfile",
    ] {
        if let Some(value) = inherited.and_then(|c| c.get(field))
            && !context.contains_key(field)
        {
            context.insert(field.into(), value.clone());
        }
    }
    (!context.is_empty()).then_some(Value::Mapping(context))
}

/// The command with every flag that reaches out of the pod, or would collide inside it, turned aside.
fn rewrite(component: Component, role: Role, words: &[String]) -> Result<Vec<String>, RehearsalError> {
    let mut rest = words.iter();
    let binary = rest
        .next()
        .filter(|word| word.rsplit('/').next() == Some(component.name()))
        .ok_or(RehearsalError::Command(component))?;
    let mut flags = Flags::new(rest.as_slice());
    let port = match (component, role) {
        (Component::KubeApiserver, Role::Target) => 16443,
        (Component::KubeApiserver, Role::Rollback) => 16444,
        (Component::KubeControllerManager, Role::Target) => 20257,
        (Component::KubeControllerManager, Role::Rollback) => 20258,
        (Component::KubeScheduler, Role::Target) => 20259,
        (Component::KubeScheduler, Role::Rollback) => 20260,
    };
    flags.set("secure-port", &port.to_string());
    flags.turn("cert-dir", SCRATCH);
    if component == Component::KubeApiserver {
        flags.set("etcd-servers", NOWHERE);
        flags.remove("etcd-servers-overrides");
        // The node's address does not exist in the pod's network.
        flags.remove("bind-address");
        flags.turn("audit-log-path", "-");
        if !flags.has("tls-cert-file") {
            flags.set("cert-dir", SCRATCH);
        }
    } else {
        let kubeconfig = format!("{FILES}/{KUBECONFIG_FILE}");
        flags.set("kubeconfig", &kubeconfig);
        flags.turn("authentication-kubeconfig", &kubeconfig);
        flags.turn("authorization-kubeconfig", &kubeconfig);
        // It would win over the kubeconfig.
        flags.remove("master");
        flags.remove("write-config-to");
        flags.set("bind-address", "127.0.0.1");
        flags.set("leader-elect-resource-name", POD);
        if component == Component::KubeScheduler {
            flags.turn("config", &format!("{FILES}/{SCHEDULER_CONFIG_FILE}"));
        }
    }
    Ok(flags.command(binary))
}

/// The flags of a command, some of them turned aside.
pub(crate) struct Flags {
    rest: Vec<String>,
    made: Vec<String>,
}

impl Flags {
    /// The words after the binary.
    pub(crate) fn new(words: &[String]) -> Self {
        Self {
            rest: words.to_vec(),
            made: Vec::new(),
        }
    }

    /// The whole command.
    pub(crate) fn command(self, binary: &str) -> Vec<String> {
        // In front, so that nothing in the manifest's own words (a bare `--`) can hide them.
        let mut all = vec![binary.to_owned()];
        all.extend(self.made);
        all.extend(self.rest);
        all
    }

    fn has(&self, name: &str) -> bool {
        manifest::flag(&self.rest, name).is_some()
    }

    /// Removes every occurrence: list flags add up, so that one left over would count too.
    pub(crate) fn remove(&mut self, name: &str) -> bool {
        let (mut kept, mut found) = (Vec::new(), false);
        let mut words = std::mem::take(&mut self.rest).into_iter();
        while let Some(word) = words.next() {
            let text = word.strip_prefix("--").unwrap_or_default();
            let key = text.split_once('=').map_or(text, |(key, _)| key);
            if is_flag(key, name) {
                found = true;
                if !text.contains('=') {
                    // `--name value`
                    words.next();
                }
            } else {
                kept.push(word);
            }
        }
        self.rest = kept;
        self.made.retain(|word| {
            word.strip_prefix("--")
                .and_then(|w| w.split_once('='))
                .is_none_or(|(key, _)| key != name)
        });
        found
    }

    pub(crate) fn set(&mut self, name: &str, value: &str) {
        self.remove(name);
        self.made.push(format!("--{name}={value}"));
    }

    /// Sets it where the manifest has it.
    fn turn(&mut self, name: &str, value: &str) {
        if self.remove(name) {
            self.made.push(format!("--{name}={value}"));
        }
    }
}

/// The scheduler's configuration file, made harmless.
pub(crate) fn scheduler_config(text: &str) -> Result<String, RehearsalError> {
    let bad = |why: String| RehearsalError::SchedulerConfig(why);
    let mut value: Value = serde_yaml::from_str(text).map_err(|e| bad(e.to_string()))?;
    let top = value
        .as_mapping_mut()
        .ok_or_else(|| bad("it is not a mapping".to_owned()))?;
    for (section, field, to) in [
        (
            "clientConnection",
            "kubeconfig",
            format!("{FILES}/{KUBECONFIG_FILE}"),
        ),
        ("leaderElection", "resourceName", POD.to_owned()),
    ] {
        let inner = top
            .entry(section.into())
            .or_insert_with(|| Value::Mapping(Mapping::new()));
        if inner.is_null() {
            *inner = Value::Mapping(Mapping::new());
        }
        inner
            .as_mapping_mut()
            .ok_or_else(|| bad(format!("{section} is not a mapping")))?
            .insert(field.into(), to.into());
    }
    serde_yaml::to_string(&value).map_err(|e| bad(e.to_string()))
}

/// True when a process ended because there is no etcd and no API server here: it had got past its flags.
pub(crate) fn is_expected_end(reason: &str) -> bool {
    // `error creating storage factory: context deadline exceeded` is a v1.36.3 API server 20 s after its start.
    reason.contains("127.0.0.1:1/")
        || reason.contains("127.0.0.1:1:")
        || reason.contains("error creating storage factory: context deadline exceeded")
}

#[cfg(test)]
#[path = "rehearsal_tests.rs"]
mod tests;
