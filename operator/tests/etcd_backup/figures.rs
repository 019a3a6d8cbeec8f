//! What a backup costs: time against the stream alone and against doing it by hand, memory, what writes notice, and
//! what a restore costs against one of a local file.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use lockkeeper::agent::backup::{Request, take};
use lockkeeper::agent::etcd::EtcdMember;
use lockkeeper::store::{Identities, Piece, Source as _, Store};
use lockkeeper_crds::{Encryption, EtcdBackupStoreSpec};
use object_store::ObjectStoreExt as _;
use tokio_util::sync::CancellationToken;

use super::request;
use super::world::{Etcd, ObjectServer, binaries};

/// Prints figures, each a ratio of one run. Optimized, or they are of the compiler:
/// `cargo test --release -p lockkeeper --test etcd_backup -- --ignored --nocapture figures`.
///
/// `LOCKKEEPER_TEST_MIB` is etcd's size (1024), of objects like Kubernetes', `LOCKKEEPER_TEST_ROUNDS` how often a backup is
/// taken (3), `LOCKKEEPER_TEST_FIGURES` which of them ("backup,restore,writes"); `LOCKKEEPER_TEST_BIN` holds `etcdctl` too,
/// and `zstd` is on the PATH: what a person would do is done beside it, with object_store's own upload, which is quicker to
/// begin than any command line. As root: etcd is held by a cgroup in one of them.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes and gigabytes"]
async fn figures() {
    let Some(bin) = binaries() else { return };
    // Each backup says how long it took to upload and to read back.
    let _ = tracing_subscriber::fmt().with_target(false).try_init();
    let number = |name, otherwise: u32| {
        let said = std::env::var(name).ok();
        said.map_or(otherwise, |n| n.parse().unwrap())
    };
    let (mib, rounds) = (
        number("LOCKKEEPER_TEST_MIB", 1024),
        number("LOCKKEEPER_TEST_ROUNDS", 3),
    );
    let parts = ["backup", "restore", "writes"];
    let named = std::env::var("LOCKKEEPER_TEST_FIGURES").unwrap_or_else(|_| parts.join(","));
    let unknown = named.split(',').find(|part| !parts.contains(part));
    assert_eq!(unknown, None, "in LOCKKEEPER_TEST_FIGURES, there are {parts:?}");
    let wanted = |wanted| named.split(',').any(|part| part == wanted);
    // In memory: a bucket is on another machine's disk, not on etcd's.
    let bucket = tempfile::tempdir_in("/dev/shm").unwrap();
    let (etcd, s3) = (
        Etcd::start(&bin).await,
        ObjectServer::start_in(&bin, bucket).await,
    );
    etcd.fill_like_kubernetes((mib as usize * 1024 * 1024) / OBJECT, OBJECT)
        .await;
    etcd.age(OBJECT).await;
    let (keys, public, _) = Identities::generate();
    let limited = |limit| EtcdBackupStoreSpec {
        limit_bytes_per_second: limit,
        ..s3.spec()
    };
    let open =
        |spec: &EtcdBackupStoreSpec| Store::from_spec("main", spec, ObjectServer::credentials()).unwrap();
    let fast = open(&limited(Some(i64::MAX)));
    let store = open(&EtcdBackupStoreSpec {
        encryption: Some(Encryption {
            recipients: vec![public],
            ..Encryption::default()
        }),
        ..limited(Some(i64::MAX))
    });
    let member = etcd.member();
    member.observe().await.unwrap();
    store.probe().await.unwrap();
    // Its garbage is collected now: what it was filled with.
    throw_away(&member).await;
    if wanted("backup") {
        let mut memory = Memory::default();
        for round in 1..=rounds {
            backup(&bin, (&etcd, &member), &s3, [&fast, &store], (round, &mut memory)).await;
        }
        for round in 1..=rounds {
            backup_of_a_slow_etcd((&etcd, &member), &fast, 30 + round).await;
        }
    }
    if wanted("restore") {
        back_up(&member, &store, 90).await;
        restore(&bin, &store, &keys).await;
    }
    if !wanted("writes") {
        return;
    }
    for (kind, limit) in (1..).zip([None, Some(128 << 20), Some(i64::MAX)]) {
        let limited = open(&limited(limit));
        let backup = async |round| back_up(&member, &limited, 100 * kind + round).await;
        let what =
            format!("while a backup is taken with limitBytesPerSecond {limit:?} (by default at most 1.5)");
        beside(&etcd, &what, backup).await;
    }
    let stream = async |_| {
        throw_away(&member).await;
    };
    beside(&etcd, "while the stream is thrown away", stream).await;
}

