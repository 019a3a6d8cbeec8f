//! A cgroup of its own for every node, on machines with cgroup v1 and with v2.
//!
//! The node's first process is put into it and then gets a cgroup namespace, so that the kubelet inside sees
//! the node's group as the root.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

const ROOT: &str = "/sys/fs/cgroup";
const OURS: &str = "lockkeeper-lab";

/// One hierarchy of cgroup v1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchy {
    /// Where it is mounted.
    pub path: PathBuf,
    /// The mount options that name it: `memory`, `cpu,cpuacct`, `none,name=systemd`.
    pub options: String,
}

/// What the machine has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Layout {
    /// One tree a controller.
    V1(Vec<Hierarchy>),
    /// One tree.
    V2,
}

impl Layout {
    /// Looks at the machine's mounts.
    pub fn of_machine() -> Result<Self> {
        let text =
            std::fs::read_to_string("/proc/self/mountinfo").context("cannot read the machine's mounts")?;
        parse(&text)
    }

    /// The folders that make up the group of a node (`None`: of the whole lab).
    #[must_use]
    pub fn folders(&self, lab: &str, node: Option<&str>) -> Vec<PathBuf> {
        let inside = |root: &Path| {
            let lab = root.join(OURS).join(lab);
            node.map_or_else(|| lab.clone(), |node| lab.join(node))
        };
        match self {
            Self::V1(hierarchies) => hierarchies.iter().map(|one| inside(&one.path)).collect(),
            Self::V2 => vec![inside(Path::new(ROOT))],
        }
    }

    /// Makes the group of a node.
    pub fn create(&self, lab: &str, node: &str) -> Result<()> {
        match self {
            Self::V1(hierarchies) => {
                for hierarchy in hierarchies {
                    let mut path = hierarchy.path.clone();
                    for part in [OURS, lab, node] {
                        path.push(part);
                        make(&path)?;
                        fill_cpuset(&path)?;
                    }
                }
            }
            Self::V2 => {
                let mut path = PathBuf::from(ROOT);
                for part in [OURS, lab, node] {
                    hand_down(&path)?;
                    path.push(part);
                    make(&path)?;
                }
            }
        }
        Ok(())
    }

    /// Puts this process into the group.
    pub fn join(&self, lab: &str, node: &str) -> Result<()> {
        for path in self.folders(lab, Some(node)) {
            let procs = path.join("cgroup.procs");
            std::fs::write(&procs, std::process::id().to_string())
                .with_context(|| format!("cannot enter {}", path.display()))?;
        }
        Ok(())
    }

