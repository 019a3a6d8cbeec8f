//! What a backup costs: time against the stream alone, and memory.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use lockkeeper::agent::backup::{Request, take};
use lockkeeper::agent::etcd::EtcdMember;
use lockkeeper::store::{Piece, Source as _, Store};
use tokio_util::sync::CancellationToken;

use super::request;
use super::world::{Etcd, ObjectServer, binaries};

/// Prints figures: `cargo test -p lockkeeper --test etcd_backup -- --ignored --nocapture figures`.
/// `LOCKKEEPER_TEST_MIB` is etcd's size (1024).
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes a minute and a gigabyte"]
async fn figures() {
    let Some(bin) = binaries() else { return };
    tracing_subscriber::fmt()
        .with_env_filter("lockkeeper=info")
        .init();
    let mib = std::env::var("LOCKKEEPER_TEST_MIB")
        .ok()
        .and_then(|m| m.parse().ok())
        .unwrap_or(1024_usize);
    let (etcd, s3) = (Etcd::start(&bin).await, ObjectServer::start(&bin).await);
    etcd.fill(mib * 1024 / 16, 16 * 1024).await;
    let (member, store) = (etcd.member(), s3.store());
    member.observe().await.unwrap();
    store.probe().await.unwrap();
    for round in 1..=3 {
        let (thrown, bytes) = throw_away(&member).await;
        reset_peak();
        let idle = resident("VmRSS:");
        let began = Instant::now();
        let streamed = back_up(&member, &store, round).await;
        let whole = began.elapsed();
        let peak = resident("VmHWM:");
        println!(
            "round {round}: {} MiB; thrown away in {:.2} s; backed up in {:.2} s (streamed in {:.2} s); ratio {:.2}; resident {idle} KiB idle, {peak} KiB peak, {} KiB more",
            bytes / (1024 * 1024),
            thrown.as_secs_f64(),
            whole.as_secs_f64(),
            streamed.as_secs_f64(),
            whole.as_secs_f64() / thrown.as_secs_f64(),
            peak - idle,
        );
    }
}

async fn throw_away(member: &EtcdMember) -> (Duration, u64) {
    let began = Instant::now();
    let mut client = member.snapshot().await.unwrap();
    loop {
        match client.next().await.unwrap() {
            Piece::Data(_) => {}
            Piece::End(fingerprint) => return (began.elapsed(), fingerprint.size),
        }
    }
}

/// How long the stream took; the rest is completing, reading back and publishing.
async fn back_up(member: &EtcdMember, store: &Store, round: u32) -> Duration {
    let request = Request {
        uid: format!("{round:08}"),
        ..request(600)
    };
    let began = Instant::now();
    let (told, counter) = tokio::sync::oneshot::channel();
    let never = CancellationToken::new();
    let taking = take(member, store, &request, &never, |snapshot| {
        let _ = told.send(snapshot.streamed());
    });
    let watching = async {
        let counter = counter.await.unwrap();
        let (mut last, mut at) = (0, began.elapsed());
        loop {
            tokio::time::sleep(Duration::from_millis(10)).await;
            let now = counter.load(Ordering::Relaxed);
            if now != last {
                (last, at) = (now, began.elapsed());
            } else if began.elapsed() - at > Duration::from_secs(1) {
                return at;
            }
        }
    };
    tokio::pin!(taking, watching);
    let mut streamed = None;
    loop {
        tokio::select! {
            taken = &mut taking => {
                taken.unwrap();
                return streamed.unwrap_or_else(|| began.elapsed());
            }
            at = &mut watching, if streamed.is_none() => streamed = Some(at),
        }
    }
}

fn resident(field: &str) -> i64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn reset_peak() {
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
}