/// Of Kubernetes, in bytes.
const OBJECT: usize = 8 * 1024;

/// One round of backups, beside what they are measured by.
async fn backup(
    bin: &Path,
    (etcd, member): (&Etcd, &EtcdMember),
    s3: &ObjectServer,
    [fast, store]: [&Store; 2],
    (round, memory): (u32, &mut Memory),
) {
    memory.touch();
    let used = Used::now(etcd, s3);
    let (thrown, bytes) = throw_away(member).await;
    used.tell("thrown away", thrown, etcd, s3);
    reset_peak();
    let idle = resident("VmRSS:");
    let (began, used) = (Instant::now(), Used::now(etcd, s3));
    back_up(member, fast, 20 + round).await;
    let unlimited = began.elapsed();
    used.tell("backed up without a limit", unlimited, etcd, s3);
    let began = Instant::now();
    back_up(member, store, round).await;
    let encrypted = began.elapsed();
    let peak = resident("VmHWM:");
    memory.touch();
    let [saved, by_hand] = by_hand(bin, etcd, s3, round).await;
    println!(
        "round {round}: {} MiB; thrown away in {:.2} s; backed up without a limit in {:.2} s: {:.2} of it (at most 1.1), encrypted in {:.2} s: {:.2} of it; etcdctl alone saves in {:.2} s: {:.2} of it; by hand in {:.2} s: {:.2} of it (at most 0.75); resident {idle} KiB idle, {peak} KiB peak (at most 98304)",
        bytes / (1024 * 1024),
        thrown.as_secs_f64(),
        unlimited.as_secs_f64(),
        unlimited.as_secs_f64() / thrown.as_secs_f64(),
        encrypted.as_secs_f64(),
        encrypted.as_secs_f64() / thrown.as_secs_f64(),
        saved.as_secs_f64(),
        unlimited.as_secs_f64() / saved.as_secs_f64(),
        by_hand.as_secs_f64(),
        unlimited.as_secs_f64() / by_hand.as_secs_f64(),
    );
}

/// What a backup costs where etcd is what the others wait for, as on a machine with more processors or a slower etcd.
async fn backup_of_a_slow_etcd((etcd, member): (&Etcd, &EtcdMember), store: &Store, round: u32) {
    let _held = Held::to(etcd.process.id(), SLOW);
    let (thrown, _) = throw_away(member).await;
    let began = Instant::now();
    back_up(member, store, round).await;
    let backup = began.elapsed();
    println!(
        "with {SLOW} of a processor for etcd: thrown away in {:.2} s; backed up without a limit in {:.2} s: {:.2} of it (at most 1.1)",
        thrown.as_secs_f64(),
        backup.as_secs_f64(),
        backup.as_secs_f64() / thrown.as_secs_f64()
    );
}

/// A share of one processor.
const SLOW: f64 = 0.5;

/// Keeps a process to a share of one processor, by a cgroup that goes when this is dropped.
struct Held {
    root: &'static Path,
    group: PathBuf,
    pid: String,
}

impl Held {
    fn to(pid: u32, share: f64) -> Self {
        // Short, so that it is slow rather than stopped again and again; in microseconds.
        let period = 10_000;
        let quota = (f64::from(period) * share) as u32;
        let v2 = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
        let (root, settings) = match v2 {
            true => ("/sys/fs/cgroup", vec![("cpu.max", format!("{quota} {period}"))]),
            false => (
                "/sys/fs/cgroup/cpu",
                vec![
                    ("cpu.cfs_period_us", period.to_string()),
                    ("cpu.cfs_quota_us", quota.to_string()),
                ],
            ),
        };
        let (root, pid) = (Path::new(root), pid.to_string());
        let group = root.join(format!("lockkeeper-figures-{pid}"));
        if v2 {
            std::fs::write(root.join("cgroup.subtree_control"), "+cpu").unwrap();
        }
        std::fs::create_dir(&group).unwrap();
        let held = Self { root, group, pid };
        for (file, value) in settings {
            std::fs::write(held.group.join(file), value).unwrap();
        }
        std::fs::write(held.group.join("cgroup.procs"), &held.pid).unwrap();
        held
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let _ = std::fs::write(self.root.join("cgroup.procs"), &self.pid);
        let _ = std::fs::remove_dir(&self.group);
    }
}

/// How often writes are measured beside something and then alone for as long.
const ALTERNATIONS: u32 = 5;