    /// Removes the group with all groups inside. Processes must be gone; a group that is still busy is
    /// tried again for a moment, because the kernel takes its time.
    pub fn remove(&self, lab: &str, node: Option<&str>) {
        for path in self.folders(lab, node) {
            for _ in 0..50 {
                remove_tree(&path);
                if !path.exists() {
                    break;
                }
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
        }
    }

    /// Every process of the group and of the groups inside, by pid on the machine.
    #[must_use]
    pub fn processes(&self, lab: &str, node: Option<&str>) -> BTreeSet<u32> {
        let mut found = BTreeSet::new();
        for path in self.folders(lab, node) {
            collect(&path, &mut found);
        }
        found
    }

    /// Shows the node its own groups, from inside its namespaces.
    pub fn mount_inside(&self) -> Result<()> {
        match self {
            Self::V1(hierarchies) => {
                mount("cgroup", ROOT, "tmpfs", MountFlags::empty(), None)?;
                for hierarchy in hierarchies {
                    std::fs::create_dir_all(&hierarchy.path)?;
                    let options = std::ffi::CString::new(hierarchy.options.as_str())?;
                    mount(
                        "cgroup",
                        &hierarchy.path,
                        "cgroup",
                        MountFlags::empty(),
                        options.as_c_str(),
                    )
                    .with_context(|| format!("cannot mount the cgroup hierarchy {}", hierarchy.options))?;
                }
                self.link_single_names();
            }
            Self::V2 => {
                mount("cgroup2", ROOT, "cgroup2", MountFlags::empty(), None)?;
                // Groups that hand controllers down hold no processes themselves.
                let own = Path::new(ROOT).join("init");
                make(&own)?;
                std::fs::write(own.join("cgroup.procs"), "0")?;
                hand_down(Path::new(ROOT))?;
            }
        }
        Ok(())
    }

    /// `cpu,cpuacct` is also known as `cpu` and as `cpuacct`.
    fn link_single_names(&self) {
        let Self::V1(hierarchies) = self else { return };
        for hierarchy in hierarchies {
            let Some(name) = hierarchy.path.file_name() else {
                continue;
            };
            for single in hierarchy
                .options
                .split(',')
                .filter(|single| !single.contains('=') && *single != "none")
            {
                let link = Path::new(ROOT).join(single);
                if !link.exists() {
                    let _ = std::os::unix::fs::symlink(name, link);
                }
            }
        }
    }

    /// Takes the machine's view away, from inside the node's namespaces.
    pub fn unmount_machine() {
        let _ = unmount(ROOT, UnmountFlags::DETACH);
    }
}

fn make(path: &Path) -> Result<()> {
    match std::fs::create_dir(path) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            Err(error).with_context(|| format!("cannot make the cgroup {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// A cpuset without CPUs and memory takes no process, and a new one has neither.
fn fill_cpuset(path: &Path) -> Result<()> {
    let Some(parent) = path.parent() else {
        return Ok(());
    };
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let own = path.join(file);
        if own.exists() && std::fs::read_to_string(&own)?.trim().is_empty() {
            std::fs::write(&own, std::fs::read(parent.join(file))?)?;
        }
    }
    let clone = path.join("cgroup.clone_children");
    if path.join("cpuset.cpus").exists() && clone.exists() {
        std::fs::write(clone, "1")?;
    }
    Ok(())
}

/// Lets the groups below use every controller of this one. One that cannot be handed down is left out: the
/// kubelet says itself which one it misses.
fn hand_down(path: &Path) -> Result<()> {
    let all = std::fs::read_to_string(path.join("cgroup.controllers"))
        .with_context(|| format!("cannot read the controllers of {}", path.display()))?;
    for controller in all.split_whitespace() {
        let _ = std::fs::write(path.join("cgroup.subtree_control"), format!("+{controller}"));
    }
    Ok(())
}

fn remove_tree(path: &Path) {
    if let Ok(entries) = std::fs::read_dir(path) {
        for entry in entries.flatten().filter(|entry| entry.path().is_dir()) {
            remove_tree(&entry.path());
        }
    }
    let _ = std::fs::remove_dir(path);
}

fn collect(path: &Path, found: &mut BTreeSet<u32>) {
    let procs = std::fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
    found.extend(procs.lines().filter_map(|line| line.parse::<u32>().ok()));
    if let Ok(entries) = std::fs::read_dir(path) {
        for entry in entries.flatten().filter(|entry| entry.path().is_dir()) {
            collect(&entry.path(), found);
        }
    }
}

fn parse(mountinfo: &str) -> Result<Layout> {
    let mut hierarchies = Vec::new();
    for line in mountinfo.lines() {
        let Some((before, after)) = line.split_once(" - ") else {
            continue;
        };
        let Some(path) = before.split(' ').nth(4) else {
            continue;
        };
        let mut after = after.split(' ');
        let (kind, options) = (after.next().unwrap_or_default(), after.nth(1).unwrap_or_default());
        if kind == "cgroup2" && path == ROOT {
            return Ok(Layout::V2);
        }
        if kind == "cgroup" && Path::new(path).starts_with(ROOT) {
            hierarchies.push(Hierarchy {
                path: path.into(),
                options: hierarchy_options(options),
            });
        }
    }
    if hierarchies.is_empty() {
        anyhow::bail!("no cgroups are mounted under {ROOT}");
    }
    hierarchies.sort_by(|a, b| a.path.cmp(&b.path));
    hierarchies.dedup_by(|a, b| a.path == b.path);
    Ok(Layout::V1(hierarchies))
}

fn hierarchy_options(options: &str) -> String {
    const NOT_OURS: [&str; 6] = ["rw", "ro", "relatime", "noatime", "clone_children", "xattr"];
    let kept: Vec<&str> = options
        .split(',')
        .filter(|option| !NOT_OURS.contains(option) && !option.starts_with("release_agent"))
        .collect();
    let joined = kept.join(",");
    if joined.starts_with("name=") {
        format!("none,{joined}")
    } else {
        joined
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_hierarchy_a_controller_is_v1() {
        let text = "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n\
                    32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct\n\
                    40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd\n\
                    41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";
        let Layout::V1(found) = parse(text).unwrap() else {
            panic!("not v1")
        };
        let options: Vec<&str> = found.iter().map(|one| one.options.as_str()).collect();
        assert_eq!(options, ["cpu,cpuacct", "none,name=systemd"]);
    }

    #[test]
    fn one_tree_is_v2() {
        let text = "31 23 0:28 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
        assert_eq!(parse(text).unwrap(), Layout::V2);
        let folders = Layout::V2.folders("lab", Some("cp1"));
        assert_eq!(folders, [PathBuf::from("/sys/fs/cgroup/lockkeeper-lab/lab/cp1")]);
    }

    #[test]
    fn a_machine_without_cgroups_is_told() {
        assert!(parse("22 27 0:21 / /proc rw - proc proc rw\n").is_err());
    }
}
