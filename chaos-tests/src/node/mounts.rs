//! What a node sees as its file system.
//!
//! The machine's own system, read-only, with the node's disk over the places that a node writes: /etc and /usr
//! as overlays, /var/lib, /var/log and /etc/kubernetes as the disk's own folders, /run, /tmp and /root in memory.

use std::ffi::CString;
use std::path::Path;

use anyhow::{Context, Result};
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_change, mount_remount, unmount,
};

use super::Spec;
use crate::cgroup::Layout;
use crate::process::Run;

/// Where the node's folder is seen while the mounts are made: /var/lib, which holds it, gets covered.
const FOLDER: &str = "/mnt";

/// Kernel settings that the kubelet sets for the whole machine. They are covered by files that already hold
/// what it wants, so that a lab leaves the machine's own settings alone.
const KUBELET_SETTINGS: &[(&str, &str)] = &[
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
];

fn bind(source: impl AsRef<Path>, target: impl AsRef<Path>) -> Result<()> {
    let (source, target) = (source.as_ref(), target.as_ref());
    mount_bind(source, target)
        .with_context(|| format!("cannot bind {} to {}", source.display(), target.display()))
}

fn memory(target: &str, options: &str) -> Result<()> {
    let options = CString::new(options)?;
    mount("tmpfs", target, "tmpfs", MountFlags::empty(), options.as_c_str())
        .with_context(|| format!("cannot mount a tmpfs on {target}"))
}

/// Makes every mount of the node.
pub(super) fn set_up(spec: &Spec) -> Result<()> {
    // Read while the machine's cgroups can still be seen.
    let layout = Layout::of_machine()?;
    mount("proc", "/proc", "proc", MountFlags::empty(), None).context("cannot mount /proc")?;
    Layout::unmount_machine();
    unmount("/sys", UnmountFlags::DETACH).context("cannot take the machine's /sys away")?;
    mount("sysfs", "/sys", "sysfs", MountFlags::empty(), None).context("cannot mount /sys")?;
    layout.mount_inside()?;

    bind(&spec.folder, FOLDER)?;
    for dir in ["etc", "usr"] {
        let options = CString::new(format!(
            "lowerdir=/{dir},upperdir={FOLDER}/disk/{dir},workdir={FOLDER}/disk/work-{dir}"
        ))?;
        mount(
            "overlay",
            format!("/{dir}"),
            "overlay",
            MountFlags::empty(),
            options.as_c_str(),
        )
        .with_context(|| format!("cannot lay the node's disk over /{dir}"))?;
    }
    std::fs::create_dir_all("/etc/kubernetes")?;
    // The machine may have no modules of its own (kube-proxy's pod mounts the folder all the same).
    std::fs::create_dir_all("/lib/modules")?;
    bind(format!("{FOLDER}/disk/kubernetes"), "/etc/kubernetes")?;
    bind(&spec.binaries, "/opt")?;
    mount_remount("/opt", MountFlags::BIND | MountFlags::RDONLY, c"")?;
    bind(format!("{FOLDER}/disk/var-log"), "/var/log")?;
    bind(format!("{FOLDER}/disk/var-lib"), "/var/lib")?;
    for dir in ["/run", "/tmp"] {
        memory(dir, "mode=1777")?;
    }
    memory("/root", "mode=0700")?;
    std::fs::create_dir_all("/run/lock")?;
    for dir in ["kubelet", "etcd", "cni", "containerd"] {
        std::fs::create_dir_all(Path::new("/var/lib").join(dir))?;
    }
    for (number, (path, _)) in spec.small_disks.iter().enumerate() {
        std::fs::create_dir_all(path)?;
        let image = format!("{FOLDER}/small-{number}.img");
        Run::new("mount").args(["-o", "loop", &image]).arg(path).check()?;
    }
    cover_kernel_settings()
}

fn cover_kernel_settings() -> Result<()> {
    let dir = Path::new("/run/kernel-settings");
    std::fs::create_dir_all(dir)?;
    for (name, value) in KUBELET_SETTINGS {
        let target = Path::new("/proc/sys").join(name);
        if target.exists() {
            let own = dir.join(name.replace('/', "."));
            std::fs::write(&own, format!("{value}\n"))?;
            bind(&own, target)?;
        }
    }
    Ok(())
}

/// Makes the machine's own system read-only, opens mounts to containers, and says that the node is ready.
pub(super) fn close(spec: &Spec) -> Result<()> {
    mount_remount("/", MountFlags::BIND | MountFlags::RDONLY, c"").context("cannot make / read-only")?;
    // The kubelet hands mounts on to containers and back.
    mount_change("/", MountPropagationFlags::SHARED | MountPropagationFlags::REC)?;
    std::fs::write(Path::new(FOLDER).join("ready"), &spec.name)?;
    unmount(FOLDER, UnmountFlags::DETACH)?;
    Ok(())
}
