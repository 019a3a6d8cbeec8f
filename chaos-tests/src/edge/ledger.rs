//! A ledger at the edge into which workers of both clusters write who they are, and a queue that they empty: a consumer
//! that never ends, and a `CronJob`. Whoever works twice at once, or loses work, is seen here.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::net::{SocketAddr, SocketAddrV4};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use super::app::{IMAGE, NAMESPACE, apply};
use super::{Colour, Pair, network};
use crate::network::move_thread_into;

/// Where workers write.
const AT: SocketAddr = SocketAddr::V4(SocketAddrV4::new(network::ADDRESS, 8081));
/// The consumer's name.
pub const CONSUMER: &str = "consumer";
/// The `CronJob`'s name.
pub const CRON_JOB: &str = "minutely";
/// What a worker does with one piece of work.
const PIECE: Duration = Duration::from_millis(200);
/// Work that was taken and not done for so long is given to the next who asks.
const GIVEN_AGAIN: Duration = Duration::from_secs(10);
/// How long a consumer goes on once it is told to end: longer than one takes to start, so that whoever does not wait for
/// its end is seen.
const LINGERS: Duration = Duration::from_secs(8);
/// How long a Job works.
const JOB: u64 = 5;

#[derive(Debug, Default)]
struct Book {
    /// Who wrote, one entry for all that came in a row.
    runs: BTreeMap<String, Vec<String>>,
    pieces: u64,
    out: BTreeMap<u64, Instant>,
    done: BTreeSet<u64>,
}

impl Book {
    fn answer(&mut self, path: &str, now: Instant) -> Option<String> {
        let mut words = path.split('/').skip(1);
        let (deed, worker, colour) = (words.next()?, words.next()?, words.next()?);
        let runs = self.runs.entry(worker.to_owned()).or_default();
        if runs.last().is_none_or(|last| last != colour) {
            runs.push(colour.to_owned());
        }
        match deed {
            "take" => {
                let old = self.out.iter().find(|(_, at)| now - **at >= GIVEN_AGAIN);
                let piece = old.map_or_else(
                    || {
                        self.pieces += 1;
                        self.pieces
                    },
                    |(piece, _)| *piece,
                );
                self.out.insert(piece, now);
                Some(piece.to_string())
            }
            "done" => {
                let piece = words.next()?.parse().ok()?;
                self.out.remove(&piece);
                self.done.insert(piece);
                Some("noted".to_owned())
            }
            "works" => Some("noted".to_owned()),
            _ => None,
        }
    }
}

/// The ledger at work.
#[derive(Debug)]
pub struct Ledger {
    book: Arc<Mutex<Book>>,
}

impl Ledger {
    /// Opens it at the edge; it is open until this program ends.
    pub fn open(pair: &Pair<'_>) -> Result<Self> {
        let book = Arc::new(Mutex::new(Book::default()));
        let (namespace, kept) = (pair.scene.lab.home().namespace(super::EDGE), book.clone());
        let (ready, is_ready) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let listening = || {
                move_thread_into(&namespace)?;
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()?;
                let listener = runtime.block_on(TcpListener::bind(AT))?;
                Ok::<_, anyhow::Error>((runtime, listener))
            };
            match listening() {
                Ok((runtime, listener)) => {
                    let _ = ready.send(Ok(()));
                    runtime.block_on(serve(&listener, &kept));
                }
                Err(error) => {
                    let _ = ready.send(Err(error));
                }
            }
        });
        is_ready.recv().context("the ledger did not open")??;
        Ok(Self { book })
    }

    fn book(&self) -> std::sync::MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The colours in which a worker wrote, one after the other; two at once would take turns again and again.
    #[must_use]
    pub fn runs(&self, worker: &str) -> Vec<String> {
        self.book().runs.get(worker).cloned().unwrap_or_default()
    }

    /// Who wrote last.
    #[must_use]
    pub fn last(&self, worker: &str) -> Option<String> {
        self.runs(worker).pop()
    }

    /// How many pieces of work were taken.
    #[must_use]
    pub fn taken(&self) -> u64 {
        self.book().pieces
    }

    /// Those of the first `taken` pieces that nobody has done. Work that a worker left is given to the next, so one that
    /// stays here is lost.
    #[must_use]
    pub fn undone(&self, taken: u64) -> Vec<u64> {
        let book = self.book();
        (1..=taken).filter(|piece| !book.done.contains(piece)).collect()
    }
}

async fn serve(listener: &TcpListener, book: &Arc<Mutex<Book>>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            continue;
        };
        let book = book.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request: Request<Incoming>| {
                let mut book = book.lock().unwrap_or_else(PoisonError::into_inner);
                let answer = book.answer(request.uri().path(), Instant::now());
                let (status, body) = match answer {
                    Some(body) => (StatusCode::OK, body),
                    None => (StatusCode::NOT_FOUND, "no such deed".to_owned()),
                };
                let mut answer = Response::new(Full::new(Bytes::from(body)));
                *answer.status_mut() = status;
                std::future::ready(Ok::<_, Infallible>(answer))
            });
            // A worker that goes away is no news.
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

