//! Runs the three streams until a signal comes, then looks every acknowledged write up.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http::{Method, StatusCode};

use super::LoadOptions;
use super::connection::{Answer, Ask, Broken, Kept, Target};
use super::report::{Counter, Report};
use super::writes::{Books, Write};
use crate::cache::write_whole;
use crate::interrupt;

/// The namespace that the writes go to.
const NAMESPACE: &str = "lab-load";
/// What the reads ask for: an object read from etcd, not from a cache.
const READ: &str = "/api/v1/namespaces/default/configmaps/kube-root-ca.crt";
/// As often as client-go tries again.
const RETRIES: u32 = 10;

#[derive(Clone, Copy)]
enum Stream {
    FreshReads,
    KeptReads,
    Writes,
}

const STREAMS: [(Stream, &str); 3] = [
    (Stream::FreshReads, "freshReads"),
    (Stream::KeptReads, "keptReads"),
    (Stream::Writes, "writes"),
];

struct Clients {
    target: Target,
    reads: Kept,
    writes: Kept,
    books: Mutex<Books>,
    counters: BTreeMap<&'static str, Mutex<Counter>>,
    began: Instant,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Asks until the process is told to end (SIGTERM); the report is written every second and at the end.
pub async fn run(options: LoadOptions) -> Result<()> {
    let kubeconfig = std::fs::read_to_string(&options.kubeconfig)
        .with_context(|| format!("cannot read {}", options.kubeconfig.display()))?;
    let target = Target::new(options.server, &kubeconfig)?;
    make_namespace(&target).await?;
    let began = Instant::now();
    let clients = Arc::new(Clients {
        reads: Kept::new(target.clone()),
        writes: Kept::new(target.clone()),
        target,
        books: Mutex::new(Books::new(&crate::cache::hex(&rand::random::<[u8; 3]>()))),
        counters: STREAMS
            .iter()
            .map(|(_, name)| (*name, Mutex::new(Counter::new(began))))
            .collect(),
        began,
    });
    let period = Duration::from_secs(1) / options.rate.max(1);
    let mut streams: Vec<_> = STREAMS
        .iter()
        .map(|(stream, name)| tokio::spawn(Arc::clone(&clients).stream(*stream, name, period)))
        .collect();
    loop {
        write_report(&options, &clients.report())?;
        if interrupt::raised() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    for stream in &mut streams {
        stream.await?;
    }
    let mut report = clients.report();
    report.lost_writes = clients.lost_writes().await?;
    report.complete = true;
    write_report(&options, &report)
}

fn write_report(options: &LoadOptions, report: &Report) -> Result<()> {
    write_whole(&options.out, &serde_json::to_vec_pretty(report)?)
}

async fn make_namespace(target: &Target) -> Result<()> {
    let body = serde_json::json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}});
    let ask = Ask {
        method: Method::POST,
        path: "/api/v1/namespaces".into(),
        content_type: "application/json",
        body: Bytes::from(body.to_string()),
    };
    let began = Instant::now();
    loop {
        match target.fresh(&ask).await {
            Ok(answer) if answer.status.is_success() || answer.status == StatusCode::CONFLICT => {
                return Ok(());
            }
            other if began.elapsed() > Duration::from_secs(15) => {
                bail!("cannot make the namespace {NAMESPACE}: {other:?}")
            }
            _ => tokio::time::sleep(Duration::from_millis(300)).await,
        }
    }
}

