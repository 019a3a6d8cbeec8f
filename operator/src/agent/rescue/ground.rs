//! What a rescue sees and does beyond the node's files: containers, processes, etcd members, the API server.

use std::collections::HashMap;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use http::Uri;
use lockkeeper_crds::{Component, Tristate};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::super::cri::{Container, Cri, EXITED, POD_UID, RUNNING};
use super::super::etcd::EtcdMember;
use super::super::etcd::members::Listed;
use super::super::host::{Host, read_limited};
use super::super::processes::Asker;
use super::super::time::from_nanos;
use super::super::{logs, manifest};
use super::book::{Age, Book, Entry, Part};
use super::steps::Running;

/// A peer on the same network answers in milliseconds.
const KNOCK: Duration = Duration::from_secs(2);

/// Manifests are a few KiB.
const LARGEST: u64 = 1024 * 1024;

/// A container of one of the two components.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Containers {
    pub(crate) running: Option<Running>,
    pub(crate) last_pod: Option<String>,
    pub(crate) last_made: Option<DateTime<Utc>>,
    pub(crate) last_words: String,
}

/// Why something outside could not be done; a sentence.
pub(crate) type Outside<T> = Result<T, String>;

/// Everything but files. Tests play one.
#[async_trait]
pub(crate) trait Ground: Send + Sync {
    /// The component's containers.
    async fn containers(&self, part: Part) -> Outside<Containers>;
    /// Ends a container.
    async fn end(&self, id: &str) -> Outside<()>;
    /// When the kubelet's process began.
    async fn kubelet(&self) -> Option<DateTime<Utc>>;
    /// Ends the kubelet's process.
    async fn restart_kubelet(&self) -> Outside<()>;
    /// Whether the API server says that it is ready.
    async fn api_ready(&self, entry: &Entry) -> Outside<()>;
    /// The members that the local etcd lists, after it agreed with its quorum.
    async fn local(&self, entry: &Entry) -> Outside<Vec<Listed>>;
    /// The same of the survivor.
    async fn via(&self, entry: &Entry) -> Outside<Vec<Listed>>;
    /// Other members that take connections.
    async fn alive(&self, entry: &Entry) -> Vec<String>;
    /// Adds this node's learner on the survivor.
    async fn add_learner(&self, entry: &Entry) -> Outside<()>;
    /// Removes a member on the survivor.
    async fn remove(&self, entry: &Entry, id: u64) -> Outside<()>;
    /// Promotes the learner on the survivor.
    async fn promote(&self, entry: &Entry, id: u64) -> Outside<()>;
    /// Whether the local etcd is rid of what tells of the backup's time; an error for what must not be kept.
    async fn is_cleansed(&self, entry: &Entry) -> Outside<bool>;
    /// Rids it of that; says of what.
    async fn cleanse(&self, entry: &Entry) -> Outside<String>;
}

/// The real one.
#[derive(Debug)]
pub(crate) struct Node {
    host: Host,
    cri: Cri,
    asker: Asker,
    book: Book,
}

impl Node {
    pub(crate) fn new(host: Host, cri: Cri) -> Self {
        Self {
            asker: Asker::new(host.clone()),
            book: Book::new(host.clone()),
            host,
            cri,
        }
    }

    fn member(&self, entry: &Entry, address: Option<&str>) -> EtcdMember {
        let copy = self.book.copy(&entry.id, Part::Etcd, Age::Old);
        EtcdMember::by_copy(self.host.root(), &copy, address)
    }

    fn survivor(&self, entry: &Entry) -> Outside<EtcdMember> {
        match &entry.via {
            Some(via) => Ok(self.member(entry, Some(via))),
            None => Err("its address is not known: name it by --via".to_owned()),
        }
    }
}

#[async_trait]
impl Ground for Node {
    async fn containers(&self, part: Part) -> Outside<Containers> {
        let all = self.cri.containers().await.map_err(|e| e.to_string())?;
        let ours: Vec<&Container> = all.iter().filter(|c| c.is_of_static_pod(part.name())).collect();
        let newest = ours.iter().max_by_key(|c| c.created_at);
        let running = ours
            .iter()
            .filter(|c| c.state == RUNNING)
            .max_by_key(|c| c.created_at)
            .map(|c| Running {
                id: c.id.clone(),
                pod: c.label(POD_UID).to_owned(),
                created_at: from_nanos(c.created_at),
                forced: command_line(&self.host, &c.id, part.name())
                    .map(|words| words.iter().any(|word| is_forcing(word))),
            });
        let mut last_words = String::new();
        if running.is_none()
            && let Some(ended) = newest.filter(|c| c.state == EXITED)
            && let Ok(Some(status)) = self.cri.container(&ended.id).await
        {
            last_words = plain(&logs::reason(&self.host.reach(Path::new(&status.log_path))));
        }
        Ok(Containers {
            running,
            last_pod: newest.map(|c| c.label(POD_UID).to_owned()),
            last_made: newest.map(|c| from_nanos(c.created_at)),
            last_words,
        })
    }