/// The most of it that they are measured beside: what else a machine's disk does changes within a minute.
const LONG: Duration = Duration::from_secs(20);

/// Prints the 99th percentiles of writes beside `work` and alone, in turn, and the median of their ratios.
async fn beside(etcd: &Etcd, what: &str, work: impl AsyncFn(u32)) {
    let (mut pairs, mut ratios) = (String::new(), vec![]);
    for round in 0..ALTERNATIONS {
        let began = Instant::now();
        let cut_short = async {
            let _ = tokio::time::timeout(LONG, work(round)).await;
        };
        let during = writes_beside(etcd, cut_short).await;
        let alone = writes_beside(etcd, tokio::time::sleep(began.elapsed())).await;
        pairs += &format!("{:.1}/{:.1} ", during * 1000., alone * 1000.);
        ratios.push(during / alone);
    }
    ratios.sort_by(f64::total_cmp);
    println!(
        "writes: p99 in ms {what}, by alone: {pairs}: {:.2} of alone, the median ({:.2} to {:.2})",
        ratios[ratios.len() / 2],
        ratios[0],
        ratios[ratios.len() - 1],
    );
}

/// Memory that the machine has, not only is said to have: a virtual machine gets its memory from the host at the first touch
/// and gives it back two seconds after it is free, and to get it takes ten times as long as to write into it. A machine that has
/// run for a while has its memory full of files that it has read, and takes from them: so it is made here.
#[derive(Default)]
struct Memory(Vec<File>);

impl Memory {
    /// Reads files of holes for what is free, but for a little: they take no disk, and their pages are the first to go.
    fn touch(&mut self) {
        let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap();
        let line = meminfo.lines().find_map(|line| line.strip_prefix("MemFree:"));
        let free: u64 = line.unwrap().trim().trim_end_matches(" kB").parse().unwrap();
        let mut holes = tempfile::tempfile().unwrap();
        holes.set_len((free * 1024).saturating_sub(LEFT_FREE)).unwrap();
        std::io::copy(&mut holes, &mut std::io::sink()).unwrap();
        self.0.push(holes);
    }
}

/// In bytes.
const LEFT_FREE: u64 = 512 * 1024 * 1024;

/// Seconds of a processor that etcd, this process and the S3 server have used.
struct Used([f64; 3]);

impl Used {
    fn now(etcd: &Etcd, s3: &ObjectServer) -> Self {
        let server = s3.process.as_ref().unwrap().id();
        Self([etcd.process.id(), std::process::id(), server].map(|pid| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
            // Behind the name, which may hold anything: user and system time are the 12th and 13th, in ticks of 10 ms.
            let (_, fields) = stat.rsplit_once(')').unwrap();
            let ticks = fields.split_whitespace().skip(11).take(2);
            ticks.map(|t| t.parse::<f64>().unwrap() / 100.).sum()
        }))
    }

    fn tell(&self, what: &str, took: Duration, etcd: &Etcd, s3: &ObjectServer) {
        let now = Self::now(etcd, s3);
        let used: Vec<f64> = self
            .0
            .iter()
            .zip(now.0)
            .map(|(before, now)| now - before)
            .collect();
        println!(
            "{what}: processors used for {:.1} s by etcd, {:.1} s here, {:.1} s by the S3 server: {:.2} of them at once",
            used[0],
            used[1],
            used[2],
            used.iter().sum::<f64>() / took.as_secs_f64()
        );
    }
}

/// `etcdctl snapshot save`, `zstd -1`, and an upload.
async fn by_hand(bin: &Path, etcd: &Etcd, s3: &ObjectServer, round: u32) -> [Duration; 2] {
    let at = tempfile::tempdir().unwrap();
    let began = Instant::now();
    let run = |program: &Path, args: &[&str]| {
        let done = Command::new(program).args(args).current_dir(at.path()).output();
        let done = done.unwrap();
        assert!(done.status.success(), "{done:?}");
    };
    run(
        &bin.join("etcdctl"),
        &["--endpoints", &etcd.endpoint, "snapshot", "save", "snapshot.db"],
    );
    let saved = began.elapsed();
    run(Path::new("zstd"), &["-1", "-q", "-f", "snapshot.db"]);
    let bytes = std::fs::read(at.path().join("snapshot.db.zst")).unwrap();
    let key = object_store::path::Path::from(format!("by-hand/{round}"));
    s3.raw().put(&key, bytes.into()).await.unwrap();
    [saved, began.elapsed()]
}