impl Clients {
    fn counter(&self, name: &str) -> Option<MutexGuard<'_, Counter>> {
        self.counters.get(name).map(lock)
    }

    fn report(&self) -> Report {
        let now = Instant::now();
        Report {
            complete: false,
            seconds: self.began.elapsed().as_secs_f64(),
            streams: self
                .counters
                .iter()
                .map(|(name, counter)| ((*name).to_owned(), lock(counter).report(now)))
                .collect(),
            acknowledged_writes: lock(&self.books).acknowledgements,
            lost_writes: Vec::new(),
        }
    }

    /// One request a period, whether or not the last one has its answer: a slow server sees the same load.
    async fn stream(self: Arc<Self>, stream: Stream, name: &'static str, period: Duration) {
        let mut tick = tokio::time::interval(period);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Burst);
        let mut under_way = tokio::task::JoinSet::new();
        while !interrupt::raised() {
            tick.tick().await;
            while under_way.try_join_next().is_some() {}
            let clients = Arc::clone(&self);
            let write = match stream {
                Stream::Writes => lock(&self.books).next(),
                _ => None,
            };
            if matches!(stream, Stream::Writes) && write.is_none() {
                // Every ConfigMap waits for an answer; each of them counts as it ends.
                continue;
            }
            under_way.spawn(async move { clients.one(stream, name, write).await });
        }
        while under_way.join_next().await.is_some() {}
    }

    async fn one(&self, stream: Stream, name: &'static str, write: Option<Write>) {
        let ask = write.as_ref().map_or_else(|| Ask::get(READ), write_request);
        if let Some(mut counter) = self.counter(name) {
            counter.asked();
        }
        let mut first = true;
        for tries in 0..=RETRIES {
            let result = match stream {
                Stream::FreshReads => self.target.fresh(&ask).await,
                Stream::KeptReads => self.reads.ask(&ask).await,
                Stream::Writes => self.writes.ask(&ask).await,
            };
            let next = judge(&result, &ask.method);
            if matches!(next, Next::Done) {
                if let Some(write) = &write {
                    lock(&self.books).acknowledge(write);
                }
                if let Some(mut counter) = self.counter(name) {
                    counter.succeeded(Instant::now());
                }
                return;
            }
            if std::mem::take(&mut first)
                && let Some(mut counter) = self.counter(name)
            {
                counter.failed_at_first(Instant::now(), &kind(&result));
            }
            match next {
                Next::Again(after) if tries < RETRIES => tokio::time::sleep(after).await,
                _ => break,
            }
        }
        if let Some(write) = &write {
            lock(&self.books).unknown(write);
        }
        if let Some(mut counter) = self.counter(name) {
            counter.failed_for_good();
        }
    }

    async fn lost_writes(&self) -> Result<Vec<String>> {
        let ask = Ask::get(format!("/api/v1/namespaces/{NAMESPACE}/configmaps"));
        let began = Instant::now();
        loop {
            match self.target.fresh(&ask).await {
                Ok(answer) if answer.status.is_success() => {
                    return Ok(lock(&self.books).lost(&counters(&answer)?));
                }
                other if began.elapsed() > Duration::from_secs(60) => {
                    bail!("cannot look the writes up: {other:?}")
                }
                _ => tokio::time::sleep(Duration::from_millis(500)).await,
            }
        }
    }
}

fn write_request(write: &Write) -> Ask {
    let data = serde_json::json!({"counter": write.counter.to_string()});
    let path = format!("/api/v1/namespaces/{NAMESPACE}/configmaps");
    if write.exists {
        return Ask {
            method: Method::PATCH,
            path: format!("{path}/{}", write.name),
            content_type: "application/merge-patch+json",
            body: Bytes::from(serde_json::json!({"data": data}).to_string()),
        };
    }
    let body = serde_json::json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": write.name}, "data": data,
    });
    Ask {
        method: Method::POST,
        path,
        content_type: "application/json",
        body: Bytes::from(body.to_string()),
    }
}

fn counters(answer: &Answer) -> Result<BTreeMap<String, u64>> {
    let list: serde_json::Value = serde_json::from_slice(&answer.body)?;
    let items = list
        .get("items")
        .and_then(serde_json::Value::as_array)
        .context("a list without items")?;
    Ok(items
        .iter()
        .filter_map(|item| {
            let name = item.pointer("/metadata/name")?.as_str()?.to_owned();
            Some((name, item.pointer("/data/counter")?.as_str()?.parse().ok()?))
        })
        .collect())
}

/// What client-go does next.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    Done,
    Again(Duration),
    GiveUp,
}

/// client-go tries again after 429 and 5xx that carry Retry-After, whatever the verb; and reads again, after
/// a second, when the connection broke under them.
fn judge(result: &Result<Answer, Broken>, method: &Method) -> Next {
    match result {
        Ok(answer) if answer.status.is_success() => Next::Done,
        Ok(Answer {
            status,
            retry_after: Some(after),
            ..
        }) if *status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error() => Next::Again(*after),
        Err(Broken::Midway(_)) if *method == Method::GET => Next::Again(Duration::from_secs(1)),
        _ => Next::GiveUp,
    }
}

fn kind(result: &Result<Answer, Broken>) -> String {
    match result {
        Ok(answer) => format!("status {}", answer.status.as_u16()),
        Err(broken) => broken.kind().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, retry_after: Option<u64>) -> Result<Answer, Broken> {
        Ok(Answer {
            status: StatusCode::from_u16(status).unwrap(),
            retry_after: retry_after.map(Duration::from_secs),
            body: Bytes::new(),
        })
    }

    #[test]
    fn retries_are_client_gos() {
        assert_eq!(judge(&answer(200, None), &Method::GET), Next::Done);
        assert_eq!(
            judge(&answer(503, Some(1)), &Method::PATCH),
            Next::Again(Duration::from_secs(1))
        );
        assert_eq!(judge(&answer(503, None), &Method::GET), Next::GiveUp);
        assert_eq!(judge(&answer(404, Some(1)), &Method::GET), Next::GiveUp);
        let broken = Err(Broken::Midway("EOF".into()));
        assert_eq!(judge(&broken, &Method::GET), Next::Again(Duration::from_secs(1)));
        assert_eq!(
            judge(&broken, &Method::PATCH),
            Next::GiveUp,
            "a write is not sent twice"
        );
        assert_eq!(
            judge(&Err(Broken::Other("refused".into())), &Method::GET),
            Next::GiveUp
        );
    }
}