    async fn end(&self, id: &str) -> Outside<()> {
        self.cri.end(id, 5).await.map_err(|e| e.to_string())
    }

    async fn kubelet(&self) -> Option<DateTime<Utc>> {
        let pid = processes_of(&self.host, "kubelet").into_iter().next()?.0;
        began(&self.host, pid)
    }

    async fn restart_kubelet(&self) -> Outside<()> {
        let found = processes_of(&self.host, "kubelet");
        let (pid, _) = found.first().ok_or("no kubelet runs on this node: start it")?;
        let pid = rustix::process::Pid::from_raw(*pid).ok_or("the kubelet has no pid")?;
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)
            .map_err(|e| format!("the kubelet cannot be ended: {e}"))
    }

    async fn api_ready(&self, entry: &Entry) -> Outside<()> {
        let path = Part::Api.path(&self.host);
        let copy = self.book.copy(&entry.id, Part::Api, Age::Old);
        let bytes = read_limited(&copy, LARGEST).map_err(|e| format!("{}: {e}", copy.display()))?;
        let parsed = manifest::parse(&path, Component::KubeApiserver, &bytes).map_err(|e| e.to_string())?;
        let target = self
            .asker
            .target(Component::KubeApiserver, &parsed)
            .map_err(|e| e.to_string())?;
        let said = self.asker.readiness(Component::KubeApiserver, &target).await;
        match said.ready {
            Tristate::True => Ok(()),
            _ => Err(said.message),
        }
    }

    async fn local(&self, entry: &Entry) -> Outside<Vec<Listed>> {
        agreed(&self.member(entry, None)).await
    }

    async fn via(&self, entry: &Entry) -> Outside<Vec<Listed>> {
        agreed(&self.survivor(entry)?).await
    }

    async fn alive(&self, entry: &Entry) -> Vec<String> {
        let knocks = entry
            .peers
            .iter()
            .map(|(name, url)| async move { knock(url).await.is_ok().then(|| format!("{name} ({url})")) });
        futures::future::join_all(knocks)
            .await
            .into_iter()
            .flatten()
            .collect()
    }

    async fn add_learner(&self, entry: &Entry) -> Outside<()> {
        let survivor = self.survivor(entry)?;
        survivor
            .add_learner(&entry.peer_url)
            .await
            .map(drop)
            .map_err(|e| e.to_string())
    }

    async fn remove(&self, entry: &Entry, id: u64) -> Outside<()> {
        let survivor = self.survivor(entry)?;
        survivor.remove_member(id).await.map_err(|e| e.to_string())
    }

    async fn promote(&self, entry: &Entry, id: u64) -> Outside<()> {
        let survivor = self.survivor(entry)?;
        survivor.promote(id).await.map_err(|e| e.to_string())
    }

    async fn is_cleansed(&self, entry: &Entry) -> Outside<bool> {
        let read = self.member(entry, None).register(&token(&entry.id)).await;
        let register = read.map_err(|e| e.to_string())?.register;
        if register.corrupt {
            return Err("the backup holds the alarm CORRUPT: restore another one".to_owned());
        }
        Ok(register.cleansed)
    }

    async fn cleanse(&self, entry: &Entry) -> Outside<String> {
        let member = self.member(entry, None);
        let done = member
            .cleanse(&token(&entry.id))
            .await
            .map_err(|e| e.to_string())?;
        let alarms = if done.alarms.is_empty() {
            String::new()
        } else {
            format!(", alarms disarmed: {}", done.alarms.join(", "))
        };
        Ok(format!(
            "{} Leases and API servers' entries of the backup's time are out{alarms}",
            done.keys
        ))
    }
}

/// The name of a restore in etcd: the restored cluster's token, so that no two have the same ids.
pub(crate) fn token(id: &str) -> String {
    format!("rescue-{id}")
}

/// Whom a member lists, after it agreed with its quorum: the list is then at least this new.
pub(crate) async fn agreed(member: &EtcdMember) -> Outside<Vec<Listed>> {
    member.agrees().await.map_err(|e| e.to_string())?;
    member.members().await.map_err(|e| e.to_string())
}

/// Whether somebody takes connections at this peer URL.
pub(crate) async fn knock(url: &str) -> Outside<()> {
    let uri: Uri = url.parse().map_err(|e| format!("{url} is no URL: {e}"))?;
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
    let port = uri.port_u16().unwrap_or(2380);
    let connecting = async {
        match format!("{host}:{port}").parse::<SocketAddr>() {
            Ok(address) => TcpStream::connect(address).await,
            Err(_) => TcpStream::connect((host.as_str(), port)).await,
        }
    };
    match timeout(KNOCK, connecting).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {} s", KNOCK.as_secs())),
    }
}

fn is_forcing(word: &str) -> bool {
    word == "--force-new-cluster"
        || word
            .strip_prefix("--force-new-cluster=")
            .is_some_and(|value| !matches!(value, "false" | "0" | "f" | "F" | "FALSE" | "False"))
}