/// Of each kind: the middle one counts.
const RESTORES: u32 = 5;

/// One member from the store, against one from a local file that lies on the disk.
async fn restore(bin: &Path, store: &Store, keys: &Identities) {
    let listed = store.list().await.unwrap();
    let (at, never, mut memory) = (
        tempfile::tempdir().unwrap(),
        CancellationToken::new(),
        Memory::default(),
    );
    let file = at.path().join("snapshot.db");
    let manifest = listed[0].manifest.as_ref().unwrap();
    let local = |round: u32| {
        let directory = at.path().join(round.to_string());
        let began = Instant::now();
        let done = Command::new(bin.join("etcdutl"))
            .args(["snapshot", "restore"])
            .arg(&file)
            .arg("--data-dir")
            .arg(&directory)
            .output();
        assert!(done.unwrap().status.success());
        let took = began.elapsed();
        std::fs::remove_dir_all(directory).unwrap();
        took
    };
    let (mut whole, mut alone) = (vec![], vec![]);
    for round in 0..RESTORES {
        let _ = std::fs::remove_file(&file);
        rustix::fs::sync();
        memory.touch();
        let began = Instant::now();
        store
            .fetch(manifest, &listed[0].key, keys, &file, &never)
            .await
            .unwrap();
        let fetched = began.elapsed();
        whole.push((fetched + local(round), fetched));
        rustix::fs::sync();
        memory.touch();
        alone.push(local(RESTORES + round));
    }
    whole.sort();
    alone.sort();
    let middle = RESTORES as usize / 2;
    let ((whole, fetched), alone) = (whole[middle], alone[middle]);
    println!(
        "restore: {:.2} s of a local file; {:.2} s from the store, of which {:.2} s to fetch and decrypt it: {:.2} of it (at most 1.5)",
        alone.as_secs_f64(),
        whole.as_secs_f64(),
        fetched.as_secs_f64(),
        whole.as_secs_f64() / alone.as_secs_f64()
    );
}

/// Names [`writer`] the etcd.
const WRITE_TO: &str = "LOCKKEEPER_TEST_WRITE_TO";

/// The 99th percentile of 100 writes a second while `work` goes on, in seconds, as a client in a process of its own finds
/// it: in this one it would measure what it shares with whoever takes the backup, too.
async fn writes_beside(etcd: &Etcd, work: impl Future<Output = ()>) -> f64 {
    let mut writer = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "figures::writer", "--nocapture"])
        .env(WRITE_TO, &etcd.endpoint)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    work.await;
    drop(writer.stdin.take());
    let told = String::from_utf8(writer.wait_with_output().unwrap().stdout).unwrap();
    let (_, p99) = told.split_once("p99=").unwrap();
    p99.lines().next().unwrap().parse().unwrap()
}

/// Writes until its input ends, and prints the 99th percentile in seconds.
#[tokio::test]
#[ignore = "a part of the figures, which start it as a process of its own"]
async fn writer() {
    let Ok(endpoint) = std::env::var(WRITE_TO) else {
        return;
    };
    let until = CancellationToken::new();
    let ended = until.clone();
    std::thread::spawn(move || {
        let _ = std::io::stdin().read_to_end(&mut vec![]);
        ended.cancel();
    });
    let mut client = etcd_client::Client::connect([endpoint], None).await.unwrap();
    let (mut took, mut due) = (vec![], tokio::time::interval(Duration::from_millis(10)));
    while !until.is_cancelled() {
        due.tick().await;
        let at = Instant::now();
        client
            .put("/bench/write", vec![7_u8; OBJECT], None)
            .await
            .unwrap();
        took.push(at.elapsed().as_secs_f64());
    }
    took.sort_by(f64::total_cmp);
    println!("p99={}", took[took.len() * 99 / 100]);
}

async fn throw_away(member: &EtcdMember) -> (Duration, u64) {
    let began = Instant::now();
    let mut client = member.snapshot(None).await.unwrap();
    loop {
        match client.next().await.unwrap() {
            Piece::Data(_) => {}
            Piece::End(fingerprint) => return (began.elapsed(), fingerprint.size),
        }
    }
}

async fn back_up(member: &EtcdMember, store: &Store, round: u32) {
    let request = Request {
        uid: format!("{round:08}"),
        ..request(600)
    };
    let never = CancellationToken::new();
    take(member, store, &request, &never, |_| {}).await.unwrap();
}

fn resident(field: &str) -> i64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn reset_peak() {
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
}