/// A worker: the consumer until a while after it is told to end, a Job for a while. What it has in hand it ends.
pub async fn work(colour: String, job: bool) -> Result<()> {
    // Its image holds no certificates, and none is looked at.
    let client = reqwest::Client::builder()
        .tls_certs_only([])
        .timeout(Duration::from_secs(2))
        .build()?;
    let say = async |path: String| -> Result<String> {
        let answer = client.get(format!("http://{AT}/{path}")).send().await?;
        Ok(answer.error_for_status()?.text().await?)
    };
    let mut told = signal(SignalKind::terminate())?;
    let mut until = job.then(|| Instant::now() + Duration::from_secs(JOB));
    loop {
        let done = if job {
            say(format!("works/{CRON_JOB}/{colour}")).await.map(drop)
        } else {
            async {
                let piece = say(format!("take/{CONSUMER}/{colour}")).await?;
                tokio::time::sleep(PIECE).await;
                say(format!("done/{CONSUMER}/{colour}/{piece}")).await.map(drop)
            }
            .await
        };
        if let Err(error) = done {
            eprintln!("{error:#}");
        }
        if until.is_some_and(|end| Instant::now() >= end) {
            return Ok(());
        }
        tokio::select! {
            _ = told.recv() => until = until.or_else(|| Some(Instant::now() + LINGERS)),
            () = tokio::time::sleep(PIECE) => {}
        }
    }
}

/// The consumer and the `CronJob` in both clusters, at work in blue and stopped in green.
pub async fn deploy(pair: &Pair<'_>) -> Result<()> {
    for colour in [Colour::Blue, Colour::Green] {
        let client = pair.client(colour).await?;
        for object in objects(colour) {
            apply(pair, &client, &object).await?;
        }
    }
    Ok(())
}

fn objects(colour: Colour) -> [Value; 2] {
    let labels = json!({"app": CONSUMER});
    let runs = colour == Colour::Blue;
    // On the node's own network, from which the edge is reached.
    let pod = |job: bool| {
        let mut args = vec!["work", "--colour", colour.name()];
        args.extend(job.then_some("--job"));
        json!({
            "hostNetwork": true, "automountServiceAccountToken": false,
            "tolerations": [{"operator": "Exists"}],
            "restartPolicy": if job { "Never" } else { "Always" },
            "containers": [{"name": "worker", "image": IMAGE, "imagePullPolicy": "Never", "args": args}],
        })
    };
    [
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": CONSUMER, "namespace": NAMESPACE},
            "spec": {
                "replicas": i32::from(runs), "selector": {"matchLabels": labels},
                "strategy": {"type": "Recreate"},
                "template": {"metadata": {"labels": labels}, "spec": pod(false)},
            },
        }),
        json!({
            "apiVersion": "batch/v1", "kind": "CronJob",
            "metadata": {"name": CRON_JOB, "namespace": NAMESPACE},
            "spec": {
                "schedule": "* * * * *", "suspend": !runs, "concurrencyPolicy": "Forbid",
                "jobTemplate": {"spec": {"backoffLimit": 0, "template": {"spec": pod(true)}}},
            },
        }),
    ]
}

/// Both, as `spec.singletons` names them.
#[must_use]
pub fn singletons() -> Value {
    json!([
        {"kind": "Deployment", "namespace": NAMESPACE, "name": CONSUMER},
        {"kind": "CronJob", "namespace": NAMESPACE, "name": CRON_JOB},
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_at_once_take_turns_and_one_after_the_other_do_not() {
        let (mut book, now) = (Book::default(), Instant::now());
        for colour in ["blue", "blue", "green", "green", "blue"] {
            book.answer(&format!("/works/minutely/{colour}"), now).unwrap();
        }
        assert_eq!(book.runs["minutely"], ["blue", "green", "blue"]);
        assert!(book.answer("/nonsense/minutely/blue", now).is_none());
    }

    #[test]
    fn what_was_taken_and_not_done_is_given_again_and_is_missed_meanwhile() {
        let (mut book, now) = (Book::default(), Instant::now());
        let take = |book: &mut Book, after| book.answer("/take/consumer/blue", now + after).unwrap();
        assert_eq!(take(&mut book, Duration::ZERO), "1");
        assert_eq!(take(&mut book, Duration::ZERO), "2");
        book.answer("/done/consumer/blue/2", now).unwrap();
        assert_eq!(take(&mut book, GIVEN_AGAIN), "1");
        book.answer("/done/consumer/blue/1", now).unwrap();
        let ledger = Ledger {
            book: Arc::new(Mutex::new(book)),
        };
        assert_eq!((ledger.taken(), ledger.undone(2)), (2, vec![]));
        ledger.book().done.remove(&1);
        assert_eq!(ledger.undone(2), [1]);
    }
}