/// The error in a line of etcd's log, which is JSON and may be cut off at its end.
fn plain(line: &str) -> String {
    let field = |name: &str| {
        let (_, rest) = line.split_once(&format!("\"{name}\":\""))?;
        Some(rest.split_once("\",\"").map_or(rest, |(value, _)| value))
    };
    let text = field("error").or_else(|| field("msg")).unwrap_or(line);
    text.trim_end_matches(['"', '}']).chars().take(200).collect()
}

/// The command line of a container's process: the kernel's word, whatever the manifest says by now.
fn command_line(host: &Host, container: &str, program: &str) -> Option<Vec<String>> {
    processes_of(host, program).into_iter().find_map(|(pid, words)| {
        let groups = fs::read_to_string(process(host, pid).join("cgroup")).unwrap_or_default();
        groups.contains(container).then_some(words)
    })
}

fn process(host: &Host, pid: i32) -> std::path::PathBuf {
    host.reach(Path::new("/proc")).join(pid.to_string())
}

/// Pid and command line of every process that runs this program.
fn processes_of(host: &Host, program: &str) -> Vec<(i32, Vec<String>)> {
    let Ok(all) = fs::read_dir(host.reach(Path::new("/proc"))) else {
        return Vec::new();
    };
    let pids = all
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter_map(|pid: i32| {
        let line = fs::read(process(host, pid).join("cmdline")).ok()?;
        let words: Vec<String> = line
            .split(|byte| *byte == 0)
            .filter(|word| !word.is_empty())
            .map(|word| String::from_utf8_lossy(word).into_owned())
            .collect();
        let name = words.first()?.rsplit('/').next()?.to_owned();
        (name == program).then_some((pid, words))
    })
    .collect()
}

/// When a process began: ticks since the boot in the 22nd field of its `stat`, of which Linux shows 100 a second.
fn began(host: &Host, pid: i32) -> Option<DateTime<Utc>> {
    let stat = fs::read_to_string(process(host, pid).join("stat")).ok()?;
    // The name in brackets may hold spaces.
    let (_, rest) = stat.rsplit_once(')')?;
    let ticks: i64 = rest.split_whitespace().nth(19)?.parse().ok()?;
    let machine = fs::read_to_string(host.reach(Path::new("/proc/stat"))).ok()?;
    let boot: i64 = machine
        .lines()
        .find_map(|line| line.strip_prefix("btime "))?
        .trim()
        .parse()
        .ok()?;
    DateTime::from_timestamp(boot + ticks / 100, 0)
}

/// When each component was last seen running; what is gone must stay gone for a while.
#[derive(Debug, Default)]
pub(crate) struct Quiet {
    since: HashMap<Part, DateTime<Utc>>,
}

impl Quiet {
    /// Takes a look in.
    pub(crate) fn note(&mut self, part: Part, runs: bool, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        if runs {
            self.since.remove(&part);
            return None;
        }
        Some(*self.since.entry(part).or_insert(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flag_is_told_whatever_its_form() {
        assert!(is_forcing("--force-new-cluster"));
        assert!(is_forcing("--force-new-cluster=true"));
        assert!(!is_forcing("--force-new-cluster=false"));
        assert!(!is_forcing("--force-new-cluster-x"));
    }

    #[test]
    fn what_etcd_said_is_its_error_and_not_its_json() {
        let line = r#"{"level":"fatal","msg":"discovery failed","error":"member count is unequal","stacktrace":"x"}"#;
        assert_eq!(plain(line), "member count is unequal");
        assert_eq!(
            plain(r#"{"level":"warn","msg":"waiting for Read"#),
            "waiting for Read"
        );
        assert_eq!(plain("panic"), "panic");
    }

    #[test]
    fn a_command_line_is_found_by_the_containers_group() {
        let root = tempfile::tempdir().unwrap();
        let host = Host::new(root.path(), Path::new("/m"), Path::new("/s"));
        for (pid, group, line) in [
            ("7", "0::/kubepods/podx/abc", "etcd\0--name=a\0"),
            ("8", "0::/kubepods/pody/def", "etcd\0--force-new-cluster=true\0"),
        ] {
            let at = root.path().join("proc").join(pid);
            fs::create_dir_all(&at).unwrap();
            fs::write(at.join("cmdline"), line).unwrap();
            fs::write(at.join("cgroup"), group).unwrap();
        }
        assert_eq!(command_line(&host, "abc", "etcd").unwrap()[1], "--name=a");
        assert_eq!(command_line(&host, "zzz", "etcd"), None);
        fs::write(root.path().join("proc/stat"), "cpu 1\nbtime 1763700000\n").unwrap();
        let stat = "7 (a b) S 1 1 1 0 -1 4 0 0 0 0 0 0 0 0 20 0 1 0 4200 0 0";
        fs::write(root.path().join("proc/7/stat"), stat).unwrap();
        assert_eq!(began(&host, 7).unwrap().timestamp(), 1_763_700_042);
    }
}
